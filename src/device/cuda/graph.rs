//! Launches as a graph: what a piece of work launches is captured, put in the place of what the same piece launched last time,
//! and launched as one. Grids and arguments may differ from one time to the next, the kernels' order may not; where it does the
//! graph is made anew.

use anyhow::{Context, Result};
use cudarc::driver::{
    result::{self, DriverError},
    sys,
};

use super::{CudaDevice, driver::explain};

/// The graph that ran last.
#[derive(Default)]
pub struct Graph {
    executable: Option<sys::CUgraphExec>,
    /// Whether everything has run once by itself, which loads the kernels.
    warm: bool,
}

// SAFETY: the driver's handles may be used from any thread on which the context is current; `Graph` is behind a lock.
unsafe impl Send for Graph {}

impl Graph {
    /// Puts `captured` in the place of what is there, or makes the executable graph anew.
    ///
    /// # Safety
    /// `captured` is a graph.
    unsafe fn update(&mut self, captured: sys::CUgraph) -> Result<sys::CUgraphExec, DriverError> {
        if let Some(executable) = self.executable {
            let mut info = sys::CUgraphExecUpdateResultInfo {
                result: sys::CUgraphExecUpdateResult::CU_GRAPH_EXEC_UPDATE_SUCCESS,
                errorNode: std::ptr::null_mut(),
                errorFromNode: std::ptr::null_mut(),
            };
            // SAFETY: both are the driver's; launches that are queued already keep what they had.
            if unsafe { sys::cuGraphExecUpdate_v2(executable, captured, &mut info) }.result().is_ok() {
                return Ok(executable);
            }
            self.executable = None;
            // SAFETY: nobody uses the handle any more; a launch in flight is not ended by it.
            unsafe { result::graph::exec_destroy(executable) }?;
        }
        // SAFETY: the caller's graph.
        let made = unsafe { result::graph::instantiate(captured, sys::CUgraphInstantiate_flags(0)) }?;
        self.executable = Some(made);
        Ok(made)
    }
}

impl CudaDevice {
    /// Runs what `work` launches as a graph. It may launch, fill and copy on the device, and nothing else: what is allocated,
    /// released, copied from or to the host belongs before or after. The first time everything runs by itself.
    ///
    /// # Errors
    /// Those of `work`, or the driver refuses.
    pub fn graphed<R>(&self, work: impl FnOnce() -> Result<R>) -> Result<R> {
        let mut graph = self.inner.graph();
        // A launch that is waited for cannot be captured.
        if self.inner.options.check_launches || !std::mem::replace(&mut graph.warm, true) {
            return work();
        }
        self.inner.bind()?;
        let stream = self.inner.stream.cu_stream();
        // SAFETY: the stream is this device's own. Other calls, such as loading a kernel, are not kept from it.
        unsafe { result::stream::begin_capture(stream, sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED) }
            .map_err(|e| explain(e).context("graph: capture"))?;
        let done = work();
        // SAFETY: as above; ended whatever became of the work.
        let captured = unsafe { result::stream::end_capture(stream) };
        let (done, captured) = match (done, captured) {
            (Ok(done), captured) => (done, captured.map_err(|e| explain(e).context("graph: end of capture"))?),
            (Err(why), captured) => {
                // SAFETY: nobody uses what was captured.
                let _ = captured.and_then(|captured| unsafe { result::graph::destroy(captured) });
                return Err(why);
            }
        };
        // SAFETY: both graphs are the driver's, and the captured one is not used any more.
        let launched = unsafe {
            let launched = graph.update(captured).and_then(|executable| result::graph::launch(executable, stream));
            launched.and(result::graph::destroy(captured))
        };
        launched.map_err(explain).context("graph")?;
        Ok(done)
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if let Some(executable) = self.executable {
            // SAFETY: the last use of the handle. A failure is an earlier kernel's and was shown.
            let _ = unsafe { result::graph::exec_destroy(executable) };
        }
    }
}
