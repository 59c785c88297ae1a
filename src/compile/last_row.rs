//! In the last layer only the last token's state is used, so only that is computed there, but for keys and values, and, where
//! ggml's kernel computes a CPU's attention, the last 64 queries. The same holds for the last layer that has keys of its own, if
//! those behind it read earlier layers' (Gemma 4): these compute the last token alone.

use std::collections::HashMap;

use crate::graph::ir::*;
use crate::graph::rewrite::Rewrite;

/// Restricts the output projection and the FFN of the last layer with keys of its own to the last row, its attention to the last
/// `queries`, and layers behind it to the last row. A layer whose attention or FFN already works on selected rows is left as it
/// is, and so is a graph of one row.
pub fn keep_last_row(graph: &Graph, queries: usize) -> Graph {
    let shares = |l: usize| graph.layers[l].attention().is_some() && graph.kept_rows(l).is_none();
    let Some(last) = (0..graph.layers.len()).rfind(|&l| !shares(l)) else {
        return graph.clone();
    };
    let a = &graph.layers[last];
    let n_rows = graph.node(a.inp).n_rows;
    if n_rows == 1 || a.active_attn.is_some() || a.active_ffn.is_some() || a.scores.is_some() {
        return graph.clone();
    }
    let queries = queries.clamp(1, n_rows);
    let mut rw = Rewrite::new(graph);
    rw.copy_through(a.inp);
    let mut anchors: Vec<LayerAnchors> = (0..last).map(|l| rw.copied_anchors(l)).collect();

    rw.b.set_layer(Some(last));
    let inp = rw.map[&a.inp];
    let (mixer, mut subst) = match &a.mixer {
        Mixer::Attention(attention) => {
            let (attention, subst) = last_queries(&mut rw, a.inp, attention, queries);
            (Mixer::Attention(attention), subst)
        }
        // A recurrence goes over all rows to reach the last one.
        Mixer::Recurrent(delta) => {
            let all = rw.recompute(*delta);
            let last = rw.b.push(Op::LastRows { rows: 1 }, &[all], "delta_last");
            let inp_last = rw.b.push(Op::LastRows { rows: 1 }, &[inp], "inp_last");
            (Mixer::Recurrent(all), HashMap::from([(a.inp, inp_last), (*delta, last)]))
        }
    };
    let tokens = last_of_tokens(&mut rw, a.out);
    subst.extend(tokens);
    anchors.push(recompute_layer(&mut rw, a, inp, mixer, subst));
    let mut position = None;
    for (layer, a) in graph.layers.iter().enumerate().skip(last + 1) {
        rw.b.set_layer(Some(layer));
        let Mixer::Attention(at) = &a.mixer else { unreachable!("a layer that shares keys has attention") };
        let attn = graph.node(at.attn);
        let pos = *position.get_or_insert_with(|| rw.b.push(Op::LastRows { rows: 1 }, &[rw.map[&attn.src[3]]], "pos_last"));
        let inp = rw.map[&a.inp];
        let mut subst = HashMap::from([(a.inp, inp), (attn.src[3], pos)]);
        subst.extend(tokens);
        let q = rw.recompute_with(&mut subst, at.q);
        let (k, v) = (rw.map[&at.k], rw.map[&at.v]);
        let new = rw.b.push(attn.op.clone(), &[q, k, v, pos, rw.map[&attn.src[4]]], attn.name);
        subst.insert(at.attn, new);
        let mixer = Mixer::Attention(AttentionAnchors { q, k, v, attn: new, ..*at });
        anchors.push(recompute_layer(&mut rw, a, inp, mixer, subst));
    }
    rw.finish(anchors)
}

/// The last token id, by the value that it stands for, if the layer that `out` leaves looks ids up.
fn last_of_tokens(rw: &mut Rewrite, out: NodeId) -> Option<(NodeId, NodeId)> {
    let looks_up = |n: &&Node| n.layer == rw.old.node(out).layer && matches!(n.op, Op::Embed { .. });
    let tokens = rw.old.nodes.iter().find(looks_up)?.src[0];
    Some((tokens, rw.b.push(Op::LastRows { rows: 1 }, &[rw.map[&tokens]], "token_last")))
}

/// Makes what a layer does behind its attention anew with what is in `subst`.
fn recompute_layer(
    rw: &mut Rewrite,
    a: &LayerAnchors,
    inp: NodeId,
    mixer: Mixer,
    mut subst: HashMap<NodeId, NodeId>,
) -> LayerAnchors {
    let out = rw.recompute_with(&mut subst, a.out);
    rw.map.insert(a.out, out);
    rw.skip_through(a.out);
    let s = |id: NodeId| subst[&id];
    LayerAnchors {
        inp,
        mixer,
        attn_out: s(a.attn_out),
        ffn_inp: s(a.ffn_inp),
        ffn_norm: s(a.ffn_norm),
        ffn_hidden: a.ffn_hidden.map(s),
        ffn_out: s(a.ffn_out),
        ffn_sum: s(a.ffn_sum),
        out,
        ..*a
    }
}

/// Makes a layer's attention for its last `queries` alone. Returns its nodes, and what stands for the layer's input and for the
/// attention where the last row is computed.
fn last_queries(
    rw: &mut Rewrite,
    old_inp: NodeId,
    a: &AttentionAnchors,
    queries: usize,
) -> (AttentionAnchors, HashMap<NodeId, NodeId>) {
    let k = rw.recompute(a.k);
    let v = rw.recompute(a.v);
    let attn = rw.old.node(a.attn);
    let (inp, pos) = (rw.map[&old_inp], rw.map[&attn.src[3]]);
    let mut subst = HashMap::new();
    let (q, new_attn) = if queries == rw.old.node(old_inp).n_rows {
        (rw.recompute(a.q), rw.recompute(a.attn))
    } else {
        let inp_last = rw.b.push(Op::LastRows { rows: queries }, &[inp], "inp_last");
        let pos_last = rw.b.push(Op::LastRows { rows: queries }, &[pos], "pos_last");
        subst = HashMap::from([(old_inp, inp_last), (attn.src[3], pos_last)]);
        let q = rw.recompute_with(&mut subst, a.q);
        (q, rw.b.push(attn.op.clone(), &[q, k, v, pos_last, pos], attn.name))
    };
    if queries == 1 {
        subst.insert(a.attn, new_attn);
    } else {
        let attn_last = rw.b.push(Op::LastRows { rows: 1 }, &[new_attn], "kqv_last");
        let inp_last = rw.b.push(Op::LastRows { rows: 1 }, &[inp], "inp_last");
        subst = HashMap::from([(old_inp, inp_last), (a.attn, attn_last)]);
    }
    (AttentionAnchors { q, k, v, attn: new_attn, ..*a }, subst)
}
