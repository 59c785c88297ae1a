//! What all dense transformers share: embedding and head, the gated FFN, the residual stream of a layer.

use std::ops::Range;

use crate::graph::Graph;
use crate::graph::build::{Builder, Projection};
use crate::graph::ir::*;

use super::hparams::HParams;
use super::shape::Experts;
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
    fn scale(&mut self, base: &str) -> Result<Option<WeightId>, ModelError> {
        self.tolerate(&format!("{base}.input_scale"));
        self.optional_vector(&format!("{base}.scale"), 1)
    }
}

/// The projections to queries, keys and values, which a file has as three matrices or as one.
pub struct Qkv {
    /// `[n_embd, n_head * head_dim]`
    pub q: Projection,
    /// `[n_embd, n_head_kv * head_dim]`
    pub k: Projection,
    /// `[n_embd, n_head_kv * head_dim]`
    pub v: Projection,
}

impl Qkv {
    /// Looks up `attn_q`, `attn_k` and `attn_v`, or `attn_qkv`, whose bias may be one or three.
    pub fn load(hp: &HParams, table: &mut WeightTable) -> Result<Self, ModelError> {
        let (n_q, n_kv) = (hp.shape.n_head * hp.shape.head_dim, hp.shape.n_embd_kv());
        if !table.has("attn_qkv.weight") {
            return Ok(Self {
                q: table.biased_projection("attn_q", hp.shape.n_embd, n_q)?,
                k: table.biased_projection("attn_k", hp.shape.n_embd, n_kv)?,
                v: table.biased_projection("attn_v", hp.shape.n_embd, n_kv)?,
            });
        }
        let n_all = n_q + 2 * n_kv;
        let scale = table.scale("attn_qkv")?;
        let mut part = |rows: Range<usize>, base: &str| -> Result<Projection, ModelError> {
            let (n_out, bias_name) = (rows.len(), format!("{base}.bias"));
            let weight = table.part("attn_qkv.weight", hp.shape.n_embd, n_all, rows.clone(), &format!("{base}.weight"))?;
            let bias = match table.has("attn_qkv.bias") {
                true => Some(table.vector_part("attn_qkv.bias", n_all, rows, &bias_name)?),
                false => table.optional_vector(&bias_name, n_out)?,
            };
            Ok(Projection { weight, scale, bias, n_out })
        };
        Ok(Self {
            q: part(0..n_q, "attn_q")?,
            k: part(n_q..n_q + n_kv, "attn_k")?,
            v: part(n_q + n_kv..n_all, "attn_v")?,
        })
    }
}

/// Per-pair divisors of the rotary frequencies `[n_rot / 2]`, where a file has them.
pub struct RopeFactors {
    long: Option<WeightId>,
    short: Option<WeightId>,
    n_ctx_orig: usize,
}

impl RopeFactors {
    /// `rope_freqs.weight`, the same for every context (Llama 3.1).
    pub fn load(hp: &HParams, table: &mut WeightTable) -> Result<Self, ModelError> {
        let all = table.optional_vector("rope_freqs.weight", hp.rope.n_rot / 2)?;
        Ok(Self { long: all, short: all, n_ctx_orig: hp.rope.n_ctx_orig })
    }

    /// `rope_factors_long.weight` and `rope_factors_short.weight` (LongRoPE: Phi-3).
    pub fn load_long(hp: &HParams, table: &mut WeightTable) -> Result<Self, ModelError> {
        let long = table.optional_vector("rope_factors_long.weight", hp.rope.n_rot / 2)?;
        let short = table.optional_vector("rope_factors_short.weight", hp.rope.n_rot / 2)?;
        Ok(Self { long, short, n_ctx_orig: hp.rope.n_ctx_orig })
    }

