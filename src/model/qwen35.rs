//! Qwen3-Next, Qwen 3.5 and 3.6, dense and as mixtures of experts: most layers are gated delta nets, every fourth one attends.
//!
//! In an attention layer each head's query comes with a gate, by whose sigmoid what the head found is multiplied. Positions of
//! text, rows and columns (IMROPE) are one and the same in a text, so that rotation is the usual one. Layers appended to predict
//! further tokens are left out.
//!
//! Qwen3-Next has the two gates of the delta net in one matrix, those of each key head's value heads together, and the value heads
//! of a key head are neighbours.

use crate::graph::Graph;
use crate::graph::build::{Builder, Projection};
use crate::graph::ir::*;

use super::attention::QkNorms;
use super::stack::{Architecture, Mixed, Site, Stack};
use super::ffn::Ffn;
use super::hparams::HParams;
use super::table::WeightTable;
use super::{Arch, ModelError};

struct Layer {
    attn_norm: WeightId,
    mixer: MixerWeights,
    ffn: Ffn,
}

enum MixerWeights {
    Attention(Attention),
    Delta(DeltaNet),
}

struct Attention {
    /// Query and gate, head by head.
    q_gate: Projection,
    k: Projection,
    v: Projection,
    o: Projection,
    norms: QkNorms,
}

struct DeltaNet {
    heads: DeltaHeads,
    qkv: Projection,
    z: Projection,
    gates: Gates,
    conv: WeightId,
    dt: WeightId,
    a: WeightId,
    norm: WeightId,
    out: Projection,
}

/// To two numbers for each value head: how much of a value is taken up, and how much of the state stays.
enum Gates {
    Apart { beta: Projection, alpha: Projection },
    Together(Projection),
}

impl Gates {
    fn load(hp: &HParams, heads: DeltaHeads, table: &mut WeightTable) -> Result<Self, ModelError> {
        let (n_embd, n) = (hp.shape.n_embd, heads.n_head_v);
        Ok(match hp.arch {
            Arch::Qwen3Next => Gates::Together(table.projection("ssm_ba", n_embd, 2 * n)?),
            _ => Gates::Apart {
                beta: table.projection("ssm_beta", n_embd, n)?,
                alpha: table.projection("ssm_alpha", n_embd, n)?,
            },
        })
    }

    /// Beta and alpha of the normalised stream x.
    fn build(&self, b: &mut Builder, heads: &DeltaHeads, x: NodeId) -> [NodeId; 2] {
        match self {
            Gates::Apart { beta, alpha } => [b.linear(*beta, x, "beta"), b.linear(*alpha, x, "alpha")],
            Gates::Together(both) => {
                let both = b.linear(*both, x, "beta_alpha");
                let len = heads.n_head_v / heads.n_head_k;
                let half = |start: usize| Op::Features { group: 2 * len, start, len };
                [b.push(half(0), &[both], "beta"), b.push(half(len), &[both], "alpha")]
            }
        }
    }
}

/// A loaded model of this architecture.
pub struct Qwen35(Stack<Layer>);

impl Qwen35 {
    /// Finds the weights of this architecture in the table.
    pub fn load(hp: &HParams, table: &mut WeightTable) -> Result<Self, ModelError> {
        // The head of embedding models.
        table.tolerate("cls.output.weight");
        table.tolerate("cls.output.bias");
        for il in hp.shape.n_layer..hp.shape.n_layer + hp.n_predict {
            table.tolerate_layer(il);
        }
        let layer = |table: &mut WeightTable, il| {
            Ok(Layer {
                attn_norm: table.vector("attn_norm.weight", hp.shape.n_embd)?,
                mixer: match hp.shape.recurrence(il) {
                    None => MixerWeights::Attention(Attention::load(hp, table)?),
                    Some(heads) => MixerWeights::Delta(DeltaNet::load(hp, heads, table)?),
                },
                ffn: Ffn::load(hp, table, Activation::Silu)?,
            })
        };
        Ok(Self(Stack::load(hp, table, layer)?))
    }
}

impl Attention {
    fn load(hp: &HParams, table: &mut WeightTable) -> Result<Self, ModelError> {
        let n_kv = hp.shape.n_embd_kv(table.layer().unwrap_or_default());
        let (n_embd, n_q) = (hp.shape.n_embd, hp.shape.n_head * hp.shape.head_dim);
        Ok(Self {
            q_gate: table.biased_projection("attn_q", n_embd, 2 * n_q)?,
            k: table.biased_projection("attn_k", n_embd, n_kv)?,
            v: table.biased_projection("attn_v", n_embd, n_kv)?,
            o: table.projection("attn_output", n_q, n_embd)?,
            norms: QkNorms::by_heads(hp, table)?,
        })
    }

