//! Shapes of well-known models, by name.

use crate::attributes::DeltaHeads;

use super::shape::{Experts, LayerSizes, Recurrent, Shape, SlidingWindow};

/// Names that [`Shape::named`] knows.
pub const SHAPE_NAMES: [&str; 17] = [
    "llama-3.1-8b",
    "llama-3.2-1b",
    "qwen2.5-7b",
    "qwen2.5-1.5b",
    "qwen2.5-0.5b",
    "smollm2-135m",
    "gemma-3-270m",
    "gemma-4-e2b",
    "gemma-4-e4b",
    "gemma-4-12b",
    "gemma-4-26b-a4b",
    "gemma-4-31b",
    "qwen3-30b-a3b",
    "gpt-oss-20b",
    "gpt-oss-120b",
    "qwen3.6-27b",
    "qwen3.6-35b-a3b",
];

impl Shape {
    /// The published shape of a well-known model, for planning without its file. Of the two hybrids (Qwen 3.6) the sizes of layers
    /// and heads are known; that their output has a matrix of its own is taken from Qwen 3.5 of these sizes.
    pub fn named(name: &str) -> Option<Shape> {
        // Every fourth layer attends.
        let recurrent = |n_layer: usize, n_head_v| Recurrent {
            layers: (1..=n_layer).map(|l| l % 4 != 0).collect(),
            heads: DeltaHeads { n_head_k: 16, n_head_v, grouped: false, head_dim: 128, d_conv: 4 },
        };
        let shape =
            |arch: &str, [n_layer, n_embd, n_ff, n_head, n_head_kv, head_dim, n_vocab]: [usize; 7], tied| Shape {
                name: name.to_owned(),
                arch: arch.to_owned(),
                n_layer,
                n_embd,
                n_ff,
                n_head,
                n_head_kv,
                head_dim,
                n_vocab,
                tied,
                weight_bytes: None,
                swa: None,
                recurrent: None,
                experts: None,
                by_layer: None,
                n_shared_kv: 0,
                n_embd_per_layer: 0,
            };
        Some(match name {
            "llama-3.1-8b" => shape("llama", [32, 4096, 14336, 32, 8, 128, 128_256], false),
            "llama-3.2-1b" => shape("llama", [16, 2048, 8192, 32, 8, 64, 128_256], true),
            "qwen2.5-7b" => shape("qwen2", [28, 3584, 18944, 28, 4, 128, 152_064], false),
            "qwen2.5-1.5b" => shape("qwen2", [28, 1536, 8960, 12, 2, 128, 151_936], true),
            "qwen2.5-0.5b" => shape("qwen2", [24, 896, 4864, 14, 2, 64, 151_936], true),
            "smollm2-135m" => shape("llama", [30, 576, 1536, 9, 3, 64, 49_152], true),
            "gemma-3-270m" => Shape {
                // Every sixth layer is global.
                swa: Some(SlidingWindow { window: 512, layers: (0..18).map(|l| l % 6 != 5).collect() }),
                ..shape("gemma3", [18, 640, 2048, 4, 1, 256, 262_144], true)
            },
            "gemma-4-e2b" => gemma4(shape("gemma4", [35, 1536, 6144, 8, 1, 512, 262_144], true), 1, 5, 20),
            "gemma-4-e4b" => gemma4(shape("gemma4", [42, 2560, 10240, 8, 2, 512, 262_144], true), 2, 6, 18),
            "gemma-4-12b" => gemma4(shape("gemma4", [48, 3840, 15360, 16, 1, 512, 262_144], true), 8, 6, 0),
            "gemma-4-26b-a4b" => Shape {
                experts: Some(Experts { n_expert: 128, n_used: 8, n_ff_shared: 2112 }),
                ..gemma4(shape("gemma4", [30, 2816, 704, 16, 2, 512, 262_144], true), 8, 6, 0)
            },
            "gemma-4-31b" => gemma4(shape("gemma4", [60, 5376, 21504, 32, 4, 512, 262_144], true), 16, 6, 0),
            "qwen3-30b-a3b" => Shape {
                experts: Some(Experts { n_expert: 128, n_used: 8, n_ff_shared: 0 }),
                ..shape("qwen3moe", [48, 2048, 768, 32, 4, 128, 151_936], false)
            },
            "gpt-oss-20b" => gpt_oss(shape("gpt-oss", [24, 2880, 2880, 64, 8, 64, 201_088], false), 32),
            "gpt-oss-120b" => gpt_oss(shape("gpt-oss", [36, 2880, 2880, 64, 8, 64, 201_088], false), 128),
            "qwen3.6-27b" => Shape {
                recurrent: Some(recurrent(64, 48)),
                ..shape("qwen35", [64, 5120, 17408, 24, 4, 256, 248_320], false)
            },
            "qwen3.6-35b-a3b" => Shape {
                recurrent: Some(recurrent(40, 32)),
                experts: Some(Experts { n_expert: 256, n_used: 8, n_ff_shared: 512 }),
                ..shape("qwen35moe", [40, 2048, 512, 16, 2, 256, 248_320], false)
            },
            _ => return None,
        })
    }

