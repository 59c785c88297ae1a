//! The editor that every pass uses: copies a graph in order and lets the pass replace one region at a time.

use std::collections::HashMap;

use super::build::Builder;
use super::ir::*;

/// A graph being copied. `map` takes every old value that has been copied or replaced to its new one.
pub struct Rewrite<'g> {
    /// The graph that is read.
    pub old: &'g Graph,
    /// The graph that is written.
    pub b: Builder,
    /// Old value -> new value.
    pub map: HashMap<NodeId, NodeId>,
    next: usize,
}

impl<'g> Rewrite<'g> {
    /// A rewrite of `old` that has copied nothing yet.
    pub fn new(old: &'g Graph) -> Self {
        Self { old, b: Builder::new(), map: HashMap::new(), next: 0 }
    }

    /// Copies every node up to and including `last`.
    pub fn copy_through(&mut self, last: NodeId) {
        while self.next <= last.index() {
            let id = NodeId(self.next as u32);
            let node = self.old.node(id);
            let src: Vec<NodeId> = node.src.iter().map(|s| self.map[s]).collect();
            let new = self.b.copy(node, &src);
            self.map.insert(id, new);
            self.next += 1;
        }
    }

    /// Leaves out every node up to and including `last`; the pass has put something in their place.
    pub fn skip_through(&mut self, last: NodeId) {
        self.next = self.next.max(last.index() + 1);
    }

    /// Makes `target` again in the new graph from values already mapped.
    pub fn recompute(&mut self, target: NodeId) -> NodeId {
        self.b.recompute(&self.old.nodes, &mut self.map, target)
    }

    /// Makes `target` again with the substitutes in `subst` alone; see [`Builder::recompute`].
    pub fn recompute_with(&mut self, subst: &mut HashMap<NodeId, NodeId>, target: NodeId) -> NodeId {
        self.b.recompute(&self.old.nodes, subst, target)
    }

    /// The layer's anchors in the new graph, for layers that were only copied.
    pub fn copied_anchors(&self, layer: usize) -> LayerAnchors {
        let a = &self.old.layers[layer];
        let m = |id: NodeId| self.map[&id];
        LayerAnchors {
            inp: m(a.inp),
            mixer: a.mixer.map(m),
            attn_out: m(a.attn_out),
            ffn_inp: m(a.ffn_inp),
            ffn_norm: m(a.ffn_norm),
            // A rewrite may have fused it away.
            ffn_hidden: a.ffn_hidden.and_then(|id| self.map.get(&id).copied()),
            ffn_out: m(a.ffn_out),
            ffn_sum: m(a.ffn_sum),
            out: m(a.out),
            act: a.act,
            scores: a.scores.map(m),
            active_attn: a.active_attn.map(m),
            active_ffn: a.active_ffn.map(m),
            kept: a.kept.map(m),
        }
    }

    /// Copies what is left and closes the graph.
    pub fn finish(mut self, layers: Vec<LayerAnchors>) -> Graph {
        self.copy_through(NodeId(self.old.nodes.len() as u32 - 1));
        let hidden = self.map[&self.old.hidden];
        let outputs = self.old.outputs.iter().map(|o| self.map[o]).collect();
        // Pruning maps the positions to those that are left; the graph's own are its input.
        let positions = NodeId(
            self.b.nodes().iter().position(|n| n.op == Op::Positions).expect("a graph has its positions") as u32,
        );
        self.b.finish(layers, positions, hidden, outputs)
    }
}
