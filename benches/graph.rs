//! What happens between a prompt and its first kernel: building the dense graph, rewriting it for SPTS, cutting it into phases,
//! lowering every phase to ggml. None of it depends on the width of the model: the 32 layers of Llama 3.1 8B, narrow.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use spts::bench::synthetic::Synthetic;
use spts::ggml::backend::Backend;
use spts::gguf::GgmlType;
use spts::graph::Graph;
use spts::graph::last_row::{CPU_QUERIES, keep_last_row};
use spts::graph::lower::CacheMode;
use spts::graph::phases::{self, Program};
use spts::graph::verify::verify;
use spts::session::executor::{self, Device, Run};
use spts::session::kv_cache::{CacheType, LayerCache};
use spts::session::slots::SlotMemory;
use spts::spts::passes;
use spts::spts::schedule::Schedule;
use spts::spts::shape::Shape;
use spts::{Model, ModelOptions};
use spts_quant::Preset;

const N_TOKENS: usize = 32_768;
const TILE: usize = 512;

fn model() -> (Shape, Arc<Model>) {
    let full = Shape::named("llama-3.1-8b").expect("a named shape");
    let shape =
        Shape { n_embd: 64, n_ff: 96, n_head: 4, n_head_kv: 1, head_dim_k: 16, head_dim_v: 16, n_vocab: 300, ..full };
    let made = Synthetic { shape: shape.clone(), preset: Preset::F16, seed: 1 };
    let gguf = made.open(|_, _| {}).expect("a temporary file");
    let mut options = ModelOptions { device: Some("CPU".into()), ..ModelOptions::default() };
    (shape, Model::from_gguf(Arc::new(gguf), &mut options).expect("a model"))
}

fn program(graph: &Graph) -> Program {
    phases::plan(graph, TILE, &|_| false)
}

fn graph(c: &mut Criterion) {
    let (shape, model) = model();
    let hp = model.hparams();
    // The schedule of the real width, with scores by attention alone: there are no proxies for this model.
    let key = Shape::named("llama-3.1-8b").expect("a named shape");
    let schedule = Schedule { use_proxy: false, ..Schedule::default_for(&key.key()).expect("a schedule") };
    let resolved = schedule.resolve(shape.n_layer, N_TOKENS, &|_| false).expect("budgets");
    let dense = model.graph(N_TOKENS, N_TOKENS);
    let rewritten = passes::skip_and_prune(&dense, &resolved, &schedule).expect("a rewritten graph");
    let rewritten = keep_last_row(&rewritten, CPU_QUERIES);
    let plan = program(&rewritten);

    let mut group = c.benchmark_group("graph");
    group.sample_size(20);
    group.bench_function("build", |b| b.iter(|| model.graph(black_box(N_TOKENS), N_TOKENS)));
    group.bench_function("rewrite", |b| b.iter(|| passes::skip_and_prune(black_box(&dense), &resolved, &schedule)));
    group.bench_function("verify", |b| b.iter(|| verify(black_box(&rewritten))));
    group.bench_function("phases", |b| b.iter(|| program(black_box(&rewritten))));

    let device = Device::new(Backend::start("CPU", 1).expect("a CPU"));
    let buft = device.backend.buffer_type();
    let caches: Vec<LayerCache> = (0..shape.n_layer)
        .map(|_| {
            let mut cache = LayerCache::new(buft, hp.n_embd_kv(), (CacheType::F16, CacheType::F16));
            cache.reserve(N_TOKENS).expect("memory");
            cache
        })
        .collect();
    let slots = [SlotMemory::new(&rewritten, &plan, GgmlType::F16, buft).expect("memory")];
    let run = Run {
        model: &model,
        graph: &rewritten,
        program: &plan,
        caches: &caches,
        proxies: &[None],
        slots: &slots,
        tile: TILE,
        mode: CacheMode::Fixed,
        first_position: 0,
    };
    let mut devices = [device];
    // One tile of every phase, with its place in scratch memory.
    group.bench_function("lower", |b| b.iter(|| executor::reserve(&run, &mut devices).expect("lowered")));
    group.finish();
}

criterion_group!(benches, graph);
criterion_main!(benches);
