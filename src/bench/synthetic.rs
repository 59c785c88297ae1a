//! Models with random weights: valid GGUF files of a known shape, for measuring speed and memory.
//!
//! Weights have mean 0 and standard deviation `1 / sqrt(n_in)`, norms are about 1: activations stay finite and of a real
//! model's size, and what comes out is noise. The tokenizer is the byte alphabet, one merge, two special tokens, and
//! placeholders up to the vocabulary's size. llama.cpp loads the same file.

use std::fs::{self, File, OpenOptions as FileOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use half::f16;
use spts_quant::rows::convert_rows;
use spts_quant::{Choice, ModelShape, Preset, TensorType, choose_type};

use crate::gguf::{Array, GgmlType, Gguf, GgufError, GgufWriter, OpenOptions, TensorDecl, no_source};
use crate::method::spts::schedule::Schedule;
use crate::method::spts::sidecar::{self, ARCHITECTURE, TENSORS, VERSION, tensor_name};
use crate::graph::ir::DeltaHeads;
use crate::model::shape::{LayerSizes, Shape, SlidingWindow};
use crate::output_file::OutputFile;
use crate::quantize::ggml_type;
use crate::random::SplitMix64;
use crate::tokenizer::unicode::byte_to_char;

use super::blocks::RandomBlocks;
use super::tensors::{Fill, tensors};

/// Bytes made at a time by a thread: small enough for its cache.
const CHUNK: usize = 1 << 20;

/// A model of a given shape with random weights.
#[derive(Clone, Debug)]
pub struct Synthetic {
    /// The shape of the model.
    pub shape: Shape,
    /// The mix of tensor types.
    pub preset: Preset,
    /// The seed of the random weights.
    pub seed: u64,
}

/// What the architecture adds to the sizes.
struct Traits {
    freq_base: f32,
    rms_eps: f32,
    /// Llama 3.1 and 3.2 stretch low frequencies by this.
    rope_factor: Option<f64>,
    /// YaRN's factor, and the context before it.
    yarn: Option<(f32, u32)>,
}

impl Synthetic {
    fn traits(&self) -> Traits {
        let usual = Traits { freq_base: 1e6, rms_eps: 1e-6, rope_factor: None, yarn: None };
        let llama_3 = Traits { freq_base: 5e5, rms_eps: 1e-5, ..usual };
        match self.shape.name.as_str() {
            "llama-3.1-8b" => Traits { rope_factor: Some(8.0), ..llama_3 },
            "llama-3.2-1b" => Traits { rope_factor: Some(32.0), ..llama_3 },
            "smollm2-135m" => Traits { freq_base: 1e5, rms_eps: 1e-5, ..usual },
            name if name.starts_with("qwen3.6-") => Traits { freq_base: 1e7, ..usual },
            _ if self.shape.arch == "gpt-oss" => Traits { freq_base: 1.5e5, yarn: Some((32.0, 4096)), ..llama_3 },
            _ => usual,
        }
    }

    /// Writes the model at `path`. `progress` is called with each tensor's name and the share that is done.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path, progress: impl FnMut(&str, f64)) -> Result<(), GgufError> {
        self.write_into(OutputFile::create(path, &[])?, progress)
    }

    /// As [`Synthetic::write`], into a file that has been created already.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_into(&self, out: OutputFile, mut progress: impl FnMut(&str, f64)) -> Result<(), GgufError> {
        let (writer, mut fill) = self.writer(&mut progress)?;
        writer.write_into(out, |decl, out| fill(decl, out))
    }

    /// The model in a nameless file in the system's folder for temporary files (`TMPDIR`). It is gone when nobody uses it any more.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn open(&self, mut progress: impl FnMut(&str, f64)) -> Result<Gguf, GgufError> {
        let (writer, mut fill) = self.writer(&mut progress)?;
        nameless(&self.label(), |out, label| writer.write_to(out, label, |decl, out| fill(decl, out)))
    }

    /// The name of the shape and types in messages and reports.
    fn label(&self) -> String {
        format!("synthetic {} {}", self.shape.name, self.preset.name())
    }

    /// The declared file, and what fills its tensors.
    #[allow(clippy::type_complexity)]
    fn writer<'p>(
        &self,
        progress: &'p mut dyn FnMut(&str, f64),
    ) -> Result<(GgufWriter<'p>, impl FnMut(&TensorDecl, &mut dyn Write) -> io::Result<()> + 'p), GgufError> {
        let traits = self.traits();
        let mut writer = GgufWriter::new();
        self.metadata(&mut writer, &traits)?;
        let tensors = tensors(&self.shape, traits.rope_factor.is_some());
        let s = &self.shape;
        let model = ModelShape { n_layer: s.n_layer, n_head: s.n_head, n_head_kv: s.n_head_kv, tied_output: s.tied };
        let mut types = Vec::new();
        for t in &tensors {
            let ty = match choose_type(self.preset, &t.name, &t.shape, &model) {
                Choice::To { ty, .. } if t.fill == Fill::Matrix => ty,
                _ => TensorType::F32,
            };
            writer.declare_tensor(&t.name, &t.shape, ggml_type(ty))?;
            types.push(ty);
        }
        let total: u64 = tensors.iter().map(|t| t.shape.iter().product::<u64>()).sum();
        let (mut index, mut done, seed) = (0, 0, self.seed);
        let fill = move |decl: &TensorDecl, out: &mut dyn Write| {
            let (tensor, ty) = (&tensors[index], types[index]);
            progress(&decl.name, done as f64 / total as f64);
            index += 1;
            done += tensor.shape.iter().product::<u64>();
            let seed = seed.wrapping_mul(0x9e37_79b9).wrapping_add(index as u64) << 32;
            match (tensor.fill, traits.rope_factor) {
                (Fill::Matrix | Fill::Router, _) => matrix(ty, &tensor.shape, seed, out),
                (Fill::Norm, _) => vector(tensor.shape[0], seed, 1.0, 0.1, out),
                (Fill::Root, _) => vector(tensor.shape[0], seed, (tensor.shape[0] as f64).sqrt(), 0.1, out),
                (Fill::Bias, _) => vector(tensor.shape.iter().product(), seed, 0.0, 0.1, out),
                (Fill::Decay, _) => vector(tensor.shape[0], seed, -0.5, 0.4, out),
                (Fill::QuarterRotates, _) => {
                    let n = tensor.shape[0];
                    let factor = |i: u64| if 4 * i < n { 1.0f32 } else { 1e30 };
                    (0..n).try_for_each(|i| out.write_all(&factor(i).to_le_bytes()))
                }
                (Fill::RopeFactors, factor) => {
                    let factors = rope_factors(2 * tensor.shape[0] as usize, traits.freq_base, factor.unwrap_or(1.0));
                    factors.iter().try_for_each(|x| out.write_all(&x.to_le_bytes()))
                }
            }
        };
        Ok((writer, fill))
    }

    fn metadata(&self, w: &mut GgufWriter<'_>, traits: &Traits) -> Result<(), GgufError> {
        let s = &self.shape;
        w.set_str("general.architecture", &s.arch)?;
        w.set_str("general.type", "model")?;
        w.set_str("general.name", &format!("synthetic {}", s.name))?;
        w.set_u32("general.file_type", self.preset.file_type())?;
        w.set_u32("general.quantization_version", 2)?;
        let key = |suffix: &str| format!("{}.{suffix}", s.arch);
        let is_gemma4 = s.arch == "gemma4";
        // Lists, where layers differ.
        let lists: &[&str] = match is_gemma4 {
            true if s.experts.is_none() => &["feed_forward_length", "attention.head_count_kv"],
            true => &["attention.head_count_kv"],
            false => &[],
        };
        for (suffix, value) in [
            ("context_length", Shape::trained_context(&s.name).unwrap_or(32_768)),
            ("embedding_length", s.n_embd),
            ("block_count", s.n_layer),
            ("feed_forward_length", s.experts.filter(|_| is_gemma4).map_or(s.n_ff, |experts| experts.n_ff_shared)),
            ("attention.head_count", s.n_head),
            ("attention.head_count_kv", s.n_head_kv),
            ("attention.key_length", s.head_dim),
            ("attention.value_length", s.head_dim),
            ("rope.dimension_count", self.n_rot()),
            ("vocab_size", s.n_vocab),
        ] {
            if !lists.contains(&suffix) {
                w.set_u32(&key(suffix), value as u32)?;
            }
        }
        w.set_f32(&key("attention.layer_norm_rms_epsilon"), traits.rms_eps)?;
        w.set_f32(&key("rope.freq_base"), traits.freq_base)?;
        if let Some((factor, n_ctx_orig)) = traits.yarn {
            w.set_str(&key("rope.scaling.type"), "yarn")?;
            w.set_f32(&key("rope.scaling.factor"), factor)?;
            w.set_u32(&key("rope.scaling.original_context_length"), n_ctx_orig)?;
        }
        if let Some(experts) = s.experts {
            w.set_u32(&key("expert_count"), experts.n_expert as u32)?;
            w.set_u32(&key("expert_used_count"), experts.n_used as u32)?;
            w.set_u32(&key("expert_feed_forward_length"), s.n_ff as u32)?;
            if experts.n_ff_shared > 0 && !is_gemma4 {
                w.set_u32(&key("expert_shared_feed_forward_length"), experts.n_ff_shared as u32)?;
            }
        }
        if let Some(recurrent) = &s.recurrent {
            let DeltaHeads { n_head_k, n_head_v, head_dim, d_conv, .. } = recurrent.heads;
            let n_pairs = self.n_rot() as u32 / 2;
            let sections = vec![n_pairs.div_ceil(3), (n_pairs + 1) / 3, n_pairs / 3, 0];
            w.set_array(&key("rope.dimension_sections"), Array::U32(sections))?;
            w.set_array(&key("attention.recurrent_layers"), Array::Bool(recurrent.layers[..s.n_layer].to_vec()))?;
            for (suffix, value) in [
                ("ssm.conv_kernel", d_conv),
                ("ssm.state_size", head_dim),
                ("ssm.group_count", n_head_k),
                ("ssm.time_step_rank", n_head_v),
                ("ssm.inner_size", n_head_v * head_dim),
            ] {
                w.set_u32(&key(suffix), value as u32)?;
            }
        }
        if let Some(swa) = &s.swa {
            w.set_u32(&key("attention.sliding_window"), swa.window as u32)?;
            if is_gemma4 {
                self.sizes_by_layer(w, swa)?;
            }
        }
        self.vocabulary(w)
    }

    /// What Gemma 4 says of its layers, in place of one number for all.
    fn sizes_by_layer(&self, w: &mut GgufWriter<'_>, swa: &SlidingWindow) -> Result<(), GgufError> {
        let s = &self.shape;
        let of_each = |of: &dyn Fn(LayerSizes) -> usize| {
            Array::I32((0..s.n_layer).map(|l| of(s.sizes(l)) as i32).collect())
        };
        w.set_array("gemma4.attention.head_count_kv", of_each(&|sizes| sizes.n_head_kv))?;
        if s.experts.is_none() {
            w.set_array("gemma4.feed_forward_length", of_each(&|sizes| sizes.n_ff))?;
        }
        let windowed = (0..s.n_layer).find(|&l| s.is_swa(l)).map_or(s.head_dim, |l| s.sizes(l).head_dim);
        for suffix in ["attention.key_length_swa", "attention.value_length_swa", "rope.dimension_count_swa"] {
            w.set_u32(&format!("gemma4.{suffix}"), windowed as u32)?;
        }
        w.set_array("gemma4.attention.sliding_window_pattern", Array::Bool(swa.layers[..s.n_layer].to_vec()))?;
        w.set_u32("gemma4.attention.shared_kv_layers", s.n_shared_kv as u32)?;
        w.set_u32("gemma4.embedding_length_per_layer_input", s.n_embd_per_layer as u32)?;
        w.set_f32("gemma4.final_logit_softcapping", 30.0)
    }

    /// Rotated dimensions of a head: in Qwen 3.6 the first 64 of 256.
    fn n_rot(&self) -> usize {
        if self.shape.recurrent.is_some() { self.shape.head_dim / 4 } else { self.shape.head_dim }
    }

    fn vocabulary(&self, w: &mut GgufWriter<'_>) -> Result<(), GgufError> {
        const NORMAL: i32 = 1;
        const CONTROL: i32 = 3;
        const UNUSED: i32 = 5;
        let mut tokens: Vec<String> = (0..=255).map(|b| byte_to_char(b).to_string()).collect();
        tokens.push("Ġt".into());
        let mut types = vec![NORMAL; tokens.len()];
        let bos = tokens.len() as u32;
        for special in ["<|begin_of_text|>", "<|end_of_text|>"] {
            tokens.push(special.into());
            types.push(CONTROL);
        }
        for id in tokens.len()..self.shape.n_vocab {
            tokens.push(format!("<|unused_{id}|>"));
            types.push(UNUSED);
        }
        w.set_str("tokenizer.ggml.model", "gpt2")?;
        w.set_str("tokenizer.ggml.pre", "llama-bpe")?;
        w.set_array("tokenizer.ggml.tokens", Array::String(tokens))?;
        w.set_array("tokenizer.ggml.token_type", Array::I32(types))?;
        w.set_array("tokenizer.ggml.merges", Array::String(vec!["Ġ t".into()]))?;
        w.set_u32("tokenizer.ggml.bos_token_id", bos)?;
        w.set_u32("tokenizer.ggml.eos_token_id", bos + 1)?;
        w.set_bool("tokenizer.ggml.add_bos_token", true)
    }
}

