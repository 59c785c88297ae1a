//! What all architectures share: embedding, a stack of layers, and head; in a layer the residual stream.

use crate::graph::Graph;
use crate::graph::build::{Builder, Projection};
use crate::graph::ir::*;

use super::ffn::Ffn;
use super::hparams::HParams;
use super::table::{Role, WeightTable};
use super::{Arch, ModelError};

/// An architecture with its weights looked up: builds the dense graph, and knows nothing of SPTS.
pub trait Architecture: Send + Sync {
    /// The forward pass over `n_tokens` tokens in a context of `n_ctx` (which decides between rope factors in Phi-3).
    fn graph(&self, n_tokens: usize, n_ctx: usize) -> Graph;
}

impl WeightTable<'_> {
    /// A matrix `[n_in, n_out]` named `base.weight`, with its scale if the file has one.
    pub fn projection(&mut self, base: &str, n_in: usize, n_out: usize) -> Result<Projection, ModelError> {
        let weight = self.matrix(&format!("{base}.weight"), n_in, n_out, Role::Matrix)?;
        Ok(Projection { weight, scale: self.scale(base)?, bias: None, n_out })
    }

    /// As [`WeightTable::projection`], with its bias if the file has one.
    pub fn biased_projection(&mut self, base: &str, n_in: usize, n_out: usize) -> Result<Projection, ModelError> {
        let bias = self.optional_vector(&format!("{base}.bias"), n_out)?;
        Ok(Projection { bias, ..self.projection(base, n_in, n_out)? })
    }

    /// `base.scale`, the factor on products with `base.weight` that NVFP4 files have. The factor on their inputs is for kernels
    /// that round those to 4 bits, too.
    pub(super) fn scale(&mut self, base: &str) -> Result<Option<WeightId>, ModelError> {
        self.tolerate(&format!("{base}.input_scale"));
        self.optional_vector(&format!("{base}.scale"), 1)
    }
}

/// A model: embedding, layers of the kind that its architecture has, and head.
pub struct Stack<L> {
    /// Hyperparameters.
    pub hp: HParams,
    embedding: Embedding,
    layers: Vec<L>,
}

/// Where a layer stands in the graph.
#[derive(Clone, Copy)]
pub struct Site {
    /// Index of the layer.
    pub il: usize,
    /// Residual stream that enters it.
    pub inp: NodeId,
    /// Positions of its tokens.
    pub pos: NodeId,
    /// Ids of its tokens.
    pub tokens: NodeId,
    /// Embedding of the vocabulary `[n_embd, n_vocab]`.
    pub token_embd: WeightId,
    /// Keys and values of an earlier layer, where this one has none of its own.
    pub shared_kv: Option<[NodeId; 2]>,
}

impl<L> Stack<L> {
    /// Finds the weights of embedding and head in the table, and by `layer` those of each layer, by its index.
    pub fn load(
        hp: &HParams,
        table: &mut WeightTable,
        mut layer: impl FnMut(&mut WeightTable, usize) -> Result<L, ModelError>,
    ) -> Result<Self, ModelError> {
        let embedding = Embedding::load(hp, table)?;
        let layers = (0..hp.shape.n_layer).map(|il| {
            table.set_layer(Some(il));
            layer(table, il)
        });
        let layers = layers.collect::<Result<_, _>>()?;
        Ok(Self { hp: hp.clone(), embedding, layers })
    }

    /// The forward pass over `n_tokens` tokens, their embedding times `scale`; `layer` builds each layer.
    pub fn graph(&self, n_tokens: usize, scale: f32, layer: impl Fn(&mut Builder, &L, Site) -> LayerAnchors) -> Graph {
        let mut b = Builder::new();
        let (tokens, pos) = b.inputs(n_tokens);
        let mut anchors: Vec<LayerAnchors> = Vec::with_capacity(self.layers.len());
        let mut inp = b.embed(self.embedding.token_embd, self.hp.shape.n_embd, scale, tokens);
        for (il, weights) in self.layers.iter().enumerate() {
            b.set_layer(Some(il));
            let owner = Some(self.hp.shape.kv_layer(il)).filter(|&owner| owner != il);
            let shared_kv = owner.and_then(|owner| anchors[owner].attention()).map(|a| [a.k, a.v]);
            let token_embd = self.embedding.token_embd;
            let built = layer(&mut b, weights, Site { il, inp, pos, tokens, token_embd, shared_kv });
            inp = built.out;
            anchors.push(built);
        }
        self.embedding.head(b, &self.hp, anchors, pos, inp)
    }
}

