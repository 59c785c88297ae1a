//! Weights as plain vectors, and how each architecture reads them from a GGUF file.

use std::path::Path;

use super::delta::DeltaNet;
use super::gemma4::{Beside, Features};
use super::rope::{Rope, yarn_attn_factor};
use super::spts::Kind;
use crate::support::gguf::{File, Value};

/// A weight matrix, ggml's `[n_in, n_out]`: `n_out` rows of `n_in` values.
#[derive(Clone, Debug)]
pub struct Matrix {
    pub n_in: usize,
    pub n_out: usize,
    pub data: Vec<f32>,
}

impl Matrix {
    pub fn row(&self, i: usize) -> &[f32] {
        &self.data[i * self.n_in..(i + 1) * self.n_in]
    }

    /// `W x`, summed in f64.
    pub fn times(&self, x: &[f32]) -> Vec<f32> {
        assert_eq!(x.len(), self.n_in);
        (0..self.n_out).map(|i| dot(self.row(i), x) as f32).collect()
    }

    /// No rows, where a layer has no such matrix.
    pub(super) fn none() -> Matrix {
        Matrix { n_in: 0, n_out: 0, data: Vec::new() }
    }

    /// The rows `first .. first + n`.
    pub(super) fn rows(&self, first: usize, n: usize) -> Matrix {
        let data = self.data[first * self.n_in..(first + n) * self.n_in].to_vec();
        Matrix { n_in: self.n_in, n_out: n, data }
    }
}

/// `1 / (1 + e^-x)`
pub fn sigmoid(x: f32) -> f32 {
    (1.0 / (1.0 + (-f64::from(x)).exp())) as f32
}

/// `x / (1 + e^-x)`
pub fn silu(x: f32) -> f32 {
    (f64::from(x) / (1.0 + (-f64::from(x)).exp())) as f32
}

/// Sum of products in f64.
pub fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
}

/// A matrix and its optional bias.
#[derive(Clone, Debug)]
pub struct Linear {
    pub weight: Matrix,
    pub bias: Option<Vec<f32>>,
}

impl Linear {
    pub fn times(&self, x: &[f32]) -> Vec<f32> {
        let mut y = self.weight.times(x);
        if let Some(bias) = &self.bias {
            y.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
        }
        y
    }
}

/// How GELU (tanh form) is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gelu {
    /// In f32: the definition, and what ggml's CUDA backend does.
    Exact,
    /// Input and output rounded to f16: ggml's CPU backend looks GELU up in a table of all f16 values.
    F16Table,
}

/// One layer. Optional parts are those that only some architectures have.
#[derive(Clone, Debug)]
pub struct Layer {
    pub attn_norm: Option<Vec<f32>>,
    pub q: Linear,
    pub k: Linear,
    pub v: Linear,
    /// Values are normalised, head by head and without a weight.
    pub v_norm: bool,
    pub n_head_kv: usize,
    pub head_dim: usize,
    /// Layer whose keys and values it reads: its own, unless those are an earlier layer's.
    pub cache: usize,
    /// Whether several layers read these.
    pub is_shared: bool,
    /// By whose sigmoid what each head found is multiplied.
    pub gate: Option<Linear>,
    /// In place of attention.
    pub delta: Option<DeltaNet>,
    pub q_norm: Option<Vec<f32>>,
    pub k_norm: Option<Vec<f32>>,
    pub attn_output: Linear,
    pub attn_post_norm: Option<Vec<f32>>,
    /// Of each head, the logit of a key that everyone sees and that has no value.
    pub sinks: Option<Vec<f32>>,
    pub ffn_norm: Option<Vec<f32>>,
    /// Those of one FFN, or of each expert.
    pub ffns: Vec<(Linear, Linear, Linear)>,
    /// Chooses among the experts, and how many.
    pub router: Option<(Linear, usize)>,
    /// An FFN beside the experts, and by whose sigmoid it is multiplied.
    pub shared: Option<((Linear, Linear, Linear), Linear)>,
    /// Factors on what the experts add.
    pub expert_scales: Option<Vec<f32>>,
    /// An FFN beside the experts, where both have norms of their own.
    pub beside: Option<Beside>,
    pub ffn_post_norm: Option<Vec<f32>>,
    /// What it has of every token.
    pub features: Option<Features>,
    /// Factor on what leaves it.
    pub out_scale: f32,
    pub rope: Rope,
    /// Sliding window, in positions.
    pub window: Option<usize>,
}

