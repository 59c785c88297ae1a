//! What is counted before a graph is lowered: the operations of every tile, and the masks that it looks into.

mod reference;
mod runtime;
mod support;

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use runtime::Pair;
use spts::compile::fuse_ffn::fuse_gated_ffn;
use spts::compile::last_row::keep_last_row;
use spts::compile::lower::{MASK_HEIGHT, lower, masks_needed, max_ggml_nodes};
use spts::compile::mask_buffer::{MaskBuffer, MaskSize};
use spts::compile::memory::{CacheMode, Memory, ProxyTensors, RecurrentTensors};
use spts::compile::phases::{self, Phase, PhaseKind, Program};
use spts::ggml::Tensor;
use spts::ggml::backend::{Backend, BufferType};
use spts::ggml::kernels::Kernels;
use spts::ggml::ops::Ops;
use spts::gguf::GgmlType;
use spts::graph::ir::{Graph, NodeId, Op, WeightId};
use spts::graph::verify::verify;
use spts::method::spts::attention_probe::ProbeSettings;
use spts::method::spts::passes::skip_and_prune;
use spts::method::spts::schedule::{Pool, Probe, Reach, Schedule};
use spts::model::weights::Model;
use spts::session::masks::Masks;
use spts::session::recurrent::RecurrentState;
use spts::session::sequence::{CacheType, LayerCache, LayerMemory, Sequence};
use spts::session::slots::SlotMemory;
use spts::session::turns::Staged;
use support::tiny::Tiny;

/// The CPU, with attention by ggml's kernel behind masks, which takes the most operations, or by ours.
struct Device<'m> {
    model: &'m Model,
    kernels: Kernels,
    sequence: Sequence,
    slots: SlotMemory,
    masks: Masks,
}

impl Memory for Device<'_> {
    fn weight(&self, id: WeightId) -> Tensor<'_> {
        self.model.weight_tensor(0, id)
    }

    fn matrix(&self, id: WeightId, rows: usize) -> Tensor<'_> {
        self.model.matrix_tensor(0, id, rows)
    }

    fn stored(&self, id: NodeId) -> Tensor<'_> {
        self.slots.get(id)
    }

    fn cache_k(&self, layer: usize) -> Tensor<'_> {
        self.sequence.cache(layer).k()
    }

    fn cache_v(&self, layer: usize) -> Tensor<'_> {
        self.sequence.cache(layer).v()
    }

    fn recurrent(&self, layer: usize, is_under_way: bool) -> RecurrentTensors<'_> {
        self.sequence.recurrent(layer).tensors(is_under_way)
    }

    fn n_past(&self, layer: usize) -> usize {
        self.sequence.cache(layer).len()
    }

    fn has_gaps(&self, layer: usize) -> bool {
        self.sequence.cache(layer).positions().is_some()
    }

    fn mask(&self, window: Option<usize>) -> MaskBuffer<'_> {
        self.masks.get(window)
    }

    fn proxy(&self, _: usize) -> ProxyTensors<'_> {
        unreachable!("no schedule here uses proxies")
    }

    fn kernels(&self) -> Kernels {
        self.kernels
    }
}

/// Those of a CPU that leaves attention to ggml, and those of one that does not.
fn kernels() -> [Kernels; 2] {
    static SWITCH: Mutex<()> = Mutex::new(());
    let _alone = SWITCH.lock().unwrap_or_else(PoisonError::into_inner);
    let [ours, ggmls] = [false, true].map(|is_ggmls| {
        spts::runtime::attend_by_ggml(is_ggmls);
        Kernels::of("CPU")
    });
    [ggmls, ours]
}

fn buffer_type() -> BufferType {
    Backend::start("CPU", 1).expect("a CPU").buffer_type()
}

fn program(graph: &Graph, tile: usize) -> Program {
    phases::plan(&verify(graph.clone()).expect("an intact graph"), tile, &phases::Cuts::default())
}

/// `n_past` tokens read, room for `n` more.
fn sequence(pair: &Pair, n_past: usize, n: usize) -> Sequence {
    let (n_layer, width) = (pair.tiny.n_layer, pair.tiny.n_head_kv * pair.tiny.head_dim);
    let memory = |l: usize| match pair.model.shape().recurrence(l) {
        Some(heads) => LayerMemory::Recurrent(RecurrentState::new(buffer_type(), heads)),
        None => LayerMemory::Cache(LayerCache::new(buffer_type(), width, (CacheType::F16, CacheType::F16))),
    };
    let mut sequence = Sequence::new((0..n_layer).map(memory).collect());
    sequence.reserve(0, &vec![n_past + n; n_layer], 0, &Staged::default()).expect("memory");
    sequence.advance(n_past, None);
    sequence
}

