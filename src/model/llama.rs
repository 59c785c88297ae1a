//! Llama 2 and 3.x, Mistral, SmolLM2: rope on neighbouring pairs, per-pair factors where the file has them (Llama 3.1, LongRoPE). And
//! what differs from them in numbers alone: Granite 3, with factors on embedding, residual stream, scores and logits; Mistral 3, whose
//! queries grow with their position, and whose rope is stretched by YaRN.

use crate::graph::Graph;
use crate::graph::build::{Builder, Projection};
use crate::graph::ir::*;

use super::ModelError;
use super::dense::{Architecture, Attended, Embedding, Ffn, Qkv, RopeFactors};
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
    hp: HParams,
    embedding: Embedding,
    rope_factors: RopeFactors,
    layers: Vec<Layer>,
}

impl Llama {
    /// Finds the weights of this architecture in the table.
    pub fn load(hp: &HParams, table: &mut WeightTable) -> Result<Self, ModelError> {
        let embedding = Embedding::load(hp, table)?;
        let rope_factors =
            if hp.long_rope { RopeFactors::load_long(hp, table)? } else { RopeFactors::load(hp, table)? };
        let (n_embd, n_q) = (hp.shape.n_embd, hp.shape.n_head * hp.shape.head_dim);
        let mut layers = Vec::with_capacity(hp.shape.n_layer);
        for il in 0..hp.shape.n_layer {
            table.set_layer(Some(il));
            layers.push(Layer {
                attn_norm: table.vector("attn_norm.weight", n_embd)?,
                qkv: Qkv::load(hp, table)?,
                o: table.biased_projection("attn_output", n_q, n_embd)?,
                ffn: Ffn::load(hp, table, Activation::Silu)?,
            });
        }
        Ok(Self { hp: hp.clone(), embedding, rope_factors, layers })
    }
}

impl Architecture for Llama {
    fn graph(&self, n_tokens: usize, n_ctx: usize) -> Graph {
        let hp = &self.hp;
        let rope = Rope { factors: self.rope_factors.in_context(n_ctx), ..hp.rope };
        let mut b = Builder::new();
        let (tokens, pos) = b.inputs(n_tokens);
        let mut anchors: Vec<LayerAnchors> = Vec::with_capacity(hp.shape.n_layer);
        let mut inp = self.embedding.embed(&mut b, hp, hp.scales.embedding, tokens);
        for (il, layer) in self.layers.iter().enumerate() {
            b.set_layer(Some(il));
            let x = b.rms_norm(layer.attn_norm, hp.rms_eps, inp, "attn_norm");
            let k = b.linear(layer.qkv.k, x, "Kcur");
            let k = b.push(Op::Rope { head_dim: hp.shape.head_dim, rope }, &[k, pos], "Kcur_rope");
            let v = b.linear(layer.qkv.v, x, "Vcur");
            let q = b.linear(layer.qkv.q, x, "Qcur");
            let q = b.push(Op::Rope { head_dim: hp.shape.head_dim, rope }, &[q, pos], "Qcur_rope");
            let q = match hp.temperature {
                // Made in each layer, of the positions that are left there.
                Some(Temperature { every, scale }) => {
                    let factors = b.push(Op::Temperature { every, scale }, &[pos], "attn_scale");
                    b.push(Op::Mul, &[q, factors], "Qcur_tempered")
                }
                None => q,
            };
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
