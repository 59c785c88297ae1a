//! Gemma 3: scaled embedding, norms before and after each block, QK norm, sliding windows in most layers with a rope base of their own.

use crate::graph::Graph;
use crate::graph::build::{Builder, Projection};
use crate::graph::ir::*;

use super::ModelError;
use super::dense::{Architecture, Attended, Embedding, Ffn, Qkv};
use super::hparams::HParams;
use super::table::WeightTable;

struct Layer {
    attn_norm: WeightId,
    qkv: Qkv,
    o: Projection,
    q_norm: WeightId,
    k_norm: WeightId,
    post_attn_norm: WeightId,
    ffn: Ffn,
}

/// A loaded model of this architecture.
pub struct Gemma3 {
    hp: HParams,
    embedding: Embedding,
    layers: Vec<Layer>,
}

impl Gemma3 {
    /// Finds the weights of this architecture in the table.
    pub fn load(hp: &HParams, table: &mut WeightTable) -> Result<Self, ModelError> {
        let embedding = Embedding::load(hp, table)?;
        // What its embedding models have behind the last layer.
        table.tolerate("dense_2.weight");
        table.tolerate("dense_3.weight");
        let (n_embd, n_q) = (hp.shape.n_embd, hp.shape.n_head * hp.shape.head_dim);
        let mut layers = Vec::with_capacity(hp.shape.n_layer);
        for il in 0..hp.shape.n_layer {
            table.set_layer(Some(il));
            layers.push(Layer {
                attn_norm: table.vector("attn_norm.weight", n_embd)?,
                qkv: Qkv::load(hp, table)?,
                o: table.projection("attn_output", n_q, n_embd)?,
                q_norm: table.vector("attn_q_norm.weight", hp.shape.head_dim)?,
                k_norm: table.vector("attn_k_norm.weight", hp.shape.head_dim)?,
                post_attn_norm: table.vector("post_attention_norm.weight", n_embd)?,
                ffn: Ffn::load(hp, table, Activation::Gelu)?,
            });
        }
        Ok(Self { hp: hp.clone(), embedding, layers })
    }
}

/// Queries are scaled as they are rotated, before kernels round them, as in llama.cpp; where a part of a head is not rotated,
/// scores are scaled instead.
fn scale_queries(rope: Rope, heads: Heads) -> (Rope, Heads) {
    if rope.n_rot == heads.head_dim {
        (Rope { attn_factor: rope.attn_factor * heads.scale, ..rope }, Heads { scale: 1.0, ..heads })
    } else {
        (rope, heads)
    }
}

impl Architecture for Gemma3 {
    fn graph(&self, n_tokens: usize, _n_ctx: usize) -> Graph {
        let hp = &self.hp;
        let mut b = Builder::new();
        let (tokens, pos) = b.inputs(n_tokens);
        let mut anchors: Vec<LayerAnchors> = Vec::with_capacity(hp.shape.n_layer);
        let mut inp = self.embedding.embed(&mut b, hp, (hp.shape.n_embd as f32).sqrt(), tokens);
        for (il, layer) in self.layers.iter().enumerate() {
            b.set_layer(Some(il));
            let (rope, window) = (hp.layer_rope(il), hp.shape.window(il));
            let x = b.rms_norm(layer.attn_norm, hp.rms_eps, inp, "attn_norm");
            let k = b.linear(layer.qkv.k, x, "Kcur");
            let k = b.head_norm(layer.k_norm, hp.rms_eps, hp.shape.head_dim, k, "Kcur_normed");
            let k = b.push(Op::Rope { head_dim: hp.shape.head_dim, rope }, &[k, pos], "Kcur_rope");
            let v = b.linear(layer.qkv.v, x, "Vcur");
            let q = b.linear(layer.qkv.q, x, "Qcur");
            let q = b.head_norm(layer.q_norm, hp.rms_eps, hp.shape.head_dim, q, "Qcur_normed");
            let (rope, heads) = scale_queries(rope, hp.heads());
            let q = b.push(Op::Rope { head_dim: hp.shape.head_dim, rope }, &[q, pos], "Qcur_rope");
            let attn = b.push(Op::Attention { layer: il, heads, window }, &[q, k, v, pos, pos], "kqv_out");
            let attn_out = b.linear(layer.o, attn, "attn_out");
            let attn_out = b.rms_norm(layer.post_attn_norm, hp.rms_eps, attn_out, "attn_post_norm");
            let attended = Attended { inp, q, k, v, attn, attn_out, window };
            let layer = attended.then_ffn(&mut b, hp, &layer.ffn);
            inp = layer.out;
            anchors.push(layer);
        }
        self.embedding.head(b, hp, anchors, pos, inp)
    }
}
