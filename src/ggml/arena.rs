//! Tensors that persist: weights, KV caches, hidden states, masks.

use std::ffi::CString;
use std::ptr::NonNull;
use std::sync::Arc;

use ggml_sys as sys;

use super::backend::BufferType;
use super::{GgmlError, Tensor, huge_pages, injected, type_id};
use crate::gguf::GgmlType;

/// A tensor of an [`Arena`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TensorId(usize);

/// A set of tensors and the memory under them. Freed together.
pub struct Arena {
    ctx: NonNull<sys::ggml_context>,
    tensors: Vec<NonNull<sys::ggml_tensor>>,
    buffers: Vec<NonNull<sys::ggml_backend_buffer>>,
    capacity: usize,
    /// Weights on a device that keeps copies of them by their addresses.
    holds_gpu_weights: bool,
    /// Memory of others that tensors point into.
    _owners: Vec<Arc<dyn AsRef<[u8]> + Send + Sync>>,
}

// SAFETY: the arena owns its ggml context and buffers; ggml objects are not tied to a thread. Shared access only reads
// metadata; writing data takes the arena by reference but goes through `set`, which callers serialise per session, and
// weights are written before the arena is shared.
unsafe impl Send for Arena {}
// SAFETY: see above.
unsafe impl Sync for Arena {}

impl Arena {
    /// An arena for at most `capacity` tensors.
    pub fn new(capacity: usize) -> Self {
        // SAFETY: a plain metadata pool; size covers `capacity` tensor headers.
        let ctx = unsafe {
            sys::ggml_init(sys::ggml_init_params {
                mem_size: (capacity + 1) * sys::ggml_tensor_overhead(),
                mem_buffer: std::ptr::null_mut(),
                no_alloc: true,
            })
        };
        let ctx = NonNull::new(ctx).expect("ggml_init has memory for headers");
        Self { ctx, tensors: Vec::new(), buffers: Vec::new(), capacity, holds_gpu_weights: false, _owners: Vec::new() }
    }

    /// Declares a tensor without memory. `ne`: up to four dimensions, fastest first.
    ///
    /// # Panics
    /// If the arena is full: its capacity is counted before it is made.
    pub fn declare(&mut self, name: &str, ty: GgmlType, ne: &[usize]) -> TensorId {
        assert!(self.tensors.len() < self.capacity, "arena of {} tensors is full", self.capacity);
        let mut dims = [1i64; 4];
        for (d, &n) in dims.iter_mut().zip(ne) {
            *d = n as i64;
        }
        // SAFETY: the context is live and has room (checked above); dims has four entries.
        let ptr =
            unsafe { sys::ggml_new_tensor(self.ctx.as_ptr(), type_id(ty), ne.len().clamp(1, 4) as i32, dims.as_ptr()) };
        let ptr = NonNull::new(ptr).expect("the pool has room");
        if let Ok(name) = CString::new(name) {
            // SAFETY: both pointers are valid; ggml copies and truncates the name.
            unsafe { sys::ggml_set_name(ptr.as_ptr(), name.as_ptr()) };
        }
        self.tensors.push(ptr);
        TensorId(self.tensors.len() - 1)
    }

    /// Gives the tensors `ids` one new buffer of this type, cleared to zero.
    pub fn allocate(&mut self, ids: &[TensorId], buft: BufferType, what: &str) -> Result<usize, GgmlError> {
        if ids.is_empty() {
            return Ok(0);
        }
        let align = buft.alignment();
        let mut offsets = Vec::with_capacity(ids.len());
        let mut size = 0usize;
        for id in ids {
            offsets.push(size);
            size += buft.alloc_size(self.get(*id)).next_multiple_of(align);
        }
        let buffer = self.new_buffer(buft, size, what)?;
        for (id, offset) in ids.iter().zip(offsets) {
            self.place_in(buffer, *id, offset);
        }
        Ok(size)
    }

