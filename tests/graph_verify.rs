//! The verifier accepts what architectures and passes make, and rejects a graph in which any one of its invariants is broken.

mod reference;
mod runtime;
mod support;

use runtime::Pair;
use spts::BlockShare;
use spts::DeltaHeads;
use spts::compile::fuse_ffn::fuse_gated_ffn;
use spts::compile::keep_normalized::keep_normalized;
use spts::graph::ir::{DType, Mixer, Node};
use spts::graph::verify::{VerifyError, check as verify};
use spts::graph::{Graph, NodeId, Op};
use spts::method::spts::attention_probe::ProbeSettings;
use spts::method::spts::passes::skip_and_prune;
use spts::method::spts::schedule::{Pool, Probe, Reach};
use spts::model::shape::LayerKind;
use support::tiny::Tiny;

const N: usize = 40;

/// A graph with every operation of SPTS but the random scores.
fn graph() -> Graph {
    let pair = Pair::new(Tiny::named("qwen2"));
    let schedule = runtime::schedule(&[(2, 20, 5)], Probe { queries: 3, pool: Pool::Max(3), ..Probe::PAPER });
    let budgets = schedule.resolve(4, N, &|_| LayerKind::Full, Reach::AboveFirstBudget).expect("a schedule that fits");
    let graph = skip_and_prune(&pair.model.graph(N, pair.n_ctx), &budgets, &ProbeSettings::of(&schedule, &budgets))
        .expect("an intact graph");
    verify(&graph).expect("an intact graph");
    graph
}

/// The first node for which `is` holds.
fn first(g: &Graph, is: impl Fn(&Node) -> bool) -> NodeId {
    NodeId(g.nodes.iter().position(is).expect("such a node") as u32)
}

fn op(g: &Graph, name: &str) -> NodeId {
    first(g, |n| n.op.name() == name)
}

/// A dense graph of a hybrid: delta nets in most layers, gated attention in the others.
fn hybrid() -> Graph {
    let pair = Pair::new(Tiny::named("qwen35"));
    let graph = pair.model.graph(N, pair.n_ctx);
    verify(&graph).expect("an intact graph");
    graph
}

/// The same as GPUs compute it that multiply rows of 16 bits.
fn graph_for_gpu() -> Graph {
    let graph = keep_normalized(&fuse_gated_ffn(&graph()), &|_, _| true);
    verify(&graph).expect("an intact graph");
    graph
}

/// Breaks a graph at the node that `change` returns; the verifier must name that node and say why.
#[track_caller]
fn rejects(why: &str, change: impl FnOnce(&mut Graph) -> NodeId) -> VerifyError {
    rejects_in(graph(), why, change)
}

#[track_caller]
fn rejects_in(mut g: Graph, why: &str, change: impl FnOnce(&mut Graph) -> NodeId) -> VerifyError {
    let node = change(&mut g);
    let error = verify(&g).expect_err("a broken graph was accepted");
    assert_eq!(error.node, node, "{error}");
    let message = error.to_string();
    assert!(message.contains(why) && !message.contains('\n'), "{message:?} does not say {why:?}");
    error
}

/// Breaks the first node of an operation.
#[track_caller]
fn rejects_op(name: &str, why: &str, change: impl FnOnce(&mut Node, &dyn Fn(&str) -> NodeId)) {
    rejects(why, |g| {
        let id = op(g, name);
        let before = g.clone();
        change(&mut g.nodes[id.index()], &|name| op(&before, name));
        id
    });
}

#[test]
fn invariant_1_sources_are_earlier_nodes() {
    rejects_op("linear", "not an earlier node", |n, find| n.src[0] = find("linear"));
    rejects_op("rms_norm", "not an earlier node", |n, find| n.src[0] = find("top_k"));
    rejects_op("add", "not an earlier node", |n, _| n.src[1] = NodeId(u32::MAX));
    rejects_op("add", "1 sources, expected 2", |n, _| n.src.truncate(1));
    rejects_op("attention", "6 sources, expected 5", |n, find| n.src.push(find("positions")));
}

