//! Runs a program: phase by phase, tile by tile, on the devices where the layers live.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use crate::Result;
use crate::compile::lower::{self, InputKind};
use crate::compile::mask_buffer::MaskBuffer;
use crate::compile::memory::{CacheMode, Memory, ProxyTensors, RecurrentTensors};
use crate::compile::phases::{Phase, PhaseKind};
use crate::ggml::block_lists::BLOCK;
use crate::ggml::arena::{read_f32, read_i32};
use crate::ggml::backend::Backend;
use crate::ggml::kernels::Kernels;
use crate::ggml::ops::{KeptTensor, Ops};
use crate::ggml::{GgmlError, Tensor};
use crate::graph::ir::{Node, NodeId, Op, Tap, WeightId};

use super::device::Device;
use super::fetched::Fetched;
use super::masks::Masks;
use super::repeated::{Memories, REPEATED_TILES, RepeatedGraph, RepeatedGraphs, RepeatedPlace};
use super::run::Run;
use super::select;

/// What the executor tells while it runs.
pub trait Watcher {
    /// A phase begins. An error stops the run.
    fn phase(&mut self, phase: &Phase) -> Result<()>;
    /// Indices were selected by `node`; only called if [`Watcher::wants_selections`].
    fn selected(&mut self, node: NodeId, indices: &[i32]);
    /// Whether selections have to be read back from a GPU.
    fn wants_selections(&self) -> bool;
    /// A capture of the graph has its values.
    fn captured(&mut self, captured: Captured<'_>);
}

/// Some rows of a value that a [`Op::Capture`] asked for.
#[derive(Clone, Debug)]
pub struct Captured<'v> {
    /// Layer.
    pub layer: usize,
    /// Which value.
    pub tap: Tap,
    /// Its rows, among all the prompt's.
    pub rows: Range<usize>,
    /// `[n_feat, rows]`
    pub values: &'v [f32],
}

/// The memory of one device, as lowering sees it.
struct DeviceMemory<'r> {
    run: &'r Run<'r>,
    device: usize,
    kernels: Kernels,
    masks: &'r Masks,
    fetched: &'r Fetched,
}

impl<'r> DeviceMemory<'r> {
    fn new(run: &'r Run<'r>, device: usize, backend: &Backend, masks: &'r Masks, fetched: &'r Fetched) -> Self {
        Self { run, device, kernels: backend.kernels(), masks, fetched }
    }
}

impl Memory for DeviceMemory<'_> {
    fn weight(&self, id: WeightId) -> Tensor<'_> {
        self.fetched.get(id).unwrap_or_else(|| self.run.model.weight_tensor(self.device, id))
    }

    fn matrix(&self, id: WeightId, rows: usize) -> Tensor<'_> {
        self.run.model.matrix_tensor(self.device, id, rows)
    }

    fn stored(&self, id: NodeId) -> Tensor<'_> {
        self.run.slots[self.device].get(id)
    }

    fn cache_k(&self, layer: usize) -> Tensor<'_> {
        self.run.sequence.cache_in(self.run.staged, layer).k()
    }

    fn cache_v(&self, layer: usize) -> Tensor<'_> {
        self.run.sequence.cache_in(self.run.staged, layer).v()
    }

    fn recurrent(&self, layer: usize, is_under_way: bool) -> RecurrentTensors<'_> {
        self.run.sequence.recurrent(layer).tensors(is_under_way)
    }

    fn n_past(&self, layer: usize) -> usize {
        self.run.sequence.cache(layer).len()
    }

    fn has_gaps(&self, layer: usize) -> bool {
        self.run.sequence.cache(layer).positions().is_some()
    }

    fn mask(&self, window: Option<usize>) -> MaskBuffer<'_> {
        self.masks.get(window)
    }

    fn proxy(&self, layer: usize) -> ProxyTensors<'_> {
        self.run.proxy(self.device, layer)
    }

    fn kernels(&self) -> Kernels {
        self.kernels
    }
}

