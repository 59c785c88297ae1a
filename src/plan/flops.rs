//! Operations of a prompt, dense and skipping.

use crate::method::Budgets;
use crate::method::spts::schedule::{ProxySize, Schedule, Selection};
use crate::model::shape::Shape;

use super::Flops;

/// Tokens that a layer computes of `n` that enter it: the last one alone where later layers do not need the others' keys.
fn computed(shape: &Shape, layer: usize, n: usize) -> usize {
    if layer < shape.n_layer_kv() { n } else { n.min(1) }
}

/// Operations by which n tokens of a layer see each other: attention over the last `n` of `n`, or a recurrence over them.
pub(super) fn mixing_flops(shape: &Shape, layer: usize, n: usize) -> f64 {
    let last = computed(shape, layer, n) < n;
    let n = n as f64;
    if let Some(heads) = shape.recurrence(layer) {
        let (states, conv) = (heads.head_dim * heads.n_values(), heads.d_conv * heads.n_channels());
        return n * (6. * states as f64 + 2. * conv as f64);
    }
    let twice_pairs = match &shape.swa {
        _ if last => 2. * n.min(shape.window(layer).map_or(n, |window| window as f64)),
        Some(swa) if shape.is_swa(layer) && n > swa.window as f64 => {
            2. * n * swa.window as f64 - (swa.window as f64).powi(2)
        }
        _ => n * n,
    };
    twice_pairs * 2. * shape.sizes(layer).head_dim as f64 * shape.n_head as f64
}

pub(super) fn dense_flops(shape: &Shape, n_tokens: usize) -> Flops {
    let of_layer = |l: usize| {
        computed(shape, l, n_tokens) as f64 * (shape.w_mixing(l) + shape.w_ffn(l) + shape.w_per_layer())
    };
    Flops {
        linear: 2. * (0..shape.n_layer).map(of_layer).sum::<f64>(),
        attention: (0..shape.n_layer).map(|l| mixing_flops(shape, l, n_tokens)).sum(),
        probes: 0.,
    }
}

pub(super) fn spts_flops(shape: &Shape, schedule: Option<&Schedule>, budgets: &Budgets) -> Flops {
    let by_chance = schedule.is_some_and(|s| s.selection != Selection::Probe);
    let proxy = schedule.map_or(ProxySize { d_low: 0, rank: 0 }, |s| s.proxy);
    let mut sum = Flops::default();
    for (layer, l) in budgets.layers.iter().enumerate() {
        let [n, a, b] = [l.candidates, l.active_attn, l.active_ffn].map(|x| computed(shape, layer, x) as f64);
        let mixing = match shape.recurrence(layer) {
            Some(heads) => n * shape.w_delta(&heads),
            None => n * shape.w_k(layer) + a * (shape.w_q(layer) + shape.w_v(layer) + shape.w_o(layer)),
        };
        sum.linear += 2. * (mixing + b * shape.w_ffn(layer) + n * shape.w_per_layer());
        sum.attention += mixing_flops(shape, layer, l.active_attn);
        if l.probe && !by_chance {
            let q = budgets.queries as f64;
            let head_dim = shape.sizes(layer).head_dim;
            sum.probes += 2. * q * (shape.w_q(layer) + n * (head_dim as f64 * shape.n_head as f64));
        }
        if l.proxy {
            let (r, d_low) = (proxy.rank as f64, proxy.d_low as f64);
            sum.probes += 2. * n * (2. * (shape.n_embd as f64 * r + r * d_low) + d_low * r);
        }
    }
    sum
}