#[test]
fn invariant_2_element_types_fit() {
    for name in ["embed", "linear", "rope", "attention", "glu", "add", "scatter_add", "probe_scores", "mul", "prune"] {
        rejects_op(name, "element type", |n, _| n.dtype = DType::I32);
    }
    for name in ["tokens", "positions", "top_k"] {
        rejects_op(name, "element type", |n, _| n.dtype = DType::F32);
    }
    rejects_op("get_rows", "element type", |n, _| n.dtype = DType::I32);
    // Positions as a hidden state, and a hidden state as positions.
    rejects_op("linear", "element type", |n, find| n.src[0] = find("positions"));
    rejects_op("rope", "element type", |n, find| n.src[1] = find("rms_norm"));
    rejects("element type", |g| {
        let (id, scores) = (op(g, "prune"), op(g, "mul"));
        g.nodes[id.index()].src[1] = scores;
        id
    });
    rejects("element type", |g| {
        let (id, indices) = (op(g, "mul"), op(g, "positions"));
        g.nodes[id.index()].src[0] = indices;
        id
    });
}

#[test]
fn invariant_3_shapes_fit() {
    rejects_op("tokens", "empty", |n, _| n.n_rows = 0);
    rejects_op("tokens", "one feature", |n, _| n.n_feat = 2);
    rejects_op("embed", "one token id a row", |n, _| n.n_rows += 1);
    rejects_op("rms_norm", "groups divide the features", |n, _| {
        let Op::RmsNorm { group, .. } = &mut n.op else { unreachable!() };
        *group = 5;
    });
    rejects_op("rms_norm", "groups divide the features", |n, _| {
        let Op::RmsNorm { group, .. } = &mut n.op else { unreachable!() };
        *group = 0;
    });
    rejects_op("linear", "rows as its source", |n, _| n.n_rows -= 1);
    rejects_op("rope", "heads divide the features", |n, _| {
        let Op::Rope { head_dim, .. } = &mut n.op else { unreachable!() };
        *head_dim = 3;
    });
    for n_rot in [7, 10] {
        rejects_op("rope", "rotated dimensions are even and within the head", |n, _| {
            let Op::Rope { rope, .. } = &mut n.op else { unreachable!() };
            rope.n_rot = n_rot;
        });
    }
    rejects("one position a row", |g| {
        // Positions of the probing queries for the keys of all candidates.
        let probe_pos = first(g, |n| n.name == "probe_pos");
        let id = NodeId(
            (probe_pos.0 + 1..g.nodes.len() as u32)
                .find(|i| matches!(g.nodes[*i as usize].op, Op::Rope { .. }) && g.nodes[*i as usize].n_rows != 3)
                .expect("a rope of more rows"),
        );
        g.nodes[id.index()].src[1] = probe_pos;
        id
    });
    for (n_head, n_head_kv) in [(3, 2), (4, 0), (8, 2), (4, 4)] {
        rejects("heads", |g| {
            let id = op(g, "attention");
            let Op::Attention { heads, .. } = &mut g.nodes[id.index()].op else { unreachable!() };
            (heads.n_head, heads.n_head_kv) = (n_head, n_head_kv);
            id
        });
    }
    for (share, width) in [(0.0, None), (1.0, None), (f32::NAN, None), (0.5, Some(3))] {
        rejects("a share of the keys", |g| {
            let id = op(g, "attention");
            let Op::Attention { window, blocks, .. } = &mut g.nodes[id.index()].op else { unreachable!() };
            (*window, *blocks) = (width, Some(BlockShare::Mass(share)));
            id
        });
    }
    rejects_op("glu", "sources of the same shape", |n, _| n.n_feat += 1);
    rejects_op("add", "sources of the same shape", |n, _| n.n_rows -= 1);
    rejects_op("mul", "sources of the same shape", |n, _| n.n_feat = 2);
    rejects_op("get_rows", "rows chosen by top_k", |n, _| n.n_rows -= 1);
    rejects_op("get_rows", "rows chosen by top_k", |n, _| n.n_feat += 1);
    rejects_op("scatter_add", "an addend row for each index", |n, find| n.src[2] = find("embed"));
    rejects_op("last_rows", "no more rows than there are", |n, _| {
        n.op = Op::LastRows { rows: N + 1 };
        n.n_rows = N + 1;
    });
    rejects_op("last_rows", "no more rows than there are", |n, _| n.n_rows += 1);
    rejects_op("last_rows", "rows of its source", |n, _| n.n_feat += 1);
    rejects_op("probe_scores", "a score for every candidate", |n, _| n.n_rows -= 1);
    rejects_op("probe_scores", "queries and keys of all heads", |n, _| n.src.swap(0, 1));
    rejects_op("pool_scores", "one score a row", |n, _| n.n_rows -= 1);
    rejects_op("proxy_norm", "one norm a row", |n, _| n.n_feat = 2);
    rejects_op("top_k", "one score a row", |n, find| n.src[0] = find("rms_norm"));
}

