//! What a device with kernels of ours computes in one step with its neighbours: who may read 16 bits, who adds, who normalises.

use super::Lowerer;
use crate::ggml::Tensor;
use crate::ggml::kernels::Target;
use crate::graph::ir::*;
use crate::graph::phases::Storage;

impl<'a> Lowerer<'a, '_> {
    /// Whether a norm's value is made in 16 bits at once.
    pub(super) fn is_16_bit_norm(&self, id: NodeId) -> bool {
        let node = self.graph.node(id);
        matches!(node.op, Op::RmsNorm { group, .. } if group == node.n_feat)
            && self.memory.kernels().rows_of(node.n_feat)
            && self.is_read_in_16_bit(id)
    }

    /// Whether a value is read by nothing but products that want 16-bit rows.
    pub(super) fn is_read_in_16_bit(&self, id: NodeId) -> bool {
        self.program.storage[id.index()] == Storage::Transient
            && self.readers.get(&id).is_some_and(|r| r.iter().all(|r| self.takes_16_bit(self.graph.node(*r))))
    }

    fn takes_16_bit(&self, node: &Node) -> bool {
        match node.op {
            Op::ProxyNorm { .. } => self.takes_proxy_norm(node),
            _ => self.is_our_product(node),
        }
    }

    /// Whether a node is a product that the device computes in BF16 (`Ops::product`, `Ops::gated_ffn`).
    pub(super) fn is_our_product(&self, node: &Node) -> bool {
        let rows = match node.op {
            Op::Linear { weight, .. } => self.rows_by(node, weight),
            _ => self.tile.len(),
        };
        let ours = |w: WeightId| self.memory.kernels().product(rows, self.memory.matrix(w, rows).ty());
        match node.op {
            Op::Linear { weight, .. } => ours(weight),
            Op::GatedFfn { gate, up, down, .. } => [gate, up, down].into_iter().all(ours),
            _ => false,
        }
    }

    /// Rows by which a product's kernel is chosen: those of a few probing queries are computed as those of all active tokens,
    /// which the same weight is widened for.
    fn rows_by(&self, node: &Node, weight: WeightId) -> usize {
        let rows = self.tile.len();
        if rows == 1 || rows < node.n_rows {
            return rows;
        }
        let same = |n: &&Node| matches!(n.op, Op::Linear { weight: w, .. } if w == weight);
        self.graph.nodes.iter().filter(same).map(|n| n.n_rows).fold(rows, usize::max)
    }

    /// Whether a node is an [`Op::ProxyNorm`] that the device computes (`Ops::proxy_norm`).
    pub(super) fn takes_proxy_norm(&self, node: &Node) -> bool {
        let Op::ProxyNorm { layer, .. } = node.op else { return false };
        let v_down = self.memory.proxy(layer).v_down; // [d_low, rank]
        self.memory.kernels().proxy_norm(self.tile.len(), v_down.ne(1), v_down.ne(0))
    }

    /// Whether a proxy's norm is computed when the product with S is that alone reads it.
    pub(super) fn is_scored(&self, id: NodeId) -> bool {
        self.takes_proxy_norm(self.graph.node(id))
            && self.program.storage[id.index()] == Storage::Transient
            && matches!(self.readers.get(&id).map(Vec::as_slice), Some([by]) if self.graph.node(*by).op == Op::Mul)
    }

    /// Whether one reader alone looks at a value that has memory of its own in this tile, so that it may write over it.
    pub(super) fn is_read_once(&self, id: NodeId) -> bool {
        self.program.storage[id.index()] == Storage::Transient
            && matches!(self.graph.node(id).op, Op::Linear { .. } | Op::RmsNorm { .. })
            && self.readers.get(&id).is_some_and(|r| r.len() == 1)
    }

    /// How a product of ours is best written: rounded to 16 bits where a scatter-add alone reads it, and adds it in F32.
    pub(super) fn target(&self, id: NodeId) -> Target<'a> {
        match self.readers.get(&id).map(Vec::as_slice) {
            Some([reader]) if self.program.storage[id.index()] == Storage::Transient => {
                match self.graph.node(*reader).op {
                    Op::ScatterAdd if self.memory.kernels().rows_of(self.graph.node(id).n_feat) => Target::Bf16,
                    _ => Target::F32,
                }
            }
            _ => Target::F32,
        }
    }

    /// Whether a product is computed when the sum is that reads it: it is added at once to the other addend, whose memory the
    /// sum takes over.
    pub(super) fn is_added(&self, id: NodeId) -> bool {
        let node = self.graph.node(id);
        let Some([sum]) = self.readers.get(&id).map(Vec::as_slice) else { return false };
        !matches!(node.op, Op::Linear { bias: Some(_), .. } | Op::Linear { scale: Some(_), .. })
            && self.is_our_product(node)
            && self.program.storage[id.index()] == Storage::Transient
            && if self.program.storage[sum.index()] == Storage::Transient {
                self.is_last_reader_of_addend(*sum, id)
            } else {
                self.is_in_place(*sum)
            }
    }

    /// Whether nothing reads a sum's other addend, a value of this tile alone, when the sum is done.
    fn is_last_reader_of_addend(&self, sum: NodeId, product: NodeId) -> bool {
        let node = self.graph.node(sum);
        let Some(&other) = node.src.iter().find(|&&s| s != product) else { return false };
        let Some(readers) = self.readers.get(&other) else { return false };
        node.op == Op::Add
            && self.program.storage[other.index()] == Storage::Transient
            // Of its own memory: views of others' rows are left alone.
            && matches!(self.graph.node(other).op, Op::Add | Op::Embed { .. })
            && readers.last() == Some(&sum)
            // A capture is read when all is computed.
            && !readers.iter().any(|r| matches!(self.graph.node(*r).op, Op::Capture { .. }))
    }

    /// Computes a product and adds it to `h`.
    pub(super) fn add_product(&self, h: Tensor<'a>, node: &Node) -> Tensor<'a> {
        match node.op {
            Op::GatedFfn { .. } => self.gated_ffn(node, Target::Added(h)),
            Op::Linear { weight, norm, .. } => {
                let x = self.rows(node.src[0]);
                let factors = norm.map(|n| self.memory.weight(n));
                self.ops.product(self.memory.matrix(weight, x.ne(1)), x, factors, Target::Added(h))
            }
            _ => unreachable!("only products are added"),
        }
    }

    /// Where the rows that a scatter-add changes are normalised anew at once.
    pub(super) fn normalized_along(&self, id: NodeId) -> Option<(Tensor<'a>, f32)> {
        let readers = self.readers.get(&id)?;
        readers.iter().find_map(|r| match self.graph.node(*r).op {
            Op::NormalizeRows { eps } => Some((self.memory.stored(self.graph.node(*r).src[0]), eps)),
            _ => None,
        })
    }
}
