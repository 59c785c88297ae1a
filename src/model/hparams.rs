//! Hyperparameters, read from a GGUF's metadata and checked.

mod by_layer;
mod recurrent;

use crate::printable::printable;
use crate::gguf::{Array, Gguf, Value};
use crate::graph::ir::{Heads, Rope, RopeLayout};

use super::shape::{Experts, LayerSizes, Shape, SlidingWindow};
use super::{Arch, ModelError};

/// What defines a model besides its weights. Names as in the field's papers and GGUF's specification.
#[derive(Clone, Debug, PartialEq)]
pub struct HParams {
    /// Architecture.
    pub arch: Arch,
    /// The model's dimensions.
    pub shape: Shape,
    /// Context length of the training.
    pub n_ctx_train: usize,
    /// Epsilon of the RMS norms.
    pub rms_eps: f32,
    /// Factor on q.k.
    pub attn_scale: f32,
    /// Factors on other values.
    pub scales: Scales,
    /// How queries grow with their position.
    pub temperature: Option<Temperature>,
    /// Rope of the layers with full attention, without per-pair factors.
    pub rope: Rope,
    /// Layers appended to predict further tokens, which are not run.
    pub n_predict: usize,
    /// Long and short rope factors instead of one kind (`rope.scaling.type` = `longrope`).
    pub long_rope: bool,
    /// Rope base of the layers with a sliding window; where none has one, that of all layers.
    pub freq_base_swa: f32,
    /// Rotated dimensions of a head in the layers with a sliding window.
    pub n_rot_swa: usize,
    /// Logits stay within this by a hyperbolic tangent, where a model has it.
    pub softcap: Option<f32>,
}

/// Factors that Granite trains with; 1 elsewhere.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scales {
    /// On the embedding's rows.
    pub embedding: f32,
    /// On what attention and FFN add to the residual stream.
    pub residual: f32,
    /// On the logits.
    pub logits: f32,
}

/// A factor on queries, `1 + scale ln(floor(position / every) + 1)`, by which Mistral 3 keeps attention sharp far behind what it
/// was first trained with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Temperature {
    /// Positions over which it stays the same: the context before any scaling of the rope.
    pub every: usize,
    /// Of the logarithm.
    pub scale: f32,
}

const MAX_LAYERS: usize = 1024;
const MAX_WIDTH: usize = 1 << 20;
const MAX_VOCAB: usize = 1 << 24;

impl HParams {
    /// Reads and checks the metadata.
    ///
    /// # Errors
    /// Unknown architecture; a key that is missing, has the wrong type or a value that makes no sense.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, ModelError> {
        let keys = Keys { gguf, file: gguf.path().display().to_string(), arch: String::new() };
        let arch_name =
            gguf.str("general.architecture")?.ok_or_else(|| keys.missing("general.architecture"))?.to_string();
        let arch = Arch::from_name(&arch_name)
            .ok_or_else(|| ModelError::UnsupportedArch { file: keys.file.clone(), arch: arch_name.clone() })?;
        let keys = Keys { arch: arch_name, ..keys };

