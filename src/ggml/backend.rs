//! Devices, and computing graphs on them.

use std::ffi::{CStr, CString, c_void};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use ggml_sys as sys;

use super::kernels::Kernels;
use super::ops::Ops;
use super::{GgmlError, Tensor, injected};

/// A device that ggml found.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceInfo {
    /// ggml's name: `CPU`, `CUDA0`.
    pub name: String,
    /// What it is, for people.
    pub description: String,
    /// Free memory in bytes.
    pub free: usize,
    /// Total memory in bytes.
    pub total: usize,
    /// True for anything with memory of its own.
    pub is_gpu: bool,
}

/// All devices that this build can use on this machine, the CPU among them.
pub fn devices() -> Vec<DeviceInfo> {
    super::log::install();
    let gpus_work = why_no_cuda().is_none();
    // SAFETY: the registry is filled once by ggml; device handles live for the life of the process.
    unsafe {
        (0..sys::ggml_backend_dev_count())
            .filter_map(|i| {
                let dev = sys::ggml_backend_dev_get(i);
                let (mut free, mut total) = (0, 0);
                sys::ggml_backend_dev_memory(dev, &mut free, &mut total);
                let kind = sys::ggml_backend_dev_type(dev);
                let info = DeviceInfo {
                    name: text(sys::ggml_backend_dev_name(dev)),
                    description: text(sys::ggml_backend_dev_description(dev)),
                    free,
                    total,
                    is_gpu: kind == sys::GGML_BACKEND_DEVICE_TYPE_GPU || kind == sys::GGML_BACKEND_DEVICE_TYPE_IGPU,
                };
                (gpus_work || !info.is_gpu).then_some(info)
            })
            .collect()
    }
}

/// Why a CUDA build finds no GPU here; `None` if it may, and in other builds. Without the libraries ggml would abort.
pub fn why_no_cuda() -> Option<&'static str> {
    #[cfg(feature = "cuda")]
    {
        // SAFETY: no preconditions; a static string or null.
        let reason = unsafe { sys::spts_cuda_missing() };
        // SAFETY: not null, static, and plain text.
        (!reason.is_null()).then(|| unsafe { CStr::from_ptr(reason) }.to_str().unwrap_or("a library is missing"))
    }
    #[cfg(not(feature = "cuda"))]
    None
}

/// Lets kernels begin before those in front of them end, or no longer; the `runtime` room has the public call.
pub(crate) fn overlap_launches(overlap: bool) {
    // SAFETY: changes a value of its own, which ggml reads when it launches its first kernel.
    #[cfg(feature = "cuda")]
    unsafe {
        sys::spts_cuda_overlap_launches(overlap);
    }
    #[cfg(not(feature = "cuda"))]
    let _ = overlap;
}

/// Sets up to how many rows products of quantized weights use integer kernels; the `runtime` room has the public call.
pub(crate) fn set_integer_rows(rows: usize) {
    // SAFETY: a plain number.
    #[cfg(feature = "cuda")]
    unsafe {
        sys::spts_cuda_set_mmq_max_rows(i64::try_from(rows).unwrap_or(i64::MAX));
    }
    #[cfg(not(feature = "cuda"))]
    let _ = rows;
}

/// Memory in use on all devices with memory of their own, by whatever process.
pub fn gpu_bytes_used() -> u64 {
    devices().iter().filter(|d| d.is_gpu).map(|d| d.total.saturating_sub(d.free) as u64).sum()
}

/// A C string that ggml owns, copied.
fn text(p: *const std::ffi::c_char) -> String {
    if p.is_null() {
        return String::new();
    }
    // SAFETY: ggml's names are NUL-terminated and static or owned by a live object.
    unsafe { CStr::from_ptr(p) }.to_string_lossy().into_owned()
}

/// Where buffers come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferType {
    raw: sys::ggml_backend_buffer_type_t,
    clears: bool,
}

// SAFETY: buffer types are static objects of ggml without interior state that we touch.
unsafe impl Send for BufferType {}
// SAFETY: see above.
unsafe impl Sync for BufferType {}