/// Writes a sidecar of random proxies for every layer that `schedule` may skip in. They cost what calibrated ones cost, and
/// choose by chance.
///
/// # Errors
/// The file cannot be written.
pub fn write_sidecar(model: &Gguf, shape: &Shape, schedule: &Schedule, path: &Path) -> Result<(), GgufError> {
    write_sidecar_into(model, shape, schedule, OutputFile::create(path, &[])?)
}

/// As [`write_sidecar`], into a file that has been created already.
///
/// # Errors
/// The file cannot be written.
pub fn write_sidecar_into(model: &Gguf, shape: &Shape, schedule: &Schedule, out: OutputFile) -> Result<(), GgufError> {
    sidecar_writer(model, shape, schedule)?.write_into(out, no_source)
}

/// As [`write_sidecar`], in a file without a name.
///
/// # Errors
/// The file cannot be written.
pub fn open_sidecar(model: &Gguf, shape: &Shape, schedule: &Schedule) -> Result<Gguf, GgufError> {
    let writer = sidecar_writer(model, shape, schedule)?;
    nameless("synthetic proxies", |out, label| writer.write_to(out, label, no_source))
}

fn sidecar_writer(model: &Gguf, shape: &Shape, schedule: &Schedule) -> Result<GgufWriter<'static>, GgufError> {
    let (d_low, rank) = (schedule.proxy.d_low, schedule.proxy.rank);
    let mut w = GgufWriter::new();
    w.set_str("general.architecture", ARCHITECTURE)?;
    w.set_u32("spts.version", VERSION)?;
    w.set_str("spts.fingerprint", &sidecar::fingerprint(model))?;
    w.set_u32("spts.d_low", d_low as u32)?;
    w.set_u32("spts.rank", rank as u32)?;
    w.set_str("spts.schedule", &schedule.name)?;
    w.set_u32("spts.calibration_tokens", 0)?;
    let shapes = [[shape.n_embd, 2 * rank], [rank, d_low], [rank, d_low], [d_low, rank]];
    for layer in schedule.skip_from..shape.n_layer {
        for (i, (tensor, [n_in, n_out])) in TENSORS.into_iter().zip(shapes).enumerate() {
            let mut bytes = vec![0; n_in * n_out * size_of::<f16>()];
            let blocks = RandomBlocks::new(TensorType::F16, 1.0 / (n_in as f64).sqrt());
            blocks.fill(&mut SplitMix64((4 * layer + i) as u64), &mut bytes);
            w.add_tensor_bytes(&tensor_name(layer, tensor), &[n_in as u64, n_out as u64], GgmlType::F16, bytes)?;
        }
    }
    Ok(w)
}

