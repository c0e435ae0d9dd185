//! A GPU's context and the kernels loaded on it, shared by every device of the process that names the GPU.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result, bail, ensure};
use cudarc::driver::{
    CudaContext,
    result::{self, DriverError},
    sys::{self, CUfunction_attribute},
};

use super::{
    super::{Kernel, kernels},
    driver::{self, GpuInfo, explain},
    images::{self, CubinTable, EMBEDDED},
};

/// Dynamic shared memory that needs no attribute on the kernel.
const PLAIN_SMEM_BYTES: u32 = 48 * 1024;

/// GPUs opened so far. They stay open: a context takes long to make, and closing it at exit is the driver's work.
static OPEN: Mutex<Vec<Arc<Gpu>>> = Mutex::new(Vec::new());

pub struct Gpu {
    pub info: GpuInfo,
    pub context: Arc<CudaContext>,
    pool: Option<Pool>,
    loaded: Mutex<Loaded>,
}

#[derive(Default)]
struct Loaded {
    modules: HashMap<&'static str, sys::CUmodule>,
    functions: HashMap<&'static str, Function>,
}

#[derive(Clone, Copy)]
struct Function {
    handle: sys::CUfunction,
    /// Dynamic shared memory the kernel was prepared for.
    smem_bytes: u32,
}

// SAFETY: the driver's handles may be used from any thread on which the context is current, which `function` sees to.
unsafe impl Send for Loaded {}

/// Where stream-ordered allocations come from. It keeps what is released, because by default every wait for the stream gives
/// it back to the system, and the next small table of a batch has to map it again.
struct Pool(sys::CUmemoryPool);

// SAFETY: the driver's pools may be used from any thread.
unsafe impl Send for Pool {}
// SAFETY: as above.
unsafe impl Sync for Pool {}

impl Pool {
    fn open(context: &CudaContext) -> Result<Self> {
        let (mut pool, mut all) = (std::ptr::null_mut(), u64::MAX);
        let threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        // SAFETY: both calls write or read the one value they are given.
        let done = unsafe {
            let found = sys::cuDeviceGetDefaultMemPool(&mut pool, context.cu_device()).result();
            found.and_then(|()| sys::cuMemPoolSetAttribute(pool, threshold, (&raw mut all).cast()).result())
        };
        done.map_err(|e| explain(e).context("memory pool"))?;
        Ok(Self(pool))
    }

    /// Bytes that were released and are kept.
    fn kept(&self) -> usize {
        use sys::CUmemPool_attribute::{CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, CU_MEMPOOL_ATTR_USED_MEM_CURRENT};
        let [reserved, used] = [CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, CU_MEMPOOL_ATTR_USED_MEM_CURRENT].map(|which| {
            let mut bytes = 0u64;
            // SAFETY: the call writes one 64-bit number.
            let done = unsafe { sys::cuMemPoolGetAttribute(self.0, which, (&raw mut bytes).cast()) };
            done.result().map_or(0, |()| bytes as usize)
        });
        reserved.saturating_sub(used)
    }
}

