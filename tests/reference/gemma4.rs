//! What Gemma 4 alone has: features of every token for each layer, an FFN beside the experts, keys that layers share.

use super::model::{Linear, Matrix, Reader, dot};
use crate::support::gguf::Value;

/// A layer's features of every token, and how they join the residual stream.
#[derive(Clone, Debug)]
pub struct Features {
    /// `[n, n_vocab]`
    pub rows: Matrix,
    /// Makes as many of the embedding.
    pub from_embd: Linear,
    pub norm: Vec<f32>,
    pub gate: Linear,
    pub back: Linear,
    pub post_norm: Vec<f32>,
}

/// An FFN for all tokens beside experts, with the norms of both and of the router.
#[derive(Clone, Debug)]
pub struct Beside {
    pub ffn: (Linear, Linear, Linear),
    pub post_norm: Vec<f32>,
    pub experts_norm: Vec<f32>,
    pub experts_post_norm: Vec<f32>,
    pub router_norm: Vec<f32>,
}

/// x / rms(x)
pub fn unit(x: &[f32], eps: f32) -> Vec<f32> {
    let scale = 1.0 / (dot(x, x) / x.len() as f64 + f64::from(eps)).sqrt();
    x.iter().map(|x| (f64::from(*x) * scale) as f32).collect()
}

impl Features {
    /// Those of a token, of which `embd` is the scaled embedding.
    pub fn of_token(&self, token: u32, embd: &[f32], eps: f32) -> Vec<f32> {
        let (n, n_embd) = (self.rows.n_in as f32, embd.len() as f32);
        let made: Vec<f32> = self.from_embd.times(embd).iter().map(|x| x / n_embd.sqrt()).collect();
        let made = unit(&made, eps);
        let row = self.rows.row(token as usize);
        (0..row.len()).map(|i| (made[i] * self.norm[i] + row[i] * n.sqrt()) / 2f32.sqrt()).collect()
    }
}

impl Reader<'_> {
    /// Entry of a list that has one for each layer.
    pub(super) fn at(&self, key: &str, il: usize) -> usize {
        match self.file.get(&format!("{}.{key}", self.arch)) {
            Some(Value::Array(_, items)) => match items[il] {
                Value::I32(n) => n as usize,
                Value::U32(n) => n as usize,
                ref other => panic!("{key}: {other:?}"),
            },
            _ => self.uint(key).unwrap_or_else(|| panic!("{key} is missing")),
        }
    }

    /// The layer whose keys a layer reads: the last of its kind that has any.
    pub(super) fn cache(&self, il: usize) -> usize {
        let n_own = self.n_layer - self.uint("attention.shared_kv_layers").unwrap_or(0);
        match (il < n_own, self.window(il)) {
            (true, _) => il,
            (false, Some(_)) => n_own - 2,
            (false, None) => n_own - 1,
        }
    }

    /// Values without a matrix are made by that of the keys. A layer that reads another's has neither.
    pub(super) fn qkv_of_gemma4(&self, name: &dyn Fn(&str) -> String) -> (Linear, Linear, Linear) {
        let has = |part: &str| self.file.tensor(&name(&format!("{part}.weight"))).is_some();
        let none = || Linear { weight: Matrix::none(), bias: None };
        let k = if has("attn_k") { self.linear(&name("attn_k")) } else { none() };
        let v = if has("attn_v") { self.linear(&name("attn_v")) } else { k.clone() };
        (self.linear(&name("attn_q")), k, v)
    }

    pub(super) fn features(&self, il: usize) -> Option<Features> {
        let n = self.uint("embedding_length_per_layer_input").filter(|n| *n > 0)?;
        let name = |part: &str| format!("blk.{il}.{part}");
        let all = self.matrix("per_layer_token_embd.weight").expect("per_layer_token_embd.weight");
        let data = (0..all.n_out).flat_map(|token| all.row(token)[il * n..(il + 1) * n].to_vec()).collect();
        let from_embd = self.linear("per_layer_model_proj").weight.rows(il * n, n);
        Some(Features {
            rows: Matrix { n_in: n, n_out: all.n_out, data },
            from_embd: Linear { weight: from_embd, bias: None },
            norm: self.need("per_layer_proj_norm.weight"),
            gate: self.linear(&name("inp_gate")),
            back: self.linear(&name("proj")),
            post_norm: self.need(&name("post_norm.weight")),
        })
    }

    pub(super) fn beside(&self, name: &dyn Fn(&str) -> String) -> Option<Beside> {
        let router_norm = self.vector(&name("ffn_gate_inp.scale"))?;
        Some(Beside {
            ffn: (self.linear(&name("ffn_gate")), self.linear(&name("ffn_up")), self.linear(&name("ffn_down"))),
            post_norm: self.need(&name("post_ffw_norm_1.weight")),
            experts_norm: self.need(&name("pre_ffw_norm_2.weight")),
            experts_post_norm: self.need(&name("post_ffw_norm_2.weight")),
            router_norm,
        })
    }
}
