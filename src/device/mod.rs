//! The seam between the engine and whatever runs its kernels.
//!
//! Owns memory, copies, launches and timing; above this module nobody can tell a GPU from the host device.
//! Refuses to know what a kernel computes.

mod buffer;
pub mod cuda;
pub mod host;
// Written by the build: constants have the names of the kernels' own enums and no words beside.
#[allow(missing_docs)]
pub mod kernels;
mod pinned;
mod tables;
mod tensor_map;

use std::{ffi::c_void, fmt, str::FromStr, sync::Arc};

use anyhow::{Result, anyhow, bail, ensure};

pub use buffer::{Buffer, DType, Element, Float};
pub use cuda::CudaOptions;
pub use host::{Fault, GemmBackend, HostOptions, ThreadOrder};
pub use pinned::{Pinned, Stream};
pub(crate) use tables::Table;
pub use tensor_map::{Swizzle, TensorMap, TensorShape};

/// Which device a run asked for: `auto`, `cuda`, `cuda:N` or `host`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The first GPU, or the host device where there is none.
    Auto,
    /// The GPU of this number.
    Cuda(usize),
    /// The CPU.
    Host,
}

impl FromStr for Choice {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "host" => Ok(Self::Host),
            "cuda" => Ok(Self::Cuda(0)),
            _ => {
                let ordinal = text.strip_prefix("cuda:").and_then(|n| n.parse().ok());
                ordinal.map(Self::Cuda).ok_or_else(|| anyhow!("device `{text}`: expected auto, cuda, cuda:N or host"))
            }
        }
    }
}

/// A set of kernels, by what they need of a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// Those that every GPU runs.
    Portable,
    /// Those of compute capability 9.0's own units, in files whose stem ends in `_sm90`.
    Sm90,
}

/// Grid and block of one launch, and its dynamic shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// CTAs along x, y and z.
    pub grid: [u32; 3],
    /// Threads of a CTA along x, y and z.
    pub block: [u32; 3],
    /// Dynamic shared memory of a CTA.
    pub smem_bytes: u32,
}

impl Launch {
    /// A one-dimensional launch without shared memory.
    pub fn linear(ctas: usize, threads: usize) -> Self {
        Self { grid: [ctas as u32, 1, 1], block: [threads as u32, 1, 1], smem_bytes: 0 }
    }

    /// The same launch with `bytes` of dynamic shared memory.
    pub fn with_smem(self, bytes: usize) -> Self {
        Self { smem_bytes: bytes as u32, ..self }
    }
}

impl fmt::Display for Launch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "grid {:?}, block {:?}, {} shared bytes", self.grid, self.block, self.smem_bytes)
    }
}

/// One kernel entry point as the build read it from `kernels/*.cu`.
#[derive(Debug)]
pub struct Kernel {
    /// Entry point, as in the source.
    pub name: &'static str,
    /// Stem of the source file, which is also the name of its cubin.
    pub module: &'static str,
    /// `kernels/stem.cu:line`.
    pub place: &'static str,
    /// CTAs in a cluster, along x; the grid is a multiple of it.
    pub cluster: u32,
    /// Parameter names, in order, and their types in CUDA (`bf16*`, `int`).
    pub params: &'static [&'static str],
    /// Types of the parameters.
    pub types: &'static [&'static str],
    /// Host build of the same source, for speed.
    pub host: host::EntryPoint,
    /// Instrumented build for strict mode, in programs with the feature `strict`.
    pub strict: Option<host::EntryPoint>,
}

impl Kernel {
    /// What it needs, by the name of its file.
    pub fn arch(&self) -> Arch {
        if self.module.ends_with("_sm90") { Arch::Sm90 } else { Arch::Portable }
    }
}

/// One launch argument: what a kernel parameter is read from.
#[derive(Clone, Copy, Debug)]
pub enum Arg {
    /// A number, in the low bytes.
    Word(u64),
    /// An address, and which host device its memory is of: 0 for a GPU's.
    Pointer(u64, u64),
    /// How bulk copies walk a tensor.
    Map(TensorMap),
}

impl Arg {
    /// Where the parameter's bytes are.
    fn pointer(&self) -> *mut c_void {
        match self {
            Self::Word(word) | Self::Pointer(word, _) => std::ptr::from_ref(word).cast_mut().cast(),
            Self::Map(map) => std::ptr::from_ref(map).cast_mut().cast(),
        }
    }

