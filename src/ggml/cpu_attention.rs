//! Causal attention on the CPU without masks (vendor/ggml-sys/src/cpu/attention.cpp).

use std::sync::atomic::{AtomicBool, Ordering};

use ggml_sys as sys;

use super::ops::Ops;
use super::{Tensor, type_id};
use crate::gguf::GgmlType;

/// Elements of a head, at most (`SPTS_CPU_ATTENTION_MAX_HEAD`).
pub const MAX_HEAD: usize = 512;

/// Where the operation's arguments begin in its node's parameters (`SPTS_CPU_ATTENTION_FIRST`).
pub const FIRST_ARGUMENT: usize = 8;

/// Whether attention is left to ggml.
static IS_GGMLS: AtomicBool = AtomicBool::new(false);

/// Leaves attention to ggml's kernel, or no longer.
pub(crate) fn leave_to_ggml(is_ggmls: bool) {
    IS_GGMLS.store(is_ggmls, Ordering::Relaxed);
}

/// Whether [`Ops::cpu_attention`] is there, and attention is not left to ggml.
pub(super) fn is_ours() -> bool {
    cfg!(target_os = "linux") && !IS_GGMLS.load(Ordering::Relaxed)
}

/// Which keys a query sees.
#[derive(Clone, Copy)]
pub struct Visible<'a> {
    /// The row of the first query's own key: query i sees the rows up to `first + i`.
    pub first: usize,
    /// A key is seen while the query's position minus its own is less than this.
    pub window: Option<usize>,
    /// Positions of the keys I32 `[n_kv]`, ascending, where they are not the rows' numbers.
    pub positions: Option<Tensor<'a>>,
    /// Which blocks of keys are read ([`Ops::block_lists`]), if not all.
    pub lists: Option<Tensor<'a>>,
}

impl Ops {
    /// Attention of `q [d, n_q, n_head]` over `k`, `v [d, n_kv, n_head_kv]` of any type, in F32. A query's result does not depend
    /// on the others beside it. `sinks [n_head]`: further scores, whose weight goes to no value. `-> F32 [d, n_head, n_q]`
    pub fn cpu_attention<'a>(
        &'a self,
        [q, k, v]: [Tensor<'a>; 3],
        visible: Visible<'a>,
        scale: f32,
        sinks: Option<Tensor<'a>>,
    ) -> Tensor<'a> {
        let [d, n_q, n_head] = [0, 1, 2].map(|i| q.ne(i) as i64);
        // In the place of what is missing stands q.
        let optional = [visible.positions, sinks, visible.lists].map(|t| t.unwrap_or(q));
        let mut src = [q, k, v, optional[0], optional[1], optional[2]].map(Tensor::raw);
        let n_src = src.len() as i32;
        let arguments = [visible.first as i32, scale.to_bits() as i32, visible.window.map_or(0, |w| w as i32), 0];
        // SAFETY: a live context with room (nodes were counted); the operation reads these sources and arguments, and ggml's own
        // parameters of such a node end before them.
        self.wrap(unsafe {
            let f32 = type_id(GgmlType::F32);
            let all_threads = sys::GGML_N_TASKS_MAX;
            let none = std::ptr::null_mut();
            let out =
                sys::ggml_custom_4d(self.c(), f32, d, n_head, n_q, 1, src.as_mut_ptr(), n_src, OPERATION, all_threads, none);
            (&mut (*out).op_params)[FIRST_ARGUMENT..][..arguments.len()].copy_from_slice(&arguments);
            out
        })
    }
}

#[cfg(target_os = "linux")]
const OPERATION: sys::ggml_custom_op_t = Some(sys::spts_cpu_attention);
#[cfg(not(target_os = "linux"))]
const OPERATION: sys::ggml_custom_op_t = None;