impl BufferType {
    pub(super) fn raw(self) -> sys::ggml_backend_buffer_type_t {
        self.raw
    }

    /// Name for messages.
    pub fn name(self) -> String {
        // SAFETY: static object.
        text(unsafe { sys::ggml_backend_buft_name(self.raw) })
    }

    /// Alignment of tensors in bytes.
    pub fn alignment(self) -> usize {
        // SAFETY: static object.
        unsafe { sys::ggml_backend_buft_get_alignment(self.raw) }
    }

    /// Free memory of the device that such buffers come from, in bytes.
    pub fn free_bytes(self) -> usize {
        let (mut free, mut total) = (0, 0);
        // SAFETY: a static object; a type without a device is the CPU's own.
        unsafe {
            let dev = sys::ggml_backend_buft_get_device(self.raw);
            if !dev.is_null() {
                sys::ggml_backend_dev_memory(dev, &mut free, &mut total);
            }
        }
        free
    }

    /// Bytes that a tensor takes in such a buffer.
    pub fn alloc_size(self, t: Tensor<'_>) -> usize {
        // SAFETY: static object, live tensor.
        unsafe { sys::ggml_backend_buft_get_alloc_size(self.raw, t.raw()) }
    }

    /// Whether a fresh buffer is cleared.
    pub(super) fn clears(self) -> bool {
        self.clears
    }

    /// Whether its memory is the CPU's own.
    pub(super) fn is_cpu(self) -> bool {
        // SAFETY: a static object; a type without a device is the CPU's own.
        unsafe {
            let dev = sys::ggml_backend_buft_get_device(self.raw);
            dev.is_null() || sys::ggml_backend_dev_type(dev) == sys::GGML_BACKEND_DEVICE_TYPE_CPU
        }
    }

    /// The CPU's ordinary memory, for weights: all of it is written anyway, so it is not cleared.
    pub fn cpu_weights() -> BufferType {
        // SAFETY: no preconditions; a static object.
        BufferType { raw: unsafe { sys::ggml_backend_cpu_buffer_type() }, clears: false }
    }

    /// ggml's buffer of weights rearranged for the CPU's blocked kernels, if this CPU has any; not cleared either.
    pub fn cpu_repack() -> Option<BufferType> {
        type GetExtra = unsafe extern "C" fn(sys::ggml_backend_dev_t) -> *mut sys::ggml_backend_buffer_type_t;
        super::log::install();
        // SAFETY: the symbol, where the registry has it, has this signature (ggml-backend.h); its list ends with null.
        unsafe {
            let dev = sys::ggml_backend_dev_by_type(sys::GGML_BACKEND_DEVICE_TYPE_CPU);
            let reg = sys::ggml_backend_dev_backend_reg(dev);
            let f = sys::ggml_backend_reg_get_proc_address(reg, c"ggml_backend_dev_get_extra_bufts".as_ptr());
            if f.is_null() {
                return None;
            }
            let f: GetExtra = std::mem::transmute::<*mut c_void, GetExtra>(f);
            let mut list = f(dev);
            while !list.is_null() && !(*list).is_null() {
                let found = BufferType { raw: *list, clears: false };
                if found.name() == "CPU_REPACK" {
                    return Some(found);
                }
                list = list.add(1);
            }
            None
        }
    }

    /// True if the CPU multiplies by a weight `[n_in, n_out]` of this type out of this (repacking) buffer.
    pub fn can_multiply(self, ty: crate::gguf::GgmlType, n_in: usize, n_out: usize) -> bool {
        // SAFETY: a scratch context for three headers; the empty buffer only carries its type; both are freed here.
        unsafe {
            let ctx = sys::ggml_init(sys::ggml_init_params {
                mem_size: 4 * sys::ggml_tensor_overhead(),
                mem_buffer: std::ptr::null_mut(),
                no_alloc: true,
            });
            let buffer = sys::ggml_backend_buft_alloc_buffer(self.raw, 0);
            let w = sys::ggml_new_tensor_2d(ctx, super::type_id(ty), n_in as i64, n_out as i64);
            let x = sys::ggml_new_tensor_2d(ctx, sys::GGML_TYPE_F32, n_in as i64, 512);
            (*w).buffer = buffer;
            let product = sys::ggml_mul_mat(ctx, w, x);
            let dev = sys::ggml_backend_dev_by_type(sys::GGML_BACKEND_DEVICE_TYPE_CPU);
            let ok = sys::ggml_backend_dev_supports_op(dev, product);
            sys::ggml_backend_buffer_free(buffer);
            sys::ggml_free(ctx);
            ok
        }
    }
}

