//! Calibration's rewrite: hands every layer's normalised FFN input to the host as the prefill passes it.

use crate::graph::ir::*;
use crate::graph::rewrite::Rewrite;

/// Puts a [`Op::Capture`] behind `ffn_norm` of every layer. What the model computes is unchanged.
pub fn capture_ffn_inputs(graph: &Graph) -> Graph {
    let mut rw = Rewrite::new(graph);
    let mut anchors = Vec::with_capacity(graph.layers.len());
    for (layer, a) in graph.layers.iter().enumerate() {
        rw.copy_through(a.ffn_norm);
        rw.b.set_layer(Some(layer));
        let captured = rw.b.push(Op::Capture { layer }, &[rw.map[&a.ffn_norm]], "ffn_norm_captured");
        rw.map.insert(a.ffn_norm, captured);
        rw.copy_through(a.out);
        anchors.push(rw.copied_anchors(layer));
    }
    rw.finish(anchors)
}