/// Opens a file that `write` fills and that has no name any more.
fn nameless(label: &str, write: impl FnOnce(&mut dyn Write, &str) -> Result<(), GgufError>) -> Result<Gguf, GgufError> {
    let io = |action: &'static str| move |source| GgufError::Io { file: label.into(), action, source };
    let file = unlinked().map_err(|(path, source)| GgufError::Io {
        file: path.display().to_string(),
        action: "create",
        source,
    })?;
    let mut out = BufWriter::with_capacity(CHUNK, file);
    write(&mut out, label)?;
    let file = out.into_inner().map_err(|e| e.into_error()).map_err(io("write"))?;
    Gguf::from_file(file, label, OpenOptions::default())
}

/// A file in the temporary folder without a name: no way of ending leaves it behind.
fn unlinked() -> Result<File, (PathBuf, io::Error)> {
    let dir = std::env::temp_dir();
    for serial in 0..1000 {
        let path = dir.join(format!(".spts-{}-{serial}.gguf", std::process::id()));
        match FileOptions::new().read(true).write(true).create_new(true).open(&path) {
            Ok(file) => return fs::remove_file(&path).map(|()| file).map_err(|e| (path, e)),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err((path, e)),
        }
    }
    Err((dir, io::ErrorKind::AlreadyExists.into()))
}

