//! What all dense transformers share: embedding and head, the gated FFN, the residual stream of a layer.

use crate::graph::Graph;
use crate::graph::build::{Builder, Projection};
use crate::graph::ir::*;

use super::ModelError;
use super::hparams::HParams;
use super::table::{Role, WeightTable};

/// An architecture with its weights looked up: builds the dense graph, and knows nothing of SPTS.
pub trait Architecture: Send + Sync {
    /// The forward pass over `n_tokens` tokens in a context of `n_ctx` (which decides between rope factors in Phi-3).
    fn graph(&self, n_tokens: usize, n_ctx: usize) -> Graph;
}

impl WeightTable<'_> {
    /// A matrix `[n_in, n_out]` named `base.weight`, with its bias if the file has one.
    pub fn projection(&mut self, base: &str, n_in: usize, n_out: usize) -> Result<Projection, ModelError> {
        let weight = self.matrix(&format!("{base}.weight"), n_in, n_out, Role::Matrix)?;
        let bias = self.optional_vector(&format!("{base}.bias"), n_out)?;
        Ok(Projection { weight, bias, n_out })
    }
}

/// Embedding and output head.
pub struct Embedding {
    token_embd: WeightId,
    output_norm: WeightId,
    output: Projection,
}

impl Embedding {
    /// Looks up the weights; a file without `output.weight` ties the head to the embedding.
    pub fn load(hp: &HParams, table: &mut WeightTable) -> Result<Self, ModelError> {
        table.set_layer(None);
        let token_embd = table.matrix("token_embd.weight", hp.n_embd, hp.n_vocab, Role::Embedding)?;
        let output_norm = table.vector("output_norm.weight", hp.n_embd)?;
        let output = if table.has("output.weight") {
            table.projection("output", hp.n_embd, hp.n_vocab)?
        } else {
            Projection { weight: token_embd, bias: None, n_out: hp.n_vocab }
        };
        Ok(Self { token_embd, output_norm, output })
    }

    /// `-> [n_embd, n]`
    pub fn embed(&self, b: &mut Builder, hp: &HParams, scale: f32, tokens: NodeId) -> NodeId {
        b.embed(self.token_embd, hp.n_embd, scale, tokens)
    }

    /// Norm and head on the last token: closes the graph.
    pub fn head(
        &self,
        mut b: Builder,
        hp: &HParams,
        layers: Vec<LayerAnchors>,
        positions: NodeId,
        hidden: NodeId,
    ) -> Graph {
        b.set_layer(None);
        let last = b.push(Op::LastRows { rows: 1 }, &[hidden], "last_hidden");
        let normed = b.rms_norm(self.output_norm, hp.rms_eps, last, "result_norm");
        let logits = b.linear(self.output, normed, "result_output");
        b.finish(layers, positions, hidden, vec![logits])
    }
}

/// W_down (act(W_gate x) * (W_up x)) on the normalised residual stream.
pub struct Ffn {
    norm: WeightId,
    gate: Projection,
    up: Projection,
    down: Projection,
    post_norm: Option<WeightId>,
    act: Activation,
}

impl Ffn {
    /// Looks up `ffn_norm`, `ffn_gate`, `ffn_up`, `ffn_down`, and `post_ffw_norm` where the architecture has it.
    pub fn load(hp: &HParams, table: &mut WeightTable, act: Activation) -> Result<Self, ModelError> {
        Ok(Self {
            norm: table.vector("ffn_norm.weight", hp.n_embd)?,
            gate: table.projection("ffn_gate", hp.n_embd, hp.n_ff)?,
            up: table.projection("ffn_up", hp.n_embd, hp.n_ff)?,
            down: table.projection("ffn_down", hp.n_ff, hp.n_embd)?,
            post_norm: table.optional_vector("post_ffw_norm.weight", hp.n_embd)?,
            act,
        })
    }

    /// As [`Ffn::load`], where gate and up are the two halves of `ffn_up` (Phi-3).
    pub fn load_fused(hp: &HParams, table: &mut WeightTable, act: Activation) -> Result<Self, ModelError> {
        let (d, f) = (hp.n_embd, hp.n_ff);
        let gate = table.part("ffn_up.weight", d, 2 * f, 0..f, "ffn_gate.weight")?;
        let up = table.part("ffn_up.weight", d, 2 * f, f..2 * f, "ffn_up.weight")?;
        Ok(Self {
            norm: table.vector("ffn_norm.weight", d)?,
            gate: Projection { weight: gate, bias: None, n_out: f },
            up: Projection { weight: up, bias: None, n_out: f },
            down: table.projection("ffn_down", f, d)?,
            post_norm: None,
            act,
        })
    }
}

/// A layer whose attention has been built.
pub struct Attended {
    /// Residual stream that entered the layer.
    pub inp: NodeId,
    /// Queries.
    pub q: NodeId,
    /// Keys.
    pub k: NodeId,
    /// Values.
    pub v: NodeId,
    /// The attention node.
    pub attn: NodeId,
    /// What attention adds to the residual stream.
    pub attn_out: NodeId,
    /// Sliding window.
    pub window: Option<usize>,
}

impl Attended {
    /// Adds attention to the residual stream, then the FFN: the layer is complete.
    pub fn then_ffn(self, b: &mut Builder, hp: &HParams, ffn: &Ffn) -> LayerAnchors {
        let ffn_inp = b.push(Op::Add, &[self.inp, self.attn_out], "ffn_inp");
        let ffn_norm = b.rms_norm(ffn.norm, hp.rms_eps, ffn_inp, "ffn_norm");
        let gate = b.linear(ffn.gate, ffn_norm, "ffn_gate");
        let up = b.linear(ffn.up, ffn_norm, "ffn_up");
        let par = b.push(Op::Glu { act: ffn.act }, &[gate, up], "ffn_gate_par");
        let mut ffn_out = b.linear(ffn.down, par, "ffn_out");
        if let Some(norm) = ffn.post_norm {
            ffn_out = b.rms_norm(norm, hp.rms_eps, ffn_out, "ffn_post_norm");
        }
        let out = b.push(Op::Add, &[ffn_out, ffn_inp], "l_out");
        LayerAnchors {
            inp: self.inp,
            q: self.q,
            k: self.k,
            v: self.v,
            attn: self.attn,
            attn_out: self.attn_out,
            ffn_inp,
            ffn_norm,
            ffn_hidden: Some(par),
            ffn_out,
            out,
            act: ffn.act,
            window: self.window,
            scores: None,
            active_attn: None,
            active_ffn: None,
            kept: None,
        }
    }
}
