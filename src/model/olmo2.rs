//! OLMo 2 and 3: norms behind attention and FFN alone, QK norm over whole rows, in OLMo 3 windows in three of four layers.

use crate::graph::Graph;
use crate::graph::build::Projection;
use crate::graph::ir::*;

use super::ModelError;
use super::attention::{QkNorms, Qkv};
use super::stack::{Architecture, Stack};
use super::ffn::Ffn;
use super::hparams::HParams;
use super::table::WeightTable;

struct Layer {
    qkv: Qkv,
    o: Projection,
    post_attn_norm: WeightId,
    ffn: Ffn,
}

/// A loaded model of this architecture.
pub struct Olmo2(Stack<Layer>);

impl Olmo2 {
    /// Finds the weights of this architecture in the table.
    pub fn load(hp: &HParams, table: &mut WeightTable) -> Result<Self, ModelError> {
        let (n_embd, n_q) = (hp.shape.n_embd, hp.shape.n_head * hp.shape.head_dim);
        let layer = |table: &mut WeightTable, _| {
            Ok(Layer {
                qkv: Qkv::load(hp, table)?.with_norms(QkNorms::by_rows(hp, table)?),
                o: table.projection("attn_output", n_q, n_embd)?,
                post_attn_norm: table.vector("post_attention_norm.weight", n_embd)?,
                ffn: Ffn::load(hp, table, Activation::Silu)?,
            })
        };
        Ok(Self(Stack::load(hp, table, layer)?))
    }
}

impl Architecture for Olmo2 {
    fn graph(&self, n_tokens: usize, _n_ctx: usize) -> Graph {
        let hp = &self.0.hp;
        self.0.graph(n_tokens, 1.0, |b, layer, at| {
            let qkv = layer.qkv.build(b, hp, at.inp, at.pos, [hp.layer_rope(at.il); 2]);
            let attended = at.attend(b, hp, hp.heads(at.il), qkv, layer.o);
            attended.normed(b, hp, layer.post_attn_norm).then_ffn(b, hp, &layer.ffn)
        })
    }
}