/// Runs all phases, and queues the last work of a GPU: whoever reads results waits for it.
///
/// # Errors
/// Out of memory, a failed computation, a missing kernel, or the watcher's.
pub fn run(run: &Run, devices: &mut [Device], kept: &mut RepeatedGraphs, watcher: &mut dyn Watcher) -> Result<()> {
    let mut homes = Homes::new(run, devices.len());
    // A token's, of however many phases, are computed again with the next one.
    let n_tiles = || run.compiled.program.phases.iter().map(|p| tiles(run, p).len()).sum::<usize>();
    let keeps = run.mode == CacheMode::Indexed || n_tiles() <= REPEATED_TILES;
    for (number, phase) in run.compiled.program.phases.iter().enumerate() {
        watcher.phase(phase)?;
        let device = device_of(run, phase);
        homes.fetch(run, devices, phase, device);
        if run.sequence.begins_turn(run.staged, number) {
            devices[device].backend.synchronize();
            run.sequence.begin_turns(run.staged, number);
        }
        for node in phase.nodes.iter().map(|id| run.compiled.graph.node(*id)) {
            if let Some(layer) = node.layer.filter(|_| run.model.placement().fetches(node)) {
                let d = &mut devices[device];
                d.fetched.fetch(run.model, layer, &mut d.backend);
            }
        }
        for rows in tiles(run, phase) {
            let kept = keeps.then_some((&mut *kept, RepeatedPlace { phase: number, row: rows.start, turn: turn(run, phase) }));
            match phase.kind {
                PhaseKind::Select => select_phase(run, &mut devices[device], device, phase, kept, watcher)?,
                PhaseKind::Whole | PhaseKind::Tiled => {
                    tile(run, &mut devices[device], device, phase, rows, kept, watcher)?;
                }
            }
        }
        homes.written(phase, device);
        if run.staged.ends(number) {
            devices[device].backend.synchronize();
            run.sequence.end_turns(run.staged, number);
        }
    }
    // Results are read on one of them.
    if let [_, _, ..] = devices {
        devices.iter_mut().for_each(|d| d.backend.synchronize());
    }
    Ok(())
}

/// Which of their two states the phase's recurrent layers begin with.
fn turn(run: &Run, phase: &Phase) -> usize {
    let layer = phase.nodes.iter().find_map(|id| match run.compiled.graph.node(*id).op {
        Op::DeltaNet { layer, .. } => Some(layer),
        _ => None,
    });
    layer.map_or(0, |layer| run.sequence.recurrent(layer).turn())
}

/// The rows of a phase's tiles.
fn tiles(run: &Run, phase: &Phase) -> Vec<Range<usize>> {
    let size = if phase.kind == PhaseKind::Tiled { tile_rows(phase.rows, run.compiled.tile) } else { phase.rows };
    (0..phase.rows).step_by(size.max(1)).map(|start| start..(start + size).min(phase.rows)).collect()
}

/// Makes every device's masks, and sizes its scratch for the largest tile, so that nothing is allocated while work is queued.
///
/// # Errors
/// Out of memory, a missing kernel.
pub fn reserve(run: &Run, devices: &mut [Device]) -> Result<()> {
    for (device, d) in devices.iter_mut().enumerate() {
        let sizes = |phase: &Phase| {
            let of_device = if device_of(run, phase) == device { tiles(run, phase) } else { Vec::new() };
            of_device.iter().map(|rows| rows.len()).collect()
        };
        let fetches = |node: &Node| run.model.placement().fetches(node) && run.model.placement().of(node) == device;
        if run.compiled.graph.nodes.iter().any(fetches) {
            d.fetched.reserve(run.model, device, d.backend.buffer_type())?;
        }
        let memory = DeviceMemory::new(run, device, &d.backend, &d.masks, &d.fetched);
        let needs = lower::masks_needed(&memory, &run.compiled.graph, &run.compiled.program, &sizes);
        d.masks.prepare(&needs, d.backend.buffer_type())?;
    }
    // Layers are alike: what has been sized once is not lowered again.
    let mut seen = HashSet::new();
    for phase in &run.compiled.program.phases {
        let device = device_of(run, phase);
        let d = &mut devices[device];
        if (phase.kind == PhaseKind::Select && d.backend.is_cpu()) || !seen.insert((device, shape(run, phase))) {
            continue;
        }
        let tile = if phase.kind == PhaseKind::Tiled { tile_rows(phase.rows, run.compiled.tile) } else { phase.rows };
        let last = (phase.rows - tile)..phase.rows;
        d.ops.start(lower::max_ggml_nodes(&run.compiled.graph, phase, tile));
        let memory = DeviceMemory::new(run, device, &d.backend, &d.masks, &d.fetched);
        lower::lower(&d.ops, &memory, &run.compiled.graph, &run.compiled.program, phase, last, run.mode);
        d.backend.check_support(&d.ops)?;
        d.backend.reserve(&d.ops)?;
    }
    for (device, d) in devices.iter_mut().enumerate().filter(|(_, d)| !d.backend.is_cpu()) {
        d.check_room_for_copies(device, run)?;
    }
    Ok(())
}

