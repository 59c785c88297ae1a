//! Memory of the host that a device copies into fastest: the logits of every token go there.

use std::ptr::NonNull;

use ggml_sys as sys;

use super::Tensor;
use super::backend::Backend;
use crate::gguf::GgmlType;

/// Floats read from a device.
#[derive(Default)]
pub struct HostF32 {
    buffer: Option<NonNull<sys::ggml_backend_buffer>>,
    capacity: usize,
    len: usize,
}

// SAFETY: owns its buffer, whose memory is plain host memory.
unsafe impl Send for HostF32 {}
// SAFETY: shared access only reads.
unsafe impl Sync for HostF32 {}

impl HostF32 {
    /// The floats that were read last.
    pub fn as_slice(&self) -> &[f32] {
        match self.buffer {
            // SAFETY: the buffer holds `capacity >= len` floats, aligned, all of them written by `read`.
            Some(buffer) => unsafe {
                std::slice::from_raw_parts(sys::ggml_backend_buffer_get_base(buffer.as_ptr()).cast::<f32>(), self.len)
            },
            None => &[],
        }
    }

    /// Forgets what was read; the memory stays.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Reads a tensor when all work queued on its backend is done.
    ///
    /// # Panics
    /// If it is not F32, or the host has no memory.
    pub fn read(&mut self, backend: &mut Backend, tensor: Tensor<'_>) {
        let n = tensor.n_elements();
        assert!(tensor.ty() == GgmlType::F32, "read of another type");
        if n > self.capacity {
            self.free();
            // SAFETY: a live buffer type of host memory.
            let buffer = unsafe { sys::ggml_backend_buft_alloc_buffer(backend.host_buffer_type(), 4 * n) };
            self.buffer = Some(NonNull::new(buffer).expect("memory for a row of logits"));
            self.capacity = n;
        }
        let Some(buffer) = self.buffer else { return };
        // SAFETY: the tensor's 4 n bytes fit; the memory is not touched until the backend is synchronized.
        unsafe {
            let to = sys::ggml_backend_buffer_get_base(buffer.as_ptr());
            sys::ggml_backend_tensor_get_async(backend.raw(), tensor.raw(), to, 0, 4 * n);
        }
        backend.synchronize();
        self.len = n;
    }

    fn free(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            // SAFETY: made by `read`, freed once.
            unsafe { sys::ggml_backend_buffer_free(buffer.as_ptr()) }
        }
        self.capacity = 0;
        self.len = 0;
    }
}

impl Drop for HostF32 {
    fn drop(&mut self) {
        self.free();
    }
}
