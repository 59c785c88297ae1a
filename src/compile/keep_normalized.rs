//! Keeps the residual stream's rows normalised beside it through layers that skip tokens, for devices that multiply 16-bit rows.
//!
//! Every sublayer of a layer that skips normalises all candidates, to score them, and once more those that it computes; but the
//! residual stream has changed in the few rows alone that the sublayer before computed. After this rewrite the normalised rows are
//! a value of their own, of which a sublayer takes the rows it wants and, having changed some, normalises these anew:
//! ```text
//! x    = normalize(h)                       once, where the skipping begins
//! k    = W_k (norm * x)                     all candidates
//! q, v = W (norm * x[A])
//! h'   = h with attn_out added to the rows A
//! x'   = x with the rows A normalised anew, from h'
//! ```
//! The norms' weights, of which each sublayer has its own, become the products'.

use std::collections::{HashMap, HashSet};

use crate::graph::ir::*;
use crate::graph::rewrite::Rewrite;

/// Rewrites the norms of states that a scatter-add changes or makes. `takes` says whether a product (linear, gated FFN, proxy)
/// of so many rows takes rows of 16 bits; a norm that others read stays.
pub fn keep_normalized(graph: &Graph, takes: &dyn Fn(&Op, usize) -> bool) -> Graph {
    let norms = Norms::of(graph, takes);
    let mut rw = Rewrite::new(graph);
    // Normalised rows by the old state.
    let mut kept: HashMap<NodeId, NodeId> = HashMap::new();
    for i in 0..graph.nodes.len() {
        let id = NodeId(i as u32);
        let node = graph.node(id);
        rw.b.set_layer(node.layer);
        if norms.gathers.contains(&id) {
            rw.skip_through(id);
        } else if let Some(norm) = norms.replaced.get(&id) {
            let all = *kept
                .entry(norm.state)
                .or_insert_with(|| rw.b.push(Op::Normalize { eps: norm.eps }, &[rw.map[&norm.state]], "normalized"));
            let rows = norm.gather.map_or(all, |gather| take_rows(&mut rw, gather, all));
            rw.map.insert(id, rows);
            rw.skip_through(id);
        } else if let Some(norm) = node.src.first().and_then(|s| norms.replaced.get(s)) {
            let product = Node { op: multiplied(&node.op, norm.weight), ..node.clone() };
            let src: Vec<NodeId> = node.src.iter().map(|s| rw.map[s]).collect();
            let product = rw.b.copy(&product, &src);
            rw.map.insert(id, product);
            rw.skip_through(id);
        } else {
            rw.copy_through(id);
        }
        if let (Op::ScatterAdd, Some(eps)) = (&node.op, norms.eps_of(id))
            && let Some(&before) = kept.get(&node.src[0])
        {
            let src = [before, rw.map[&node.src[1]], rw.map[&id]];
            kept.insert(id, rw.b.push(Op::NormalizeRows { eps }, &src, "normalized"));
        }
    }
    let anchors = (0..graph.layers.len()).map(|layer| rw.copied_anchors(layer)).collect();
    rw.finish(anchors)
}

/// The rows of `all` that `gather` takes of the state.
fn take_rows(rw: &mut Rewrite, gather: NodeId, all: NodeId) -> NodeId {
    let node = rw.old.node(gather);
    let op = match node.op {
        Op::LastRows { rows } => Op::LastRows { rows },
        _ => Op::GetRows,
    };
    let src: Vec<NodeId> = [all].into_iter().chain(node.src[1..].iter().map(|s| rw.map[s])).collect();
    rw.b.push(op, &src, "normalized_rows")
}

/// The same product of rows that were normalised without this weight.
fn multiplied(op: &Op, weight: WeightId) -> Op {
    let mut op = op.clone();
    if let Op::Linear { norm, .. } | Op::GatedFfn { norm, .. } | Op::ProxyNorm { norm, .. } = &mut op {
        *norm = Some(weight);
    }
    op
}

/// A norm to be replaced.
struct Norm {
    weight: WeightId,
    eps: f32,
    /// The residual stream whose rows it normalises.
    state: NodeId,
    /// The gather that picks them out; `None`: all.
    gather: Option<NodeId>,
}

/// What will change in a graph.
struct Norms {
    replaced: HashMap<NodeId, Norm>,
    /// Gathers that replaced norms alone read.
    gathers: HashSet<NodeId>,
}

impl Norms {
    fn of(graph: &Graph, takes: &dyn Fn(&Op, usize) -> bool) -> Norms {
        let mut readers: HashMap<NodeId, Vec<NodeId>> = HashMap::new();
        let mut states = HashSet::new();
        let mut rows_by_weight: HashMap<WeightId, usize> = HashMap::new();
        for (i, node) in graph.nodes.iter().enumerate() {
            let id = NodeId(i as u32);
            node.src.iter().for_each(|s| readers.entry(*s).or_default().push(id));
            match node.op {
                Op::ScatterAdd => states.extend([node.src[0], id]),
                Op::Linear { weight, .. } => {
                    let most = rows_by_weight.entry(weight).or_default();
                    *most = node.n_rows.max(*most);
                }
                _ => {}
            }
        }
        // A few probing queries are multiplied by the copy of a weight that is made for many rows.
        let takes = |id: &NodeId| {
            let node = graph.node(*id);
            let rows = match node.op {
                Op::Linear { weight, .. } => rows_by_weight[&weight],
                _ => node.n_rows,
            };
            matches!(node.op, Op::Linear { .. } | Op::GatedFfn { .. } | Op::ProxyNorm { .. }) && takes(&node.op, rows)
        };

        let mut replaced = HashMap::new();
        for (i, node) in graph.nodes.iter().enumerate() {
            let id = NodeId(i as u32);
            let Op::RmsNorm { weight: Some(weight), eps, group } = node.op else { continue };
            let source = node.src[0];
            let picks = matches!(graph.node(source).op, Op::GetRows | Op::LastRows { .. } | Op::Prune);
            let (state, gather) = if picks { (graph.node(source).src[0], Some(source)) } else { (source, None) };
            let read_by_products = readers.get(&id).is_some_and(|r| r.iter().all(takes));
            if group == node.n_feat && states.contains(&state) && read_by_products {
                replaced.insert(id, Norm { weight, eps, state, gather });
            }
        }
        let for_norms_alone = |gather: &NodeId| readers[gather].iter().all(|r| replaced.contains_key(r));
        let gathers = replaced.values().filter_map(|n| n.gather).filter(for_norms_alone).collect();
        Norms { replaced, gathers }
    }

    /// With what a state's rows will be normalised, if they will be.
    fn eps_of(&self, state: NodeId) -> Option<f32> {
        self.replaced.values().find(|n| n.state == state).map(|n| n.eps)
    }
}