/// What decides how much scratch a phase takes: operations and sizes.
fn shape(run: &Run, phase: &Phase) -> Vec<(std::mem::Discriminant<Op>, bool, usize, usize)> {
    let of = |id: &NodeId| {
        let node = run.compiled.graph.node(*id);
        let has_lists = matches!(node.op, Op::Attention { blocks: Some(_), .. });
        (std::mem::discriminant(&node.op), has_lists, node.n_feat, node.n_rows)
    };
    phase.nodes.iter().map(of).collect()
}

/// Rows of a phase's tiles: as many tiles as the largest size asks for, but of about one size, since a small rest costs
/// nearly as much as a whole tile, and of whole blocks, for which attention chooses what it reads, if the size takes any.
fn tile_rows(rows: usize, largest: usize) -> usize {
    let even = rows.div_ceil(rows.div_ceil(largest));
    even.next_multiple_of(BLOCK).min(largest).min(rows)
}

fn device_of(run: &Run, phase: &Phase) -> usize {
    run.model.placement().of(run.compiled.graph.node(phase.nodes[0]))
}

/// Where a tile's graph is kept, if it is.
type Place<'k> = Option<(&'k mut RepeatedGraphs, RepeatedPlace)>;

fn tile(
    run: &Run,
    d: &mut Device,
    device: usize,
    phase: &Phase,
    rows: Range<usize>,
    kept: Place<'_>,
    watcher: &mut dyn Watcher,
) -> Result<()> {
    let nodes = lower::max_ggml_nodes(&run.compiled.graph, phase, rows.len());
    let Some((kept, place)) = kept else {
        let mut ops = std::mem::take(&mut d.ops);
        ops.start(nodes);
        let done = compute_tile(run, d, &ops, device, phase, rows, watcher);
        d.ops = ops;
        return done.map(|_| ());
    };
    if let Some(graph) = kept.graphs.get(&place)
        && graph.relies_on == Memories::of(run, d, phase, &rows)
    {
        for (input, what) in &graph.inputs {
            let tensor = graph.ops.kept(*input);
            d.backend.write(tensor, &host_input(run, *what, tensor));
        }
        return compute(d, &graph.ops);
    }
    // In the memory of the one before, if there was one.
    let mut ops = kept.graphs.remove(&place).map(|old| old.ops).unwrap_or_default();
    ops.start(nodes);
    ops.will_repeat();
    if let Some(inputs) = compute_tile(run, d, &ops, device, phase, rows.clone(), watcher)? {
        let relies_on = Memories::of(run, d, phase, &rows);
        kept.graphs.insert(place, RepeatedGraph { ops, inputs, relies_on });
    }
    Ok(())
}

/// Builds a tile's graph in `ops` and computes it. Returns its inputs, unless the host has to look into each computation.
fn compute_tile(
    run: &Run,
    d: &mut Device,
    ops: &Ops,
    device: usize,
    phase: &Phase,
    rows: Range<usize>,
    watcher: &mut dyn Watcher,
) -> Result<Option<Vec<(KeptTensor, InputKind)>>> {
    let memory = DeviceMemory::new(run, device, &d.backend, &d.masks, &d.fetched);
    let lowered = lower::lower(ops, &memory, &run.compiled.graph, &run.compiled.program, phase, rows.clone(), run.mode);
    d.backend.allocate(ops)?;
    for input in &lowered.inputs {
        d.backend.write(input.tensor, &host_input(run, input.what, input.tensor));
    }
    let inputs = lowered.inputs.iter().map(|i| (ops.keep(i.tensor), i.what)).collect();
    let captures: Vec<(usize, Tap, KeptTensor)> = lowered.captures.iter().map(|(l, t, x)| (*l, *t, ops.keep(*x))).collect();
    compute(d, ops)?;
    if captures.is_empty() {
        return Ok(Some(inputs));
    }
    d.backend.synchronize();
    for (layer, tap, tensor) in captures {
        watcher.captured(Captured { layer, tap, rows: rows.clone(), values: &read_f32(ops.kept(tensor)) });
    }
    Ok(None)
}

fn compute(d: &mut Device, ops: &Ops) -> Result<()> {
    match &mut d.op_times {
        Some(times) => d.backend.compute_timed(ops, times),
        None => d.backend.compute(ops),
    }
    .map_err(stopped)
}

fn stopped(e: GgmlError) -> crate::Error {
    match e {
        GgmlError::Aborted => crate::Error::Interrupted,
        e => e.into(),
    }
}