impl Layer {
    /// Whether it keeps keys and values of its own, as layer `il`.
    pub fn has_cache(&self, il: usize) -> bool {
        self.delta.is_none() && self.cache == il
    }

    /// How its tokens see each other; keys that several layers read make a layer local, whatever it sees.
    pub fn kind(&self) -> Kind {
        match (&self.delta, self.window) {
            _ if self.is_shared => Kind::Local,
            (Some(_), _) => Kind::Recurrent,
            (None, Some(_)) => Kind::Local,
            (None, None) => Kind::Full,
        }
    }
}

/// A model: everything the forward pass needs.
#[derive(Clone, Debug)]
pub struct Model {
    pub n_embd: usize,
    pub n_head: usize,
    pub norm_eps: f32,
    /// Factor on q.k.
    pub attn_scale: f32,
    /// Factor on the embedding's rows.
    pub embd_scale: f32,
    /// Factor on what attention and FFN add to the residual stream.
    pub residual_scale: f32,
    /// Divides the logits.
    pub logit_scale: f32,
    /// Queries times `1 + .1 ln(floor(position / .0) + 1)`.
    pub temperature: Option<(usize, f32)>,
    /// The FFN's gate is GELU, not SiLU.
    pub gelu_gate: bool,
    /// The gated FFNs are gpt-oss's, and what they multiply is clamped at this.
    pub gate_limit: Option<f32>,
    /// Change this before `forward` to follow ggml's CPU table.
    pub gelu: Gelu,
    pub final_softcap: Option<f32>,
    pub token_embd: Matrix,
    pub layers: Vec<Layer>,
    pub output_norm: Vec<f32>,
    pub output: Matrix,
}

impl Model {
    /// Reads a GGUF file with F32 or F16 tensors. Long-context factors are chosen as for a context of the training length.
    pub fn from_gguf(path: impl AsRef<Path>) -> Model {
        Self::from_file(&File::read(path.as_ref()), None)
    }

    /// As [`Model::from_gguf`], from a file in memory and for a context of `n_ctx` tokens (Phi-3's long and short factors
    /// depend on it).
    pub fn from_file(file: &File, n_ctx: Option<usize>) -> Model {
        Reader::new(file, n_ctx).model()
    }
}

pub(super) struct Reader<'a> {
    pub(super) file: &'a File,
    pub(super) arch: &'a str,
    n_ctx: usize,
    pub(super) n_layer: usize,
    pub(super) n_embd: usize,
    n_head: usize,
    n_head_kv: usize,
    pub(super) head_dim: usize,
}

impl<'a> Reader<'a> {
    fn new(file: &'a File, n_ctx: Option<usize>) -> Self {
        let arch = file.text("general.architecture").expect("general.architecture");
        let known = [
            "llama",
            "qwen2",
            "qwen3",
            "gemma3",
            "gemma4",
            "phi3",
            "granite",
            "mistral3",
            "qwen3moe",
            "gpt-oss",
            "olmo2",
            "glm4",
            "qwen3next",
            "qwen35",
            "qwen35moe",
        ];
        assert!(known.contains(&arch), "the reference knows {known:?}, not {arch}");
        let uint = |key: &str| file.uint(&format!("{arch}.{key}"));
        let n_embd = uint("embedding_length").expect("embedding_length");
        let n_head = uint("attention.head_count").expect("head_count");
        Reader {
            file,
            arch,
            n_ctx: n_ctx.or(uint("context_length")).expect("context_length"),
            n_layer: uint("block_count").expect("block_count") - uint("nextn_predict_layers").unwrap_or(0),
            n_embd,
            n_head,
            // A list in Gemma 4, which asks for each layer's.
            n_head_kv: if arch == "gemma4" { 0 } else { uint("attention.head_count_kv").unwrap_or(n_head) },
            head_dim: uint("attention.key_length").unwrap_or(n_embd / n_head),
        }
    }

