//! The files of tiny models: metadata and random weights.

use super::Delta;
use super::{Arch, DeltaLayers, Scaling, Tiny};
use crate::support::gguf::File;
use crate::support::prng::Prng;

impl Tiny {
    pub(super) fn write_metadata(&self, file: &mut File) {
        let arch = self.arch.name();
        file.set("general.architecture", arch);
        // Not the architecture: llama.cpp demands certain special tokens of what calls itself "phi3".
        file.set("general.name", "tiny random");
        let key = |k: &str| format!("{arch}.{k}");
        file.set(key("block_count"), self.n_layer as u32);
        file.set(key("context_length"), self.n_ctx_train);
        file.set(key("embedding_length"), self.n_embd as u32);
        if self.gemma4.is_none() {
            file.set(key("feed_forward_length"), self.n_ff as u32);
        }
        file.set(key("attention.head_count"), self.n_head as u32);
        if self.gemma4.is_none() {
            file.set(key("attention.head_count_kv"), self.n_head_kv as u32);
        }
        file.set(key("attention.key_length"), self.head_dim as u32);
        file.set(key("attention.value_length"), self.head_dim as u32);
        file.set(key("attention.layer_norm_rms_epsilon"), 1e-5f32);
        file.set(key("rope.dimension_count"), self.n_rot as u32);
        file.set(key("rope.freq_base"), self.rope_base);
        file.set(key("vocab_size"), self.n_vocab() as u32);
        if let Some(window) = self.window {
            file.set(key("attention.sliding_window"), window);
        }
        if let Some((n_expert, n_used)) = self.experts {
            file.set(key("expert_count"), n_expert as u32);
            file.set(key("expert_used_count"), n_used as u32);
            file.set(key("expert_feed_forward_length"), self.n_ff as u32);
            if self.has_shared_expert() {
                file.set(key("expert_shared_feed_forward_length"), self.n_ff_shared() as u32);
            }
        }
        if let Some(delta) = &self.delta {
            if self.arch != Arch::Qwen3Next {
                file.set(key("rope.dimension_sections"), self.sections());
            }
            file.set(key("ssm.conv_kernel"), delta.d_conv as u32);
            file.set(key("ssm.state_size"), delta.head_dim as u32);
            file.set(key("ssm.group_count"), delta.n_head_k as u32);
            file.set(key("ssm.time_step_rank"), delta.n_head_v as u32);
            file.set(key("ssm.inner_size"), (delta.n_head_v * delta.head_dim) as u32);
            match &delta.layers {
                DeltaLayers::ButEvery(n) => file.set(key("full_attention_interval"), *n as u32),
                DeltaLayers::List(layers) => file.set(key("attention.recurrent_layers"), layers.clone()),
            }
        }
        if let Some(gemma4) = &self.gemma4 {
            gemma4.write_metadata(self, file);
        }
        match self.arch {
            Arch::Granite => {
                file.set(key("embedding_scale"), 3.0f32);
                file.set(key("residual_scale"), 0.6f32);
                file.set(key("attention.scale"), 0.25f32);
                file.set(key("logit_scale"), 0.8f32);
            }
            Arch::Mistral3 => {
                file.set(key("attention.temperature_scale"), 0.3f32);
                file.set(key("rope.scaling.yarn_log_multiplier"), 0.7f32);
            }
            _ => {}
        }
        match self.scaling {
            Scaling::None | Scaling::Freqs => {}
            Scaling::Linear(factor) => {
                file.set(key("rope.scaling.type"), "linear");
                file.set(key("rope.scaling.factor"), factor);
            }
            Scaling::Yarn(factor, n_ctx_orig) => {
                file.set(key("rope.scaling.type"), "yarn");
                file.set(key("rope.scaling.factor"), factor);
                file.set(key("rope.scaling.original_context_length"), n_ctx_orig);
            }
            Scaling::LongRope(n_ctx_orig, attn_factor) => {
                file.set(key("rope.scaling.type"), "longrope");
                file.set(key("rope.scaling.original_context_length"), n_ctx_orig);
                file.set(key("rope.scaling.attn_factor"), attn_factor);
            }
        }
    }

