//! The intermediate representation: a flat SSA list of transformer operations.
//!
//! A value is a matrix in ggml order, `[n_feat, n_rows]` with features fastest; a row is a token. Every shape is known
//! when the graph is built: budgets are counts, and only *which* rows are selected is data.

use std::fmt;

pub use crate::attributes::{Activation, BlockShare, DeltaHeads, Heads, Join, Pool, Rope, RopeLayout, WeightId};

/// A value of the graph: the result of the node with this number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u32);

impl NodeId {
    /// The node's place in [`Graph::nodes`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Element type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DType {
    /// Hidden states, scores.
    F32,
    /// Token ids, positions, row indices.
    I32,
    /// Normalised hidden states, where a device keeps them.
    Bf16,
}

/// What a node computes. Sources are listed in order; `[f, n]` is features by rows.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// `-> I32 [1, n]`: the token ids of this call.
    Tokens,
    /// `-> I32 [1, n]`: the original positions of these tokens.
    Positions,
    /// `-> [n_embd, n]`: the residual stream of these tokens as another program has left it, where a graph begins between layers.
    Residual,
    /// `tokens -> [f, n]`: f features of rows of an embedding matrix, from `first` on, times `scale`.
    Embed {
        /// `[n_embd, n_vocab]`, or wider where every layer has features of its own (Gemma 4).
        weight: WeightId,
        /// The first feature of a row that is taken; 0 where a row is taken whole.
        first: usize,
        /// Gemma multiplies by the square root of f; 1 elsewhere.
        scale: f32,
    },
    /// `x -> [f, n]`: x / rms(x) * weight, over groups of `group` features (a whole row, or one head).
    RmsNorm {
        /// `[group]`; `None`: 1 (values of Gemma 4).
        weight: Option<WeightId>,
        /// Added to the mean square.
        eps: f32,
        /// Features normalised together; divides f.
        group: usize,
    },
    /// `x -> BF16 [f, n]`: x / rms(x), kept until rows of x change. Its readers multiply by the norm's weight.
    Normalize {
        /// Added to the mean square.
        eps: f32,
    },
    /// `x BF16 [f, n], idx [1, m], h [f, n] -> BF16 [f, n]`: x with the rows idx normalised anew, from h.
    NormalizeRows {
        /// Added to the mean square.
        eps: f32,
    },
    /// `x -> [n_out, n]`: scale * (W x) + b.
    Linear {
        /// `[n_in, n_out]`
        weight: WeightId,
        /// `[1]`, a factor on the whole product (NVFP4 files have one for each matrix).
        scale: Option<WeightId>,
        /// `[n_out]`
        bias: Option<WeightId>,
        /// `[n_in]`, if x is normalised rows: the norm's weight, by which they have to be multiplied.
        norm: Option<WeightId>,
    },
    /// `x -> [f, n]`: x times a number.
    Scale {
        /// The number.
        factor: f32,
    },
    /// `x -> [f, n]`: x times a weight of one element.
    ScaleBy {
        /// `[1]`
        weight: WeightId,
    },
    /// `x -> [f, n]`: cap * tanh(x / cap), by which values stay within the cap (logits of Gemma 4).
    Softcap {
        /// The cap.
        cap: f32,
    },
    /// `positions -> F32 [1, n]`: `1 + scale ln(floor(position / every) + 1)`, a factor on queries that grows with the position
    /// (Mistral 3).
    Temperature {
        /// Positions over which it stays the same.
        every: usize,
        /// Of the logarithm.
        scale: f32,
    },
    /// `x, positions -> [f, n]`: rotary embedding of every head.
    Rope {
        /// Elements of one head.
        head_dim: usize,
        /// Frequencies.
        rope: Rope,
    },
    /// `q, k, v, pos_q, pos_k -> [n_head * head_dim, n_q]`: causal attention with the KV cache of layer `layer`. The rows of q are
    /// the last rows of k, or the same rows; k and v enter the cache. Causality is over row order, which is position order.
    Attention {
        /// Layer whose cache it is: the attention's own, or an earlier one that shares its keys and values.
        layer: usize,
        /// Geometry.
        heads: Heads,
        /// Sliding window in positions: a key is visible while `pos_q - pos_k < window`.
        window: Option<usize>,
        /// What of the keys is read where a device has kernels for that; `None`: all.
        blocks: Option<BlockShare>,
    },
    /// `x [group m, n] -> [len m, n]`: the features of x are cut into groups of `group`, and of each group `len` are taken, from
    /// `start` on.
    Features {
        /// Features of a group.
        group: usize,
        /// First one of a group that is taken.
        start: usize,
        /// How many are taken.
        len: usize,
    },
    /// `x -> [f, n]`: 1 / (1 + exp(-x)).
    Sigmoid,
    /// `qkv [n_channels, n], beta [n_head_v, n], alpha [n_head_v, n] -> [n_head_v * head_dim, n]`: a gated delta net over rows in
    /// their order, behind what layer `layer` remembers of those before (arXiv 2412.06464). The channels of qkv (queries, keys,
    /// values, head by head) are convolved over `d_conv` rows and go through SiLU; queries and keys are brought to length 1. Then
    /// for each value head, with S its state: `S *= exp(a * softplus(alpha + dt))`, `S += k sigmoid(beta) (v - S k)`, result `S q /
    /// sqrt(head_dim)`.
    DeltaNet {
        /// Layer, that is, which state.
        layer: usize,
        /// Geometry.
        heads: DeltaHeads,
        /// `[d_conv, n_channels]`
        conv: WeightId,
        /// `[n_head_v]`
        dt: WeightId,
        /// `[n_head_v]`, negative.
        a: WeightId,
        /// Added to the square of the length of a query or a key.
        eps: f32,
    },
    /// `gate, up -> [n_ff, n]`: act(gate) * up.
    Glu {
        /// act
        act: Activation,
    },
    /// `x [n_embd, n] -> [n_embd, n]`: W_down (act(W_gate x) * (W_up x)), where a device computes it in one operation. A second
    /// source `[1, n]` is a factor on each row of the result.
    GatedFfn {
        /// `[n_embd, n_ff]`
        gate: WeightId,
        /// `[n_embd, n_ff]`
        up: WeightId,
        /// `[n_ff, n_embd]`
        down: WeightId,
        /// act
        act: Activation,
        /// As in [`Op::Linear`].
        norm: Option<WeightId>,
    },
    /// `x [n_embd, n] -> [n_embd, n]`: each row through its own few of many gated FFNs: those that `softmax(router x)` gives most,
    /// times factors in the same proportion, whose sum is 1. The row's result is the sum over them (a mixture of experts). A second
    /// source `[n_embd, n]` is what the router reads in place of x.
    Experts {
        /// `[n_embd, n_expert]`
        router: WeightId,
        /// `[n_embd, n_ff, n_expert]`; `[n_embd, 2 n_ff, n_expert]`, the gate's rows first, where it is the same weight as `up`.
        gate: WeightId,
        /// As `gate`.
        up: WeightId,
        /// `[n_ff, n_embd, n_expert]`
        down: WeightId,
        /// How many there are.
        n_expert: usize,
        /// How many compute a row.
        n_used: usize,
        /// act
        act: Activation,
        /// Added to the products, where a model has them.
        biases: Option<ExpertBiases>,
        /// `[n_expert]`, factors on the experts' results, where a model has them.
        scales: Option<WeightId>,
    },
    /// `a, b -> a + b`
    Add,
    /// `x, idx [1, m] -> [f, m]`: gather.
    GetRows,
    /// `h [f, n], idx [1, m], x [f, m] -> [f, n]`: h with x added to the rows idx. Rows outside idx are *skipped*.
    ScatterAdd,
    /// `x -> [f, rows]`: the last rows.
    LastRows {
        /// How many.
        rows: usize,
    },
    /// `q [n_head * d, n_probe], k [n_head_kv * d, n] -> F32 [1, n]`: equation 4 of the paper, the mean over heads of
    /// softmax(q.k * scale), joined over the probing queries. Probing query i of n_probe sees the candidates up to itself.
    ProbeScores {
        /// Geometry.
        heads: Heads,
        /// Over the probing queries.
        join: Join,
    },
    /// `s [1, n] -> [1, n]`: pooled over neighbouring candidates in order. No score is negative.
    PoolScores {
        /// Kind and width.
        pool: Pool,
    },
    /// `y [n_embd, n] -> F32 [1, n]`: norm of the low-rank FFN proxy of a layer (LTP).
    ProxyNorm {
        /// Layer whose proxy it is.
        layer: usize,
        /// Activation of the FFN.
        act: Activation,
        /// As in [`Op::Linear`].
        norm: Option<WeightId>,
    },
    /// `a [1, n], b [1, n] -> a + factor * b`: scores and those carried from an earlier layer.
    AddScaled {
        /// On b.
        factor: f32,
    },
    /// `a, b -> a * b`, elementwise (scores), or each row of `a [f, n]` by its factor in `b [1, n]`.
    Mul,
    /// `x -> F32 [1, n]`: a uniform random score for every row of x, a control for ablations.
    RandomScores {
        /// Seed; the layer is mixed in.
        seed: u64,
        /// Layer.
        layer: usize,
    },
    /// `s [1, n] -> I32 [1, m]`: ascending indices of the m best scores. The `first` rows and the last `forced` ones are always
    /// in; the lower index wins ties.
    TopK {
        /// Members.
        m: usize,
        /// First rows that are always members.
        first: usize,
        /// Last rows that are always members.
        forced: usize,
    },
    /// `idx [1, m], members [1, k] -> F32 [1, m]`: 1 for each of the rows idx that is among the members, else 0. Both list rows of
    /// the same value.
    IsMember,
    /// `h [f, n], idx [1, m] -> [f, m]`: the rows idx stay, all others are gone for good.
    Prune,
    /// `x -> x`: hands x to the host; nothing of the model reads the result.
    Capture {
        /// Layer the value belongs to.
        layer: usize,
        /// Which of its values it is.
        tap: Tap,
    },
}

