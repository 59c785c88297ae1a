//! Pass 2, LTP (low-rank transformation probing): lets each FFN work only on the candidates where its output is large.
//!
//! In every probing layer, before:
//! ```text
//! out = ffn_inp + ffn(ffn_inp)
//! ```
//! after:
//! ```text
//! C   = || proxy(ffn_norm(ffn_inp)) ||            low-rank estimate of the FFN's output norm
//! B   = top_k(C * S, M), last tokens always in    S: the same layer's attention probe
//! out = ffn_inp with ffn(ffn_inp[B]) added to the rows B
//! ```
//! Without proxies B = top_k(S, M). The proxy's output is never added to the residual stream. A recurrent layer has no probe: its S
//! is that of the last layer that has one.

use std::collections::HashMap;

use super::attention_probe::ProbeSettings;
use crate::graph::ir::*;
use crate::graph::rewrite::Rewrite;
use crate::method::LayerBudget;

/// Inserts the FFN selection of every layer that has probe scores and a budget below its candidates: by C * S where the budget
/// has a proxy, by S alone elsewhere.
pub fn insert_ffn_proxies(graph: &Graph, budgets: &[LayerBudget], probe: &ProbeSettings) -> Graph {
    let mut rw = Rewrite::new(graph);
    let mut anchors = Vec::with_capacity(graph.layers.len());
    let mut last_scores = None;
    for (layer, a) in graph.layers.iter().enumerate() {
        let m = budgets[layer].active_ffn;
        last_scores = a.scores.or(last_scores);
        // Layers with windows have none, and neither do those behind the last stage.
        let scores = if a.attention().is_some() { a.scores } else { last_scores };
        let selects = scores.is_some() && (m < budgets[layer].candidates || probe.forced);
        rw.copy_through(if selects { a.ffn_inp } else { a.out });
        if !selects {
            anchors.push(rw.copied_anchors(layer));
            continue;
        }
        rw.b.set_layer(Some(layer));
        let ffn_inp = rw.map[&a.ffn_inp];
        let mut scores = rw.map[&scores.expect("checked above")];
        if budgets[layer].proxy {
            let y = rw.recompute(a.ffn_norm);
            let norm = rw.b.push(Op::ProxyNorm { layer, act: a.act, norm: None }, &[y], "proxy_norm");
            scores = rw.b.push(Op::Mul, &[norm, scores], "ffn_scores");
        }
        let active = rw.b.push(probe.held.top(m), &[scores], "active_ffn");
        let inp_active = rw.b.push(Op::GetRows, &[ffn_inp, active], "ffn_inp_active");
        let mut subst = HashMap::from([(a.ffn_inp, inp_active)]);
        let ffn_out = rw.recompute_with(&mut subst, a.ffn_out);
        let out = rw.b.push(Op::ScatterAdd, &[ffn_inp, active, ffn_out], "l_out");
        rw.map.insert(a.ffn_sum, out);
        let ffn_norm = subst[&a.ffn_norm];
        // Without a norm it is the residual stream, which stays what it is.
        rw.map.entry(a.ffn_norm).or_insert(ffn_norm);
        rw.map.extend(a.ffn_hidden.map(|id| (id, subst[&id])));
        rw.map.insert(a.ffn_out, ffn_out);
        rw.skip_through(a.ffn_sum);
        rw.copy_through(a.out);
        anchors.push(LayerAnchors { active_ffn: Some(active), ffn_norm, ..rw.copied_anchors(layer) });
    }
    rw.finish(anchors)
}
