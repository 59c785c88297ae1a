//! What a device with kernels of ours computes in one step with a node's neighbours: who is made in 16 bits, who is added at once,
//! who is computed by its reader. Decided here for a whole tile, before lowering, which then asks nobody's readers.

use std::collections::HashMap;

use super::memory::{CacheMode, Memory};
use super::phases::{Phase, Program, Storage};
use crate::graph::ir::*;

/// How a node is computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Form {
    /// By ggml's operations.
    Ggml,
    /// By the device's own operation, to a result in F32.
    Ours,
    /// By the device's own operation, to a result in BF16.
    OursInBf16,
    /// Rotated where the source lies, which nobody else reads.
    OursInPlace,
    /// Not by itself: the one node that reads it computes it.
    InReader,
    /// A sum that this product is added to as it is computed.
    AddsProduct(NodeId),
    /// A scatter-add that also normalises the rows it changes, for this [`Op::NormalizeRows`].
    AddsAndNormalizes(NodeId),
    /// A product of scores with the proxy norms of this node, which are made on the way.
    TimesProxyNorm(NodeId),
}

/// The forms of a tile's nodes.
pub struct Forms(HashMap<NodeId, Form>);

impl Forms {
    /// Decides for `rows` rows of a phase.
    pub fn of(
        memory: &dyn Memory,
        graph: &Graph,
        program: &Program,
        phase: &Phase,
        rows: usize,
        mode: CacheMode,
    ) -> Forms {
        let mut readers: HashMap<NodeId, Vec<NodeId>> = HashMap::new();
        for &id in &phase.nodes {
            graph.node(id).src.iter().for_each(|s| readers.entry(*s).or_default().push(id));
        }
        let chooser = Chooser { memory, graph, program, readers, rows, mode };
        Forms(phase.nodes.iter().map(|&id| (id, chooser.form(id))).collect())
    }

    /// The form of a node of the phase.
    pub fn get(&self, id: NodeId) -> Form {
        self.0.get(&id).copied().unwrap_or(Form::Ggml)
    }
}

struct Chooser<'c> {
    memory: &'c dyn Memory,
    graph: &'c Graph,
    program: &'c Program,
    /// Nodes of the phase by the values that they read.
    readers: HashMap<NodeId, Vec<NodeId>>,
    /// Rows of the tile.
    rows: usize,
    mode: CacheMode,
}

