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
    /// Sizes of each layer, where they differ from those above.
    pub by_layer: Option<Vec<LayerSizes>>,
    /// Last layers that have no keys and values of their own: each reads those of the last layer of its kind that has.
    pub n_shared_kv: usize,
    /// Features that each layer has of every token of the vocabulary, besides the embedding; 0 elsewhere than in small Gemma 4.
    pub n_embd_per_layer: usize,
}

/// Sizes in which a model's layers may differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerSizes {
    /// Key and value heads.
    pub n_head_kv: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the FFN.
    pub n_ff: usize,
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
    /// Attention, of any kind, with keys and values that several layers read.
    Shared,
}

impl Shape {
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

    /// Sizes of a layer.
    pub fn sizes(&self, layer: usize) -> LayerSizes {
        let same = LayerSizes { n_head_kv: self.n_head_kv, head_dim: self.head_dim, n_ff: self.n_ff };
        self.by_layer.as_ref().and_then(|all| all.get(layer).copied()).unwrap_or(same)
    }

    /// The layers that have keys and values of their own, recurrent ones among them: all, unless the last ones share.
    pub fn n_layer_kv(&self) -> usize {
        self.n_layer - self.n_shared_kv
    }

    /// The layer whose keys and values a layer's attention reads: itself, or the last one of its kind that has any.
    pub fn kv_layer(&self, layer: usize) -> usize {
        match layer < self.n_layer_kv() {
            true => layer,
            false => (0..self.n_layer_kv()).rfind(|&l| self.is_swa(l) == self.is_swa(layer)).unwrap_or(layer),
        }
    }

    /// Whether a layer keeps a cache of keys and values.
    pub fn has_cache(&self, layer: usize) -> bool {
        self.recurrence(layer).is_none() && layer < self.n_layer_kv()
    }

    /// Whether other layers read a layer's keys, or it reads another's.
    fn shares(&self, layer: usize) -> bool {
        let readers = self.n_layer_kv()..self.n_layer;
        readers.contains(&layer) || readers.into_iter().any(|l| self.kv_layer(l) == layer)
    }

    /// How a layer's tokens see each other.
    pub fn layer_kind(&self, layer: usize) -> LayerKind {
        if self.shares(layer) {
            return LayerKind::Shared;
        }
        match (self.is_swa(layer), self.recurrence(layer)) {
            (_, Some(_)) => LayerKind::Recurrent,
            (true, None) => LayerKind::Windowed,
            (false, None) => LayerKind::Full,
        }
    }

    /// Width of the keys (and of the values) of all KV heads of a layer.
    pub fn n_embd_kv(&self, layer: usize) -> usize {
        let LayerSizes { n_head_kv, head_dim, .. } = self.sizes(layer);
        n_head_kv * head_dim
    }

    /// Weights of the matrices, norms and biases left out.
    pub fn n_params(&self) -> f64 {
        let embeddings = if self.tied { 1. } else { 2. } * self.n_vocab as f64 * self.n_embd as f64;
        let ffn = |l: usize| match self.experts {
            Some(experts) => self.w_router() + experts.n_expert as f64 * self.w_expert(l) + self.w_shared(),
            None => self.w_ffn(l),
        };
        let per_layer = self.n_vocab as f64 * (self.n_embd_per_layer * self.n_layer) as f64;
        embeddings + per_layer + (0..self.n_layer).map(|l| self.w_mixing(l) + ffn(l) + self.w_per_layer()).sum::<f64>()
    }

    /// Weights of a layer besides its FFN and what it does behind.
    pub(crate) fn w_mixing(&self, layer: usize) -> f64 {
        match self.recurrence(layer) {
            Some(heads) => self.w_delta(&heads),
            None => self.w_q(layer) + self.w_k(layer) + self.w_v(layer) + self.w_o(layer),
        }
    }

    /// Bytes of the experts of each of the first `n_layers` layers, 4.5 bits each.
    pub fn expert_bytes(&self, n_layers: usize) -> Vec<u64> {
        let bytes = self.experts.map_or(0., |experts| experts.n_expert as f64 * self.w_expert(0) * 4.5 / 8.);
        vec![bytes as u64; n_layers.min(self.n_layer)]
    }

    /// Queries of models with recurrent layers come with as many gates.
    pub(crate) fn w_q(&self, layer: usize) -> f64 {
        self.w_o(layer) * if self.recurrent.is_some() { 2. } else { 1. }
    }

    /// Layers that share others' keys have none of these.
    pub(crate) fn w_k(&self, layer: usize) -> f64 {
        if self.kv_layer(layer) == layer { self.n_embd as f64 * self.n_embd_kv(layer) as f64 } else { 0. }
    }

    pub(crate) fn w_v(&self, layer: usize) -> f64 {
        if self.has_values(layer) { self.w_k(layer) } else { 0. }
    }

    /// Whether values have a matrix of their own. Those of full attention are made by that of the keys in the larger Gemma 4.
    pub(crate) fn has_values(&self, layer: usize) -> bool {
        self.arch != "gemma4" || self.n_embd_per_layer > 0 || self.is_swa(layer)
    }

    pub(crate) fn w_o(&self, layer: usize) -> f64 {
        self.n_embd as f64 * (self.n_head as f64 * self.sizes(layer).head_dim as f64)
    }

    /// Weights by which a layer brings in its own features of a token.
    pub(crate) fn w_per_layer(&self) -> f64 {
        3. * self.n_embd as f64 * self.n_embd_per_layer as f64
    }

    /// The projections of a gated delta net: to its channels, the gate of its norm and those of its state, and back.
    pub(crate) fn w_delta(&self, heads: &DeltaHeads) -> f64 {
        self.n_embd as f64 * (heads.n_channels() + 2 * heads.n_values() + 2 * heads.n_head_v) as f64
    }

    /// Weights that a token is multiplied by in an FFN.
    pub(crate) fn w_ffn(&self, layer: usize) -> f64 {
        match self.experts {
            Some(experts) => self.w_router() + experts.n_used as f64 * self.w_expert(layer) + self.w_shared(),
            None => self.w_expert(layer),
        }
    }

    fn w_router(&self) -> f64 {
        self.experts.map_or(0., |experts| self.n_embd as f64 * experts.n_expert as f64)
    }

    fn w_expert(&self, layer: usize) -> f64 {
        3. * self.n_embd as f64 * self.sizes(layer).n_ff as f64
    }

    fn w_shared(&self) -> f64 {
        self.experts.map_or(0., |experts| 3. * self.n_embd as f64 * experts.n_ff_shared as f64)
    }
}