    /// The divisors in a context of `n_ctx` tokens: beyond the trained length the long ones hold.
    pub fn in_context(&self, n_ctx: usize) -> Option<WeightId> {
        if n_ctx > self.n_ctx_orig { self.long } else { self.short }
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

    /// Adds the embedding of the tokens, times `scale`: `-> [n_embd, n]`.
    pub fn embed(&self, b: &mut Builder, hp: &HParams, scale: f32, tokens: NodeId) -> NodeId {
        b.embed(self.token_embd, hp.shape.n_embd, scale, tokens)
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
        let logits = scaled(&mut b, hp.scales.logits, logits, "result_scaled");
        b.finish(layers, positions, hidden, vec![logits])
    }
}

/// What a layer computes of each token by itself, on the normalised residual stream.
pub struct Ffn {
    norm: Option<WeightId>,
    body: Body,
    post_norm: Option<WeightId>,
    act: Activation,
}

/// One FFN for all tokens, or one of many.
enum Body {
    /// `W_down (act(W_gate x) * (W_up x))`
    Gated { gate: Projection, up: Projection, down: Projection },
    /// [`Op::Experts`]
    Experts(Op),
    /// [`Op::Experts`], and an FFN for all tokens times the sigmoid of a gate, which are added.
    ExpertsBeside(Op, Shared),
}

/// The FFN that computes all tokens beside those of a mixture of experts.
struct Shared {
    gate: Projection,
    up: Projection,
    down: Projection,
    /// To one number a token.
    share: Projection,
}

impl Shared {
    fn load(hp: &HParams, table: &mut WeightTable, n_ff: usize) -> Result<Self, ModelError> {
        let d = hp.shape.n_embd;
        Ok(Self {
            gate: table.projection("ffn_gate_shexp", d, n_ff)?,
            up: table.projection("ffn_up_shexp", d, n_ff)?,
            down: table.projection("ffn_down_shexp", n_ff, d)?,
            share: table.projection("ffn_gate_inp_shexp", d, 1)?,
        })
    }

    /// What it adds for the normalised stream x.
    fn build(&self, b: &mut Builder, act: Activation, x: NodeId) -> NodeId {
        let gate = b.linear(self.gate, x, "ffn_shexp_gate");
        let up = b.linear(self.up, x, "ffn_shexp_up");
        let par = b.push(Op::Glu { act }, &[gate, up], "ffn_shexp_gate_par");
        let out = b.linear(self.down, par, "ffn_shexp");
        let share = b.linear(self.share, x, "shared_expert_gate");
        let share = b.push(Op::Sigmoid, &[share], "shared_expert_gate_sigmoid");
        b.push(Op::Mul, &[out, share], "ffn_shexp_gated")
    }
}

impl Ffn {
    /// Looks up `ffn_norm`, `ffn_gate`, `ffn_up` and `ffn_down`; in Llama and its like they may have biases, in Gemma 3 there is
    /// `post_ffw_norm`, in OLMo 2 instead of the other norm. In a mixture of experts `ffn_gate_inp`, which chooses, and `ffn_gate_exps`, `ffn_up_exps`, `ffn_down_exps`,
    /// which all have biases in gpt-oss; the same with `_shexp` for a shared one. The norm is called `post_attention_norm` in gpt-oss and
    /// Qwen 3.5.
    pub fn load(hp: &HParams, table: &mut WeightTable, act: Activation) -> Result<Self, ModelError> {
        let norm = match hp.arch {
            arch if arch.is_hybrid() || arch == Arch::GptOss => {
                Some(table.vector("post_attention_norm.weight", hp.shape.n_embd)?)
            }
            Arch::Olmo2 => None,
            _ => Some(table.vector("ffn_norm.weight", hp.shape.n_embd)?),
        };
        let body = match hp.shape.experts {
            Some(experts) if experts.n_ff_shared > 0 => {
                let op = Self::experts(hp, table, experts, act)?;
                Body::ExpertsBeside(op, Shared::load(hp, table, experts.n_ff_shared)?)
            }
            Some(experts) => Body::Experts(Self::experts(hp, table, experts, act)?),
            None => Self::gated(hp, table)?,
        };
        Ok(Self { norm, body, post_norm: Self::post_norm(hp, table)?, act })
    }

    fn post_norm(hp: &HParams, table: &mut WeightTable) -> Result<Option<WeightId>, ModelError> {
        Ok(match hp.arch {
            Arch::Gemma3 | Arch::Olmo2 | Arch::Glm4 => Some(table.vector("post_ffw_norm.weight", hp.shape.n_embd)?),
            _ => None,
        })
    }

    fn gated(hp: &HParams, table: &mut WeightTable) -> Result<Body, ModelError> {
        let mut projection = |base: &str, n_in: usize, n_out: usize| match hp.arch {
            arch if arch.is_like_llama() => table.biased_projection(base, n_in, n_out),
            _ => table.projection(base, n_in, n_out),
        };
        let gate = projection("ffn_gate", hp.shape.n_embd, hp.shape.n_ff)?;
        let up = projection("ffn_up", hp.shape.n_embd, hp.shape.n_ff)?;
        let down = projection("ffn_down", hp.shape.n_ff, hp.shape.n_embd)?;
        Ok(Body::Gated { gate, up, down })
    }

