//! The printed graphs of tiny models before and after rewriting, against committed text.
//!
//! `SPTS_WRITE_GRAPHS=1 cargo test --test graph_snapshots` writes them anew (tests/data/graphs); read the difference before
//! committing it.

mod reference;
mod runtime;
mod support;

use std::path::PathBuf;

use runtime::Pair;
use spts::compile::fuse_ffn::fuse_gated_ffn;
use spts::compile::keep_normalized::keep_normalized;
use spts::compile::last_row::keep_last_row;
use spts::graph::Graph;
use spts::graph::ir::{Node, Op, Tap};
use spts::graph::print::print;
use spts::graph::verify::check as verify;
use spts::method::spts::attention_probe::ProbeSettings;
use spts::method::spts::capture::{Capture, insert_captures};
use spts::method::spts::passes::skip_and_prune;
use spts::method::spts::schedule::{Join, Pool, Probe, Reach, Schedule};
use spts::model::shape::LayerKind;
use support::tiny::Tiny;

const N: usize = 40;

const PROBE: Probe = Probe { queries: 4, pool: Pool::Max(3), ..Probe::PAPER };

/// Layer 0 dense, one stage with a prune, one that ends before the last layer.
fn schedule(n_layer: usize) -> Schedule {
    runtime::schedule(&[(1, 24, 4), (n_layer - 2, 12, 2)], PROBE)
}

