//! A session: a sequence over a model, prefill, decode.
//!
//! [`sequence`] is what was read, with a [`layer_cache`] or a [`recurrent`] state for each layer; [`prefill`] and the decode loop
//! extend it by running compiled programs. [`executor`] runs one, with what [`run`] lists on each [`device`]; [`repeated`] keeps
//! graphs that run again, [`slots`] is what lives between phases, [`document`] is what stays of a document for the questions about
//! it, with its [`residual`] stream and its [`document_file`]; [`masks`] the attention masks, [`fetched`] experts' weights that lie
//! elsewhere, [`proxy_memory`] the FFN proxies, [`select`] selects on the host. [`search`] scores a prompt's tokens where a part of
//! them enters; [`watch`] is what a run tells while it goes on. [`generate`] streams tokens, [`sampler`] picks them.

pub mod device;
pub mod document;
pub mod document_error;
pub mod document_file;
pub mod executor;
pub mod fetched;
pub mod generate;
pub mod layer_cache;
pub mod masks;
pub mod prefill;
pub mod prefill_report;
pub mod proxy_memory;
pub mod recurrent;
pub mod repeated;
pub mod residual;
pub mod run;
pub mod sampler;
pub mod search;
pub mod select;
pub mod sequence;
pub mod slots;
pub mod turns;
pub mod watch;
pub mod windows;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::compile::memory::CacheMode;
use crate::compile::phases::Phase;
use crate::compile::{self, Compiled};
use crate::attributes::DeltaHeads;
use crate::ggml::GgmlError;
use crate::ggml::backend::Backend;
use crate::ggml::host::HostF32;
use crate::ggml::profile::OpTimes;
use crate::graph::{Graph, NodeId, Op};
use crate::method::spts::sidecar::Sidecar;
use crate::method::{Dense, Method, Prompt};
use crate::model::weights::Model;
use crate::{Error, Result};

use device::Device;
use document::{DocumentMemory, Prefix};
use proxy_memory::ProxyMemory;
use recurrent::RecurrentState;
use repeated::RepeatedGraphs;
use residual::Residual;
use run::Run;
use sampler::has_no_numbers;
use sequence::{CacheType, LayerCache, LayerMemory, Sequence};
use slots::SlotMemory;
use watch::Quiet;
use turns::Staged;

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
    /// What of a prompt is left out; nothing by default.
    pub method: Arc<dyn Method>,
    /// Low-rank FFN proxies, needed if the method uses them.
    pub sidecar: Option<Arc<Sidecar>>,
    /// A smaller model with the same vocabulary, for methods that read prompts with it first.
    pub draft: Option<Arc<Model>>,
    /// Record the candidates and active tokens of every layer in the report.
    pub record_selection: bool,
    /// Where the residual stream of a document lies ([`Session::read`]).
    pub document_memory: DocumentMemory,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            n_ctx: None,
            n_ubatch: None,
            n_threads: None,
            cache_type_k: CacheType::F16,
            cache_type_v: CacheType::F16,
            method: Arc::new(Dense),
            sidecar: None,
            draft: None,
            record_selection: false,
            document_memory: DocumentMemory::Device,
        }
    }
}

/// Entries that a cache has room for behind a prompt, unless it is known how long the answer may get.
const ANSWER_ROOM: usize = 512;

/// A conversation with a model: what it has read is in the KV caches.
pub struct Session {
    model: Arc<Model>,
    options: SessionOptions,
    devices: Vec<Device>,
    sequence: Sequence,
    proxies: Vec<Option<ProxyMemory>>,
    logits: HostF32,
    /// The call before failed, or its result is no number: what it wrote behind the caches' entries may not be either.
    is_suspect: bool,
    decode: Option<DecodeProgram>,
    answer_room: usize,
    prepared: Option<prefill::Prepared>,
    /// What stays when the session is cleared, once a document was read.
    prefix: Option<Prefix>,
    /// The draft's session, once a prompt was read with it.
    draft: Option<Box<Session>>,
    interrupt: Arc<AtomicBool>,
}

/// The program of one token; only inputs and cache lengths change from token to token.
struct DecodeProgram {
    compiled: Compiled,
    slots: Vec<SlotMemory>,
    repeated: RepeatedGraphs,
}