/// The ordinary memory of a device by ggml's name.
///
/// # Errors
/// No such device.
pub fn buffer_type(name: &str) -> Result<BufferType, GgmlError> {
    let (_, dev) = find(name)?;
    // SAFETY: a live device.
    Ok(BufferType { raw: unsafe { sys::ggml_backend_dev_buffer_type(dev) }, clears: true })
}

/// The name of a device as ggml writes it.
///
/// # Errors
/// No such device.
pub fn device_named(name: &str) -> Result<String, GgmlError> {
    find(name).map(|(name, _)| name)
}

fn find(name: &str) -> Result<(String, sys::ggml_backend_dev_t), GgmlError> {
    let all = devices();
    let found = all.iter().find(|d| d.name.eq_ignore_ascii_case(name));
    let Some((device, c_name)) = found.and_then(|d| Some((d, CString::new(d.name.as_str()).ok()?))) else {
        let mut available = all.iter().map(|d| d.name.as_str()).collect::<Vec<_>>().join(", ");
        if let Some(reason) = why_no_cuda() {
            available += &format!(" (no CUDA device: {reason})");
        }
        return Err(GgmlError::NoDevice { name: name.into(), available });
    };
    // SAFETY: a NUL-terminated name of a device in the registry.
    Ok((device.name.clone(), unsafe { sys::ggml_backend_dev_by_name(c_name.as_ptr()) }))
}

