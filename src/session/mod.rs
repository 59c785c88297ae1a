//! A session: KV caches over a model, prefill, decode.
//!
//! [`executor`] runs graphs, [`kept`] keeps some of them, [`kv_cache`] holds what they append to, [`slots`] what lives between
//! phases, [`masks`] the attention masks, [`select`] selects on the host, [`prefill`] builds and runs the graph of a prompt,
//! [`generate`] streams tokens, [`sampler`] picks them.

pub mod executor;
pub mod generate;
pub mod kept;
pub mod kv_cache;
pub mod masks;
pub mod prefill;
pub mod sampler;
pub mod select;
pub mod slots;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::ggml::backend::Backend;
use crate::ggml::host::HostF32;
use crate::ggml::profile::OpTimes;
use crate::graph::lower::CacheMode;
use crate::graph::phases::{self, Program};
use crate::graph::{Graph, verify};
use crate::model::loaded::Model;
use crate::spts::schedule::Schedule;
use crate::spts::sidecar::{ProxyMemory, Sidecar};
use crate::{Error, Result};

use executor::{Device, Run};
use kept::KeptGraphs;
use kv_cache::{CacheType, LayerCache};
use prefill::Quiet;
use slots::SlotMemory;

/// How a session runs.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// Tokens that prompt and answer may have together; `None`: what the model was trained with.
    pub n_ctx: Option<usize>,
    /// Rows of a tile; `None`: 512 on the CPU, 10240 on a GPU.
    pub n_ubatch: Option<usize>,
    /// CPU threads; `None`: one for each physical core.
    pub n_threads: Option<usize>,
    /// Type of cached keys.
    pub cache_type_k: CacheType,
    /// Type of cached values.
    pub cache_type_v: CacheType,
    /// Skip and prune tokens after this schedule; `None`: dense.
    pub schedule: Option<Schedule>,
    /// Go through the schedule's stages even if the prompt is not longer than the first budget.
    pub at_any_length: bool,
    /// Insert probes even where every candidate fits the budget (for tests).
    pub force_probes: bool,
    /// Low-rank FFN proxies, needed if the schedule uses them.
    pub sidecar: Option<Arc<Sidecar>>,
    /// Record the candidates and active tokens of every layer in the report.
    pub record_selection: bool,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            n_ctx: None,
            n_ubatch: None,
            n_threads: None,
            cache_type_k: CacheType::F16,
            cache_type_v: CacheType::F16,
            schedule: None,
            at_any_length: false,
            force_probes: false,
            sidecar: None,
            record_selection: false,
        }
    }
}

/// Entries that a cache has room for behind a prompt before it grows.
const DECODE_RESERVE: usize = 512;

/// A conversation with a model: what it has read is in the KV caches.
pub struct Session {
    model: Arc<Model>,
    options: SessionOptions,
    devices: Vec<Device>,
    caches: Vec<LayerCache>,
    proxies: Vec<Option<ProxyMemory>>,
    n_past: usize,
    logits: HostF32,
    decode: Option<DecodeGraph>,
    prepared: Option<prefill::Prepared>,
    interrupt: Arc<AtomicBool>,
}

/// The graph of one token; only inputs and cache lengths change from token to token.
struct DecodeGraph {
    graph: Graph,
    program: Program,
    slots: Vec<SlotMemory>,
    kept: KeptGraphs,
}

