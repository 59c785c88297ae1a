//! Phi-3: fused QKV and fused gate and up in the file, long and short rope factors.

use crate::graph::Graph;
use crate::graph::build::{Builder, Projection};
use crate::graph::ir::*;

use super::ModelError;
use super::dense::{Architecture, Attended, Embedding, Ffn};
use super::hparams::HParams;
use super::table::WeightTable;

struct Layer {
    attn_norm: WeightId,
    q: Projection,
    k: Projection,
    v: Projection,
    o: Projection,
    ffn: Ffn,
}

/// A loaded model of this architecture.
pub struct Phi3 {
    hp: HParams,
    embedding: Embedding,
    factors_long: Option<WeightId>,
    factors_short: Option<WeightId>,
    layers: Vec<Layer>,
}

impl Phi3 {
    /// Looks up every weight.
    pub fn load(hp: &HParams, table: &mut WeightTable) -> Result<Self, ModelError> {
        let embedding = Embedding::load(hp, table)?;
        let factors_long = table.optional_vector("rope_factors_long.weight", hp.rope.n_rot / 2)?;
        let factors_short = table.optional_vector("rope_factors_short.weight", hp.rope.n_rot / 2)?;
        let (n_embd, n_q, n_kv) = (hp.n_embd, hp.n_head * hp.head_dim, hp.n_embd_kv());
        let mut layers = Vec::with_capacity(hp.n_layer);
        for il in 0..hp.n_layer {
            table.set_layer(Some(il));
            let n_all = n_q + 2 * n_kv;
            let part =
                |table: &mut WeightTable, rows: std::ops::Range<usize>, name: &str| -> Result<Projection, ModelError> {
                    let n_out = rows.len();
                    let weight = table.part("attn_qkv.weight", n_embd, n_all, rows, name)?;
                    Ok(Projection { weight, bias: None, n_out })
                };
            layers.push(Layer {
                attn_norm: table.vector("attn_norm.weight", n_embd)?,
                q: part(table, 0..n_q, "attn_q.weight")?,
                k: part(table, n_q..n_q + n_kv, "attn_k.weight")?,
                v: part(table, n_q + n_kv..n_all, "attn_v.weight")?,
                o: table.projection("attn_output", n_q, n_embd)?,
                ffn: Ffn::load_fused(hp, table, Activation::Silu)?,
            });
        }
        Ok(Self { hp: hp.clone(), embedding, factors_long, factors_short, layers })
    }
}

impl Architecture for Phi3 {
    fn graph(&self, n_tokens: usize, n_ctx: usize) -> Graph {
        let hp = &self.hp;
        // Beyond the trained length the long factors hold.
        let factors = if n_ctx > hp.rope.n_ctx_orig { self.factors_long } else { self.factors_short };
        let rope = Rope { factors, ..hp.rope };
        let mut b = Builder::new();
        let (tokens, pos) = b.inputs(n_tokens);
        let mut anchors: Vec<LayerAnchors> = Vec::with_capacity(hp.n_layer);
        let mut inp = self.embedding.embed(&mut b, hp, 1.0, tokens);
        for (il, layer) in self.layers.iter().enumerate() {
            b.set_layer(Some(il));
            let x = b.rms_norm(layer.attn_norm, hp.rms_eps, inp, "attn_norm");
            let k = b.linear(layer.k, x, "Kcur");
            let k = b.push(Op::Rope { head_dim: hp.head_dim, rope }, &[k, pos], "Kcur_rope");
            let v = b.linear(layer.v, x, "Vcur");
            let q = b.linear(layer.q, x, "Qcur");
            let q = b.push(Op::Rope { head_dim: hp.head_dim, rope }, &[q, pos], "Qcur_rope");
            let attn =
                b.push(Op::Attention { layer: il, heads: hp.heads(), window: None }, &[q, k, v, pos, pos], "kqv_out");
            let attn_out = b.linear(layer.o, attn, "attn_out");
            let attended = Attended { inp, q, k, v, attn, attn_out, window: None };
            let layer = attended.then_ffn(&mut b, hp, &layer.ffn);
            inp = layer.out;
            anchors.push(layer);
        }
        self.embedding.head(b, hp, anchors, pos, inp)
    }
}
