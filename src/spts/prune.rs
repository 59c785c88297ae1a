//! Pass 3, MSDP (multi-stage delayed pruning): after the last layer of a stage the lowest-scored candidates are gone for good.
//!
//! ```text
//! T'        = top_k(S, M - cut), last tokens always in      S: the probe scores of the stage's last layer
//! hidden    = prune(l_out, T')
//! positions = positions[T']                                  the later layers rotate by original positions
//! ```

use super::schedule::LayerBudget;
use crate::graph::ir::*;
use crate::graph::rewrite::Rewrite;

/// Inserts the prune of every layer whose budget has one. Layers behind it shrink to the rows that are left; selections
/// already inserted there must fit (the schedule sees to it).
pub fn insert_pruning(graph: &Graph, budgets: &[LayerBudget], queries: usize) -> Graph {
    let mut rw = Rewrite::new(graph);
    let mut anchors = Vec::with_capacity(graph.layers.len());
    for (layer, a) in graph.layers.iter().enumerate() {
        rw.copy_through(a.out);
        let mut new = rw.copied_anchors(layer);
        if let (Some(m), Some(scores)) = (budgets[layer].prune_to, new.scores) {
            rw.b.set_layer(Some(layer));
            let old_positions = graph.positions;
            let kept = rw.b.push(Op::TopK { m, forced: queries.min(m) }, &[scores], "kept");
            let hidden = rw.b.push(Op::Prune, &[new.out, kept], "l_out_kept");
            let positions = rw.b.push(Op::GetRows, &[rw.map[&old_positions], kept], "pos_kept");
            rw.map.insert(a.out, hidden);
            rw.map.insert(old_positions, positions);
            new.kept = Some(kept);
        }
        anchors.push(new);
    }
    rw.finish(anchors)
}