    /// The pointer or number; of the host device's tensor maps the pointer.
    fn word(&self) -> u64 {
        match self {
            Self::Word(word) | Self::Pointer(word, _) => *word,
            Self::Map(map) => map.host_address(),
        }
    }
}

impl From<i32> for Arg {
    fn from(value: i32) -> Self {
        Self::Word(value as u32 as u64)
    }
}
impl From<u32> for Arg {
    fn from(value: u32) -> Self {
        Self::Word(value as u64)
    }
}
impl From<f32> for Arg {
    fn from(value: f32) -> Self {
        Self::Word(value.to_bits() as u64)
    }
}
impl From<f64> for Arg {
    fn from(value: f64) -> Self {
        Self::Word(value.to_bits())
    }
}
impl From<i64> for Arg {
    fn from(value: i64) -> Self {
        Self::Word(value as u64)
    }
}
impl From<u64> for Arg {
    fn from(value: u64) -> Self {
        Self::Word(value)
    }
}
impl<T: Element> From<&Buffer<T>> for Arg {
    fn from(buffer: &Buffer<T>) -> Self {
        Self::Pointer(buffer.address(), buffer.owner())
    }
}
impl From<&TensorMap> for Arg {
    fn from(map: &TensorMap) -> Self {
        Self::Map(*map)
    }
}

/// Bytes held on a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// Held now.
    pub allocated: usize,
    /// Held at most since the device was opened.
    pub peak: usize,
    /// Bytes still free and in all, as the driver or the operating system says.
    pub free: usize,
    /// Bytes in all.
    pub total: usize,
}

/// The elements of a buffer as they were at one point of the device's stream of work, on their way to the host.
pub struct Readback<T>(Copied<T>);

enum Copied<T> {
    Host(Vec<T>),
    Cuda(cuda::CudaReadback, usize),
}

impl<T: Element> Readback<T> {
    /// Waits for the copy; what was launched after it may still run.
    ///
    /// # Errors
    /// An earlier launch failed.
    pub fn wait(self) -> Result<Vec<T>> {
        match self.0 {
            Copied::Host(data) => Ok(data),
            Copied::Cuda(readback, len) => {
                let mut data = vec![T::zeroed(); len];
                readback.wait(bytemuck::cast_slice_mut(&mut data))?;
                Ok(data)
            }
        }
    }
}

/// A point in the device's stream of work.
pub enum Event {
    /// The clock when everything before it had run.
    Host(std::time::Instant),
    /// The driver's event.
    Cuda(cuda::CudaEvent),
}

/// An open device. Clones share it.
#[derive(Clone)]
pub struct Device(Arc<Backend>);

enum Backend {
    Host(host::HostDevice),
    Cuda(cuda::CudaDevice),
}

impl Device {
    /// Opens the device a run asked for; `auto` takes the first GPU, and the host device where there is none. A GPU
    /// that cannot be used is an error, so that nobody trains on the CPU unawares.
    ///
    /// # Errors
    /// No driver, no such GPU, or no kernels embedded for it.
    pub fn open(choice: Choice, host: HostOptions) -> Result<Self> {
        match choice {
            Choice::Host => Self::host(host),
            Choice::Cuda(ordinal) => Self::cuda(ordinal),
            Choice::Auto if cuda::is_absent() => Self::host(host),
            Choice::Auto => Self::cuda(0),
        }
    }

    /// The host device.
    ///
    /// # Errors
    /// The worker threads cannot be started.
    pub fn host(options: HostOptions) -> Result<Self> {
        Ok(Self(Arc::new(Backend::Host(host::HostDevice::new(options)?))))
    }

    /// GPU number `ordinal`.
    ///
    /// # Errors
    /// No driver, no such GPU, or no kernels embedded for it.
    pub fn cuda(ordinal: usize) -> Result<Self> {
        Self::cuda_with(ordinal, CudaOptions::default())
    }

    /// GPU number `ordinal`, driven in a chosen way.
    ///
    /// # Errors
    /// As [`Device::cuda`].
    pub fn cuda_with(ordinal: usize, options: CudaOptions) -> Result<Self> {
        Ok(Self(Arc::new(Backend::Cuda(cuda::CudaDevice::new(ordinal, options)?))))
    }

