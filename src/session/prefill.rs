//! Prefill: from a prompt's tokens to its caches and the logits of its last token.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::ggml::GgmlError;
use crate::graph::fuse_ffn::fuse_gated_ffn;
use crate::graph::ir::{Graph, NodeId, Op, Tap, WeightId};
use crate::graph::keep_normalized::keep_normalized;
use crate::graph::last_row::{CPU_QUERIES, keep_last_row};
use crate::graph::lower::CacheMode;
use crate::graph::phases::{self, Phase, Program};
use crate::graph::verify::verify;
use crate::spts::capture::{Capture, insert_captures};
use crate::spts::passes;
use crate::spts::schedule::{LayerBudget, Resolved};
use crate::{Error, Result};

use super::executor::{self, Captured, Observer, Run};
use super::kept::KeptGraphs;
use super::sampler::has_no_numbers;
use super::slots::SlotMemory;
use super::{DECODE_RESERVE, Session, write_inputs};

/// Where a prefill is.
#[derive(Clone, Copy, Debug, PartialEq)]
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

/// What a prefill did.
#[derive(Clone, Debug, Default)]
pub struct PrefillReport {
    /// Tokens of the prompt.
    pub n_tokens: usize,
    /// Wall time in seconds, from the call to the logits.
    pub seconds: f64,
    /// Budgets of every layer; empty if the prefill was dense.
    pub layers: Vec<LayerBudget>,
    /// Entries in the KV caches over those of a dense prefill.
    pub cache_kept: f64,
    /// Bytes of hidden states and other values between phases.
    pub slot_bytes: usize,
    /// Bytes of scratch, over all devices.
    pub scratch_bytes: usize,
    /// Nodes of the executed graph.
    pub n_nodes: usize,
    /// Rows computed at a time, at most.
    pub tile: usize,
    /// Candidates and active tokens by layer, if they were asked for.
    pub selection: Vec<Selection>,
}

/// Which tokens a layer worked on, as positions in the prompt.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Selection {
    /// Layer.
    pub il: usize,
    /// Tokens still in the network.
    pub candidates: Vec<i32>,
    /// Active in attention (all candidates where nothing is skipped).
    pub active_attn: Vec<i32>,
    /// Active in the FFN. Where a stage ends, those of them that it prunes are not computed.
    pub active_ffn: Vec<i32>,
}

/// Receives captured values, tile by tile and layer by layer.
pub type CaptureSink<'a> = dyn FnMut(Captured<'_>) + 'a;

impl Session {
    /// Reads a prompt. Afterwards [`Session::logits`] are those of its last token.
    ///
    /// `progress` is called between layers; breaking stops the prefill with [`Error::Interrupted`], and leaves the session as
    /// it was before.
    ///
    /// SPTS acts if the session has a schedule, nothing was read before, and the prompt exceeds the first budget.
    ///
    /// # Errors
    /// Empty prompt, context full, out of memory, interrupted.
    pub fn prefill(
        &mut self,
        tokens: &[u32],
        progress: &mut dyn FnMut(PrefillProgress) -> ControlFlow<()>,
    ) -> Result<PrefillReport> {
        let start = Instant::now();
        self.check_prompt(tokens)?;
        let resolved = self.resolve(tokens.len())?;
        // Whatever else a graph follows from is the same for the whole session. One that does not fit is let go first: two
        // would take twice the memory.
        let prepared = match self.prepared.take() {
            Some(p) if p.graph.n_tokens == tokens.len() && p.n_past == self.n_past => p,
            other => {
                drop(other);
                let dense = self.model.graph(tokens.len(), self.n_ctx());
                let graph = match &resolved {
                    Some(r) => passes::skip_and_prune(&dense, r, self.schedule_in_use())?,
                    None => dense,
                };
                let on_gpu = self.devices.iter().any(|d| !d.backend.is_cpu());
                let graph = keep_last_row(&graph, if on_gpu { 1 } else { CPU_QUERIES });
                self.prepare(if on_gpu { self.fuse(&graph) } else { graph })?
            }
        };
        self.run_prefill(start, tokens, prepared, resolved, progress, None)
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
        // As the layers are written down: calibration looks into them.
        let graph = insert_captures(&self.model.graph(tokens.len(), self.n_ctx()), capture);
        let prepared = self.prepare(graph)?;
        let report = self.run_prefill(start, tokens, prepared, None, progress, Some(sink));
        self.prepared = None;
        report
    }

