//! The parts of SPTS that the forward pass is made of: budgets, scores, selection, proxies.

use super::model::{Gelu, Matrix, Model, dot};

/// What one layer may compute. Counts of tokens; at or above the number of candidates they mean all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerBudget {
    /// Candidates that enter the layer (checked).
    pub candidates: usize,
    pub active_attn: usize,
    pub active_ffn: usize,
    /// Candidates left after the layer, where a stage ends here.
    pub prune_to: Option<usize>,
}

impl LayerBudget {
    /// A layer that computes everything.
    pub fn dense(candidates: usize) -> Self {
        LayerBudget { candidates, active_attn: candidates, active_ffn: candidates, prune_to: None }
    }
}

/// Pooling of the probe scores over neighbouring candidates: `width` of them, odd, centred; fewer at the ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pool {
    None,
    Avg(usize),
    Max(usize),
}

/// Low-rank proxy of one FFN. Matrices in ggml order `[n_in, n_out]`.
#[derive(Clone, Debug)]
pub struct Proxy {
    /// `[n_embd, 2 r]`: U_g, then U_u.
    pub u_gu: Matrix,
    /// `[r, D_low]`
    pub v_gate: Matrix,
    /// `[r, D_low]`
    pub v_up: Matrix,
    /// `[D_low, r]`: V_d, with the singular values; U_d is orthonormal and leaves the norm alone.
    pub v_down: Matrix,
}

impl Proxy {
    /// `C = || V_d (act(V_g U_g x) * (V_u U_u x)) ||` of a normalised FFN input.
    pub fn norm(&self, model: &Model, x: &[f32]) -> f32 {
        let low = self.u_gu.times(x);
        let (low_gate, low_up) = low.split_at(self.v_gate.n_in);
        let gate = self.v_gate.times(low_gate);
        let up = self.v_up.times(low_up);
        let z: Vec<f32> = gate.iter().zip(&up).map(|(g, u)| model.activate(*g) * u).collect();
        let y = self.v_down.times(&z);
        dot(&y, &y).sqrt() as f32
    }
}

/// A whole prefill's budgets and how tokens are scored.
#[derive(Clone, Debug)]
pub struct SptsPlan {
    /// One for every layer.
    pub layers: Vec<LayerBudget>,
    /// Probing queries: the last tokens, always active, never pruned.
    pub probe_queries: usize,
    pub pool: Pool,
    /// One for every layer whose FFN skips. Without any, S alone scores the FFN.
    pub proxies: Option<Vec<Option<Proxy>>>,
}

impl Model {
    /// The gate's activation.
    pub fn activate(&self, x: f32) -> f32 {
        if !self.gelu_gate {
            return (f64::from(x) / (1.0 + f64::from(-x).exp())) as f32;
        }
        match self.gelu {
            Gelu::Exact => gelu(x),
            Gelu::F16Table if x <= -10.0 => 0.0,
            Gelu::F16Table if x >= 10.0 => x,
            Gelu::F16Table => half::f16::from_f32(gelu(half::f16::from_f32(x).to_f32())).to_f32(),
        }
    }
}

fn gelu(x: f32) -> f32 {
    let x = f64::from(x);
    let inner = (2.0 / std::f64::consts::PI).sqrt() * x * (1.0 + 0.044715 * x * x);
    (0.5 * x * (1.0 + inner.tanh())) as f32
}

/// Pools scores over neighbours in order; an average counts only the neighbours that exist.
pub fn pool_scores(scores: &[f32], pool: Pool) -> Vec<f32> {
    let (Pool::Avg(width) | Pool::Max(width)) = pool else {
        return scores.to_vec();
    };
    assert!(width % 2 == 1, "pool width {width} has no centre");
    let reach = width / 2;
    let range = |i: usize| &scores[i.saturating_sub(reach)..(i + reach + 1).min(scores.len())];
    (0..scores.len())
        .map(|i| match pool {
            Pool::Max(_) => range(i).iter().copied().fold(f32::NEG_INFINITY, f32::max),
            _ => (range(i).iter().map(|s| f64::from(*s)).sum::<f64>() / range(i).len() as f64) as f32,
        })
        .collect()
}

/// Indices of the `m` best scores, ascending. The last `forced` are always among them; the lower index wins ties.
pub fn top(scores: &[f32], m: usize, forced: usize) -> Vec<usize> {
    let n = scores.len();
    let m = m.min(n);
    let forced = forced.min(m);
    let mut rest: Vec<usize> = (0..n - forced).collect();
    rest.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
    rest.truncate(m - forced);
    rest.extend(n - forced..n);
    rest.sort_unstable();
    rest
}
