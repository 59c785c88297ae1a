//! The tensors of a model of a given shape, and how random ones are filled.

use crate::model::shape::Shape;

/// How a tensor's values are made.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Fill {
    /// Mean 0, standard deviation `1 / sqrt(shape[0])`, in the preset's type.
    Matrix,
    /// The same in F32: what chooses among experts is never quantized, and neither are the kernels of a convolution.
    Router,
    /// Values about 1, in F32.
    Norm,
    /// Values about 0, in F32.
    Bias,
    /// Values about -0.5, in F32: the logarithms of a recurrence's decays, before their gate.
    Decay,
    /// Values about the root of `shape[0]`, in F32.
    Root,
    /// The divisors of Llama 3.1's rotary frequencies.
    RopeFactors,
    /// Divisors by which a quarter of the pairs rotates, as in Gemma 4.
    QuarterRotates,
}

pub(super) struct Tensor {
    pub(super) name: String,
    pub(super) shape: Vec<u64>,
    pub(super) fill: Fill,
}

/// All tensors of a model of this shape, in a file's order. `stretches`: the rotary frequencies have divisors (Llama 3.1).
pub(super) fn tensors(s: &Shape, stretches: bool) -> Vec<Tensor> {
    let mut all: Vec<Tensor> = Vec::new();
    let mut add = |name: String, shape: &[usize], fill| {
        all.push(Tensor { name, shape: shape.iter().map(|&n| n as u64).collect(), fill });
    };
    add("token_embd.weight".into(), &[s.n_embd, s.n_vocab], Fill::Matrix);
    if stretches || s.arch == "gemma4" {
        let fill = if stretches { Fill::RopeFactors } else { Fill::QuarterRotates };
        add("rope_freqs.weight".into(), &[s.head_dim / 2], fill);
    }
    if s.n_embd_per_layer > 0 {
        let n_wide = s.n_embd_per_layer * s.n_layer;
        add("per_layer_token_embd.weight".into(), &[n_wide, s.n_vocab], Fill::Matrix);
        add("per_layer_model_proj.weight".into(), &[s.n_embd, n_wide], Fill::Matrix);
        add("per_layer_proj_norm.weight".into(), &[s.n_embd_per_layer], Fill::Norm);
    }
    for l in 0..s.n_layer {
        let head_dim = s.sizes(l).head_dim;
        let (q, kv) = (s.n_head * head_dim, s.n_embd_kv(l));
        let name = |base: &str| format!("blk.{l}.{base}");
        add(name("attn_norm.weight"), &[s.n_embd], Fill::Norm);
        if let Some(heads) = s.recurrence(l) {
            for (base, n_in, n_out) in [
                ("attn_qkv.weight", s.n_embd, heads.n_channels()),
                ("attn_gate.weight", s.n_embd, heads.n_values()),
                ("ssm_beta.weight", s.n_embd, heads.n_head_v),
                ("ssm_alpha.weight", s.n_embd, heads.n_head_v),
                ("ssm_out.weight", heads.n_values(), s.n_embd),
            ] {
                add(name(base), &[n_in, n_out], Fill::Matrix);
            }
            add(name("ssm_conv1d.weight"), &[heads.d_conv, heads.n_channels()], Fill::Router);
            add(name("ssm_dt.bias"), &[heads.n_head_v], Fill::Bias);
            add(name("ssm_a"), &[heads.n_head_v], Fill::Decay);
            add(name("ssm_norm.weight"), &[heads.head_dim], Fill::Norm);
            ffn_tensors(s, l, &mut add);
            continue;
        }
        // With a gate for every head.
        let q = if s.recurrent.is_some() { 2 * q } else { q };
        let has_keys = s.kv_layer(l) == l;
        for (part, n_out, is_there) in
            [("attn_q", q, true), ("attn_k", kv, has_keys), ("attn_v", kv, has_keys && s.has_values(l))]
        {
            if !is_there {
                continue;
            }
            add(name(&format!("{part}.weight")), &[s.n_embd, n_out], Fill::Matrix);
            if matches!(s.arch.as_str(), "qwen2" | "gpt-oss") {
                add(name(&format!("{part}.bias")), &[n_out], Fill::Bias);
            }
        }
        add(name("attn_output.weight"), &[s.n_head * head_dim, s.n_embd], Fill::Matrix);
        if matches!(s.arch.as_str(), "gemma3" | "gemma4" | "qwen3moe" | "qwen35" | "qwen35moe") {
            for (base, is_there) in [("attn_q_norm.weight", true), ("attn_k_norm.weight", has_keys)] {
                if is_there {
                    add(name(base), &[head_dim], Fill::Norm);
                }
            }
        }
        if s.n_embd_per_layer > 0 {
            add(name("inp_gate.weight"), &[s.n_embd, s.n_embd_per_layer], Fill::Matrix);
            add(name("proj.weight"), &[s.n_embd_per_layer, s.n_embd], Fill::Matrix);
            add(name("post_norm.weight"), &[s.n_embd], Fill::Norm);
        }
        if s.arch == "gemma4" {
            add(name("layer_output_scale.weight"), &[1], Fill::Norm);
        }
        if matches!(s.arch.as_str(), "gemma3" | "gemma4") {
            for base in ["post_attention_norm.weight", "post_ffw_norm.weight"] {
                add(name(base), &[s.n_embd], Fill::Norm);
            }
        }
        if s.arch == "gpt-oss" {
            add(name("attn_output.bias"), &[s.n_embd], Fill::Bias);
            add(name("attn_sinks.weight"), &[s.n_head], Fill::Bias);
        }
        ffn_tensors(s, l, &mut add);
    }
    add("output_norm.weight".into(), &[s.n_embd], Fill::Norm);
    if !s.tied {
        add("output.weight".into(), &[s.n_embd, s.n_vocab], Fill::Matrix);
    }
    all
}