/// Compares with, or writes, `tests/data/graphs/NAME.txt`.
fn check(pair: &Pair, graph: &Graph, name: &str) {
    let text = print(graph, |w| {
        let named = &pair.model.weight(w).name;
        named.strip_suffix(".weight").unwrap_or(named).to_owned()
    });
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/graphs/{name}.txt"));
    if std::env::var_os("SPTS_WRITE_GRAPHS").is_some() {
        std::fs::write(&path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        return;
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    for (i, (got, want)) in text.lines().zip(expected.lines()).enumerate() {
        assert_eq!(got, want, "line {} of {name}.txt (SPTS_WRITE_GRAPHS=1 writes it anew)", i + 1);
    }
    assert_eq!(text.lines().count(), expected.lines().count(), "lines of {name}.txt");
}

fn snapshots(name: &str, schedule: &Schedule) {
    let pair = Pair::new(Tiny::named(name));
    let dense = pair.model.graph(N, pair.n_ctx);
    check(&pair, &dense, &format!("{name}-dense"));
    check(&pair, &keep_last_row(&dense, 1), &format!("{name}-prefill"));
    let shape = pair.model.shape();
    let budgets = schedule
        .resolve(shape.n_layer, N, &|l| shape.layer_kind(l), Reach::AboveFirstBudget)
        .expect("a schedule that fits");
    let skipping = skip_and_prune(&dense, &budgets, &ProbeSettings::of(schedule, &budgets))
        .expect("passes that keep the invariants");
    check(&pair, &keep_last_row(&skipping, 1), &format!("{name}-spts"));
    for graph in [&dense, &skipping] {
        fuses_every_ffn(&keep_last_row(graph, 1));
    }
    // As GPUs compute it that multiply rows of 16 bits.
    let fused = fuse_gated_ffn(&keep_last_row(&skipping, 1));
    let normalized = keep_normalized(&fused, &|_, _| true);
    verify(&normalized).expect("a graph that keeps the invariants");
    check(&pair, &normalized, &format!("{name}-spts-gpu"));
    assert_eq!(keep_normalized(&fused, &|_, _| false), fused, "without products that take them, no rows are kept");
    let dense = fuse_gated_ffn(&keep_last_row(&dense, 1));
    assert_eq!(keep_normalized(&dense, &|_, _| true), dense, "all rows change in every layer");
}

/// Each layer's FFN becomes one node; its shape, and the graph around it, stay.
fn fuses_every_ffn(graph: &Graph) {
    let fused = fuse_gated_ffn(graph);
    verify(&fused).expect("a graph that keeps the invariants");
    let of = |graph: &Graph, wanted: fn(&Op) -> bool| graph.nodes.iter().filter(|n| wanted(&n.op)).count();
    let n_layer = graph.layers.len();
    assert_eq!(of(&fused, |op| matches!(op, Op::GatedFfn { .. })), n_layer);
    assert_eq!(of(&fused, |op| matches!(op, Op::Glu { .. })), 0);
    // Factors on the rows of the last product become the FFN's own; behind a norm they stay.
    let by_factors = |n: &&Node| n.name == "ffn_out_active" && matches!(graph.node(n.src[0]).op, Op::Linear { .. });
    let absorbed = graph.nodes.iter().filter(by_factors).count();
    assert_eq!(fused.nodes.len(), graph.nodes.len() - 3 * n_layer - absorbed);
    for (new, old) in fused.layers.iter().zip(&graph.layers) {
        let shape = |graph: &Graph, id| (graph.node(id).n_feat, graph.node(id).n_rows, graph.node(id).name);
        assert_eq!(shape(&fused, new.ffn_out), shape(graph, old.ffn_out));
        assert_eq!(shape(&fused, new.out), shape(graph, old.out));
    }
}

#[test]
fn llama() {
    snapshots("llama", &schedule(5));
}

#[test]
fn qwen2_scored_without_proxies_or_pool() {
    let paper = Schedule { use_proxy: false, probe: Probe::PAPER, ..schedule(4) };
    snapshots("qwen2", &paper);
}

/// Whatever the paper does without: carried and joined scores, chunks, tokens that stay, a stage that prunes nothing.
#[test]
fn llama_with_every_option() {
    let pair = Pair::new(Tiny::named("llama"));
    let probe = Probe { join: Join::Max, pool: Pool::Chunks(6), carry: 0.7, ..PROBE };
    let mut schedule =
        Schedule { sinks: 2, recent: 6, probe, ..runtime::schedule(&[(1, 24, 0), (2, 20, 4), (3, 12, 2)], probe) };
    schedule.stages[0].cut = None;
    let budgets = schedule.resolve(5, N, &|_| LayerKind::Full, Reach::AboveFirstBudget).expect("a schedule that fits");
    let dense = pair.model.graph(N, pair.n_ctx);
    let skipping = skip_and_prune(&dense, &budgets, &ProbeSettings::of(&schedule, &budgets))
        .expect("passes that keep the invariants");
    check(&pair, &skipping, "llama-options-spts");
}

/// Only the sixth layer is global: there the stage skips and prunes; the last one has a window over what is left.
#[test]
fn gemma3() {
    let one_stage = runtime::schedule(&[(5, 24, 4)], PROBE);
    snapshots("gemma3", &one_stage);
}

/// Layers 1 and 3 skip; token ids go with the rows that are left; the last layers read the keys of the layers 4 and 5, and compute
/// the last token alone.
#[test]
fn gemma4_small() {
    let pair = Pair::new(Tiny::named("gemma4-small"));
    let dense = pair.model.graph(N, pair.n_ctx);
    check(&pair, &keep_last_row(&dense, 1), "gemma4-small-prefill");
    let schedule = Schedule { use_proxy: false, ..runtime::schedule(&[(1, 24, 4), (3, 12, 2)], PROBE) };
    let shape = pair.model.shape();
    let budgets = schedule.resolve(9, N, &|l| shape.layer_kind(l), Reach::AboveFirstBudget).expect("one that fits");
    let skipping = skip_and_prune(&dense, &budgets, &ProbeSettings::of(&schedule, &budgets))
        .expect("passes that keep the invariants");
    check(&pair, &keep_last_row(&skipping, 1), "gemma4-small-spts");
    let gpu = keep_normalized(&fuse_gated_ffn(&keep_last_row(&skipping, 1)), &|_, _| true);
    verify(&gpu).expect("a graph that keeps the invariants");
}

/// Attention in every second layer; the recurrent ones between take what is left of the tokens, and their FFNs the last scores.
#[test]
fn qwen35() {
    let pair = Pair::new(Tiny::named("qwen35"));
    let dense = pair.model.graph(N, pair.n_ctx);
    check(&pair, &keep_last_row(&dense, 1), "qwen35-prefill");
    let schedule = runtime::schedule(&[(1, 24, 0), (4, 20, 8)], PROBE);
    let shape = pair.model.shape();
    let budgets = schedule.resolve(6, N, &|l| shape.layer_kind(l), Reach::AboveFirstBudget).expect("one that fits");
    let skipping = skip_and_prune(&dense, &budgets, &ProbeSettings::of(&schedule, &budgets))
        .expect("passes that keep the invariants");
    check(&pair, &keep_last_row(&skipping, 1), "qwen35-spts");
    let gpu = keep_normalized(&fuse_gated_ffn(&keep_last_row(&skipping, 1)), &|_, _| true);
    verify(&gpu).expect("a graph that keeps the invariants");
}

/// The last layer's attention keeps a tile of queries there.
#[test]
fn qwen2_prefill_with_a_tile_of_queries() {
    let pair = Pair::new(Tiny::named("qwen2"));
    check(&pair, &keep_last_row(&pair.model.graph(N, pair.n_ctx), 16), "qwen2-prefill-tile");
}

#[test]
fn qwen2_captured_for_calibration() {
    let pair = Pair::new(Tiny { n_layer: 1, ..Tiny::named("qwen2") });
    let capture = Capture { layers: &[0], taps: &[Tap::FfnHidden, Tap::FfnOutput], probe: Probe::PAPER };
    check(&pair, &insert_captures(&pair.model.graph(N, pair.n_ctx), &capture), "qwen2-captured");
}