    fn experts(hp: &HParams, table: &mut WeightTable, experts: Experts, act: Activation) -> Result<Op, ModelError> {
        let (d, f, Experts { n_expert, n_used, .. }) = (hp.shape.n_embd, hp.shape.n_ff, experts);
        let router = table.matrix("ffn_gate_inp.weight", d, n_expert, Role::BesideExperts)?;
        // Some files have gate and up of each expert in one matrix.
        let (gate, up) = if table.has("ffn_gate_up_exps.weight") {
            let both = table.experts("ffn_gate_up_exps.weight", [d, 2 * f, n_expert])?;
            (both, both)
        } else {
            let gate = table.experts("ffn_gate_exps.weight", [d, f, n_expert])?;
            (gate, table.experts("ffn_up_exps.weight", [d, f, n_expert])?)
        };
        Ok(Op::Experts {
            router,
            gate,
            up,
            down: table.experts("ffn_down_exps.weight", [f, d, n_expert])?,
            n_expert,
            n_used,
            act,
            biases: match hp.arch {
                Arch::GptOss => Some(ExpertBiases {
                    router: table.vectors("ffn_gate_inp.bias", n_expert, 1)?,
                    gate: table.vectors("ffn_gate_exps.bias", f, n_expert)?,
                    up: table.vectors("ffn_up_exps.bias", f, n_expert)?,
                    down: table.vectors("ffn_down_exps.bias", d, n_expert)?,
                }),
                _ => None,
            },
        })
    }

    /// As [`Ffn::load`], where gate and up are the two halves of `ffn_up` (Phi-3, GLM 4).
    pub fn load_fused(hp: &HParams, table: &mut WeightTable, act: Activation) -> Result<Self, ModelError> {
        let (d, f) = (hp.shape.n_embd, hp.shape.n_ff);
        let gate = table.part("ffn_up.weight", d, 2 * f, 0..f, "ffn_gate.weight")?;
        let up = table.part("ffn_up.weight", d, 2 * f, f..2 * f, "ffn_up.weight")?;
        let scale = table.scale("ffn_up")?;
        Ok(Self {
            norm: Some(table.vector("ffn_norm.weight", d)?),
            body: Body::Gated {
                gate: Projection { weight: gate, scale, bias: None, n_out: f },
                up: Projection { weight: up, scale, bias: None, n_out: f },
                down: table.projection("ffn_down", f, d)?,
            },
            post_norm: Self::post_norm(hp, table)?,
            act,
        })
    }
}

/// x times a factor that is not 1.
fn scaled(b: &mut Builder, factor: f32, x: NodeId, name: &'static str) -> NodeId {
    if factor == 1.0 { x } else { b.push(Op::Scale { factor }, &[x], name) }
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
        let Attended { inp, q, k, v, attn, attn_out, window } = self;
        let mixer = Mixer::Attention(AttentionAnchors { q, k, v, attn, window });
        Mixed { inp, mixer, attn_out }.then_ffn(b, hp, ffn)
    }
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
    /// As [`Attended::then_ffn`].
    pub fn then_ffn(self, b: &mut Builder, hp: &HParams, ffn: &Ffn) -> LayerAnchors {
        let attn_out = scaled(b, hp.scales.residual, self.attn_out, "attn_out_scaled");
        let ffn_inp = b.push(Op::Add, &[self.inp, attn_out], "ffn_inp");
        let ffn_norm = ffn.norm.map_or(ffn_inp, |norm| b.rms_norm(norm, hp.rms_eps, ffn_inp, "ffn_norm"));
        let (ffn_hidden, mut ffn_out) = match &ffn.body {
            Body::Gated { gate, up, down } => {
                let gate = b.linear(*gate, ffn_norm, "ffn_gate");
                let up = b.linear(*up, ffn_norm, "ffn_up");
                let par = b.push(Op::Glu { act: ffn.act }, &[gate, up], "ffn_gate_par");
                (Some(par), b.linear(*down, par, "ffn_out"))
            }
            Body::Experts(experts) => (None, b.push(experts.clone(), &[ffn_norm], "ffn_moe_out")),
            Body::ExpertsBeside(experts, shared) => {
                let chosen = b.push(experts.clone(), &[ffn_norm], "ffn_moe_out");
                let all = shared.build(b, ffn.act, ffn_norm);
                (None, b.push(Op::Add, &[chosen, all], "ffn_out"))
            }
        };
        if let Some(norm) = ffn.post_norm {
            ffn_out = b.rms_norm(norm, hp.rms_eps, ffn_out, "ffn_post_norm");
        }
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
            out,
            act: ffn.act,
            scores: None,
            active_attn: None,
            active_ffn: None,
            kept: None,
        }
    }
}