/// Breaks the first node of an operation of a hybrid.
#[track_caller]
fn rejects_in_hybrid(name: &str, why: &str, change: impl FnOnce(&mut Node)) {
    rejects_in(hybrid(), why, |g| {
        let id = op(g, name);
        change(&mut g.nodes[id.index()]);
        id
    });
}

#[test]
fn features_are_within_their_groups() {
    fn op(change: impl FnOnce(&mut usize, &mut usize, &mut usize)) -> impl FnOnce(&mut Node) {
        move |n| {
            let Op::Features { group, start, len } = &mut n.op else { unreachable!() };
            change(group, start, len);
        }
    }
    rejects_in_hybrid("features", "groups divide the features", op(|group, _, _| *group = 0));
    rejects_in_hybrid("features", "groups divide the features", op(|group, _, _| *group *= 1000));
    rejects_in_hybrid("features", "features within a group", op(|_, _, len| *len = 0));
    rejects_in_hybrid("features", "features within a group", op(|group, start, _| *start = *group));
    rejects_in_hybrid("features", "so many features of each group", op(|_, _, len| *len -= 1));
    rejects_in_hybrid("features", "so many features of each group", |n| n.n_feat += 1);
    rejects_in_hybrid("features", "so many features of each group", |n| n.n_rows -= 1);
    rejects_in_hybrid("sigmoid", "shape of its source", |n| n.n_feat += 1);
}

#[test]
fn delta_nets_have_what_their_heads_need() {
    fn heads(change: impl FnOnce(&mut DeltaHeads)) -> impl FnOnce(&mut Node) {
        move |n| {
            let Op::DeltaNet { heads, .. } = &mut n.op else { unreachable!() };
            change(heads);
        }
    }
    rejects_in_hybrid("delta_net", "a multiple of key heads", heads(|h| h.n_head_k = 0));
    rejects_in_hybrid("delta_net", "a multiple of key heads", heads(|h| h.n_head_v = h.n_head_k + 1));
    rejects_in_hybrid("delta_net", "a convolution over some rows", heads(|h| h.head_dim = 0));
    rejects_in_hybrid("delta_net", "a convolution over some rows", heads(|h| h.d_conv = 1));
    rejects_in_hybrid("delta_net", "queries, keys and values of all heads", heads(|h| h.n_head_v *= 2));
    rejects_in_hybrid("delta_net", "queries, keys and values of all heads", |n| n.src[0] = n.src[1]);
    rejects_in_hybrid("delta_net", "two gates for each value head", |n| n.src[1] = n.src[0]);
    rejects_in_hybrid("delta_net", "rows as its sources", |n| n.n_rows -= 1);
    rejects_in(hybrid(), "delta nets, expected the anchored one", |g| {
        let recurrent = |m: &Mixer| matches!(m, Mixer::Recurrent(_));
        let layer = g.layers.iter().position(|l| recurrent(&l.mixer)).expect("a recurrent layer");
        let id = g.layers[layer].mixer.node();
        let Op::DeltaNet { layer: of, .. } = &mut g.nodes[id.index()].op else { unreachable!() };
        *of = layer + 1;
        id
    });
}

