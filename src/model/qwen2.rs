//! Qwen 2 and 2.5: biases on query, key and value.

use crate::graph::Graph;
use crate::graph::build::Projection;
use crate::graph::ir::*;

use super::ModelError;
use super::attention::Qkv;
use super::stack::{Architecture, Stack};
use super::ffn::Ffn;
use super::hparams::HParams;
use super::table::WeightTable;

struct Layer {
    attn_norm: WeightId,
    qkv: Qkv,
    o: Projection,
    ffn: Ffn,
}

/// A loaded model of this architecture.
pub struct Qwen2(Stack<Layer>);

impl Qwen2 {
    /// Finds the weights of this architecture in the table.
    pub fn load(hp: &HParams, table: &mut WeightTable) -> Result<Self, ModelError> {
        let (n_embd, n_q) = (hp.shape.n_embd, hp.shape.n_head * hp.shape.head_dim);
        let layer = |table: &mut WeightTable, _| {
            Ok(Layer {
                attn_norm: table.vector("attn_norm.weight", n_embd)?,
                qkv: Qkv::load(hp, table)?,
                o: table.projection("attn_output", n_q, n_embd)?,
                ffn: Ffn::load(hp, table, Activation::Silu)?,
            })
        };
        Ok(Self(Stack::load(hp, table, layer)?))
    }
}

impl Architecture for Qwen2 {
    fn graph(&self, n_tokens: usize, _n_ctx: usize) -> Graph {
        let hp = &self.0.hp;
        self.0.graph(n_tokens, 1.0, |b, layer, at| {
            let x = b.rms_norm(layer.attn_norm, hp.rms_eps, at.inp, "attn_norm");
            let qkv = layer.qkv.build(b, hp, x, at.pos, [hp.rope; 2]);
            at.attend(b, hp, hp.heads(at.il), qkv, layer.o).then_ffn(b, hp, &layer.ffn)
        })
    }
}