    /// Says that the tensors allocated so far, on a GPU, are weights: once written they stay as they are until the arena goes.
    pub fn mark_as_weights(&mut self) {
        for b in &self.buffers {
            // SAFETY: live buffers.
            unsafe { sys::ggml_backend_buffer_set_usage(b.as_ptr(), sys::GGML_BACKEND_BUFFER_USAGE_WEIGHTS) };
        }
        self.holds_gpu_weights = true;
    }

    /// A raw buffer in which [`Arena::place`] puts tensors at chosen offsets. Cleared to zero.
    pub fn allocate_raw(&mut self, buft: BufferType, size: usize, what: &str) -> Result<BufferId, GgmlError> {
        self.new_buffer(buft, size, what)?;
        Ok(BufferId(self.buffers.len() - 1))
    }

    /// Puts a declared tensor into a raw buffer.
    ///
    /// # Panics
    /// If it does not fit.
    pub fn place(&mut self, id: TensorId, buffer: BufferId, offset: usize) {
        let buffer = self.buffers[buffer.0];
        self.place_in(buffer, id, offset);
    }

    /// Zeroes all of a raw buffer, between and behind its tensors, too.
    pub fn clear(&self, buffer: BufferId) {
        // SAFETY: a live buffer of this arena.
        unsafe { sys::ggml_backend_buffer_clear(self.buffers[buffer.0].as_ptr(), 0) }
    }

    fn new_buffer(
        &mut self,
        buft: BufferType,
        size: usize,
        what: &str,
    ) -> Result<NonNull<sys::ggml_backend_buffer>, GgmlError> {
        let buffer = if injected::fails() {
            std::ptr::null_mut()
        } else {
            // SAFETY: the buffer type is live for the life of the process.
            unsafe { sys::ggml_backend_buft_alloc_buffer(buft.raw(), size.max(1)) }
        };
        let buffer = NonNull::new(buffer).ok_or_else(|| GgmlError::OutOfMemory {
            device: buft.name(),
            what: what.into(),
            bytes: size,
            free: buft.free_bytes(),
        })?;
        if buft.is_cpu() {
            // SAFETY: the buffer was just made, and the CPU's are ggml's own allocations.
            unsafe { huge_pages::advise(sys::ggml_backend_buffer_get_base(buffer.as_ptr()).cast(), size) };
        }
        if buft.clears() {
            // SAFETY: the buffer was just made.
            unsafe { sys::ggml_backend_buffer_clear(buffer.as_ptr(), 0) };
        }
        self.buffers.push(buffer);
        Ok(buffer)
    }

    fn place_in(&mut self, buffer: NonNull<sys::ggml_backend_buffer>, id: TensorId, offset: usize) {
        let tensor = self.tensors[id.0];
        // SAFETY: buffer and tensor are live; the bounds are checked before the address is formed.
        unsafe {
            let size = sys::ggml_backend_buffer_get_alloc_size(buffer.as_ptr(), tensor.as_ptr());
            assert!(
                offset + size <= sys::ggml_backend_buffer_get_size(buffer.as_ptr()).max(1),
                "tensor outside its buffer"
            );
            let base = sys::ggml_backend_buffer_get_base(buffer.as_ptr()).cast::<u8>();
            let status = sys::ggml_backend_tensor_alloc(buffer.as_ptr(), tensor.as_ptr(), base.add(offset).cast());
            assert_eq!(status, sys::GGML_STATUS_SUCCESS, "placing a tensor");
        }
    }

