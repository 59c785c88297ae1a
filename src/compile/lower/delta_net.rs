//! A gated delta net: a tile's rows in their order, behind what the layer remembers of those before.

use super::Lowerer;
use crate::ggml::Tensor;
use crate::graph::ir::*;

impl<'a> Lowerer<'a, '_> {
    /// `-> [n_head_v * head_dim, n]`
    pub(super) fn delta_net(&self, node: &Node) -> Tensor<'a> {
        let Op::DeltaNet { layer, heads, conv, dt, a, eps } = node.op else {
            unreachable!("the caller has seen the node")
        };
        let DeltaHeads { n_head_k, n_head_v, grouped, head_dim: d, d_conv } = heads;
        let (qkv, n) = (self.rows(node.src[0]), self.tile.len());
        let beta = self.ops.reshape(self.ops.sigmoid(self.rows(node.src[1])), [1, n_head_v, n]);
        let alpha = self.ops.add(self.rows(node.src[2]), self.memory.weight(dt));
        let decay = self.ops.mul(self.ops.softplus(alpha), self.memory.weight(a));
        let decay = self.ops.reshape(decay, [1, n_head_v, n]);

        // The first tile begins with what earlier calls left, later ones with what the tile before did.
        let state = self.memory.recurrent(layer, self.tile.start > 0);
        let channels = self.ops.concat(state.conv_before, self.ops.transpose(qkv)); // [d_conv - 1 + n, n_channels]
        let last = self.ops.view_2d(channels, [d_conv - 1, heads.n_channels()], channels.nb(1), n * channels.nb(0));
        self.ops.expand(self.ops.copy(last, state.conv_after));
        let mixed = self.ops.silu(self.ops.ssm_conv(channels, self.memory.weight(conv))); // [n_channels, n]
        let part = |first: usize, n_head: usize| {
            let head = d * mixed.nb(0);
            self.ops.view_3d(mixed, [d, n_head, n], [head, mixed.nb(1)], first * head)
        };
        // Brought to length 1: divided by the root mean square, which is the length over sqrt(d).
        let of_length_1 = |x: Tensor<'a>| {
            self.ops.scale(self.ops.rms_norm(x, eps / d as f32), 1.0 / (d as f32).sqrt())
        };
        let (mut q, mut k) = (of_length_1(part(0, n_head_k)), of_length_1(part(n_head_k, n_head_k)));
        if grouped && n_head_k < n_head_v {
            // ggml's operation takes heads in turn: each is there for all of its group.
            let for_group = |x: Tensor<'a>| {
                let heads = self.ops.reshape(x, [d, 1, n_head_k * n]);
                let repeated = self.ops.repeat(heads, [d, n_head_v / n_head_k, n_head_k * n]);
                self.ops.reshape(repeated, [d, n_head_v, n])
            };
            (q, k) = (for_group(q), for_group(k));
        }
        let v = part(2 * n_head_k, n_head_v);
        let result = self.ops.gated_delta_net([q, k, v, decay, beta, state.matrices_before]);
        let left = self.ops.rows(result, n, d);
        // In one row, behind the operation at once: so ggml's CUDA kernel writes the state there by itself.
        let size = state.matrices_after.n_elements();
        let after = self.ops.view_2d(state.matrices_after, [size, 1], size * result.nb(0), 0);
        self.ops.expand(self.ops.copy(left, after));
        self.ops.rows(result, 0, n)
    }

    /// Some features of each group. `-> [len * groups, n]`
    pub(super) fn features(&self, node: &Node, group: usize, start: usize, len: usize) -> Tensor<'a> {
        let x = self.rows(node.src[0]);
        let (n_groups, size) = (x.ne(0) / group, x.nb(0));
        let part = self.ops.view_3d(x, [len, n_groups, x.ne(1)], [group * size, x.nb(1)], start * size);
        self.flat(self.ops.cont(part), len * n_groups)
    }
}
