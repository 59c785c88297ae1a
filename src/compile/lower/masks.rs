//! Which operations look into attention masks, and what masks a program needs for them.

use super::KV_PAD;
use crate::compile::mask_buffer::{ALIGN, MaskSize};
use crate::compile::memory::Memory;
use crate::compile::phases::{Phase, Program, Storage};
use crate::ggml::Tensor;
use crate::ggml::kernels::PROBE_LOGITS;
use crate::graph::ir::*;

/// Query rows that share one view of a mask. Attention over more is cut into parts (512 is ggml's best on GPUs, measured).
pub const MASK_HEIGHT: usize = 512;

/// Whether attention by ggml's kernel is masked by a view of a buffer: not where positions have gaps that a window has
/// to know of.
pub(super) fn is_masked_by_buffer(memory: &dyn Memory, graph: &Graph, node: &Node, layer: usize) -> bool {
    let Op::Attention { window, .. } = node.op else { return false };
    window.is_none() || (are_all_positions(graph, node) && !memory.has_gaps(layer))
}

/// Whether an attention's keys are those of all the call's tokens, rather than of those that a prune has left.
pub(super) fn are_all_positions(graph: &Graph, node: &Node) -> bool {
    matches!(graph.node(node.src[4]).op, Op::Positions)
}

/// The matrix that begins with the keys of all candidates.
pub(super) fn probed_keys<'m>(memory: &'m dyn Memory, program: &Program, node: &Node) -> Tensor<'m> {
    match program.storage[node.src[1].index()] {
        Storage::CacheK(layer) => memory.cache_k(layer),
        _ => memory.stored(node.src[1]),
    }
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
        Op::Attention { layer, heads, window, .. } if is_masked_by_buffer(memory, graph, node, layer) => {
            let ours = |n_q: usize| memory.takes_attention(layer, n_q, &heads, window);
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
            let ours = memory.kernels().probe_scores(probed_keys(memory, program, node).ty(), &heads);
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
