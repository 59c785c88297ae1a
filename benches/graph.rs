//! What happens between a prompt and its first kernel: building the dense graph, rewriting it for SPTS, cutting it into phases,
//! lowering every phase to ggml. None of it depends on the width of the model: the 32 layers of Llama 3.1 8B, narrow.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use spts::bench::synthetic::Synthetic;
use spts::compile::memory::CacheMode;
use spts::compile::target::Target;
use spts::compile::{self, phases};
use spts::ggml::backend::Backend;
use spts::ggml::kernels::Kernels;
use spts::gguf::GgmlType;
use spts::graph::verify::check;
use spts::method::spts::Spts;
use spts::method::spts::schedule::Schedule;
use spts::method::{Method, Prompt};
use spts::model::shape::Shape;
use spts::session::device::Device;
use spts::session::executor;
use spts::session::run::Run;
use spts::session::sequence::{CacheType, LayerCache, LayerMemory, Sequence};
use spts::session::slots::SlotMemory;
use spts::session::turns::Staged;
use spts::{Model, ModelOptions};
use spts_quant::Preset;

const N_TOKENS: usize = 32_768;
const TILE: usize = 512;

fn model() -> (Shape, Arc<Model>) {
    let full = Shape::named("llama-3.1-8b").expect("a named shape");
    let shape = Shape { n_embd: 64, n_ff: 96, n_head: 4, n_head_kv: 1, head_dim: 16, n_vocab: 300, ..full };
    let made = Synthetic { shape: shape.clone(), preset: Preset::F16, seed: 1 };
    let gguf = made.open(|_, _| {}).expect("a temporary file");
    let options = ModelOptions { device: Some("CPU".into()), ..ModelOptions::default() };
    (shape, Model::from_gguf(Arc::new(gguf), options).expect("a model"))
}

fn graph(c: &mut Criterion) {
    let (shape, model) = model();
    // The schedule of the real width, with scores by attention alone: there are no proxies for this model.
    let full = Shape::named("llama-3.1-8b").expect("a named shape");
    let method = Spts::new(Schedule { use_proxy: false, ..Schedule::default_for(&full).expect("a schedule") });
    let budgets = method.budgets(&shape, Prompt::of(N_TOKENS)).expect("budgets");
    let dense = model.graph(N_TOKENS, N_TOKENS);
    let kernels = Kernels::of_each(&model.placement().devices);
    let target = Target::new(model.file(), model.placement(), &kernels, Some(TILE), None);
    let compile = || compile::prompt(dense.clone(), &method, budgets.clone(), &target).expect("a program");
    let compiled = compile();

    let mut group = c.benchmark_group("graph");
    group.sample_size(20);
    group.bench_function("build", |b| b.iter(|| model.graph(black_box(N_TOKENS), N_TOKENS)));
    group.bench_function("rewrite", |b| b.iter(|| method.rewrite(black_box(&dense), &budgets)));
    group.bench_function("verify", |b| b.iter(|| check(black_box(&compiled.graph))));
    group.bench_function("phases", |b| {
        b.iter(|| phases::plan(black_box(&compiled.graph), TILE, &phases::Cuts::default()))
    });
    group.bench_function("compile", |b| b.iter(compile));

    let device = Device::new(Backend::start("CPU", 1).expect("a CPU"));
    let buft = device.backend.buffer_type();
    let types = (CacheType::F16, CacheType::F16);
    let cache = |_| LayerMemory::Cache(LayerCache::new(buft, model.shape().n_embd_kv(0), types));
    let caches = (0..shape.n_layer).map(cache).collect();
    let mut sequence = Sequence::new(caches);
    sequence.reserve(0, &vec![N_TOKENS; shape.n_layer], 0, &Staged::default()).expect("memory");
    let slots = [SlotMemory::new(&compiled.graph, &compiled.program, &|_| true, GgmlType::F16, buft).expect("memory")];
    let run = Run {
        model: &model,
        compiled: &compiled,
        sequence: &sequence,
        proxies: &[None],
        slots: &slots,
        staged: &Staged::default(),
        mode: CacheMode::Fixed,
    };
    let mut devices = [device];
    // One tile of every phase, with its place in scratch memory.
    group.bench_function("lower", |b| b.iter(|| executor::reserve(&run, &mut devices).expect("lowered")));
    group.finish();
}

criterion_group!(benches, graph);
criterion_main!(benches);
