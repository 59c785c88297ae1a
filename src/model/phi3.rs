//! Phi-3: fused QKV and fused gate and up in the file, long and short rope factors.

use crate::graph::Graph;
use crate::graph::build::Projection;
use crate::graph::ir::*;

use super::ModelError;
use super::attention::{Qkv, RopeFactors};
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
pub struct Phi3 {
    stack: Stack<Layer>,
    rope_factors: RopeFactors,
}

impl Phi3 {
    /// Finds the weights of this architecture in the table.
    pub fn load(hp: &HParams, table: &mut WeightTable) -> Result<Self, ModelError> {
        let rope_factors = RopeFactors::load_long(hp, table)?;
        let (n_embd, n_q) = (hp.shape.n_embd, hp.shape.n_head * hp.shape.head_dim);
        let layer = |table: &mut WeightTable, _| {
            Ok(Layer {
                attn_norm: table.vector("attn_norm.weight", n_embd)?,
                qkv: Qkv::load(hp, table)?,
                o: table.projection("attn_output", n_q, n_embd)?,
                ffn: Ffn::load_fused(hp, table, Activation::Silu)?,
            })
        };
        Ok(Self { stack: Stack::load(hp, table, layer)?, rope_factors })
    }
}

impl Architecture for Phi3 {
    fn graph(&self, n_tokens: usize, n_ctx: usize) -> Graph {
        let hp = &self.stack.hp;
        let rope = Rope { factors: self.rope_factors.in_context(n_ctx), ..hp.rope };
        self.stack.graph(n_tokens, 1.0, |b, layer, at| {
            let x = b.rms_norm(layer.attn_norm, hp.rms_eps, at.inp, "attn_norm");
            let qkv = layer.qkv.build(b, hp, x, at.pos, [rope; 2]);
            at.attend(b, hp, hp.heads(at.il), qkv, layer.o).then_ffn(b, hp, &layer.ffn)
        })
    }
}
