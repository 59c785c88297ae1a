//! Prefill: from a prompt's tokens to its caches and the logits of its last token.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use crate::compile::memory::CacheMode;
use crate::compile::target::Target;
use crate::compile::{self, Compiled};
use crate::ggml::GgmlError;
use crate::ggml::kernels::Kernels;
use crate::graph::ir::{Graph, NodeId, Tap};
use crate::method::entry::{Entry, Positions};
use crate::method::spts::capture::{Capture, insert_captures};
use crate::method::{Budgets, Dense, Method, Prompt};
use crate::{Error, Result};

use super::executor;
use super::prefill_report::{selections, whole_selection};
use super::repeated::RepeatedGraphs;
use super::run::Run;
use super::sampler::has_no_numbers;
use super::residual::Residual;
use super::sequence::Kept;
use super::slots::SlotMemory;
use super::turns::Staged;
use super::watch::{Watch, work};

pub use super::prefill_report::{LayerSelection, PrefillReport};
pub use super::watch::{CaptureSink, PrefillProgress};
use super::{Inputs, Session, write_inputs};

/// What is known of a prompt besides its tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrefillOptions {
    /// The first token of the question, counted from the prompt's first, for schedules that probe by it
    /// ([`crate::method::spts::schedule::Probe::by_question`]). `None`: the schedule's number of last tokens probes.
    pub question_start: Option<usize>,
}

impl Session {
    /// Reads a prompt. Afterwards [`Session::logits`] are those of its last token.
    ///
    /// `progress` is called between layers; breaking stops the prefill with [`Error::Interrupted`], and leaves the session as
    /// it was before.
    ///
    /// The session's method acts if nothing was read before; behind what was read nothing of a prompt is skipped.
    ///
    /// # Errors
    /// Empty prompt, context full, out of memory, interrupted.
    pub fn prefill(
        &mut self,
        tokens: &[u32],
        progress: &mut dyn FnMut(PrefillProgress) -> ControlFlow<()>,
    ) -> Result<PrefillReport> {
        self.prefill_with(tokens, PrefillOptions::default(), progress)
    }

    /// [`Session::prefill`] of a prompt that more is known of.
    ///
    /// # Errors
    /// As [`Session::prefill`]; and the question begins behind the prompt's end.
    pub fn prefill_with(
        &mut self,
        tokens: &[u32],
        options: PrefillOptions,
        progress: &mut dyn FnMut(PrefillProgress) -> ControlFlow<()>,
    ) -> Result<PrefillReport> {
        let start = Instant::now();
        self.check_prompt(tokens)?;
        let n_past = self.sequence.n_past();
        let prompt = Prompt { n_tokens: tokens.len(), question_start: options.question_start };
        if let Some(question_start) = prompt.question_start.filter(|&start| start >= prompt.n_tokens) {
            return Err(Error::QuestionOutside { question_start, n_tokens: prompt.n_tokens });
        }
        let method = if n_past == 0 { self.options.method.clone() } else { Arc::new(Dense) };
        let budgets = method.budgets(self.model.shape(), prompt)?;
        self.check_proxies(&budgets)?;
        let begins_prompts = n_past == 0 && self.prefix.is_some() && budgets.dense_layers() > 0;
        if begins_prompts && method.entry(self.model.shape(), prompt)? == Entry::All {
            return self.prefill_behind_prefix(start, tokens, &*method, budgets, progress);
        }
        if n_past == 0 {
            self.empty_prefix();
        }
        if let Some((rows, positions)) = self.entering(&*method, tokens, prompt, progress)? {
            return self.prefill_rows(start, tokens, &rows, positions, budgets, progress);
        }
        let prepared = self.prepared_for(tokens.len(), &*method, budgets)?;
        let reading = Reading::all(tokens, n_past);
        let report = self.run_prefill(start, reading, prepared, Share::WHOLE, progress, None)?;
        if let Some(prefix) = &mut self.prefix {
            prefix.extend_dense(n_past, tokens);
        }
        Ok(report)
    }

