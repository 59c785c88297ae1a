//! Tiny random models: every architecture in a few dozen kilobytes, the same bytes on every machine.

mod named;
mod write;

use super::gemma4::Gemma4;
use super::gguf::File;
use super::prng::Prng;
use super::vocab::Vocab;

/// Architecture of a tiny model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    Llama,
    Qwen2,
    Qwen3,
    Gemma3,
    Gemma4,
    Phi3,
    Granite,
    Mistral3,
    Qwen3Moe,
    GptOss,
    Olmo2,
    Glm4,
    Qwen3Next,
    Qwen35,
    Qwen35Moe,
}

impl Arch {
    /// Name in `general.architecture`.
    pub fn name(self) -> &'static str {
        match self {
            Arch::Llama => "llama",
            Arch::Qwen2 => "qwen2",
            Arch::Qwen3 => "qwen3",
            Arch::Gemma3 => "gemma3",
            Arch::Gemma4 => "gemma4",
            Arch::Phi3 => "phi3",
            Arch::Granite => "granite",
            Arch::Mistral3 => "mistral3",
            Arch::Qwen3Moe => "qwen3moe",
            Arch::GptOss => "gpt-oss",
            Arch::Olmo2 => "olmo2",
            Arch::Glm4 => "glm4",
            Arch::Qwen3Next => "qwen3next",
            Arch::Qwen35 => "qwen35",
            Arch::Qwen35Moe => "qwen35moe",
        }
    }
}

/// Scaling of the rotary frequencies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scaling {
    /// None.
    None,
    /// A tensor `rope_freqs.weight` of divisors (Llama 3.1).
    Freqs,
    /// All frequencies divided by this.
    Linear(f32),
    /// YaRN with this factor, from this original context length.
    Yarn(f32, u32),
    /// Divisors for short and long contexts, told apart at this context length; attention factor.
    LongRope(u32, f32),
}

/// Gated delta nets in some of the layers.
#[derive(Clone, Debug, PartialEq)]
pub struct Delta {
    /// Layers that have one: a list, or all but every n-th.
    pub layers: DeltaLayers,
    pub n_head_k: usize,
    pub n_head_v: usize,
    pub head_dim: usize,
    pub d_conv: usize,
}

/// How a file says which layers are recurrent.
#[derive(Clone, Debug, PartialEq)]
pub enum DeltaLayers {
    /// `full_attention_interval`
    ButEvery(usize),
    /// `attention.recurrent_layers`
    List(Vec<bool>),
}

impl Delta {
    /// Whether a layer is recurrent.
    pub fn is_in(&self, il: usize) -> bool {
        match &self.layers {
            DeltaLayers::ButEvery(n) => !(il + 1).is_multiple_of(*n),
            DeltaLayers::List(layers) => layers[il],
        }
    }

    fn n_channels(&self) -> usize {
        (2 * self.n_head_k + self.n_head_v) * self.head_dim
    }
}

/// What a tiny model looks like. Change fields with struct update syntax: `Tiny { head_dim: 64, ..Tiny::named("llama") }`.
#[derive(Clone, Debug, PartialEq)]
pub struct Tiny {
    /// File stem, and part of the seed.
    pub name: &'static str,
    pub arch: Arch,
    pub n_layer: usize,
    pub n_embd: usize,
    pub n_head: usize,
    pub n_head_kv: usize,
    pub head_dim: usize,
    /// Rotated dimensions of a head.
    pub n_rot: usize,
    pub n_ff: usize,
    /// Without an `output.weight` of its own.
    pub tied: bool,
    pub n_ctx_train: u32,
    pub rope_base: f32,
    pub scaling: Scaling,
    /// `attention.sliding_window`.
    pub window: Option<u32>,
    pub vocab: Vocab,
    /// Experts of a layer, and how many compute a token; `n_ff` is then the width of one.
    pub experts: Option<(usize, usize)>,
    /// In place of attention.
    pub delta: Option<Delta>,
    /// What Gemma 4 alone has.
    pub gemma4: Option<Gemma4>,
    pub seed: u64,
}

/// Names of the committed models.
pub const NAMES: [&str; 22] = [
    "llama",
    "llama-rope-freqs",
    "llama-linear",
    "llama-yarn",
    "qwen2",
    "qwen3",
    "gemma3",
    "gemma4",
    "gemma4-small",
    "gemma4-moe",
    "phi3",
    "phi3-longrope",
    "granite",
    "mistral3",
    "qwen3moe",
    "gpt-oss",
    "olmo2",
    "olmo3",
    "glm4",
    "qwen35",
    "qwen35moe",
    "qwen3next",
];

impl Tiny {
    /// A model of this name as wide as quantized blocks and the kernels of GPUs need: rows of 256 features, heads that are rotated
    /// whole, and delta nets whose heads have 64.
    pub fn wide(name: &str, n_head: usize, n_head_kv: usize, head_dim: usize) -> Tiny {
        let tiny = Tiny::named(name);
        let delta = tiny.delta.map(|delta| Delta { n_head_k: 2, n_head_v: 4, head_dim: 64, d_conv: 4, ..delta });
        let gemma4 = tiny.gemma4.map(|gemma4| Gemma4 {
            head_dim_swa: head_dim / 2,
            n_head_kv_swa: n_head,
            n_embd_per_layer: if gemma4.n_embd_per_layer > 0 { 256 } else { 0 },
            n_ff_shared_kv: 768,
            n_ff_beside: 256,
            ..gemma4
        });
        Tiny { n_embd: 256, n_ff: 512, n_head, n_head_kv, head_dim, n_rot: head_dim, delta, gemma4, ..tiny }
    }

    /// Tokens of the vocabulary.
    pub fn n_vocab(&self) -> usize {
        self.vocab.n_tokens()
    }

    /// A prompt of n random tokens of this model.
    pub fn prompt(&self, n: usize) -> Vec<u32> {
        let mut prng = Prng::named(self.seed, "prompt");
        (0..n).map(|_| prng.below(self.n_vocab() as u32)).collect()
    }

    /// The model as a GGUF file.
    pub fn build(&self) -> File {
        let mut file = File::default();
        self.write_metadata(&mut file);
        self.vocab.write(&mut file);
        self.write_tensors(&mut file);
        file
    }
}
