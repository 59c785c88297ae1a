//! Makes each gated FFN one node, for devices that compute it in one operation.

use crate::graph::ir::*;
use crate::graph::rewrite::Rewrite;

/// Puts [`Op::GatedFfn`] in place of the products and the activation of every layer's FFN, and of the factors on its rows,
/// where there are any. An FFN with biases or scales is left as it is.
pub fn fuse_gated_ffn(graph: &Graph) -> Graph {
    let mut rw = Rewrite::new(graph);
    for (layer, a) in graph.layers.iter().enumerate() {
        if let Some(ffn) = gated_ffn(graph, a) {
            rw.copy_through(a.ffn_norm);
            rw.b.set_layer(Some(layer));
            let old = graph.node(ffn.result);
            let src: Vec<NodeId> = [Some(a.ffn_norm), ffn.factors].iter().flatten().map(|s| rw.map[s]).collect();
            let fused = rw.b.push_sized(ffn.op, &src, old.n_feat, old.n_rows, old.name);
            rw.map.insert(ffn.result, fused);
            rw.skip_through(ffn.result);
        }
    }
    rw.copy_through(NodeId(graph.nodes.len() as u32 - 1));
    let anchors = (0..graph.layers.len()).map(|layer| rw.copied_anchors(layer)).collect();
    rw.finish(anchors)
}

/// An FFN that one operation can compute.
struct GatedFfn {
    op: Op,
    /// `[1, n]`, made before the FFN.
    factors: Option<NodeId>,
    /// The last node it stands for.
    result: NodeId,
}

/// The FFN of a layer, if it is `W_down (act(W_gate x) * (W_up x))` on the anchored `x` and nothing else lies in between.
fn gated_ffn(graph: &Graph, a: &LayerAnchors) -> Option<GatedFfn> {
    let weight = |id: NodeId| match graph.node(id).op {
        Op::Linear { weight, scale: None, bias: None, norm: None } => Some(weight),
        _ => None,
    };
    let source = |id: NodeId, k: usize| graph.node(id).src[k];
    let is_mul = |id: NodeId| graph.node(id).op == Op::Mul;
    let unscaled = if is_mul(a.ffn_out) { source(a.ffn_out, 0) } else { a.ffn_out };
    let down = if matches!(graph.node(unscaled).op, Op::RmsNorm { .. }) { source(unscaled, 0) } else { unscaled };
    let scales = is_mul(a.ffn_out) && down == unscaled;

    let w_down = weight(down)?;
    let glu = source(down, 0);
    let Op::Glu { act } = graph.node(glu).op else { return None };
    let [gate, up] = graph.node(glu).src[..] else { return None };
    let on_x = [gate, up].iter().all(|id| graph.node(*id).src == [a.ffn_norm]);
    let alone = down.index() == a.ffn_norm.index() + 4;
    (on_x && alone).then_some(GatedFfn {
        op: Op::GatedFfn { gate: weight(gate)?, up: weight(up)?, down: w_down, act, norm: None },
        factors: scales.then(|| source(a.ffn_out, 1)),
        result: if scales { a.ffn_out } else { down },
    })
}