    /// Lets the tensors point straight into `memory` (a mapped file), which the arena keeps alive. `at`: byte offset of each
    /// tensor in `memory`. Kernels only read them.
    ///
    /// # Panics
    /// If a tensor does not lie within `memory`; the GGUF reader has checked that.
    pub fn bind(&mut self, memory: Arc<dyn AsRef<[u8]> + Send + Sync>, at: &[(TensorId, usize)]) {
        let bytes: &[u8] = (*memory).as_ref();
        // ggml wants the base of a buffer aligned; tensors may sit anywhere behind it.
        let base = bytes.as_ptr();
        let skip = base.align_offset(32);
        let usable = bytes.len() - skip;
        // SAFETY: the memory is alive as long as the arena (kept in `_owners`), and is never written through this buffer.
        let buffer = unsafe { sys::ggml_backend_cpu_buffer_from_ptr(base.add(skip).cast_mut().cast(), usable) };
        let buffer = NonNull::new(buffer).expect("wrapping memory allocates nothing large");
        // SAFETY: just made. Marks the tensors as weights for the backends.
        unsafe { sys::ggml_backend_buffer_set_usage(buffer.as_ptr(), sys::GGML_BACKEND_BUFFER_USAGE_WEIGHTS) };
        self.buffers.push(buffer);
        for &(id, offset) in at {
            self.place_in(buffer, id, offset.checked_sub(skip).expect("tensor data lies behind the header"));
        }
        self._owners.push(memory);
    }

    /// A handle on a tensor.
    pub fn get(&self, id: TensorId) -> Tensor<'_> {
        // SAFETY: the tensor lives in this arena's context.
        unsafe { Tensor::from_raw(self.tensors[id.0].as_ptr()) }
    }

    /// Writes bytes into a tensor at a byte offset; `&self`, since device memory is not Rust's.
    ///
    /// # Panics
    /// If the range lies outside the tensor.
    pub fn set(&self, id: TensorId, offset: usize, bytes: &[u8]) {
        let t = self.tensors[id.0].as_ptr();
        // SAFETY: the tensor has memory (ggml asserts it) and the range is checked.
        unsafe {
            assert!(offset + bytes.len() <= sys::ggml_nbytes(t), "write outside a tensor");
            sys::ggml_backend_tensor_set(t, bytes.as_ptr().cast(), offset, bytes.len());
        }
    }

    /// Copies the first `n_rows` rows of `from [n, rows]` to those from `first` on of a tensor of the same type and width, within a
    /// device's memory where both lie in one.
    ///
    /// # Panics
    /// If one of the two has fewer rows, or they differ in type or width.
    pub fn copy_rows(&self, to: TensorId, first: usize, from: Tensor<'_>, n_rows: usize) {
        self.copy_rows_from(to, first, from, 0, n_rows);
    }

    /// Moves the `n_rows` rows from `from` on to the tensor's first ones.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn shift_rows(&self, id: TensorId, from: usize, n_rows: usize) {
        if from == 0 {
            return;
        }
        // So many at a time that none is written before it is read.
        for done in (0..n_rows).step_by(from) {
            self.copy_rows_from(id, done, self.get(id), from + done, from.min(n_rows - done));
        }
    }

    /// As [`Arena::copy_rows`], of the rows from `from_first` on.
    ///
    /// # Panics
    /// As there.
    pub fn copy_rows_from(&self, to: TensorId, first: usize, from: Tensor<'_>, from_first: usize, n_rows: usize) {
        if n_rows == 0 {
            return;
        }
        let to = self.get(to);
        assert!(to.ty() == from.ty() && to.ne(0) == from.ne(0) && to.nb(1) == from.nb(1), "rows of another kind");
        let fits = first + n_rows <= to.ne(1) && from_first + n_rows <= from.ne(1);
        assert!(fits, "a copy of more rows than there are");
        // SAFETY: a scratch context for two headers, freed here; both views lie within tensors that have memory and are alive,
        // which the checks above and ggml's own assert.
        unsafe {
            let ctx = sys::ggml_init(sys::ggml_init_params {
                mem_size: 3 * sys::ggml_tensor_overhead(),
                mem_buffer: std::ptr::null_mut(),
                no_alloc: true,
            });
            let view = |t: Tensor<'_>, first: usize| {
                let v = sys::ggml_view_2d(ctx, t.raw(), t.ne(0) as i64, n_rows as i64, t.nb(1), first * t.nb(1));
                let status = sys::ggml_backend_view_init(v);
                assert_eq!(status, sys::GGML_STATUS_SUCCESS, "a view of rows");
                v
            };
            sys::ggml_backend_tensor_copy(view(from, from_first), view(to, first));
            sys::ggml_free(ctx);
        }
    }

    /// Copies a whole tensor over one of the same type and shape.
    ///
    /// # Panics
    /// If they differ.
    pub fn copy_all(&self, to: TensorId, from: Tensor<'_>) {
        let to = self.get(to);
        assert!(to.ty() == from.ty() && (0..4).all(|i| to.ne(i) == from.ne(i) && to.nb(i) == from.nb(i)), "another shape");
        // SAFETY: both are alive and have memory (ggml asserts it), and are of one layout.
        unsafe { sys::ggml_backend_tensor_copy(from.raw(), to.raw()) }
    }

    /// Zeroes `len` bytes of a tensor from a byte offset.
    ///
    /// # Panics
    /// If the range lies outside the tensor.
    pub fn zero(&self, id: TensorId, offset: usize, len: usize) {
        let t = self.tensors[id.0].as_ptr();
        // SAFETY: the tensor has memory (ggml asserts it) and the range is checked.
        unsafe {
            assert!(offset + len <= sys::ggml_nbytes(t), "write outside a tensor");
            sys::ggml_backend_tensor_memset(t, 0, offset, len);
        }
    }

    /// Reads `len` bytes of a tensor from a byte offset.
    ///
    /// # Panics
    /// If the range lies outside the tensor.
    pub fn read(&self, id: TensorId, offset: usize, len: usize) -> Vec<u8> {
        read_bytes(self.get(id), offset, len)
    }

    /// Total bytes of the arena's own buffers.
    pub fn n_bytes(&self) -> usize {
        // SAFETY: buffers are live.
        self.buffers.iter().map(|b| unsafe { sys::ggml_backend_buffer_get_size(b.as_ptr()) }).sum()
    }
}

