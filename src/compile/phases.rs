//! Cuts a graph into phases: runs of nodes that can be computed tile by tile over the same rows.
//!
//! Prefill is layer-major: a phase goes over all its rows, a tile at a time, before the next phase starts. A new phase begins
//! - where the rows change (candidates, active tokens, probing queries, the last row),
//! - where a node needs a whole value that is being made (gather, probe scores, selection),
//! - between layers, as soon as there is more than one tile (so that only a layer's scratch is alive), and
//! - where [`Cuts`] say so (a layer or its experts on another device, a long program).
//!
//! Values read by a later phase are *stored*: in the KV cache, or in a slot of a plan that reuses slots after their last
//! reader. The residual stream is updated in place.

use std::collections::{HashMap, HashSet};

use crate::graph::ir::*;
use crate::graph::verify::Verified;

/// What a phase needs to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PhaseKind {
    /// Row by row: tiles of any size.
    Tiled,
    /// All rows at once (probe scores, pooling).
    Whole,
    /// One selection, or one list of random scores or memberships.
    Select,
}

/// A run of nodes computed together.
#[derive(Clone, Debug, PartialEq)]
pub struct Phase {
    /// How.
    pub kind: PhaseKind,
    /// Nodes in order.
    pub nodes: Vec<NodeId>,
    /// Rows that tiles divide.
    pub rows: usize,
    /// Layer, or `None` for embedding, head, or a phase of several layers.
    pub layer: Option<usize>,
}

/// Says where a value lives between phases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// Only inside its phase's tile.
    Transient,
    /// In a slot.
    Slot(usize),
    /// Keys of a layer's cache.
    CacheK(usize),
    /// Values of a layer's cache.
    CacheV(usize),
}

/// Room for values that outlive their phase, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Size of the largest value placed here, in elements.
    pub elements: usize,
    /// What its elements are.
    pub contents: Contents,
}

/// What a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    /// 32 bits each: hidden states, scores, indices.
    Words,
    /// Keys of candidates, in the cache's type.
    Keys,
    /// Normalised rows, in BF16.
    Normalized,
}

/// A graph cut into phases, with a place for every value.
#[derive(Clone, Debug)]
pub struct Program {
    /// In execution order.
    pub phases: Vec<Phase>,
    /// By node.
    pub storage: Vec<Storage>,
    /// Slots the storage refers to.
    pub slots: Vec<Slot>,
}

impl Program {
    /// Whether a sum is written over one of its addends.
    pub fn is_in_place(&self, graph: &Graph, id: NodeId) -> bool {
        let node = graph.node(id);
        node.op == Op::Add && node.src.iter().any(|s| self.storage[s.index()] == self.storage[id.index()])
    }
}

/// Where phases end because of the devices that compute them.
#[derive(Clone, Debug, Default)]
pub struct Cuts {
    /// Layers at whose start one begins.
    pub layers: HashSet<usize>,
    /// Nodes that are one by themselves.
    pub alone: HashSet<NodeId>,
}

/// Cuts `graph` for tiles of at most `tile` rows.
pub fn plan(graph: &Verified, tile: usize, cuts: &Cuts) -> Program {
    let phases = partition(graph, tile, cuts);
    let (storage, slots) = place(graph, &phases);
    Program { phases, storage, slots }
}

fn kind(op: &Op) -> PhaseKind {
    match op {
        Op::ProbeScores { .. } | Op::AddScaled { .. } | Op::PoolScores { .. } => PhaseKind::Whole,
        Op::TopK { .. } | Op::RandomScores { .. } | Op::IsMember => PhaseKind::Select,
        _ => PhaseKind::Tiled,
    }
}

/// Rows a node's tiles divide.
fn domain(graph: &Graph, node: &Node) -> usize {
    match node.op {
        Op::ScatterAdd | Op::NormalizeRows { .. } => graph.node(node.src[1]).n_rows,
        _ => node.n_rows,
    }
}

/// True if the node reads source `i` as a whole rather than its own tile's rows.
pub fn reads_whole(graph: &Graph, node: &Node, i: usize) -> bool {
    match node.op {
        Op::GetRows | Op::Prune | Op::ScatterAdd | Op::NormalizeRows { .. } => i == 0,
        Op::LastRows { rows } => rows != graph.node(node.src[0]).n_rows,
        Op::ProbeScores { .. } | Op::PoolScores { .. } | Op::TopK { .. } | Op::IsMember => true,
        // A causal tile needs the keys up to its own end: its phase has made them if the rows are the same.
        Op::Attention { .. } => (i == 1 || i == 2) && graph.node(node.src[i]).n_rows != node.n_rows,
        _ => false,
    }
}

fn partition(graph: &Graph, tile: usize, cuts: &Cuts) -> Vec<Phase> {
    let mut phases: Vec<Phase> = Vec::new();
    let mut made_in: HashMap<NodeId, usize> = HashMap::new();
    let mut last_layer = None;
    for (i, node) in graph.nodes.iter().enumerate() {
        let id = NodeId(i as u32);
        if graph.is_input(id) {
            continue;
        }
        let (kind, rows) = (kind(&node.op), domain(graph, node));
        let current = phases.len().wrapping_sub(1);
        let joins = phases.last().is_some_and(|p| {
            let new_layer = node.layer != last_layer;
            let alone = [&id, &p.nodes[p.nodes.len() - 1]].iter().any(|id| cuts.alone.contains(id));
            let split = alone || new_layer && (rows > tile || node.layer.is_some_and(|l| cuts.layers.contains(&l)));
            p.kind == kind
                && kind != PhaseKind::Select
                && p.rows == rows
                && !split
                && node.src.iter().enumerate().all(|(k, s)| {
                    let here = made_in.get(s) == Some(&current);
                    // Whose rows are not the tile's; but those that it changed are normalised along with it.
                    let scattered = matches!(graph.node(*s).op, Op::ScatterAdd | Op::NormalizeRows { .. })
                        && !(matches!(node.op, Op::NormalizeRows { .. }) && k == 2);
                    kind == PhaseKind::Whole || !here || (!reads_whole(graph, node, k) && !scattered)
                })
        });
        if !joins {
            phases.push(Phase { kind, nodes: Vec::new(), rows, layer: node.layer });
        }
        last_layer = node.layer;
        let current = phases.len() - 1;
        let phase = &mut phases[current];
        phase.nodes.push(id);
        if phase.layer != node.layer {
            phase.layer = None;
        }
        made_in.insert(id, current);
    }
    phases
}

