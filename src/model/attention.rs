//! What a layer's attention is made of: projections, norms and rope of queries and keys, and the heads between.

use std::ops::Range;

use crate::graph::build::{Builder, Projection};
use crate::graph::ir::*;

use super::ModelError;
use super::stack::{Mixed, Site};
use super::hparams::HParams;
use super::table::WeightTable;

/// The projections to queries, keys and values, which a file has as three matrices or as one.
pub struct Qkv {
    /// `[n_embd, n_head * head_dim]`
    pub q: Projection,
    /// `[n_embd, n_head_kv * head_dim]`
    pub k: Projection,
    /// `[n_embd, n_head_kv * head_dim]`
    pub v: Projection,
    /// What queries and keys go through before they are rotated.
    pub norms: Option<QkNorms>,
}

impl Qkv {
    /// Finds `attn_q`, `attn_k` and `attn_v`, or `attn_qkv`, whose bias may be one or three, and no norms.
    pub fn load(hp: &HParams, table: &mut WeightTable) -> Result<Self, ModelError> {
        let n_kv = hp.shape.n_embd_kv(table.layer().unwrap_or_default());
        let n_q = hp.shape.n_head * hp.shape.head_dim;
        if !table.has("attn_qkv.weight") {
            return Ok(Self {
                q: table.biased_projection("attn_q", hp.shape.n_embd, n_q)?,
                k: table.biased_projection("attn_k", hp.shape.n_embd, n_kv)?,
                v: table.biased_projection("attn_v", hp.shape.n_embd, n_kv)?,
                norms: None,
            });
        }
        let n_all = n_q + 2 * n_kv;
        let scale = table.scale("attn_qkv")?;
        let mut part = |rows: Range<usize>, base: &str| -> Result<Projection, ModelError> {
            let (n_out, bias_name) = (rows.len(), format!("{base}.bias"));
            let weight = table.part("attn_qkv.weight", hp.shape.n_embd, n_all, rows.clone(), &format!("{base}.weight"))?;
            let bias = match table.has("attn_qkv.bias") {
                true => Some(table.vector_part("attn_qkv.bias", n_all, rows, &bias_name)?),
                false => table.optional_vector(&bias_name, n_out)?,
            };
            Ok(Projection { weight, scale, bias, n_out })
        };
        Ok(Self {
            q: part(0..n_q, "attn_q")?,
            k: part(n_q..n_q + n_kv, "attn_k")?,
            v: part(n_q + n_kv..n_all, "attn_v")?,
            norms: None,
        })
    }

    /// The same with norms.
    pub fn with_norms(self, norms: QkNorms) -> Self {
        Self { norms: Some(norms), ..self }
    }

    /// Adds queries, keys and values of the stream x, with the ropes of queries and of keys.
    pub fn build(&self, b: &mut Builder, hp: &HParams, x: NodeId, pos: NodeId, ropes: [Rope; 2]) -> [NodeId; 3] {
        let head_dim = hp.shape.head_dim;
        let [q_rope, k_rope] = ropes;
        let k = b.linear(self.k, x, "Kcur");
        let k = self.norms.map_or(k, |norms| norms.of_keys(b, hp, k));
        let k = b.push(Op::Rope { head_dim, rope: k_rope }, &[k, pos], "Kcur_rope");
        let v = b.linear(self.v, x, "Vcur");
        let q = b.linear(self.q, x, "Qcur");
        let q = self.norms.map_or(q, |norms| norms.of_queries(b, hp, q));
        let q = b.push(Op::Rope { head_dim, rope: q_rope }, &[q, pos], "Qcur_rope");
        [q, k, v]
    }
}

