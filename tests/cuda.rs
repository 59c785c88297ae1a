//! A CUDA build against its own CPU backend: the same models, prompts and schedules on both. `make test-cuda`.
//!
//! The bounds are normalised mean squared errors (NMSE) of logits less their mean: a shift of all alike changes no probability,
//! and is most of what two arrangements of the CPU differ by (smollm2 behind 2400 tokens, tiles of 512 against tiles of 32, 61
//! tokens: up to 0.020 with the shift, 0.0025 without). Products of F32 weights run in TF32 on a GPU, products of quantized
//! weights in bf16, while the CPU's kernels quantize the activations to 8 bits.
#![cfg(feature = "cuda")]

mod support;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use spts::ggml::kernels::Kernels;
use spts::ggml::quantize::dequantize;
use spts::gguf::{GgmlType, Gguf, GgufWriter, OpenOptions};
use spts::graph::ir::Heads;
use spts::method::rivals::Rival;
use spts::method::spts::schedule::{Join, Pool, Probe, ProxySize, Schedule};
use spts::method::spts::sidecar::Sidecar;
use spts::method::{Dense, Method};
use spts::proxies::calibrate::{CalibrateOptions, calibrate};
use spts::quantize::{QuantizeOptions, quantize};
use spts::session::document::DocumentMemory;
use spts::session::prefill::LayerSelection;
use spts::session::sequence::CacheType;
use spts::{Error, Model, ModelOptions, Session, SessionOptions};
use spts_quant::Preset;
use support::tiny::{Delta, Tiny};

const F32_WEIGHTS: f64 = 1e-4;
const QUANTIZED_WEIGHTS: f64 = 1e-2;
/// Up to one token in a hundred may be another one where scores are close, in each of several layers.
const SKIPPING: f64 = 5e-2;

/// Enough rows for the kernels of long prompts.
const N: usize = 1300;

/// Head sizes that GPU kernels have, in every architecture.
fn models() -> Vec<Tiny> {
    let wide = |name: &'static str, n_head, n_head_kv, head_dim| Tiny {
        n_embd: 256,
        n_ff: 512,
        n_head,
        n_head_kv,
        head_dim,
        n_rot: head_dim,
        delta: Tiny::named(name).delta.map(|delta| Delta {
            n_head_k: 2,
            n_head_v: 4,
            head_dim: 64,
            d_conv: 4,
            ..delta
        }),
        ..Tiny::named(name)
    };
    vec![
        wide("llama", 8, 2, 128),
        wide("llama-rope-freqs", 12, 4, 64),
        wide("llama-yarn", 8, 8, 64),
        wide("qwen2", 14, 2, 64),
        wide("qwen3", 8, 1, 128),
        wide("gemma3", 4, 1, 256),
        wide("phi3", 4, 4, 96),
        wide("olmo2", 4, 2, 64),
        wide("olmo3", 4, 2, 64),
        Tiny { n_rot: 64, ..wide("glm4", 8, 1, 128) },
        Tiny { experts: Some((6, 2)), n_ff: 128, ..wide("qwen3moe", 8, 2, 64) },
        Tiny { experts: Some((6, 2)), n_ff: 128, ..wide("gpt-oss", 8, 1, 64) },
        wide("qwen35", 4, 2, 256),
        Tiny { n_ff: 64, ..wide("qwen35moe", 8, 2, 128) },
    ]
}

