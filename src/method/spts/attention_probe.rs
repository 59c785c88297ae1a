//! Pass 1, PAP (partial attention probing): scores every candidate with the last tokens' queries and lets attention work on
//! the best alone.
//!
//! Layers that attend do; recurrent ones go over all candidates, in order. In every probing layer, before:
//! ```text
//! ffn_inp = inp + attn_out(inp)
//! ```
//! after:
//! ```text
//! k      = keys of all candidates, original positions
//! R      = probe_scores(queries of the last tokens, k)                equation 4; + carry * R of the layer before
//! S      = pool(R)
//! A      = top_k(S, M), last tokens always in, ascending
//! attn   = attention over inp[A], k[A]; only these enter the KV cache
//! ffn_inp = inp with attn_out added to the rows A                     the other rows are skipped
//! ```

use std::collections::HashMap;

use super::schedule::{Pool, Schedule, Selection};
use crate::graph::ir::*;
use crate::graph::rewrite::Rewrite;
use crate::method::{Budgets, Held, LayerBudget};

/// How candidates are scored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProbeSettings {
    /// Probing queries: the last tokens of the prompt.
    pub queries: usize,
    /// The first tokens and the last ones, the queries among these, that are always active and never pruned.
    pub held: Held,
    /// How the queries' scores are joined.
    pub join: Join,
    /// Factor on the scores of the layer before, pooling aside, which are added to a layer's own; 0: a layer's own alone.
    pub carry: f32,
    /// Pooling of the scores over neighbouring candidates.
    pub pool: Pool,
    /// By probe, or at random as a control.
    pub selection: Selection,
    /// Gather even where every candidate is active (for tests).
    pub forced: bool,
}

impl ProbeSettings {
    /// A schedule's, for a prompt of these budgets.
    pub fn of(schedule: &Schedule, budgets: &Budgets) -> ProbeSettings {
        ProbeSettings {
            queries: budgets.queries,
            held: budgets.held,
            join: schedule.probe.join,
            carry: schedule.probe.carry,
            pool: schedule.probe.pool,
            selection: schedule.selection,
            forced: budgets.forced,
        }
    }
}

impl Held {
    /// The operation that selects the `m` best rows, with these always among them.
    pub fn top(self, m: usize) -> Op {
        Op::TopK { m, first: self.first, forced: self.last }
    }
}

/// Inserts the probes of every layer whose budget asks for one. A layer with `active_attn == candidates` and a probe keeps
/// its attention whole and only gains scores.
pub fn insert_attention_probes(graph: &Graph, budgets: &[LayerBudget], probe: &ProbeSettings) -> Graph {
    let mut rw = Rewrite::new(graph);
    let mut anchors = Vec::with_capacity(graph.layers.len());
    let mut carried = None;
    for (layer, a) in graph.layers.iter().enumerate() {
        if !budgets[layer].probe || a.attention().is_none() {
            rw.copy_through(a.out);
            anchors.push(rw.copied_anchors(layer));
            continue;
        }
        rw.copy_through(a.inp);
        let mut new = probe_layer(&mut rw, layer, &budgets[layer], probe, &mut carried);
        rw.copy_through(a.out);
        let m = |id: NodeId| rw.map[&id];
        new.ffn_norm = m(a.ffn_norm);
        new.ffn_hidden = a.ffn_hidden.map(m);
        new.ffn_out = m(a.ffn_out);
        new.ffn_sum = m(a.ffn_sum);
        new.out = m(a.out);
        anchors.push(new);
    }
    rw.finish(anchors)
}

/// `carried`: the sum of scores that the last probing layer hands on, and then this one's.
fn probe_layer(
    rw: &mut Rewrite,
    layer: usize,
    budget: &LayerBudget,
    probe: &ProbeSettings,
    carried: &mut Option<NodeId>,
) -> LayerAnchors {
    let a = rw.old.layers[layer];
    let Some(&old) = a.attention() else { unreachable!("a layer that probes has attention") };
    let Op::Attention { heads, .. } = rw.old.node(old.attn).op else {
        unreachable!("the anchor of a layer's attention is an attention node");
    };
    let old_positions = rw.old.node(old.attn).src[3];
    rw.b.set_layer(Some(layer));
    let inp = rw.map[&a.inp];
    let positions = rw.map[&old_positions];
    let n = rw.b.node(inp).n_rows;
    let queries = probe.queries.min(n);

    let k = rw.recompute(old.k);
    let scores = match probe.selection {
        Selection::Probe => {
            let inp_probe = rw.b.push(Op::LastRows { rows: queries }, &[inp], "probe_inp");
            let pos_probe = rw.b.push(Op::LastRows { rows: queries }, &[positions], "probe_pos");
            let mut subst = HashMap::from([(a.inp, inp_probe), (old_positions, pos_probe)]);
            let q = rw.recompute_with(&mut subst, old.q);
            let own = rw.b.push(Op::ProbeScores { heads, join: probe.join }, &[q, k], "probe_scores");
            let scores = match carried.filter(|_| probe.carry != 0.0) {
                Some(before) => rw.b.push(Op::AddScaled { factor: probe.carry }, &[own, before], "probe_carried"),
                None => own,
            };
            *carried = Some(scores);
            match probe.pool {
                Pool::None => scores,
                pool => rw.b.push(Op::PoolScores { pool }, &[scores], "probe_pooled"),
            }
        }
        Selection::Random { seed } => rw.b.push(Op::RandomScores { seed, layer }, &[inp], "random_scores"),
    };

    let mut new = LayerAnchors { inp, scores: Some(scores), ..a };
    if budget.active_attn >= budget.candidates && !probe.forced {
        // Attention stays whole: copy its region as it is, on top of the keys already made.
        new.attn_out = rw.recompute(a.attn_out);
        new.ffn_inp = rw.recompute(a.ffn_inp);
        new.mixer = a.mixer.map(|id| rw.map[&id]);
    } else {
        let active = rw.b.push(probe.held.top(budget.active_attn), &[scores], "active_attn");
        let inp_active = rw.b.push(Op::GetRows, &[inp, active], "inp_active");
        let pos_active = rw.b.push(Op::GetRows, &[positions, active], "pos_active");
        let k_active = rw.b.push(Op::GetRows, &[k, active], "k_active");
        let mut subst = HashMap::from([(a.inp, inp_active), (old_positions, pos_active), (old.k, k_active)]);
        new.attn_out = rw.recompute_with(&mut subst, a.attn_out);
        new.mixer = a.mixer.map(|id| subst[&id]);
        new.active_attn = Some(active);
        new.ffn_inp = rw.b.push(Op::ScatterAdd, &[inp, active, new.attn_out], "ffn_inp");
        rw.map.insert(a.ffn_inp, new.ffn_inp);
    }
    rw.skip_through(a.ffn_inp);
    new
}
