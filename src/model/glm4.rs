//! GLM 4: norms before and behind attention and FFN, a part of each head rotated, gate and up of the FFN in one matrix.

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
    post_attn_norm: WeightId,
    ffn: Ffn,
}

/// A loaded model of this architecture.
pub struct Glm4 {
    hp: HParams,
    embedding: Embedding,
    layers: Vec<Layer>,
}

impl Glm4 {
    /// Looks up every weight.
    pub fn load(hp: &HParams, table: &mut WeightTable) -> Result<Self, ModelError> {
        let embedding = Embedding::load(hp, table)?;
        let (n_embd, n_q) = (hp.shape.n_embd, hp.shape.n_head * hp.shape.head_dim);
        let mut layers = Vec::with_capacity(hp.shape.n_layer);
        for il in 0..hp.shape.n_layer {
            table.set_layer(Some(il));
            layers.push(Layer {
                attn_norm: table.vector("attn_norm.weight", n_embd)?,
                qkv: Qkv::load(hp, table)?,
                o: table.projection("attn_output", n_q, n_embd)?,
                post_attn_norm: table.vector("post_attention_norm.weight", n_embd)?,
                ffn: Ffn::load_fused(hp, table, Activation::Silu)?,
            });
        }
        Ok(Self { hp: hp.clone(), embedding, layers })
    }
}

impl Architecture for Glm4 {
    fn graph(&self, n_tokens: usize, _n_ctx: usize) -> Graph {
        let hp = &self.hp;
        let (head_dim, rope) = (hp.shape.head_dim, hp.rope);
        let mut b = Builder::new();
        let (tokens, pos) = b.inputs(n_tokens);
        let mut anchors: Vec<LayerAnchors> = Vec::with_capacity(hp.shape.n_layer);
        let mut inp = self.embedding.embed(&mut b, hp, 1.0, tokens);
        for (il, layer) in self.layers.iter().enumerate() {
            b.set_layer(Some(il));
            let x = b.rms_norm(layer.attn_norm, hp.rms_eps, inp, "attn_norm");
            let k = b.linear(layer.qkv.k, x, "Kcur");
            let k = b.push(Op::Rope { head_dim, rope }, &[k, pos], "Kcur_rope");
            let v = b.linear(layer.qkv.v, x, "Vcur");
            let q = b.linear(layer.qkv.q, x, "Qcur");
            let q = b.push(Op::Rope { head_dim, rope }, &[q, pos], "Qcur_rope");
            let heads = hp.heads();
            let attn = b.push(Op::Attention { layer: il, heads, window: None }, &[q, k, v, pos, pos], "kqv_out");
            let attn_out = b.linear(layer.o, attn, "attn_out");
            let attn_out = b.rms_norm(layer.post_attn_norm, hp.rms_eps, attn_out, "attn_post_norm");
            let attended = Attended { inp, q, k, v, attn, attn_out, window: None };
            let layer = attended.then_ffn(&mut b, hp, &layer.ffn);
            inp = layer.out;
            anchors.push(layer);
        }
        self.embedding.head(b, hp, anchors, pos, inp)
    }
}
