//! What a prefill did, and which tokens each layer worked on.

use std::collections::HashMap;

use crate::graph::ir::{Graph, NodeId};
use crate::method::LayerBudget;

/// Says what a prefill did.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct PrefillReport {
    /// Tokens of the prompt.
    pub n_tokens: usize,
    /// Its first tokens that were not read anew, since an earlier prompt began with them ([`crate::Session::read`]).
    pub n_reused: usize,
    /// Wall time in seconds, from the call to the logits.
    pub seconds: f64,
    /// Budgets of every layer; empty if the prefill was dense.
    pub layers: Vec<LayerBudget>,
    /// Entries in the KV caches over those of a dense prefill.
    pub cache_kept: f64,
    /// Bytes of hidden states and other values between phases.
    pub slot_bytes: usize,
    /// Bytes of scratch, over all devices.
    pub scratch_bytes: usize,
    /// Nodes of the executed graph.
    pub n_nodes: usize,
    /// Rows computed at a time, at most.
    pub tile: usize,
    /// Layers whose attention read a part of the keys ([`crate::BlockSparse`]).
    pub sparse_layers: usize,
    /// Candidates and active tokens by layer, if they were asked for.
    pub selection: Vec<LayerSelection>,
}

/// Which tokens a layer worked on, as positions in the prompt.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct LayerSelection {
    /// Layer.
    pub il: usize,
    /// Tokens still in the network.
    pub candidates: Vec<i32>,
    /// Active in attention (all candidates where nothing is skipped).
    pub active_attn: Vec<i32>,
    /// Active in the FFN. Where a stage ends, those of them that it prunes are not computed.
    pub active_ffn: Vec<i32>,
}

/// Turns the indices selected by each node into positions, layer by layer from the graph's first.
pub(super) fn selections(graph: &Graph, selected: &HashMap<NodeId, Vec<i32>>, first: usize) -> Vec<LayerSelection> {
    let mut candidates: Vec<i32> = (0..graph.n_tokens).map(|i| (first + i) as i32).collect();
    let mut all = Vec::with_capacity(graph.layers.len());
    for (il, a) in (graph.first_layer..).zip(&graph.layers) {
        let of = |node: Option<NodeId>| match node.and_then(|n| selected.get(&n)) {
            Some(indices) => indices.iter().map(|&i| candidates[i as usize]).collect(),
            None => candidates.clone(),
        };
        all.push(LayerSelection {
            il,
            active_attn: of(a.active_attn),
            active_ffn: of(a.active_ffn),
            candidates: candidates.clone(),
        });
        candidates = of(a.kept);
    }
    all
}

/// The selections of a program that begins at layer `dense`, behind those of the layers before, which work on all `n` tokens.
pub(super) fn whole_selection(dense: usize, n: usize, behind: Vec<LayerSelection>) -> Vec<LayerSelection> {
    let all: Vec<i32> = (0..n as i32).collect();
    let before = (0..dense).map(|il| LayerSelection {
        il,
        candidates: all.clone(),
        active_attn: all.clone(),
        active_ffn: all.clone(),
    });
    before.chain(behind).collect()
}