/// In this model the layers 6 to 8 read the keys of the layers 4 and 5.
#[test]
fn shared_keys_are_those_of_the_layer_that_is_named() {
    let shared = || {
        let pair = Pair::new(Tiny::named("gemma4-small"));
        let graph = pair.model.graph(N, pair.n_ctx);
        verify(&graph).expect("an intact graph");
        graph
    };
    rejects_in(shared(), "not the keys and values of layer 5, whose cache it reads", |g| {
        let (id, other) = (g.layers[8].mixer.node(), g.layers[3].mixer.node());
        let keys = g.node(other).src[1];
        g.nodes[id.index()].src[1] = keys;
        id
    });
    rejects_in(shared(), "layer 5 has 2 attention nodes, expected the anchored one", |g| {
        let Mixer::Attention(a) = &mut g.layers[8].mixer else { unreachable!() };
        a.cache = 8;
        g.layers[5].mixer.node()
    });
    rejects_in(shared(), "shape of its source", |g| {
        let id = op(g, "scale_by");
        g.nodes[id.index()].n_rows -= 1;
        id
    });
    for cap in [0.0, -1.0, f32::NAN] {
        rejects_in(shared(), "its source within a positive number", |g| {
            let id = op(g, "softcap");
            g.nodes[id.index()].op = Op::Softcap { cap };
            id
        });
    }
}

#[test]
fn normalised_rows_go_where_they_are_wanted() {
    let rejects_op = |name: &str, why: &str, change: &dyn Fn(&mut Node)| {
        rejects_in(graph_for_gpu(), why, |g| {
            let id = op(g, name);
            change(&mut g.nodes[id.index()]);
            id
        });
    };
    let unweighted = |n: &mut Node| match &mut n.op {
        Op::GatedFfn { norm, .. } | Op::ProxyNorm { norm, .. } => *norm = None,
        _ => unreachable!(),
    };
    rejects_op("proxy_norm", "has the element type Bf16", &unweighted);
    rejects_in(graph_for_gpu(), "has the element type Bf16", |g| {
        let id = first(g, |n| matches!(n.op, Op::GatedFfn { norm: Some(_), .. }));
        unweighted(&mut g.nodes[id.index()]);
        id
    });
    rejects_in(graph_for_gpu(), "a factor a row", |g| {
        let (id, other) = (first(g, |n| n.name == "ffn_out_active"), op(g, "probe_scores"));
        g.nodes[id.index()].src[1] = other;
        id
    });
    rejects_op("normalize", "not the operation's element type", &|n| n.dtype = DType::F32);
    rejects_op("normalize", "shape of its source", &|n| n.n_rows -= 1);
    rejects_op("normalize_rows", "rows of one value", &|n| n.n_rows -= 1);
    // Rows that nobody has changed, or others than those that were.
    rejects_in(graph_for_gpu(), "the rows that a scatter-add has changed", |g| {
        let (id, embed) = (op(g, "normalize_rows"), op(g, "embed"));
        g.nodes[id.index()].src[2] = embed;
        id
    });
    rejects_in(graph_for_gpu(), "reads", |g| {
        // After a row was normalised anew, the rows before it.
        let (changed, before) = (op(g, "normalize_rows"), op(g, "normalize"));
        let later = NodeId(
            (changed.0 + 1..g.nodes.len() as u32)
                .find(|i| g.nodes[*i as usize].src.first() == Some(&changed))
                .expect("a reader"),
        );
        g.nodes[later.index()].src[0] = before;
        later
    });
}

#[test]
fn invariant_4_selections_are_possible() {
    for (new_m, first, new_forced) in [(N + 1, 0, 3), (20, 0, 0), (20, 0, 21), (20, 18, 3)] {
        rejects_op("top_k", "0 < forced, first + forced <= m <= candidates", |n, _| {
            n.op = Op::TopK { m: new_m, first, forced: new_forced };
            n.n_rows = new_m;
        });
    }
    rejects_op("top_k", "0 < forced, first + forced <= m <= candidates", |n, _| n.n_rows -= 1);
}

