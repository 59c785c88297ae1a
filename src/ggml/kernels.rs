//! Kernels of ours that a device may have beyond ggml's (vendor/ggml-sys/src/spts_ops.h), and the operations that use them.
//!
//! They are nodes of ggml with a mark in their parameters, so a graph that holds one runs only where [`Kernels`] says so.

use ggml_sys as sys;

use super::Tensor;
use super::ops::Ops;
use crate::graph::ir::{Activation, Heads};

/// What a device can compute besides ggml's operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kernels {
    /// Number of the CUDA device, if it is one.
    cuda_device: Option<i32>,
}

impl Kernels {
    /// Those of a device by ggml's name (`CUDA0`).
    pub fn of(device: &str) -> Self {
        let number = device.strip_prefix("CUDA").and_then(|n| n.parse().ok());
        Self { cuda_device: if cfg!(feature = "cuda") { number } else { None } }
    }

    /// [`Ops::causal_attention`] of so many queries over heads of this shape, with keys and values in F16.
    pub fn causal_attention(&self, n_q: usize, heads: &Heads) -> bool {
        self.cuda_device.is_some_and(|device| takes_causal_attention(device, n_q, heads))
    }

    /// [`Ops::gated_ffn`] of so many rows.
    pub fn gated_ffn(&self, rows: usize, gate: Tensor<'_>, up: Tensor<'_>, down: Tensor<'_>) -> bool {
        self.cuda_device.is_some_and(|device| takes_gated_ffn(device, rows, [gate, up, down]))
    }

    /// [`Ops::scatter_add`] of rows of so many features.
    pub fn scatter_add(&self, n_feat: usize) -> bool {
        self.cuda_device.is_some() && n_feat.is_multiple_of(4)
    }
}

#[cfg(feature = "cuda")]
fn takes_causal_attention(device: i32, n_q: usize, heads: &Heads) -> bool {
    // SAFETY: plain numbers; the device exists, since its name came from ggml.
    unsafe {
        sys::spts_cuda_takes_causal_attention(
            device,
            n_q as i32,
            heads.head_dim as i32,
            heads.n_head as i32,
            heads.n_head_kv as i32,
        )
    }
}

#[cfg(feature = "cuda")]
fn takes_gated_ffn(device: i32, rows: usize, weights: [Tensor<'_>; 3]) -> bool {
    let [gate, up, down] = weights.map(|w| w.ty().id() as i32);
    // SAFETY: plain numbers; the device exists, since its name came from ggml.
    unsafe { sys::spts_cuda_takes_gated_ffn(device, rows as i64, gate, up, down) }
}

#[cfg(not(feature = "cuda"))]
fn takes_causal_attention(_: i32, _: usize, _: &Heads) -> bool {
    false
}

#[cfg(not(feature = "cuda"))]
fn takes_gated_ffn(_: i32, _: usize, _: [Tensor<'_>; 3]) -> bool {
    false
}

/// The last slots of `op_params` (spts_ops.h).
const MARK_SLOT: usize = 12;
const MARK: i32 = 0x5354_5053;

impl Ops {
    /// Causal attention of `q [d, n_q, n_head]` over `k`, `v [d, n_kv, n_head_kv]` in F16, without a mask: query i sees the
    /// rows up to `first + i`. `-> [d, n_head, n_q]`
    pub fn causal_attention<'a>(
        &'a self,
        q: Tensor<'a>,
        k: Tensor<'a>,
        v: Tensor<'a>,
        first: usize,
        scale: f32,
    ) -> Tensor<'a> {
        let none = std::ptr::null_mut();
        // SAFETY: live tensors of matching shape; a null mask means none.
        let out =
            self.wrap(unsafe { sys::ggml_flash_attn_ext(self.c(), q.raw(), k.raw(), v.raw(), none, scale, 0.0, 0.0) });
        mark(out, first as i32);
        out
    }

    /// `W_down (act(W_gate x) * (W_up x))` of `x [n_embd, n]` in one operation. `-> [n_embd, n]`
    pub fn gated_ffn<'a>(
        &'a self,
        act: Activation,
        gate: Tensor<'a>,
        up: Tensor<'a>,
        down: Tensor<'a>,
        x: Tensor<'a>,
    ) -> Tensor<'a> {
        // SAFETY: a fresh tensor of this context; its sources live as long (they borrow from the same run).
        let out = unsafe {
            let out = sys::ggml_new_tensor_2d(self.c(), sys::GGML_TYPE_F32, down.ne(1) as i64, x.ne(1) as i64);
            (*out).op = sys::GGML_OP_MUL_MAT;
            for (i, source) in [down, x, gate, up].into_iter().enumerate() {
                (*out).src[i] = source.raw();
            }
            self.wrap(out)
        };
        mark(out, i32::from(act == Activation::Gelu));
        out
    }

    /// Adds the rows of `x [f, m]` to the rows `idx` of `h [f, n]`, in h's memory.
    pub fn scatter_add<'a>(&'a self, h: Tensor<'a>, x: Tensor<'a>, idx: Tensor<'a>) -> Tensor<'a> {
        let out = self.set_rows(h, x, idx);
        mark(out, 0);
        out
    }
}

/// Whether a node is one of these operations.
///
/// # Safety
/// `node` points to a live tensor.
pub(super) unsafe fn is_marked(node: *const sys::ggml_tensor) -> bool {
    // SAFETY: as the caller says.
    unsafe { (*node).op_params[MARK_SLOT] == MARK }
}

fn mark(t: Tensor<'_>, argument: i32) {
    // SAFETY: a live tensor that nobody computes yet; the slots are within op_params (16 numbers).
    unsafe {
        (*t.raw()).op_params[MARK_SLOT] = MARK;
        (*t.raw()).op_params[MARK_SLOT + 1] = argument;
    }
}
