//! Cuts a graph between two layers: the part before runs over the tokens that were not read before, the part behind over all.
//!
//! Layers that skip nothing are causal: what they compute of a document does not depend on the question behind it. So their caches
//! and the residual stream that leaves the last of them ([`Op::Residual`]) serve every prompt that begins with the document.

use crate::graph::ir::*;
use crate::graph::rewrite::Rewrite;

/// The graph up to the residual stream that enters layer `cut`, which is its output.
///
/// # Panics
/// Without layers before `cut`.
pub fn before_layer(mut graph: Graph, cut: usize) -> Graph {
    assert!(cut > 0, "a cut behind a layer");
    let end = graph.layers[cut - 1].out;
    graph.nodes.truncate(end.index() + 1);
    graph.layers.truncate(cut);
    graph.hidden = end;
    graph.outputs = vec![end];
    graph
}

/// The graph from layer `cut` on. It starts with the residual stream that enters it, of all its rows.
///
/// # Panics
/// If rows were pruned or chosen before `cut`, or without layers behind it.
pub fn from_layer(graph: &Graph, cut: usize) -> Graph {
    let inp = graph.layers[cut].inp;
    let Node { n_feat, n_rows, .. } = *graph.node(inp);
    assert_eq!(n_rows, graph.n_tokens, "all rows enter");
    let mut rw = Rewrite::new(graph);
    let positions = rw.b.push_sized(Op::Positions, &[], 1, n_rows, graph.node(graph.positions).name);
    rw.b.set_layer(Some(cut));
    let residual = rw.b.push_sized(Op::Residual, &[], n_feat, n_rows, graph.node(inp).name);
    rw.map.extend([(graph.positions, positions), (inp, residual)]);
    if let Some(tokens) = graph.tokens().filter(|t| graph.nodes[inp.index() + 1..].iter().any(|n| n.src.contains(t))) {
        let node = graph.node(tokens);
        let again = rw.b.push_sized(Op::Tokens, &[], 1, n_rows, node.name);
        rw.map.insert(tokens, again);
    }
    rw.skip_through(inp);
    rw.copy_through(NodeId(graph.nodes.len() as u32 - 1));
    let anchors = (cut..graph.layers.len()).map(|layer| rw.copied_anchors(layer)).collect();
    Graph { first_layer: cut, ..rw.finish(anchors) }
}
