//! Scores of candidates: by probing queries, pooled, and the norms of the FFNs' proxies.

use super::masks::{probe_chunk, probed_keys};
use super::{Form, Lowerer};
use crate::compile::mask_buffer::MaskBuffer;
use crate::compile::memory::ProxyTensors;
use crate::ggml::Tensor;
use crate::ggml::ops::Precision;
use crate::graph::ir::*;

impl<'a> Lowerer<'a, '_> {
    /// Keys of all candidates `[n_head_kv * head_dim, n]`.
    pub(super) fn probed_keys(&self, node: &Node) -> Tensor<'a> {
        let all = probed_keys(self.memory, self.program, node);
        self.ops.rows(all, 0, self.graph.node(node.src[1]).n_rows)
    }

    /// Equation 4, a chunk of probing queries at a time. `-> [1, n]`
    pub(super) fn probe_scores(&mut self, node: &Node, k: Tensor<'a>, heads: &Heads, join: Join) -> Tensor<'a> {
        let (n, n_probe, d) = (k.ne(1), self.graph.node(node.src[0]).n_rows, heads.head_dim);
        let k = self.ops.view_3d(k, [d, n, heads.n_head_kv], [k.nb(1), k.nb(1) / heads.n_head_kv], 0);
        let q = self.memory.stored(node.src[0]);
        let chunk = probe_chunk(n, n_probe, heads.n_head);
        let mut total: Option<Tensor<'a>> = None;
        for start in (0..n_probe).step_by(chunk) {
            let len = chunk.min(n_probe - start);
            let part = self.ops.reshape(self.ops.rows(q, start, len), [d, heads.n_head, len]);
            let part = self.ops.cont(self.ops.permute(part, [0, 2, 1, 3]));
            let logits = self.ops.mul_mat(k, part);
            self.ops.accumulate_in(logits, Precision::F32);
            let mask =
                (n_probe > 1).then(|| self.ops.cont(self.mask_of(self.memory.mask(None), n - n_probe + start, n, len)));
            let sinks = heads.sinks.map(|sinks| self.memory.weight(sinks));
            let weights = self.ops.soft_max(logits, mask, heads.scale, sinks);
            let scores = match join {
                Join::Mean => {
                    let flat = self.ops.reshape(weights, [n, len * heads.n_head, 1]);
                    self.ops.sum_rows(self.ops.cont(self.ops.permute(flat, [1, 0, 2, 3])))
                }
                Join::Max => self.best_of_queries(weights),
            };
            total = Some(match (total, join) {
                (None, _) => scores,
                (Some(t), Join::Mean) => self.ops.add(t, scores),
                (Some(t), Join::Max) => self.ops.max_of_chunks(self.ops.concat(t, scores), 2),
            });
        }
        let total = total.expect("at least one probing query");
        let terms = match join {
            Join::Mean => n_probe * heads.n_head,
            Join::Max => heads.n_head,
        };
        self.ops.scale(total, 1.0 / terms as f32)
    }

    /// Of attention weights `[n, len, n_head]`: the largest sum over heads that one of the `len` queries gives each candidate.
    /// `-> [1, n]`
    fn best_of_queries(&self, weights: Tensor<'a>) -> Tensor<'a> {
        let (n, len) = (weights.ne(0), weights.ne(1));
        let by_head = self.ops.cont(self.ops.permute(weights, [1, 2, 0, 3]));
        let sums = self.ops.reshape(self.ops.sum_rows(by_head), [n, len, 1]);
        let by_query = self.ops.cont(self.ops.permute(sums, [1, 0, 2, 3]));
        self.ops.max_of_chunks(by_query, len)
    }

    /// A mask `[n, n_q]` over all candidates, for probing queries the first of which is candidate `own` itself.
    fn mask_of(&self, mask: MaskBuffer<'a>, own: usize, n: usize, n_q: usize) -> Tensor<'a> {
        let width = mask.tensor.ne(0);
        let column = mask.corner.checked_sub(own).filter(|column| column + n <= width);
        let column = column.expect("masks_needed counts every candidate of a probe");
        self.ops.view_2d(mask.tensor, [n, n_q], width * 2, column * 2)
    }

    pub(super) fn pool_scores(&self, node: &Node, pool: Pool) -> Tensor<'a> {
        let n = node.n_rows;
        let row = self.ops.reshape(self.whole(node.src[0]), [n, 1, 1]);
        // Wider ones see all candidates from each of them, and nothing else; ggml counts what it skips.
        let all = 2 * n - 1;
        let pooled = match pool {
            Pool::None => row,
            Pool::Avg(width) => self.ops.pool_1d(row, false, width.min(all)),
            Pool::Max(width) => self.ops.pool_1d(row, true, width.min(all)),
            Pool::Chunks(width) => self.best_of_chunks(row, width.min(n)),
        };
        self.ops.reshape(pooled, [1, n, 1])
    }

    /// For each of the scores `[n]` the best one of its chunk.
    fn best_of_chunks(&self, scores: Tensor<'a>, width: usize) -> Tensor<'a> {
        let n = scores.ne(0);
        // Zeros fill the last chunk: no score is below them.
        let filled = self.ops.pad(scores, n.next_multiple_of(width) - n);
        let best = self.ops.max_of_chunks(filled, width);
        let n_chunks = best.ne(0);
        let spread = self.ops.repeat(self.ops.reshape(best, [1, n_chunks, 1]), [width, n_chunks, 1]);
        self.ops.view_2d(spread, [n, 1], 4 * n, 0)
    }

    fn whole(&self, id: NodeId) -> Tensor<'a> {
        self.values.get(&id).copied().unwrap_or_else(|| self.memory.stored(id))
    }

    /// C, the norms of the FFNs' proxies.
    pub(super) fn proxy_norm(&self, node: &Node, form: Form) -> Tensor<'a> {
        let (act, p, y, factors) = self.proxied(node);
        if form == Form::Ours {
            return self.ops.proxy_norm(act, [p.u_gu, p.v_gu, p.v_down], y, factors, None, None);
        }
        let y = self.by_norm(y, factors);
        let (rank, d_low, n) = (p.v_gu.ne(0), p.v_down.ne(0), y.ne(1));
        let both = self.product(p.u_gu, y);
        let half = |i: usize| self.ops.cont(self.ops.view_2d(both, [rank, n], both.nb(1), i * rank * 4));
        let v = |i: usize| self.ops.rows(p.v_gu, i * d_low, d_low);
        let gate = self.product(v(0), half(0));
        let up = self.product(v(1), half(1));
        let out = self.product(p.v_down, self.ops.glu(act, gate, up));
        self.ops.sqrt(self.ops.sum_rows(self.ops.sqr(out)))
    }

    /// C times `scores`, in `to` if that is given.
    pub(super) fn proxy_scores(&self, node: &Node, scores: Tensor<'a>, to: Option<Tensor<'a>>) -> Tensor<'a> {
        let (act, p, y, factors) = self.proxied(node);
        self.ops.proxy_norm(act, [p.u_gu, p.v_gu, p.v_down], y, factors, Some(scores), to)
    }

    /// A proxy's activation and matrices, its rows, and the weight of their norm if they still want it.
    fn proxied(&self, node: &Node) -> (Activation, ProxyTensors<'a>, Tensor<'a>, Option<Tensor<'a>>) {
        let Op::ProxyNorm { layer, act, norm } = node.op else { unreachable!("the caller has seen the node") };
        let factors = norm.map(|n| self.memory.weight(n));
        (act, self.memory.proxy(layer), self.rows(node.src[0]), factors)
    }
}