/// Embedding and output head.
struct Embedding {
    token_embd: WeightId,
    output_norm: WeightId,
    output: Projection,
}

impl Embedding {
    /// Looks up the weights; a file without `output.weight` ties the head to the embedding.
    fn load(hp: &HParams, table: &mut WeightTable) -> Result<Self, ModelError> {
        table.set_layer(None);
        let token_embd = table.matrix("token_embd.weight", hp.shape.n_embd, hp.shape.n_vocab, Role::Embedding)?;
        let output_norm = table.vector("output_norm.weight", hp.shape.n_embd)?;
        let output = if table.has("output.weight") {
            match hp.arch {
                Arch::Qwen2 => table.biased_projection("output", hp.shape.n_embd, hp.shape.n_vocab)?,
                _ => table.projection("output", hp.shape.n_embd, hp.shape.n_vocab)?,
            }
        } else {
            Projection { weight: token_embd, scale: None, bias: None, n_out: hp.shape.n_vocab }
        };
        Ok(Self { token_embd, output_norm, output })
    }

    /// Norm and head on the last token: closes the graph.
    fn head(&self, mut b: Builder, hp: &HParams, layers: Vec<LayerAnchors>, pos: NodeId, hidden: NodeId) -> Graph {
        b.set_layer(None);
        let last = b.push(Op::LastRows { rows: 1 }, &[hidden], "last_hidden");
        let normed = b.rms_norm(self.output_norm, hp.rms_eps, last, "result_norm");
        let logits = b.linear(self.output, normed, "result_output");
        let logits = scaled(&mut b, hp.scales.logits, logits, "result_scaled");
        let logits = match hp.softcap {
            Some(cap) => b.push(Op::Softcap { cap }, &[logits], "result_capped"),
            None => logits,
        };
        b.finish(layers, pos, hidden, vec![logits])
    }
}

/// x times a factor that is not 1.
fn scaled(b: &mut Builder, factor: f32, x: NodeId, name: &'static str) -> NodeId {
    if factor == 1.0 { x } else { b.push(Op::Scale { factor }, &[x], name) }
}

/// A layer whose attention, or what is in its place, has been built.
pub struct Mixed {
    /// Residual stream that entered the layer.
    pub inp: NodeId,
    /// Attention or recurrence.
    pub mixer: Mixer,
    /// What it adds to the residual stream.
    pub attn_out: NodeId,
}

impl Mixed {
    /// Adds a norm behind what the layer has found.
    pub fn normed(self, b: &mut Builder, hp: &HParams, weight: WeightId) -> Self {
        Self { attn_out: b.rms_norm(weight, hp.rms_eps, self.attn_out, "attn_post_norm"), ..self }
    }

    /// Adds what the layer has found to the residual stream, then the FFN: the layer is complete.
    pub fn then_ffn(self, b: &mut Builder, hp: &HParams, ffn: &Ffn) -> LayerAnchors {
        let attn_out = scaled(b, hp.scales.residual, self.attn_out, "attn_out_scaled");
        let ffn_inp = b.push(Op::Add, &[self.inp, attn_out], "ffn_inp");
        let ffn_norm = ffn.norm(b, hp, ffn_inp);
        let (ffn_hidden, ffn_out) = ffn.build(b, hp, ffn_inp, ffn_norm);
        let ffn_out = scaled(b, hp.scales.residual, ffn_out, "ffn_out_scaled");
        let out = b.push(Op::Add, &[ffn_out, ffn_inp], "l_out");
        LayerAnchors {
            inp: self.inp,
            mixer: self.mixer,
            attn_out,
            ffn_inp,
            ffn_norm,
            ffn_hidden,
            ffn_out,
            ffn_sum: out,
            out,
            act: ffn.act(),
            scores: None,
            active_attn: None,
            active_ffn: None,
            kept: None,
        }
    }
}
