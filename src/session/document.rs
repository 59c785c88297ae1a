//! Documents: a text that is read once and asked about often.
//!
//! The layers before the first one that skips never see a question behind the document: they are causal and compute every token.
//! Their KV caches and the residual stream that leaves them serve every prompt that begins with the document, exactly; only the
//! question itself runs through them anew, and the layers behind over everything that these leave. Where a prompt is dense in
//! all layers, all of their caches serve. A session that has read a document ([`Session::read`]) compares every prompt with what
//! it has of the one before, and begins where the two part.
//!
//! Recurrent layers have one state where others have an entry for each token, and it cannot be taken back. It is kept where a
//! document ends: prompts that begin with all of it begin there, those that go on where the last one ended there, all others at the
//! start. So it is, behind long documents, with layers that have a window: they forget what no later token sees.

mod prefix;

use std::fmt;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use crate::compile;
use crate::ggml::backend::{self, BufferType};
use crate::gguf::GgufError;
use crate::method::{Budgets, Dense, Entry, Method, Prompt};
use crate::output_file::OutputFile;
use crate::{Error, Result};

pub(super) use prefix::Prefix;

use super::Session;
use super::document_file::{self, DocumentFile};
use super::prefill::{Prepared, PrefillProgress, PrefillReport, Reading, Share};
use super::residual::Residual;
use super::sequence::LayerMemory;
use super::watch::work;
use super::turns::Staged;

/// Tokens of questions and answers for which a document's caches have room from the start; they grow as they fill.
const QUESTION_ROOM: usize = 1024;

/// The layers that skip get their memory while those before still read, if the prompt has so many times the tokens that are read.
const OVERLAP: usize = 8;

/// Where the residual stream of a document lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DocumentMemory {
    /// In the memory of the device that reads it.
    #[default]
    Device,
    /// In host memory, from where it is copied for every question.
    Host,
}

/// What reading a document did.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ReadReport {
    /// Tokens of the document.
    pub n_tokens: usize,
    /// Its first tokens that were not read anew, since the document before began with them.
    pub n_reused: usize,
    /// Wall time in seconds.
    pub seconds: f64,
}

/// The document that a session has read.
#[derive(Clone, Copy)]
pub struct Document<'s> {
    session: &'s Session,
    prefix: &'s Prefix,
}

impl fmt::Debug for Document<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Document")
            .field("n_tokens", &self.tokens().len())
            .field("n_layers_read", &self.n_layers_read())
            .finish_non_exhaustive()
    }
}

impl Document<'_> {
    /// The document's tokens.
    pub fn tokens(&self) -> &[u32] {
        &self.prefix.tokens[..self.prefix.n_document]
    }

    /// Layers whose work is kept: those before the first one that skips, or all.
    pub fn n_layers_read(&self) -> usize {
        self.prefix.cut
    }

    /// Bytes of its keys, values, recurrent states and residual stream, which is what its file takes besides a header.
    pub fn n_bytes(&self) -> u64 {
        let shape = self.session.model.shape();
        let layers = 0..self.prefix.cut;
        let states = layers.clone().filter_map(|l| shape.recurrence(l)).map(|heads| 4 * heads.n_state() as u64);
        let entry_of = |l: usize| -> u64 {
            let row = |t: super::CacheType| shape.n_embd_kv(l) / t.ggml().block_size() * t.ggml().type_size();
            (row(self.session.options.cache_type_k) + row(self.session.options.cache_type_v)) as u64
        };
        let n = self.prefix.n_document;
        let n_of = |l: usize| self.session.sequence.cache(l).that_stay(n) as u64;
        let entries: u64 = layers.clone().filter(|&l| shape.has_cache(l)).map(|l| n_of(l) * entry_of(l)).sum();
        let residual = if self.prefix.is_dense() { 0 } else { 4 * shape.n_embd as u64 };
        entries + n as u64 * residual + states.sum::<u64>()
    }

    /// Writes it to a file, from which [`Session::open_document`] reads it, in this process or another.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        self.save_into(OutputFile::create(path, &[]).map_err(GgufError::from)?)
    }

    /// As [`Document::save`], into a file that has been created already: before the document was read.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save_into(&self, out: OutputFile) -> Result<()> {
        let prefix = self.prefix;
        let residual = (!prefix.is_dense()).then_some(&prefix.residual);
        document_file::write(self.session, self.tokens(), prefix.cut, residual, out)
    }
}