/// What a mixture of experts adds to its products (gpt-oss).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertBiases {
    /// `[n_expert]`
    pub router: WeightId,
    /// `[n_ff, n_expert]`
    pub gate: WeightId,
    /// `[n_ff, n_expert]`
    pub up: WeightId,
    /// `[n_embd, n_expert]`
    pub down: WeightId,
}

/// A layer's values that the host can ask for ([`Op::Capture`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tap {
    /// S, the attention probe's scores `[1, n]`.
    ProbeScores,
    /// C, the norm of the low-rank proxy `[1, n]`.
    ProxyNorm,
    /// act(gate) * up `[n_ff, n]`, signed.
    FfnHidden,
    /// What the FFN adds to the residual stream `[n_embd, n]`.
    FfnOutput,
}

impl Op {
    /// Short name, as the printed graph shows it.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Tokens => "tokens",
            Op::Positions => "positions",
            Op::Residual => "residual",
            Op::Embed { .. } => "embed",
            Op::RmsNorm { .. } => "rms_norm",
            Op::Normalize { .. } => "normalize",
            Op::NormalizeRows { .. } => "normalize_rows",
            Op::Linear { .. } => "linear",
            Op::Scale { .. } => "scale",
            Op::ScaleBy { .. } => "scale_by",
            Op::Softcap { .. } => "softcap",
            Op::Temperature { .. } => "temperature",
            Op::Rope { .. } => "rope",
            Op::Attention { .. } => "attention",
            Op::Features { .. } => "features",
            Op::Sigmoid => "sigmoid",
            Op::DeltaNet { .. } => "delta_net",
            Op::Glu { .. } => "glu",
            Op::GatedFfn { .. } => "gated_ffn",
            Op::Experts { .. } => "experts",
            Op::Add => "add",
            Op::GetRows => "get_rows",
            Op::ScatterAdd => "scatter_add",
            Op::LastRows { .. } => "last_rows",
            Op::ProbeScores { .. } => "probe_scores",
            Op::AddScaled { .. } => "add_scaled",
            Op::PoolScores { .. } => "pool_scores",
            Op::ProxyNorm { .. } => "proxy_norm",
            Op::Mul => "mul",
            Op::RandomScores { .. } => "random_scores",
            Op::TopK { .. } => "top_k",
            Op::IsMember => "is_member",
            Op::Prune => "prune",
            Op::Capture { .. } => "capture",
        }
    }
}

