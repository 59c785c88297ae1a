//! A mixture of experts: each row through its own few FFNs.

use super::Lowerer;
use crate::ggml::Tensor;
use crate::graph::ir::*;

/// A sum of factors is not divided by less: the smallest number that F16 holds in full, as in llama.cpp.
const SMALLEST_SUM: f32 = 6.103_515_6e-5;

impl<'a> Lowerer<'a, '_> {
    /// `-> [n_embd, n]`
    pub(super) fn experts(&self, node: &Node) -> Tensor<'a> {
        let Op::Experts { router, gate, up, down, n_expert, n_used, act } = node.op else {
            unreachable!("the caller has seen the node")
        };
        let x = self.rows(node.src[0]);
        let (n_embd, n) = (node.n_feat, x.ne(1));
        let shares = self.ops.soft_max(self.ops.mul_mat(self.memory.weight(router), x), None, 1.0);
        let chosen = self.ops.top_of_rows(shares, n_used);
        let factors = self.ops.get_rows(self.ops.reshape(shares, [1, n_expert, n]), chosen);
        let factors = self.ops.reshape(factors, [n_used, n, 1]);
        let sum = self.ops.at_least(self.ops.sum_rows(factors), SMALLEST_SUM);
        let factors = self.ops.reshape(self.ops.div(factors, sum), [1, n_used, n]);

        let x = self.ops.reshape(x, [n_embd, 1, n]);
        let product = |w: WeightId, x: Tensor<'a>| self.ops.mul_mat_id(self.memory.weight(w), x, chosen);
        let hidden = if gate == up {
            let both = product(gate, x); // [2 n_ff, n_used, n]
            let n_ff = both.ne(0) / 2;
            let half = |i: usize| {
                let ne = [n_ff, n_used, n];
                self.ops.view_3d(both, ne, [both.nb(1), both.nb(2)], i * n_ff * both.nb(0))
            };
            self.ops.glu(act, half(0), half(1))
        } else {
            self.ops.glu(act, product(gate, x), product(up, x))
        };
        let each = self.ops.mul(product(down, hidden), factors);
        let of = |i: usize| self.ops.view_2d(each, [n_embd, n], each.nb(2), i * each.nb(1));
        let all = (1..n_used).fold(of(0), |sum, i| self.ops.add(sum, of(i)));
        // Of one expert alone it would be a view.
        if n_used == 1 { self.ops.cont(all) } else { all }
    }
}