impl Session {
    /// Makes an empty session over a model.
    ///
    /// # Errors
    /// A device does not start; the method or the sidecar does not fit the model.
    pub fn new(model: Arc<Model>, options: SessionOptions) -> Result<Self> {
        let n_threads = options.n_threads.unwrap_or_else(physical_cores);
        let mut devices = Vec::new();
        for name in &model.placement().devices {
            devices.push(Device::new(Backend::start(name, n_threads)?));
        }
        let shape = model.shape();
        options.method.budgets(shape, Prompt::of(1))?;
        let mut proxies = Vec::new();
        for device in &devices {
            proxies.push(match &options.sidecar {
                Some(sidecar) => {
                    sidecar.check(model.file())?;
                    let bf16 = device.backend.kernels().proxies_in_bf16();
                    Some(ProxyMemory::load(sidecar, device.backend.buffer_type(), bf16)?)
                }
                None => None,
            });
        }
        let types = (options.cache_type_k, options.cache_type_v);
        let is_quantized = types.0 == CacheType::Q8_0 || types.1 == CacheType::Q8_0;
        let head_dims = (0..shape.n_layer).map(|l| shape.sizes(l).head_dim);
        if let Some(head_dim) = head_dims.filter(|_| is_quantized).find(|d| !d.is_multiple_of(32)) {
            return Err(Error::CacheType { head_dim });
        }
        for (l, heads) in (0..shape.n_layer).filter_map(|l| Some((l, shape.recurrence(l)?))) {
            let device = model.placement().layer[l];
            if !devices[device].backend.kernels().delta_net(&heads) {
                let DeltaHeads { head_dim, d_conv, .. } = heads;
                return Err(Error::Ggml(GgmlError::Unsupported {
                    device: model.placement().devices[device].clone(),
                    op: "gated delta nets".into(),
                    detail: format!("heads of {head_dim}, {} channels convolved over {d_conv} tokens", heads.n_channels()),
                }));
            }
        }
        let memory = |l: usize| {
            let buft = devices[model.placement().layer[l]].backend.buffer_type();
            match shape.recurrence(l) {
                Some(heads) => LayerMemory::Recurrent(RecurrentState::new(buft, heads)),
                None if !shape.has_cache(l) => LayerMemory::Shared,
                None => LayerMemory::Cache(LayerCache::new(buft, shape.n_embd_kv(l), types).with_window(shape.window(l))),
            }
        };
        let memories = (0..shape.n_layer).map(memory).collect();
        let interrupt = devices[0].backend.stop_flag();
        Ok(Self {
            model,
            options,
            devices,
            sequence: Sequence::new(memories),
            proxies,
            logits: HostF32::default(),
            is_suspect: false,
            decode: None,
            answer_room: ANSWER_ROOM,
            prepared: None,
            prefix: None,
            draft: None,
            interrupt,
        })
    }

    /// The model that the session runs.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Tokens read so far: the next one's position.
    pub fn n_past(&self) -> usize {
        self.sequence.n_past()
    }

    /// Tokens that fit into the context.
    pub fn n_ctx(&self) -> usize {
        self.options.n_ctx.unwrap_or(self.model.hparams().n_ctx_train)
    }

    /// Entries in each layer's KV cache: 0 where a layer has none, and fewer than there were where a window has moved on.
    pub fn kv_lengths(&self) -> Vec<usize> {
        self.sequence.lengths()
    }