        let (n_layer, n_predict) = keys.n_layer(arch)?;
        let n_embd = keys.size("embedding_length", 1, MAX_WIDTH)?;
        let n_head = keys.size("attention.head_count", 1, n_embd)?;
        let swa = keys.windows(arch, n_layer)?;
        let softcap = keys.softcap(arch)?;
        let experts = keys.experts(arch)?;
        let by_layer = match arch {
            Arch::Gemma4 => keys.sizes_by_layer(n_head, &keys.windowed(&swa, n_layer), experts)?,
            _ => vec![keys.sizes(n_embd, n_head, experts)?],
        };
        // Where layers differ, those of the first one with full attention stand for all.
        let full = (0..by_layer.len()).find(|&l| !swa.as_ref().is_some_and(|swa| swa.layers[l]));
        let LayerSizes { n_head_kv, head_dim, n_ff } = by_layer[full.unwrap_or(0)];
        let by_layer = by_layer.iter().any(|sizes| *sizes != by_layer[0]).then_some(by_layer);
        keys.no_later_glm(arch)?;
        let n_ctx_train = keys.size("context_length", 1, 1 << 30)?;
        let rms_eps = keys.positive("attention.layer_norm_rms_epsilon", None)?;
        let rope = keys.rope(arch, head_dim, n_ctx_train)?;
        let recurrent = keys.recurrent(arch, n_layer)?;
        let freq_base_swa = match swa {
            Some(_) if matches!(arch, Arch::Gemma3 | Arch::Gemma4) => keys.positive("rope.freq_base_swa", Some(10000.0))?,
            Some(_) => keys.positive("rope.freq_base_swa", Some(rope.freq_base))?,
            None => rope.freq_base,
        };
        // Gemma 3 27B scales by the width of a head in the residual stream, all others by the head's own.
        let scaled_dim = if arch == Arch::Gemma3 && n_layer == 62 { n_embd / n_head } else { head_dim };
        let attn_scale = match arch {
            Arch::Granite | Arch::Mistral3 => keys.float_or("attention.scale", 0.0)?,
            _ => 0.0,
        };
        let attn_scale = match arch {
            Arch::Gemma4 => 1.0,
            _ if attn_scale == 0.0 => 1.0 / (scaled_dim as f32).sqrt(),
            _ => attn_scale,
        };
        let n_rot_swa = keys.n_rot_swa(arch, rope.n_rot)?;
        Ok(Self {
            arch,
            shape: Shape {
                name: name(gguf)?,
                arch: arch.name().into(),
                n_layer,
                n_embd,
                n_ff,
                n_head,
                n_head_kv,
                head_dim,
                n_vocab: keys.n_vocab()?,
                tied: gguf.tensor("output.weight").is_none(),
                weight_bytes: Some(gguf.tensors().map(|t| t.nbytes).sum()),
                n_shared_kv: keys.shared_kv(arch, n_layer, swa.as_ref())?,
                n_embd_per_layer: keys.embedding_per_layer(arch)?,
                by_layer,
                swa,
                recurrent,
                experts,
            },
            n_ctx_train,
            rms_eps,
            attn_scale,
            scales: keys.scales(arch)?,
            temperature: keys.temperature(arch, rope.n_ctx_orig)?,
            rope,
            n_predict,
            long_rope: keys.rope_scaling()? == "longrope",
            freq_base_swa,
            n_rot_swa,
            softcap,
        })
    }

    /// The geometry of a layer's attention.
    pub fn heads(&self, layer: usize) -> Heads {
        let LayerSizes { n_head_kv, head_dim, .. } = self.shape.sizes(layer);
        let n_head = self.shape.n_head;
        Heads { n_head, n_head_kv, head_dim, scale: self.attn_scale, sinks: None }
    }

    /// Rope of a layer, without per-pair factors.
    pub fn layer_rope(&self, layer: usize) -> Rope {
        match self.shape.window(layer) {
            None => self.rope,
            // Windows of gpt-oss are stretched as the other layers are.
            Some(_) if self.arch == Arch::GptOss => Rope { freq_base: self.freq_base_swa, ..self.rope },
            Some(_) if self.arch == Arch::Olmo2 => {
                Rope { freq_scale: 1.0, ext_factor: 0.0, attn_factor: 1.0, ..self.rope }
            }
            Some(_) => {
                Rope { n_rot: self.n_rot_swa, freq_base: self.freq_base_swa, freq_scale: 1.0, ..self.rope }
            }
        }
    }
}

/// The model's own name, or that of its file.
fn name(gguf: &Gguf) -> Result<String, ModelError> {
    let name = gguf.str("general.name")?.unwrap_or_default();
    if !name.is_empty() {
        return Ok(printable(name));
    }
    let file = gguf.path().file_name().unwrap_or_default().to_string_lossy();
    Ok(printable(file.strip_suffix(".gguf").unwrap_or(&file)))
}

/// Reads keys of one architecture with range checks.
struct Keys<'a> {
    gguf: &'a Gguf,
    file: String,
    arch: String,
}