    pub(super) fn uint(&self, key: &str) -> Option<usize> {
        self.file.uint(&format!("{}.{key}", self.arch))
    }

    pub(super) fn float(&self, key: &str) -> Option<f32> {
        self.file.float(&format!("{}.{key}", self.arch))
    }

    pub(super) fn vector(&self, name: &str) -> Option<Vec<f32>> {
        self.file.tensor(name).map(|t| t.data.clone())
    }

    pub(super) fn need(&self, name: &str) -> Vec<f32> {
        self.vector(name).unwrap_or_else(|| panic!("tensor {name} is missing"))
    }

    pub(super) fn matrix(&self, name: &str) -> Option<Matrix> {
        self.file.tensor(name).map(|t| Matrix { n_in: t.shape[0], n_out: t.shape[1], data: t.data.clone() })
    }

    pub(super) fn linear(&self, prefix: &str) -> Linear {
        let name = format!("{prefix}.weight");
        let weight = self.matrix(&name).unwrap_or_else(|| panic!("tensor {name} is missing"));
        Linear { weight, bias: self.vector(&format!("{prefix}.bias")) }
    }

    fn model(&self) -> Model {
        let gemma = self.arch.starts_with("gemma");
        let token_embd = self.matrix("token_embd.weight").expect("token_embd.weight");
        // Gemma 3 27B alone (62 layers) scales by the width per head instead of the head's.
        let scale_dim = if gemma && self.n_layer == 62 { self.n_embd / self.n_head } else { self.head_dim };
        Model {
            n_embd: self.n_embd,
            n_head: self.n_head,
            norm_eps: self.float("attention.layer_norm_rms_epsilon").expect("layer_norm_rms_epsilon"),
            attn_scale: match self.arch {
                "gemma4" => 1.0,
                _ => self.float("attention.scale").unwrap_or(1.0 / (scale_dim as f32).sqrt()),
            },
            embd_scale: if gemma { (self.n_embd as f32).sqrt() } else { self.float("embedding_scale").unwrap_or(1.0) },
            residual_scale: self.float("residual_scale").unwrap_or(1.0),
            logit_scale: self.float("logit_scale").unwrap_or(1.0),
            temperature: self.float("attention.temperature_scale").map(|scale| {
                (self.uint("rope.scaling.original_context_length").expect("original_context_length"), scale)
            }),
            gelu_gate: gemma,
            gate_limit: (self.arch == "gpt-oss").then_some(7.0),
            gelu: Gelu::Exact,
            final_softcap: if gemma { self.float("final_logit_softcapping").filter(|c| *c != 0.0) } else { None },
            layers: (0..self.n_layer).map(|il| self.layer(il)).collect(),
            output_norm: self.need("output_norm.weight"),
            output: self.matrix("output.weight").unwrap_or_else(|| token_embd.clone()),
            token_embd,
        }
    }

