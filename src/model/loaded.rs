//! A model in memory: the file, its tokenizer, its weights on their devices.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;

use crate::Result;
use crate::ggml::Tensor;
use crate::ggml::arena::{Arena, TensorId};
use crate::ggml::backend::{self, BufferType};
use crate::ggml::huge_pages;
use crate::gguf::{GgmlType, Gguf, OpenOptions};
use crate::graph::Graph;
use crate::graph::ir::{RopeLayout, WeightId};
use crate::spts::sidecar::Sidecar;
use crate::tokenizer::{ChatTemplate, Tokenizer};

use super::dense::Dense;
use super::hparams::HParams;
use super::table::{Role, Weight, WeightTable};

/// Sees the share of the weights that is in place, from 0 to 1.
pub type LoadProgress = Box<dyn FnMut(f32)>;

/// How a model is opened.
pub struct ModelOptions {
    /// Map the file (the default) or read it into memory.
    pub mmap: bool,
    /// Keep the mapped file from being paged out.
    pub mlock: bool,
    /// Copy the CPU's matrices into huge pages, rearranged for its blocked kernels where it has some: faster, and more to do
    /// at the start. Otherwise they stay mapped, as those without such kernels do if the file is larger than half of the memory.
    pub repack: bool,
    /// Device for the layers: `None` takes the first GPU, or the CPU.
    pub device: Option<String>,
    /// Layers on that device, counted from the last; the others stay on the CPU. `None`: all.
    pub n_gpu_layers: Option<usize>,
    /// Rows up to which GPUs multiply quantized weights in integers, for the whole process: see [`backend::set_integer_rows`].
    pub integer_rows: Option<usize>,
    /// Let GPU kernels begin before those in front of them end, for the whole process, if this is its first model and one with
    /// interleaved rope (Llama). Only for processes that open no other kind: see [`backend::launch_in_turn`].
    pub overlap_launches: bool,
    /// Called with the fraction of weights placed so far.
    pub progress: Option<LoadProgress>,
}

impl Default for ModelOptions {
    fn default() -> Self {
        Self {
            mmap: true,
            mlock: false,
            repack: true,
            device: None,
            n_gpu_layers: None,
            integer_rows: None,
            overlap_launches: false,
            progress: None,
        }
    }
}

/// Where layers and weights live.
#[derive(Clone, Debug, PartialEq)]
pub struct Placement {
    /// ggml's names of the devices in use.
    pub devices: Vec<String>,
    /// Device of every layer, an index into `devices`.
    pub layer: Vec<usize>,
    /// Device of the embedding.
    pub input: usize,
    /// Device of the output head.
    pub output: usize,
}

impl Placement {
    /// Device of a graph node's layer; nodes without one are the embedding or the head.
    pub fn of(&self, layer: Option<usize>, is_input: bool) -> usize {
        match layer {
            Some(l) => self.layer[l],
            None if is_input => self.input,
            None => self.output,
        }
    }
}

/// A model, ready for sessions. Immutable and shared.
pub struct Model {
    gguf: Arc<Gguf>,
    hparams: HParams,
    tokenizer: Tokenizer,
    chat_template: ChatTemplate,
    dense: Box<dyn Dense>,
    weights: Vec<Weight>,
    unused: Vec<String>,
    placement: Placement,
    arenas: Vec<Arena>,
    tensors: HashMap<(usize, WeightId), TensorId>,
    /// Repacked weights as the file has them, where that is faster for many rows.
    mapped_too: HashMap<(usize, WeightId), TensorId>,
    repacked_bytes: usize,
}

/// Rows from which ggml takes its tiled kernels for a product.
const TILED_FROM: usize = 8;

/// Weights that are copied between two calls of a progress function.
const UPLOADED_AT_A_TIME: usize = 32;

/// Whether many rows are multiplied faster by a weight as the file has it than by a repacked one. With VNNI ggml's tiled
/// kernels for K-quants are (1.4 times, Q4_K on Zen 4), while a single row wants the repacked weight (1.2 times).
fn many_rows_want_unpacked(ty: GgmlType) -> bool {
    backend::cpu_kernels_use_vnni() && matches!(ty, GgmlType::Q2_K | GgmlType::Q4_K)
}

impl Model {
    /// Opens a GGUF file and places its weights.
    ///
    /// # Errors
    /// The file is no valid GGUF, no supported model, or does not fit its device.
    pub fn open(path: &Path, mut options: ModelOptions) -> Result<Arc<Model>> {
        let gguf = Arc::new(Gguf::open(path, OpenOptions { mmap: options.mmap, mlock: options.mlock })?);
        Self::from_gguf(gguf, &mut options)
    }

