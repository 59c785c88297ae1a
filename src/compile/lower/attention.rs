//! Attention: by the device's own kernel, or by ggml's in parts, each with its mask.

use super::masks::{are_all_positions, is_masked_by_buffer};
use super::{CacheMode, Form, InputKind, Lowerer, MASK_HEIGHT, key_rows};
use crate::ggml::Tensor;
use crate::ggml::block_lists::{BlockRule, MOST_KEYS};
use crate::ggml::cpu_attention::Visible;
use crate::ggml::ops::Precision;
use crate::gguf::GgmlType;
use crate::graph::ir::*;

/// The last queries of a prompt read all keys: what is asked is mostly there, and answers begin with them.
const WHOLE_QUERIES: usize = 256;

impl<'a> Lowerer<'a, '_> {
    pub(super) fn attention(
        &mut self,
        node: &Node,
        form: Form,
        layer: usize,
        heads: &Heads,
        window: Option<usize>,
        blocks: Option<BlockShare>,
    ) -> Tensor<'a> {
        let q = self.rows(node.src[0]);
        let n_keys = self.graph.node(node.src[1]).n_rows;
        let n_past = self.memory.n_past(layer);
        let first = n_past + n_keys - node.n_rows + self.tile.start;
        if form != Form::Ggml {
            return self.own_attention(node, layer, heads, window, blocks, q, first, form == Form::OursInBf16);
        }
        let height = match self.mode {
            CacheMode::Fixed => MASK_HEIGHT,
            CacheMode::Indexed => q.ne(1),
        };
        let n = q.ne(1);
        let mut parts = Vec::new();
        for start in (0..n).step_by(height) {
            let len = height.min(n - start);
            let part = if n == len { q } else { self.ops.rows(q, start, len) };
            parts.push((start, self.attention_part(node, layer, heads, window, part, first + start)));
        }
        if let [(_, only)] = parts[..] {
            return only;
        }
        // Parts are gathered in one matrix; the first one's memory is too small, so a copy it is.
        let whole = self.ops.input(GgmlType::F32, [node.n_feat, n]);
        for (start, part) in parts {
            let target = self.ops.rows(whole, start, part.ne(1));
            self.ops.expand(self.ops.copy(part, target));
        }
        whole
    }

    /// Attention of a whole tile, the first query of which has its own key in cache row `first`, without a mask.
    #[allow(clippy::too_many_arguments)]
    fn own_attention(
        &self,
        node: &Node,
        layer: usize,
        heads: &Heads,
        window: Option<usize>,
        blocks: Option<BlockShare>,
        q: Tensor<'a>,
        first: usize,
        bf16: bool,
    ) -> Tensor<'a> {
        let (d, n) = (heads.head_dim, q.ne(1));
        let per_head = |t: Tensor<'a>| {
            self.ops.view_3d(t, [d, first + n, heads.n_head_kv], [t.nb(1), t.nb(1) / heads.n_head_kv], 0)
        };
        let (k, v) = (per_head(self.memory.cache_k(layer)), per_head(self.memory.cache_v(layer)));
        let q = self.ops.permute(self.ops.reshape(q, [d, heads.n_head, n]), [0, 2, 1, 3]);
        let rule = blocks.filter(|_| first + n <= MOST_KEYS).map(|share| {
            let whole_from = (node.n_rows - WHOLE_QUERIES.min(node.n_rows)).saturating_sub(self.tile.start);
            BlockRule { first, scale: heads.scale, share, whole_from }
        });
        let lists = rule.map(|rule| self.ops.block_lists(self.memory.kernels(), [q, k], rule));
        let out = if self.memory.kernels().is_cpu() {
            // Positions matter to windows alone, and only behind a prune: there the cache was empty, and its rows are the node's.
            let pruned = window.is_some() && !are_all_positions(self.graph, node);
            let positions = pruned.then(|| self.memory.stored(node.src[4]));
            let sinks = heads.sinks.map(|sinks| self.memory.weight(sinks));
            self.ops.cpu_attention([q, k, v], Visible { first, window, positions, lists }, heads.scale, sinks)
        } else {
            self.ops.causal_attention([q, k, v], first, heads.scale, lists, bf16)
        };
        self.flat(out, d * heads.n_head)
    }

    /// Attention of some queries, the first of which has its own key in cache row `first`.
    fn attention_part(
        &mut self,
        node: &Node,
        layer: usize,
        heads: &Heads,
        window: Option<usize>,
        q: Tensor<'a>,
        first: usize,
    ) -> Tensor<'a> {
        let (d, n) = (heads.head_dim, q.ne(1));
        let (k, v) = (self.memory.cache_k(layer), self.memory.cache_v(layer));
        let read = key_rows(first, n, window, k.ne(1));
        let (from, n_kv) = (read.start, read.len());
        let per_head = |t: Tensor<'a>| {
            self.ops.view_3d(t, [d, n_kv, heads.n_head_kv], [t.nb(1), t.nb(1) / heads.n_head_kv], from * t.nb(1))
        };
        let (k, v) = (per_head(k), per_head(v));
        let mask = self.attention_mask(node, layer, window, first, from, n_kv, n);
        let q = self.ops.permute(self.ops.reshape(q, [d, heads.n_head, n]), [0, 2, 1, 3]);
        let sinks = heads.sinks.map(|sinks| self.memory.weight(sinks));
        let out = self.ops.flash_attn([q, k, v], mask, heads.scale, sinks);
        self.ops.accumulate_in(out, Precision::F32);
        self.flat(out, d * heads.n_head)
    }

    #[allow(clippy::too_many_arguments)]
    fn attention_mask(
        &mut self,
        node: &Node,
        layer: usize,
        window: Option<usize>,
        first: usize,
        from: usize,
        n_kv: usize,
        n: usize,
    ) -> Tensor<'a> {
        if let (CacheMode::Fixed, Some(window)) = (self.mode, window)
            && !are_all_positions(self.graph, node)
        {
            return self.window_mask(node, window, first, from, n_kv, n);
        }
        if self.mode == CacheMode::Fixed && is_masked_by_buffer(self.memory, self.graph, node, layer) {
            let buffer = self.memory.mask(window);
            let width = buffer.tensor.ne(0);
            let start = buffer.start(first - from).filter(|(_, column)| column + n_kv <= width);
            let (row, column) = start.expect("masks_needed counts every key of an attention");
            return self.ops.view_2d(buffer.tensor, [width, n], width * 2, (row * width + column) * 2);
        }
        let ahead = first - self.memory.n_past(layer);
        self.input(GgmlType::F16, [n_kv, n], InputKind::Mask { layer, ahead, from, window })
    }

    /// Mask of a sliding window over rows whose positions have gaps (behind a prune): made on the device from the positions.
    /// Only in a prefill that starts with an empty cache, where cache rows and rows are the same.
    fn window_mask(
        &mut self,
        node: &Node,
        window: usize,
        first: usize,
        from: usize,
        n_kv: usize,
        n: usize,
    ) -> Tensor<'a> {
        let n_keys = self.graph.node(node.src[4]).n_rows - from;
        let positions = |id: NodeId, start: usize, len: usize| {
            let all = self.memory.stored(id);
            let view = self.ops.view_2d(all, [len, 1], len * 4, start * 4);
            self.ops.cast(view, GgmlType::F32)
        };
        let n_real = n_keys.min(n_kv);
        let key = positions(node.src[4], from, n_real);
        let query = self.ops.reshape(positions(node.src[4], first, n), [1, n, 1]);
        // distance = pos_k - pos_q, visible in (-window, 0]
        let zero = self.ops.scale(self.ops.repeat(key, [n_real, n, 1]), 1.0);
        let distance = self.ops.sub(zero, query);
        let not_later = self.ops.step(self.ops.scale_bias(distance, -1.0, 0.5));
        let not_too_early = self.ops.step(self.ops.scale_bias(distance, 1.0, window as f32 - 0.5));
        let visible = self.ops.mul(not_later, not_too_early);
        // Rows behind the last key are padding: not visible.
        let padded = self.ops.pad(visible, n_kv - n_real);
        self.ops.cast(self.ops.log(padded), GgmlType::F16)
    }
}