    /// The host device behind this one, if that is what it is: GEMM's native backend needs it.
    pub(crate) fn as_host(&self) -> Option<&host::HostDevice> {
        match &*self.0 {
            Backend::Host(host) => Some(host),
            Backend::Cuda(_) => None,
        }
    }

    /// The GPU behind this device, if that is what it is: products of the vendor's library need its stream.
    #[cfg(feature = "bench")]
    pub(crate) fn as_cuda(&self) -> Option<&cuda::CudaDevice> {
        match &*self.0 {
            Backend::Cuda(cuda) => Some(cuda),
            Backend::Host(_) => None,
        }
    }

    /// Of a host device, that a buffer is its own.
    ///
    /// # Errors
    /// It is another's.
    pub(crate) fn owns<T: Element>(&self, buffer: &Buffer<T>) -> Result<()> {
        self.as_host().map_or(Ok(()), |host| host.check_owner(buffer.place()))
    }

    /// True for a GPU.
    pub fn is_cuda(&self) -> bool {
        matches!(&*self.0, Backend::Cuda(_))
    }

    /// Whose kernels ops take: those of a GPU of compute capability 9.0 if they are embedded, and on a host device that
    /// plays one.
    pub fn arch(&self) -> Arch {
        match &*self.0 {
            Backend::Host(host) => host.arch(),
            Backend::Cuda(cuda) => cuda.arch(),
        }
    }

    /// One line for people: which device, and what it can do.
    pub fn describe(&self) -> String {
        match &*self.0 {
            Backend::Host(host) => host.describe(),
            Backend::Cuda(cuda) => cuda.describe(),
        }
    }

    /// What results depend on beside the program: the kind of device and which kernels it takes.
    pub fn arithmetic(&self) -> String {
        match &*self.0 {
            Backend::Host(host) => host.arithmetic(),
            Backend::Cuda(cuda) => cuda.arithmetic(),
        }
    }

    /// True if launches return before they are done, so that the host can prepare the next step while the device is at work
    /// on one. The host device runs them at once, and only plays along if asked to.
    pub fn runs_ahead(&self) -> bool {
        match &*self.0 {
            Backend::Host(host) => host.options().ahead,
            Backend::Cuda(_) => true,
        }
    }

    /// Streaming multiprocessors, which size persistent grids. The host device reports a fixed number, so that
    /// results never depend on the machine.
    pub fn sm_count(&self) -> usize {
        match &*self.0 {
            Backend::Host(host) => host.sm_count(),
            Backend::Cuda(cuda) => cuda.sm_count(),
        }
    }

    /// Dynamic shared memory that a CTA may ask for. The host device has as much as an H100.
    pub fn max_smem_bytes(&self) -> usize {
        match &*self.0 {
            Backend::Host(_) => host::MAX_SHARED_BYTES as usize,
            Backend::Cuda(cuda) => cuda.info().max_smem_bytes,
        }
    }

    /// Dense peak in FLOP/s for matrix products with operands of `dtype`; measured once for the host device.
    pub fn peak_flops(&self, dtype: DType) -> f64 {
        match &*self.0 {
            Backend::Host(host) => host.peak_flops(dtype),
            Backend::Cuda(cuda) => cuda.peak_flops(dtype),
        }
    }

    /// Bytes a second of device memory, where a data sheet says it.
    pub fn peak_bandwidth(&self) -> Option<f64> {
        match &*self.0 {
            Backend::Host(_) => None,
            Backend::Cuda(cuda) => cuda.peak_bandwidth(),
        }
    }