/// One operation and its result.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Operation.
    pub op: Op,
    /// Sources, all earlier in the list.
    pub src: Vec<NodeId>,
    /// Features of a row (ne0).
    pub n_feat: usize,
    /// Rows (ne1).
    pub n_rows: usize,
    /// Element type.
    pub dtype: DType,
    /// Field name of the value, such as `ffn_inp`.
    pub name: &'static str,
    /// Layer, where the node belongs to one.
    pub layer: Option<usize>,
}

/// Where the tokens of a layer see each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mixer {
    /// Attention over keys and values, which stay in a cache.
    Attention(AttentionAnchors),
    /// A recurrence, of which a state of fixed size stays: the [`Op::DeltaNet`].
    Recurrent(NodeId),
}

/// The semantic nodes of a layer's attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionAnchors {
    /// Queries, after norm and rope.
    pub q: NodeId,
    /// Keys, after norm and rope.
    pub k: NodeId,
    /// Values.
    pub v: NodeId,
    /// The attention node.
    pub attn: NodeId,
    /// Sliding window of the attention.
    pub window: Option<usize>,
    /// Layer whose keys and values these are: the layer itself, or an earlier one that shares them.
    pub cache: usize,
}

impl Mixer {
    /// The same nodes under other numbers.
    pub fn map(self, to: impl Fn(NodeId) -> NodeId) -> Mixer {
        match self {
            Mixer::Attention(a) => Mixer::Attention(AttentionAnchors {
                q: to(a.q),
                k: to(a.k),
                v: to(a.v),
                attn: to(a.attn),
                ..a
            }),
            Mixer::Recurrent(node) => Mixer::Recurrent(to(node)),
        }
    }