fn open(path: &Path, device: &str) -> Arc<Model> {
    let options = ModelOptions { device: Some(device.into()), ..ModelOptions::default() };
    Model::open(path, options).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn nmse(got: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(got.len(), expected.len());
    assert!(got.iter().all(|x| x.is_finite()));
    let mean = |x: &[f32]| x.iter().map(|x| f64::from(*x)).sum::<f64>() / x.len() as f64;
    let (got_mean, expected_mean) = (mean(got), mean(expected));
    let centred = got.iter().zip(expected).map(|(a, b)| (f64::from(*a) - got_mean, f64::from(*b) - expected_mean));
    let (error, size) =
        centred.fold((0.0, 0.0), |(error, size), (a, b): (f64, f64)| (error + (a - b).powi(2), size + b * b));
    error / size
}

/// Logits after the prompt and after each of more tokens, and what was selected.
fn run(
    path: &Path,
    device: &str,
    prompt: &[u32],
    more: &[u32],
    options: SessionOptions,
) -> (Vec<Vec<f32>>, Vec<LayerSelection>) {
    let mut session = Session::new(open(path, device), options).unwrap();
    let report = session.prefill(prompt, &mut |_| ControlFlow::Continue(())).unwrap();
    let mut logits = vec![session.logits().to_vec()];
    for token in more {
        session.decode(*token).unwrap();
        logits.push(session.logits().to_vec());
    }
    (logits, report.selection)
}

fn compare(what: &str, path: &Path, prompt: &[u32], options: &SessionOptions, bound: f64) {
    compare_with(what, path, prompt, &[3, 1, 4], options, bound);
}

fn compare_with(what: &str, path: &Path, prompt: &[u32], more: &[u32], options: &SessionOptions, bound: f64) {
    let (cpu, on_cpu) = run(path, "CPU", prompt, more, options.clone());
    let (gpu, on_gpu) = run(path, "CUDA0", prompt, more, options.clone());
    let mut overlaps = Vec::new();
    for (gpu, cpu) in on_gpu.iter().zip(&on_cpu) {
        for (gpu, cpu) in [(&gpu.active_attn, &cpu.active_attn), (&gpu.active_ffn, &cpu.active_ffn)] {
            let common = gpu.iter().filter(|t| cpu.binary_search(t).is_ok()).count();
            assert_eq!(gpu.len(), cpu.len(), "{what}");
            overlaps.push(common as f64 / cpu.len() as f64);
        }
    }
    if !overlaps.is_empty() {
        let mean = overlaps.iter().sum::<f64>() / overlaps.len() as f64;
        println!("{what}: sets overlap by {mean:.4} in the mean, {overlaps:.3?}");
        assert!(mean >= 0.99, "{what}: sets overlap by {mean}");
    }
    for (step, (gpu, cpu)) in gpu.iter().zip(&cpu).enumerate() {
        let e = nmse(gpu, cpu);
        println!("{what}, step {step}: NMSE {e:.1e}");
        assert!(e <= bound, "{what}, step {step}: NMSE {e}, bound {bound}");
    }
}

/// Skipping where roundings add up. Scores of random models lie close together, so that rounding changes sets, and more in every
/// layer: on the CPU, too, with the same matrices rounded to TF32 (`rounded`) and this type of cache, against F32 throughout. A GPU
/// may change a quarter more, and one in 100.
fn compare_in(cache: CacheType, what: &str, [path, rounded]: [&Path; 2], prompt: &[u32], schedule: &Schedule) {
    let read = |path: &Path, device: &str, cache| run(path, device, prompt, &[3, 1, 4], skipping_in(cache, schedule));
    let (expected, chosen) = read(path, "CPU", CacheType::F32);
    let (cpu, on_cpu) = read(rounded, "CPU", cache);
    let (gpu, on_gpu) = read(path, "CUDA0", cache);
    let (on_cpu, on_gpu) = (overlap(&on_cpu, &chosen), overlap(&on_gpu, &chosen));
    let worst = |got: &[Vec<f32>]| got.iter().zip(&expected).map(|(got, exact)| nmse(got, exact)).fold(0.0, f64::max);
    let (cpu, gpu) = (worst(&cpu), worst(&gpu));
    println!(
        "{what}: sets overlap by {on_gpu:.4}, on the CPU {on_cpu:.4}; NMSE at most {gpu:.1e}, on the CPU {cpu:.1e}"
    );
    assert!(1.0 - on_gpu <= 1.25 * (1.0 - on_cpu) + 0.01, "{what}: sets overlap by {on_gpu}, on the CPU {on_cpu}");
    assert!(gpu <= SKIPPING.max(1.25 * cpu), "{what}: NMSE {gpu}, on the CPU {cpu}, bound {SKIPPING}");
}

/// The same model in F32 whose matrices have the ten bits of mantissa that TF32 has.
fn in_tf32(tiny: &Tiny, path: &Path) -> PathBuf {
    let mut file = tiny.build();
    for x in file.tensors.iter_mut().filter(|t| t.shape.len() == 2).flat_map(|t| &mut t.data) {
        *x = f32::from_bits((x.to_bits() + (1 << 12)) & !((1 << 13) - 1));
    }
    let to = path.with_extension("tf32");
    file.write(&to);
    to
}

fn skipping_in(cache: CacheType, schedule: &Schedule) -> SessionOptions {
    SessionOptions {
        method: schedule.clone().into(),
        record_selection: true,
        cache_type_k: cache,
        cache_type_v: cache,
        ..SessionOptions::default()
    }
}

fn schedule(model: &Model) -> Schedule {
    let mut schedule =
        Schedule { use_proxy: false, ..Schedule::fractional(model.shape(), [0.5, 0.4, 0.3, 0.2], 0.03).unwrap() };
    (schedule.probe.queries, schedule.probe.pool) = (8, Pool::Max(3));
    schedule
}

fn in_scratch(tiny: &Tiny) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    tiny.build().write(&path);
    (dir, path)
}

