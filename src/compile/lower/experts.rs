//! A mixture of experts: each row through its own few FFNs.

use super::Lowerer;
use crate::ggml::Tensor;
use crate::graph::ir::*;

impl<'a> Lowerer<'a, '_> {
    /// `-> [n_embd, n]`
    pub(super) fn experts(&self, node: &Node) -> Tensor<'a> {
        let Op::Experts { router, gate, up, down, n_expert, n_used, act, biases, scales } = node.op else {
            unreachable!("the caller has seen the node")
        };
        let x = self.rows(node.src[0]);
        let (n_embd, n) = (node.n_feat, x.ne(1));
        let routed = node.src.get(1).map_or(x, |routed| self.rows(*routed));
        let logits = self.ops.mul_mat(self.memory.weight(router), routed);
        let logits = biases.map_or(logits, |b| self.ops.add(logits, self.memory.weight(b.router)));
        let chosen = self.ops.top_of_rows(logits, n_used);
        // Over the chosen ones alone, which are in the same proportion as over all, and their sum is 1.
        let of_chosen = self.ops.get_rows(self.ops.reshape(logits, [1, n_expert, n]), chosen);
        let factors = self.ops.soft_max(self.ops.reshape(of_chosen, [n_used, n, 1]), None, 1.0, None);
        let factors = self.ops.reshape(factors, [1, n_used, n]);
        // Before the products: on GPUs these operations are one kernel if nothing stands between them.
        self.ops.expand(factors);
        let factors = scales.map_or(factors, |scales| {
            let of_each = self.ops.reshape(self.memory.weight(scales), [1, n_expert, 1]);
            let of_chosen = self.ops.get_rows(self.ops.repeat(of_each, [1, n_expert, n]), chosen);
            self.ops.mul(factors, of_chosen)
        });

        let x = self.ops.reshape(x, [n_embd, 1, n]);
        let product = |w: WeightId, bias: Option<WeightId>, x: Tensor<'a>| {
            let y = self.ops.mul_mat_id(self.memory.weight(w), x, chosen);
            bias.map_or(y, |bias| self.ops.add_id(y, self.memory.weight(bias), chosen))
        };
        let gated = product(gate, biases.map(|b| b.gate), x);
        let hidden = if gate == up {
            let n_ff = gated.ne(0) / 2; // of [2 n_ff, n_used, n]
            let half = |i: usize| {
                let ne = [n_ff, n_used, n];
                self.ops.view_3d(gated, ne, [gated.nb(1), gated.nb(2)], i * n_ff * gated.nb(0))
            };
            self.ops.glu(act, half(0), half(1))
        } else {
            self.ops.glu(act, gated, product(up, biases.map(|b| b.up), x))
        };
        let each = self.ops.mul(product(down, biases.map(|b| b.down), hidden), factors);
        let of = |i: usize| self.ops.view_2d(each, [n_embd, n], each.nb(2), i * each.nb(1));
        let all = (1..n_used).fold(of(0), |sum, i| self.ops.add(sum, of(i)));
        // Of one expert alone it would be a view.
        if n_used == 1 { self.ops.cont(all) } else { all }
    }
}
