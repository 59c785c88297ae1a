//! What a run tells while it goes on: progress, interruption, what was selected, captured values.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::compile::phases::Phase;
use crate::graph::ir::{Graph, NodeId};
use crate::{Error, Result};

use super::executor::{Captured, Watcher};

/// How far a prefill is.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct PrefillProgress {
    /// Layer under way, from 0.
    pub layer: usize,
    /// Layers of the model.
    pub n_layer: usize,
    /// Rows of the work under way: active tokens, or candidates being scored.
    pub active: usize,
    /// Tokens of the prompt.
    pub n_tokens: usize,
    /// Share of the work that is done, estimated from the layers' rows.
    pub fraction: f32,
}

/// Receives captured values, tile by tile and layer by layer.
pub type CaptureSink<'a> = dyn FnMut(Captured<'_>) + 'a;

/// A measure of a program's work for the progress bar: rows times nodes.
pub(super) fn work(phases: &[Phase]) -> usize {
    phases.iter().map(phase_work).sum()
}

fn phase_work(phase: &Phase) -> usize {
    phase.rows * phase.nodes.len()
}

/// Progress, interruption, records and captures of a prefill.
pub(super) struct Watch<'a, 's> {
    pub(super) graph: &'a Graph,
    pub(super) progress: &'a mut dyn FnMut(PrefillProgress) -> ControlFlow<()>,
    pub(super) sink: Option<&'a mut CaptureSink<'s>>,
    pub(super) interrupt: Arc<AtomicBool>,
    pub(super) records: bool,
    pub(super) selected: HashMap<NodeId, Vec<i32>>,
    pub(super) work_done: usize,
    pub(super) work_all: usize,
    pub(super) n_layer: usize,
    pub(super) n_tokens: usize,
}

impl Watcher for Watch<'_, '_> {
    fn phase(&mut self, phase: &Phase) -> Result<()> {
        let n_layer = self.n_layer;
        let layer = phase.layer.or_else(|| self.graph.node(phase.nodes[0]).layer).unwrap_or(if self.work_done == 0 {
            0
        } else {
            n_layer - 1
        });
        let fraction = self.work_done as f32 / self.work_all.max(1) as f32;
        self.work_done += phase_work(phase);
        let at = PrefillProgress { layer, n_layer, active: phase.rows, n_tokens: self.n_tokens, fraction };
        let stop = (self.progress)(at).is_break() || self.interrupt.load(Ordering::Relaxed);
        if stop { Err(Error::Interrupted) } else { Ok(()) }
    }

    fn selected(&mut self, node: NodeId, indices: &[i32]) {
        self.selected.insert(node, indices.to_vec());
    }

    fn wants_selections(&self) -> bool {
        self.records
    }

    fn captured(&mut self, captured: Captured<'_>) {
        if let Some(sink) = &mut self.sink {
            sink(captured);
        }
    }
}

/// A watcher that does nothing (decode).
pub(super) struct Quiet;

impl Watcher for Quiet {
    fn phase(&mut self, _: &Phase) -> Result<()> {
        Ok(())
    }

    fn selected(&mut self, _: NodeId, _: &[i32]) {}

    fn wants_selections(&self) -> bool {
        false
    }

    fn captured(&mut self, _: Captured<'_>) {}
}
