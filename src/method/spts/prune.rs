//! Pass 3, MSDP (multi-stage delayed pruning): in the last layer of a stage the lowest-scored candidates are gone for good.
//!
//! In that layer, before:
//! ```text
//! out = ffn_inp with ffn(ffn_inp[B]) added to the rows B        or ffn_inp + ffn(ffn_inp), where the FFN skips nothing
//! ```
//! after:
//! ```text
//! T'        = top_k(S, M - cut), last tokens always in          S: the layer's probe scores
//! hidden    = prune(ffn_inp, T')
//! out       = hidden + ffn(hidden), times 0 for rows that are not in B
//! positions = positions[T']                                     the later layers rotate by original positions
//! ```
//! Token ids go with the positions where later layers read them.
//!
//! Scores that later layers read, to add them to their own or, in recurrent layers, to choose by them, go through the prune as
//! well: the rows that stay are gathered. Recurrent layers behind it never see the others.
//!
//! The method prunes behind the layer (`h[T']` of its result). That is the same: an FFN looks at one token alone, and T' was
//! known before it, so what it adds to the pruned tokens is read by nobody. T' is as large as the budget says, while how many
//! of it are in B is only known when they are chosen; hence the factor, and not a smaller set.

use std::collections::{BTreeSet, HashMap};

use crate::graph::ir::*;
use crate::graph::rewrite::Rewrite;
use crate::method::{Held, LayerBudget};

/// Inserts the prune of every layer whose budget has one. Layers behind it shrink to the rows that are left; selections
/// already inserted there must fit (the schedule sees to it).
pub fn insert_pruning(graph: &Graph, budgets: &[LayerBudget], held: Held) -> Graph {
    let mut rw = Rewrite::new(graph);
    let mut anchors = Vec::with_capacity(graph.layers.len());
    for (layer, a) in graph.layers.iter().enumerate() {
        let kept = match (budgets[layer].prune_to, a.scores) {
            (Some(m), Some(scores)) => Some(prune_before_ffn(&mut rw, a, scores, held.top(m))),
            _ => None,
        };
        rw.copy_through(a.out);
        anchors.push(LayerAnchors { kept, ..rw.copied_anchors(layer) });
        if let Some(kept) = kept {
            rw.b.set_layer(Some(layer));
            for scores in scores_read_behind(graph, a.out) {
                let left = rw.b.push(Op::GetRows, &[rw.map[&scores], kept], "carried_kept");
                rw.map.insert(scores, left);
            }
        }
    }
    rw.finish(anchors)
}

/// Scores made up to `out` that nodes behind it read.
fn scores_read_behind(graph: &Graph, out: NodeId) -> Vec<NodeId> {
    let behind = graph.nodes[out.index() + 1..].iter().flat_map(|n| n.src.iter().copied());
    let are_scores = |id: &NodeId| *id < out && graph.node(*id).n_feat == 1 && graph.node(*id).dtype == DType::F32;
    let found: BTreeSet<NodeId> = behind.filter(are_scores).collect();
    found.into_iter().collect()
}

/// Copies a layer up to what its FFN reads and the selection of its rows, and puts the prune and an FFN of the rows that are
/// left, the `top` ones, in place of the rest. Returns their indices.
fn prune_before_ffn(rw: &mut Rewrite, a: &LayerAnchors, scores: NodeId, top: Op) -> NodeId {
    rw.copy_through(a.active_ffn.unwrap_or(a.ffn_inp));
    rw.b.set_layer(rw.old.node(a.ffn_inp).layer);
    let kept = rw.b.push(top, &[rw.map[&scores]], "kept");
    let factors = a.active_ffn.map(|active| rw.b.push(Op::IsMember, &[kept, rw.map[&active]], "kept_active"));
    let hidden = rw.b.push(Op::Prune, &[rw.map[&a.ffn_inp], kept], "ffn_inp_kept");
    let positions = rw.b.push(Op::GetRows, &[rw.map[&rw.old.positions], kept], "pos_kept");
    rw.map.insert(rw.old.positions, positions);
    if let Some(tokens) = rw.old.tokens().filter(|tokens| is_read_behind(rw.old, *tokens, a.ffn_sum)) {
        let left = rw.b.push(Op::GetRows, &[rw.map[&tokens], kept], "tokens_kept");
        rw.map.insert(tokens, left);
    }

    // What the FFN read: the layer's rows, or those of them that were gathered for it.
    let ffn_norm = rw.old.node(a.ffn_norm);
    let input = if matches!(ffn_norm.op, Op::RmsNorm { .. }) { ffn_norm.src[0] } else { a.ffn_norm };
    let mut subst = HashMap::from([(input, hidden)]);
    let mut ffn_out = rw.recompute_with(&mut subst, a.ffn_out);
    if let Some(factors) = factors {
        ffn_out = rw.b.push(Op::Mul, &[ffn_out, factors], "ffn_out_active");
    }
    let out = rw.b.push(Op::Add, &[hidden, ffn_out], "l_out");
    rw.map.insert(a.ffn_norm, subst[&a.ffn_norm]);
    rw.map.extend(a.ffn_hidden.map(|id| (id, subst[&id])));
    rw.map.insert(a.ffn_out, ffn_out);
    rw.map.insert(a.ffn_sum, out);
    rw.skip_through(a.ffn_sum);
    kept
}

/// Whether a node behind `end` reads a value.
fn is_read_behind(graph: &Graph, value: NodeId, end: NodeId) -> bool {
    graph.nodes[end.index() + 1..].iter().any(|n| n.src.contains(&value))
}