impl Session {
    /// An empty session.
    ///
    /// # Errors
    /// A device does not start; the schedule or the sidecar does not fit the model.
    pub fn new(model: Arc<Model>, options: SessionOptions) -> Result<Self> {
        let n_threads = options.n_threads.unwrap_or_else(physical_cores);
        let mut devices = Vec::new();
        for name in &model.placement().devices {
            devices.push(Device::new(Backend::start(name, n_threads)?));
        }
        let hp = model.hparams();
        if let Some(schedule) = &options.schedule {
            schedule.validate_for(hp.n_layer)?;
        }
        let mut proxies = Vec::new();
        for device in &devices {
            proxies.push(match &options.sidecar {
                Some(sidecar) => {
                    model.check_sidecar(sidecar)?;
                    Some(sidecar.load(device.backend.buffer_type(), device.backend.kernels().proxies_in_bf16())?)
                }
                None => None,
            });
        }
        let types = (options.cache_type_k, options.cache_type_v);
        if (types.0 == CacheType::Q8_0 || types.1 == CacheType::Q8_0) && !hp.head_dim.is_multiple_of(32) {
            return Err(Error::CacheType { head_dim: hp.head_dim });
        }
        let caches = (0..hp.n_layer)
            .map(|l| LayerCache::new(devices[model.placement().layer[l]].backend.buffer_type(), hp.n_embd_kv(), types))
            .collect();
        let interrupt = devices[0].backend.stop_flag();
        Ok(Self {
            model,
            options,
            devices,
            caches,
            proxies,
            n_past: 0,
            logits: HostF32::default(),
            decode: None,
            prepared: None,
            interrupt,
        })
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Tokens read so far: the next one's position.
    pub fn n_past(&self) -> usize {
        self.n_past
    }

    /// Tokens that fit.
    pub fn n_ctx(&self) -> usize {
        self.options.n_ctx.unwrap_or(self.model.hparams().n_ctx_train)
    }

    /// Entries in each layer's KV cache.
    pub fn kv_lengths(&self) -> Vec<usize> {
        self.caches.iter().map(|c| c.len).collect()
    }

    /// Bytes held by caches, masks and scratch.
    pub fn n_bytes(&self) -> usize {
        let caches: usize = self.caches.iter().map(|c| c.n_bytes()).sum();
        let devices: usize = self.devices.iter().map(|d| d.masks.n_bytes() + d.backend.scratch_bytes()).sum();
        caches + devices
    }

    /// Logits `[n_vocab]` of the last token read.
    pub fn logits(&self) -> &[f32] {
        self.logits.as_slice()
    }

    /// A flag that another thread (or a signal handler) sets to stop the computation; the call under way returns
    /// [`Error::Interrupted`].
    pub fn interrupt_flag(&self) -> Arc<AtomicBool> {
        self.interrupt.clone()
    }

    /// Times every operation of the calls to come by itself, which slows them down; see [`crate::ggml::profile`].
    pub fn record_op_times(&mut self) {
        self.devices.iter_mut().for_each(|d| d.op_times = Some(OpTimes::new()));
    }

    /// Seconds by kind of operation since [`Session::record_op_times`], over all devices, and stops recording.
    pub fn take_op_times(&mut self) -> OpTimes {
        let mut all = OpTimes::new();
        for times in self.devices.iter_mut().filter_map(|d| d.op_times.take()) {
            for (kind, seconds) in times {
                *all.entry(kind).or_default() += seconds;
            }
        }
        all
    }

    /// Changes what the prompts to come skip; `None`: nothing. Caches and proxies stay where they are, so that one session
    /// measures several schedules in the memory of one.
    ///
    /// # Errors
    /// The schedule does not fit the model.
    pub fn set_schedule(&mut self, schedule: Option<Schedule>) -> Result<()> {
        if let Some(schedule) = &schedule {
            schedule.validate_for(self.model.hparams().n_layer)?;
        }
        if schedule != self.options.schedule {
            self.prepared = None;
            self.options.schedule = schedule;
        }
        Ok(())
    }

    /// Forgets everything read; memory stays allocated.
    pub fn clear(&mut self) {
        self.caches.iter_mut().for_each(LayerCache::clear);
        self.n_past = 0;
        self.logits.clear();
    }

    fn check_interrupt(&self) -> Result<()> {
        if self.interrupt.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }

    fn check_tokens(&self, tokens: &[u32]) -> Result<()> {
        let (n_ctx, n_vocab) = (self.n_ctx(), self.model.hparams().n_vocab);
        if let Some(&id) = tokens.iter().find(|&&t| t as usize >= n_vocab) {
            return Err(Error::BadToken { id, n_vocab });
        }
        if self.n_past + tokens.len() > n_ctx {
            let n_ctx_train = self.model.hparams().n_ctx_train;
            return Err(Error::ContextFull { n_tokens: self.n_past + tokens.len(), n_ctx, n_ctx_train });
        }
        Ok(())
    }

    /// Reads one token; its logits are ready afterwards.
    ///
    /// # Errors
    /// Nothing was prefilled, the context is full, the computation failed.
    pub fn decode(&mut self, token: u32) -> Result<()> {
        if self.n_past == 0 {
            return Err(Error::NothingPrefilled);
        }
        self.check_tokens(&[token])?;
        self.check_interrupt()?;
        for cache in &mut self.caches {
            if cache.len + 1 > cache.k().ne(1) {
                cache.reserve((cache.len + 1) + cache.len / 2)?;
            }
        }
        if self.decode.is_none() {
            self.decode = Some(self.decode_graph()?);
        }
        let Some(d) = &mut self.decode else { unreachable!("made above") };
        write_inputs(&d.graph, &d.slots, &mut self.devices, &[token], self.n_past);
        let run = Run {
            model: &self.model,
            graph: &d.graph,
            program: &d.program,
            caches: &self.caches,
            proxies: &self.proxies,
            slots: &d.slots,
            tile: 1,
            mode: CacheMode::Indexed,
            first_position: self.n_past,
        };
        executor::run(&run, &mut self.devices, &mut d.kept, &mut Quiet)?;
        let output = self.model.placement().output;
        self.logits.read(&mut self.devices[output].backend, d.slots[output].get(d.graph.logits));
        for cache in &mut self.caches {
            cache.advance(1, self.n_past);
        }
        self.n_past += 1;
        Ok(())
    }

    fn decode_graph(&self) -> Result<DecodeGraph> {
        let graph = self.model.graph(1, self.n_ctx());
        verify::verify(&graph)?;
        let placement = self.model.placement();
        let program = phases::plan(&graph, 1, &|l| l > 0 && placement.layer[l] != placement.layer[l - 1]);
        let slots = self.slot_memory(&graph, &program)?;
        Ok(DecodeGraph { graph, program, slots, kept: KeptGraphs::default() })
    }

    fn slot_memory(&self, graph: &Graph, program: &Program) -> Result<Vec<SlotMemory>> {
        let key = self.options.cache_type_k.probe();
        let each = self.devices.iter().map(|d| SlotMemory::new(graph, program, key, d.backend.buffer_type()));
        Ok(each.collect::<std::result::Result<_, _>>()?)
    }
}

/// Writes token ids and positions `first ..` on every device.
fn write_inputs(graph: &Graph, slots: &[SlotMemory], devices: &mut [Device], tokens: &[u32], first: usize) {
    let ids: Vec<u8> = tokens.iter().flat_map(|t| (*t as i32).to_le_bytes()).collect();
    let positions: Vec<u8> = (first..first + tokens.len()).flat_map(|p| (p as i32).to_le_bytes()).collect();
    let tokens =
        graph.nodes.iter().position(|n| n.op == crate::graph::Op::Tokens).map(|i| crate::graph::NodeId(i as u32));
    for (slots, device) in slots.iter().zip(devices) {
        if let Some(t) = tokens {
            device.backend.write(slots.get(t), &ids);
        }
        device.backend.write(slots.get(graph.positions), &positions);
    }
}

/// Physical cores that this process may use: threads beyond them slow ggml down.
pub fn physical_cores() -> usize {
    let available = std::thread::available_parallelism().map_or(1, |n| n.get());
    available.min(cores_of_sysfs().unwrap_or(available)).max(1)
}

/// Distinct (package, core) pairs that Linux lists.
fn cores_of_sysfs() -> Option<usize> {
    let mut seen = std::collections::HashSet::new();
    for entry in std::fs::read_dir("/sys/devices/system/cpu").ok()?.flatten() {
        let topology = entry.path().join("topology");
        let read = |name: &str| std::fs::read_to_string(topology.join(name)).ok();
        if let (Some(package), Some(core)) = (read("physical_package_id"), read("core_id")) {
            seen.insert((package, core));
        }
    }
    (!seen.is_empty()).then_some(seen.len())
}