    fn layer(&self, il: usize) -> Layer {
        let name = |part: &str| format!("blk.{il}.{part}");
        let delta = self.file.tensor(&name("ssm_a")).map(|_| self.delta(&name));
        let none = || Linear { weight: Matrix::none(), bias: None };
        let is_gemma4 = self.arch == "gemma4";
        let (mut q, k, v) = match is_gemma4 {
            true => self.qkv_of_gemma4(&name),
            false if delta.is_some() => (none(), none(), none()),
            false => self.qkv(&name),
        };
        // Query and gate take turns, head by head.
        let gate = (self.is_hybrid() && delta.is_none()).then(|| {
            let half = |q: &Linear, second: usize| {
                let size = q.weight.n_in * self.head_dim;
                let rows = q.weight.data.chunks(size).skip(second).step_by(2).flatten().copied().collect();
                Linear { weight: Matrix { n_in: q.weight.n_in, n_out: q.weight.n_out / 2, data: rows }, bias: None }
            };
            let gate = half(&q, 1);
            q = half(&q, 0);
            gate
        });
        let (ffns, router) = self.ffns(&name);
        let window = self.window(il);
        // What others call a norm behind attention is the FFN's.
        let norms_ffn = self.arch == "gpt-oss" || self.is_hybrid();
        let (head_dim, n_head_kv) = match (is_gemma4, window.is_some()) {
            (false, _) => (self.head_dim, self.n_head_kv),
            (true, false) => (self.head_dim, self.at("attention.head_count_kv", il)),
            (true, true) => {
                let head_dim = self.uint("attention.key_length_swa").expect("attention.key_length_swa");
                (head_dim, self.at("attention.head_count_kv", il))
            }
        };
        let norm = |part: &str| (self.arch != "olmo2").then(|| self.need(&name(part)));
        Layer {
            attn_norm: norm("attn_norm.weight"),
            q,
            k,
            v,
            v_norm: is_gemma4,
            n_head_kv,
            head_dim,
            cache: self.cache(il),
            is_shared: (0..self.n_layer).any(|other| {
                let owner = self.cache(other);
                owner != other && (owner == il || other == il)
            }),
            gate,
            q_norm: self.vector(&name("attn_q_norm.weight")),
            k_norm: self.vector(&name("attn_k_norm.weight")),
            attn_output: if delta.is_some() { none() } else { self.linear(&name("attn_output")) },
            attn_post_norm: self.vector(&name("post_attention_norm.weight")).filter(|_| !norms_ffn),
            sinks: self.vector(&name("attn_sinks.weight")),
            ffn_norm: norm(if norms_ffn { "post_attention_norm.weight" } else { "ffn_norm.weight" }),
            delta,
            ffns,
            router,
            shared: self.shared(&name),
            expert_scales: self.vector(&name("ffn_down_exps.scale")),
            beside: self.beside(&name),
            features: self.features(il),
            out_scale: self.vector(&name("layer_output_scale.weight")).map_or(1.0, |scale| scale[0]),
            ffn_post_norm: self.vector(&name("post_ffw_norm.weight")),
            rope: self.rope(window.is_some()),
            window,
        }
    }

    fn is_hybrid(&self) -> bool {
        self.arch.starts_with("qwen35") || self.arch == "qwen3next"
    }

    fn delta(&self, name: &dyn Fn(&str) -> String) -> DeltaNet {
        let (n_head_k, n_head_v) = (
            self.uint("ssm.group_count").expect("ssm.group_count"),
            self.uint("ssm.time_step_rank").expect("ssm.time_step_rank"),
        );
        // Qwen3-Next has both gates in one matrix, those of each key head together: its betas, then its alphas.
        let group = n_head_v / n_head_k;
        let both = self.matrix(&name("ssm_ba.weight"));
        let gate = |base: &str, first: usize| match &both {
            None => self.linear(&name(base)),
            Some(both) => {
                let rows: Vec<f32> = (0..n_head_v)
                    .flat_map(|h| both.row(h / group * 2 * group + first * group + h % group).to_vec())
                    .collect();
                Linear { weight: Matrix { n_in: both.n_in, n_out: n_head_v, data: rows }, bias: None }
            }
        };
        DeltaNet {
            qkv: self.linear(&name("attn_qkv")),
            z: self.linear(&name("attn_gate")),
            beta: gate("ssm_beta", 0),
            alpha: gate("ssm_alpha", 1),
            conv: self.matrix(&name("ssm_conv1d.weight")).expect("ssm_conv1d.weight"),
            dt: self.need(&name("ssm_dt.bias")),
            a: self.need(&name("ssm_a")),
            norm: self.need(&name("ssm_norm.weight")),
            out: self.linear(&name("ssm_out")),
            n_head_k,
            n_head_v,
            grouped: self.arch == "qwen3next",
            head_dim: self.uint("ssm.state_size").expect("ssm.state_size"),
        }
    }