/// Random rows, made in parallel; the bytes do not depend on the number of threads.
fn matrix(ty: TensorType, shape: &[u64], seed: u64, out: &mut dyn Write) -> io::Result<()> {
    let row_bytes = (shape[0] / ty.block_size() * ty.block_bytes()) as usize;
    let n_rows = shape[1..].iter().product::<u64>() as usize;
    let blocks = RandomBlocks::new(ty, 1.0 / (shape[0] as f64).sqrt());
    let make = |rows: std::ops::Range<usize>| {
        let mut bytes = vec![0; rows.len() * row_bytes];
        blocks.fill(&mut SplitMix64(seed + rows.start as u64), &mut bytes);
        Ok(bytes)
    };
    convert_rows(n_rows, CHUNK / row_bytes, make, |bytes| out.write_all(bytes))
}

/// `n` numbers within `spread` of `centre`, F32.
fn vector(n: u64, seed: u64, centre: f64, spread: f64, out: &mut dyn Write) -> io::Result<()> {
    let mut rng = SplitMix64(seed);
    (0..n).try_for_each(|_| {
        let x = centre + spread * (2.0 * rng.uniform() - 1.0);
        out.write_all(&(x as f32).to_le_bytes())
    })
}

/// Divisors of the rotary frequencies of Llama 3.1, one per pair: 1 for waves shorter than a quarter of the original context
/// of 8192, `factor` for waves longer than it, and smooth between.
fn rope_factors(head_dim: usize, freq_base: f32, factor: f64) -> Vec<f32> {
    const CONTEXT: f64 = 8192.0;
    const HIGH: f64 = 4.0;
    const LOW: f64 = 1.0;
    let of_pair = |i: usize| {
        let wave = 2.0 * std::f64::consts::PI * f64::from(freq_base).powf(2.0 * i as f64 / head_dim as f64);
        let smooth = ((CONTEXT / wave - LOW) / (HIGH - LOW)).clamp(0.0, 1.0);
        (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
    };
    (0..head_dim / 2).map(of_pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama_31_rope_factors() {
        let f = rope_factors(128, 5e5, 8.0);
        assert_eq!((f.len(), f[0], f[63]), (64, 1.0, 8.0));
        assert!(f.windows(2).all(|w| w[0] <= w[1]));
        // Pair i has waves of 2 pi 500000^(i/64) tokens: 2,048 lies between pairs 28 and 29, 8,192 between 34 and 35.
        assert_eq!((f.iter().position(|&x| x > 1.0), f.iter().position(|&x| x == 8.0)), (Some(29), Some(35)));
    }

    #[test]
    fn the_same_bytes_whatever_the_threads() {
        let make = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
            let mut out = Vec::new();
            pool.install(|| matrix(TensorType::Q4_K, &[512, 9000], 3, &mut out)).expect("a vector takes all");
            out
        };
        assert_eq!(make(1), make(5));
    }
}
