//! Gemma 3: scaled embedding, norms before and after each block, QK norm, sliding windows in most layers with a rope base of their
//! own.

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
    attn_norm: WeightId,
    qkv: Qkv,
    o: Projection,
    post_attn_norm: WeightId,
    ffn: Ffn,
}

/// A loaded model of this architecture.
pub struct Gemma3(Stack<Layer>);

impl Gemma3 {
    /// Finds the weights of this architecture in the table.
    pub fn load(hp: &HParams, table: &mut WeightTable) -> Result<Self, ModelError> {
        // What its embedding models have behind the last layer.
        table.tolerate("dense_2.weight");
        table.tolerate("dense_3.weight");
        let (n_embd, n_q) = (hp.shape.n_embd, hp.shape.n_head * hp.shape.head_dim);
        let layer = |table: &mut WeightTable, _| {
            Ok(Layer {
                attn_norm: table.vector("attn_norm.weight", n_embd)?,
                qkv: Qkv::load(hp, table)?.with_norms(QkNorms::by_heads(hp, table)?),
                o: table.projection("attn_output", n_q, n_embd)?,
                post_attn_norm: table.vector("post_attention_norm.weight", n_embd)?,
                ffn: Ffn::load(hp, table, Activation::Gelu)?,
            })
        };
        Ok(Self(Stack::load(hp, table, layer)?))
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
        let hp = &self.0.hp;
        self.0.graph(n_tokens, (hp.shape.n_embd as f32).sqrt(), |b, layer, at| {
            let x = b.rms_norm(layer.attn_norm, hp.rms_eps, at.inp, "attn_norm");
            let rope = hp.layer_rope(at.il);
            let (q_rope, heads) = scale_queries(rope, hp.heads(at.il));
            let qkv = layer.qkv.build(b, hp, x, at.pos, [q_rope, rope]);
            let attended = at.attend(b, hp, heads, qkv, layer.o);
            attended.normed(b, hp, layer.post_attn_norm).then_ffn(b, hp, &layer.ffn)
        })
    }
}
