//! What tiles read and write between them, as whoever holds it shows it to the compiler.

use super::mask_buffer::MaskBuffer;
use crate::ggml::Tensor;
use crate::ggml::kernels::Kernels;
use crate::graph::ir::*;

/// What persists between tiles: weights, caches, slots, masks.
pub trait Memory {
    /// The tensor of a weight.
    fn weight(&self, id: WeightId) -> Tensor<'_>;
    /// A weight, as products of so many rows want it.
    fn matrix(&self, id: WeightId, rows: usize) -> Tensor<'_>;
    /// A stored value `[n_feat, n_rows]`.
    fn stored(&self, id: NodeId) -> Tensor<'_>;
    /// Keys of a layer `[n_head_kv * head_dim, capacity]`.
    fn cache_k(&self, layer: usize) -> Tensor<'_>;
    /// Values of a layer, likewise.
    fn cache_v(&self, layer: usize) -> Tensor<'_>;
    /// What a recurrent layer remembers. `is_under_way`: by a tile before of the same call, rather than by earlier calls.
    fn recurrent(&self, layer: usize, is_under_way: bool) -> RecurrentTensors<'_>;
    /// Rows in the layer's cache before this call.
    fn n_past(&self, layer: usize) -> usize;
    /// Whether the positions of these rows have gaps (tokens were pruned), so that a window is not a run of rows.
    fn has_gaps(&self, layer: usize) -> bool;
    /// Mask of full causal attention, or of the sliding window.
    fn mask(&self, window: Option<usize>) -> MaskBuffer<'_>;
    /// Low-rank proxy of a layer's FFN.
    fn proxy(&self, layer: usize) -> ProxyTensors<'_>;
    /// What the device's kernels take.
    fn kernels(&self) -> Kernels;
}

/// Low-rank proxy of one FFN, as ggml products see it.
#[derive(Clone, Copy)]
pub struct ProxyTensors<'a> {
    /// `[n_embd, 2 rank]`: U_gate beside U_up.
    pub u_gu: Tensor<'a>,
    /// `[rank, 2 d_low]`: V_gate, then V_up.
    pub v_gu: Tensor<'a>,
    /// `[d_low, rank]`
    pub v_down: Tensor<'a>,
}

/// Memory of a gated delta net, as a tile finds it and as it leaves it: these may be the same.
#[derive(Clone, Copy)]
pub struct RecurrentTensors<'a> {
    /// Channels of the last rows before the tile `[d_conv - 1, n_channels]`.
    pub conv_before: Tensor<'a>,
    /// Those of the tile's last rows, likewise.
    pub conv_after: Tensor<'a>,
    /// A matrix for each value head `[head_dim, head_dim, n_head_v]`.
    pub matrices_before: Tensor<'a>,
    /// Likewise, behind the tile.
    pub matrices_after: Tensor<'a>,
}

impl dyn Memory + '_ {
    /// Whether the device's own kernel computes a layer's attention of so many queries, without a mask.
    pub(super) fn takes_attention(&self, layer: usize, n_q: usize, heads: &Heads, window: Option<usize>) -> bool {
        match window {
            None => {
                let kv = [self.cache_k(layer), self.cache_v(layer)].map(|t| t.ty());
                self.kernels().causal_attention(n_q, heads, kv)
            }
            // Where rows are no run of positions, those of the rows that were there before are not at hand.
            Some(_) => self.kernels().windowed_attention(heads) && !self.has_gaps(layer),
        }
    }
}

/// How the tile addresses the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheMode {
    /// At offsets known when the graph is built; masks are views of the shared buffers. For prefill.
    Fixed,
    /// Through host inputs, so that the next token's graph has the same topology. For decode.
    Indexed,
}
