//! Graphs that are kept between calls of the same program, and what has to be the same for them to hold.

use std::collections::HashMap;
use std::ops::Range;

use crate::compile::lower::{self, InputKind};
use crate::compile::memory::CacheMode;
use crate::compile::phases::Phase;
use crate::ggml::ops::{KeptTensor, Ops};
use crate::graph::ir::{NodeId, Op};

use super::device::Device;
use super::run::Run;
use super::sequence::LayerCache;

/// Prompts' programs of more tiles keep no graphs: computing them takes much longer than building them.
pub(super) const REPEATED_TILES: usize = 16;

/// Allocated graphs of a program's tiles, for the next time that it runs: as long as they read and write the same rows of the
/// same memory, only inputs differ, there is nothing to build, and a GPU starts what it captured of them. That is so for the
/// tokens of an answer, and for one prompt after another of the same length.
#[derive(Default)]
pub struct RepeatedGraphs {
    pub(super) graphs: HashMap<RepeatedPlace, RepeatedGraph>,
}

/// Where a graph belongs.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct RepeatedPlace {
    /// Number of the phase.
    pub phase: usize,
    /// First row of the tile.
    pub row: usize,
    /// Which of their two states its recurrent layers begin with: the tokens of an answer take turns.
    pub turn: usize,
}

/// The graph of one tile, kept for the next.
pub(super) struct RepeatedGraph {
    /// The graph.
    pub ops: Ops,
    /// What the host writes before each time.
    pub inputs: Vec<(KeptTensor, InputKind)>,
    /// What holds for it.
    pub relies_on: Memories,
}

/// What a graph's addresses, offsets and inputs follow from, besides its program. Memory is told by its generation.
#[derive(PartialEq)]
pub(super) struct Memories {
    caches: Vec<CacheState>,
    /// Memory of the recurrent layers, and which of their states holds.
    recurrent: Vec<(u64, usize)>,
    /// Cache rows that attention reads, where the rest is left to inputs.
    reads: Vec<Range<usize>>,
    scratch: u64,
    masks: u64,
}

#[derive(PartialEq)]
struct CacheState {
    generation: u64,
    /// Entries; with indexed caches beyond those of the first layer: layers of the same length share inputs.
    len: isize,
    has_gaps: bool,
}

impl Memories {
    /// As they are now, for a tile of a phase.
    pub fn of(run: &Run, d: &Device, phase: &Phase, rows: &Range<usize>) -> Self {
        let indexed = run.mode == CacheMode::Indexed;
        let base = run.sequence.caches().next().filter(|_| indexed).map_or(0, |c| c.len() as isize);
        let state = |c: &LayerCache| CacheState {
            generation: c.generation(),
            len: c.len() as isize - base,
            has_gaps: c.positions().is_some(),
        };
        let graph = &run.compiled.graph;
        let read = |id: &NodeId| {
            let node = graph.node(*id);
            let Op::Attention { layer, window, .. } = node.op else { return None };
            let (cache, n_keys) = (run.sequence.cache(layer), graph.node(node.src[1]).n_rows);
            let first = cache.len() + n_keys - node.n_rows + rows.start;
            Some(lower::key_rows(first, rows.len(), window, run.sequence.cache_in(run.staged, layer).capacity()))
        };
        Self {
            caches: run.sequence.caches().chain(run.sequence.shared()).map(state).collect(),
            recurrent: run.sequence.states().map(|s| (s.generation(), s.turn())).collect(),
            reads: if indexed { phase.nodes.iter().filter_map(read).collect() } else { Vec::new() },
            scratch: d.backend.scratch_generation(),
            masks: d.masks.generation(),
        }
    }
}