    /// Places the weights of a file that is already open.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn from_gguf(gguf: Arc<Gguf>, options: &mut ModelOptions) -> Result<Arc<Model>> {
        let hparams = HParams::from_gguf(&gguf)?;
        let mut table = WeightTable::new(&gguf);
        let dense = hparams.arch.load(&hparams, &mut table)?;
        let (weights, unused) = table.finish(hparams.arch)?;
        let tokenizer = Tokenizer::from_gguf(&gguf)?;
        let chat_template = ChatTemplate::from_gguf(&gguf, &tokenizer).map_err(|e| e.in_file(gguf.path()))?;
        let placement = place_layers(hparams.n_layer, options)?;
        if let Some(rows) = options.integer_rows {
            backend::set_integer_rows(rows);
        }
        if !options.overlap_launches || hparams.rope.layout == RopeLayout::HalfSplit {
            backend::launch_in_turn();
        }
        let mut model = Model {
            gguf,
            hparams,
            tokenizer,
            chat_template,
            dense,
            weights,
            unused,
            arenas: Vec::new(),
            tensors: HashMap::new(),
            mapped_too: HashMap::new(),
            placement,
            repacked_bytes: 0,
        };
        model.place_weights(options)?;
        Ok(Arc::new(model))
    }

    fn place_weights(&mut self, options: &mut ModelOptions) -> Result<()> {
        let repack = options.repack.then(BufferType::cpu_repack).flatten();
        // A file read into memory lies in huge pages already, one that is locked in memory is meant to be used there, and pages of
        // a large one have to stay such that the kernel can let go.
        let is_small = self.gguf.bytes().len() <= BufferType::cpu_weights().free_bytes() / 2;
        let copies =
            options.repack && !options.mlock && self.gguf.map().is_file() && is_small && huge_pages::are_given();
        for device in 0..self.placement.devices.len() {
            let mine: Vec<WeightId> =
                (0..self.weights.len() as u32).map(WeightId).filter(|&w| self.is_needed_on(device, w)).collect();
            let mut arena = Arena::new(2 * mine.len() + 1);
            let ids: Vec<(WeightId, TensorId)> = mine
                .iter()
                .map(|&w| (w, arena.declare(&self.weight(w).name, self.weight(w).ty, &self.weight(w).ne)))
                .collect();
            self.tensors.extend(ids.iter().map(|&(w, t)| ((device, w), t)));
            let upload = if self.placement.devices[device] == "CPU" {
                let (mut moved, rest): (Vec<_>, Vec<_>) =
                    ids.into_iter().partition(|&(w, _)| self.pays_to_repack(repack, w));
                let (copied, mapped): (Vec<_>, Vec<_>) =
                    rest.into_iter().partition(|&(w, _)| copies && self.is_matrix_of(device, w));
                let mut at: Vec<(TensorId, usize)> = mapped.iter().map(|&(w, t)| (t, self.file_offset(w))).collect();
                for &(w, _) in &moved {
                    let weight = &self.weights[w.0 as usize];
                    if many_rows_want_unpacked(weight.ty) {
                        let t = arena.declare(&weight.name, weight.ty, &weight.ne);
                        at.push((t, self.file_offset(w)));
                        self.mapped_too.insert((device, w), t);
                    }
                }
                arena.bind(self.gguf.map().clone(), &at);
                if let Some(buft) = repack {
                    let tensors: Vec<TensorId> = moved.iter().map(|&(_, t)| t).collect();
                    self.repacked_bytes = arena.allocate(&tensors, buft, "repacked weights")?;
                }
                let tensors: Vec<TensorId> = copied.iter().map(|&(_, t)| t).collect();
                arena.allocate(&tensors, BufferType::cpu_weights(), "weights in huge pages")?;
                moved.extend(copied);
                moved
            } else {
                let tensors: Vec<TensorId> = ids.iter().map(|&(_, t)| t).collect();
                arena.allocate(&tensors, backend::buffer_type(&self.placement.devices[device])?, "weights")?;
                arena.mark_as_weights();
                ids
            };
            self.upload(&arena, device, &upload, &mut options.progress);
            self.arenas.push(arena);
        }
        Ok(())
    }

    /// Copies weights into tensors that have memory of their own, several at a time.
    fn upload(&self, arena: &Arena, device: usize, what: &[(WeightId, TensorId)], progress: &mut Option<LoadProgress>) {
        let mut done = 0;
        for some in what.chunks(UPLOADED_AT_A_TIME) {
            some.par_iter().for_each(|&(w, t)| {
                let start = self.file_offset(w);
                let len = self.weight(w).bytes.len();
                arena.set(t, 0, &self.gguf.bytes()[start..start + len]);
                if !self.mapped_too.contains_key(&(device, w)) {
                    // The copy is what is used: let go of the file's pages.
                    self.gguf.map().release(start..start + len);
                }
            });
            done += some.len();
            if let Some(progress) = progress {
                progress(done as f32 / what.len() as f32);
            }
        }
    }

    fn is_needed_on(&self, device: usize, w: WeightId) -> bool {
        let weight = self.weight(w);
        match weight.layer {
            Some(l) => self.placement.layer[l] == device,
            None if weight.role == Role::Embedding => {
                device == self.placement.input || (self.is_tied() && device == self.placement.output)
            }
            // Rope factors are wherever a layer is.
            None if weight.name.starts_with("rope_") => true,
            None => device == self.placement.output,
        }
    }

    fn is_tied(&self) -> bool {
        !self.weights.iter().any(|w| w.name == "output.weight")
    }

    /// Whether a weight is read as a whole for every token.
    fn is_matrix_of(&self, device: usize, w: WeightId) -> bool {
        match self.weight(w).role {
            Role::Matrix => true,
            Role::Embedding => self.is_tied() && device == self.placement.output,
            _ => false,
        }
    }

    fn pays_to_repack(&self, repack: Option<BufferType>, w: WeightId) -> bool {
        let weight = self.weight(w);
        weight.role == Role::Matrix && repack.is_some_and(|r| r.can_multiply(weight.ty, weight.ne[0], weight.ne[1]))
    }

    fn file_offset(&self, w: WeightId) -> usize {
        let weight = self.weight(w);
        let tensor = self.gguf.tensor(&weight.tensor).expect("the table was made from this file");
        self.gguf.data_offset() as usize + tensor.offset as usize + weight.bytes.start
    }

    /// Hyperparameters.
    pub fn hparams(&self) -> &HParams {
        &self.hparams
    }

    /// The file.
    pub fn gguf(&self) -> &Gguf {
        &self.gguf
    }

    /// Tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Chat template; chatml where the file has none.
    pub fn chat_template(&self) -> &ChatTemplate {
        &self.chat_template
    }

    /// Where the layers live.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// Tensors of the file that the architecture knows and does not use.
    pub fn unused_tensors(&self) -> &[String] {
        &self.unused
    }

    /// What is odd about the file and does not keep it from running, one line each.
    pub fn warnings(&self) -> &[String] {
        self.tokenizer.warnings()
    }

    /// Bytes of weights that were rearranged in memory.
    pub fn repacked_bytes(&self) -> usize {
        self.repacked_bytes
    }

    /// A weight's entry in the table.
    pub fn weight(&self, w: WeightId) -> &Weight {
        &self.weights[w.0 as usize]
    }

    /// A weight's entry by name.
    pub fn weight_named(&self, name: &str) -> Option<&Weight> {
        self.weights.iter().find(|w| w.name == name)
    }

    /// The factor on products with a weight: `X.scale` beside `X.weight`, 1 where the file has none.
    pub fn weight_scale(&self, weight: &Weight) -> f32 {
        let name = weight.tensor.strip_suffix(".weight").map(|base| format!("{base}.scale"));
        let scale = name.and_then(|name| self.weights.iter().find(|w| w.tensor == name));
        let bytes = scale.and_then(|scale| self.weight_bytes(scale).first_chunk());
        bytes.map_or(1.0, |bytes| f32::from_le_bytes(*bytes))
    }

    /// A weight's bytes in the file.
    pub fn weight_bytes(&self, weight: &Weight) -> &[u8] {
        let tensor = self.gguf.tensor(&weight.tensor).expect("the table was made from this file");
        &self.gguf.tensor_data(tensor)[weight.bytes.clone()]
    }

    /// A weight on a device.
    pub fn weight_tensor(&self, device: usize, w: WeightId) -> Tensor<'_> {
        self.arenas[device].get(self.tensors[&(device, w)])
    }

    /// A weight on a device, in the arrangement that products of so many rows are fastest with.
    pub fn matrix_tensor(&self, device: usize, w: WeightId, rows: usize) -> Tensor<'_> {
        match self.mapped_too.get(&(device, w)) {
            Some(&mapped) if rows >= TILED_FROM => self.arenas[device].get(mapped),
            _ => self.weight_tensor(device, w),
        }
    }

    /// The dense graph of a prompt.
    pub fn graph(&self, n_tokens: usize, n_ctx: usize) -> Graph {
        self.dense.graph(n_tokens, n_ctx)
    }

    /// Checks that a sidecar was made for this model.
    ///
    /// # Errors
    /// It was not.
    pub fn check_sidecar(&self, sidecar: &Sidecar) -> Result<()> {
        Ok(sidecar.check(self)?)
    }
}

fn place_layers(n_layer: usize, options: &ModelOptions) -> Result<Placement> {
    let chosen = match &options.device {
        Some(name) => backend::device_named(name)?,
        None => backend::devices().into_iter().find(|d| d.is_gpu).map_or("CPU".to_string(), |d| d.name),
    };
    let on_device = options.n_gpu_layers.unwrap_or(n_layer).min(n_layer);
    if chosen == "CPU" || on_device == 0 {
        return Ok(Placement { devices: vec!["CPU".into()], layer: vec![0; n_layer], input: 0, output: 0 });
    }
    if on_device == n_layer {
        return Ok(Placement { devices: vec![chosen], layer: vec![0; n_layer], input: 0, output: 0 });
    }
    let layer = (0..n_layer).map(|l| usize::from(l >= n_layer - on_device)).collect();
    Ok(Placement { devices: vec!["CPU".into(), chosen], layer, input: 0, output: 1 })
}