    fn qkv(&self, name: &dyn Fn(&str) -> String) -> (Linear, Linear, Linear) {
        let Some(fused) = self.matrix(&name("attn_qkv.weight")) else {
            return (self.linear(&name("attn_q")), self.linear(&name("attn_k")), self.linear(&name("attn_v")));
        };
        let bias = self.vector(&name("attn_qkv.bias"));
        let (n_q, n_kv) = (self.n_head * self.head_dim, self.n_head_kv * self.head_dim);
        let part = |first: usize, n: usize| Linear {
            weight: fused.rows(first, n),
            bias: bias.as_ref().map(|b| b[first..first + n].to_vec()),
        };
        (part(0, n_q), part(n_q, n_kv), part(n_q + n_kv, n_kv))
    }

    /// Gate, up and down of the FFN, or of every expert, and then what chooses among them.
    #[allow(clippy::type_complexity)]
    fn ffns(&self, name: &dyn Fn(&str) -> String) -> (Vec<(Linear, Linear, Linear)>, Option<(Linear, usize)>) {
        let Some(n_used) = self.uint("expert_used_count") else {
            let (gate, up) = self.gate_up(name);
            return (vec![(gate, up, self.linear(&name("ffn_down")))], None);
        };
        let n_expert = self.uint("expert_count").expect("expert_count");
        // Rows of one expert: a part of them, of so many.
        let expert = |base: &str, i: usize, part: usize, parts: usize| {
            let t = self.file.tensor(&name(&format!("{base}.weight"))).expect("a tensor of all experts");
            let size = t.shape[0] * t.shape[1];
            let weight =
                Matrix { n_in: t.shape[0], n_out: t.shape[1], data: t.data[i * size..(i + 1) * size].to_vec() };
            let n = weight.n_out / parts;
            let biases = self.vector(&name(&format!("{base}.bias")));
            let bias = biases.map(|b| b[i * t.shape[1] + part * n..][..n].to_vec());
            Linear { weight: weight.rows(part * n, n), bias }
        };
        let fused = self.file.tensor(&name("ffn_gate_up_exps.weight")).is_some();
        let of = |i: usize| {
            let (gate, up) = match fused {
                true => (expert("ffn_gate_up_exps", i, 0, 2), expert("ffn_gate_up_exps", i, 1, 2)),
                false => (expert("ffn_gate_exps", i, 0, 1), expert("ffn_up_exps", i, 0, 1)),
            };
            (gate, up, expert("ffn_down_exps", i, 0, 1))
        };
        let all = (0..n_expert).map(of);
        (all.collect(), Some((self.linear(&name("ffn_gate_inp")), n_used)))
    }

    fn shared(&self, name: &dyn Fn(&str) -> String) -> Option<((Linear, Linear, Linear), Linear)> {
        let share = self.vector(&name("ffn_gate_inp_shexp.weight"))?;
        let share = Linear { weight: Matrix { n_in: share.len(), n_out: 1, data: share }, bias: None };
        let part = |part: &str| self.linear(&name(&format!("ffn_{part}_shexp")));
        Some(((part("gate"), part("up"), part("down")), share))
    }

