//! Qwen 3, dense and as a mixture of experts: every head of queries and keys is normalised before rope.

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
    ffn: Ffn,
}

/// A loaded model of this architecture.
pub struct Qwen3 {
    hp: HParams,
    embedding: Embedding,
    layers: Vec<Layer>,
}

impl Qwen3 {
    /// Finds the weights of this architecture in the table.
    pub fn load(hp: &HParams, table: &mut WeightTable) -> Result<Self, ModelError> {
        let embedding = Embedding::load(hp, table)?;
        // The head of its rerankers.
        table.tolerate("cls.output.weight");
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
                ffn: Ffn::load(hp, table, Activation::Silu)?,
            });
        }
        Ok(Self { hp: hp.clone(), embedding, layers })
    }
}

impl Architecture for Qwen3 {
    fn graph(&self, n_tokens: usize, _n_ctx: usize) -> Graph {
        let hp = &self.hp;
        let rope = hp.rope;
        let mut b = Builder::new();
        let (tokens, pos) = b.inputs(n_tokens);
        let mut anchors: Vec<LayerAnchors> = Vec::with_capacity(hp.shape.n_layer);
        let mut inp = self.embedding.embed(&mut b, hp, 1.0, tokens);
        for (il, layer) in self.layers.iter().enumerate() {
            b.set_layer(Some(il));
            let x = b.rms_norm(layer.attn_norm, hp.rms_eps, inp, "attn_norm");
            let k = b.linear(layer.qkv.k, x, "Kcur");
            let k = b.head_norm(layer.k_norm, hp.rms_eps, hp.shape.head_dim, k, "Kcur_normed");
            let k = b.push(Op::Rope { head_dim: hp.shape.head_dim, rope }, &[k, pos], "Kcur_rope");
            let v = b.linear(layer.qkv.v, x, "Vcur");
            let q = b.linear(layer.qkv.q, x, "Qcur");
            let q = b.head_norm(layer.q_norm, hp.rms_eps, hp.shape.head_dim, q, "Qcur_normed");
            let q = b.push(Op::Rope { head_dim: hp.shape.head_dim, rope }, &[q, pos], "Qcur_rope");
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