fn place(graph: &Graph, phases: &[Phase]) -> (Vec<Storage>, Vec<Slot>) {
    let n = graph.nodes.len();
    let mut phase_of = vec![usize::MAX; n];
    for (p, phase) in phases.iter().enumerate() {
        for id in &phase.nodes {
            phase_of[id.index()] = p;
        }
    }
    // Last reader of every value, as node number and as phase; a value is stored if a reader sits in another phase.
    let mut last_node = vec![0; n];
    let mut last_phase = vec![0; n];
    let mut stored = vec![false; n];
    for (i, node) in graph.nodes.iter().enumerate() {
        for (k, s) in node.src.iter().enumerate() {
            let s = s.index();
            last_node[s] = i;
            last_phase[s] = last_phase[s].max(phase_of[i]);
            // A window behind a prune reads the positions of its tile and of those before it.
            let from_tiles_before = k == 4 && matches!(node.op, Op::Attention { window: Some(_), .. });
            stored[s] |= phase_of[s] != phase_of[i]
                || from_tiles_before
                || (reads_whole(graph, node, k) && kind(&node.op) == PhaseKind::Tiled);
        }
    }
    for (stored, node) in stored.iter_mut().zip(&graph.nodes) {
        // A prune makes the residual stream's new home, where later sums are added to it.
        *stored |= matches!(node.op, Op::Tokens | Op::Positions | Op::Residual | Op::Prune);
    }
    for output in &graph.outputs {
        stored[output.index()] = true;
        last_phase[output.index()] = phases.len();
    }

    let mut storage = vec![Storage::Transient; n];
    for a in &graph.layers {
        let Op::Attention { layer, .. } = graph.node(a.mixer.node()).op else { continue };
        let src = &graph.node(a.mixer.node()).src;
        storage[src[1].index()] = Storage::CacheK(layer);
        storage[src[2].index()] = Storage::CacheV(layer);
    }

    let mut slots = Slots::default();
    // Inputs first, then phase by phase: take slots for what is made, release those whose last reader has run.
    let inputs = (0..n).filter(|&i| phase_of[i] == usize::MAX);
    for i in inputs {
        let elements = graph.nodes[i].n_feat * graph.nodes[i].n_rows;
        storage[i] = Storage::Slot(slots.take(elements, Contents::Words));
    }
    let mut live_until: Vec<usize> = vec![0; n];
    for (p, phase) in phases.iter().enumerate() {
        for id in &phase.nodes {
            let i = id.index();
            let node = graph.node(*id);
            if storage[i] != Storage::Transient {
                continue;
            }
            // In place: the residual stream, if nobody reads its old state after this node.
            let in_place = match node.op {
                Op::ScatterAdd | Op::NormalizeRows { .. } => Some(node.src[0].index()),
                Op::Add | Op::ScaleBy { .. } => node
                    .src
                    .iter()
                    .map(|s| s.index())
                    .find(|&s| matches!(storage[s], Storage::Slot(_)) && last_node[s] == i),
                _ => None,
            };
            if let Some(s) = in_place {
                storage[i] = storage[s];
                live_until[s] = usize::MAX; // its slot now belongs to the newer value
                live_until[i] = last_phase[i];
            } else if stored[i] {
                let is_key = || graph.nodes.iter().any(|r| matches!(r.op, Op::ProbeScores { .. }) && r.src[1] == *id);
                let contents = match node.dtype {
                    DType::Bf16 => Contents::Normalized,
                    DType::F32 if is_key() => Contents::Keys,
                    DType::F32 | DType::I32 => Contents::Words,
                };
                storage[i] = Storage::Slot(slots.take(node.n_feat * node.n_rows, contents));
                live_until[i] = last_phase[i];
            }
        }
        for i in 0..n {
            if let Storage::Slot(slot) = storage[i]
                && phase_of[i] != usize::MAX
                && phase_of[i] <= p
                && live_until[i] == p
            {
                slots.release(slot);
                live_until[i] = usize::MAX;
            }
        }
    }
    (storage, slots.all)
}

/// Slots with a free list: the smallest free one that fits, else the largest free one grown, else a new one.
#[derive(Default)]
struct Slots {
    all: Vec<Slot>,
    free: Vec<usize>,
}

impl Slots {
    fn take(&mut self, elements: usize, contents: Contents) -> usize {
        let fits = |s: &Slot| s.elements >= elements;
        let candidate = self
            .free
            .iter()
            .enumerate()
            .filter(|&(_, &s)| self.all[s].contents == contents && fits(&self.all[s]))
            .min_by_key(|&(_, &s)| self.all[s].elements)
            .map(|(k, _)| k);
        match candidate {
            Some(k) => self.free.swap_remove(k),
            None => {
                self.all.push(Slot { elements, contents });
                self.all.len() - 1
            }
        }
    }

    fn release(&mut self, slot: usize) {
        self.free.push(slot);
    }
}