    /// Reads the tokens at `rows` of a prompt as if they were all of it. `budgets`: the method's, for the report.
    fn prefill_rows(
        &mut self,
        start: Instant,
        tokens: &[u32],
        rows: &[usize],
        positions: Positions,
        budgets: Budgets,
        progress: &mut dyn FnMut(PrefillProgress) -> ControlFlow<()>,
    ) -> Result<PrefillReport> {
        let chosen: Vec<u32> = rows.iter().map(|&row| tokens[row]).collect();
        let dense = Budgets::dense(budgets.layers.len(), rows.len());
        let prepared = self.prepared_for(rows.len(), &Dense, dense)?;
        let (positions, n_read) = match positions {
            Positions::Own => (rows.to_vec(), tokens.len()),
            Positions::Renumbered => ((0..rows.len()).collect(), rows.len()),
        };
        let reading = Reading { tokens: &chosen, positions, n_read, residual: None };
        let report = self.run_prefill(start, reading, prepared, Share::WHOLE, progress, None)?;
        self.sequence.seal();
        let in_prompt = |all: Vec<i32>| all.into_iter().map(|i| rows[i as usize] as i32).collect::<Vec<i32>>();
        let selection = report.selection.into_iter().map(|s| LayerSelection {
            il: s.il,
            candidates: in_prompt(s.candidates),
            active_attn: in_prompt(s.active_attn),
            active_ffn: in_prompt(s.active_ffn),
        });
        Ok(PrefillReport {
            n_tokens: tokens.len(),
            seconds: start.elapsed().as_secs_f64(),
            layers: budgets.layers,
            cache_kept: rows.len() as f64 / tokens.len() as f64,
            selection: selection.collect(),
            ..report
        })
    }

    /// The program of a prompt of `n_tokens`, with its memory.
    pub(super) fn prepared_for(&mut self, n_tokens: usize, method: &dyn Method, budgets: Budgets) -> Result<Prepared> {
        let n_past = self.sequence.n_past();
        // Whatever else a program follows from is the same for the whole session. One that does not fit is let go first: two
        // would take twice the memory.
        match self.prepared.take() {
            Some(p)
                if p.compiled.budgets == budgets
                    && p.n_past == n_past
                    && self.sequence.has_turns(&p.staged, &self.staged_layers(&p.compiled)) =>
            {
                Ok(p)
            }
            other => {
                drop(other);
                let dense = self.model.graph(n_tokens, self.n_ctx());
                let compiled = compile::prompt(dense, method, budgets, &self.target())?;
                self.prepare(compiled)
            }
        }
    }

    /// A dense prefill that hands the values of `capture` to `sink`.
    ///
    /// # Errors
    /// As [`Session::prefill`]; and proxy norms need proxies.
    pub fn prefill_capturing(
        &mut self,
        tokens: &[u32],
        capture: &Capture,
        progress: &mut dyn FnMut(PrefillProgress) -> ControlFlow<()>,
        sink: &mut CaptureSink,
    ) -> Result<PrefillReport> {
        if capture.taps.contains(&Tap::ProxyNorm) && self.proxies.iter().any(|p| p.is_none()) {
            return Err(Error::ProxiesMissing);
        }
        let start = Instant::now();
        self.check_prompt(tokens)?;
        self.prepared = None;
        if self.sequence.n_past() == 0 {
            self.empty_prefix();
        }
        // As the layers are written down: calibration looks into them.
        let graph = insert_captures(&self.model.graph(tokens.len(), self.n_ctx()), capture);
        let compiled = compile::as_written(graph, self.tile(), &self.target())?;
        let prepared = self.prepare(compiled)?;
        let reading = Reading::all(tokens, self.sequence.n_past());
        let report = self.run_prefill(start, reading, prepared, Share::WHOLE, progress, Some(sink));
        self.prepared = None;
        report
    }

    /// Runs the layers that a capture needs over a prompt, for `sink` alone: nothing counts as read.
    pub(super) fn run_captures(
        &mut self,
        tokens: &[u32],
        capture: &Capture,
        progress: &mut dyn FnMut(PrefillProgress) -> ControlFlow<()>,
        sink: &mut CaptureSink,
    ) -> Result<()> {
        self.prepared = None;
        self.empty_prefix();
        let dense = self.model.graph(tokens.len(), self.n_ctx());
        let compiled = compile::up_to_captures(&dense, capture, &self.target())?;
        let mut prepared = self.prepare(compiled)?;
        self.start_call();
        let reading = Reading { n_read: 0, ..Reading::all(tokens, 0) };
        self.execute(&reading, &mut prepared, Share::WHOLE, progress, Some(sink), false)?;
        self.is_suspect = false;
        Ok(())
    }

