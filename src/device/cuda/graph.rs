//! Launches as a graph: what a piece of work launches is captured, put in the place of what was launched in the same order
//! before, and launched as one. Grids and arguments may differ from one time to the next. For another order of kernels there
//! is another executable graph, of which a few are kept.

use std::mem;

use anyhow::{Context, Result, ensure};
use cudarc::driver::{
    result::{self, DriverError},
    sys,
};

use super::{
    super::{Kernel, Launch},
    CudaDevice,
    driver::explain,
};

/// Executable graphs that are kept: of full micro-batches, of the last one of an epoch, and one more.
const KEPT: usize = 3;

/// One entry of a graph with all that an executable graph is made with. Grids and arguments are not among it: these an
/// update changes. Of clusters mlx found that it leaves them as they were, and says nothing (its pull request 2813), so that a
/// kernel of clusters in the place of another one would run without its other half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node {
    Launch { kernel: &'static str, cluster: u32, block: [u32; 3], smem_bytes: u32 },
    Copy,
    Fill,
}

impl Node {
    pub fn launch(kernel: &Kernel, launch: &Launch) -> Self {
        let Launch { block, smem_bytes, .. } = *launch;
        Self::Launch { kernel: kernel.name, cluster: kernel.cluster, block, smem_bytes }
    }
}

/// What the device notes while a graph is captured.
#[derive(Default)]
pub struct Capture {
    /// In the order of the stream.
    pub nodes: Vec<Node>,
    /// Memory that was let go of, which a captured stream cannot free.
    pub released: Vec<u64>,
}

/// The executable graphs of a device.
#[derive(Default)]
pub struct Graphs {
    /// By what they launch, the one that ran last at the end.
    executables: Vec<(Vec<Node>, sys::CUgraphExec)>,
    /// Whether everything has run once by itself.
    warm: bool,
}

// SAFETY: the driver's handles may be used from any thread on which the context is current; `Graphs` is behind a lock.
unsafe impl Send for Graphs {}

impl Graphs {
    /// The executable graph for what was captured: an earlier one that launches the same, or a new one.
    ///
    /// # Safety
    /// `captured` is a graph, and `nodes` are its entries.
    unsafe fn executable(&mut self, nodes: Vec<Node>, captured: sys::CUgraph) -> Result<sys::CUgraphExec, DriverError> {
        let known = self.executables.iter().position(|(known, _)| *known == nodes);
        let known = known.map(|at| self.executables.remove(at).1);
        // SAFETY: the handle is out of the list, and the graph is the caller's.
        let updated = known.map_or(Ok(None), |executable| unsafe { update(executable, captured) })?;
        let executable = match updated {
            Some(executable) => executable,
            // SAFETY: the caller's graph.
            None => unsafe { result::graph::instantiate(captured, sys::CUgraphInstantiate_flags(0)) }?,
        };
        self.executables.push((nodes, executable));
        if self.executables.len() > KEPT {
            let (_, oldest) = self.executables.remove(0);
            // SAFETY: nobody uses the handle any more; a launch in flight is not ended by it.
            unsafe { result::graph::exec_destroy(oldest) }?;
        }
        Ok(executable)
    }
}

/// Puts `captured` in the place of what `executable` launches; without it, where the driver refuses.
///
/// # Safety
/// Both are the driver's, and nobody else has the executable one.
unsafe fn update(
    executable: sys::CUgraphExec,
    captured: sys::CUgraph,
) -> Result<Option<sys::CUgraphExec>, DriverError> {
    let mut info = sys::CUgraphExecUpdateResultInfo {
        result: sys::CUgraphExecUpdateResult::CU_GRAPH_EXEC_UPDATE_SUCCESS,
        errorNode: std::ptr::null_mut(),
        errorFromNode: std::ptr::null_mut(),
    };
    // SAFETY: as the caller says; launches that are queued already keep what they had.
    if unsafe { sys::cuGraphExecUpdate_v2(executable, captured, &mut info) }.result().is_ok() {
        return Ok(Some(executable));
    }
    // SAFETY: as above.
    unsafe { result::graph::exec_destroy(executable) }?;
    Ok(None)
}

impl CudaDevice {
    /// Refuses what does not belong into a graph, while one is captured.
    pub(super) fn refuse_in_graph(&self, what: &str) -> Result<()> {
        ensure!(self.inner.capture().is_none(), "cuda: {what} inside a graph: do it before or after");
        Ok(())
    }

    /// Runs what `work` launches as a graph. It may launch, fill and copy on the device, and nothing else: what is allocated,
    /// released, copied from or to the host belongs before or after. The first time everything runs by itself, after every
    /// kernel is loaded: none that is met later has to be while it is captured.
    ///
    /// # Errors
    /// Those of `work`; it allocated, released or copied from or to the host; or the driver refuses.
    pub fn graphed<R>(&self, work: impl FnOnce() -> Result<R>) -> Result<R> {
        // A launch that is waited for cannot be captured.
        if self.inner.options.check_launches {
            return work();
        }
        let mut graphs = self.inner.graphs();
        if !mem::replace(&mut graphs.warm, true) {
            self.load_all().context("graph")?;
            return work();
        }
        let (done, nodes, captured) = self.capture(work)?;
        let stream = self.inner.stream.cu_stream();
        // SAFETY: both graphs are the driver's, and the captured one is not used any more.
        let launched = unsafe {
            let executable = graphs.executable(nodes, captured);
            let launched = executable.and_then(|executable| result::graph::launch(executable, stream));
            launched.and(result::graph::destroy(captured))
        };
        launched.map_err(explain).context("graph")?;
        Ok(done)
    }

    /// What `work` gives, and the graph of what it launched.
    fn capture<R>(&self, work: impl FnOnce() -> Result<R>) -> Result<(R, Vec<Node>, sys::CUgraph)> {
        self.inner.bind()?;
        let stream = self.inner.stream.cu_stream();
        // SAFETY: the stream is this device's own. Other calls are not kept from it.
        unsafe { result::stream::begin_capture(stream, sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED) }
            .map_err(|e| explain(e).context("graph: capture"))?;
        *self.inner.capture() = Some(Capture::default());
        let done = work();
        // SAFETY: as above; ended whatever became of the work.
        let captured = unsafe { result::stream::end_capture(stream) };
        let Capture { nodes, released } = self.inner.capture().take().unwrap_or_default();
        released.iter().for_each(|&address| self.inner.free(address));
        let done = done.and_then(|done| {
            ensure!(released.is_empty(), "cuda: a release of a buffer inside a graph: do it before or after");
            Ok(done)
        });
        match (done, captured) {
            (Ok(done), captured) => {
                let captured = captured.map_err(|e| explain(e).context("graph: end of capture"))?;
                Ok((done, nodes, captured))
            }
            (Err(why), captured) => {
                // SAFETY: nobody uses what was captured.
                let _ = captured.and_then(|captured| unsafe { result::graph::destroy(captured) });
                Err(why)
            }
        }
    }
}

impl Drop for Graphs {
    fn drop(&mut self) {
        for (_, executable) in self.executables.drain(..) {
            // SAFETY: the last use of the handle. A failure is an earlier kernel's and was shown.
            let _ = unsafe { result::graph::exec_destroy(executable) };
        }
    }
}