impl Site {
    /// Adds attention, with the sliding window of this layer, and its output projection.
    pub fn attend(self, b: &mut Builder, hp: &HParams, heads: Heads, [q, k, v]: [NodeId; 3], o: Projection) -> Mixed {
        let Site { il, inp, pos, .. } = self;
        let (window, cache) = (hp.shape.window(il), hp.shape.kv_layer(il));
        let attn = b.push(Op::Attention { layer: cache, heads, window, blocks: None }, &[q, k, v, pos, pos], "kqv_out");
        let attn_out = b.linear(o, attn, "attn_out");
        Mixed { inp, mixer: Mixer::Attention(AttentionAnchors { q, k, v, attn, window, cache }), attn_out }
    }
}

/// Norms of queries and keys, of each head by itself or of all together.
#[derive(Clone, Copy)]
pub struct QkNorms {
    q: WeightId,
    k: WeightId,
    by_heads: bool,
}

impl QkNorms {
    /// Finds `attn_q_norm` and `attn_k_norm`, `[head_dim]` both.
    pub fn by_heads(hp: &HParams, table: &mut WeightTable) -> Result<Self, ModelError> {
        Self::load(table, [hp.shape.head_dim; 2], true)
    }

    /// Finds `attn_q_norm` `[n_head * head_dim]` and `attn_k_norm` `[n_head_kv * head_dim]`.
    pub fn by_rows(hp: &HParams, table: &mut WeightTable) -> Result<Self, ModelError> {
        let n_kv = hp.shape.n_embd_kv(table.layer().unwrap_or_default());
        Self::load(table, [hp.shape.n_head * hp.shape.head_dim, n_kv], false)
    }

    fn load(table: &mut WeightTable, [n_q, n_k]: [usize; 2], by_heads: bool) -> Result<Self, ModelError> {
        Ok(Self {
            q: table.vector("attn_q_norm.weight", n_q)?,
            k: table.vector("attn_k_norm.weight", n_k)?,
            by_heads,
        })
    }

    /// Adds the norm of queries.
    pub fn of_queries(&self, b: &mut Builder, hp: &HParams, q: NodeId) -> NodeId {
        self.add(b, hp, self.q, q, "Qcur_normed")
    }

    /// Adds the norm of keys.
    pub fn of_keys(&self, b: &mut Builder, hp: &HParams, k: NodeId) -> NodeId {
        self.add(b, hp, self.k, k, "Kcur_normed")
    }

    fn add(&self, b: &mut Builder, hp: &HParams, weight: WeightId, x: NodeId, name: &'static str) -> NodeId {
        match self.by_heads {
            true => b.head_norm(weight, hp.rms_eps, hp.shape.head_dim, x, name),
            false => b.rms_norm(weight, hp.rms_eps, x, name),
        }
    }
}

/// Per-pair divisors of the rotary frequencies `[n_rot / 2]`, where a file has them.
pub struct RopeFactors {
    long: Option<WeightId>,
    short: Option<WeightId>,
    n_ctx_orig: usize,
}

impl RopeFactors {
    /// `rope_freqs.weight`, the same for every context (Llama 3.1).
    pub fn load(hp: &HParams, table: &mut WeightTable) -> Result<Self, ModelError> {
        let all = table.optional_vector("rope_freqs.weight", hp.rope.n_rot / 2)?;
        Ok(Self { long: all, short: all, n_ctx_orig: hp.rope.n_ctx_orig })
    }

    /// `rope_factors_long.weight` and `rope_factors_short.weight` (LongRoPE: Phi-3).
    pub fn load_long(hp: &HParams, table: &mut WeightTable) -> Result<Self, ModelError> {
        let long = table.optional_vector("rope_factors_long.weight", hp.rope.n_rot / 2)?;
        let short = table.optional_vector("rope_factors_short.weight", hp.rope.n_rot / 2)?;
        Ok(Self { long, short, n_ctx_orig: hp.rope.n_ctx_orig })
    }

    /// The divisors in a context of `n_ctx` tokens: beyond the trained length the long ones hold.
    pub fn in_context(&self, n_ctx: usize) -> Option<WeightId> {
        if n_ctx > self.n_ctx_orig { self.long } else { self.short }
    }
}
