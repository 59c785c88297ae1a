//! gpt-oss: attention sinks, windows in every second layer, and experts that all have biases.

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
    sinks: WeightId,
    ffn: Ffn,
}

/// A loaded model of this architecture.
pub struct GptOss(Stack<Layer>);

impl GptOss {
    /// Finds the weights of this architecture in the table.
    pub fn load(hp: &HParams, table: &mut WeightTable) -> Result<Self, ModelError> {
        let (n_embd, n_q) = (hp.shape.n_embd, hp.shape.n_head * hp.shape.head_dim);
        let layer = |table: &mut WeightTable, _| {
            Ok(Layer {
                attn_norm: table.vector("attn_norm.weight", n_embd)?,
                qkv: Qkv::load(hp, table)?,
                o: Projection {
                    bias: Some(table.vector("attn_output.bias", n_embd)?),
                    ..table.projection("attn_output", n_q, n_embd)?
                },
                sinks: table.vector("attn_sinks.weight", hp.shape.n_head)?,
                ffn: Ffn::load(hp, table, Activation::ClampedSwiglu)?,
            })
        };
        Ok(Self(Stack::load(hp, table, layer)?))
    }
}

impl Architecture for GptOss {
    fn graph(&self, n_tokens: usize, _n_ctx: usize) -> Graph {
        let hp = &self.0.hp;
        self.0.graph(n_tokens, 1.0, |b, layer, at| {
            let x = b.rms_norm(layer.attn_norm, hp.rms_eps, at.inp, "attn_norm");
            let qkv = layer.qkv.build(b, hp, x, at.pos, [hp.layer_rope(at.il); 2]);
            let heads = Heads { sinks: Some(layer.sinks), ..hp.heads(at.il) };
            at.attend(b, hp, heads, qkv, layer.o).then_ffn(b, hp, &layer.ffn)
        })
    }
}
