//! A model's file: header, numbers, tokenizer, chat template, and which weights there are. Opening it takes milliseconds and
//! touches no weight; [`super::weights`] puts these on their devices.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use crate::Result;
use crate::gguf::{Gguf, OpenOptions, TensorInfo};
use crate::graph::Graph;
use crate::graph::ir::WeightId;
use crate::tokenizer::{ChatTemplate, Tokenizer};

use super::stack::Architecture;
use super::hparams::HParams;
use super::overrides::ModelOverrides;
use super::shape::Shape;
use super::table::{Role, Weight, WeightTable};

/// A GGUF file that is a model which can be run.
pub struct ModelFile {
    gguf: Arc<Gguf>,
    hparams: HParams,
    tokenizer: Tokenizer,
    chat_template: ChatTemplate,
    architecture: Box<dyn Architecture>,
    weights: Vec<Weight>,
    unused: Vec<String>,
    is_locked: bool,
}

impl ModelFile {
    /// Opens a GGUF file and reads everything but its weights.
    ///
    /// # Errors
    /// The file is no valid GGUF, or no supported model.
    pub fn open(path: &Path, options: OpenOptions) -> Result<ModelFile> {
        Self::open_with(path, options, &ModelOverrides::default())
    }

    /// As [`ModelFile::open`], with some of the file's metadata changed.
    ///
    /// # Errors
    /// As there; an override that does not fit the file.
    pub fn open_with(path: &Path, options: OpenOptions, overrides: &ModelOverrides) -> Result<ModelFile> {
        let mut gguf = Gguf::open(path, options)?;
        overrides.apply(&mut gguf)?;
        Ok(ModelFile { is_locked: options.mlock, ..Self::from_gguf(Arc::new(gguf))? })
    }

    /// Reads a file that is already open.
    ///
    /// # Errors
    /// As [`ModelFile::open`].
    pub fn from_gguf(gguf: Arc<Gguf>) -> Result<ModelFile> {
        let hparams = HParams::from_gguf(&gguf)?;
        let mut table = WeightTable::new(&gguf);
        let architecture = hparams.arch.load(&hparams, &mut table)?;
        let (weights, unused) = table.finish(hparams.arch)?;
        let tokenizer = Tokenizer::from_gguf(&gguf)?;
        let chat_template = ChatTemplate::from_gguf(&gguf, &tokenizer).map_err(|e| e.in_file(gguf.path()))?;
        let is_locked = false;
        Ok(ModelFile { gguf, hparams, tokenizer, chat_template, architecture, weights, unused, is_locked })
    }

    /// The GGUF file of the model.
    pub fn gguf(&self) -> &Arc<Gguf> {
        &self.gguf
    }

    /// The model's hyperparameters.
    pub fn hparams(&self) -> &HParams {
        &self.hparams
    }

    /// The numbers that decide what a prompt costs, and which schedule is chosen.
    pub fn shape(&self) -> &Shape {
        &self.hparams.shape
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Chat template; chatml where the file has none and no other was set.
    pub fn chat_template(&self) -> &ChatTemplate {
        &self.chat_template
    }

    /// Has chats go through another template than the model's own.
    pub fn set_chat_template(&mut self, template: ChatTemplate) {
        self.chat_template = template;
    }

    /// Tensors of the file that the architecture knows and does not use.
    pub fn unused_tensors(&self) -> &[String] {
        &self.unused
    }

    /// What is odd about the file and does not keep it from running, one line each.
    pub fn warnings(&self) -> &[String] {
        self.tokenizer.warnings()
    }

    /// The dense graph of a prompt of `n_tokens` tokens in a context of `n_ctx`.
    pub fn graph(&self, n_tokens: usize, n_ctx: usize) -> Graph {
        self.architecture.graph(n_tokens, n_ctx)
    }

    /// All weights, by their numbers.
    pub fn weights(&self) -> &[Weight] {
        &self.weights
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
        &self.gguf.tensor_data(self.tensor_of(weight))[weight.bytes.clone()]
    }

    /// Bytes of the experts of each of the first `n_layers` layers.
    pub fn expert_bytes(&self, n_layers: usize) -> Vec<u64> {
        let mut bytes = vec![0; n_layers.min(self.shape().n_layer)];
        for w in self.weights.iter().filter(|w| w.role == Role::Experts) {
            if let Some(sum) = w.layer.and_then(|l| bytes.get_mut(l)) {
                *sum += w.bytes.len() as u64;
            }
        }
        bytes
    }

    /// The tensor that holds a weight.
    fn tensor_of(&self, weight: &Weight) -> &TensorInfo {
        self.gguf.tensor(&weight.tensor).expect("the table was made from this file")
    }

    /// In which file of a split model a weight's bytes begin, and where in it.
    pub(super) fn place_of(&self, weight: &Weight) -> (usize, usize) {
        let tensor = self.tensor_of(weight);
        (tensor.part, self.gguf.tensor_offset(tensor) as usize + weight.bytes.start)
    }

    /// Lets go of the file's pages that hold a weight, which has been copied elsewhere.
    pub(super) fn release(&self, weight: &Weight) {
        self.gguf.release(self.tensor_of(weight), weight.bytes.clone());
    }

    /// Whether the file is kept from being paged out.
    pub(super) fn is_locked(&self) -> bool {
        self.is_locked
    }
}

impl fmt::Debug for ModelFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelFile").field("path", &self.gguf.path()).field("shape", self.shape()).finish_non_exhaustive()
    }
}
