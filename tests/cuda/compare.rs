//! Models for a GPU, their runs on either device, and how far results may be apart.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use spts::ggml::quantize::dequantize;
use spts::gguf::{GgmlType, Gguf, GgufWriter, OpenOptions};
use spts::method::spts::schedule::{Pool, Schedule};
use spts::session::prefill::LayerSelection;
use spts::{LayerKind, Model, ModelOptions, Session, SessionOptions};

use crate::support::tiny::Tiny;

pub const F32_WEIGHTS: f64 = 1e-4;
pub const QUANTIZED_WEIGHTS: f64 = 1e-2;
/// Up to one token in a hundred may be another one where scores are close, in each of several layers.
pub const SKIPPING: f64 = 5e-2;

/// Where a mixture may choose another expert for a token, since a few rows are multiplied by other kernels than many: seen up to
/// 0.005 (gpt-oss), and 1e-4 or less everywhere else.
pub const OTHER_EXPERTS: f64 = 1e-2;

/// How far dense logits may be apart, and those of tokens that are the same on both.
pub fn dense_bound(tiny: &Tiny) -> f64 {
    if tiny.experts.is_some() { OTHER_EXPERTS } else { F32_WEIGHTS }
}

/// Whether logits say anything behind sets that overlap so far. Random mixtures and models of Gemma 4 make much of every token that
/// is chosen otherwise: rounding on the CPU moves theirs by up to 0.6. Their logits are compared where sets are the same, as those
/// are that a seed chooses.
pub fn says_something(tiny: &Tiny, overlap: f64) -> bool {
    overlap == 1.0 || tiny.experts.is_none() && tiny.gemma4.is_none()
}

/// Enough rows for the kernels of long prompts.
pub const N: usize = 1300;

/// Head sizes that GPU kernels have, in every architecture. Of mixtures four experts in six compute a token: where rounding chooses
/// another one, it is the one that matters least.
pub fn models() -> Vec<Tiny> {
    let wide = Tiny::wide;
    vec![
        wide("llama", 8, 2, 128),
        wide("llama-rope-freqs", 12, 4, 64),
        wide("llama-yarn", 8, 8, 64),
        wide("qwen2", 14, 2, 64),
        wide("qwen3", 8, 1, 128),
        wide("gemma3", 4, 1, 256),
        wide("gemma4", 4, 1, 512),
        wide("gemma4-small", 4, 2, 512),
        Tiny { experts: Some((6, 4)), n_ff: 128, ..wide("gemma4-moe", 4, 1, 256) },
        wide("phi3", 4, 4, 96),
        wide("olmo2", 4, 2, 64),
        wide("olmo3", 4, 2, 64),
        Tiny { n_rot: 64, ..wide("glm4", 8, 1, 128) },
        Tiny { experts: Some((6, 4)), n_ff: 128, ..wide("qwen3moe", 8, 2, 64) },
        Tiny { experts: Some((6, 4)), n_ff: 128, ..wide("gpt-oss", 8, 1, 64) },
        wide("qwen35", 4, 2, 256),
        Tiny { experts: Some((6, 4)), n_ff: 64, ..wide("qwen35moe", 8, 2, 128) },
    ]
}

/// Layers of a model that may be on the GPU, of so many: layers that share keys go to one device.
pub fn may_have_on_gpu(tiny: &Tiny, n: usize) -> bool {
    tiny.name != "gemma4-small" || n == 0 || n >= 5
}

/// Entries in the caches of layers that keep all. One with a window may forget some, as tiles are cut.
pub fn lengths(session: &Session) -> Vec<usize> {
    let shape = session.model().shape();
    let keeps_all = |layer: &usize| shape.layer_kind(*layer) != LayerKind::Windowed;
    let lengths = session.kv_lengths();
    (0..shape.n_layer).filter(keeps_all).map(|layer| lengths[layer]).collect()
}

