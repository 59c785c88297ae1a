//! Tiny random models: every architecture in a few dozen kilobytes, the same bytes on every machine.

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
    /// One of [`NAMES`].
    pub fn named(name: &str) -> Tiny {
        let llama = Tiny {
            name: "llama",
            arch: Arch::Llama,
            n_layer: 5,
            n_embd: 24,
            n_head: 3,
            n_head_kv: 1,
            head_dim: 8,
            n_rot: 8,
            n_ff: 40,
            tied: false,
            n_ctx_train: 2048,
            rope_base: 10000.0,
            scaling: Scaling::None,
            window: None,
            vocab: Vocab::Bpe("llama-bpe", true),
            experts: None,
            delta: None,
            gemma4: None,
            seed: 1,
        };
        match name {
            "llama" => llama,
            // Heads wider together than the hidden state.
            "llama-rope-freqs" => Tiny {
                name: "llama-rope-freqs",
                n_layer: 4,
                n_embd: 32,
                n_head: 4,
                n_head_kv: 2,
                head_dim: 10,
                n_rot: 10,
                n_ff: 28,
                tied: true,
                rope_base: 500_000.0,
                scaling: Scaling::Freqs,
                ..llama
            },
            "llama-linear" => {
                Tiny { name: "llama-linear", n_layer: 4, tied: true, scaling: Scaling::Linear(4.0), ..llama }
            }
            "llama-yarn" => {
                Tiny { name: "llama-yarn", n_layer: 4, tied: true, scaling: Scaling::Yarn(4.0, 32), ..llama }
            }
            "qwen2" => Tiny {
                name: "qwen2",
                arch: Arch::Qwen2,
                n_layer: 4,
                n_embd: 32,
                n_head: 4,
                n_head_kv: 2,
                n_ff: 36,
                tied: true,
                rope_base: 1_000_000.0,
                vocab: Vocab::Bpe("qwen2", false),
                ..llama
            },
            "qwen3" => Tiny {
                name: "qwen3",
                arch: Arch::Qwen3,
                n_layer: 4,
                n_head: 4,
                n_head_kv: 2,
                head_dim: 12,
                n_rot: 12,
                n_ff: 36,
                tied: true,
                rope_base: 1_000_000.0,
                vocab: Vocab::Bpe("qwen2", false),
                ..llama
            },
            // Seven layers: the sixth is the global one.
            "gemma3" => Tiny {
                name: "gemma3",
                arch: Arch::Gemma3,
                n_layer: 7,
                n_embd: 20,
                n_head: 2,
                n_head_kv: 1,
                head_dim: 16,
                n_rot: 16,
                n_ff: 28,
                tied: true,
                rope_base: 1_000_000.0,
                window: Some(16),
                vocab: Vocab::Spm { space_prefix: false },
                ..llama
            },
            // Layers 2 and 5 are global, with larger heads and fewer of them, and without values of their own.
            "gemma4" => Tiny {
                name: "gemma4",
                arch: Arch::Gemma4,
                n_layer: 6,
                n_embd: 18,
                n_head: 4,
                n_head_kv: 1,
                head_dim: 12,
                n_rot: 12,
                n_ff: 22,
                tied: true,
                rope_base: 1_000_000.0,
                window: Some(16),
                vocab: Vocab::Spm { space_prefix: false },
                gemma4: Some(Gemma4 {
                    windowed: vec![true, true, false, true, true, false],
                    head_dim_swa: 8,
                    n_head_kv_swa: 2,
                    values: false,
                    n_shared_kv: 0,
                    n_embd_per_layer: 0,
                    n_ff_shared_kv: 22,
                    n_ff_beside: 0,
                    softcap: 15.0,
                }),
                ..llama
            },
            // The last three layers read the keys of the layers 4 and 5; each layer has features of every token.
            "gemma4-small" => {
                let base = Tiny::named("gemma4");
                let gemma4 = base.gemma4.clone().map(|gemma4| Gemma4 {
                    windowed: vec![true, false, true, false, true, false, true, true, false],
                    n_head_kv_swa: 1,
                    values: true,
                    n_shared_kv: 3,
                    n_embd_per_layer: 4,
                    n_ff_shared_kv: 18,
                    ..gemma4
                });
                Tiny { name: "gemma4-small", n_layer: 9, n_embd: 14, n_head: 2, n_ff: 14, gemma4, ..base }
            }
            "gemma4-moe" => {
                let base = Tiny::named("gemma4");
                let gemma4 = base.gemma4.clone().map(|gemma4| Gemma4 {
                    windowed: vec![true, true, false, false],
                    n_ff_beside: 14,
                    ..gemma4
                });
                Tiny { name: "gemma4-moe", n_layer: 4, n_ff: 8, experts: Some((5, 2)), gemma4, ..base }
            }
            // The window is written by converters, and has no effect in llama.cpp.
            "phi3" => Tiny {
                name: "phi3",
                arch: Arch::Phi3,
                n_layer: 4,
                n_embd: 32,
                n_head: 4,
                n_head_kv: 2,
                n_ff: 32,
                tied: true,
                window: Some(16),
                vocab: Vocab::Spm { space_prefix: true },
                ..llama
            },
            "phi3-longrope" => Tiny {
                name: "phi3-longrope",
                arch: Arch::Phi3,
                n_layer: 4,
                n_rot: 6,
                scaling: Scaling::LongRope(256, 1.19),
                vocab: Vocab::Spm { space_prefix: true },
                ..llama
            },
            "granite" => Tiny { name: "granite", arch: Arch::Granite, n_layer: 4, n_head: 4, n_head_kv: 2, ..llama },
            // A prompt of the fixtures reaches beyond the original context, where queries grow.
            "mistral3" => Tiny {
                name: "mistral3",
                arch: Arch::Mistral3,
                n_layer: 4,
                n_head: 4,
                n_head_kv: 2,
                head_dim: 10,
                n_rot: 10,
                tied: true,
                scaling: Scaling::Yarn(4.0, 16),
                ..llama
            },
            "qwen3moe" => Tiny {
                name: "qwen3moe",
                arch: Arch::Qwen3Moe,
                n_layer: 4,
                n_head: 4,
                n_head_kv: 2,
                n_ff: 10,
                tied: true,
                experts: Some((6, 2)),
                vocab: Vocab::Bpe("qwen2", false),
                ..llama
            },
            // Three layers of each kind.
            "gpt-oss" => Tiny {
                name: "gpt-oss",
                arch: Arch::GptOss,
                n_layer: 6,
                n_embd: 16,
                n_head: 4,
                n_head_kv: 2,
                n_ff: 8,
                window: Some(16),
                scaling: Scaling::Yarn(4.0, 32),
                rope_base: 150_000.0,
                experts: Some((5, 3)),
                vocab: Vocab::Bpe("gpt-4o", false),
                ..llama
            },
            "olmo2" => Tiny {
                name: "olmo2",
                arch: Arch::Olmo2,
                n_layer: 4,
                n_head: 4,
                n_head_kv: 2,
                head_dim: 6,
                n_rot: 6,
                n_ff: 28,
                rope_base: 500_000.0,
                vocab: Vocab::Bpe("dbrx", false),
                ..llama
            },
            // Three layers with a window, one without, and so on.
            "olmo3" => Tiny {
                name: "olmo3",
                arch: Arch::Olmo2,
                n_layer: 8,
                n_ff: 12,
                window: Some(16),
                scaling: Scaling::Yarn(4.0, 32),
                rope_base: 500_000.0,
                vocab: Vocab::Bpe("dbrx", false),
                ..llama
            },
            "glm4" => Tiny {
                name: "glm4",
                arch: Arch::Glm4,
                n_layer: 4,
                n_head: 4,
                n_head_kv: 2,
                head_dim: 12,
                n_rot: 6,
                n_ff: 36,
                tied: true,
                vocab: Vocab::Bpe("glm4", false),
                ..llama
            },
            // Attention in the layers 1, 3 and 5; of its heads a part is rotated.
            "qwen35" => Tiny {
                name: "qwen35",
                arch: Arch::Qwen35,
                n_layer: 6,
                n_embd: 20,
                n_head: 4,
                n_head_kv: 2,
                head_dim: 10,
                n_rot: 6,
                n_ff: 22,
                tied: true,
                delta: Some(Delta {
                    layers: DeltaLayers::ButEvery(2),
                    n_head_k: 2,
                    n_head_v: 4,
                    head_dim: 9,
                    d_conv: 4,
                }),
                vocab: Vocab::Bpe("qwen35", false),
                ..llama
            },
            // Attention in the layers 1 and 2; of three key heads each has one value head; gate and up in one tensor.
            "qwen35moe" => Tiny {
                name: "qwen35moe",
                arch: Arch::Qwen35Moe,
                n_layer: 5,
                n_embd: 20,
                n_head: 4,
                n_head_kv: 2,
                n_rot: 4,
                n_ff: 7,
                tied: true,
                experts: Some((5, 2)),
                delta: Some(Delta {
                    layers: DeltaLayers::List(vec![true, false, false, true, true]),
                    n_head_k: 3,
                    n_head_v: 3,
                    head_dim: 5,
                    d_conv: 3,
                }),
                vocab: Vocab::Bpe("qwen35", false),
                ..llama
            },
            // Two value heads to a key head, neighbours.
            "qwen3next" => Tiny {
                name: "qwen3next",
                arch: Arch::Qwen3Next,
                n_layer: 5,
                n_embd: 20,
                n_head: 4,
                n_head_kv: 2,
                n_rot: 4,
                n_ff: 8,
                tied: true,
                experts: Some((5, 2)),
                delta: Some(Delta {
                    layers: DeltaLayers::ButEvery(2),
                    n_head_k: 2,
                    n_head_v: 4,
                    head_dim: 7,
                    d_conv: 4,
                }),
                vocab: Vocab::Bpe("qwen2", false),
                ..llama
            },
            other => panic!("no tiny model is called {other}"),
        }
    }

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

    fn write_metadata(&self, file: &mut File) {
        let arch = self.arch.name();
        file.set("general.architecture", arch);
        // Not the architecture: llama.cpp demands certain special tokens of what calls itself "phi3".
        file.set("general.name", "tiny random");
        let key = |k: &str| format!("{arch}.{k}");
        file.set(key("block_count"), self.n_layer as u32);
        file.set(key("context_length"), self.n_ctx_train);
        file.set(key("embedding_length"), self.n_embd as u32);
        if self.gemma4.is_none() {
            file.set(key("feed_forward_length"), self.n_ff as u32);
        }
        file.set(key("attention.head_count"), self.n_head as u32);
        if self.gemma4.is_none() {
            file.set(key("attention.head_count_kv"), self.n_head_kv as u32);
        }
        file.set(key("attention.key_length"), self.head_dim as u32);
        file.set(key("attention.value_length"), self.head_dim as u32);
        file.set(key("attention.layer_norm_rms_epsilon"), 1e-5f32);
        file.set(key("rope.dimension_count"), self.n_rot as u32);
        file.set(key("rope.freq_base"), self.rope_base);
        file.set(key("vocab_size"), self.n_vocab() as u32);
        if let Some(window) = self.window {
            file.set(key("attention.sliding_window"), window);
        }
        if let Some((n_expert, n_used)) = self.experts {
            file.set(key("expert_count"), n_expert as u32);
            file.set(key("expert_used_count"), n_used as u32);
            file.set(key("expert_feed_forward_length"), self.n_ff as u32);
            if self.has_shared_expert() {
                file.set(key("expert_shared_feed_forward_length"), self.n_ff_shared() as u32);
            }
        }
        if let Some(delta) = &self.delta {
            if self.arch != Arch::Qwen3Next {
                file.set(key("rope.dimension_sections"), self.sections());
            }
            file.set(key("ssm.conv_kernel"), delta.d_conv as u32);
            file.set(key("ssm.state_size"), delta.head_dim as u32);
            file.set(key("ssm.group_count"), delta.n_head_k as u32);
            file.set(key("ssm.time_step_rank"), delta.n_head_v as u32);
            file.set(key("ssm.inner_size"), (delta.n_head_v * delta.head_dim) as u32);
            match &delta.layers {
                DeltaLayers::ButEvery(n) => file.set(key("full_attention_interval"), *n as u32),
                DeltaLayers::List(layers) => file.set(key("attention.recurrent_layers"), layers.clone()),
            }
        }
        if let Some(gemma4) = &self.gemma4 {
            gemma4.write_metadata(self, file);
        }
        match self.arch {
            Arch::Granite => {
                file.set(key("embedding_scale"), 3.0f32);
                file.set(key("residual_scale"), 0.6f32);
                file.set(key("attention.scale"), 0.25f32);
                file.set(key("logit_scale"), 0.8f32);
            }
            Arch::Mistral3 => {
                file.set(key("attention.temperature_scale"), 0.3f32);
                file.set(key("rope.scaling.yarn_log_multiplier"), 0.7f32);
            }
            _ => {}
        }
        match self.scaling {
            Scaling::None | Scaling::Freqs => {}
            Scaling::Linear(factor) => {
                file.set(key("rope.scaling.type"), "linear");
                file.set(key("rope.scaling.factor"), factor);
            }
            Scaling::Yarn(factor, n_ctx_orig) => {
                file.set(key("rope.scaling.type"), "yarn");
                file.set(key("rope.scaling.factor"), factor);
                file.set(key("rope.scaling.original_context_length"), n_ctx_orig);
            }
            Scaling::LongRope(n_ctx_orig, attn_factor) => {
                file.set(key("rope.scaling.type"), "longrope");
                file.set(key("rope.scaling.original_context_length"), n_ctx_orig);
                file.set(key("rope.scaling.attn_factor"), attn_factor);
            }
        }
    }

    /// Experts with gate and up in one tensor, and a shared one.
    fn write_shared(&self, file: &mut File, name: &dyn Fn(&str) -> String, n_expert: usize) {
        let (d, f, shared) = (self.n_embd, self.n_ff, self.n_ff_shared());
        let std = |gain: f64, n_in: usize| gain / (n_in as f64).sqrt();
        self.uniform(file, &name("ffn_gate_up_exps.weight"), &[d, 2 * f, n_expert], std(1.25, d));
        self.uniform(file, &name("ffn_down_exps.weight"), &[f, d, n_expert], std(1.0, f));
        self.uniform(file, &name("ffn_gate_inp_shexp.weight"), &[d], std(1.5, d));
        self.matrix(file, &name("ffn_gate_shexp.weight"), d, shared, 1.25);
        self.matrix(file, &name("ffn_up_shexp.weight"), d, shared, 1.25);
        self.matrix(file, &name("ffn_down_shexp.weight"), shared, d, 1.0);
    }

    fn has_shared_expert(&self) -> bool {
        matches!(self.arch, Arch::Qwen35Moe | Arch::Qwen3Next)
    }

    /// Width of a shared expert.
    fn n_ff_shared(&self) -> usize {
        self.n_ff + 2
    }

    /// The rotated pairs in three parts that take turns.
    fn sections(&self) -> Vec<i32> {
        let n = self.n_rot as i32 / 2;
        vec![(n + 2) / 3, (n + 1) / 3, n / 3, 0]
    }

    fn write_delta(&self, file: &mut File, name: &dyn Fn(&str) -> String, delta: &Delta) {
        let (d, values) = (self.n_embd, delta.n_head_v * delta.head_dim);
        self.matrix(file, &name("attn_qkv.weight"), d, delta.n_channels(), 1.0);
        self.matrix(file, &name("attn_gate.weight"), d, values, 1.0);
        if self.arch == Arch::Qwen3Next {
            self.matrix(file, &name("ssm_ba.weight"), d, 2 * delta.n_head_v, 1.0);
        } else {
            self.matrix(file, &name("ssm_beta.weight"), d, delta.n_head_v, 1.0);
            self.matrix(file, &name("ssm_alpha.weight"), d, delta.n_head_v, 1.0);
        }
        self.matrix(file, &name("ssm_conv1d.weight"), delta.d_conv, delta.n_channels(), 1.25);
        self.uniform(file, &name("ssm_dt.bias"), &[delta.n_head_v], 0.5);
        // From slow decays to fast ones.
        file.add(name("ssm_a"), &[delta.n_head_v], (0..delta.n_head_v).map(|i| -0.05 * 3f32.powi(i as i32)).collect());
        self.norm(file, &name("ssm_norm.weight"), delta.head_dim, 1.0);
        self.matrix(file, &name("ssm_out.weight"), values, d, 0.5);
    }

    fn write_tensors(&self, file: &mut File) {
        let (d, f) = (self.n_embd, self.n_ff);
        let (q, kv) = (self.n_head * self.head_dim, self.n_head_kv * self.head_dim);
        // The rows of a tied embedding are also the output's: their size sets the spread of the logits.
        self.uniform(file, "token_embd.weight", &[d, self.n_vocab()], 2.0 / (d as f64).sqrt());
        self.norm(file, "output_norm.weight", d, 1.0);
        if !self.tied {
            self.matrix(file, "output.weight", d, self.n_vocab(), 2.0);
        }
        let factors = |slope: f32| (0..self.n_rot / 2).map(|i| 1.0 + slope * i as f32).collect::<Vec<f32>>();
        match self.scaling {
            Scaling::Freqs => file.add("rope_freqs.weight", &[self.n_rot / 2], factors(0.75)),
            Scaling::LongRope(..) => {
                file.add("rope_factors_long.weight", &[self.n_rot / 2], factors(1.5));
                file.add("rope_factors_short.weight", &[self.n_rot / 2], factors(0.125));
            }
            _ => {}
        }
        if let Some(gemma4) = &self.gemma4 {
            return gemma4.write_tensors(self, file);
        }
        for il in 0..self.n_layer {
            let name = |part: &str| format!("blk.{il}.{part}");
            if self.arch != Arch::Olmo2 {
                self.norm(file, &name("attn_norm.weight"), d, 1.0);
            }
            // Queries and keys above unit size: attention that prefers some tokens, hence scores that differ.
            let delta = self.delta.as_ref().filter(|delta| delta.is_in(il));
            if let Some(delta) = delta {
                self.write_delta(file, &name, delta);
            } else if self.arch == Arch::Phi3 {
                self.matrix(file, &name("attn_qkv.weight"), d, q + 2 * kv, 1.25);
            } else {
                // With a gate for each head.
                let gated = if self.delta.is_some() { 2 * q } else { q };
                self.matrix(file, &name("attn_q.weight"), d, gated, 1.5);
                self.matrix(file, &name("attn_k.weight"), d, kv, 1.5);
                self.matrix(file, &name("attn_v.weight"), d, kv, 1.0);
            }
            if matches!(self.arch, Arch::Qwen2 | Arch::GptOss | Arch::Glm4) {
                self.uniform(file, &name("attn_q.bias"), &[q], 0.5);
                self.uniform(file, &name("attn_k.bias"), &[kv], 0.5);
                self.uniform(file, &name("attn_v.bias"), &[kv], 0.5);
            }
            let norms_heads = matches!(self.arch, Arch::Qwen3 | Arch::Qwen3Moe | Arch::Gemma3) || self.delta.is_some();
            if norms_heads && delta.is_none() {
                // Recurrent layers make rounding larger by themselves.
                let size = if self.delta.is_some() { 1.2 } else { 1.5 };
                self.norm(file, &name("attn_q_norm.weight"), self.head_dim, size);
                self.norm(file, &name("attn_k_norm.weight"), self.head_dim, size);
            }
            if delta.is_none() {
                self.matrix(file, &name("attn_output.weight"), q, d, 0.75);
            }
            if self.arch == Arch::Olmo2 {
                self.norm(file, &name("attn_q_norm.weight"), q, 1.5);
                self.norm(file, &name("attn_k_norm.weight"), kv, 1.5);
            }
            let oss = self.arch == Arch::GptOss;
            if oss {
                self.uniform(file, &name("attn_output.bias"), &[d], 0.25);
                self.uniform(file, &name("attn_sinks.weight"), &[self.n_head], 1.5);
            }
            if self.arch != Arch::Olmo2 {
                let is_behind = oss || self.delta.is_some();
                let ffn_norm = if is_behind { "post_attention_norm.weight" } else { "ffn_norm.weight" };
                self.norm(file, &name(ffn_norm), d, 1.0);
            }
            if let Some((n_expert, _)) = self.experts {
                // Experts that differ much, and are chosen clearly.
                self.matrix(file, &name("ffn_gate_inp.weight"), d, n_expert, 2.0);
                if self.has_shared_expert() {
                    self.write_shared(file, &name, n_expert);
                    continue;
                }
                // Those of gpt-oss clamp some of what they multiply.
                let [gain, gain_down] = if oss { [3.5, 0.25] } else { [1.25, 1.0] };
                for (part, n_in, n_out, gain) in [("gate", d, f, gain), ("up", d, f, gain), ("down", f, d, gain_down)] {
                    let std = gain / (n_in as f64).sqrt();
                    self.uniform(file, &name(&format!("ffn_{part}_exps.weight")), &[n_in, n_out, n_expert], std);
                    if oss {
                        self.uniform(file, &name(&format!("ffn_{part}_exps.bias")), &[n_out, n_expert], 0.5);
                    }
                }
                if oss {
                    self.uniform(file, &name("ffn_gate_inp.bias"), &[n_expert], 0.5);
                }
                continue;
            }
            if matches!(self.arch, Arch::Phi3 | Arch::Glm4) {
                self.matrix(file, &name("ffn_up.weight"), d, 2 * f, 1.25);
            } else {
                self.matrix(file, &name("ffn_gate.weight"), d, f, 1.25);
                self.matrix(file, &name("ffn_up.weight"), d, f, 1.25);
            }
            self.matrix(file, &name("ffn_down.weight"), f, d, 1.0);
            if matches!(self.arch, Arch::Gemma3 | Arch::Olmo2 | Arch::Glm4) {
                self.norm(file, &name("post_attention_norm.weight"), d, 1.0);
                self.norm(file, &name("post_ffw_norm.weight"), d, 1.0);
            }
        }
    }

    /// Uniform values of the given standard deviation.
    pub(super) fn uniform(&self, file: &mut File, name: &str, shape: &[usize], std: f64) {
        let mut prng = Prng::named(self.seed, &format!("{}/{name}", self.name));
        let bound = (std * 3f64.sqrt()) as f32;
        let n = shape.iter().product();
        file.add(name, shape, (0..n).map(|_| prng.signed() * bound).collect());
    }

    /// `[n_in, n_out]`; rows of unit size come out with the standard deviation `gain`.
    pub(super) fn matrix(&self, file: &mut File, name: &str, n_in: usize, n_out: usize, gain: f64) {
        self.uniform(file, name, &[n_in, n_out], gain / (n_in as f64).sqrt());
    }

    /// Norm weights within a quarter of `center`.
    pub(super) fn norm(&self, file: &mut File, name: &str, n: usize, center: f32) {
        let mut prng = Prng::named(self.seed, &format!("{}/{name}", self.name));
        file.add(name, &[n], (0..n).map(|_| center * (1.0 + 0.25 * prng.signed())).collect());
    }
}