    /// Rewrites a graph for what GPUs compute in one operation.
    fn fuse(&self, graph: &Graph) -> Graph {
        let graph = fuse_gated_ffn(graph);
        let kernels = || self.devices.iter().map(|d| d.backend.kernels());
        if !kernels().all(|k| k.rows_of(self.model.hparams().n_embd)) {
            return graph;
        }
        let proxy = self.options.sidecar.as_ref().map(|s| s.size());
        keep_normalized(&graph, &|op, rows| {
            let rows = rows.min(self.tile());
            let product = |w: &WeightId| kernels().all(|k| k.product(rows, self.model.weight(*w).ty));
            match op {
                Op::Linear { weight, .. } => product(weight),
                Op::GatedFfn { gate, up, down, .. } => [gate, up, down].into_iter().all(product),
                Op::ProxyNorm { .. } => proxy.is_some_and(|p| kernels().all(|k| k.proxy_norm(rows, p.rank, p.d_low))),
                _ => false,
            }
        })
    }

    fn check_prompt(&self, tokens: &[u32]) -> Result<()> {
        if tokens.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        self.check_tokens(tokens)?;
        self.check_interrupt()
    }

    fn schedule_in_use(&self) -> &crate::spts::schedule::Schedule {
        self.options.schedule.as_ref().expect("a resolved schedule comes from one")
    }

    /// Budgets of this prompt, or `None` if it runs dense.
    fn resolve(&self, n_tokens: usize) -> Result<Option<Resolved>> {
        let Some(schedule) = &self.options.schedule else { return Ok(None) };
        if self.n_past > 0 || n_tokens == 0 {
            return Ok(None);
        }
        let hp = self.model.hparams();
        let is_swa = |l: usize| hp.window(l).is_some();
        let resolved = if self.options.force_probes {
            schedule.resolve_forced(hp.n_layer, n_tokens, &is_swa)?
        } else if self.options.at_any_length {
            schedule.resolve_at_any_length(hp.n_layer, n_tokens, &is_swa)?
        } else {
            schedule.resolve(hp.n_layer, n_tokens, &is_swa)?
        };
        if resolved.is_dense() {
            return Ok(None);
        }
        if schedule.use_proxy {
            self.check_proxies(&resolved)?;
        }
        Ok(Some(resolved))
    }

    /// Checks that every layer whose FFN will be scored by a proxy has one.
    fn check_proxies(&self, resolved: &Resolved) -> Result<()> {
        let scored: Vec<usize> = (0..resolved.layers.len())
            .filter(|&l| {
                let b = &resolved.layers[l];
                b.probe && (b.active_ffn < b.candidates || resolved.forced)
            })
            .collect();
        match &self.options.sidecar {
            _ if scored.is_empty() => Ok(()),
            Some(sidecar) => Ok(sidecar.check_layers(scored)?),
            None => Err(Error::ProxiesMissing),
        }
    }