    /// Tokens that the model of a published shape was trained with, as its file says (`context_length`).
    pub fn trained_context(name: &str) -> Option<usize> {
        Some(match name {
            "llama-3.1-8b" | "llama-3.2-1b" | "gpt-oss-20b" | "gpt-oss-120b" => 131_072,
            "qwen2.5-7b" | "qwen2.5-1.5b" | "qwen2.5-0.5b" | "gemma-3-270m" => 32_768,
            "smollm2-135m" => 8_192,
            "qwen3-30b-a3b" => 40_960,
            "gemma-4-e2b" | "gemma-4-e4b" => 131_072,
            "qwen3.6-27b" | "qwen3.6-35b-a3b" | "gemma-4-12b" | "gemma-4-26b-a4b" | "gemma-4-31b" => 262_144,
            _ => return None,
        })
    }
}

/// Every second layer of gpt-oss has a window, the first one included.
fn gpt_oss(shape: Shape, n_expert: usize) -> Shape {
    let layers = (0..shape.n_layer).map(|l| l % 2 == 0).collect();
    let swa = Some(SlidingWindow { window: 128, layers });
    Shape { swa, experts: Some(Experts { n_expert, n_used: 4, n_ff_shared: 0 }), ..shape }
}

/// The windows, the sizes of windowed layers and what the last ones share in a Gemma 4 of which every `nth` layer has no window.
/// Windowed layers have heads of 256 and `n_head_kv` of them for keys. In the small ones the last `n_shared_kv` layers have no keys
/// of their own, and in the smallest FFNs of twice the width.
fn gemma4(shape: Shape, n_head_kv: usize, nth: usize, n_shared_kv: usize) -> Shape {
    let layers: Vec<bool> = (1..=shape.n_layer).map(|l| l % nth != 0).collect();
    let is_small = n_shared_kv > 0;
    let sizes = |l: usize| {
        let is_double = shape.n_embd == 1536 && l >= shape.n_layer - n_shared_kv;
        let n_ff = if is_double { 2 * shape.n_ff } else { shape.n_ff };
        match layers[l] {
            true => LayerSizes { n_head_kv, head_dim: 256, n_ff },
            false => LayerSizes { n_head_kv: shape.n_head_kv, head_dim: shape.head_dim, n_ff },
        }
    };
    let by_layer = Some((0..shape.n_layer).map(sizes).collect());
    let n_embd_per_layer = if is_small { 256 } else { 0 };
    let swa = Some(SlidingWindow { window: if is_small { 512 } else { 1024 }, layers });
    Shape { swa, by_layer, n_shared_kv, n_embd_per_layer, ..shape }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_a_shape_and_a_context() {
        for name in SHAPE_NAMES {
            assert!(Shape::named(name).is_some() && Shape::trained_context(name).is_some(), "{name}");
        }
        assert_eq!((Shape::named("gpt-9"), Shape::trained_context("gpt-9")), (None, None));
    }

    /// As their publishers count them, in billions; norms are not counted here.
    #[test]
    fn parameters_of_gemma_4() {
        for (name, billions) in [("gemma-4-31b", 30.70), ("gemma-4-26b-a4b", 25.2), ("gemma-4-12b", 11.9)] {
            let counted = Shape::named(name).expect("a shape").n_params() / 1e9;
            assert!((counted - billions).abs() < 0.01 * billions, "{name}: {counted}");
        }
    }
}