    /// Phi-3 and GLM 4 have both in `ffn_up`, the gate first.
    fn gate_up(&self, name: &dyn Fn(&str) -> String) -> (Linear, Linear) {
        let up = self.linear(&name("ffn_up"));
        if !matches!(self.arch, "phi3" | "glm4") {
            return (self.linear(&name("ffn_gate")), up);
        }
        let n_ff = up.weight.n_out / 2;
        let part = |first: usize| Linear { weight: up.weight.rows(first, n_ff), bias: None };
        (part(0), part(n_ff))
    }

    /// Gemma 3: five layers with a window, then one without, unless the file says otherwise. gpt-oss: in turns. OLMo 3: three, then
    /// one. Phi-3's window is ignored, as llama.cpp does.
    pub(super) fn window(&self, il: usize) -> Option<usize> {
        let period = match self.arch {
            "gemma3" | "gemma4" => 6,
            "gpt-oss" => 2,
            "olmo2" => 4,
            _ => return None,
        };
        let window = self.uint("attention.sliding_window").filter(|w| *w > 0)?;
        let key = format!("{}.attention.sliding_window_pattern", self.arch);
        let local = match self.file.get(&key) {
            Some(Value::Array(_, items)) => match items[il] {
                Value::Bool(local) => local,
                Value::U32(local) => local != 0,
                Value::I32(local) => local != 0,
                ref other => panic!("{key}: {other:?}"),
            },
            Some(_) => is_local(il, self.file.uint(&key).expect("found above")),
            None => is_local(il, period),
        };
        local.then_some(window)
    }

    fn rope(&self, local: bool) -> Rope {
        let n_rot = self.uint("rope.dimension_count").unwrap_or(self.head_dim);
        let n_rot = self.uint("rope.dimension_count_swa").filter(|_| local).unwrap_or(n_rot);
        let kind = self.file.text(&format!("{}.rope.scaling.type", self.arch)).unwrap_or("linear");
        let n_ctx_orig =
            self.uint("rope.scaling.original_context_length").or(self.uint("context_length")).expect("context_length");
        let factor = self.float("rope.scaling.factor").or(self.float("rope.scale_linear")).filter(|f| *f != 0.0);
        let freq_scale = if kind == "none" { 1.0 } else { 1.0 / factor.unwrap_or(1.0) };
        let attn_factor = self.float("rope.scaling.attn_factor").unwrap_or(1.0);
        let yarn = kind == "yarn";
        let unscaled = local && self.arch == "olmo2";
        let long = if self.n_ctx > n_ctx_orig { "rope_factors_long.weight" } else { "rope_factors_short.weight" };
        let uses_factors =
            matches!(self.arch, "llama" | "phi3" | "granite" | "mistral3") || (self.arch == "gemma4" && !local);
        // Mistral 3: YaRN's logarithm times this, where others have 0.
        let log_multiplier = self.float("rope.scaling.yarn_log_multiplier").unwrap_or(0.0);
        let log_size = 1.0 + 0.1 * log_multiplier * (1.0 / freq_scale).ln();
        Rope {
            interleaved: matches!(self.arch, "llama" | "granite" | "mistral3" | "glm4"),
            n_rot,
            base: if local && self.arch.starts_with("gemma") {
                self.float("rope.freq_base_swa").unwrap_or(10000.0)
            } else {
                self.float("rope.freq_base").unwrap_or(10000.0)
            },
            // Local layers of Gemma and OLMo are never stretched.
            freq_scale: if local && self.arch != "gpt-oss" { 1.0 } else { freq_scale },
            ext_factor: if yarn && !unscaled { 1.0 } else { 0.0 },
            attn_factor: if unscaled {
                1.0
            } else if yarn {
                yarn_attn_factor(freq_scale, attn_factor) / log_size
            } else {
                attn_factor
            },
            n_ctx_orig,
            factors: self.vector("rope_freqs.weight").or_else(|| self.vector(long)).filter(|_| uses_factors),
        }
    }
}

/// `period - 1` layers with a window, then one without.
fn is_local(il: usize, period: usize) -> bool {
    period == 0 || il % period < period - 1
}