    /// Experts with gate and up in one tensor, and a shared one.
    fn write_shared(&self, file: &mut File, name: &dyn Fn(&str) -> String, n_expert: usize) {
        let (d, f, shared) = (self.n_embd, self.n_ff, self.n_ff_shared());
        let std = |gain: f64, n_in: usize| gain / (n_in as f64).sqrt();
        self.uniform(file, &name("ffn_gate_up_exps.weight"), &[d, 2 * f, n_expert], std(1.25, d));
        self.uniform(file, &name("ffn_down_exps.weight"), &[f, d, n_expert], std(1.0, f));
        self.uniform(file, &name("ffn_gate_inp_shexp.weight"), &[d], std(1.5, d));
        self.matrix(file, &name("ffn_gate_shexp.weight"), d, shared, 1.25);
        self.matrix(file, &name("ffn_up_shexp.weight"), d, shared, 1.25);
        self.matrix(file, &name("ffn_down_shexp.weight"), shared, d, 1.0);
    }

    fn has_shared_expert(&self) -> bool {
        matches!(self.arch, Arch::Qwen35Moe | Arch::Qwen3Next)
    }

    /// Width of a shared expert.
    fn n_ff_shared(&self) -> usize {
        self.n_ff + 2
    }

    /// The rotated pairs in three parts that take turns.
    fn sections(&self) -> Vec<i32> {
        let n = self.n_rot as i32 / 2;
        vec![(n + 2) / 3, (n + 1) / 3, n / 3, 0]
    }

    fn write_delta(&self, file: &mut File, name: &dyn Fn(&str) -> String, delta: &Delta) {
        let (d, values) = (self.n_embd, delta.n_head_v * delta.head_dim);
        self.matrix(file, &name("attn_qkv.weight"), d, delta.n_channels(), 1.0);
        self.matrix(file, &name("attn_gate.weight"), d, values, 1.0);
        if self.arch == Arch::Qwen3Next {
            self.matrix(file, &name("ssm_ba.weight"), d, 2 * delta.n_head_v, 1.0);
        } else {
            self.matrix(file, &name("ssm_beta.weight"), d, delta.n_head_v, 1.0);
            self.matrix(file, &name("ssm_alpha.weight"), d, delta.n_head_v, 1.0);
        }
        self.matrix(file, &name("ssm_conv1d.weight"), delta.d_conv, delta.n_channels(), 1.25);
        self.uniform(file, &name("ssm_dt.bias"), &[delta.n_head_v], 0.5);
        // From slow decays to fast ones.
        file.add(name("ssm_a"), &[delta.n_head_v], (0..delta.n_head_v).map(|i| -0.05 * 3f32.powi(i as i32)).collect());
        self.norm(file, &name("ssm_norm.weight"), delta.head_dim, 1.0);
        self.matrix(file, &name("ssm_out.weight"), values, d, 0.5);
    }

