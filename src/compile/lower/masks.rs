//! Attention masks: one matrix for all causal tiles of a program, one for all windowed ones, and what a program needs of them.

use super::probes::probed_keys;
use super::{KV_PAD, Memory};
use crate::compile::phases::{Phase, Program};
use crate::ggml::Tensor;
use crate::gguf::GgmlType;
use crate::graph::ir::*;

/// Query rows that share one view of a mask. Attention over more is cut into parts (512 is ggml's best on GPUs, measured).
pub const MASK_HEIGHT: usize = 512;

/// Bytes of logits that probing by ggml's operations holds at a time.
const PROBE_LOGITS: usize = 128 << 20;

/// The kernels read masks so many elements at a time.
const ALIGN: usize = 8;

/// Extent of a mask. A larger one serves wherever a smaller one does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaskSize {
    /// Column of the first row's own key: no query that is masked has its own key further from the first key that is read.
    pub corner: usize,
    /// Queries that are masked at a time.
    pub height: usize,
    /// Columns behind the last query's own key that are read, too.
    pub beyond: usize,
}

impl MaskSize {
    /// Rows: as many again as alignment may skip, and one so that a view that does not begin at its row's start stays inside.
    pub fn rows(&self) -> usize {
        self.height + ALIGN + 1
    }

    /// Columns: the corner, the triangle, what is read behind it.
    pub fn width(&self) -> usize {
        self.corner + self.height + self.beyond
    }

    /// Whether a mask of this size serves where one of `other` does.
    pub fn covers(&self, other: &MaskSize) -> bool {
        self.corner >= other.corner && self.height >= other.height && self.beyond >= other.beyond
    }

    fn with(&self, other: &MaskSize) -> MaskSize {
        MaskSize {
            corner: self.corner.max(other.corner),
            height: self.height.max(other.height),
            beyond: self.beyond.max(other.beyond),
        }
    }

    /// The matrix `[width, rows]` in F16, little-endian: row i lets the columns up to `corner + i` pass (and, with a window, only
    /// the last `window` of them). Long prompts make it large: rows are copied and filled, not computed.
    pub fn bytes(&self, window: Option<usize>) -> Vec<u8> {
        const VISIBLE: u8 = 0; // both bytes of F16's zero
        let width = self.width();
        let mut bytes = half::f16::NEG_INFINITY.to_le_bytes().repeat(width * self.rows());
        for (i, row) in bytes.chunks_exact_mut(2 * width).take(self.height + ALIGN).enumerate() {
            let end = (self.corner + i + 1).min(width);
            let start = window.map_or(0, |w| end.saturating_sub(w));
            row[2 * start..2 * end].fill(VISIBLE);
        }
        bytes
    }
}

/// One F16 matrix that masks every tile of its kind ([`MaskSize::bytes`]). A tile sees it through an offset that puts its own
/// first query on the diagonal.
#[derive(Clone, Copy)]
pub struct MaskBuffer<'a> {
    /// F16 `[width, rows]`
    pub tensor: Tensor<'a>,
    /// Column of the first row's own key.
    pub corner: usize,
}

impl MaskBuffer<'_> {
    /// Row and column where the mask of a tile begins whose first query's own key is column `own`: the column is aligned,
    /// since among the first rows one has its diagonal at the right distance. `None` if `own` lies beyond the corner.
    pub fn start(&self, own: usize) -> Option<(usize, usize)> {
        let row = (own + ALIGN - self.corner % ALIGN) % ALIGN;
        Some((row, (self.corner + row).checked_sub(own)?))
    }
}

/// Whether a device's own kernel computes a layer's causal attention of so many queries, without a mask.
pub(in crate::compile) fn takes_causal_attention(memory: &dyn Memory, layer: usize, n_q: usize, heads: &Heads) -> bool {
    let in_f16 = [memory.cache_k(layer), memory.cache_v(layer)].iter().all(|t| t.ty() == GgmlType::F16);
    in_f16 && memory.kernels().causal_attention(n_q, heads)
}

/// Whether attention by ggml's kernel is masked by a view of a [`MaskBuffer`]: not where positions have gaps that a window has
/// to know of.
pub(super) fn is_masked_by_buffer(memory: &dyn Memory, graph: &Graph, node: &Node, layer: usize) -> bool {
    let Op::Attention { window, .. } = node.op else { return false };
    window.is_none() || (are_all_positions(graph, node) && !memory.has_gaps(layer))
}

/// Whether an attention's keys are those of all the call's tokens, rather than of those that a prune has left.
pub(super) fn are_all_positions(graph: &Graph, node: &Node) -> bool {
    matches!(graph.node(node.src[4]).op, Op::Positions)
}

/// Probing queries whose logits over n candidates are held at a time.
pub(super) fn probe_chunk(n: usize, n_probe: usize, n_head: usize) -> usize {
    (PROBE_LOGITS / (4 * n * n_head)).clamp(n_probe.div_ceil(64), n_probe).min(MASK_HEIGHT)
}

/// The masks that a program's prefill looks into on one device, by their window. `tiles` lists the rows of a phase's tiles, and
/// none of a phase of another device.
///
/// Keys of attention reach from the first cache row that is read to the last query's own; a probe's are all candidates,
/// however few of them its layer keeps.
pub fn masks_needed(
    memory: &dyn Memory,
    graph: &Graph,
    program: &Program,
    tiles: &dyn Fn(&Phase) -> Vec<usize>,
) -> Vec<(Option<usize>, MaskSize)> {
    let mut needs: Vec<(Option<usize>, MaskSize)> = Vec::new();
    for phase in &program.phases {
        let tiles = tiles(phase);
        if tiles.is_empty() {
            continue;
        }
        for node in phase.nodes.iter().map(|id| graph.node(*id)) {
            let Some((window, size)) = mask_needed(memory, graph, program, node, &tiles) else { continue };
            match needs.iter_mut().find(|(w, _)| *w == window) {
                Some((_, most)) => *most = most.with(&size),
                None => needs.push((window, size)),
            }
        }
    }
    needs
}

fn mask_needed(
    memory: &dyn Memory,
    graph: &Graph,
    program: &Program,
    node: &Node,
    tiles: &[usize],
) -> Option<(Option<usize>, MaskSize)> {
    match node.op {
        Op::Attention { layer, heads, window } if is_masked_by_buffer(memory, graph, node, layer) => {
            let ours = |n_q: usize| window.is_none() && takes_causal_attention(memory, layer, n_q, &heads);
            let most = *tiles.iter().filter(|n_q| !ours(**n_q)).max()?;
            let last = memory.n_past(layer) + graph.node(node.src[1]).n_rows;
            // Keys before the window are read only up to the padding.
            let own = window.map_or(last, |w| last.min(w + KV_PAD));
            let size = MaskSize {
                corner: own.next_multiple_of(KV_PAD),
                height: most.min(MASK_HEIGHT),
                // What alignment skips, and the padding.
                beyond: ALIGN + KV_PAD,
            };
            Some((window, size))
        }
        Op::ProbeScores { heads, .. } => {
            let (n, n_probe) = (node.n_rows, graph.node(node.src[0]).n_rows);
            let ours = memory.kernels().probe_scores(probed_keys(memory, program, node).ty());
            let size = MaskSize {
                corner: n.next_multiple_of(KV_PAD),
                height: probe_chunk(n, n_probe, heads.n_head),
                // The first of them sees none of the others.
                beyond: n_probe.max(KV_PAD),
            };
            (n_probe > 1 && !ours).then_some((None, size))
        }
        _ => None,
    }
}