    /// Attention on the normalised stream x, and its output projection.
    fn build(&self, b: &mut Builder, hp: &HParams, x: NodeId, at: Site) -> (Mixer, NodeId) {
        let Site { il, pos, .. } = at;
        let (head_dim, rope, heads) = (hp.shape.head_dim, hp.rope, hp.heads(at.il));
        let k = b.linear(self.k, x, "Kcur");
        let k = self.norms.of_keys(b, hp, k);
        let k = b.push(Op::Rope { head_dim, rope }, &[k, pos], "Kcur_rope");
        let v = b.linear(self.v, x, "Vcur");
        let q_gate = b.linear(self.q_gate, x, "Qcur_full");
        let half = |start: usize| Op::Features { group: 2 * head_dim, start, len: head_dim };
        let q = b.push(half(0), &[q_gate], "Qcur");
        let q = self.norms.of_queries(b, hp, q);
        let q = b.push(Op::Rope { head_dim, rope }, &[q, pos], "Qcur_rope");
        let attn = b.push(Op::Attention { layer: il, heads, window: None, blocks: None }, &[q, k, v, pos, pos], "kqv_out");
        let gate = b.push(half(head_dim), &[q_gate], "gate");
        let gate = b.push(Op::Sigmoid, &[gate], "gate_sigmoid");
        let gated = b.push(Op::Mul, &[attn, gate], "attn_gated");
        let out = b.linear(self.o, gated, "attn_out");
        (Mixer::Attention(AttentionAnchors { q, k, v, attn, window: None, cache: il }), out)
    }
}

impl DeltaNet {
    fn load(hp: &HParams, heads: DeltaHeads, table: &mut WeightTable) -> Result<Self, ModelError> {
        let n_embd = hp.shape.n_embd;
        Ok(Self {
            heads,
            qkv: table.projection("attn_qkv", n_embd, heads.n_channels())?,
            z: table.projection("attn_gate", n_embd, heads.n_values())?,
            gates: Gates::load(hp, heads, table)?,
            conv: table.kernels("ssm_conv1d.weight", heads.d_conv, heads.n_channels())?,
            dt: table.vector("ssm_dt.bias", heads.n_head_v)?,
            a: table.vector("ssm_a", heads.n_head_v)?,
            norm: table.vector("ssm_norm.weight", heads.head_dim)?,
            out: table.projection("ssm_out", heads.n_values(), n_embd)?,
        })
    }

    /// The gated delta net of layer `il` on the normalised stream x, its norm gated by z, and its output projection.
    fn build(&self, b: &mut Builder, hp: &HParams, il: usize, x: NodeId) -> (Mixer, NodeId) {
        let DeltaNet { heads, conv, dt, a, .. } = *self;
        let qkv = b.linear(self.qkv, x, "qkv_mixed");
        let [beta, alpha] = self.gates.build(b, &heads, x);
        let op = Op::DeltaNet { layer: il, heads, conv, dt, a, eps: hp.rms_eps };
        let delta = b.push(op, &[qkv, beta, alpha], "delta_net");
        let normed = b.head_norm(self.norm, hp.rms_eps, heads.head_dim, delta, "delta_normed");
        let z = b.linear(self.z, x, "z");
        let gated = b.push(Op::Glu { act: Activation::Silu }, &[z, normed], "delta_gated");
        (Mixer::Recurrent(delta), b.linear(self.out, gated, "delta_out"))
    }
}

impl Architecture for Qwen35 {
    fn graph(&self, n_tokens: usize, _n_ctx: usize) -> Graph {
        let hp = &self.0.hp;
        self.0.graph(n_tokens, 1.0, |b, layer, at| {
            let x = b.rms_norm(layer.attn_norm, hp.rms_eps, at.inp, "attn_norm");
            let (mixer, attn_out) = match &layer.mixer {
                MixerWeights::Attention(attention) => attention.build(b, hp, x, at),
                MixerWeights::Delta(delta) => delta.build(b, hp, at.il, x),
            };
            Mixed { inp: at.inp, mixer, attn_out }.then_ffn(b, hp, &layer.ffn)
        })
    }
}