    fn run_prefill(
        &mut self,
        start: Instant,
        tokens: &[u32],
        mut prepared: Prepared,
        resolved: Option<Resolved>,
        progress: &mut dyn FnMut(PrefillProgress) -> ControlFlow<()>,
        sink: Option<&mut CaptureSink>,
    ) -> Result<PrefillReport> {
        let n = tokens.len();
        let Prepared { graph, program, slots, tile, kept: graphs, .. } = &mut prepared;
        let kept = kept_rows(graph);
        self.start_call();
        write_inputs(graph, slots, &mut self.devices, tokens, self.n_past);
        let run = Run {
            model: &self.model,
            graph,
            program,
            caches: &self.caches,
            proxies: &self.proxies,
            slots,
            tile: *tile,
            mode: CacheMode::Fixed,
            first_position: self.n_past,
        };
        let window = self.model.hparams().swa.map(|s| s.window);
        let prunes_windows = window.is_some() && graph.layers.iter().any(|a| a.kept.is_some());
        let mut watch = Watch {
            graph,
            progress,
            sink,
            interrupt: self.interrupt.clone(),
            records: self.options.record_selection || prunes_windows,
            selected: HashMap::new(),
            work_done: 0,
            work_all: work(&program.phases),
            n_tokens: n,
        };
        executor::run(&run, &mut self.devices, graphs, &mut watch)?;

        let output = self.model.placement().output;
        self.logits.read(&mut self.devices[output].backend, slots[output].get(graph.logits));
        self.is_suspect = has_no_numbers(self.logits.as_slice());
        let selection = if watch.records { selections(graph, &watch.selected, self.n_past) } else { Vec::new() };
        for (layer, cache) in self.caches.iter_mut().enumerate() {
            // With a sliding window decode masks by position, so gaps have to be known.
            if prunes_windows {
                cache.positions = Some(selection[layer].active_attn.clone());
                cache.len += kept[layer];
            } else {
                cache.advance(kept[layer], self.n_past);
            }
        }
        self.n_past += n;
        let dense_entries = (n * kept.len()) as f64;
        let report = PrefillReport {
            n_tokens: n,
            seconds: start.elapsed().as_secs_f64(),
            layers: resolved.map(|r| r.layers).unwrap_or_default(),
            cache_kept: kept.iter().sum::<usize>() as f64 / dense_entries,
            slot_bytes: slots.iter().map(|s| s.n_bytes()).sum(),
            scratch_bytes: self.devices.iter().map(|d| d.backend.scratch_bytes()).sum(),
            n_nodes: graph.nodes.len(),
            tile: *tile,
            selection: if self.options.record_selection { selection } else { Vec::new() },
        };
        self.prepared = Some(prepared);
        Ok(report)
    }

    /// Makes room for what a graph will keep in the caches.
    fn reserve_caches(&mut self, graph: &Graph) -> Result<()> {
        let (n, kept) = (graph.n_tokens, kept_rows(graph));
        let answer = DECODE_RESERVE.min(self.options.n_ctx.map_or(DECODE_RESERVE, |c| c.saturating_sub(n)));
        for (cache, rows) in self.caches.iter_mut().zip(&kept) {
            cache.reserve(cache.len + rows + answer)?;
        }
        Ok(())
    }