#[test]
fn dense() {
    for tiny in models() {
        let (_dir, path) = in_scratch(&tiny);
        for n in [7, 300, N] {
            compare(&format!("{} {n}", tiny.name), &path, &tiny.prompt(n), &SessionOptions::default(), F32_WEIGHTS);
        }
        let tiles = SessionOptions { n_ubatch: Some(100), ..SessionOptions::default() };
        compare(&format!("{} in tiles", tiny.name), &path, &tiny.prompt(N), &tiles, F32_WEIGHTS);
    }
}

#[test]
fn skipping_and_pruning() {
    for tiny in models() {
        let (_dir, path) = in_scratch(&tiny);
        let method = schedule(&open(&path, "CPU")).into();
        let options = SessionOptions { method, record_selection: true, ..SessionOptions::default() };
        compare(&format!("{} skipping", tiny.name), &path, &tiny.prompt(N), &options, SKIPPING);
    }
}

/// Carried and joined scores, chunks, tokens that stay, a stage that prunes nothing; with keys in F32 ggml's operations score.
#[test]
fn every_option_of_a_schedule() {
    for tiny in models() {
        let (_dir, path) = in_scratch(&tiny);
        let rounded = in_tf32(&tiny, &path);
        let base = schedule(&open(&path, "CPU"));
        let probe = Probe { carry: 0.7, ..base.probe };
        let mut late = Schedule { probe, sinks: 4, recent: 20, ..base.clone() };
        late.stages[0].cut = None;
        let best = Probe { join: Join::Max, ..probe };
        let chunks = Probe { pool: Pool::Chunks(4), ..probe };
        for (what, schedule, cache) in [
            ("carried", late, CacheType::F16),
            ("best of the queries", Schedule { probe: best, ..base.clone() }, CacheType::F16),
            ("best of the queries, F32", Schedule { probe: best, ..base.clone() }, CacheType::F32),
            ("chunks", Schedule { probe: chunks, ..base.clone() }, CacheType::F16),
        ] {
            compare_in(cache, &format!("{} {what}", tiny.name), [&path, &rounded], &tiny.prompt(N), &schedule);
        }
    }
}

/// The same model with every matrix in F32.
fn in_f32(path: &Path) -> PathBuf {
    let source = Gguf::open(path, OpenOptions { mmap: true, mlock: false }).unwrap();
    let mut w = GgufWriter::new();
    for (key, value) in source.metadata() {
        w.set(key, value.clone()).unwrap();
    }
    for t in source.tensors() {
        let data = dequantize(t.ty, source.tensor_data(t), t.shape.iter().product::<u64>() as usize);
        let bytes: Vec<u8> = data.into_iter().flat_map(f32::to_le_bytes).collect();
        w.add_tensor_bytes(&t.name, &t.shape, GgmlType::F32, bytes).unwrap();
    }
    let to = path.with_extension("f32");
    w.write(&to).unwrap();
    to
}

/// Against the same weights in F32 on the CPU, whose products of quantized weights round activations in their own way.
#[test]
fn quantized() {
    let tiny = &models()[0];
    let (dir, path) = in_scratch(tiny);
    let source = Gguf::open(&path, OpenOptions { mmap: true, mlock: false }).unwrap();
    for preset in [Preset::Q4_K_M, Preset::Q4_0, Preset::Q8_0, Preset::F16] {
        let small = dir.path().join(format!("{}.gguf", preset.name()));
        quantize(&source, &small, QuantizeOptions { preset, allow_requantize: false }, &mut |_, _| {}).unwrap();
        let exact = in_f32(&small);
        for n in [7, 300, N] {
            let prompt = tiny.prompt(n);
            let (expected, _) = run(&exact, "CPU", &prompt, &[3, 1, 4], SessionOptions::default());
            let (got, _) = run(&small, "CUDA0", &prompt, &[3, 1, 4], SessionOptions::default());
            for (step, (got, expected)) in got.iter().zip(&expected).enumerate() {
                let e = nmse(got, expected);
                println!("{} {n}, step {step}: NMSE {e:.1e}", preset.name());
                assert!(e <= QUANTIZED_WEIGHTS, "{} {n}, step {step}: NMSE {e}", preset.name());
            }
        }
    }
}

