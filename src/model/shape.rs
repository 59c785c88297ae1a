//! The numbers of a model that decide what a prefill costs.

use spts_quant::ProxySize;

use crate::attributes::DeltaHeads;

/// The sizes of a model: its layers, widths and heads.
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
    /// Layers that are recurrent instead of attending.
    pub recurrent: Option<Recurrent>,
    /// The FFNs of each layer, where a token goes through a few of many; `n_ff` is then the width of one.
    pub experts: Option<Experts>,
}

/// A mixture of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Experts {
    /// Experts in each layer.
    pub n_expert: usize,
    /// Experts that compute each token.
    pub n_used: usize,
    /// Width of the FFN that computes every token beside them; 0 if there is none.
    pub n_ff_shared: usize,
}

/// Which layers are gated delta nets: they remember a state of fixed size in place of every token's key and value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recurrent {
    /// One entry per layer.
    pub layers: Vec<bool>,
    /// Their geometry.
    pub heads: DeltaHeads,
}

/// Which layers see only the last tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlidingWindow {
    /// Length in tokens, the token itself included.
    pub window: usize,
    /// One entry per layer; layers past its end attend to everything.
    pub layers: Vec<bool>,
}

/// How the tokens of a layer see each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerKind {
    /// Attention to every token before.
    Full,
    /// Attention to the last tokens.
    Windowed,
    /// A recurrence over all tokens in order.
    Recurrent,
}

/// Names that [`Shape::named`] knows.
pub const SHAPE_NAMES: [&str; 12] = [
    "llama-3.1-8b",
    "llama-3.2-1b",
    "qwen2.5-7b",
    "qwen2.5-1.5b",
    "qwen2.5-0.5b",
    "smollm2-135m",
    "gemma-3-270m",
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
            "qwen3.6-27b" | "qwen3.6-35b-a3b" => 262_144,
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

    /// Geometry of a recurrent layer; `None` where a layer attends.
    pub fn recurrence(&self, layer: usize) -> Option<DeltaHeads> {
        self.recurrent.as_ref().filter(|r| r.layers.get(layer) == Some(&true)).map(|r| r.heads)
    }

    /// How a layer's tokens see each other.
    pub fn layer_kind(&self, layer: usize) -> LayerKind {
        match (self.is_swa(layer), self.recurrence(layer)) {
            (_, Some(_)) => LayerKind::Recurrent,
            (true, None) => LayerKind::Windowed,
            (false, None) => LayerKind::Full,
        }
    }

    /// Layers with attention, through a window or without one: those that keep keys and values.
    pub fn n_attending(&self) -> usize {
        (0..self.n_layer).filter(|&l| self.recurrence(l).is_none()).count()
    }

    /// Width of the keys (and of the values) of all KV heads.
    pub fn n_embd_kv(&self) -> usize {
        self.n_head_kv * self.head_dim
    }

    /// Weights of the matrices, norms and biases left out.
    pub fn n_params(&self) -> f64 {
        let embeddings = if self.tied { 1. } else { 2. } * self.n_vocab as f64 * self.n_embd as f64;
        let ffn = match self.experts {
            Some(experts) => self.w_router() + experts.n_expert as f64 * self.w_expert() + self.w_shared(),
            None => self.w_ffn(),
        };
        let mixing = |l: usize| match self.recurrence(l) {
            Some(heads) => self.w_delta(&heads),
            None => self.w_q() + self.w_k() + self.w_v() + self.w_o(),
        };
        embeddings + (0..self.n_layer).map(|l| mixing(l) + ffn).sum::<f64>()
    }

    /// Bytes of the experts of each of the first `n_layers` layers, 4.5 bits each.
    pub fn expert_bytes(&self, n_layers: usize) -> Vec<u64> {
        let bytes = self.experts.map_or(0., |experts| experts.n_expert as f64 * self.w_expert() * 4.5 / 8.);
        vec![bytes as u64; n_layers.min(self.n_layer)]
    }

    /// Queries of models with recurrent layers come with as many gates.
    pub(crate) fn w_q(&self) -> f64 {
        self.w_o() * if self.recurrent.is_some() { 2. } else { 1. }
    }

    pub(crate) fn w_k(&self) -> f64 {
        self.n_embd as f64 * self.n_embd_kv() as f64
    }

    pub(crate) fn w_v(&self) -> f64 {
        self.w_k()
    }

    pub(crate) fn w_o(&self) -> f64 {
        self.n_embd as f64 * (self.n_head as f64 * self.head_dim as f64)
    }

    /// The projections of a gated delta net: to its channels, the gate of its norm and those of its state, and back.
    pub(crate) fn w_delta(&self, heads: &DeltaHeads) -> f64 {
        self.n_embd as f64 * (heads.n_channels() + 2 * heads.n_values() + 2 * heads.n_head_v) as f64
    }

    /// Weights that a token is multiplied by in an FFN.
    pub(crate) fn w_ffn(&self) -> f64 {
        match self.experts {
            Some(experts) => self.w_router() + experts.n_used as f64 * self.w_expert() + self.w_shared(),
            None => self.w_expert(),
        }
    }

    fn w_router(&self) -> f64 {
        self.experts.map_or(0., |experts| self.n_embd as f64 * experts.n_expert as f64)
    }

    fn w_expert(&self) -> f64 {
        3. * self.n_embd as f64 * self.n_ff as f64
    }

    fn w_shared(&self) -> f64 {
        self.experts.map_or(0., |experts| 3. * self.n_embd as f64 * experts.n_ff_shared as f64)
    }
}

/// Every second layer of gpt-oss has a window, the first one included.
fn gpt_oss(shape: Shape, n_expert: usize) -> Shape {
    let layers = (0..shape.n_layer).map(|l| l % 2 == 0).collect();
    let swa = Some(SlidingWindow { window: 128, layers });
    Shape { swa, experts: Some(Experts { n_expert, n_used: 4, n_ff_shared: 0 }), ..shape }
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