    /// Uninitialised memory for `len` elements, aligned to 256 bytes, freed with the last buffer that names it.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn alloc<T: Element>(&self, len: usize) -> Result<Buffer<T>> {
        let bytes = len * size_of::<T>();
        let memory = match &*self.0 {
            Backend::Host(host) => buffer::Memory::Host(host.alloc(bytes)?),
            Backend::Cuda(cuda) => buffer::Memory::Cuda(cuda.alloc(bytes)?),
        };
        Ok(Buffer::new(Arc::new(memory), len))
    }

    /// Memory for `len` elements, all bytes zero.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn zeros<T: Element>(&self, len: usize) -> Result<Buffer<T>> {
        let buffer = self.alloc(len)?;
        self.fill_zero(&buffer)?;
        Ok(buffer)
    }

    /// A device copy of `data`.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn upload<T: Element>(&self, data: &[T]) -> Result<Buffer<T>> {
        let buffer = self.alloc(data.len())?;
        self.copy_in(&buffer, data)?;
        Ok(buffer)
    }

    /// How bulk copies walk a tensor that begins at the first element of `buffer`. The map holds the address: it is of
    /// no use once the buffer is gone.
    ///
    /// # Errors
    /// The tensor does not fit the buffer, or breaks a rule of the hardware, which the message names.
    pub fn tensor_map<T: Element>(&self, buffer: &Buffer<T>, shape: &TensorShape) -> Result<TensorMap> {
        shape.check(buffer.address(), size_of::<T>())?;
        ensure!(shape.span() <= buffer.len(), "{shape:?}: a buffer of {} elements", buffer.len());
        match &*self.0 {
            Backend::Host(host) => {
                host.check_owner(buffer.place())?;
                Ok(TensorMap::for_host(buffer.address(), size_of::<T>(), shape))
            }
            Backend::Cuda(cuda) => cuda.tensor_map(T::DTYPE, buffer.address(), shape),
        }
    }

    /// Copies `source` to the device; `target` may be longer.
    ///
    /// # Errors
    /// `target` is shorter than `source`.
    pub fn copy_in<T: Element>(&self, target: &Buffer<T>, source: &[T]) -> Result<()> {
        ensure!(source.len() <= target.len(), "copy of {} elements into {}", source.len(), target.len());
        let bytes: &[u8] = bytemuck::cast_slice(source);
        match &*self.0 {
            Backend::Host(host) => host.copy_in(target.place(), bytes),
            Backend::Cuda(cuda) => cuda.copy_in(target.address(), bytes),
        }
    }

    /// Copies a buffer back and waits for it.
    ///
    /// # Errors
    /// An earlier launch failed.
    pub fn download<T: Element>(&self, source: &Buffer<T>) -> Result<Vec<T>> {
        let mut data = vec![T::zeroed(); source.len()];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut data);
        match &*self.0 {
            Backend::Host(host) => host.copy_out(bytes, source.place())?,
            Backend::Cuda(cuda) => cuda.copy_out(bytes, source.address())?,
        }
        Ok(data)
    }

    /// Starts a copy back of what earlier launches leave in a buffer, without waiting for them.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn read<T: Element>(&self, source: &Buffer<T>) -> Result<Readback<T>> {
        Ok(Readback(match &*self.0 {
            Backend::Host(_) => Copied::Host(self.download(source)?),
            Backend::Cuda(cuda) => Copied::Cuda(cuda.read(source.address(), source.bytes())?, source.len()),
        }))
    }

    /// Copies between two buffers of the device.
    ///
    /// # Errors
    /// The lengths differ.
    pub fn copy<T: Element>(&self, target: &Buffer<T>, source: &Buffer<T>) -> Result<()> {
        ensure!(source.len() == target.len(), "copy of {} elements into {}", source.len(), target.len());
        match &*self.0 {
            Backend::Host(host) => host.copy(target.place(), source.place(), source.bytes()),
            Backend::Cuda(cuda) => cuda.copy(target.address(), source.address(), source.bytes()),
        }
    }

    /// Sets all bytes to zero.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn fill_zero<T: Element>(&self, target: &Buffer<T>) -> Result<()> {
        match &*self.0 {
            Backend::Host(host) => host.fill_zero(target.place(), target.bytes()),
            Backend::Cuda(cuda) => cuda.fill_zero(target.address(), target.bytes()),
        }
    }

    /// Launches a kernel. Called by the generated launchers in [`kernels`] only.
    ///
    /// # Safety
    /// `args` match the kernel's parameters in number, order and type, and every buffer among them is as long as
    /// the kernel reads and writes for these dimensions. `ops` checks shapes before it calls a launcher.
    ///
    /// # Errors
    /// The launch is refused, or (host device) the kernel broke a rule; the message names kernel and place.
    pub unsafe fn launch(&self, kernel: &'static Kernel, launch: Launch, args: &mut [Arg]) -> Result<()> {
        let empty = launch.grid.contains(&0) || launch.block.contains(&0);
        if empty {
            bail!("{} ({}): empty launch: {launch}", kernel.name, kernel.place);
        }
        // SAFETY: handed on unchanged; the caller keeps the contract.
        unsafe {
            match &*self.0 {
                Backend::Host(host) => host.launch(kernel, launch, args),
                Backend::Cuda(cuda) => cuda.launch(kernel, launch, args),
            }
        }
    }

    /// Runs `launch`, whose kernels use the tables as indices. The host device, whose kernels reach this process's memory, looks
    /// at every entry first, and nobody changes one in between. A GPU does not: there a wrong index is a wrong result or an error
    /// of the driver.
    ///
    /// # Errors
    /// Those of `launch`, or an entry that breaks its table's rule.
    pub(crate) fn with_tables<R>(&self, tables: &[Table], launch: impl FnOnce() -> Result<R>) -> Result<R> {
        match &*self.0 {
            Backend::Host(host) => host.with_tables(tables, launch),
            Backend::Cuda(_) => launch(),
        }
    }

    /// Runs what `work` launches as one graph, on devices that have graphs. In it only launches, fills and copies on the device
    /// are allowed, and no other graph; allocating and releasing buffers is refused, and by the host device, which runs launches
    /// as they come, the rest too.
    ///
    /// # Errors
    /// Those of `work`; something else than launches was asked for, or the driver refuses.
    pub fn graphed<R>(&self, work: impl FnOnce() -> Result<R>) -> Result<R> {
        match &*self.0 {
            Backend::Host(host) => host.graphed(work),
            Backend::Cuda(cuda) => cuda.graphed(work),
        }
    }

    /// Waits until everything launched and every copy has ended, on all streams.
    ///
    /// # Errors
    /// Something launched failed.
    pub fn synchronize(&self) -> Result<()> {
        match &*self.0 {
            Backend::Host(_) => Ok(()),
            Backend::Cuda(cuda) => cuda.synchronize(),
        }
    }

    /// Marks the current point of the stream.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn record(&self) -> Result<Event> {
        match &*self.0 {
            Backend::Host(_) => Ok(Event::Host(std::time::Instant::now())),
            Backend::Cuda(cuda) => Ok(Event::Cuda(cuda.record()?)),
        }
    }

    /// Marks the current point of a stream, for others to [wait](Self::wait_on) for.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn mark(&self, stream: Stream) -> Result<Event> {
        match &*self.0 {
            Backend::Host(_) => self.record(),
            Backend::Cuda(cuda) => Ok(Event::Cuda(cuda.mark(stream)?)),
        }
    }

    /// Lets what is queued on `stream` from now on begin only after the event. The host device runs everything as it comes.
    ///
    /// # Errors
    /// The event is of another device, or the driver refuses.
    pub fn wait_on(&self, stream: Stream, event: &Event) -> Result<()> {
        match (&*self.0, event) {
            (Backend::Host(_), Event::Host(_)) => Ok(()),
            (Backend::Cuda(cuda), Event::Cuda(event)) => cuda.wait_on(stream, event),
            _ => bail!("an event of another device"),
        }
    }

    /// Milliseconds between two events of this device; waits for the later one.
    ///
    /// # Errors
    /// The events belong to different devices.
    pub fn elapsed_ms(&self, start: &Event, end: &Event) -> Result<f64> {
        match (start, end) {
            (Event::Host(start), Event::Host(end)) => Ok((*end - *start).as_secs_f64() * 1e3),
            (Event::Cuda(start), Event::Cuda(end)) => cuda::elapsed_ms(start, end),
            _ => bail!("events of two different devices"),
        }
    }

    /// Of a strict host device that counts them, how lanes met in banks of shared memory; else nothing.
    pub fn bank_conflicts(&self) -> Vec<host::BankConflicts> {
        match &*self.0 {
            Backend::Host(host) => host.bank_conflicts(),
            Backend::Cuda(_) => Vec::new(),
        }
    }

    /// Bytes held now and at most since the device was opened.
    pub fn memory(&self) -> MemoryUse {
        match &*self.0 {
            Backend::Host(host) => host.memory(),
            Backend::Cuda(cuda) => cuda.memory(),
        }
    }
}
