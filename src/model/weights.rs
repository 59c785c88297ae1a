//! A model in memory: its file, and its weights on their devices.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;

use crate::{Error, Result};
use crate::ggml::Tensor;
use crate::ggml::arena::{Arena, TensorId};
use crate::ggml::backend::{self, BufferType};
use crate::ggml::huge_pages;
use crate::ggml::kernels::Kernels;
use crate::gguf::{Gguf, OpenOptions};
use crate::graph::Graph;
use crate::graph::ir::WeightId;
use crate::runtime;
use crate::tokenizer::{ChatTemplate, Tokenizer};

use super::file::ModelFile;
use super::hparams::HParams;
use super::placement::Placement;
use super::shape::Shape;
use super::table::{Role, Weight};

/// Sees the share of the weights that is in place, from 0 to 1.
pub type LoadProgress = Box<dyn FnMut(f32) + Send>;

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
    /// The number of layers, counted from the first, whose experts lie on the CPU wherever the layers are. More than the model has
    /// stands for all.
    pub n_cpu_moe: usize,
    /// Called with the fraction of weights placed so far.
    pub progress: Option<LoadProgress>,
}

impl fmt::Debug for ModelOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ModelOptions { mmap, mlock, repack, device, n_gpu_layers, n_cpu_moe, progress } = self;
        f.debug_struct("ModelOptions")
            .field("mmap", mmap)
            .field("mlock", mlock)
            .field("repack", repack)
            .field("device", device)
            .field("n_gpu_layers", n_gpu_layers)
            .field("n_cpu_moe", n_cpu_moe)
            .field("progress", &progress.is_some())
            .finish()
    }
}

impl Default for ModelOptions {
    fn default() -> Self {
        Self { mmap: true, mlock: false, repack: true, device: None, n_gpu_layers: None, n_cpu_moe: 0, progress: None }
    }
}

/// A model, ready for sessions. Immutable and shared.
pub struct Model {
    file: ModelFile,
    placement: Placement,
    arenas: Vec<Arena>,
    tensors: HashMap<(usize, WeightId), TensorId>,
    /// Repacked weights as the file has them, where that is faster for many rows.
    mapped_too: HashMap<(usize, WeightId), TensorId>,
    repacked_bytes: usize,
}

/// Weights that are copied between two calls of a progress function.
const UPLOADED_AT_A_TIME: usize = 32;

impl Model {
    /// Opens a GGUF file and places its weights.
    ///
    /// # Errors
    /// The file is no valid GGUF, no supported model, or does not fit its device.
    pub fn open(path: &Path, options: ModelOptions) -> Result<Arc<Model>> {
        Self::place(ModelFile::open(path, OpenOptions { mmap: options.mmap, mlock: options.mlock })?, options)
    }