    pub(super) fn write_tensors(&self, file: &mut File) {
        let (d, f) = (self.n_embd, self.n_ff);
        let (q, kv) = (self.n_head * self.head_dim, self.n_head_kv * self.head_dim);
        // The rows of a tied embedding are also the output's: their size sets the spread of the logits.
        self.uniform(file, "token_embd.weight", &[d, self.n_vocab()], 2.0 / (d as f64).sqrt());
        self.norm(file, "output_norm.weight", d, 1.0);
        if !self.tied {
            self.matrix(file, "output.weight", d, self.n_vocab(), 2.0);
        }
        let factors = |slope: f32| (0..self.n_rot / 2).map(|i| 1.0 + slope * i as f32).collect::<Vec<f32>>();
        match self.scaling {
            Scaling::Freqs => file.add("rope_freqs.weight", &[self.n_rot / 2], factors(0.75)),
            Scaling::LongRope(..) => {
                file.add("rope_factors_long.weight", &[self.n_rot / 2], factors(1.5));
                file.add("rope_factors_short.weight", &[self.n_rot / 2], factors(0.125));
            }
            _ => {}
        }
        if let Some(gemma4) = &self.gemma4 {
            return gemma4.write_tensors(self, file);
        }
        for il in 0..self.n_layer {
            let name = |part: &str| format!("blk.{il}.{part}");
            if self.arch != Arch::Olmo2 {
                self.norm(file, &name("attn_norm.weight"), d, 1.0);
            }
            // Queries and keys above unit size: attention that prefers some tokens, hence scores that differ.
            let delta = self.delta.as_ref().filter(|delta| delta.is_in(il));
            if let Some(delta) = delta {
                self.write_delta(file, &name, delta);
            } else if self.arch == Arch::Phi3 {
                self.matrix(file, &name("attn_qkv.weight"), d, q + 2 * kv, 1.25);
            } else {
                // With a gate for each head.
                let gated = if self.delta.is_some() { 2 * q } else { q };
                self.matrix(file, &name("attn_q.weight"), d, gated, 1.5);
                self.matrix(file, &name("attn_k.weight"), d, kv, 1.5);
                self.matrix(file, &name("attn_v.weight"), d, kv, 1.0);
            }
            if matches!(self.arch, Arch::Qwen2 | Arch::GptOss | Arch::Glm4) {
                self.uniform(file, &name("attn_q.bias"), &[q], 0.5);
                self.uniform(file, &name("attn_k.bias"), &[kv], 0.5);
                self.uniform(file, &name("attn_v.bias"), &[kv], 0.5);
            }
            let norms_heads = matches!(self.arch, Arch::Qwen3 | Arch::Qwen3Moe | Arch::Gemma3) || self.delta.is_some();
            if norms_heads && delta.is_none() {
                // Recurrent layers make rounding larger by themselves.
                let size = if self.delta.is_some() { 1.2 } else { 1.5 };
                self.norm(file, &name("attn_q_norm.weight"), self.head_dim, size);
                self.norm(file, &name("attn_k_norm.weight"), self.head_dim, size);
            }
            if delta.is_none() {
                self.matrix(file, &name("attn_output.weight"), q, d, 0.75);
            }
            if self.arch == Arch::Olmo2 {
                self.norm(file, &name("attn_q_norm.weight"), q, 1.5);
                self.norm(file, &name("attn_k_norm.weight"), kv, 1.5);
            }
            let oss = self.arch == Arch::GptOss;
            if oss {
                self.uniform(file, &name("attn_output.bias"), &[d], 0.25);
                self.uniform(file, &name("attn_sinks.weight"), &[self.n_head], 1.5);
            }
            if self.arch != Arch::Olmo2 {
                let is_behind = oss || self.delta.is_some();
                let ffn_norm = if is_behind { "post_attention_norm.weight" } else { "ffn_norm.weight" };
                self.norm(file, &name(ffn_norm), d, 1.0);
            }
            if let Some((n_expert, _)) = self.experts {
                // Experts that differ much, and are chosen clearly.
                self.matrix(file, &name("ffn_gate_inp.weight"), d, n_expert, 2.0);
                if self.has_shared_expert() {
                    self.write_shared(file, &name, n_expert);
                    continue;
                }
                // Those of gpt-oss clamp some of what they multiply.
                let [gain, gain_down] = if oss { [3.5, 0.25] } else { [1.25, 1.0] };
                for (part, n_in, n_out, gain) in [("gate", d, f, gain), ("up", d, f, gain), ("down", f, d, gain_down)] {
                    let std = gain / (n_in as f64).sqrt();
                    self.uniform(file, &name(&format!("ffn_{part}_exps.weight")), &[n_in, n_out, n_expert], std);
                    if oss {
                        self.uniform(file, &name(&format!("ffn_{part}_exps.bias")), &[n_out, n_expert], 0.5);
                    }
                }
                if oss {
                    self.uniform(file, &name("ffn_gate_inp.bias"), &[n_expert], 0.5);
                }
                continue;
            }
            if matches!(self.arch, Arch::Phi3 | Arch::Glm4) {
                self.matrix(file, &name("ffn_up.weight"), d, 2 * f, 1.25);
            } else {
                self.matrix(file, &name("ffn_gate.weight"), d, f, 1.25);
                self.matrix(file, &name("ffn_up.weight"), d, f, 1.25);
            }
            self.matrix(file, &name("ffn_down.weight"), f, d, 1.0);
            if matches!(self.arch, Arch::Gemma3 | Arch::Olmo2 | Arch::Glm4) {
                self.norm(file, &name("post_attention_norm.weight"), d, 1.0);
                self.norm(file, &name("post_ffw_norm.weight"), d, 1.0);
            }
        }
    }

    /// Uniform values of the given standard deviation.
    pub fn uniform(&self, file: &mut File, name: &str, shape: &[usize], std: f64) {
        let mut prng = Prng::named(self.seed, &format!("{}/{name}", self.name));
        let bound = (std * 3f64.sqrt()) as f32;
        let n = shape.iter().product();
        file.add(name, shape, (0..n).map(|_| prng.signed() * bound).collect());
    }

    /// `[n_in, n_out]`; rows of unit size come out with the standard deviation `gain`.
    pub fn matrix(&self, file: &mut File, name: &str, n_in: usize, n_out: usize, gain: f64) {
        self.uniform(file, name, &[n_in, n_out], gain / (n_in as f64).sqrt());
    }

    /// Norm weights within a quarter of `center`.
    pub fn norm(&self, file: &mut File, name: &str, n: usize, center: f32) {
        let mut prng = Prng::named(self.seed, &format!("{}/{name}", self.name));
        file.add(name, &[n], (0..n).map(|_| center * (1.0 + 0.25 * prng.signed())).collect());
    }
}