/// Files with the same matrices, rounded to BF16: one in that type, one in F32.
fn in_bf16(path: &Path) -> [PathBuf; 2] {
    let source = Gguf::open(path, OpenOptions { mmap: true, mlock: false }).unwrap();
    [("bf16", GgmlType::BF16), ("rounded", GgmlType::F32)].map(|(name, ty)| {
        let mut w = GgufWriter::new();
        for (key, value) in source.metadata() {
            w.set(key, value.clone()).unwrap();
        }
        for t in source.tensors() {
            let data = source.tensor_data(t);
            if t.shape.len() == 2 && t.ty == GgmlType::F32 {
                let floats = data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
                let rounded = floats.map(half::bf16::from_f32);
                let bytes: Vec<u8> = match ty {
                    GgmlType::BF16 => rounded.flat_map(half::bf16::to_le_bytes).collect(),
                    _ => rounded.flat_map(|x| x.to_f32().to_le_bytes()).collect(),
                };
                w.add_tensor_bytes(&t.name, &t.shape, ty, bytes).unwrap();
            } else {
                w.add_tensor_bytes(&t.name, &t.shape, t.ty, data.to_vec()).unwrap();
            }
        }
        let to = path.with_extension(name);
        w.write(&to).unwrap();
        to
    })
}

/// The share of each layer's selected tokens that are the same, in the mean.
fn overlap(a: &[LayerSelection], b: &[LayerSelection]) -> f64 {
    let shares: Vec<f64> = a
        .iter()
        .zip(b)
        .flat_map(|(a, b)| [(&a.active_attn, &b.active_attn), (&a.active_ffn, &b.active_ffn)])
        .map(|(a, b)| a.iter().filter(|t| b.binary_search(t).is_ok()).count() as f64 / b.len() as f64)
        .collect();
    shares.iter().sum::<f64>() / shares.len() as f64
}

/// Products of 16-bit rows: normalised rows are kept, scores of FFNs and factors on rows fused. In one tile, in several (the last
/// of fewer rows than such products take), and in tiles too small for them. Scores of random models lie close together, so that
/// rounding the rows changes sets. On the CPU it does, against rows in F32; a GPU may change a quarter more, and one in 200.
#[test]
fn skipping_on_16_bit_rows() {
    for tiny in models() {
        let (dir, path) = in_scratch(&tiny);
        let [small, exact] = in_bf16(&path);
        let options = |path: &Path, n_ubatch| {
            let model = open(path, "CPU");
            let mut calibration = CalibrateOptions::new(ProxySize { d_low: 64, rank: 32 }, "test");
            (calibration.n_tokens, calibration.piece) = (1024, 256);
            let proxies = dir.path().join("proxies.gguf");
            let done = calibrate(&model, &[tiny.prompt(N)], &calibration, &mut |_| ControlFlow::Continue(()));
            done.unwrap().write(&proxies).unwrap();
            let sidecar = Some(Arc::new(Sidecar::open(&proxies).unwrap()));
            let method = Schedule { use_proxy: true, ..schedule(&model) }.into();
            SessionOptions { method, sidecar, n_ubatch, record_selection: true, ..SessionOptions::default() }
        };
        let prompt = tiny.prompt(N);
        let (expected, chosen) = run(&exact, "CPU", &prompt, &[3, 1, 4], options(&exact, None));
        let (_, rounded) = run(&small, "CPU", &prompt, &[], options(&small, None));
        let on_cpu = overlap(&rounded, &chosen);
        for n_ubatch in [None, Some(300), Some(100)] {
            let (logits, selection) = run(&small, "CUDA0", &prompt, &[3, 1, 4], options(&small, n_ubatch));
            let on_gpu = overlap(&selection, &chosen);
            let errors = logits.iter().zip(&expected).map(|(got, expected)| nmse(got, expected)).fold(0.0, f64::max);
            let what = format!("{} in BF16, tiles of {n_ubatch:?}", tiny.name);
            println!("{what}: sets overlap by {on_gpu:.4}, on the CPU {on_cpu:.4}; NMSE at most {errors:.1e}");
            assert!(1.0 - on_gpu <= 1.25 * (1.0 - on_cpu) + 0.005, "{what}: sets overlap by {on_gpu}");
            assert!(errors <= SKIPPING, "{what}: NMSE {errors}, bound {SKIPPING}");
        }
    }
}

#[test]
fn quantized_cache() {
    let tiny = &models()[0];
    let (_dir, path) = in_scratch(tiny);
    let options =
        SessionOptions { cache_type_k: CacheType::Q8_0, cache_type_v: CacheType::Q8_0, ..SessionOptions::default() };
    compare("q8_0 cache", &path, &tiny.prompt(N), &options, 1e-3);
}