impl Keys<'_> {
    fn key(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.arch)
    }

    fn missing(&self, key: &str) -> ModelError {
        ModelError::MissingKey { file: self.file.clone(), key: key.into() }
    }

    fn invalid(&self, suffix: &str, found: impl std::fmt::Display, expected: String) -> ModelError {
        ModelError::InvalidValue { file: self.file.clone(), key: self.key(suffix), found: found.to_string(), expected }
    }

    /// An unsigned integer; where the format allows one per layer, they must all be the same.
    fn optional(&self, suffix: &str) -> Result<Option<usize>, ModelError> {
        let Some(all) = self.gguf.u32_array_or_scalar(&self.key(suffix))? else {
            return Ok(None);
        };
        let first = all.first().copied().ok_or_else(|| self.invalid(suffix, "an empty list", "a number".into()))?;
        if let Some(other) = all.iter().find(|&&x| x != first) {
            return Err(self.invalid(suffix, format!("{first} and {other}"), "the same in every layer".into()));
        }
        Ok(Some(first as usize))
    }

    fn in_range(&self, suffix: &str, value: usize, min: usize, max: usize) -> Result<usize, ModelError> {
        if (min..=max).contains(&value) {
            Ok(value)
        } else {
            Err(self.invalid(suffix, value, format!("{min} to {max}")))
        }
    }

    fn size(&self, suffix: &str, min: usize, max: usize) -> Result<usize, ModelError> {
        let value = self.optional(suffix)?.ok_or_else(|| self.missing(&self.key(suffix)))?;
        self.in_range(suffix, value, min, max)
    }

    fn size_or(&self, suffix: &str, default: usize, min: usize, max: usize) -> Result<usize, ModelError> {
        let value = self.optional(suffix)?.unwrap_or(default);
        self.in_range(suffix, value, min, max)
    }

    fn float_or(&self, suffix: &str, default: f32) -> Result<f32, ModelError> {
        Ok(self.gguf.f32(&self.key(suffix))?.unwrap_or(default))
    }

    fn positive(&self, suffix: &str, default: Option<f32>) -> Result<f32, ModelError> {
        let value = self.gguf.f32(&self.key(suffix))?.or(default).ok_or_else(|| self.missing(&self.key(suffix)))?;
        if value.is_finite() && value > 0.0 {
            Ok(value)
        } else {
            Err(self.invalid(suffix, value, "a positive number".into()))
        }
    }

    /// The number of tokens; `vocab_size`, which some files have as something else, does not count.
    fn n_vocab(&self) -> Result<usize, ModelError> {
        let key = "tokenizer.ggml.tokens";
        let n = self.gguf.str_array(key)?.map(|t| t.len()).ok_or_else(|| self.missing(key))?;
        if (1..=MAX_VOCAB).contains(&n) {
            return Ok(n);
        }
        let found = format!("a list of {n}");
        let expected = format!("1 to {MAX_VOCAB} tokens");
        Err(ModelError::InvalidValue { file: self.file.clone(), key: key.into(), found, expected })
    }

    fn rope_scaling(&self) -> Result<&str, ModelError> {
        Ok(self.gguf.str(&self.key("rope.scaling.type"))?.unwrap_or("linear"))
    }

    fn rope(&self, arch: Arch, head_dim: usize, n_ctx_train: usize) -> Result<Rope, ModelError> {
        let n_rot = self.size_or("rope.dimension_count", head_dim, 2, head_dim)?;
        if n_rot % 2 != 0 {
            return Err(self.invalid("rope.dimension_count", n_rot, "an even number".into()));
        }
        self.check_sections(arch, n_rot)?;
        let kind = self.rope_scaling()?;
        let factor = match self.gguf.f32(&self.key("rope.scaling.factor"))? {
            Some(f) => f,
            None => self.float_or("rope.scale_linear", 0.0)?,
        };
        if !factor.is_finite() || factor < 0.0 {
            return Err(self.invalid("rope.scaling.factor", factor, "a positive number".into()));
        }
        let (freq_scale, ext_factor) = match kind {
            "none" => (1.0, 0.0),
            "linear" | "longrope" => (if factor == 0.0 { 1.0 } else { 1.0 / factor }, 0.0),
            "yarn" => (if factor == 0.0 { 1.0 } else { 1.0 / factor }, 1.0),
            other => return Err(self.invalid("rope.scaling.type", other, "none, linear, yarn or longrope".into())),
        };
        Ok(Rope {
            layout: if arch.rotates_neighbours() { RopeLayout::Interleaved } else { RopeLayout::HalfSplit },
            n_rot,
            n_ctx_orig: self.size_or("rope.scaling.original_context_length", n_ctx_train, 1, 1 << 30)?,
            freq_base: self.positive("rope.freq_base", Some(10000.0))?,
            freq_scale,
            ext_factor,
            attn_factor: self.positive("rope.scaling.attn_factor", Some(1.0))? / self.yarn_log(arch, kind, factor)?,
            beta_fast: self.positive("rope.scaling.yarn_beta_fast", Some(32.0))?,
            beta_slow: self.positive("rope.scaling.yarn_beta_slow", Some(1.0))?,
            factors: None,
        })
    }

    /// `1 + 0.1 m ln(factor)` for the multiplier m that Mistral 3 gives YaRN's logarithm; 1 elsewhere. Kernels multiply by the same
    /// with m = 1.
    fn yarn_log(&self, arch: Arch, kind: &str, factor: f32) -> Result<f32, ModelError> {
        const SUFFIX: &str = "rope.scaling.yarn_log_multiplier";
        let multiplier = if arch == Arch::Mistral3 { self.float_or(SUFFIX, 0.0)? } else { 0.0 };
        if !multiplier.is_finite() || multiplier < 0.0 {
            return Err(self.invalid(SUFFIX, multiplier, "a number, 0 or above".into()));
        }
        Ok(if kind == "yarn" && factor > 1.0 { 1.0 + 0.1 * multiplier * factor.ln() } else { 1.0 })
    }

    fn experts(&self, arch: Arch) -> Result<Option<Experts>, ModelError> {
        let n_expert = self.size_or("expert_count", 0, 0, 1 << 16)?;
        if !arch.has_experts() {
            let names: Vec<&str> = Arch::ALL.into_iter().filter(|a| a.has_experts()).map(Arch::name).collect();
            let expected = || format!("0: mixtures of experts are supported in {}", names.join(", "));
            return if n_expert == 0 { Ok(None) } else { Err(self.invalid("expert_count", n_expert, expected())) };
        }
        if arch == Arch::Gemma4 && n_expert == 0 {
            return Ok(None);
        }
        self.in_range("expert_count", n_expert, 1, 1 << 16)?;
        let n_used = self.size("expert_used_count", 1, n_expert)?;
        // Later models of the family, which choose by groups or scale what is chosen.
        if self.float_or("expert_weights_scale", 0.0)? != 0.0 {
            return Err(self.invalid("expert_weights_scale", "set", "no such scale: it is not supported".into()));
        }
        Ok(Some(Experts { n_expert, n_used, n_ff_shared: self.shared_width(arch)? }))
    }

    /// Width of one expert, which older files leave to be divided out.
    fn expert_width(&self, experts: Experts) -> Result<usize, ModelError> {
        match self.optional("expert_feed_forward_length")?.filter(|&n| n > 0) {
            Some(n) => self.in_range("expert_feed_forward_length", n, 1, 1 << 22),
            None => Ok((self.size("feed_forward_length", 1, 1 << 22)? / experts.n_used).max(1)),
        }
    }

    /// Files that call themselves GLM 4 and are more than the language model that it was: images, layers that predict tokens ahead.
    fn no_later_glm(&self, arch: Arch) -> Result<(), ModelError> {
        if arch != Arch::Glm4 {
            return Ok(());
        }
        let n_ahead = self.size_or("nextn_predict_layers", 0, 0, MAX_LAYERS)?;
        if n_ahead > 0 {
            return Err(self.invalid("nextn_predict_layers", n_ahead, "0: such layers are not supported".into()));
        }
        const SECTIONS: &str = "rope.dimension_sections";
        let sections = self.gguf.u32_array_or_scalar(&self.key(SECTIONS))?.unwrap_or_default();
        match sections.iter().any(|&n| n > 0) {
            true => Err(self.invalid(SECTIONS, "set", "no sections: they are not supported".into())),
            false => Ok(()),
        }
    }

    fn scales(&self, arch: Arch) -> Result<Scales, ModelError> {
        if arch != Arch::Granite {
            return Ok(Scales { embedding: 1.0, residual: 1.0, logits: 1.0 });
        }
        if self.gguf.get(&self.key("rope.scaling.finetuned")).is_some_and(|v| *v == Value::Bool(false)) {
            let expected = "true: models without rotary embeddings are not supported".into();
            return Err(self.invalid("rope.scaling.finetuned", false, expected));
        }
        // In this format 0 is a factor that is not there.
        let scale = |suffix: &str| match self.float_or(suffix, 0.0)? {
            0.0 => Ok(1.0),
            _ => self.positive(suffix, None),
        };
        let (embedding, residual) = (scale("embedding_scale")?, scale("residual_scale")?);
        Ok(Scales { embedding, residual, logits: 1.0 / self.positive("logit_scale", None)? })
    }

    fn temperature(&self, arch: Arch, every: usize) -> Result<Option<Temperature>, ModelError> {
        const SUFFIX: &str = "attention.temperature_scale";
        let scale = if arch == Arch::Mistral3 { self.float_or(SUFFIX, 0.0)? } else { 0.0 };
        match scale {
            0.0 => Ok(None),
            x if x.is_finite() && x > 0.0 => Ok(Some(Temperature { every, scale })),
            x => Err(self.invalid(SUFFIX, x, "a number, 0 or above".into())),
        }
    }

    /// Which layers have a window, and its length.
    fn windows(&self, arch: Arch, n_layer: usize) -> Result<Option<SlidingWindow>, ModelError> {
        let always = |pattern: usize| {
            let window = self.size("attention.sliding_window", 1, 1 << 30)?;
            Ok(Some(SlidingWindow { window, layers: self.windowed_layers(n_layer, pattern)? }))
        };
        match arch {
            Arch::Gemma3 => self.sliding_window(n_layer, 6),
            Arch::Olmo2 => self.sliding_window(n_layer, 4),
            Arch::GptOss => always(2),
            Arch::Gemma4 => always(6),
            _ => Ok(None),
        }
    }

    /// None where the window is 0 or not there.
    fn sliding_window(&self, n_layer: usize, pattern: usize) -> Result<Option<SlidingWindow>, ModelError> {
        let window = self.size_or("attention.sliding_window", 0, 0, 1 << 30)?;
        if window == 0 {
            return Ok(None);
        }
        Ok(Some(SlidingWindow { window, layers: self.windowed_layers(n_layer, pattern)? }))
    }

    /// Which layers have the window: as a list says, one entry a layer (booleans, or integers of which 0 is full attention), or
    /// all but every n-th (0: all), where nothing is said `default`-th.
    fn windowed_layers(&self, n_layer: usize, default: usize) -> Result<Vec<bool>, ModelError> {
        const SUFFIX: &str = "attention.sliding_window_pattern";
        let layers: Vec<bool> = match self.gguf.get(&self.key(SUFFIX)) {
            Some(Value::Array(Array::Bool(layers))) => layers.clone(),
            Some(Value::Array(layers)) => {
                let integers = layers.to_integers::<i64>();
                let wrong = || self.invalid(SUFFIX, layers.element_type(), "booleans, or integers".into());
                integers.ok_or_else(wrong)?.iter().map(|&x| x != 0).collect()
            }
            _ => {
                let nth = self.size_or(SUFFIX, default, 0, MAX_LAYERS)?;
                (1..=n_layer).map(|l| nth == 0 || l % nth != 0).collect()
            }
        };
        match layers.get(..n_layer) {
            Some(layers) => Ok(layers.to_vec()),
            None => Err(self.invalid(SUFFIX, format!("a list of {}", layers.len()), format!("{n_layer}, one a layer"))),
        }
    }
}