impl Gpu {
    /// # Errors
    /// No driver, no such GPU, or no kernels for it in this program.
    pub fn open(ordinal: usize) -> Result<Arc<Self>> {
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gpu) = open.iter().find(|gpu| gpu.info.ordinal == ordinal) {
            return Ok(gpu.clone());
        }
        let info = driver::info(ordinal)?;
        let modules: Vec<&str> = kernels::ALL.iter().map(|kernel| kernel.module).collect();
        check_images(&EMBEDDED, &modules, &info)?;
        let context = CudaContext::new(ordinal).map_err(|e| explain(e).context(format!("cuda:{ordinal}: context")))?;
        // SAFETY: memory is allocated, used and freed on one stream, so nothing relies on tracked events.
        unsafe { context.disable_event_tracking() };
        let pool = if context.has_async_alloc() { Some(Pool::open(&context)?) } else { None };
        let gpu = Arc::new(Self { info, context, pool, loaded: Mutex::default() });
        open.push(gpu.clone());
        Ok(gpu)
    }

    /// Bytes that allocations can take: what the system has and what the pool keeps; and all there are.
    pub fn free_and_total(&self) -> (usize, usize) {
        let (free, total) = self.context.mem_get_info().unwrap_or((0, self.info.memory_bytes));
        (free + self.pool.as_ref().map_or(0, Pool::kept), total)
    }

    /// The loaded kernel, prepared for `smem_bytes` of dynamic shared memory. Leaves the context current.
    pub fn function(&self, kernel: &'static Kernel, smem_bytes: u32) -> Result<sys::CUfunction> {
        self.context.bind_to_thread().map_err(explain)?;
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let mut function = match loaded.functions.get(kernel.name) {
            Some(function) => *function,
            None => self.load(&mut loaded, kernel)?,
        };
        if smem_bytes > function.smem_bytes {
            let most = self.info.max_smem_bytes;
            ensure!(smem_bytes as usize <= most, "{} allows {most} bytes of shared memory", self.info.name);
            let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the handle belongs to a module that is never unloaded.
            unsafe { result::function::set_function_attribute(function.handle, attribute, smem_bytes as i32) }
                .map_err(|e| explain(e).context("shared memory"))?;
            function.smem_bytes = smem_bytes;
        }
        loaded.functions.insert(kernel.name, function);
        Ok(function.handle)
    }

    fn load(&self, loaded: &mut Loaded, kernel: &'static Kernel) -> Result<Function> {
        let module = match loaded.modules.get(kernel.module) {
            Some(module) => *module,
            None => {
                let module = self.load_module(kernel.module)?;
                loaded.modules.insert(kernel.module, module);
                module
            }
        };
        let name = std::ffi::CString::new(kernel.name)?;
        // SAFETY: the module is never unloaded.
        let handle = unsafe { result::module::get_function(module, name) }
            .map_err(|e| explain(e).context(format!("kernel `{}`", kernel.name)))?;
        // Left to itself the driver puts this off until the first launch, which may be captured into a graph.
        // SAFETY: as above.
        unsafe { sys::cuFuncLoad(handle) }
            .result()
            .map_err(|e| explain(e).context(format!("kernel `{}`: its code", kernel.name)))?;
        Ok(Function { handle, smem_bytes: PLAIN_SMEM_BYTES })
    }

    fn load_module(&self, module: &'static str) -> Result<sys::CUmodule> {
        let Some(cubin) = images::pick(module, self.info.capability) else {
            bail!("kernels/{module}.cu is not built for {}", self.info);
        };
        // SAFETY: the image is a whole cubin, or PTX ended by a zero byte, and lives as long as the program.
        let load = || unsafe { result::module::load_data(cubin.image.0.as_ptr().cast()) };
        load().map_err(|e: DriverError| explain(e)).with_context(|| {
            let (major, minor) = driver::version().unwrap_or_default();
            format!(
                "kernels/{module}.cu ({}, {}): the driver, for CUDA {major}.{minor}, does not load it",
                cubin.arch, EMBEDDED.toolchain
            )
        })
    }
}

/// Refuses a GPU that some kernel for all architectures was not built for. Stems ending in `_smNN` are for some only,
/// and whoever launches them asks for the capability first.
fn check_images(table: &CubinTable, modules: &[&str], info: &GpuInfo) -> Result<()> {
    ensure!(
        !table.cubins.is_empty(),
        "this program was built without GPU kernels: build it where nvcc is found (scripts/install-nvcc.sh installs it) or \
         use --device host"
    );
    let everywhere = modules.iter().filter(|module| !module.contains("_sm"));
    for module in everywhere {
        ensure!(
            table.pick(module, info.capability).is_some(),
            "{info}: no kernels for it in this program, which has {}; build with CUDA_ARCHS={}{}",
            table.archs().join(", "),
            info.capability.0,
            info.capability.1
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{
        super::images::{Aligned, Cubin},
        *,
    };

    fn gpu(capability: (u32, u32)) -> GpuInfo {
        GpuInfo {
            ordinal: 1,
            name: "Test GPU".into(),
            capability,
            sm_count: 4,
            memory_bytes: 24 << 30,
            clock_khz: 1_000_000,
            max_smem_bytes: 65536,
        }
    }

    #[test]
    fn a_gpu_without_kernels_is_refused_in_one_line() {
        static CUBINS: [Cubin; 2] = [
            Cubin { module: "rope", arch: "80", image: &Aligned([0]) },
            Cubin { module: "gemm_sm90", arch: "90a", image: &Aligned([0]) },
        ];
        let table = CubinTable { toolchain: "nvcc 13.0.88", cubins: &CUBINS };
        let modules = ["gemm_sm90", "rope"];
        check_images(&table, &modules, &gpu((8, 6))).expect("8.6 runs what was built for 8.0");
        let why = check_images(&table, &modules, &gpu((7, 5))).unwrap_err().to_string();
        assert_eq!(
            why,
            "Test GPU (cuda:1, compute capability 7.5, 4 SMs, 24.0 GiB): no kernels for it in this program, \
             which has 80, 90a; build with CUDA_ARCHS=75"
        );
        let empty = CubinTable { toolchain: "", cubins: &[] };
        let why = check_images(&empty, &modules, &gpu((9, 0))).unwrap_err().to_string();
        assert!(why.starts_with("this program was built without GPU kernels"), "{why}");
    }
}