/// What the CPU's kernels use between them. Aligned, unlike the backend's own: F32 attention is a quarter slower where its
/// vectors straddle cache lines.
#[repr(align(64))]
struct CacheLine(#[allow(dead_code)] [u8; 64]);

/// A started device.
pub struct Backend {
    raw: NonNull<sys::ggml_backend>,
    name: String,
    is_cpu: bool,
    kernels: Kernels,
    /// The CPU's.
    n_threads: i32,
    threadpool: Option<NonNull<sys::ggml_threadpool>>,
    work: Vec<CacheLine>,
    galloc: NonNull<sys::ggml_gallocr>,
    /// Of the scratch memory: another number after every change of its size, which is when ggml replaces it.
    scratch: (u64, usize),
    stop: Arc<AtomicBool>,
}

// SAFETY: a backend is used by one thread at a time (`compute` takes `&mut self`).
unsafe impl Send for Backend {}

impl Backend {
    /// Starts a device by ggml's name (`CPU`, `CUDA0`). `n_threads` counts on the CPU only.
    pub fn start(name: &str, n_threads: usize) -> Result<Self, GgmlError> {
        super::log::install();
        init_timer();
        let (name, dev) = find(name)?;
        let failed = || GgmlError::InitFailed { name: name.clone() };
        // SAFETY: a live device; results are checked for null; the threadpool outlives the backend (see Drop).
        unsafe {
            let raw = NonNull::new(sys::ggml_backend_dev_init(dev, std::ptr::null())).ok_or_else(failed)?;
            let is_cpu = sys::ggml_backend_is_cpu(raw.as_ptr());
            let kernels = Kernels::of(&name);
            #[cfg(feature = "cuda")]
            if kernels.is_cuda() {
                sys::spts_cuda_put_first(raw.as_ptr());
            }
            let galloc = NonNull::new(sys::ggml_gallocr_new(sys::ggml_backend_get_default_buffer_type(raw.as_ptr())))
                .ok_or_else(failed)?;
            let stop = Arc::new(AtomicBool::new(false));
            let n_threads = n_threads.max(1) as i32;
            let mut threadpool = None;
            if is_cpu {
                let mut params = sys::ggml_threadpool_params_default(n_threads);
                // Between graphs, too, its threads sleep; see vendor/ggml-sys/src/cpu/wait.c for within.
                params.poll = 0;
                threadpool = NonNull::new(sys::ggml_threadpool_new(&mut params));
            }
            Ok(Self { raw, name, is_cpu, kernels, n_threads, threadpool, work: Vec::new(), galloc, scratch: (0, 0), stop })
        }
    }

    /// ggml's name of the device.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// True for the CPU.
    pub fn is_cpu(&self) -> bool {
        self.is_cpu
    }

    /// What the device computes besides ggml's operations.
    pub fn kernels(&self) -> Kernels {
        self.kernels
    }

    /// The flag that stops a computation on the CPU between two operations (Ctrl-C).
    pub fn stop_flag(&self) -> Arc<AtomicBool> {
        self.stop.clone()
    }

    /// The device's ordinary memory.
    pub fn buffer_type(&self) -> BufferType {
        // SAFETY: live backend.
        BufferType { raw: unsafe { sys::ggml_backend_get_default_buffer_type(self.raw.as_ptr()) }, clears: true }
    }

    /// Memory of the host from and to which this device copies fastest.
    pub(super) fn host_buffer_type(&self) -> sys::ggml_backend_buffer_type_t {
        // SAFETY: a live backend; the CPU and devices without such memory have ordinary memory.
        unsafe {
            let pinned = sys::ggml_backend_dev_host_buffer_type(sys::ggml_backend_get_device(self.raw.as_ptr()));
            if pinned.is_null() { sys::ggml_backend_cpu_buffer_type() } else { pinned }
        }
    }

    pub(super) fn raw(&mut self) -> sys::ggml_backend_t {
        self.raw.as_ptr()
    }

    /// Writes a whole tensor behind all work queued so far, and before what comes.
    ///
    /// # Panics
    /// If the sizes differ.
    pub fn write(&mut self, t: Tensor<'_>, bytes: &[u8]) {
        // SAFETY: the tensor is allocated (ggml asserts it), the size is checked; the bytes are copied before the call returns,
        // since they are not in pinned memory.
        unsafe {
            assert_eq!(bytes.len(), sys::ggml_nbytes(t.raw()), "a write of another size");
            sys::ggml_backend_tensor_set_async(self.raw.as_ptr(), t.raw(), bytes.as_ptr().cast(), 0, bytes.len());
        }
    }

    /// Sizes the scratch memory for this graph, the largest of a run. Returns its bytes.
    pub fn reserve(&mut self, graph: &Ops) -> Result<usize, GgmlError> {
        // SAFETY: live objects.
        unsafe {
            let mut size = 0;
            sys::ggml_gallocr_reserve_n_size(
                self.galloc.as_ptr(),
                graph.raw_graph(),
                std::ptr::null(),
                std::ptr::null(),
                &mut size,
            );
            if injected::fails() || !sys::ggml_gallocr_reserve(self.galloc.as_ptr(), graph.raw_graph()) {
                return Err(GgmlError::OutOfMemory {
                    device: self.name.clone(),
                    what: "the scratch of a tile".into(),
                    bytes: size,
                    free: self.buffer_type().free_bytes(),
                });
            }
        }
        self.renumber_scratch();
        Ok(self.scratch_bytes())
    }

    fn renumber_scratch(&mut self) {
        let size = self.scratch_bytes();
        if self.scratch.1 != size {
            self.scratch = (self.scratch.0 + 1, size);
        }
    }

    /// Number of the scratch memory: the same as before only if it is the same memory.
    pub fn scratch_generation(&self) -> u64 {
        self.scratch.0
    }

    /// Bytes of scratch memory held now.
    pub fn scratch_bytes(&self) -> usize {
        // SAFETY: live object.
        unsafe { sys::ggml_gallocr_get_buffer_size(self.galloc.as_ptr(), 0) }
    }

    /// Gives every tensor of the graph its place in the scratch memory; inputs can be set afterwards.
    pub fn allocate(&mut self, graph: &Ops) -> Result<(), GgmlError> {
        // SAFETY: live objects.
        let ok = !injected::fails() && unsafe { sys::ggml_gallocr_alloc_graph(self.galloc.as_ptr(), graph.raw_graph()) };
        self.renumber_scratch();
        if ok {
            return Ok(());
        }
        Err(GgmlError::OutOfMemory {
            device: self.name.clone(),
            what: "the scratch of a tile".into(),
            bytes: self.scratch_bytes(),
            free: self.buffer_type().free_bytes(),
        })
    }

    /// Computes an allocated graph; on a GPU this returns as soon as the work is queued.
    pub fn compute(&mut self, graph: &Ops) -> Result<(), GgmlError> {
        let status = if self.is_cpu {
            self.compute_on_cpu(graph)
        } else {
            // SAFETY: the graph was allocated on this backend; tensors it names are alive (they are borrowed by `graph`).
            unsafe { sys::ggml_backend_graph_compute_async(self.raw.as_ptr(), graph.raw_graph()) }
        };
        if status == sys::GGML_STATUS_SUCCESS {
            Ok(())
        } else if status == sys::GGML_STATUS_ABORTED {
            Err(GgmlError::Aborted)
        } else {
            Err(GgmlError::Compute { device: self.name.clone(), status })
        }
    }

    fn compute_on_cpu(&mut self, graph: &Ops) -> sys::ggml_status {
        let threadpool = self.threadpool.map_or(std::ptr::null_mut(), NonNull::as_ptr);
        // SAFETY: a live, allocated graph and the pool of this backend.
        let mut plan = unsafe { sys::ggml_graph_plan(graph.raw_graph(), self.n_threads, threadpool) };
        let lines = plan.work_size.div_ceil(size_of::<CacheLine>());
        if lines > self.work.capacity() {
            self.work = Vec::with_capacity(lines);
        }
        plan.work_data = self.work.as_mut_ptr().cast();
        plan.abort_callback = Some(asked_to_stop);
        plan.abort_callback_data = Arc::as_ptr(&self.stop).cast_mut().cast();
        // SAFETY: as for the plan; the work memory is as large as asked for, and is written before it is read.
        unsafe { sys::ggml_graph_compute(graph.raw_graph(), &mut plan) }
    }

    /// Waits until all queued work is done.
    pub fn synchronize(&mut self) {
        // SAFETY: live backend.
        unsafe { sys::ggml_backend_synchronize(self.raw.as_ptr()) }
    }

    /// The first operation of a graph that this device has no kernel for.
    pub fn check_support(&self, graph: &Ops) -> Result<(), GgmlError> {
        match graph.find_node(|op| {
            // SAFETY: live backend and tensor.
            unsafe { !sys::ggml_backend_supports_op(self.raw.as_ptr(), op) }
        }) {
            None => Ok(()),
            Some((op, detail)) => Err(GgmlError::Unsupported { device: self.name.clone(), op, detail }),
        }
    }
}

/// ggml times itself; its clock has to be started once.
fn init_timer() {
    static START: Once = Once::new();
    // SAFETY: no preconditions.
    START.call_once(|| unsafe { sys::ggml_time_init() });
}

unsafe extern "C" fn asked_to_stop(flag: *mut c_void) -> bool {
    // SAFETY: `flag` is the AtomicBool of the backend, which outlives the backend's computations.
    unsafe { (*flag.cast::<AtomicBool>()).load(Ordering::Relaxed) }
}

impl Drop for Backend {
    fn drop(&mut self) {
        // SAFETY: each was made by `start` and is freed once; the backend goes before its threadpool.
        unsafe {
            // What is still queued may read weights that others are about to replace (vendor/ggml-sys/src/wide_weights.cu).
            sys::ggml_backend_synchronize(self.raw.as_ptr());
            sys::ggml_gallocr_free(self.galloc.as_ptr());
            sys::ggml_backend_free(self.raw.as_ptr());
            if let Some(pool) = self.threadpool {
                sys::ggml_threadpool_free(pool.as_ptr());
            }
        }
    }
}
