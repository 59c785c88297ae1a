//! Attributes of transformer operations: what an operation is told besides its sources, such as an activation or the geometry of
//! its heads. The graph's operations hold them, and the kernels of `ggml` take the same ones, so that neither imports the other.

use std::fmt;

/// A weight matrix or vector: its number in the model's weight table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WeightId(pub u32);

/// Gate of a gated FFN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x * sigmoid(x)
    Silu,
    /// The tanh approximation of GELU.
    Gelu,
    /// gpt-oss: with g the gate, at most 7, and u the other factor, within 7 of 0, `g * sigmoid(1.702 g) * (u + 1)`.
    ClampedSwiglu,
}

/// Which elements of a head rotate together (ggml's two layouts).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeLayout {
    /// Neighbouring elements form a pair (Llama GGUFs).
    Interleaved,
    /// Element i pairs with i + n_rot/2 (NeoX, Qwen, Gemma, Phi).
    HalfSplit,
}

/// Rotary embedding of one layer, in the terms of `ggml_rope_ext`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// Layout of the rotated pairs.
    pub layout: RopeLayout,
    /// Rotated dimensions of each head.
    pub n_rot: usize,
    /// Context length the model was trained with, before any scaling.
    pub n_ctx_orig: usize,
    /// Base of the frequencies.
    pub freq_base: f32,
    /// Reciprocal of the linear scaling factor.
    pub freq_scale: f32,
    /// YaRN: weight of the extrapolated part; 0 is plain or linear scaling.
    pub ext_factor: f32,
    /// Factor on the rotated values (attention temperature).
    pub attn_factor: f32,
    /// YaRN ramp, fast end (rotations).
    pub beta_fast: f32,
    /// YaRN ramp, slow end (rotations).
    pub beta_slow: f32,
    /// Per-pair frequency divisors `[n_rot / 2]` (Llama 3.1, Phi-3 long context).
    pub factors: Option<WeightId>,
}

/// Pooling of the probe scores over neighbouring candidates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Pool {
    /// The scores as they are (the paper).
    None,
    /// Mean over this odd number of neighbours, centred; the window is cut off at both ends.
    Avg(usize),
    /// Maximum over this odd number of neighbours, likewise.
    Max(usize),
    /// Maximum over the candidate's chunk: candidates in order are cut into chunks of this many, the last one shorter. Chunks
    /// are then chosen as a whole, but for the last one that fits in part: the first of its candidates win.
    Chunks(usize),
}

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pool::None => write!(f, "none"),
            Pool::Avg(w) => write!(f, "avg {w}"),
            Pool::Max(w) => write!(f, "max {w}"),
            Pool::Chunks(w) => write!(f, "chunks {w}"),
        }
    }
}

/// How the scores by several probing queries become one. Each is a mean over the heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Join {
    /// The mean of the queries' scores.
    Mean,
    /// Their maximum: what one query looks for counts in full, however many others look elsewhere.
    Max,
}

impl fmt::Display for Join {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Join::Mean => "mean",
            Join::Max => "max",
        })
    }
}

/// Which blocks of keys attention reads (src/ggml/block_lists.rs): the best by sampled scores, so many that they make up a share.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum BlockShare {
    /// Of the attention's weight, as the samples estimate it (XAttention's threshold, arXiv 2503.16428).
    Mass(f32),
    /// Of the blocks that a query sees, whatever their weight: for measuring speed, with random weights. Blocks of equal weight are
    /// all read: more than the share, where many weigh nothing.
    Density(f32),
}

impl BlockShare {
    /// The share, above 0 and below 1.
    pub fn share(self) -> f32 {
        match self {
            BlockShare::Mass(share) | BlockShare::Density(share) => share,
        }
    }
}

impl fmt::Display for BlockShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BlockShare::Mass(share) => write!(f, "{share}"),
            BlockShare::Density(share) => write!(f, "density={share}"),
        }
    }
}

/// Entries that a cache of keys and values grows by while decoding, and that one of a layer with a window has room for beyond it.
pub const CACHE_GROWTH: usize = 512;

/// Tokens before the last of a prompt or a document that can be read again: as many as all kernels compute as precisely as more.
const WINDOW_MARGIN: usize = 64;

/// Entries are forgotten so many at a time: those that stay then lie in rows that kernels cut into tiles as before, and give the
/// same results to the last bit.
const FORGOTTEN_AT_ONCE: usize = 256;

/// Entries that stay of `n` in a layer with such a window, or without one.
pub fn entries_that_stay(window: Option<usize>, n: usize) -> usize {
    let forgotten = window.map_or(0, |window| n.saturating_sub(window + WINDOW_MARGIN));
    n - forgotten / FORGOTTEN_AT_ONCE * FORGOTTEN_AT_ONCE
}

/// Attention geometry of one layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Heads {
    /// How many heads the queries have.
    pub n_head: usize,
    /// Key and value heads (GQA: n_head is a multiple).
    pub n_head_kv: usize,
    /// Elements of one head.
    pub head_dim: usize,
    /// Factor on q.k before the softmax.
    pub scale: f32,
    /// `[n_head]`, attention sinks: the logit of one more key of each head, which takes its share of the softmax and has no value.
    pub sinks: Option<WeightId>,
}

/// Geometry of a gated delta net: keys of fewer heads than values, as with grouped queries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeltaHeads {
    /// Heads of queries and keys; value head i goes with key head `i % n_head_k`, if they are not `grouped`.
    pub n_head_k: usize,
    /// Heads of values, each with a state `[head_dim, head_dim]` (a multiple of `n_head_k`).
    pub n_head_v: usize,
    /// Neighbouring value heads share a key head, as with grouped queries: value head i goes with key head
    /// `i / (n_head_v / n_head_k)`.
    pub grouped: bool,
    /// Elements of one head: of its query, its key and its value.
    pub head_dim: usize,
    /// Tokens that the convolution before the recurrence sees, the token itself included.
    pub d_conv: usize,
}

impl DeltaHeads {
    /// Channels of the convolution: queries, keys and values of all heads.
    pub fn n_channels(&self) -> usize {
        (2 * self.n_head_k + self.n_head_v) * self.head_dim
    }

    /// Width of the result: the values of all heads.
    pub fn n_values(&self) -> usize {
        self.n_head_v * self.head_dim
    }

    /// Numbers that stay of the tokens before: channels of the last `d_conv - 1` of them, and a matrix for each value head.
    pub fn n_state(&self) -> usize {
        (self.d_conv - 1) * self.n_channels() + self.head_dim * self.n_values()
    }
}
