//! What a layer computes of each token by itself: one gated FFN, or a mixture of experts.

use crate::graph::build::{Builder, Projection};
use crate::graph::ir::*;

use super::hparams::HParams;
use super::shape::Experts;
use super::table::{Role, WeightTable};
use super::{Arch, ModelError};

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
    /// The same with norms for both, and without that gate (Gemma 4).
    NormedBeside(NormedBeside),
}

/// A gated FFN for all tokens and a mixture of experts, each with norms of its own, which are added. The router reads the
/// residual stream by a norm that nobody else reads.
struct NormedBeside {
    gate: Projection,
    up: Projection,
    down: Projection,
    post_norm: WeightId,
    experts: Op,
    experts_norm: WeightId,
    experts_post_norm: WeightId,
    router_norm: WeightId,
}

impl NormedBeside {
    fn load(hp: &HParams, table: &mut WeightTable, experts: Experts, act: Activation) -> Result<Self, ModelError> {
        let (d, f) = (hp.shape.n_embd, experts.n_ff_shared);
        Ok(Self {
            gate: table.projection("ffn_gate", d, f)?,
            up: table.projection("ffn_up", d, f)?,
            down: table.projection("ffn_down", f, d)?,
            post_norm: table.vector("post_ffw_norm_1.weight", d)?,
            experts: Ffn::experts(hp, table, experts, act)?,
            experts_norm: table.vector("pre_ffw_norm_2.weight", d)?,
            experts_post_norm: table.vector("post_ffw_norm_2.weight", d)?,
            router_norm: table.vectors("ffn_gate_inp.scale", d, 1)?,
        })
    }

    /// What it adds for the stream `ffn_inp`, which is normalised in x.
    fn build(&self, b: &mut Builder, hp: &HParams, act: Activation, ffn_inp: NodeId, x: NodeId) -> NodeId {
        let gate = b.linear(self.gate, x, "ffn_gate");
        let up = b.linear(self.up, x, "ffn_up");
        let par = b.push(Op::Glu { act }, &[gate, up], "ffn_gate_par");
        let all = b.linear(self.down, par, "ffn_mlp_out");
        let all = b.rms_norm(self.post_norm, hp.rms_eps, all, "ffn_mlp");
        let x = b.rms_norm(self.experts_norm, hp.rms_eps, ffn_inp, "ffn_norm_2");
        let routed = b.rms_norm(self.router_norm, hp.rms_eps, ffn_inp, "ffn_router_norm");
        let factor = 1.0 / (hp.shape.n_embd as f32).sqrt();
        let routed = b.push(Op::Scale { factor }, &[routed], "ffn_router_inp");
        let chosen = b.push(self.experts.clone(), &[x, routed], "ffn_moe_out");
        let chosen = b.rms_norm(self.experts_post_norm, hp.rms_eps, chosen, "ffn_moe");
        b.push(Op::Add, &[all, chosen], "ffn_moe_combined")
    }
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
    /// Finds `ffn_norm`, `ffn_gate`, `ffn_up` and `ffn_down`, which in Llama and its like may have biases. A mixture of experts has
    /// `ffn_gate_inp`, which chooses, and `ffn_gate_exps`, `ffn_up_exps` and `ffn_down_exps`, which all have biases in gpt-oss; the
    /// same with `_shexp` for a shared one.
    ///
    /// The norm is called `post_attention_norm` in gpt-oss and Qwen 3.5. Gemma 3 and GLM 4 have `post_ffw_norm` as well, OLMo 2 has
    /// it instead.
    pub fn load(hp: &HParams, table: &mut WeightTable, act: Activation) -> Result<Self, ModelError> {
        let norm = match hp.arch {
            arch if arch.is_hybrid() || arch == Arch::GptOss => {
                Some(table.vector("post_attention_norm.weight", hp.shape.n_embd)?)
            }
            Arch::Olmo2 => None,
            _ => Some(table.vector("ffn_norm.weight", hp.shape.n_embd)?),
        };
        let body = match hp.shape.experts {
            Some(experts) if hp.arch == Arch::Gemma4 => {
                Body::NormedBeside(NormedBeside::load(hp, table, experts, act)?)
            }
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
            Arch::Gemma3 | Arch::Gemma4 | Arch::Olmo2 | Arch::Glm4 => Some(table.vector("post_ffw_norm.weight", hp.shape.n_embd)?),
            _ => None,
        })
    }

    fn gated(hp: &HParams, table: &mut WeightTable) -> Result<Body, ModelError> {
        let n_ff = hp.shape.sizes(table.layer().unwrap_or_default()).n_ff;
        let mut projection = |base: &str, n_in: usize, n_out: usize| match hp.arch {
            arch if arch.is_like_llama() => table.biased_projection(base, n_in, n_out),
            _ => table.projection(base, n_in, n_out),
        };
        let gate = projection("ffn_gate", hp.shape.n_embd, n_ff)?;
        let up = projection("ffn_up", hp.shape.n_embd, n_ff)?;
        let down = projection("ffn_down", n_ff, hp.shape.n_embd)?;
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
            scales: match table.has("ffn_down_exps.scale") {
                true => Some(table.vectors("ffn_down_exps.scale", n_expert, 1)?),
                false => None,
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

    /// The normalised residual stream, which the FFN computes.
    pub fn norm(&self, b: &mut Builder, hp: &HParams, ffn_inp: NodeId) -> NodeId {
        self.norm.map_or(ffn_inp, |norm| b.rms_norm(norm, hp.rms_eps, ffn_inp, "ffn_norm"))
    }

    /// What it computes of the stream `ffn_inp`, which is normalised in x, and the products of gate and up before the last
    /// projection, where all tokens go through one.
    pub fn build(&self, b: &mut Builder, hp: &HParams, ffn_inp: NodeId, x: NodeId) -> (Option<NodeId>, NodeId) {
        let (hidden, out) = match &self.body {
            Body::Gated { gate, up, down } => {
                let gate = b.linear(*gate, x, "ffn_gate");
                let up = b.linear(*up, x, "ffn_up");
                let par = b.push(Op::Glu { act: self.act }, &[gate, up], "ffn_gate_par");
                (Some(par), b.linear(*down, par, "ffn_out"))
            }
            Body::Experts(experts) => (None, b.push(experts.clone(), &[x], "ffn_moe_out")),
            Body::ExpertsBeside(experts, shared) => {
                let chosen = b.push(experts.clone(), &[x], "ffn_moe_out");
                let all = shared.build(b, self.act, x);
                (None, b.push(Op::Add, &[chosen, all], "ffn_out"))
            }
            Body::NormedBeside(beside) => (None, beside.build(b, hp, self.act, ffn_inp, x)),
        };
        (hidden, self.post_norm.map_or(out, |norm| b.rms_norm(norm, hp.rms_eps, out, "ffn_post_norm")))
    }

    /// The activation between gate and up.
    pub fn act(&self) -> Activation {
        self.act
    }
}