/// Some layers on each, or experts on the CPU: prompts, answers, prompts behind answers; dense and skipping, with stages on either
/// side of the border.
#[test]
fn layers_on_both() {
    for tiny in models() {
        let (_dir, path) = in_scratch(&tiny);
        let prompt = tiny.prompt(N);
        let schedule = schedule(&open(&path, "CPU"));
        let split = |(n_gpu_layers, n_cpu_moe)| {
            let device = Some("CUDA0".into());
            let options = ModelOptions { device, n_gpu_layers, n_cpu_moe, ..ModelOptions::default() };
            Model::open(&path, options).unwrap()
        };
        let mut splits: Vec<_> = (0..=tiny.n_layer).map(|n| (Some(n), 0)).collect();
        if tiny.experts.is_some() {
            splits.extend([(None, 1), (None, usize::MAX), (Some(2), tiny.n_layer - 1)]);
        }
        let methods: [(Arc<dyn Method>, f64); 2] = [(Arc::new(Dense), F32_WEIGHTS), (schedule.into(), SKIPPING)];
        for (method, bound) in methods {
            let options = SessionOptions { method, record_selection: true, ..SessionOptions::default() };
            let read = |model: Arc<Model>| {
                let mut session = Session::new(model, options.clone()).unwrap();
                let report = session.prefill(&prompt, &mut |_| ControlFlow::Continue(())).unwrap();
                let mut logits = vec![session.logits().to_vec()];
                for token in [3, 1, 4] {
                    session.decode(token).unwrap();
                    logits.push(session.logits().to_vec());
                }
                session.prefill(&prompt[..70], &mut |_| ControlFlow::Continue(())).unwrap();
                logits.push(session.logits().to_vec());
                session.decode(5).unwrap();
                logits.push(session.logits().to_vec());
                (logits, report.selection, session.kv_lengths())
            };
            let (cpu, chosen, lengths) = read(open(&path, "CPU"));
            for &(n_gpu_layers, n_cpu_moe) in &splits {
                let (both, selection, kv_lengths) = read(split((n_gpu_layers, n_cpu_moe)));
                let what = format!("{}, {n_gpu_layers:?} layers on the GPU, {n_cpu_moe} without experts", tiny.name);
                assert_eq!(kv_lengths, lengths, "{what}");
                let common = if chosen.is_empty() { 1.0 } else { overlap(&selection, &chosen) };
                assert!(common >= 0.99, "{what}: sets overlap by {common}");
                for (step, (got, expected)) in both.iter().zip(&cpu).enumerate() {
                    let e = nmse(got, expected);
                    assert!(e <= bound, "{what}, step {step}: NMSE {e}, bound {bound}");
                }
            }
        }
    }
}

/// A document read once, and questions behind it: as prompts read from the start on the same devices, with layers on either, the
/// residual stream on the device and in host memory, and from a file.
#[test]
fn documents() {
    for tiny in models() {
        let (dir, path) = in_scratch(&tiny);
        let text = tiny.prompt(N + 60);
        let questions = [&text[..N + 7], &text[..N + 60], &[&text[..N], &text[3..40]].concat()];
        let schedule = schedule(&open(&path, "CPU"));
        let methods: [(Arc<dyn Method>, f64); 2] = [(Arc::new(Dense), F32_WEIGHTS), (schedule.into(), SKIPPING)];
        for (method, bound) in methods {
            for n_gpu_layers in [None, Some(1), Some(tiny.n_layer - 1)] {
                let options = ModelOptions { device: Some("CUDA0".into()), n_gpu_layers, ..ModelOptions::default() };
                let model = Model::open(&path, options).unwrap();
                let session = |document_memory| {
                    let method = method.clone();
                    let options =
                        SessionOptions { method, record_selection: true, document_memory, ..SessionOptions::default() };
                    Session::new(model.clone(), options).unwrap()
                };
                let ask = |session: &mut Session, prompt: &[u32]| {
                    session.clear();
                    let report = session.prefill(prompt, &mut |_| ControlFlow::Continue(())).unwrap();
                    let mut logits = vec![session.logits().to_vec()];
                    for token in [3, 1, 4] {
                        session.decode(token).unwrap();
                        logits.push(session.logits().to_vec());
                    }
                    (logits, report)
                };
                let mut answers = Vec::new();
                for memory in [DocumentMemory::Device, DocumentMemory::Host] {
                    let (mut behind, mut fresh) = (session(memory), session(memory));
                    behind.read(&text[..N], &mut |_| ControlFlow::Continue(())).unwrap();
                    for question in questions {
                        let ((got, report), (expected, whole)) =
                            (ask(&mut behind, question), ask(&mut fresh, question));
                        let what = format!("{}, {n_gpu_layers:?} layers on the GPU, {memory:?}", tiny.name);
                        assert!(
                            report.n_reused + 64 >= N && whole.n_reused == 0,
                            "{what}: {} not read anew",
                            report.n_reused
                        );
                        assert_eq!(behind.kv_lengths(), fresh.kv_lengths(), "{what}");
                        let common =
                            if whole.layers.is_empty() { 1.0 } else { overlap(&report.selection, &whole.selection) };
                        assert!(common >= 0.99, "{what}: sets overlap by {common}");
                        for (step, (got, expected)) in got.iter().zip(&expected).enumerate() {
                            let e = nmse(got, expected);
                            assert!(e <= bound, "{what}, step {step}: NMSE {e}, bound {bound}");
                        }
                        answers.push(got);
                    }
                    let file = dir.path().join("document");
                    behind.document().unwrap().save(&file).unwrap();
                    let mut opened = session(memory);
                    opened.open_document(&file).unwrap();
                    // Not a bit is lost on the way, nor by where the rows lie.
                    assert_eq!(ask(&mut opened, questions[0]).0, answers[0], "{}", tiny.name);
                }
                let (device, host) = answers.split_at(questions.len());
                assert!(device == host, "{}: host memory changes answers", tiny.name);
            }
        }
    }
}