    /// Plans a graph and gives it memory. Where a device has too little for tiles of the usual size, they are made smaller,
    /// unless their size was asked for.
    fn prepare(&mut self, graph: Graph) -> Result<Prepared> {
        verify(&graph)?;
        self.reserve_caches(&graph)?;
        let placement = self.model.placement().clone();
        // A program that skips is long. Cut by layers, it has a GPU compute one while the next is built.
        let on_gpu = self.devices.iter().any(|d| !d.backend.is_cpu());
        let in_layers = on_gpu && graph.layers.iter().any(|a| a.scores.is_some());
        let mut tile = self.tile();
        loop {
            let cuts = |l: usize| l > 0 && (in_layers || placement.layer[l] != placement.layer[l - 1]);
            let program = phases::plan(&graph, tile, &cuts);
            let slots = self.slot_memory(&graph, &program)?;
            let run = Run {
                model: &self.model,
                graph: &graph,
                program: &program,
                caches: &self.caches,
                proxies: &self.proxies,
                slots: &slots,
                tile,
                mode: CacheMode::Fixed,
                first_position: self.n_past,
            };
            match executor::reserve(&run, &mut self.devices) {
                Ok(()) => {
                    let (n_past, kept) = (self.n_past, KeptGraphs::default());
                    return Ok(Prepared { graph, program, slots, tile, n_past, kept });
                }
                Err(Error::Ggml(GgmlError::OutOfMemory { .. }))
                    if self.options.n_ubatch.is_none() && tile > SMALLEST_TILE =>
                {
                    tile /= 2;
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Tokens computed at a time: as asked for, or what suits the devices.
    pub fn tile(&self) -> usize {
        let all_cpu = self.devices.iter().all(|d| d.backend.is_cpu());
        self.options.n_ubatch.unwrap_or(if all_cpu { CPU_TILE } else { GPU_TILE }).max(1)
    }
}

/// Rows of a tile, unless asked otherwise. On a GPU large tiles dequantize weights less often; this size takes the first
/// budget of LLaMA's schedule (9K) in one tile and 32K in four.
const CPU_TILE: usize = 512;
const GPU_TILE: usize = 10 * 1024;

/// Tiles are not made smaller than this to save memory.
const SMALLEST_TILE: usize = 256;

/// A prefill's graph with its plan and memory. Kept, since the next prompt may have the same length.
pub(super) struct Prepared {
    graph: Graph,
    program: Program,
    slots: Vec<SlotMemory>,
    tile: usize,
    /// Tokens read before, when it was made.
    n_past: usize,
    kept: KeptGraphs,
}

/// Entries that each layer adds to its cache.
fn kept_rows(graph: &Graph) -> Vec<usize> {
    graph.layers.iter().map(|a| graph.node(graph.node(a.attn).src[1]).n_rows).collect()
}

/// A measure of a program's work for the progress bar: rows times nodes.
fn work(phases: &[Phase]) -> usize {
    phases.iter().map(phase_work).sum()
}

fn phase_work(phase: &Phase) -> usize {
    phase.rows * phase.nodes.len()
}

/// Turns the indices selected by each node into positions, layer by layer.
fn selections(graph: &Graph, selected: &HashMap<NodeId, Vec<i32>>, first: usize) -> Vec<Selection> {
    let mut candidates: Vec<i32> = (0..graph.n_tokens).map(|i| (first + i) as i32).collect();
    let mut all = Vec::with_capacity(graph.layers.len());
    for (il, a) in graph.layers.iter().enumerate() {
        let of = |node: Option<NodeId>| match node.and_then(|n| selected.get(&n)) {
            Some(indices) => indices.iter().map(|&i| candidates[i as usize]).collect(),
            None => candidates.clone(),
        };
        all.push(Selection {
            il,
            active_attn: of(a.active_attn),
            active_ffn: of(a.active_ffn),
            candidates: candidates.clone(),
        });
        candidates = of(a.kept);
    }
    all
}

/// Progress, interruption, records and captures of a prefill.
struct Watch<'a, 's> {
    graph: &'a Graph,
    progress: &'a mut dyn FnMut(PrefillProgress) -> ControlFlow<()>,
    sink: Option<&'a mut CaptureSink<'s>>,
    interrupt: Arc<AtomicBool>,
    records: bool,
    selected: HashMap<NodeId, Vec<i32>>,
    work_done: usize,
    work_all: usize,
    n_tokens: usize,
}

impl Observer for Watch<'_, '_> {
    fn phase(&mut self, phase: &Phase) -> Result<()> {
        let n_layer = self.graph.layers.len();
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

/// An observer that does nothing (decode).
pub(super) struct Quiet;

impl Observer for Quiet {
    fn phase(&mut self, _: &Phase) -> Result<()> {
        Ok(())
    }

    fn selected(&mut self, _: NodeId, _: &[i32]) {}

    fn wants_selections(&self) -> bool {
        false
    }

    fn captured(&mut self, _: Captured<'_>) {}
}