/// The FFN of a layer, or its experts.
fn ffn_tensors(s: &Shape, l: usize, add: &mut impl FnMut(String, &[usize], Fill)) {
    let name = |base: &str| format!("blk.{l}.{base}");
    let is_oss = s.arch == "gpt-oss";
    let norm = if s.recurrent.is_some() || is_oss { "post_attention_norm.weight" } else { "ffn_norm.weight" };
    add(name(norm), &[s.n_embd], Fill::Norm);
    let parts = |n_ff: usize| {
        [("ffn_gate", s.n_embd, n_ff), ("ffn_up", s.n_embd, n_ff), ("ffn_down", n_ff, s.n_embd)]
    };
    let Some(experts) = s.experts else {
        for (part, n_in, n_out) in parts(s.sizes(l).n_ff) {
            add(name(&format!("{part}.weight")), &[n_in, n_out], Fill::Matrix);
        }
        return;
    };
    add(name("ffn_gate_inp.weight"), &[s.n_embd, experts.n_expert], Fill::Router);
    for (part, n_in, n_out) in parts(s.n_ff) {
        add(name(&format!("{part}_exps.weight")), &[n_in, n_out, experts.n_expert], Fill::Matrix);
        if is_oss {
            add(name(&format!("{part}_exps.bias")), &[n_out, experts.n_expert], Fill::Bias);
        }
    }
    if is_oss {
        add(name("ffn_gate_inp.bias"), &[experts.n_expert], Fill::Bias);
    }
    if s.arch == "gemma4" {
        for base in ["post_ffw_norm_1.weight", "pre_ffw_norm_2.weight", "post_ffw_norm_2.weight"] {
            add(name(base), &[s.n_embd], Fill::Norm);
        }
        // The router divides by the root of the width.
        add(name("ffn_gate_inp.scale"), &[s.n_embd], Fill::Root);
        add(name("ffn_down_exps.scale"), &[experts.n_expert], Fill::Norm);
        for (part, n_in, n_out) in parts(experts.n_ff_shared) {
            add(name(&format!("{part}.weight")), &[n_in, n_out], Fill::Matrix);
        }
    } else if experts.n_ff_shared > 0 {
        add(name("ffn_gate_inp_shexp.weight"), &[s.n_embd], Fill::Router);
        for (part, n_in, n_out) in parts(experts.n_ff_shared) {
            add(name(&format!("{part}_shexp.weight")), &[n_in, n_out], Fill::Matrix);
        }
    }
}
