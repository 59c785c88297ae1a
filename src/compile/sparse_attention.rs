//! Attention of long prompts over the blocks of keys that matter most, where a method says so.

use crate::graph::ir::*;

/// Layers before this one read all keys: what they look at is spread widest.
const FIRST_LAYER: usize = 2;

/// Queries from which on choosing blocks pays.
const FEWEST_QUERIES: usize = 1024;

/// Has attention read such a share of the keys, but in the first layers, in those with a window, of few queries, and where
/// `can` says that a device has no kernels for it.
pub fn read_blocks(mut graph: Graph, share: BlockShare, can: &dyn Fn(&Node, &Heads) -> bool) -> Graph {
    for node in &mut graph.nodes {
        let is_early = node.layer.is_none_or(|layer| layer < FIRST_LAYER);
        let Op::Attention { window: None, heads, .. } = &node.op else { continue };
        let reads = !is_early && node.n_rows >= FEWEST_QUERIES && can(node, heads);
        if let Op::Attention { blocks, .. } = &mut node.op {
            *blocks = reads.then_some(share);
        }
    }
    graph
}
