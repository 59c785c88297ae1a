//! Where a device's time goes: every operation computed by itself and timed.
//!
//! Fusions of ggml across operations do not happen that way, and each operation waits for the one before, so the sum is
//! above the time of a run; the shares are what it is for.

use std::collections::BTreeMap;
use std::time::Instant;

use ggml_sys as sys;

use super::GgmlError;
use super::backend::Backend;
use super::kernels;
use super::ops::Ops;

/// Seconds by kind of operation.
pub type OpTimes = BTreeMap<String, f64>;

impl Backend {
    /// Computes an allocated graph operation by operation and adds the time of each to `times`.
    ///
    /// # Errors
    /// As [`Backend::compute`].
    pub fn compute_timed(&mut self, graph: &Ops, times: &mut OpTimes) -> Result<(), GgmlError> {
        self.synchronize();
        let mut one = Ops::new(1);
        for i in 0..graph.n_nodes() {
            // SAFETY: the index is in range; the node was allocated with its graph.
            let node = unsafe { sys::ggml_graph_node(graph.raw_graph(), i as i32) };
            let Some(kind) = kind(node) else { continue };
            one.reset();
            // SAFETY: a graph with room for one operation.
            unsafe { sys::ggml_graph_add_node(one.raw_graph(), node) };
            let start = Instant::now();
            self.compute(&one)?;
            self.synchronize();
            *times.entry(kind).or_default() += start.elapsed().as_secs_f64();
        }
        Ok(())
    }
}

/// What an operation counts as; `None` for those that compute nothing.
fn kind(node: *const sys::ggml_tensor) -> Option<String> {
    // SAFETY: a live node of a graph; descriptions are static strings.
    let (op, ours, rows, name) = unsafe {
        let name = std::ffi::CStr::from_ptr(sys::ggml_op_desc(node)).to_string_lossy().to_lowercase();
        ((*node).op, kernels::name(node), (*node).ne[1], name)
    };
    if let Some(ours) = ours {
        return Some(ours.into());
    }
    Some(match op {
        sys::GGML_OP_NONE
        | sys::GGML_OP_VIEW
        | sys::GGML_OP_RESHAPE
        | sys::GGML_OP_PERMUTE
        | sys::GGML_OP_TRANSPOSE => return None,
        sys::GGML_OP_MUL_MAT if rows == 1 => "mul_mat_vec".into(),
        _ => name,
    })
}
