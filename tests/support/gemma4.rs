//! What tiny models have as Gemma 4 alone does: layers of two sizes, features of tokens for each layer, keys that layers share.

use super::gguf::File;
use super::tiny::Tiny;

/// Sizes by the kind of a layer; those without a window are the model's own.
#[derive(Clone, Debug, PartialEq)]
pub struct Gemma4 {
    /// Layers with a window.
    pub windowed: Vec<bool>,
    pub head_dim_swa: usize,
    pub n_head_kv_swa: usize,
    /// Whether layers without a window have values of their own, rather than their keys'.
    pub values: bool,
    /// Last layers without keys.
    pub n_shared_kv: usize,
    pub n_embd_per_layer: usize,
    /// Width of the FFN in these last layers.
    pub n_ff_shared_kv: usize,
    /// Width of the FFN beside experts.
    pub n_ff_beside: usize,
    pub softcap: f32,
}

impl Gemma4 {
    fn n_head_kv(&self, tiny: &Tiny, il: usize) -> usize {
        if self.windowed[il] { self.n_head_kv_swa } else { tiny.n_head_kv }
    }

    fn head_dim(&self, tiny: &Tiny, il: usize) -> usize {
        if self.windowed[il] { self.head_dim_swa } else { tiny.head_dim }
    }

    fn has_keys(&self, tiny: &Tiny, il: usize) -> bool {
        il + self.n_shared_kv < tiny.n_layer
    }

    fn n_ff(&self, tiny: &Tiny, il: usize) -> usize {
        match (tiny.experts, self.has_keys(tiny, il)) {
            (Some(_), _) => self.n_ff_beside,
            (None, true) => tiny.n_ff,
            (None, false) => self.n_ff_shared_kv,
        }
    }

    pub(super) fn write_metadata(&self, tiny: &Tiny, file: &mut File) {
        let key = |k: &str| format!("gemma4.{k}");
        let layers = || 0..tiny.n_layer;
        let ints = |of: &dyn Fn(usize) -> usize| layers().map(|il| of(il) as i32).collect::<Vec<i32>>();
        file.set(key("feed_forward_length"), ints(&|il| self.n_ff(tiny, il)));
        file.set(key("attention.head_count_kv"), ints(&|il| self.n_head_kv(tiny, il)));
        file.set(key("attention.key_length_swa"), self.head_dim_swa as u32);
        file.set(key("attention.value_length_swa"), self.head_dim_swa as u32);
        file.set(key("rope.dimension_count_swa"), self.head_dim_swa as u32);
        file.set(key("rope.freq_base_swa"), 5000.0f32);
        file.set(key("attention.sliding_window_pattern"), self.windowed.clone());
        file.set(key("attention.shared_kv_layers"), self.n_shared_kv as u32);
        file.set(key("embedding_length_per_layer_input"), self.n_embd_per_layer as u32);
        file.set(key("final_logit_softcapping"), self.softcap);
    }

    /// All but the embedding and the norm before the head.
    pub(super) fn write_tensors(&self, tiny: &Tiny, file: &mut File) {
        let (d, n, n_pairs) = (tiny.n_embd, self.n_embd_per_layer, tiny.head_dim / 2);
        // The first half of the pairs rotates, the others hardly do.
        let factors = (0..n_pairs).map(|i| if 2 * i < n_pairs { 1.0 } else { 1e30 }).collect();
        file.add("rope_freqs.weight", &[n_pairs], factors);
        if n > 0 {
            let wide = n * tiny.n_layer;
            tiny.uniform(file, "per_layer_token_embd.weight", &[wide, tiny.n_vocab()], 1.0 / (n as f64).sqrt());
            tiny.matrix(file, "per_layer_model_proj.weight", d, wide, 1.0);
            tiny.norm(file, "per_layer_proj_norm.weight", n, 1.0);
        }
        for il in 0..tiny.n_layer {
            let name = |part: &str| format!("blk.{il}.{part}");
            let (head_dim, f) = (self.head_dim(tiny, il), self.n_ff(tiny, il));
            let (q, kv) = (tiny.n_head * head_dim, self.n_head_kv(tiny, il) * head_dim);
            tiny.norm(file, &name("attn_norm.weight"), d, 1.0);
            tiny.matrix(file, &name("attn_q.weight"), d, q, 1.0);
            // Scores are not divided by the size of heads: with wide ones a few keys would decide, and roundings among those.
            let size = 0.8 * (12.0 / head_dim.max(12) as f32).powf(0.25);
            tiny.norm(file, &name("attn_q_norm.weight"), head_dim, size);
            if self.has_keys(tiny, il) {
                tiny.matrix(file, &name("attn_k.weight"), d, kv, 1.0);
                tiny.norm(file, &name("attn_k_norm.weight"), head_dim, size);
                if self.values || self.windowed[il] {
                    tiny.matrix(file, &name("attn_v.weight"), d, kv, 1.0);
                }
            }
            tiny.matrix(file, &name("attn_output.weight"), q, d, 0.75);
            for (norm, size) in [("post_attention_norm", 1.0), ("ffn_norm", 1.0), ("post_ffw_norm", 0.6)] {
                tiny.norm(file, &name(&format!("{norm}.weight")), d, size);
            }
            tiny.matrix(file, &name("ffn_gate.weight"), d, f, 1.25);
            tiny.matrix(file, &name("ffn_up.weight"), d, f, 1.25);
            tiny.matrix(file, &name("ffn_down.weight"), f, d, 1.0);
            if let Some((n_expert, _)) = tiny.experts {
                self.write_experts(tiny, file, &name, n_expert);
            }
            if n > 0 {
                tiny.matrix(file, &name("inp_gate.weight"), d, n, 1.0);
                tiny.matrix(file, &name("proj.weight"), n, d, 1.0);
                tiny.norm(file, &name("post_norm.weight"), d, 0.4);
            }
            tiny.norm(file, &name("layer_output_scale.weight"), 1, 0.8);
        }
    }

    fn write_experts(&self, tiny: &Tiny, file: &mut File, name: &dyn Fn(&str) -> String, n_expert: usize) {
        let (d, f) = (tiny.n_embd, tiny.n_ff);
        let std = |gain: f64, n_in: usize| gain / (n_in as f64).sqrt();
        for norm in ["post_ffw_norm_1", "pre_ffw_norm_2", "post_ffw_norm_2"] {
            tiny.norm(file, &name(&format!("{norm}.weight")), d, 1.0);
        }
        tiny.matrix(file, &name("ffn_gate_inp.weight"), d, n_expert, 2.0);
        // Divided by the square root of the width.
        tiny.norm(file, &name("ffn_gate_inp.scale"), d, (d as f32).sqrt());
        tiny.uniform(file, &name("ffn_gate_up_exps.weight"), &[d, 2 * f, n_expert], std(1.25, d));
        tiny.uniform(file, &name("ffn_down_exps.weight"), &[f, d, n_expert], std(1.0, f));
        tiny.norm(file, &name("ffn_down_exps.scale"), n_expert, 1.0);
    }
}