impl Chooser<'_> {
    fn form(&self, id: NodeId) -> Form {
        let node = self.graph.node(id);
        let kernels = self.memory.kernels();
        match &node.op {
            Op::RmsNorm { group, .. } => {
                let in_16_bits = *group == node.n_feat && kernels.rows_of(node.n_feat) && self.is_read_in_16_bits(id);
                if in_16_bits { Form::OursInBf16 } else { Form::Ggml }
            }
            Op::NormalizeRows { .. } => Form::InReader,
            Op::Linear { .. } | Op::GatedFfn { .. } if self.is_added(id) => Form::InReader,
            Op::Linear { .. } | Op::GatedFfn { .. } => self.product(id, node),
            Op::Rope { head_dim, rope } if self.mode == CacheMode::Fixed && kernels.rope(*head_dim, rope) => {
                if self.is_read_once(node.src[0]) { Form::OursInPlace } else { Form::Ours }
            }
            Op::Attention { layer, heads, window, .. } if self.takes_attention(*layer, heads, *window) => {
                if self.is_read_in_16_bits(id) { Form::OursInBf16 } else { Form::Ours }
            }
            Op::Add => node.src.iter().find(|s| self.is_added(**s)).map_or(Form::Ggml, |s| Form::AddsProduct(*s)),
            Op::Mul if self.is_scored(node.src[0]) => Form::TimesProxyNorm(node.src[0]),
            Op::ScatterAdd => match self.normalized_along(id) {
                Some(normalized) => Form::AddsAndNormalizes(normalized),
                None if kernels.rows_of(node.n_feat) => Form::Ours,
                None => Form::Ggml,
            },
            Op::ProxyNorm { .. } if self.is_scored(id) => Form::InReader,
            Op::ProxyNorm { .. } if self.takes_proxy_norm(node) => Form::Ours,
            _ => Form::Ggml,
        }
    }

    fn is_transient(&self, id: NodeId) -> bool {
        self.program.storage[id.index()] == Storage::Transient
    }

    /// Whether a value is read by nothing but products that want 16-bit rows.
    fn is_read_in_16_bits(&self, id: NodeId) -> bool {
        self.is_transient(id)
            && self.readers.get(&id).is_some_and(|r| r.iter().all(|r| self.takes_16_bits(self.graph.node(*r))))
    }

    fn takes_16_bits(&self, node: &Node) -> bool {
        match node.op {
            Op::ProxyNorm { .. } => self.takes_proxy_norm(node),
            _ => self.is_our_product(node),
        }
    }

    fn takes_attention(&self, layer: usize, heads: &Heads, window: Option<usize>) -> bool {
        self.mode == CacheMode::Fixed && self.memory.takes_attention(layer, self.rows, heads, window)
    }

    /// A product's form: rounded to 16 bits where a scatter-add alone reads it, and adds it in F32.
    fn product(&self, id: NodeId, node: &Node) -> Form {
        if !self.is_our_product(node) {
            return Form::Ggml;
        }
        let is_whole = is_whole(node);
        match self.readers.get(&id).map(Vec::as_slice) {
            Some([reader])
                if is_whole
                    && self.is_transient(id)
                    && self.graph.node(*reader).op == Op::ScatterAdd
                    && self.memory.kernels().rows_of(node.n_feat) =>
            {
                Form::OursInBf16
            }
            _ => Form::Ours,
        }
    }

    /// Whether a node is a product that the device computes in BF16 (`Ops::product`, `Ops::gated_ffn`).
    fn is_our_product(&self, node: &Node) -> bool {
        let rows = match node.op {
            Op::Linear { weight, .. } => self.rows_by(node, weight),
            _ => self.rows,
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
        if self.rows == 1 || self.rows < node.n_rows {
            return self.rows;
        }
        let same = |n: &&Node| matches!(n.op, Op::Linear { weight: w, .. } if w == weight);
        self.graph.nodes.iter().filter(same).map(|n| n.n_rows).fold(self.rows, usize::max)
    }

    /// Whether a node is an [`Op::ProxyNorm`] that the device computes (`Ops::proxy_norm`).
    fn takes_proxy_norm(&self, node: &Node) -> bool {
        let Op::ProxyNorm { layer, act, .. } = node.op else { return false };
        let v_down = self.memory.proxy(layer).v_down; // [d_low, rank]
        self.memory.kernels().proxy_norm(act, self.rows, v_down.ne(1), v_down.ne(0))
    }

    /// Whether a proxy's norm is computed when the product with S is that alone reads it.
    fn is_scored(&self, id: NodeId) -> bool {
        self.takes_proxy_norm(self.graph.node(id))
            && self.is_transient(id)
            && matches!(self.readers.get(&id).map(Vec::as_slice), Some([by]) if self.graph.node(*by).op == Op::Mul)
    }

    /// Whether one reader alone looks at a value that has memory of its own in this tile, so that it may write over it.
    fn is_read_once(&self, id: NodeId) -> bool {
        self.is_transient(id)
            && matches!(self.graph.node(id).op, Op::Linear { .. } | Op::RmsNorm { .. })
            && self.readers.get(&id).is_some_and(|r| r.len() == 1)
    }

    /// Whether a product is computed when the sum is that reads it: it is added at once to the other addend, whose memory the
    /// sum takes over.
    fn is_added(&self, id: NodeId) -> bool {
        let node = self.graph.node(id);
        let Some([sum]) = self.readers.get(&id).map(Vec::as_slice) else { return false };
        is_whole(node)
            && self.graph.node(*sum).op == Op::Add
            && self.is_our_product(node)
            && self.is_transient(id)
            && if self.is_transient(*sum) {
                self.is_last_reader_of_addend(*sum, id)
            } else {
                self.program.is_in_place(self.graph, *sum)
            }
    }

    /// Whether nothing reads a sum's other addend, a value of this tile alone, when the sum is done.
    fn is_last_reader_of_addend(&self, sum: NodeId, product: NodeId) -> bool {
        let node = self.graph.node(sum);
        let Some(&other) = node.src.iter().find(|&&s| s != product) else { return false };
        let Some(readers) = self.readers.get(&other) else { return false };
        self.is_transient(other)
            // Views of others' rows are left alone: only values with memory of their own.
            && matches!(self.graph.node(other).op, Op::Add | Op::Embed { .. })
            && readers.last() == Some(&sum)
            // A capture is read when all is computed.
            && !readers.iter().any(|r| matches!(self.graph.node(*r).op, Op::Capture { .. }))
    }

    /// The node for which the rows that a scatter-add changes are normalised anew at once.
    fn normalized_along(&self, id: NodeId) -> Option<NodeId> {
        let readers = self.readers.get(&id)?;
        readers.iter().copied().find(|r| matches!(self.graph.node(*r).op, Op::NormalizeRows { .. }))
    }
}

/// Whether nothing is done to a product behind its kernel: no scale, no bias.
fn is_whole(node: &Node) -> bool {
    !matches!(node.op, Op::Linear { bias: Some(_), .. } | Op::Linear { scale: Some(_), .. })
}
