//! Makes each gated FFN one node, for devices that compute it in one operation.

use super::ir::*;
use super::rewrite::Rewrite;

/// Puts [`Op::GatedFfn`] in place of the products and the activation of every layer's FFN. An FFN with biases is left as it
/// is.
pub fn fuse_gated_ffn(graph: &Graph) -> Graph {
    let mut rw = Rewrite::new(graph);
    for (layer, a) in graph.layers.iter().enumerate() {
        if let Some((down, op)) = gated_ffn(graph, a) {
            rw.copy_through(a.ffn_norm);
            rw.b.set_layer(Some(layer));
            let old = graph.node(down);
            let fused = rw.b.push_sized(op, &[rw.map[&a.ffn_norm]], old.n_feat, old.n_rows, old.name);
            rw.map.insert(down, fused);
            rw.skip_through(down);
        }
    }
    rw.copy_through(NodeId(graph.nodes.len() as u32 - 1));
    let anchors = (0..graph.layers.len()).map(|layer| rw.copied_anchors(layer)).collect();
    rw.finish(anchors)
}

/// The FFN's last product, and the operation that stands for all of it, if the layer's FFN is
/// `W_down (act(W_gate x) * (W_up x))` on the anchored `x` and nothing else lies in between.
fn gated_ffn(graph: &Graph, a: &LayerAnchors) -> Option<(NodeId, Op)> {
    let weight = |id: NodeId| match graph.node(id).op {
        Op::Linear { weight, bias: None } => Some(weight),
        _ => None,
    };
    let down = match graph.node(a.ffn_out).op {
        Op::RmsNorm { .. } => graph.node(a.ffn_out).src[0],
        _ => a.ffn_out,
    };
    let w_down = weight(down)?;
    let glu = graph.node(down).src[0];
    let Op::Glu { act } = graph.node(glu).op else { return None };
    let [gate, up] = graph.node(glu).src[..] else { return None };
    let on_x = [gate, up].iter().all(|id| graph.node(*id).src == [a.ffn_norm]);
    let alone = down.index() == a.ffn_norm.index() + 4;
    (on_x && alone).then_some((down, Op::GatedFfn { gate: weight(gate)?, up: weight(up)?, down: w_down, act }))
}