pub fn open(path: &Path, device: &str) -> Arc<Model> {
    let options = ModelOptions { device: Some(device.into()), ..ModelOptions::default() };
    Model::open(path, options).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

pub fn nmse(got: &[f32], expected: &[f32]) -> f64 {
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
pub fn run(
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

/// A dense prompt and what follows it, on both.
pub fn compare(what: &str, path: &Path, prompt: &[u32], more: &[u32], options: &SessionOptions, bound: f64) {
    let (cpu, gpu) =
        (run(path, "CPU", prompt, more, options.clone()).0, run(path, "CUDA0", prompt, more, options.clone()).0);
    for (step, (gpu, cpu)) in gpu.iter().zip(&cpu).enumerate() {
        let e = nmse(gpu, cpu);
        println!("{what}, step {step}: NMSE {e:.1e}");
        assert!(e <= bound, "{what}, step {step}: NMSE {e}, bound {bound}");
    }
}

/// The same model in F32 whose matrices have the ten bits of mantissa that TF32 has.
pub fn in_tf32(tiny: &Tiny, path: &Path) -> PathBuf {
    let mut file = tiny.build();
    for x in file.tensors.iter_mut().filter(|t| t.shape.len() >= 2).flat_map(|t| &mut t.data) {
        *x = f32::from_bits((x.to_bits() + (1 << 12)) & !((1 << 13) - 1));
    }
    let to = path.with_extension("tf32");
    file.write(&to);
    to
}

pub fn schedule(model: &Model) -> Schedule {
    let mut schedule =
        Schedule { use_proxy: false, ..Schedule::fractional(model.shape(), [0.5, 0.4, 0.3, 0.2], 0.03).unwrap() };
    (schedule.probe.queries, schedule.probe.pool) = (8, Pool::Max(3));
    schedule
}

pub fn in_scratch(tiny: &Tiny) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    tiny.build().write(&path);
    (dir, path)
}

/// The same model with every matrix in F32.
pub fn in_f32(path: &Path) -> PathBuf {
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

/// Files with the same matrices, rounded to BF16: one in that type, one in F32.
pub fn in_bf16(path: &Path) -> [PathBuf; 2] {
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

/// What rounding matrices to TF32 changes on the CPU.
pub struct Rounding {
    /// The share of the tokens that a schedule chooses otherwise.
    pub changed: f64,
    /// The largest NMSE of the logits behind a prompt and three tokens more.
    pub error: f64,
}

impl Rounding {
    pub fn of(tiny: &Tiny, path: &Path, prompt: &[u32], options: &SessionOptions) -> Rounding {
        let rounded = in_tf32(tiny, path);
        let [exact, rounded] = [path, &rounded].map(|path| run(path, "CPU", prompt, &[3, 1, 4], options.clone()));
        let changed = if exact.1.is_empty() { 0.0 } else { 1.0 - overlap(&rounded.1, &exact.1) };
        let error = rounded.0.iter().zip(&exact.0).map(|(got, expected)| nmse(got, expected)).fold(0.0, f64::max);
        Rounding { changed, error }
    }

    /// A GPU's sets may differ by half more than these, and by one token in 100.
    #[track_caller]
    pub fn allows_sets(&self, what: &str, overlap: f64) {
        let changed = self.changed;
        assert!(1.0 - overlap <= 1.5 * changed + 0.01, "{what}: sets overlap by {overlap}; rounding changes {changed}");
    }

    /// A GPU's logits may differ by a quarter more than these, or by the bound.
    #[track_caller]
    pub fn allows_error(&self, what: &str, error: f64, bound: f64) {
        let by_rounding = self.error;
        assert!(
            error <= bound.max(1.25 * by_rounding),
            "{what}: NMSE {error}, by rounding {by_rounding}, bound {bound}"
        );
    }
}

/// The share of each layer's selected tokens that are the same, in the mean.
pub fn overlap(a: &[LayerSelection], b: &[LayerSelection]) -> f64 {
    let shares: Vec<f64> = a
        .iter()
        .zip(b)
        .flat_map(|(a, b)| [(&a.active_attn, &b.active_attn), (&a.active_ffn, &b.active_ffn)])
        .map(|(a, b)| a.iter().filter(|t| b.binary_search(t).is_ok()).count() as f64 / b.len() as f64)
        .collect();
    shares.iter().sum::<f64>() / shares.len() as f64
}