#[test]
fn invariant_5_a_layer_has_one_attention_over_its_keys_and_values() {
    rejects("as many values as keys", |g| {
        // Values of the probing queries alone.
        let id = g.layers[1].mixer.node();
        let v = g.node(id).src[2];
        let few = first(g, |n| n.name == "probe_inp");
        let few_rows = g.node(few).n_rows;
        let node = &mut g.nodes[v.index()];
        (node.src, node.n_rows) = (vec![few], few_rows);
        id
    });
    rejects("positions of queries and keys", |g| {
        let id = g.layers[1].mixer.node();
        g.nodes[id.index()].src[4] = op(g, "positions");
        id
    });
    rejects("layer 0 has 0 attention nodes, expected the anchored one", |g| {
        let id = g.layers[0].mixer.node();
        let Op::Attention { layer, .. } = &mut g.nodes[id.index()].op else { unreachable!() };
        *layer = 1;
        id
    });
    rejects("layer 0 has 1 attention nodes, expected the anchored one", |g| {
        g.layers[0].mixer = g.layers[1].mixer;
        g.layers[1].mixer.node()
    });
    rejects("layer 0 has 1 delta nets, expected the anchored one", |g| {
        g.layers[0].mixer = Mixer::Recurrent(g.layers[0].mixer.node());
        g.layers[0].mixer.node()
    });
    rejects("layer 4 has no anchors", |g| {
        let id = g.layers[0].mixer.node();
        let Op::Attention { layer, .. } = &mut g.nodes[id.index()].op else { unreachable!() };
        *layer = 4;
        id
    });
    rejects("layer 3 has 2 attention nodes, expected the anchored one", |g| {
        let anchored = g.layers[3].mixer.node();
        let copy = g.node(anchored).clone();
        g.nodes.push(copy);
        anchored
    });
}

#[test]
fn invariant_6_indices_come_from_top_k() {
    // Indices of the right type and count, in no order that anyone promises.
    let disorder = |g: &mut Graph, chosen: NodeId| {
        let (rows, positions) = (g.node(chosen).n_rows, op(g, "positions"));
        let node = &mut g.nodes[chosen.index()];
        (node.op, node.src, node.dtype) = (Op::LastRows { rows }, vec![positions], DType::I32);
    };
    rejects("rows chosen by top_k", |g| {
        let rows = op(g, "get_rows");
        disorder(g, g.node(rows).src[1]);
        rows
    });
    rejects("rows chosen by top_k", |g| {
        let (member, pruned) = (op(g, "is_member"), op(g, "prune"));
        disorder(g, member);
        g.nodes[pruned.index()].src[1] = member;
        pruned
    });
    for i in [0, 1] {
        rejects("an answer for each index chosen by top_k", |g| {
            let member = op(g, "is_member");
            let chosen = g.node(member).src[i];
            disorder(g, chosen);
            first(g, |n| n.src.contains(&chosen))
        });
    }
    rejects("an addend row for each index", |g| {
        let (id, positions) = (op(g, "scatter_add"), first(g, |n| n.name == "pos_active"));
        g.nodes[id.index()].src[1] = positions;
        id
    });
}

#[test]
fn invariant_7_nothing_reads_what_was_scattered_into() {
    let error = rejects("after it was scattered into", |g| {
        // The residual stream before the second layer's attention, read again by the norm of the FFN behind it.
        let scatter = op(g, "scatter_add");
        let stale = g.node(scatter).src[0];
        let reader = NodeId(
            (scatter.0 + 1..g.nodes.len() as u32)
                .find(|i| g.nodes[*i as usize].src.contains(&scatter) && g.nodes[*i as usize].n_rows == N)
                .expect("a reader of all rows"),
        );
        for s in &mut g.nodes[reader.index()].src {
            if *s == scatter {
                *s = stale;
            }
        }
        reader
    });
    assert!(error.what.starts_with("reads %"), "{error}");
}

#[test]
fn invariant_8_logits_have_one_row() {
    rejects("logits of 15 rows, expected 1", |g| {
        g.outputs[0] = g.layers[3].out;
        g.outputs[0]
    });
}