impl Session {
    /// Reads a document, for prompts that begin with it: [`Session::prefill`] and all that is built on it then compute of each
    /// prompt what is behind the tokens that it shares with the one before, as exactly as if it were read from the start (but for a
    /// method whose attention reads a part of the keys: which part a document's last tokens read follows from where it ends).
    /// Nothing counts as read yet: the session is cleared, and so it is for every independent question ([`Session::clear`]); a
    /// conversation's next turn is a prompt that begins with the turns before. A document that begins like the one before is
    /// read from where they part.
    ///
    /// `progress` is called between layers; breaking stops with [`Error::Interrupted`].
    ///
    /// # Errors
    /// As [`Session::prefill`]; and the session's method does not read prompts from the start
    /// ([`Error::MethodReadsAnew`]).
    pub fn read(
        &mut self,
        document: &[u32],
        progress: &mut dyn FnMut(PrefillProgress) -> ControlFlow<()>,
    ) -> Result<ReadReport> {
        let start = Instant::now();
        self.clear();
        self.check_prompt(document)?;
        let prompt = Prompt::of(document.len());
        let method = self.options.method.clone();
        let budgets = method.budgets(self.model.shape(), prompt)?;
        let dense = budgets.dense_layers();
        if dense == 0 || method.entry(self.model.shape(), prompt)? != Entry::All {
            return Err(Error::MethodReadsAnew { method: method.name().to_owned() });
        }
        if self.prefix.is_none() {
            self.prefix = Some(self.new_prefix(dense)?);
        }
        let room = self.answer_room;
        self.answer_room = room.saturating_add(QUESTION_ROOM);
        let read = if self.is_there(document, dense) {
            Ok(document.len())
        } else if dense == budgets.layers.len() {
            let report = self.prefill_behind_prefix(start, document, &Dense, budgets, progress);
            report.map(|r| r.n_reused)
        } else {
            self.reuse(document, dense).and_then(|n_reused| {
                self.read_before_cut(document, n_reused, progress)?;
                Ok(n_reused)
            })
        };
        self.answer_room = room;
        self.clear();
        let n_reused = read?;
        if let Some(prefix) = &mut self.prefix {
            self.sequence.keep_states(prefix.cut)?;
            prefix.n_document = document.len();
        }
        Ok(ReadReport { n_tokens: document.len(), n_reused, seconds: start.elapsed().as_secs_f64() })
    }

    /// Goes back to where the layers before `dense` have read a document and no more, if their states there are known: nothing of
    /// it is read anew then, as its last rows are where no layer is recurrent.
    fn is_there(&mut self, document: &[u32], dense: usize) -> bool {
        let Some(prefix) = &mut self.prefix else { return false };
        let n = document.len();
        let is_read = prefix.cut == dense && prefix.tokens.starts_with(document) && self.sequence.has_states(dense);
        if !is_read || self.sequence.known(dense, n) != n {
            return false;
        }
        prefix.truncate(n);
        self.sequence.rewind(dense, n);
        true
    }

