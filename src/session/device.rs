//! A device of a session: its backend, its masks, the graph that is rebuilt for every tile.

use crate::Result;
use crate::ggml::block_lists;
use crate::ggml::GgmlError;
use crate::ggml::backend::Backend;
use crate::ggml::kernels::{PROBE_LOGITS, WIDE_WEIGHTS};
use crate::ggml::ops::Ops;
use crate::ggml::profile::OpTimes;
use crate::graph::ir::{Node, Op, WeightId};

use super::fetched::Fetched;
use super::masks::Masks;
use super::run::Run;

/// A started device.
pub struct Device {
    /// The backend.
    pub backend: Backend,
    /// Attention masks.
    pub masks: Masks,
    /// Experts' weights that lie elsewhere.
    pub fetched: Fetched,
    /// The graph under construction.
    pub(super) ops: Ops,
    /// Bytes of 16-bit copies that there was room for.
    copies: usize,
    /// Times by kind of operation, if they are recorded.
    pub op_times: Option<OpTimes>,
}

impl Device {
    /// A device around its backend.
    pub fn new(backend: Backend) -> Self {
        Self { backend, masks: Masks::default(), fetched: Fetched::default(), ops: Ops::default(), copies: 0, op_times: None }
    }

    /// Bytes held by masks, scratch, and weights that were brought here.
    pub fn n_bytes(&self) -> usize {
        self.masks.n_bytes() + self.backend.scratch_bytes() + self.fetched.n_bytes()
    }

    /// A GPU's products make 16-bit copies of weights and rows, and what scores candidates has values in between, in memory that
    /// ggml takes when it needs it, and aborts if it gets none.
    ///
    /// # Errors
    /// Out of memory.
    pub(super) fn check_room_for_copies(&mut self, device: usize, run: &Run) -> Result<()> {
        let shape = run.model.shape();
        let n_ff = (0..shape.n_layer).map(|l| shape.sizes(l).n_ff).max().unwrap_or(0);
        let kernels = self.backend.kernels();
        let graph = &run.compiled.graph;
        let rows = |node: &Node| node.n_rows.min(run.compiled.tile);
        let ours = |node: &Node, w: WeightId| kernels.product(rows(node), run.model.weight(w).ty);
        // ggml's products round rows on both sides, ours those that come in F32.
        let needs = |node: &Node| match node.op {
            Op::Linear { .. } => 2 * rows(node) * (graph.node(node.src[0]).n_feat + node.n_feat),
            Op::GatedFfn { gate, up, down, .. } if ![gate, up, down].into_iter().all(|w| ours(node, w)) => {
                2 * rows(node) * (shape.n_embd + n_ff)
            }
            Op::ProxyNorm { layer, .. } => {
                let v_down = run.proxy(device, layer).v_down; // [d_low, rank]
                rows(graph.node(node.src[0])) * (4 * v_down.ne(0) + 8 * v_down.ne(1))
            }
            Op::ProbeScores { heads, .. } => {
                let of_a_query = 4 * node.n_rows * heads.n_head;
                (of_a_query * graph.node(node.src[0]).n_rows).min(PROBE_LOGITS.max(of_a_query))
            }
            // Groups of rows as one row each, of one head of keys, and their scores.
            Op::Attention { heads, blocks: Some(_), .. } => {
                let (group, keys) = (heads.n_head / heads.n_head_kv, run.sequence.n_past() + graph.node(node.src[1]).n_rows);
                let scores = (keys / block_lists::STRIDE) * (rows(node) / block_lists::STRIDE);
                2 * (heads.head_dim * (rows(node) * group + keys) + scores * group)
            }
            _ => 0,
        };
        let mine = |node: &&Node| run.model.placement().of(node) == device;
        let most = graph.nodes.iter().filter(mine).map(needs).max().unwrap_or(0);
        // Those made ahead, the largest at worst, and one of a captured graph.
        let bytes = most + 2 * (WIDE_WEIGHTS + 1) * shape.n_embd * n_ff;
        // What was found room for before is ggml's already.
        let (more, free) = (bytes.saturating_sub(self.copies), self.backend.buffer_type().free_bytes());
        if more > free {
            let (device, what) = (
                self.backend.name().to_owned(),
                "16-bit copies of weights and of a tile's rows, or scores of candidates".to_owned(),
            );
            return Err(GgmlError::OutOfMemory { device, what, bytes: more, free }.into());
        }
        self.copies = self.copies.max(bytes);
        Ok(())
    }
}