/// The first and the last tile of a phase.
fn tiles(phase: &Phase, tile: usize) -> BTreeSet<(usize, usize)> {
    let size = if phase.kind == PhaseKind::Tiled { tile.min(phase.rows) } else { phase.rows };
    let last = (phase.rows - 1) / size * size;
    BTreeSet::from([(0, size), (last, phase.rows)])
}

fn sizes(phase: &Phase, tile: usize) -> Vec<usize> {
    tiles(phase, tile).into_iter().map(|(start, end)| end - start).collect()
}

/// Lowers the first and the last tile of every phase and compares the operations with what was counted. Returns the largest
/// share of a bound that was used up.
fn check(pair: &Pair, graph: &Graph, tile: usize, n_past: usize) -> f64 {
    let [by_ggml, by_us] = kernels().map(|kernels| check_with(kernels, pair, graph, tile, n_past));
    by_ggml.max(by_us)
}

fn check_with(kernels: Kernels, pair: &Pair, graph: &Graph, tile: usize, n_past: usize) -> f64 {
    let program = program(graph, tile);
    let buft = buffer_type();
    let mut device = Device {
        model: &pair.model,
        kernels,
        sequence: sequence(pair, n_past, graph.n_tokens),
        slots: SlotMemory::new(graph, &program, &|_| true, GgmlType::F16, buft).expect("memory"),
        masks: Masks::default(),
    };
    let needs = masks_needed(&device, graph, &program, &|p| sizes(p, tile));
    device.masks.prepare(&needs, buft).expect("memory");
    let mut most = 0f64;
    for phase in program.phases.iter().filter(|p| p.kind != PhaseKind::Select) {
        for (start, end) in tiles(phase, tile) {
            let bound = max_ggml_nodes(graph, phase, end - start);
            // Room to see by how much a bound would be broken.
            let ops = Ops::new(2 * bound + 1000);
            lower(&ops, &device, graph, &program, phase, start..end, CacheMode::Fixed);
            assert!(ops.n_nodes() <= bound, "{} operations, {bound} counted, in {phase:?}", ops.n_nodes());
            most = most.max(ops.n_nodes() as f64 / bound as f64);
        }
    }
    most
}

fn skipping(pair: &Pair, n: usize, first: usize, stages: &[(usize, usize, usize)], queries: usize) -> Graph {
    let probe = Probe { queries, pool: Pool::Max(13), ..Probe::PAPER };
    let schedule = Schedule { use_proxy: false, skip_from: first, ..runtime::schedule(stages, probe) };
    let shape = pair.model.shape();
    let kind = |l: usize| shape.layer_kind(l);
    let budgets = schedule.resolve(pair.tiny.n_layer, n, &kind, Reach::AboveFirstBudget).expect("a schedule that fits");
    skip_and_prune(&pair.model.graph(n, n), &budgets, &ProbeSettings::of(&schedule, &budgets)).expect("an intact graph")
}

#[test]
fn no_phase_takes_more_operations_than_are_counted() {
    // Two global layers: windows lie behind prunes, where their masks are made from positions, part by part.
    let gemma = Tiny { n_layer: 14, ..Tiny::named("gemma3") };
    for (tiny, first, last) in [
        (gemma, 3, [7, 12]),
        (Tiny::named("llama"), 0, [1, 3]),
        (Tiny::named("phi3"), 1, [2, 3]),
        (Tiny::named("gpt-oss"), 1, [3, 5]),
        (Tiny::named("qwen35"), 1, [3, 4]),
        (Tiny::named("qwen35moe"), 1, [1, 2]),
        (Tiny::named("qwen3next"), 1, [1, 2]),
    ] {
        let pair = Pair::new(tiny);
        for (n, tile) in [(10_240, 10_240), (20_000, 10_240), (9_100, 512), (9_100, 100), (40_000, 40_000)] {
            let stages = [(last[0], n * 19 / 20, 10), (last[1], n * 9 / 10, n / 10)];
            for queries in [1, 32, 1000] {
                let graph = skipping(&pair, n, first, &stages, queries);
                for graph in [fuse_gated_ffn(&graph), keep_last_row(&graph, 1), graph] {
                    check(&pair, &graph, tile, 0);
                }
            }
            check(&pair, &pair.model.graph(n, n), tile, 0);
            check(&pair, &pair.model.graph(n, n), tile, 700);
        }
    }
}

/// The bound is no guess far above: somewhere most of it is used.
#[test]
fn the_count_is_near_what_is_taken() {
    let pair = Pair::new(Tiny { n_layer: 14, ..Tiny::named("gemma3") });
    let graph = skipping(&pair, 10_240, 3, &[(7, 9000, 10), (12, 8000, 900)], 32);
    let share = check(&pair, &graph, 10_240, 0);
    assert!(share > 0.5, "{share} of a bound");
}

fn needs(pair: &Pair, graph: &Graph, tile: usize) -> Vec<(Option<usize>, MaskSize)> {
    let [by_ggml, _] = kernels();
    needs_with(by_ggml, pair, graph, tile)
}

