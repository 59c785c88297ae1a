//! The numbers of a model that decide what a prefill costs.

use spts_quant::ProxySize;

/// A dense decoder's shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// For reports: the model's name.
    pub name: String,
    /// `general.architecture`.
    pub arch: String,
    /// Layers.
    pub n_layer: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Width of the FFN.
    pub n_ff: usize,
    /// Query heads.
    pub n_head: usize,
    /// Key and value heads.
    pub n_head_kv: usize,
    /// Width of a head: of its queries, its keys and its values.
    pub head_dim: usize,
    /// Vocabulary.
    pub n_vocab: usize,
    /// The output matrix is the token embedding.
    pub tied: bool,
    /// Bytes of all weights as stored; `None`: counted as Q4_K, 4.5 bits each.
    pub weight_bytes: Option<u64>,
    /// Layers that attend through a sliding window.
    pub swa: Option<SlidingWindow>,
    /// The FFNs of each layer, where a token goes through a few of many; `n_ff` is then the width of one.
    pub experts: Option<Experts>,
}

/// A mixture of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Experts {
    /// How many a layer has.
    pub n_expert: usize,
    /// How many compute a token.
    pub n_used: usize,
}

/// Which layers see only the last tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlidingWindow {
    /// Length in tokens, the token itself included.
    pub window: usize,
    /// One entry per layer; layers past its end attend to everything.
    pub layers: Vec<bool>,
}

/// Names that [`Shape::named`] knows.
pub const SHAPE_NAMES: [&str; 8] = [
    "llama-3.1-8b",
    "llama-3.2-1b",
    "qwen2.5-7b",
    "qwen2.5-1.5b",
    "qwen2.5-0.5b",
    "smollm2-135m",
    "gemma-3-270m",
    "qwen3-30b-a3b",
];

impl Shape {
    /// The published shape of a well-known model, for planning without its file.
    pub fn named(name: &str) -> Option<Shape> {
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
                experts: None,
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
            "qwen3-30b-a3b" => Shape {
                experts: Some(Experts { n_expert: 128, n_used: 8 }),
                ..shape("qwen3moe", [48, 2048, 768, 32, 4, 128, 151_936], false)
            },
            _ => return None,
        })
    }

    /// Tokens that the model of a published shape was trained with, as its file says (`context_length`).
    pub fn trained_context(name: &str) -> Option<usize> {
        Some(match name {
            "llama-3.1-8b" | "llama-3.2-1b" => 131_072,
            "qwen2.5-7b" | "qwen2.5-1.5b" | "qwen2.5-0.5b" | "gemma-3-270m" => 32_768,
            "smollm2-135m" => 8_192,
            "qwen3-30b-a3b" => 40_960,
            _ => return None,
        })
    }

    /// Size of this model's FFN proxies: the paper's for its models, [`ProxySize`]'s rule for all others.
    pub fn proxy_size(&self) -> ProxySize {
        ProxySize::default_for(self.n_embd, self.n_ff, self.n_layer)
    }

    /// Sliding window of a layer, in positions; `None` where it attends to everything.
    pub fn window(&self, layer: usize) -> Option<usize> {
        self.swa.as_ref().filter(|swa| swa.layers.get(layer) == Some(&true)).map(|swa| swa.window)
    }

    /// Whether a layer attends through a sliding window.
    pub fn is_swa(&self, layer: usize) -> bool {
        self.window(layer).is_some()
    }

    /// Width of the keys (and of the values) of all KV heads.
    pub fn n_embd_kv(&self) -> usize {
        self.n_head_kv * self.head_dim
    }

    /// Weights of the matrices, norms and biases left out.
    pub fn n_params(&self) -> f64 {
        let embeddings = if self.tied { 1. } else { 2. } * self.n_vocab as f64 * self.n_embd as f64;
        let ffn = match self.experts {
            Some(experts) => self.w_router() + experts.n_expert as f64 * self.w_expert(),
            None => self.w_ffn(),
        };
        embeddings + self.n_layer as f64 * (self.w_q() + self.w_k() + self.w_v() + self.w_o() + ffn)
    }

    pub(crate) fn w_q(&self) -> f64 {
        self.n_embd as f64 * (self.n_head as f64 * self.head_dim as f64)
    }

    pub(crate) fn w_k(&self) -> f64 {
        self.n_embd as f64 * self.n_embd_kv() as f64
    }

    pub(crate) fn w_v(&self) -> f64 {
        self.w_k()
    }

    pub(crate) fn w_o(&self) -> f64 {
        self.w_q()
    }

    /// Weights that a token is multiplied by in an FFN.
    pub(crate) fn w_ffn(&self) -> f64 {
        match self.experts {
            Some(experts) => self.w_router() + experts.n_used as f64 * self.w_expert(),
            None => self.w_expert(),
        }
    }

    fn w_router(&self) -> f64 {
        self.experts.map_or(0., |experts| self.n_embd as f64 * experts.n_expert as f64)
    }

    fn w_expert(&self) -> f64 {
        3. * self.n_embd as f64 * self.n_ff as f64
    }
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
}
