//! Safe wrappers over ggml: every `unsafe` that crosses into C lives in this folder.
//!
//! [`backend`]: devices and computing; [`arena`]: tensors that persist (weights, caches, hidden states); [`ops`]: one compute graph
//! and the operations that build it, [`kernels`]: those that only some devices have, [`cpu_attention`]: one of the CPU's;
//! [`profile`]: times by kind of operation; [`log`]: ggml's messages; [`huge_pages`]: for what a CPU reads again and again;
//! [`injected`]: failures for tests. A [`Tensor`] is a handle that borrows from the arena or graph that owns it, so it can't
//! outlive it.

pub mod arena;
pub mod backend;
pub mod block_lists;
pub mod cpu_attention;
pub mod host;
pub mod huge_pages;
pub mod injected;
pub mod kernels;
pub mod log;
pub mod ops;
pub mod profile;
pub mod quantize;

use std::marker::PhantomData;
use std::ptr::NonNull;

use ggml_sys as sys;

use crate::gguf::GgmlType;

/// A failure of a ggml call.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgmlError {
    /// A buffer could not be had.
    #[error(
        "{device}: out of memory: {what} needs {:.1} MiB, {:.1} MiB are free; remedies: fewer layers there, smaller tiles, a q8_0 cache, \
         a shorter prompt",
        *bytes as f64 / 1048576.0,
        *free as f64 / 1048576.0
    )]
    OutOfMemory {
        /// Device name.
        device: String,
        /// For what.
        what: String,
        /// How much.
        bytes: usize,
        /// How much there is.
        free: usize,
    },
    /// A graph failed while computing.
    #[error("{device}: computing a graph failed (ggml status {status})")]
    Compute {
        /// Device name.
        device: String,
        /// ggml's status.
        status: i32,
    },
    /// The computation was stopped by the abort callback.
    #[error("interrupted")]
    Aborted,
    /// No such device.
    #[error("no device '{name}'; this build and machine have: {available}")]
    NoDevice {
        /// As asked for.
        name: String,
        /// Comma-separated names.
        available: String,
    },
    /// A device that is there but can't be started.
    #[error("device {name} can't be initialised (is the driver running, is its memory free?)")]
    InitFailed {
        /// Device name.
        name: String,
    },
    /// The device has no kernel for an operation.
    #[error("{device} has no kernel for {op} on these types ({detail})")]
    Unsupported {
        /// Device name.
        device: String,
        /// ggml's name of the operation.
        op: String,
        /// Shapes and types.
        detail: String,
    },
}

/// A handle on a tensor of an [`arena::Arena`] or a graph ([`ops::Ops`]).
#[derive(Clone, Copy)]
pub struct Tensor<'a> {
    ptr: NonNull<sys::ggml_tensor>,
    owner: PhantomData<&'a ()>,
}

impl<'a> Tensor<'a> {
    /// Wraps a pointer that ggml returned.
    ///
    /// # Safety
    /// `ptr` is null or points to a tensor that lives at least as long as `'a`.
    unsafe fn from_raw(ptr: *mut sys::ggml_tensor) -> Self {
        // Null would mean that ggml's fixed metadata pool overflowed; pools are sized from the node count before.
        let ptr = NonNull::new(ptr).expect("ggml returned a tensor");
        Self { ptr, owner: PhantomData }
    }

    fn raw(self) -> *mut sys::ggml_tensor {
        self.ptr.as_ptr()
    }

    fn get(self) -> &'a sys::ggml_tensor {
        // SAFETY: the handle borrows from the owner of the tensor, and ggml does not move tensors.
        unsafe { self.ptr.as_ref() }
    }

    /// Elements along dimension `i` (ggml order: 0 is the fastest).
    pub fn ne(self, i: usize) -> usize {
        self.get().ne[i] as usize
    }

    /// Bytes between neighbours along dimension `i`.
    pub fn nb(self, i: usize) -> usize {
        self.get().nb[i]
    }

    /// Number of elements.
    pub fn n_elements(self) -> usize {
        (0..4).map(|i| self.ne(i)).product()
    }

    /// Element type.
    pub fn ty(self) -> GgmlType {
        GgmlType::from_id(self.get().type_).expect("ggml made it with a known type")
    }
}

fn type_id(ty: GgmlType) -> sys::ggml_type {
    ty.id() as sys::ggml_type
}
