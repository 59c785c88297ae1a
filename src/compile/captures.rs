//! Ends a graph behind the last value that it captures.

use crate::graph::ir::*;

/// The graph without what comes behind its last capture: no head, no logits, and no layer whose result nobody reads. What the
/// last layer still computes belongs to none.
///
/// # Panics
/// Without a capture.
pub fn end_at_captures(mut graph: Graph) -> Graph {
    let last = graph.nodes.iter().rposition(|n| matches!(n.op, Op::Capture { .. })).expect("a graph with captures");
    graph.nodes.truncate(last + 1);
    graph.layers.retain(|a| a.out.index() <= last);
    graph.hidden = graph.layers.last().map_or(graph.nodes[last].src[0], |a| a.out);
    graph.outputs = Vec::new();
    graph
}