    /// The document, as far as the prompts since have begun with it.
    pub fn document(&self) -> Option<Document<'_>> {
        let prefix = self.prefix.as_ref().filter(|p| p.n_document > 0)?;
        if !self.sequence.has_kept(prefix.cut, prefix.n_document) {
            return None;
        }
        Some(Document { session: self, prefix })
    }

    /// Forgets the document and everything read.
    pub fn forget_document(&mut self) {
        self.prefix = None;
        self.sequence.clear();
        self.logits.clear();
    }

    /// Opens a document that was saved ([`Document::save`]), as if it had been read just now.
    ///
    /// # Errors
    /// The file is none of a document, is damaged, or belongs to another model, other settings or other types of caches; the
    /// document does not fit the context or the memory. What the session had is then forgotten.
    pub fn open_document(&mut self, path: &Path) -> Result<()> {
        let file = DocumentFile::open(path)?;
        self.load_document(&file)
    }

    /// As [`Session::open_document`], of a file that is open.
    ///
    /// # Errors
    /// As [`Session::open_document`].
    pub fn load_document(&mut self, file: &DocumentFile) -> Result<()> {
        let types = (self.options.cache_type_k, self.options.cache_type_v);
        file.check(self.model.file(), self.n_ctx(), types, self.options.method.blocks())?;
        let tokens = file.tokens();
        self.forget_document();
        self.check_prompt(&tokens)?;
        let cut = file.n_layer();
        let mut prefix = self.new_prefix(cut)?;
        let room = (self.answer_room.saturating_add(QUESTION_ROOM)).min(self.n_ctx() - tokens.len());
        let entries: Vec<usize> = self.sequence.layers()[..cut].iter().map(|l| l.n_of_document(tokens.len())).collect();
        self.sequence.reserve(0, &entries, room, &Staged::default())?;
        for layer in 0..cut {
            match &self.sequence.layers()[layer] {
                LayerMemory::Cache(cache) => cache.write(file.keys(layer), file.values(layer)),
                LayerMemory::Recurrent(state) => state.write(file.channels(layer), file.matrices(layer)),
                LayerMemory::Shared => {}
            }
        }
        if let Some(rows) = file.residual() {
            prefix.residual.reserve(tokens.len() + room, 0)?;
            prefix.residual.write(0, rows);
        }
        self.sequence.count_document(cut, tokens.len());
        if let Err(e) = self.sequence.keep_states(cut) {
            self.sequence.clear();
            return Err(e.into());
        }
        prefix.n_document = tokens.len();
        prefix.tokens = tokens;
        self.prefix = Some(prefix);
        Ok(())
    }

    fn new_prefix(&self, cut: usize) -> Result<Prefix> {
        let n_layer = self.model.shape().n_layer;
        Ok(Prefix::new(cut, n_layer, Residual::new(self.residual_memory(cut)?, self.model.shape().n_embd)))
    }

    fn residual_memory(&self, cut: usize) -> Result<BufferType> {
        let layer = cut.min(self.model.shape().n_layer - 1);
        Ok(match self.options.document_memory {
            DocumentMemory::Device => self.devices[self.model.placement().layer[layer]].backend.buffer_type(),
            DocumentMemory::Host => backend::buffer_type("CPU")?,
        })
    }

    /// Forgets what there is of earlier prompts, but not that prompts are to be kept: something else will be in the caches.
    pub(super) fn empty_prefix(&mut self) {
        if let Some(prefix) = &mut self.prefix {
            prefix.truncate(0);
            self.sequence.clear();
        }
    }

    /// Goes back to where a prompt and the one before part, and returns how many tokens they share. `dense`: layers before the
    /// first that skips.
    fn reuse(&mut self, tokens: &[u32], dense: usize) -> Result<usize> {
        let fresh = match &self.prefix {
            Some(prefix) if prefix.serves(dense) => None,
            _ => Some(self.new_prefix(dense)?),
        };
        if fresh.is_some() {
            // Its memory goes first.
            self.prefix = fresh;
            self.sequence.clear();
        }
        let fewest = self.target().fewest_queries();
        let Some(prefix) = &mut self.prefix else { unreachable!("made above") };
        let shared = prefix.tokens.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        // What is read anew is read as well as in a prompt from the start. A dense prompt's logits come from its last token.
        let new_rows = prefix.is_dense() || shared < tokens.len();
        let n_again = prefix.n_document.min(shared);
        let shared = if self.sequence.has_states(prefix.cut) {
            // However few rows are new then.
            self.sequence.known(prefix.cut, if prefix.is_dense() { shared.min(tokens.len() - 1) } else { shared })
        } else {
            let shared = if new_rows { shared.min(tokens.len().saturating_sub(fewest)) } else { shared };
            self.sequence.known(prefix.cut, shared)
        };
        prefix.truncate(shared);
        prefix.n_again = n_again;
        self.sequence.rewind(prefix.cut, shared);
        Ok(shared)
    }

    /// Reads a prompt behind what it shares with the one before.
    pub(super) fn prefill_behind_prefix(
        &mut self,
        start: Instant,
        tokens: &[u32],
        method: &dyn Method,
        budgets: Budgets,
        progress: &mut dyn FnMut(PrefillProgress) -> ControlFlow<()>,
    ) -> Result<PrefillReport> {
        let n_reused = self.reuse(tokens, budgets.dense_layers())?;
        let report = if budgets.is_dense() {
            self.read_all_layers(start, tokens, n_reused, progress)
        } else {
            self.read_and_skip(start, tokens, n_reused, method, budgets, progress)
        };
        if report.is_err() {
            self.clear();
        } else if self.is_suspect {
            // What is no number would stay in every answer to come.
            if let Some(prefix) = &mut self.prefix {
                prefix.truncate(0);
            }
        }
        Ok(PrefillReport { n_tokens: tokens.len(), n_reused, ..report? })
    }

    fn read_all_layers(
        &mut self,
        start: Instant,
        tokens: &[u32],
        n_reused: usize,
        progress: &mut dyn FnMut(PrefillProgress) -> ControlFlow<()>,
    ) -> Result<PrefillReport> {
        let n_layer = self.model.shape().n_layer;
        let new = &tokens[n_reused..];
        self.sequence.complete(n_layer, n_reused, Vec::new(), &Staged::default());
        let prepared = self.prepared_for(new.len(), &Dense, Budgets::dense(n_layer, new.len()))?;
        let report = self.run_prefill(start, Reading::all(new, n_reused), prepared, Share::WHOLE, progress, None)?;
        if let Some(prefix) = &mut self.prefix {
            prefix.extend(new);
        }
        Ok(report)
    }

    fn read_and_skip(
        &mut self,
        start: Instant,
        tokens: &[u32],
        n_reused: usize,
        method: &dyn Method,
        budgets: Budgets,
        progress: &mut dyn FnMut(PrefillProgress) -> ControlFlow<()>,
    ) -> Result<PrefillReport> {
        let Some(cut) = self.prefix.as_ref().map(Prefix::cut) else { unreachable!("the caller has one") };
        // In the measure of the layers before, whose nodes are about as many.
        let behind: usize = budgets.layers[cut..].iter().map(|l| l.candidates).sum();
        let reading = self.start_reading(tokens, n_reused, behind, progress)?;
        let before = reading.as_ref().map_or(0, |r| r.work);
        // A GPU is at work by now.
        let dense = self.model.graph(tokens.len(), self.n_ctx());
        let behind = compile::from_layer(dense, cut, method, budgets, &self.target())?;
        let prepared = if OVERLAP * (tokens.len() - n_reused) < tokens.len() {
            let prepared = self.prepare(behind)?;
            self.end_reading(reading);
            prepared
        } else {
            // Both would take too much memory at once.
            self.end_reading(reading);
            self.prepare(behind)?
        };
        let Some(prefix) = self.prefix.take() else { unreachable!("as above") };
        let reading = Reading {
            tokens,
            positions: (0..tokens.len()).collect(),
            n_read: tokens.len(),
            residual: Some((&prefix.residual, self.model.placement().layer[cut])),
        };
        let report = self.run_prefill(start, reading, prepared, Share { before, behind: 0 }, progress, None);
        self.prefix = Some(prefix);
        report
    }

    /// Has the layers before the prefix's cut read the tokens behind the first `n_reused`.
    fn read_before_cut(
        &mut self,
        tokens: &[u32],
        n_reused: usize,
        progress: &mut dyn FnMut(PrefillProgress) -> ControlFlow<()>,
    ) -> Result<()> {
        let reading = self.start_reading(tokens, n_reused, 0, progress)?;
        self.end_reading(reading);
        Ok(())
    }

    /// Queues what the layers before the prefix's cut have to compute of the tokens behind the first `n_reused`; `None` if there
    /// are none. `behind`: rows of all layers that will follow.
    fn start_reading(
        &mut self,
        tokens: &[u32],
        n_reused: usize,
        behind: usize,
        progress: &mut dyn FnMut(PrefillProgress) -> ControlFlow<()>,
    ) -> Result<Option<Queued>> {
        self.prepared = None;
        let new = &tokens[n_reused..];
        if new.is_empty() {
            return Ok(None);
        }
        let n_ctx = self.n_ctx();
        let Some(prefix) = &mut self.prefix else { unreachable!("the caller has one") };
        let (cut, rows) = (prefix.cut, (tokens.len() + QUESTION_ROOM).min(n_ctx));
        if prefix.residual.capacity() < tokens.len() {
            prefix.residual.reserve(rows, n_reused)?;
        }
        let compiled = compile::before_layer(self.model.graph(new.len(), n_ctx), cut, &self.target())?;
        let work = work(&compiled.program.phases);
        let mut prepared = self.prepare(compiled)?;
        self.start_call();
        let share = Share { before: 0, behind: behind * work / (cut * new.len()) };
        self.execute(&Reading::all(new, n_reused), &mut prepared, share, progress, None, false)?;
        Ok(Some(Queued { prepared, cut, first: n_reused, new: new.to_vec(), work }))
    }

    /// Waits for what was queued and takes it over.
    fn end_reading(&mut self, queued: Option<Queued>) {
        let Some(Queued { prepared, cut, first, new, .. }) = queued else { return };
        let device = self.model.placement().layer[cut - 1];
        self.devices[device].backend.synchronize();
        let rows = prepared.slots[device].get(prepared.compiled.graph.outputs[0]);
        if let Some(prefix) = &mut self.prefix {
            prefix.residual.store(first, rows, new.len());
            prefix.extend(&new);
        }
        self.sequence.extend(cut, new.len(), &prepared.staged);
        self.is_suspect = false;
    }
}

/// A question's first layers under way.
struct Queued {
    prepared: Prepared,
    cut: usize,
    /// Row of its first token.
    first: usize,
    new: Vec<u32>,
    /// As the progress counts it.
    work: usize,
}
