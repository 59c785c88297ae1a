//! What layers with a window keep of a long prompt: its last tokens alone.
//!
//! A prompt is read layer by layer. While such a layer reads it, the keys and values of all its tokens lie in memory that these
//! layers take turns in ([`Staged`]); what its window needs behind the prompt is copied to its own cache before the next one takes
//! its turn. Behind a document that is kept a second time: questions begin there, however far the last answer went.

use crate::compile::phases::{Program, Storage};
use crate::ggml::GgmlError;
use crate::graph::Graph;
use crate::graph::ir::Op;
use crate::model::shape::{LayerKind, Shape};

use super::layer_cache::{Kept, LayerCache};
use super::sequence::{LayerMemory, Sequence};
use super::turns::{Staged, Turn};

/// The first and the last phase that read or write a layer's cache.
fn phases_of(graph: &Graph, program: &Program, layer: usize) -> Option<(usize, usize)> {
    let touches = |id: &crate::graph::ir::NodeId| {
        let stored = program.storage[id.index()];
        stored == Storage::CacheK(layer)
            || stored == Storage::CacheV(layer)
            || matches!(graph.node(*id).op, Op::Attention { layer: of, .. } if of == layer)
    };
    let mut touching = (0..program.phases.len()).filter(|&i| program.phases[i].nodes.iter().any(touches));
    let first = touching.next()?;
    Some((first, touching.next_back().unwrap_or(first)))
}

impl Sequence {
    /// The layers of a prompt's program that can take turns, and how many rows each adds: those whose entries are more than they
    /// need, and whose turns do not meet.
    pub(super) fn wanted_turns(&self, graph: &Graph, program: &Program, shape: &Shape) -> Vec<(usize, usize)> {
        let first = graph.first_layer;
        let is_windowed = |layer: usize| shape.layer_kind(layer) == LayerKind::Windowed;
        let rows = |layer: usize| graph.kept_rows(layer - first).filter(|_| is_windowed(layer));
        let is_long = |&(layer, rows): &(usize, usize)| {
            let cache = self.cache(layer);
            cache.enough().is_some_and(|enough| cache.len() + rows > enough)
        };
        let windowed = (first..first + graph.layers.len()).filter_map(|layer| Some((layer, rows(layer)?)));
        let mut next = 0;
        let mut is_free = |&(layer, _): &(usize, usize)| match phases_of(graph, program, layer) {
            // Several layers may be read at once: then all of them need their keys together.
            Some((first, last)) if first >= next && program.phases[first].layer == Some(layer) => {
                next = last + 1;
                true
            }
            _ => false,
        };
        windowed.filter(is_long).filter(|turn| is_free(turn)).collect()
    }

    /// Whether these are the turns that are wanted, as the sequence is.
    pub(super) fn has_turns(&self, staged: &Staged, wanted: &[(usize, usize)]) -> bool {
        let n_rows = |&(layer, rows): &(usize, usize)| (layer, self.cache(layer).len() + rows);
        staged.turns.iter().map(|turn| (turn.layer, turn.n_rows)).eq(wanted.iter().map(n_rows))
    }

    /// Makes room for layers that take turns, each with so many rows to come.
    ///
    /// # Errors
    /// Out of memory.
    pub(super) fn stage(
        &mut self,
        graph: &Graph,
        program: &Program,
        wanted: &[(usize, usize)],
    ) -> Result<Staged, GgmlError> {
        let mut turns = Vec::with_capacity(wanted.len());
        for &(layer, rows) in wanted {
            let (layers, shared) = self.layers_and_shared();
            let LayerMemory::Cache(cache) = &layers[layer] else { continue };
            let Some((first_phase, last_phase)) = phases_of(graph, program, layer) else { continue };
            let memory = match shared.iter().position(|shared| cache.is_like(shared)) {
                Some(memory) => memory,
                None => {
                    shared.push(cache.another());
                    shared.len() - 1
                }
            };
            let n_rows = cache.len() + rows;
            shared[memory].reserve(n_rows)?;
            turns.push(Turn { layer, memory, n_rows, first_phase, last_phase });
        }
        Ok(Staged { turns })
    }

    /// The memory where a layer's keys and values lie while a prompt is read.
    ///
    /// # Panics
    /// If it has no cache.
    pub(super) fn cache_in(&self, staged: &Staged, layer: usize) -> &LayerCache {
        staged.memory_of(layer).map_or_else(|| self.cache(layer), |memory| &self.shared()[memory])
    }

    /// Whether a layer's turn begins with this phase, and there is something to copy.
    pub(super) fn begins_turn(&self, staged: &Staged, phase: usize) -> bool {
        staged.turns.iter().any(|turn| turn.first_phase == phase && !self.cache(turn.layer).is_empty())
    }

    /// Begins the turns of the layers that a phase is the first one of.
    pub(super) fn begin_turns(&self, staged: &Staged, phase: usize) {
        for turn in staged.turns.iter().filter(|turn| turn.first_phase == phase) {
            self.cache(turn.layer).copy_to(&self.shared()[turn.memory]);
        }
    }

    /// Ends the turns of the layers that a phase is the last one of: keeps what they need. Nothing counts as read yet.
    pub(super) fn end_turns(&self, staged: &Staged, phase: usize) {
        for turn in staged.turns.iter().filter(|turn| turn.last_phase == phase) {
            self.cache(turn.layer).copy_last_from(&self.shared()[turn.memory], turn.n_rows);
        }
    }

    /// As [`Sequence::advance`] behind a prompt that some layers have read in turns.
    pub(super) fn advance_staged(&mut self, n: usize, kept: Vec<Kept>, staged: &Staged) {
        let first = self.n_past();
        for (layer, (memory, kept)) in self.layers_and_shared().0.iter_mut().zip(kept).enumerate() {
            memory.append_in(staged, layer, kept, first, n);
        }
        self.count(n);
    }
}