    /// Places the weights of a file that is already open.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn from_gguf(gguf: Arc<Gguf>, options: ModelOptions) -> Result<Arc<Model>> {
        Self::place(ModelFile::from_gguf(gguf)?, options)
    }

    /// Puts the weights of a file on their devices.
    ///
    /// # Errors
    /// No such device, or too little memory there.
    pub fn place(file: ModelFile, options: ModelOptions) -> Result<Arc<Model>> {
        let n_cpu_moe = if file.shape().experts.is_some() { options.n_cpu_moe } else { 0 };
        let (device, n_layer) = (options.device.as_deref(), file.shape().n_layer);
        let placement = Placement::choose(n_layer, device, options.n_gpu_layers, n_cpu_moe)?;
        Self::place_as(file, placement, options)
    }

    /// As [`Model::place`], on devices that have been chosen.
    ///
    /// # Errors
    /// As there.
    pub fn place_as(file: ModelFile, placement: Placement, mut options: ModelOptions) -> Result<Arc<Model>> {
        if let Some(first) = placement.parts_shared_keys(file.shape()) {
            let (file, n_layer) = (file.gguf().path().display().to_string(), file.shape().n_layer);
            return Err(Error::SharedKeysParted { file, first, last: n_layer - 1, n_layers: n_layer - first });
        }
        runtime::opens_model(file.hparams().rope.layout);
        let mut model = Model {
            file,
            arenas: Vec::new(),
            tensors: HashMap::new(),
            mapped_too: HashMap::new(),
            placement,
            repacked_bytes: 0,
        };
        model.place_weights(&mut options)?;
        Ok(Arc::new(model))
    }

    fn place_weights(&mut self, options: &mut ModelOptions) -> Result<()> {
        let repack = options.repack.then(BufferType::cpu_repack).flatten();
        // A file read into memory lies in huge pages already, one that is locked in memory is meant to be used there, and pages of
        // a large one have to stay such that the kernel can let go.
        let gguf = self.file.gguf().clone();
        let is_small = gguf.n_bytes() <= BufferType::cpu_weights().free_bytes() as u64 / 2;
        let copies =
            options.repack && !self.file.is_locked() && gguf.is_mapped() && is_small && huge_pages::are_given();
        for device in 0..self.placement.devices.len() {
            let kernels = Kernels::of(&self.placement.devices[device]);
            let mine: Vec<WeightId> =
                (0..self.file.weights().len() as u32).map(WeightId).filter(|&w| self.is_needed_on(device, w)).collect();
            let mut arena = Arena::new(2 * mine.len() + 1);
            let ids: Vec<(WeightId, TensorId)> = mine
                .iter()
                .map(|&w| (w, arena.declare(&self.weight(w).name, self.weight(w).ty, &self.weight(w).ne)))
                .collect();
            self.tensors.extend(ids.iter().map(|&(w, t)| ((device, w), t)));
            let upload = if kernels.is_cpu() {
                let (mut moved, rest): (Vec<_>, Vec<_>) =
                    ids.into_iter().partition(|&(w, _)| self.pays_to_repack(repack, w));
                let (copied, mapped): (Vec<_>, Vec<_>) =
                    rest.into_iter().partition(|&(w, _)| copies && self.is_matrix_of(device, w));
                let mut bound: Vec<(WeightId, TensorId)> = mapped;
                for &(w, _) in &moved {
                    let weight = self.file.weight(w);
                    if kernels.wants_unpacked(weight.ty, usize::MAX) {
                        let t = arena.declare(&weight.name, weight.ty, &weight.ne);
                        bound.push((w, t));
                        self.mapped_too.insert((device, w), t);
                    }
                }
                // Each file of a split model is a memory of its own.
                let mut at = vec![Vec::new(); gguf.maps().len()];
                for (w, t) in bound {
                    let (part, offset) = self.file.place_of(self.weight(w));
                    at[part].push((t, offset));
                }
                for (map, at) in gguf.maps().zip(at) {
                    arena.bind(map.clone(), &at);
                }
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
                let weight = self.weight(w);
                arena.set(t, 0, self.file.weight_bytes(weight));
                if !self.mapped_too.contains_key(&(device, w)) {
                    // The copy is what is used.
                    self.file.release(weight);
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
            Some(l) if weight.role == Role::Experts => self.placement.experts[l] == device,
            Some(l) if self.placement.layer[l] == device => true,
            Some(l) => weight.role == Role::BesideExperts && self.placement.experts[l] == device,
            None if weight.role == Role::Embedding => {
                let has_layers = self.placement.layer.contains(&device);
                device == self.placement.input
                    || (self.is_tied() && device == self.placement.output)
                    || (self.shape().n_embd_per_layer > 0 && has_layers)
            }
            // What every layer reads of these is wherever a layer is.
            None if weight.role == Role::LayerRows => true,
            None if ["rope_", "per_layer_"].iter().any(|prefix| weight.name.starts_with(prefix)) => true,
            None => device == self.placement.output,
        }
    }

    fn is_tied(&self) -> bool {
        !self.file.weights().iter().any(|w| w.name == "output.weight")
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

    /// The file that the weights come from.
    pub fn file(&self) -> &ModelFile {
        &self.file
    }

    /// The model's hyperparameters.
    pub fn hparams(&self) -> &HParams {
        self.file.hparams()
    }

    /// The numbers that decide what a prompt costs, and which schedule is chosen.
    pub fn shape(&self) -> &Shape {
        self.file.shape()
    }

    /// The file's header and data.
    pub fn gguf(&self) -> &Gguf {
        self.file.gguf()
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        self.file.tokenizer()
    }

    /// Chat template; chatml where the file has none.
    pub fn chat_template(&self) -> &ChatTemplate {
        self.file.chat_template()
    }

    /// Says which device holds which layer.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// Bytes of weights that were rearranged in memory.
    pub fn repacked_bytes(&self) -> usize {
        self.repacked_bytes
    }

    /// A weight's entry in the table.
    pub fn weight(&self, w: WeightId) -> &Weight {
        self.file.weight(w)
    }

    /// A weight on a device.
    pub fn weight_tensor(&self, device: usize, w: WeightId) -> Tensor<'_> {
        self.arenas[device].get(self.tensors[&(device, w)])
    }

    /// A weight on a device, in the arrangement that products of so many rows are fastest with.
    pub fn matrix_tensor(&self, device: usize, w: WeightId, rows: usize) -> Tensor<'_> {
        match self.mapped_too.get(&(device, w)) {
            Some(&mapped) if Kernels::of(&self.placement.devices[device]).wants_unpacked(self.weight(w).ty, rows) => {
                self.arenas[device].get(mapped)
            }
            _ => self.weight_tensor(device, w),
        }
    }

    /// The dense graph of a prompt of `n_tokens` tokens in a context of `n_ctx`.
    pub fn graph(&self, n_tokens: usize, n_ctx: usize) -> Graph {
        self.file.graph(n_tokens, n_ctx)
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model").field("file", &self.file).field("placement", &self.placement).finish_non_exhaustive()
    }
}