fn needs_with(kernels: Kernels, pair: &Pair, graph: &Graph, tile: usize) -> Vec<(Option<usize>, MaskSize)> {
    let program = program(graph, tile);
    let buft = buffer_type();
    let device = Device {
        model: &pair.model,
        kernels,
        sequence: sequence(pair, 0, graph.n_tokens),
        slots: SlotMemory::new(graph, &program, &|_| true, GgmlType::F16, buft).expect("memory"),
        masks: Masks::default(),
    };
    let mut needs = masks_needed(&device, graph, &program, &|p| sizes(p, tile));
    needs.sort_by_key(|(window, _)| *window);
    needs
}

#[test]
fn masks_are_as_large_as_what_looks_into_them() {
    let llama = Pair::new(Tiny::named("llama"));
    let [(None, dense)] = needs(&llama, &llama.model.graph(1000, 1000), 512)[..] else { panic!("one causal mask") };
    assert_eq!((dense.corner, dense.height), (1024, MASK_HEIGHT));
    // A single query needs a single row, besides those for alignment.
    let [(None, one)] = needs(&llama, &llama.model.graph(1, 1000), 512)[..] else { panic!("one causal mask") };
    assert_eq!((one.corner, one.height), (256, 1));
    // Every layer keeps 300 of 2000; the probe of the first scores all of them.
    let graph = skipping(&llama, 2000, 0, &[(4, 300, 0)], 32);
    let [(None, probing)] = needs(&llama, &graph, 512)[..] else { panic!("one causal mask") };
    assert_eq!(probing.corner, 2048);
    // Without a mask of its own for one probing query, of which none is hidden.
    let graph = skipping(&llama, 2000, 0, &[(4, 300, 0)], 1);
    let [(None, lone)] = needs(&llama, &graph, 512)[..] else { panic!("one causal mask") };
    assert_eq!(lone.corner, 512);
    // More queries than a mask's height: the first sees none of the others.
    let graph = skipping(&llama, 2000, 0, &[(4, 1100, 0)], 1000);
    let [(None, many)] = needs(&llama, &graph, 512)[..] else { panic!("one causal mask") };
    assert!(many.width() >= 2048 + 1000 && many.height == MASK_HEIGHT, "{many:?}");

    let gemma = Pair::new(Tiny::named("gemma3"));
    let [(None, causal), (Some(16), window)] = needs(&gemma, &gemma.model.graph(5000, 5000), 512)[..] else {
        panic!("a causal mask and one for windows")
    };
    assert_eq!((causal.corner, window.corner), (5120, 512));
    let windows_only = Graph {
        nodes: gemma
            .model
            .graph(5000, 5000)
            .nodes
            .into_iter()
            .map(|mut n| {
                if let Op::Attention { window, .. } = &mut n.op {
                    *window = Some(1 << 40);
                }
                n
            })
            .collect(),
        ..gemma.model.graph(5000, 5000)
    };
    // A window wider than the prompt takes no more than the prompt.
    let [(Some(_), wide)] = needs(&gemma, &windows_only, 512)[..] else { panic!("one mask for windows") };
    assert_eq!(wide.corner, 5120);
}

/// Where our kernel computes the attention, a mask is made for what still looks into one: probing, and windows behind prunes.
#[cfg(target_os = "linux")]
#[test]
fn attention_of_our_own_needs_no_mask() {
    let [_, by_us] = kernels();
    for name in ["llama", "gemma3", "gemma4-small", "gpt-oss", "qwen35"] {
        let pair = Pair::new(Tiny::named(name));
        for n_tokens in [1, 1000, 5000] {
            assert_eq!(needs_with(by_us, &pair, &pair.model.graph(n_tokens, 5000), 512), [], "{name}");
        }
    }
    let llama = Pair::new(Tiny::named("llama"));
    let lone = skipping(&llama, 2000, 0, &[(4, 300, 0)], 1);
    assert_eq!(needs_with(by_us, &llama, &lone, 512), []);
    let probing = skipping(&llama, 2000, 0, &[(4, 300, 0)], 32);
    let [(None, mask)] = needs_with(by_us, &llama, &probing, 512)[..] else { panic!("one causal mask, for the probe") };
    assert_eq!(mask.corner, 2048);
}

/// Kernels on GPUs read rows of masks 16 bytes at a time; the one for heads of 512 elements takes no others.
#[test]
fn rows_of_masks_are_aligned() {
    for (n, tile) in [(1, 1), (7, 7), (90, 33), (300, 101)] {
        let pair = Pair::new(Tiny::named("gemma3"));
        let graph = pair.model.graph(n, 5000);
        let needs = needs(&pair, &graph, tile);
        assert!(!needs.is_empty(), "{n} tokens");
        for (window, size) in needs {
            assert_eq!(size.width() % 8, 0, "{n} tokens in tiles of {tile}, {window:?}: {size:?}");
        }
    }
}