/// Two sessions of one model in two threads, whose prompts are long enough for 16-bit copies of weights: each reads what the other
/// has just had copied, and has copied what takes its place. Results are those of one alone, bit for bit: every kernel sums in
/// one order.
#[test]
fn two_sessions_at_once() {
    let tiny = Tiny { n_embd: 512, n_ff: 2048, n_layer: 6, ..models().swap_remove(0) };
    let (dir, path) = in_scratch(&tiny);
    let source = Gguf::open(&path, OpenOptions { mmap: true, mlock: false }).unwrap();
    let small = dir.path().join("q4_k_m.gguf");
    let options = QuantizeOptions { preset: Preset::Q4_K_M, allow_requantize: false };
    quantize(&source, &small, options, &mut |_, _| {}).unwrap();
    let model = open(&small, "CUDA0");
    let schedule = schedule(&model);
    let session = |skips: bool| {
        let method: Arc<dyn Method> = if skips { schedule.clone().into() } else { Arc::new(Dense) };
        Session::new(model.clone(), SessionOptions { method, ..SessionOptions::default() }).unwrap()
    };
    let read = |session: &mut Session, prompts: &[Vec<u32>]| -> Vec<Vec<u32>> {
        let mut out = Vec::new();
        for prompt in prompts {
            session.clear();
            session.prefill(prompt, &mut |_| ControlFlow::Continue(())).unwrap();
            out.push(session.logits().iter().map(|x| x.to_bits()).collect());
            for token in [3, 1, 4, 1, 5] {
                session.decode(token).unwrap();
                out.push(session.logits().iter().map(|x| x.to_bits()).collect());
            }
        }
        out
    };
    // Of lengths that differ between the threads, so that they drift apart.
    let prompts = |first: usize| -> Vec<Vec<u32>> { (0..12).map(|i| tiny.prompt(first + 131 * (i % 5))).collect() };
    let (mine, others) = (prompts(600), prompts(1111));
    for (a, b) in [(false, false), (false, true), (true, true)] {
        let alone = [read(&mut session(a), &mine), read(&mut session(b), &others)];
        for round in 0..5 {
            let together = std::thread::scope(|s| {
                let threads = [s.spawn(|| read(&mut session(a), &mine)), s.spawn(|| read(&mut session(b), &others))];
                threads.map(|t| t.join().unwrap())
            });
            for (one, (got, expected)) in together.iter().zip(&alone).enumerate() {
                let wrong = got.iter().zip(expected).filter(|(g, e)| g != e).count();
                assert_eq!(wrong, 0, "session {one} of skipping {a} and {b}, round {round}: wrong results");
            }
        }
    }
}

