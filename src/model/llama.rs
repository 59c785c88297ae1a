//! Llama 2 and 3.x, Mistral, SmolLM2: rope on neighbouring pairs, per-pair factors where the file has them (Llama 3.1, LongRoPE).
//! And what differs from them in numbers alone: Granite 3, with factors on embedding, residual stream, scores and logits; Mistral
//! 3, whose queries grow with their position, and whose rope is stretched by YaRN.

use crate::graph::Graph;
use crate::graph::build::Projection;
use crate::graph::ir::*;

use super::ModelError;
use super::attention::{Qkv, RopeFactors};
use super::stack::{Architecture, Stack};
use super::ffn::Ffn;
use super::hparams::{HParams, Temperature};
use super::table::WeightTable;

struct Layer {
    attn_norm: WeightId,
    qkv: Qkv,
    o: Projection,
    ffn: Ffn,
}

/// A loaded model of these architectures.
pub struct Llama {
    stack: Stack<Layer>,
    rope_factors: RopeFactors,
}

impl Llama {
    /// Finds the weights of this architecture in the table.
    pub fn load(hp: &HParams, table: &mut WeightTable) -> Result<Self, ModelError> {
        let rope_factors = match hp.long_rope {
            true => RopeFactors::load_long(hp, table)?,
            false => RopeFactors::load(hp, table)?,
        };
        let (n_embd, n_q) = (hp.shape.n_embd, hp.shape.n_head * hp.shape.head_dim);
        let layer = |table: &mut WeightTable, _| {
            Ok(Layer {
                attn_norm: table.vector("attn_norm.weight", n_embd)?,
                qkv: Qkv::load(hp, table)?,
                o: table.biased_projection("attn_output", n_q, n_embd)?,
                ffn: Ffn::load(hp, table, Activation::Silu)?,
            })
        };
        Ok(Self { stack: Stack::load(hp, table, layer)?, rope_factors })
    }
}

impl Architecture for Llama {
    fn graph(&self, n_tokens: usize, n_ctx: usize) -> Graph {
        let hp = &self.stack.hp;
        let rope = Rope { factors: self.rope_factors.in_context(n_ctx), ..hp.rope };
        self.stack.graph(n_tokens, hp.scales.embedding, |b, layer, at| {
            let x = b.rms_norm(layer.attn_norm, hp.rms_eps, at.inp, "attn_norm");
            let [q, k, v] = layer.qkv.build(b, hp, x, at.pos, [rope; 2]);
            let q = match hp.temperature {
                // Made in each layer, of the positions that are left there.
                Some(Temperature { every, scale }) => {
                    let factors = b.push(Op::Temperature { every, scale }, &[at.pos], "attn_scale");
                    b.push(Op::Mul, &[q, factors], "Qcur_tempered")
                }
                None => q,
            };
            at.attend(b, hp, hp.heads(at.il), [q, k, v], layer.o).then_ffn(b, hp, &layer.ffn)
        })
    }
}
