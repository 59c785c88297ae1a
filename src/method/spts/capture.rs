//! The rewrite behind calibration and evaluation: a dense prefill whose inner values reach the host as it passes them.

use super::attention_probe::{ProbeSettings, insert_attention_probes};
use super::schedule::{Probe, Selection};
use crate::graph::ir::*;
use crate::graph::rewrite::Rewrite;
use crate::method::{Held, LayerBudget};

/// The values of some layers that a graph hands to the host.
#[derive(Clone, Debug)]
pub struct Capture<'a> {
    /// Layers, ascending.
    pub layers: &'a [usize],
    /// Values of each of them.
    pub taps: &'a [Tap],
    /// How [`Tap::ProbeScores`] are made.
    pub probe: Probe,
}

/// Puts an [`Op::Capture`] beside the values asked for. What the model computes is unchanged.
pub fn insert_captures(graph: &Graph, capture: &Capture) -> Graph {
    if !capture.taps.contains(&Tap::ProbeScores) {
        return beside_values(graph, capture);
    }
    let n = graph.n_tokens;
    // A budget of all candidates: the layer gains scores, and its attention stays whole.
    let budgets: Vec<LayerBudget> = (0..graph.layers.len())
        .map(|l| LayerBudget { probe: capture.layers.contains(&l), ..LayerBudget::dense(n) })
        .collect();
    let probe = ProbeSettings {
        queries: capture.probe.queries.min(n),
        held: Held { first: 0, last: capture.probe.queries.min(n) },
        join: capture.probe.join,
        carry: capture.probe.carry,
        pool: capture.probe.pool,
        selection: Selection::Probe,
        forced: false,
    };
    beside_values(&insert_attention_probes(graph, &budgets, &probe), capture)
}

fn beside_values(graph: &Graph, capture: &Capture) -> Graph {
    let mut rw = Rewrite::new(graph);
    let mut anchors = Vec::with_capacity(graph.layers.len());
    for (layer, a) in graph.layers.iter().enumerate() {
        let taps = if capture.layers.contains(&layer) { capture.taps } else { &[] };
        for &tap in taps {
            let (value, name) = match tap {
                Tap::ProbeScores => (a.scores.expect("a probed layer has scores"), "scores_captured"),
                Tap::ProxyNorm => (a.ffn_norm, "proxy_norm_captured"),
                Tap::FfnHidden => (a.ffn_hidden.expect("an FFN that is not fused"), "ffn_hidden_captured"),
                Tap::FfnOutput => (a.ffn_out, "ffn_out_captured"),
            };
            rw.copy_through(value);
            rw.b.set_layer(Some(layer));
            let mut seen = rw.map[&value];
            if tap == Tap::ProxyNorm {
                seen = rw.b.push(Op::ProxyNorm { layer, act: a.act, norm: None }, &[seen], "proxy_norm");
            }
            rw.b.push(Op::Capture { layer, tap }, &[seen], name);
        }
        rw.copy_through(a.out);
        anchors.push(rw.copied_anchors(layer));
    }
    rw.finish(anchors)
}