/// One prompt after another gives the same bits every time, whatever was read in between: every kernel sums in one order, and none
/// begins before what it reads is there. Of a model in a file, named by `SPTS_STRESS_MODEL`, for as many rounds as
/// `SPTS_STRESS_ROUNDS` says; else of a tiny one.
#[test]
fn prompts_repeat_to_the_last_bit() {
    let tiny = Tiny { n_embd: 512, n_ff: 2048, n_layer: 6, n_ctx_train: 16384, ..models().swap_remove(0) };
    let (dir, path) = in_scratch(&tiny);
    let model = match std::env::var_os("SPTS_STRESS_MODEL") {
        Some(file) => open(Path::new(&file), "CUDA0"),
        None => {
            let source = Gguf::open(&path, OpenOptions { mmap: true, mlock: false }).unwrap();
            let small = dir.path().join("q4_k_m.gguf");
            let options = QuantizeOptions { preset: Preset::Q4_K_M, allow_requantize: false };
            quantize(&source, &small, options, &mut |_, _| {}).unwrap();
            open(&small, "CUDA0")
        }
    };
    let rounds = std::env::var("SPTS_STRESS_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(5);
    let n_vocab = model.shape().n_vocab as u32;
    let prompt =
        |n: u32| -> Vec<u32> { (0..n).map(|i| i.wrapping_mul(2_654_435_761).rotate_left(9) % n_vocab).collect() };
    let prompts = [7840, 300, 5001, 7840, 7168, 9000].map(prompt);
    let methods: [Arc<dyn Method>; 2] = [Arc::new(Dense), schedule(&model).into()];
    let mut session = Session::new(model.clone(), SessionOptions::default()).unwrap();
    let mut expected: Vec<Vec<u32>> = Vec::new();
    let mut wrong = Vec::new();
    for round in 0..rounds {
        let mut read = Vec::new();
        for prompt in &prompts {
            for method in &methods {
                session.set_method(method.clone()).unwrap();
                session.clear();
                session.prefill(prompt, &mut |_| ControlFlow::Continue(())).unwrap();
                read.push(session.logits().iter().map(|x| x.to_bits()).collect::<Vec<u32>>());
                for token in [3, 1, 4] {
                    session.decode(token).unwrap();
                }
                read.push(session.logits().iter().map(|x| x.to_bits()).collect());
            }
        }
        match round {
            0 => expected = read,
            _ => wrong.extend((0..read.len()).filter(|&i| read[i] != expected[i]).map(|i| (round, i))),
        }
    }
    assert!(wrong.is_empty(), "of {rounds} rounds, other logits in (round, step): {wrong:?}");
}

/// Widths that no vector of eight values divides.
#[test]
fn odd_widths() {
    for tiny in [
        Tiny { n_ff: 1003, ..models().swap_remove(0) },
        Tiny { n_ff: 514, ..models().swap_remove(3) },
        Tiny { n_embd: 250, n_ff: 509, ..models().swap_remove(0) },
    ] {
        let (_dir, path) = in_scratch(&tiny);
        let [small, exact] = in_bf16(&path);
        for n in [301, N] {
            let prompt = tiny.prompt(n);
            let (expected, _) = run(&exact, "CPU", &prompt, &[3, 1, 4], SessionOptions::default());
            let (got, _) = run(&small, "CUDA0", &prompt, &[3, 1, 4], SessionOptions::default());
            for (step, (got, expected)) in got.iter().zip(&expected).enumerate() {
                let e = nmse(got, expected);
                assert!(e <= QUANTIZED_WEIGHTS, "{} {n}, n_ff {}, step {step}: NMSE {e}", tiny.name, tiny.n_ff);
            }
        }
    }
}

/// The first layer skips, too: what scores its candidates sees all of them. And a pool wider than any prompt.
#[test]
fn skipping_from_the_first_layer_on() {
    let tiny = &models()[0];
    let (_dir, path) = in_scratch(tiny);
    let rounded = in_tf32(tiny, &path);
    let usual = schedule(&open(&path, "CPU"));
    for (cache, pool) in [
        (CacheType::F16, Pool::Max(3)),
        (CacheType::F16, Pool::Max(16_777_217)),
        (CacheType::F32, Pool::Max(3)),
        (CacheType::F32, Pool::Avg(16_777_217)),
    ] {
        let mut schedule = Schedule { skip_from: 0, ..usual.clone() };
        schedule.probe.pool = pool;
        compare_in(cache, &format!("from layer 0, {cache:?}, {pool:?}"), [&path, &rounded], &tiny.prompt(N), &schedule);
    }
}

/// Methods that read a part of the prompt: the same tokens, and the logits of these; where a program scores them first, rounding
/// may change one in twenty (random models' scores lie close together).
#[test]
fn rivals() {
    for tiny in models().iter().filter(|tiny| ["llama", "llama-yarn", "qwen2"].contains(&tiny.name)) {
        let (_dir, path) = in_scratch(tiny);
        let (_draft_dir, draft) = in_scratch(&Tiny { seed: 2, ..tiny.clone() });
        let on = |device: &str, method: &str| {
            let options = SessionOptions {
                method: Rival::parse(method).unwrap().method(),
                draft: Some(open(&draft, device)),
                record_selection: true,
                ..SessionOptions::default()
            };
            run(&path, device, &tiny.prompt(N), &[3, 1, 4], options)
        };
        for method in ["last:0.5", "random:0.5", "gemfilter:0.3@1", "specprefill:0.3"] {
            let what = format!("{} {method}", tiny.name);
            let ((expected, cpu), (got, gpu)) = (on("CPU", method), on("CUDA0", method));
            let overlap = overlap(&gpu, &cpu);
            println!("{what}: sets overlap by {overlap:.4}");
            let chosen_by_scores = !method.contains(":0.5");
            assert!(overlap >= if chosen_by_scores { 0.95 } else { 1.0 }, "{what}: sets overlap by {overlap}");
            if overlap == 1.0 {
                for (got, expected) in got.iter().zip(&expected) {
                    let error = nmse(got, expected);
                    assert!(error <= F32_WEIGHTS, "{what}: NMSE {error}");
                }
            }
        }
    }
}

/// Where our own kernel computes attention, no causal mask takes memory, but for the one row of the last query.
#[test]
fn masks_are_made_only_where_a_kernel_reads_them() {
    let tiny = &models()[0];
    let heads =
        Heads { n_head: tiny.n_head, n_head_kv: tiny.n_head_kv, head_dim: tiny.head_dim, scale: 1.0, sinks: None };
    if !Kernels::of("CUDA0").causal_attention(N, &heads, [GgmlType::F16; 2]) {
        eprintln!("skipped: this GPU has no attention kernel of ours");
        return;
    }
    let (_dir, path) = in_scratch(tiny);
    let mut session = Session::new(open(&path, "CUDA0"), SessionOptions::default()).unwrap();
    let report = session.prefill(&tiny.prompt(N), &mut |_| ControlFlow::Continue(())).unwrap();
    let entry = 2 * 2 * tiny.n_head_kv * tiny.head_dim;
    // Room for an answer of 512 tokens, in steps of 256.
    let caches: usize = session.kv_lengths().iter().map(|n| (n + 512).next_multiple_of(256) * entry).sum();
    let masks = session.n_bytes() - report.scratch_bytes - caches;
    // A mask of 512 rows would have more than 1300 x 512 x 2 bytes.
    assert!(masks < 64 << 10, "masks of {masks} bytes");
}

/// What results that are no numbers leave in the caches does not reach the next prompt.
#[test]
fn recovery_from_results_that_are_no_numbers() {
    for tiny in models() {
        let bad = tiny.n_vocab() - 1;
        let mut file = tiny.build();
        let rows = &mut file.tensors.iter_mut().find(|t| t.name == "token_embd.weight").unwrap().data;
        let n_embd = rows.len() / tiny.n_vocab();
        rows[bad * n_embd..].fill(f32::INFINITY);
        if file.tensor("output.weight").is_none() {
            let rows = &file.tensor("token_embd.weight").unwrap().data;
            let data = rows.iter().map(|x| if x.is_finite() { *x } else { 0.0 }).collect();
            file.add("output.weight", &[n_embd, tiny.n_vocab()], data);
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        file.write(&path);
        let model = open(&path, "CUDA0");
        let session = || Session::new(model.clone(), SessionOptions::default()).unwrap();
        let good: Vec<u32> = tiny.prompt(N).into_iter().map(|t| t.min(bad as u32 - 1)).collect();
        let poison: Vec<u32> = (0..N).map(|i| if i % 3 == 0 { bad as u32 } else { good[i] }).collect();
        for n in [5, 300, 1000] {
            let read = |session: &mut Session| {
                session.prefill(&good[..n], &mut |_| ControlFlow::Continue(())).unwrap();
                let first = session.logits().to_vec();
                session.decode(3).unwrap();
                [first, session.logits().to_vec()]
            };
            let expected = read(&mut session());
            let mut used = session();
            used.prefill(&poison, &mut |_| ControlFlow::Continue(())).unwrap();
            assert!(used.logits().iter().any(|x| x.is_nan()), "{}: the prompt is harmless", tiny.name);
            used.clear();
            // Its caches are longer, which other cuts of the same sums go through.
            for (got, expected) in read(&mut used).iter().zip(&expected) {
                let e = nmse(got, expected);
                assert!(e <= 1e-6, "{}, {n} tokens: NMSE {e}", tiny.name);
            }
        }
    }
}

/// Text, and more of it: out-of-place control tokens would multiply any difference, between two arrangements of the CPU, too.
#[test]
fn smollm2() {
    let folder = std::env::var_os("SPTS_MODELS")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/models")), PathBuf::from);
    let path = folder.join("smollm2-135m.gguf");
    if !path.exists() {
        eprintln!("skipped: {} is not there (scripts/fetch.sh smollm2-135m)", path.display());
        return;
    }
    let text = "It was the best of times, it was the worst of times, it was the age of wisdom. ".repeat(100);
    let model = open(&path, "CPU");
    let tokens = model.tokenizer().encode(&text, true, true);
    let (prompt, more) = tokens.split_at(tokens.len() - 12);
    compare_with("smollm2", &path, prompt, more, &SessionOptions::default(), QUANTIZED_WEIGHTS);
}

#[test]
fn no_such_device() {
    let (_dir, path) = in_scratch(&models()[0]);
    let options = ModelOptions { device: Some("CUDA99".into()), ..ModelOptions::default() };
    let message = Model::open(&path, options).err().map(|e: Error| e.to_string()).unwrap_or_default();
    assert!(message.contains("CUDA99") && message.contains("CPU"), "{message}");
}