    /// What programs are compiled for.
    pub(super) fn target(&self) -> Target<'_> {
        let proxy = self.options.sidecar.as_ref().map(|s| s.size());
        let kernels: Vec<Kernels> = self.devices.iter().map(|device| device.backend.kernels()).collect();
        Target::new(self.model.file(), self.model.placement(), &kernels, self.options.n_ubatch, proxy)
            .with_attention(
                self.options.method.blocks(),
                [self.options.cache_type_k, self.options.cache_type_v].map(|t| t.ggml()),
            )
    }

    pub(super) fn check_prompt(&self, tokens: &[u32]) -> Result<()> {
        if tokens.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        self.check_tokens(tokens)?;
        self.check_interrupt()
    }

    /// Checks that every layer whose FFN will be scored by a proxy has one.
    fn check_proxies(&self, budgets: &Budgets) -> Result<()> {
        match &self.options.sidecar {
            Some(sidecar) => Ok(sidecar.check_layers(budgets.layers_with_proxy())?),
            None if budgets.layers_with_proxy().next().is_none() => Ok(()),
            None => Err(Error::ProxiesMissing),
        }
    }

    pub(super) fn run_prefill(
        &mut self,
        start: Instant,
        reading: Reading<'_>,
        mut prepared: Prepared,
        share: Share,
        progress: &mut dyn FnMut(PrefillProgress) -> ControlFlow<()>,
        sink: Option<&mut CaptureSink>,
    ) -> Result<PrefillReport> {
        let n = reading.positions.len();
        self.start_call();
        let first = self.sequence.n_past();
        let has_windows = self.model.shape().swa.is_some();
        let prunes_windows = has_windows && prepared.compiled.graph.layers.iter().any(|a| a.kept.is_some());
        let records = self.options.record_selection || prunes_windows;
        let selected = self.execute(&reading, &mut prepared, share, progress, sink, records)?;

        let Prepared { compiled, slots, .. } = &prepared;
        let (graph, entries) = (&compiled.graph, entries(&compiled.graph));
        let output = self.model.placement().output;
        let logits = graph.logits().expect("a prompt's program has logits");
        self.logits.read(&mut self.devices[output].backend, slots[output].get(logits));
        self.is_suspect = has_no_numbers(self.logits.as_slice());
        let selection = if records { selections(graph, &selected, first) } else { Vec::new() };
        // With a sliding window decode masks by position, so gaps have to be known.
        let kept = |layer: usize| match prunes_windows {
            true => Kept::At(selection[layer].active_attn.clone()),
            false => Kept::Count(entries[layer]),
        };
        let kept = (0..entries.len()).map(kept).collect();
        let dense = graph.first_layer;
        match dense {
            0 => self.sequence.advance_staged(reading.n_read, kept, &prepared.staged),
            _ => self.sequence.complete(dense, n, kept, &prepared.staged),
        }
        let budgets = &compiled.budgets;
        let with_cache = |layers: usize| (0..layers).filter(|&l| self.model.shape().has_cache(l)).count();
        let n_entries = with_cache(dense) * n + entries.iter().sum::<usize>();
        let report = PrefillReport {
            n_tokens: n,
            n_reused: 0,
            seconds: start.elapsed().as_secs_f64(),
            layers: if budgets.is_dense() { Vec::new() } else { budgets.layers.clone() },
            cache_kept: n_entries as f64 / (n * with_cache(dense + entries.len())) as f64,
            slot_bytes: slots.iter().map(|s| s.n_bytes()).sum(),
            scratch_bytes: self.devices.iter().map(|d| d.backend.scratch_bytes()).sum(),
            n_nodes: graph.nodes.len(),
            tile: compiled.tile,
            sparse_layers: graph.n_sparse(),
            selection: if self.options.record_selection { whole_selection(dense, n, selection) } else { Vec::new() },
        };
        // Another program of the same budgets begins with tokens.
        self.prepared = (dense == 0).then_some(prepared);
        Ok(report)
    }

    /// Runs a program over what is read, as its share of the whole work. Returns what was selected, if it is recorded.
    pub(super) fn execute(
        &mut self,
        reading: &Reading<'_>,
        prepared: &mut Prepared,
        share: Share,
        progress: &mut dyn FnMut(PrefillProgress) -> ControlFlow<()>,
        sink: Option<&mut CaptureSink>,
        records: bool,
    ) -> Result<HashMap<NodeId, Vec<i32>>> {
        let Prepared { compiled, slots, repeated, staged, .. } = prepared;
        let graph = &compiled.graph;
        let inputs = Inputs { tokens: reading.tokens, positions: &reading.positions, residual: reading.residual };
        write_inputs(graph, slots, &mut self.devices, &inputs);
        let run = Run {
            model: &self.model,
            compiled,
            sequence: &self.sequence,
            proxies: &self.proxies,
            slots,
            staged,
            mode: CacheMode::Fixed,
        };
        let mut watch = Watch {
            graph,
            progress,
            sink,
            interrupt: self.interrupt.clone(),
            records,
            selected: HashMap::new(),
            work_done: share.before,
            work_all: share.before + work(&compiled.program.phases) + share.behind,
            n_layer: self.model.shape().n_layer,
            n_tokens: reading.positions.len(),
        };
        executor::run(&run, &mut self.devices, repeated, &mut watch)?;
        Ok(watch.selected)
    }

    /// Makes room for what a program will keep in the caches, and for the answer behind it.
    fn reserve_caches(&mut self, compiled: &Compiled) -> Result<Staged> {
        let graph = &compiled.graph;
        let room = self.n_ctx().saturating_sub(self.sequence.n_past() + graph.n_tokens);
        let wanted = self.staged_layers(compiled);
        let staged = self.sequence.stage(graph, &compiled.program, &wanted)?;
        self.sequence.reserve(graph.first_layer, &entries(graph), self.answer_room.min(room), &staged)?;
        Ok(staged)
    }

    /// Layers that read the prompt in turns, and the rows that each adds.
    fn staged_layers(&self, compiled: &Compiled) -> Vec<(usize, usize)> {
        self.sequence.wanted_turns(&compiled.graph, &compiled.program, self.model.shape())
    }

    /// Gives a program memory. Where a device has too little for tiles of the usual size, they are made smaller, unless their
    /// size was asked for.
    pub(super) fn prepare(&mut self, mut compiled: Compiled) -> Result<Prepared> {
        loop {
            let staged = self.reserve_caches(&compiled)?;
            let slots = self.slot_memory(&compiled)?;
            let run = Run {
                model: &self.model,
                compiled: &compiled,
                sequence: &self.sequence,
                proxies: &self.proxies,
                slots: &slots,
                staged: &staged,
                mode: CacheMode::Fixed,
            };
            match executor::reserve(&run, &mut self.devices) {
                Ok(()) => {
                    let n_past = self.sequence.n_past();
                    return Ok(Prepared { compiled, slots, staged, n_past, repeated: RepeatedGraphs::default() });
                }
                Err(Error::Ggml(GgmlError::OutOfMemory { .. }))
                    if self.options.n_ubatch.is_none() && compiled.tile > SMALLEST_TILE =>
                {
                    drop(slots);
                    let smaller = compiled.tile / 2;
                    compiled = compiled.in_tiles_of(smaller);
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Tokens computed at a time: as asked for, or what suits the devices.
    pub fn tile(&self) -> usize {
        self.target().tile()
    }
}

/// Tiles are not made smaller than this to save memory.
const SMALLEST_TILE: usize = 256;

/// A prefill's program with its memory. It stays, since the next prompt may have the same length.
pub(super) struct Prepared {
    pub(super) compiled: Compiled,
    pub(super) slots: Vec<SlotMemory>,
    /// Layers that read the prompt in shared memory.
    pub(super) staged: Staged,
    /// Tokens read before, when it was made.
    n_past: usize,
    repeated: RepeatedGraphs,
}

/// Entries that each of a graph's layers adds to its cache, which not all layers have.
pub(super) fn entries(graph: &Graph) -> Vec<usize> {
    (0..graph.layers.len()).map(|layer| graph.kept_rows(layer).unwrap_or(0)).collect()
}

/// The tokens that a program reads.
pub(super) struct Reading<'t> {
    /// Ids; a program that begins between layers seldom reads them.
    pub(super) tokens: &'t [u32],
    /// One for each token.
    pub(super) positions: Vec<usize>,
    /// Tokens of the prompt that they stand for.
    pub(super) n_read: usize,
    /// The residual stream, where the program begins between layers, and the device that reads it.
    pub(super) residual: Option<(&'t Residual, usize)>,
}

impl<'t> Reading<'t> {
    /// All of `tokens`, behind `n_past` others.
    pub(super) fn all(tokens: &'t [u32], n_past: usize) -> Self {
        let positions = (n_past..n_past + tokens.len()).collect();
        Self { tokens, positions, n_read: tokens.len(), residual: None }
    }
}

/// The work of other programs of the same prompt, in [`work`]'s measure, for the progress.
#[derive(Clone, Copy)]
pub(super) struct Share {
    /// Done before this program.
    pub(super) before: usize,
    /// To be done behind it.
    pub(super) behind: usize,
}

impl Share {
    /// One program does it all.
    pub(super) const WHOLE: Share = Share { before: 0, behind: 0 };
}
