//! A gated delta net (arXiv 2412.06464) in plain loops, as Qwen 3.5 has it: one token after the other.

use super::model::{Linear, Matrix, dot, sigmoid, silu};

/// Weights of one recurrent layer.
#[derive(Clone, Debug)]
pub struct DeltaNet {
    /// To queries, keys and values, head by head.
    pub qkv: Linear,
    /// To what gates the result.
    pub z: Linear,
    pub beta: Linear,
    pub alpha: Linear,
    /// One row a channel, `d_conv` values each: the last one is the token's own.
    pub conv: Matrix,
    pub dt: Vec<f32>,
    pub a: Vec<f32>,
    pub norm: Vec<f32>,
    pub out: Linear,
    pub n_head_k: usize,
    pub n_head_v: usize,
    /// Value heads of a key head are neighbours, and else go round.
    pub grouped: bool,
    pub head_dim: usize,
}

/// What stays of the tokens before.
#[derive(Clone, Debug, Default)]
pub struct DeltaState {
    /// Channels of the last tokens, the oldest first.
    channels: Vec<Vec<f32>>,
    /// For each value head S, `head_dim` rows of values by `head_dim` keys.
    s: Vec<Vec<Vec<f64>>>,
}

fn softplus(x: f32) -> f32 {
    f64::from(x).exp().ln_1p() as f32
}

/// x over its length.
fn unit(x: &[f32], eps: f32) -> Vec<f32> {
    let length = (dot(x, x) + f64::from(eps)).sqrt();
    x.iter().map(|x| (f64::from(*x) / length) as f32).collect()
}

impl DeltaNet {
    /// What the layer adds for one more token, of which x is the normalised stream.
    pub fn step(&self, state: &mut DeltaState, x: &[f32], eps: f32) -> Vec<f32> {
        let (d, d_conv) = (self.head_dim, self.conv.n_in);
        if state.s.is_empty() {
            state.channels = vec![vec![0.0; self.conv.n_out]; d_conv - 1];
            state.s = vec![vec![vec![0.0; d]; d]; self.n_head_v];
        }
        state.channels.push(self.qkv.times(x));
        let mixed: Vec<f32> = (0..self.conv.n_out)
            .map(|c| {
                let window: Vec<f32> = state.channels.iter().map(|row| row[c]).collect();
                silu(dot(self.conv.row(c), &window) as f32)
            })
            .collect();
        state.channels.remove(0);

        let (beta, alpha, z) = (self.beta.times(x), self.alpha.times(x), self.z.times(x));
        let head = |first: usize, i: usize| &mixed[(first + i) * d..(first + i + 1) * d];
        let mut result = Vec::with_capacity(self.n_head_v * d);
        for h in 0..self.n_head_v {
            let key_head = if self.grouped { h / (self.n_head_v / self.n_head_k) } else { h % self.n_head_k };
            let (q, k) = (unit(head(0, key_head), eps), unit(head(self.n_head_k, key_head), eps));
            let v = head(2 * self.n_head_k, h);
            let decay = f64::from(self.a[h] * softplus(alpha[h] + self.dt[h])).exp();
            let mut out = Vec::with_capacity(d);
            for (row, v) in state.s[h].iter_mut().zip(v) {
                row.iter_mut().for_each(|s| *s *= decay);
                let found: f64 = row.iter().zip(&k).map(|(s, k)| s * f64::from(*k)).sum();
                let change = (f64::from(*v) - found) * f64::from(sigmoid(beta[h]));
                row.iter_mut().zip(&k).for_each(|(s, k)| *s += change * f64::from(*k));
                let y: f64 = row.iter().zip(&q).map(|(s, q)| s * f64::from(*q)).sum();
                out.push((y / (d as f64).sqrt()) as f32);
            }
            let size = 1.0 / (dot(&out, &out) / d as f64 + f64::from(eps)).sqrt();
            let normed = out.iter().zip(&self.norm).map(|(y, w)| (f64::from(*y) * size) as f32 * w);
            result.extend(normed.zip(&z[h * d..(h + 1) * d]).map(|(y, z)| y * silu(*z)));
        }
        self.out.times(&result)
    }
}
