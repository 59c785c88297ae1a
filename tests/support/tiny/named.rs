//! The committed tiny models, by name.

use super::{Arch, Delta, DeltaLayers, Scaling, Tiny};
use crate::support::gemma4::Gemma4;
use crate::support::vocab::Vocab;

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
}