    /// The node in which rows are mixed: the attention, or the recurrence.
    pub fn node(&self) -> NodeId {
        match self {
            Mixer::Attention(attention) => attention.attn,
            Mixer::Recurrent(node) => *node,
        }
    }
}

/// The semantic nodes of one layer. Rewrite passes anchor on these, never on patterns of products.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerAnchors {
    /// Residual stream that enters the layer `[n_embd, n]`.
    pub inp: NodeId,
    /// Where its tokens see each other.
    pub mixer: Mixer,
    /// What attention (or what is in its place) adds to the residual stream.
    pub attn_out: NodeId,
    /// Residual stream after attention.
    pub ffn_inp: NodeId,
    /// Normalised input of the FFN; its input, where it is not normalised.
    pub ffn_norm: NodeId,
    /// act(gate) * up `[n_ff, n]`; `None` where one node computes the whole FFN.
    pub ffn_hidden: Option<NodeId>,
    /// What the FFN adds to the residual stream.
    pub ffn_out: NodeId,
    /// Residual stream after the FFN.
    pub ffn_sum: NodeId,
    /// Residual stream that leaves the layer: the same, unless the layer does more to each token behind its FFN.
    pub out: NodeId,
    /// Activation of the FFN.
    pub act: Activation,
    /// Probe scores over the layer's candidates, once a pass has inserted them.
    pub scores: Option<NodeId>,
    /// Indices of the rows active in attention, once inserted.
    pub active_attn: Option<NodeId>,
    /// Indices of the rows active in the FFN, once inserted.
    pub active_ffn: Option<NodeId>,
    /// Indices of the rows that stay, where a stage ends here.
    pub kept: Option<NodeId>,
}

/// A model's forward pass over `n_tokens` tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Graph {
    /// Operations in execution order.
    pub nodes: Vec<Node>,
    /// Anchors, one a layer.
    pub layers: Vec<LayerAnchors>,
    /// The model's layer that the first anchors belong to: above 0 where the graph begins between layers.
    pub first_layer: usize,
    /// Positions of the tokens.
    pub positions: NodeId,
    /// Residual stream after the last layer.
    pub hidden: NodeId,
    /// Values that are read when all is computed: the logits `[n_vocab, 1]` of the last token, or, where the graph ends between
    /// layers, the residual stream there. Empty for a graph that runs for its captures alone.
    pub outputs: Vec<NodeId>,
    /// Rows the graph starts with.
    pub n_tokens: usize,
}

impl LayerAnchors {
    /// The layer's attention; `None` in a recurrent layer.
    pub fn attention(&self) -> Option<&AttentionAnchors> {
        match &self.mixer {
            Mixer::Attention(attention) => Some(attention),
            Mixer::Recurrent(_) => None,
        }
    }
}

impl Graph {
    /// The node that makes a value.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    /// Keys and values that a layer adds to its cache, if it has one: the rows of its attention's keys. `layer` counts from the
    /// graph's first.
    pub fn kept_rows(&self, layer: usize) -> Option<usize> {
        let attention = self.layers[layer].attention().filter(|a| a.cache == self.first_layer + layer)?;
        Some(self.node(attention.k).n_rows)
    }

    /// Token ids, where the graph reads them.
    pub fn tokens(&self) -> Option<NodeId> {
        self.nodes.iter().position(|n| n.op == Op::Tokens).map(|i| NodeId(i as u32))
    }

    /// Logits `[n_vocab, 1]` of the last token, unless the graph ends before them.
    pub fn logits(&self) -> Option<NodeId> {
        self.outputs.first().copied().filter(|id| self.node(*id).layer.is_none())
    }

    /// Attentions that read a part of the keys.
    pub fn n_sparse(&self) -> usize {
        self.nodes.iter().filter(|n| matches!(n.op, Op::Attention { blocks: Some(_), .. })).count()
    }

    /// Whether a value comes from outside.
    pub fn is_input(&self, id: NodeId) -> bool {
        matches!(self.node(id).op, Op::Tokens | Op::Positions | Op::Residual)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "%{}", self.0)
    }
}
