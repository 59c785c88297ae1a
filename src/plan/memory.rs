//! Memory of a prompt: caches, states, and what is held while it is read.

use crate::attributes::{CACHE_GROWTH, entries_that_stay};
use crate::method::Budgets;
use crate::model::shape::{LayerKind, Shape};

use super::{Memory, PlanOptions};

/// What a prompt of these budgets takes.
pub(super) fn memory(shape: &Shape, budgets: &Budgets, options: &PlanOptions) -> Memory {
    let n = budgets.n_tokens as f64;
    let entry = |l: usize| shape.n_embd_kv(l) as f64 * (options.k_bytes + options.v_bytes);
    let cached = |layers: usize| (0..layers).filter(|&l| shape.has_cache(l));
    let tile = options.n_ubatch.clamp(1, budgets.n_tokens) as f64;
    // What layers with a window keep of a prompt of several tiles; they read it in turns, in memory that they share.
    let kept = |l: usize, rows: f64| match shape.window(l).map(|window| (window + CACHE_GROWTH) as f64) {
        Some(enough) if shape.layer_kind(l) == LayerKind::Windowed && rows > enough.max(tile) => Some(enough),
        _ => None,
    };
    let kv = |rows: &dyn Fn(usize) -> f64| {
        let own = cached(shape.n_layer).map(|l| kept(l, rows(l)).unwrap_or(rows(l)) * entry(l)).sum::<f64>();
        let in_turns = cached(shape.n_layer).filter(|&l| kept(l, rows(l)).is_some());
        own + in_turns.map(|l| rows(l) * entry(l)).fold(0., f64::max)
    };
    let largest = |of: &dyn Fn(usize) -> usize| (0..shape.n_layer).map(of).max().unwrap_or(0) as f64;
    let (n_ff, head_dim) = (largest(&|l| shape.sizes(l).n_ff), largest(&|l| shape.sizes(l).head_dim));
    // States of the first layers, F32.
    let states = |layers: usize| {
        (0..layers).filter_map(|l| shape.recurrence(l)).map(|heads| 4. * heads.n_state() as f64).sum::<f64>()
    };
    // Values are F32 in scratch: the FFN's activations or attention's, whichever is wider, of one tile.
    let ffn = 3. * n_ff + 2. * shape.n_embd as f64;
    let attention = 3. * shape.n_head as f64 * head_dim + 2. * shape.n_embd as f64;
    // Channels before and behind the convolution; the gate, the result and its norm.
    let recurrence = shape.recurrent.as_ref().map_or(0, |r| 3 * (r.heads.n_channels() + r.heads.n_values())) as f64;
    // The mask is one F16 buffer for all tiles: a row per token of a tile, as long as the prompt and a tile.
    let mask = 2. * tile * (n + tile);
    // Keys of all candidates and the scores exist only where a layer probes.
    let probing = budgets.layers.iter().filter(|l| l.probe).map(|l| l.candidates).max().unwrap_or(0) as f64;
    let probe =
        probing * (largest(&|l| shape.n_embd_kv(l)) * 4. + (budgets.queries as f64 * shape.n_head as f64 + 4.) * 4.);
    Memory {
        weights: shape.weight_bytes.map_or(shape.n_params() * 4.5 / 8., |b| b as f64),
        kv: kv(&|l| budgets.layers[l].active_attn as f64),
        kv_dense: kv(&|_| n),
        states: 2. * states(shape.n_layer),
        hidden: n * shape.n_embd as f64 * 4.,
        cpu_experts: options.cpu_experts,
        scratch: 4. * tile * ffn.max(attention).max(recurrence) + mask + probe + 4. * shape.n_vocab as f64,
        document: match budgets.dense_layers() {
            0 => 0.,
            l => {
                let residual = if l == shape.n_layer { 0. } else { 4. * shape.n_embd as f64 };
                let entries = |l: usize| entries_that_stay(shape.window(l), budgets.n_tokens) as f64;
                n * residual + cached(l).map(|l| entries(l) * entry(l)).sum::<f64>() + states(l)
            }
        },
    }
}