/// A raw buffer of an [`Arena`].
#[derive(Clone, Copy, Debug)]
pub struct BufferId(usize);

/// Reads `len` bytes of a tensor.
///
/// # Panics
/// If the range lies outside the tensor.
pub fn read_bytes(tensor: Tensor<'_>, offset: usize, len: usize) -> Vec<u8> {
    let mut out = vec![0u8; len];
    // SAFETY: the range is checked; the destination has `len` bytes.
    unsafe {
        assert!(offset + len <= sys::ggml_nbytes(tensor.raw()), "read outside a tensor");
        sys::ggml_backend_tensor_get(tensor.raw(), out.as_mut_ptr().cast(), offset, len);
    }
    out
}

/// Reads a tensor of 32-bit floats.
///
/// # Panics
/// If it is a tensor of another type.
pub fn read_f32(tensor: Tensor<'_>) -> Vec<f32> {
    let mut out = vec![0.0; tensor.n_elements()];
    let len = size_of_val(out.as_slice());
    // SAFETY: the tensor's bytes fill the destination exactly; any bits are a float.
    unsafe {
        assert!(tensor.ty() == GgmlType::F32 && len == sys::ggml_nbytes(tensor.raw()), "read of another type");
        sys::ggml_backend_tensor_get(tensor.raw(), out.as_mut_ptr().cast(), 0, len);
    }
    out
}

/// Reads a tensor of 32-bit integers.
pub fn read_i32(tensor: Tensor<'_>) -> Vec<i32> {
    let bytes = read_bytes(tensor, 0, tensor.n_elements() * 4);
    bytes.chunks_exact(4).map(|c| i32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect()
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: made by this arena, freed once; no handle outlives the borrow of the arena.
        unsafe {
            #[cfg(feature = "cuda")]
            if self.holds_gpu_weights {
                sys::spts_cuda_forget_weights();
            }
            for b in &self.buffers {
                sys::ggml_backend_buffer_free(b.as_ptr());
            }
            sys::ggml_free(self.ctx.as_ptr());
        }
    }
}