fn select_phase(
    run: &Run,
    d: &mut Device,
    device: usize,
    phase: &Phase,
    kept: Place<'_>,
    watcher: &mut dyn Watcher,
) -> Result<()> {
    let id = phase.nodes[0];
    let node = run.compiled.graph.node(id);
    let slots = &run.slots[device];
    match node.op {
        Op::RandomScores { seed, layer } => {
            d.backend.synchronize();
            let scores = select::random_scores(seed, layer, node.n_rows);
            slots.set(id, &scores.iter().flat_map(|s| s.to_le_bytes()).collect::<Vec<u8>>());
        }
        Op::TopK { m, first, forced } if d.backend.is_cpu() => {
            let indices = select::top_k(&read_f32(slots.get(node.src[0])), m, [first, forced]);
            slots.set(id, &indices.iter().flat_map(|i| i.to_le_bytes()).collect::<Vec<u8>>());
            if watcher.wants_selections() {
                watcher.selected(id, &indices);
            }
        }
        Op::IsMember if d.backend.is_cpu() => {
            let [rows, members] = [0, 1].map(|i| read_i32(slots.get(node.src[i])));
            let found = select::is_member(&rows, &members);
            slots.set(id, &found.iter().flat_map(|f| f.to_le_bytes()).collect::<Vec<u8>>());
        }
        _ => {
            tile(run, d, device, phase, 0..phase.rows, kept, watcher)?;
            if watcher.wants_selections() && matches!(node.op, Op::TopK { .. }) {
                d.backend.synchronize();
                watcher.selected(id, &read_i32(slots.get(id)));
            }
        }
    }
    Ok(())
}

/// Contents of a host input.
fn host_input(run: &Run, what: InputKind, tensor: Tensor<'_>) -> Vec<u8> {
    let (ne0, n) = (tensor.ne(0), tensor.ne(1));
    match what {
        InputKind::CacheRows { layer } => {
            let n_past = run.sequence.cache(layer).len();
            (n_past as i64..(n_past + ne0) as i64).flat_map(|r| r.to_le_bytes()).collect()
        }
        InputKind::Mask { layer, ahead, from, window } => {
            let cache = run.sequence.cache(layer);
            let first = cache.len() + ahead;
            let position = |row: usize| match cache.positions() {
                Some(p) if row < p.len() => p[row] as usize,
                Some(p) => run.sequence.n_past() + row - p.len(),
                None => row,
            };
            let masked = half::f16::NEG_INFINITY.to_le_bytes();
            let visible = half::f16::ZERO.to_le_bytes();
            let mut bytes = Vec::with_capacity(ne0 * n * 2);
            for own in first..first + n {
                let start = bytes.len();
                bytes.extend(visible.repeat((own + 1 - from).min(ne0)));
                bytes.extend(masked.repeat(ne0 - (bytes.len() - start) / 2));
                let Some(w) = window else { continue };
                // Positions ascend: what has left the window comes first.
                for (row, bits) in (from..=own).zip(bytes[start..].chunks_exact_mut(2)) {
                    if position(own) - position(row) < w {
                        break;
                    }
                    bits.copy_from_slice(&masked);
                }
            }
            bytes
        }
    }
}

/// Which devices hold an up-to-date copy of each stored value; matters only with layers on several devices.
struct Homes {
    devices: usize,
    at: HashMap<NodeId, Vec<usize>>,
}

impl Homes {
    fn new(run: &Run, devices: usize) -> Self {
        let nodes = run.compiled.graph.nodes.iter().enumerate();
        let at = nodes.filter_map(|(i, node)| match node.op {
            Op::Tokens | Op::Positions => Some((NodeId(i as u32), (0..devices).collect())),
            Op::Residual => Some((NodeId(i as u32), vec![run.model.placement().of(node)])),
            _ => None,
        });
        let at = at.collect();
        Self { devices, at }
    }

    /// Copies to `device` what the phase reads and only others have.
    fn fetch(&mut self, run: &Run, devices: &mut [Device], phase: &Phase, device: usize) {
        if self.devices == 1 {
            return;
        }
        for id in &phase.nodes {
            for s in &run.compiled.graph.node(*id).src {
                let Some(homes) = self.at.get_mut(s) else { continue };
                if !run.slots[device].has(*s) || homes.contains(&device) {
                    continue;
                }
                let from = homes[0];
                devices[from].backend.synchronize();
                devices[device].backend.synchronize();
                let t = run.slots[from].get(*s);
                let bytes = crate::ggml::arena::read_bytes(t, 0, t.nb(1) * t.ne(1));
                run.slots[device].set(*s, &bytes);
                homes.push(device);
            }
        }
    }

    fn written(&mut self, phase: &Phase, device: usize) {
        if self.devices > 1 {
            self.at.extend(phase.nodes.iter().map(|id| (*id, vec![device])));
        }
    }
}
