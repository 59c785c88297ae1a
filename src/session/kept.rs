//! Graphs that are kept between calls of the same program, and what has to be the same for them to hold.

use std::collections::HashMap;
use std::ops::Range;

use crate::ggml::ops::{Kept, Ops};
use crate::graph::ir::{NodeId, Op};
use crate::graph::lower::{self, CacheMode, InputKind};
use crate::graph::phases::Phase;

use super::executor::{Device, Run};
use super::kv_cache::LayerCache;

/// Programs of more tiles keep no graphs: computing them takes much longer than building them.
pub(super) const KEPT_TILES: usize = 16;

/// Allocated graphs of a program's tiles, for the next time that it runs: as long as they read and write the same rows of the
/// same memory, only inputs differ, there is nothing to build, and a GPU starts what it captured of them. That is so for the
/// tokens of an answer, and for one prompt after another of the same length.
#[derive(Default)]
pub struct KeptGraphs {
    /// By number of the phase and first row.
    pub(super) graphs: HashMap<(usize, usize), KeptGraph>,
}

/// One tile's.
pub(super) struct KeptGraph {
    /// The graph.
    pub ops: Ops,
    /// What the host writes before each time.
    pub inputs: Vec<(Kept, InputKind)>,
    /// What holds for it.
    pub relies_on: Memories,
}

/// What a graph's addresses, offsets and inputs follow from, besides its program. Sizes tell one memory from another, since
/// memory is only ever replaced by more; masks count their changes.
#[derive(PartialEq)]
pub(super) struct Memories {
    caches: Vec<CacheState>,
    /// Cache rows that attention reads, where the rest is left to inputs.
    reads: Vec<Range<usize>>,
    scratch: usize,
    masks: usize,
}

#[derive(PartialEq)]
struct CacheState {
    capacity: usize,
    /// Entries; with indexed caches beyond those of the first layer: layers of the same length share inputs.
    len: isize,
    has_gaps: bool,
}

impl Memories {
    /// As they are now, for a tile of a phase.
    pub fn of(run: &Run, d: &Device, phase: &Phase, rows: &Range<usize>) -> Self {
        let indexed = run.mode == CacheMode::Indexed;
        let base = if indexed { run.caches[0].len as isize } else { 0 };
        let state = |c: &LayerCache| CacheState {
            capacity: c.k().ne(1),
            len: c.len as isize - base,
            has_gaps: c.positions.is_some(),
        };
        let read = |id: &NodeId| {
            let node = run.graph.node(*id);
            let Op::Attention { layer, window, .. } = node.op else { return None };
            let (cache, n_keys) = (&run.caches[layer], run.graph.node(node.src[1]).n_rows);
            let first = cache.len + n_keys - node.n_rows + rows.start;
            Some(lower::key_rows(first, rows.len(), window, cache.k().ne(1)))
        };
        Self {
            caches: run.caches.iter().map(state).collect(),
            reads: if indexed { phase.nodes.iter().filter_map(read).collect() } else { Vec::new() },
            scratch: d.backend.scratch_bytes(),
            masks: d.masks.version(),
        }
    }
}
