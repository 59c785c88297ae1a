//! Builds graphs node by node, inferring every shape: used by the architectures and by the rewrite passes.

use std::collections::HashMap;

use super::ir::*;

/// A graph under construction. Shapes follow from the operations; they are checked by [`super::verify::verify`].
#[derive(Debug, Default)]
pub struct Builder {
    nodes: Vec<Node>,
    layer: Option<usize>,
}

impl Builder {
    /// An empty graph.
    pub fn new() -> Self {
        Self::default()
    }

    /// Nodes pushed from now on belong to this layer.
    pub fn set_layer(&mut self, layer: Option<usize>) {
        self.layer = layer;
    }

    /// The nodes that were added so far.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node that makes a value.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    /// Appends a node whose feature count is not implied by its sources (embedding, linear).
    pub fn push_sized(&mut self, op: Op, src: &[NodeId], n_feat: usize, n_rows: usize, name: &'static str) -> NodeId {
        let dtype = match op {
            Op::Tokens | Op::Positions | Op::TopK { .. } => DType::I32,
            Op::GetRows | Op::LastRows { .. } | Op::Prune => self.node(src[0]).dtype,
            Op::Normalize { .. } | Op::NormalizeRows { .. } => DType::Bf16,
            _ => DType::F32,
        };
        let id = NodeId(self.nodes.len() as u32);
        self.nodes.push(Node { op, src: src.to_vec(), n_feat, n_rows, dtype, name, layer: self.layer });
        id
    }

    /// Appends a node; shape from the sources. For [`Op::Linear`] and [`Op::Embed`] use [`Builder::linear`] and [`Builder::embed`].
    pub fn push(&mut self, op: Op, src: &[NodeId], name: &'static str) -> NodeId {
        let (n_feat, n_rows) = {
            let s = |i: usize| self.node(src[i]);
            match &op {
                Op::GetRows | Op::Prune => (s(0).n_feat, s(1).n_rows),
                Op::LastRows { rows } => (s(0).n_feat, *rows),
                Op::ProbeScores { .. } => (1, s(1).n_rows),
                Op::ProxyNorm { .. } | Op::RandomScores { .. } => (1, s(0).n_rows),
                Op::TopK { m, .. } => (1, *m),
                Op::Features { group, len, .. } => (s(0).n_feat / group * len, s(0).n_rows),
                Op::DeltaNet { heads, .. } => (heads.n_values(), s(0).n_rows),
                _ => (s(0).n_feat, s(0).n_rows),
            }
        };
        self.push_sized(op, src, n_feat, n_rows, name)
    }

    /// Inputs: token ids and positions.
    pub fn inputs(&mut self, n_tokens: usize) -> (NodeId, NodeId) {
        let tokens = self.push_sized(Op::Tokens, &[], 1, n_tokens, "inp_tokens");
        let positions = self.push_sized(Op::Positions, &[], 1, n_tokens, "inp_pos");
        (tokens, positions)
    }

    /// Token embedding `[n_embd, n]`.
    pub fn embed(&mut self, weight: WeightId, n_embd: usize, scale: f32, tokens: NodeId) -> NodeId {
        let n = self.node(tokens).n_rows;
        self.push_sized(Op::Embed { weight, first: 0, scale }, &[tokens], n_embd, n, "inp_embd")
    }

    /// Product with a weight `[n_in, n_out]`.
    pub fn linear(&mut self, w: Projection, x: NodeId, name: &'static str) -> NodeId {
        let n = self.node(x).n_rows;
        let Projection { weight, scale, bias, n_out } = w;
        self.push_sized(Op::Linear { weight, scale, bias, norm: None }, &[x], n_out, n, name)
    }

    /// Normalisation of whole rows.
    pub fn rms_norm(&mut self, weight: WeightId, eps: f32, x: NodeId, name: &'static str) -> NodeId {
        let group = self.node(x).n_feat;
        self.push(Op::RmsNorm { weight: Some(weight), eps, group }, &[x], name)
    }

    /// Normalisation of each head by itself (QK norm).
    pub fn head_norm(&mut self, weight: WeightId, eps: f32, head_dim: usize, x: NodeId, name: &'static str) -> NodeId {
        self.push(Op::RmsNorm { weight: Some(weight), eps, group: head_dim }, &[x], name)
    }

    /// Recomputes `target` with other sources: every node between the substituted values and `target` is made anew, with the
    /// substitutes' row counts; values that do not depend on a substituted one are used as they are.
    ///
    /// `subst` maps old values of `old` to values of this graph and gains the clones.
    pub fn recompute(&mut self, old: &[Node], subst: &mut HashMap<NodeId, NodeId>, target: NodeId) -> NodeId {
        if let Some(&id) = subst.get(&target) {
            return id;
        }
        let node = &old[target.index()];
        let src: Vec<NodeId> = node.src.iter().map(|&s| self.recompute(old, subst, s)).collect();
        let id = self.copy(node, &src);
        subst.insert(target, id);
        id
    }

    /// Appends a copy of a node with other sources; rows follow the sources, features stay.
    pub fn copy(&mut self, node: &Node, src: &[NodeId]) -> NodeId {
        let n_rows = match &node.op {
            Op::Tokens | Op::Positions | Op::Residual => node.n_rows,
            Op::GetRows | Op::Prune | Op::ProbeScores { .. } => self.node(src[1]).n_rows,
            Op::LastRows { rows } => *rows,
            Op::TopK { m, .. } => *m,
            _ => self.node(src[0]).n_rows,
        };
        let layer = std::mem::replace(&mut self.layer, node.layer);
        let id = self.push_sized(node.op.clone(), src, node.n_feat, n_rows, node.name);
        self.layer = layer;
        id
    }

    /// The finished graph. The first of its outputs are the logits.
    pub fn finish(self, layers: Vec<LayerAnchors>, positions: NodeId, hidden: NodeId, outputs: Vec<NodeId>) -> Graph {
        let n_tokens = self.nodes[positions.index()].n_rows;
        Graph { nodes: self.nodes, layers, first_layer: 0, positions, hidden, outputs, n_tokens }
    }
}

/// A weight `[n_in, n_out]` with its scale and bias, as an architecture hands it to [`Builder::linear`].
#[derive(Clone, Copy, Debug)]
pub struct Projection {
    /// `[n_in, n_out]`
    pub weight: WeightId,
    /// `[1]`
    pub scale: Option<WeightId>,
    /// `[n_out]`
    pub bias: Option<WeightId>,
    /// Rows of the product.
    pub n_out: usize,
}