    /// Bytes held by caches, masks and scratch.
    pub fn n_bytes(&self) -> usize {
        let caches = self.sequence.n_bytes() + self.prefix.as_ref().map_or(0, Prefix::residual_bytes);
        let devices: usize = self.devices.iter().map(Device::n_bytes).sum();
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

    /// Times every operation of the calls to come by itself, which slows them down; see `ggml::profile`.
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

    /// Changes what is left out of the prompts to come. Caches and proxies stay where they are, so that one session measures
    /// several methods in the memory of one. A document is forgotten, and what was read with it, if its layers would look at other
    /// keys ([`Method::blocks`]).
    ///
    /// # Errors
    /// The method does not fit the model.
    pub fn set_method(&mut self, method: Arc<dyn Method>) -> Result<()> {
        method.budgets(self.model.shape(), Prompt::of(1))?;
        self.prepared = None;
        if self.prefix.is_some() && method.blocks() != self.options.method.blocks() {
            self.forget_document();
        }
        self.options.method = method;
        Ok(())
    }

    /// Forgets everything read, but for what a document's later questions need ([`Session::read`]); memory stays allocated.
    pub fn clear(&mut self) {
        match &mut self.prefix {
            Some(prefix) => {
                let there = prefix.tokens().len();
                let known = self.sequence.known(prefix.cut(), there);
                if known < there {
                    prefix.truncate(known);
                }
                self.sequence.rewind(prefix.cut(), known);
            }
            None => self.sequence.clear(),
        }
        self.logits.clear();
    }

    /// Forgets all tokens but the first `n`; [`Session::logits`] are empty until the next token is read.
    ///
    /// # Errors
    /// [`Error::Truncate`] inside a prompt of which tokens were left out, and further back than layers with a window remember;
    /// [`Error::TruncateState`] in a model with recurrent layers: what was read has to be cleared and read anew.
    pub fn truncate(&mut self, n: usize) -> Result<()> {
        self.sequence.truncate(n)?;
        if let Some(prefix) = &mut self.prefix {
            prefix.truncate(n);
        }
        self.logits.clear();
        Ok(())
    }

    /// Says how many tokens the answer to the next prompt may have, so that memory for them is planned with the prompt's. More can
    /// be read: caches grow as they fill.
    pub fn plan_answer(&mut self, n_tokens: usize) {
        self.answer_room = n_tokens;
    }

    /// Makes the caches safe to compute with, before a call that may leave them otherwise.
    fn start_call(&mut self) {
        if std::mem::replace(&mut self.is_suspect, true) {
            // What was queued may still write there.
            self.devices.iter_mut().for_each(|d| d.backend.synchronize());
            self.sequence.zero_padding();
        }
    }

    fn check_interrupt(&self) -> Result<()> {
        if self.interrupt.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }

    fn check_tokens(&self, tokens: &[u32]) -> Result<()> {
        let (n_ctx, n_vocab) = (self.n_ctx(), self.model.shape().n_vocab);
        if let Some(&id) = tokens.iter().find(|&&t| t as usize >= n_vocab) {
            return Err(Error::BadToken { id, n_vocab });
        }
        if self.sequence.n_past() + tokens.len() > n_ctx {
            let n_ctx_train = self.model.hparams().n_ctx_train;
            return Err(Error::ContextFull { n_tokens: self.sequence.n_past() + tokens.len(), n_ctx, n_ctx_train });
        }
        Ok(())
    }

    /// Reads one token; its logits are ready afterwards.
    ///
    /// # Errors
    /// Nothing was prefilled, the context is full, the computation failed.
    pub fn decode(&mut self, token: u32) -> Result<()> {
        if self.sequence.n_past() == 0 {
            return Err(Error::NothingPrefilled);
        }
        self.check_tokens(&[token])?;
        self.check_interrupt()?;
        self.sequence.reserve_token(self.n_ctx())?;
        if self.decode.is_none() {
            self.decode = Some(self.decode_program()?);
        }
        self.start_call();
        let Some(d) = &mut self.decode else { unreachable!("made above") };
        let inputs = Inputs { tokens: &[token], positions: &[self.sequence.n_past()], residual: None };
        write_inputs(&d.compiled.graph, &d.slots, &mut self.devices, &inputs);
        let run = Run {
            model: &self.model,
            compiled: &d.compiled,
            sequence: &self.sequence,
            proxies: &self.proxies,
            slots: &d.slots,
            staged: &Staged::default(),
            mode: CacheMode::Indexed,
        };
        executor::run(&run, &mut self.devices, &mut d.repeated, &mut Quiet)?;
        let output = self.model.placement().output;
        let logits = d.compiled.graph.logits().expect("a token's program has logits");
        self.logits.read(&mut self.devices[output].backend, d.slots[output].get(logits));
        self.is_suspect = has_no_numbers(self.logits.as_slice());
        self.sequence.advance(1, None);
        if let Some(prefix) = &mut self.prefix {
            prefix.extend_dense(self.sequence.n_past() - 1, &[token]);
        }
        Ok(())
    }

    fn decode_program(&self) -> Result<DecodeProgram> {
        let compiled = compile::as_written(self.model.graph(1, self.n_ctx()), 1, &self.target())?;
        let slots = self.slot_memory(&compiled)?;
        Ok(DecodeProgram { compiled, slots, repeated: RepeatedGraphs::default() })
    }

    fn slot_memory(&self, compiled: &Compiled) -> Result<Vec<SlotMemory>> {
        let key = self.options.cache_type_k.probe();
        let placement = self.model.placement();
        let each = self.devices.iter().enumerate().map(|(i, d)| {
            let runs = |phase: &Phase| placement.of(compiled.graph.node(phase.nodes[0])) == i;
            SlotMemory::new(&compiled.graph, &compiled.program, &runs, key, d.backend.buffer_type())
        });
        Ok(each.collect::<std::result::Result<_, _>>()?)
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("model", &self.model)
            .field("n_past", &self.n_past())
            .field("n_ctx", &self.n_ctx())
            .finish_non_exhaustive()
    }
}

/// What a program reads besides weights and caches.
struct Inputs<'i> {
    /// Ids, unless the program begins between layers.
    tokens: &'i [u32],
    /// One for each row.
    positions: &'i [usize],
    /// The residual stream, where the program begins between layers, and the device that reads it.
    residual: Option<(&'i Residual, usize)>,
}

/// Writes token ids and their positions on every device, and the residual stream on the one that reads it.
fn write_inputs(graph: &Graph, slots: &[SlotMemory], devices: &mut [Device], inputs: &Inputs) {
    let ids: Vec<u8> = inputs.tokens.iter().flat_map(|t| (*t as i32).to_le_bytes()).collect();
    let positions: Vec<u8> = inputs.positions.iter().flat_map(|p| (*p as i32).to_le_bytes()).collect();
    let node = |op: Op| graph.nodes.iter().position(|n| n.op == op).map(|i| NodeId(i as u32));
    if let (Some((residual, device)), Some(rows)) = (inputs.residual, node(Op::Residual)) {
        slots[device].copy_rows(rows, residual.rows(), inputs.positions.len());
    }
    let tokens = node(Op::Tokens);
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
