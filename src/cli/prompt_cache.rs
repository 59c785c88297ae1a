//! The file of `--prompt-cache`: opened before the weights are placed, written once the document is read.

use std::path::Path;

use spts::output_file::OutputFile;
use spts::session::document_file::DocumentFile;
use spts::{ModelFile, Session};

use super::failure::Failure;
use super::{RunArgs, inputs, note};
use crate::report::{grouped, mib};

/// What is there, and what will be.
pub struct PromptCache {
    found: Option<DocumentFile>,
    /// What will be written, unless the file that is there will do.
    out: Option<OutputFile>,
    read_only: bool,
}

impl PromptCache {
    /// Opens the file if it is there, and sees to it that it can be written. `None` without `--prompt-cache`.
    ///
    /// # Errors
    /// A file that is none of a document, or of another model or other settings; a place that cannot be written.
    pub fn open(args: &RunArgs, model: &ModelFile, n_ctx: Option<usize>) -> Result<Option<PromptCache>, Failure> {
        let Some(path) = args.prompt_cache.as_deref() else { return Ok(None) };
        let found = if path.exists() { Some(open(path, args, model, n_ctx)?) } else { None };
        let read_only = args.prompt_cache_ro;
        let out = match &found {
            None if read_only => {
                return Err(Failure::Failed(format!("{}: no such file, and --prompt-cache-ro", path.display())));
            }
            // A place that cannot be written is found before the work.
            None => Some(inputs::create_output(path, &args.files_but(path))?),
            Some(_) => None,
        };
        Ok(Some(PromptCache { found, out, read_only }))
    }

    /// Gives the session what the file has.
    ///
    /// # Errors
    /// As [`Session::load_document`].
    pub fn load(&self, session: &mut Session) -> Result<(), Failure> {
        // One that is longer than the context cannot be of this prompt.
        match self.found.as_ref().filter(|file| file.n_tokens() <= session.n_ctx()) {
            Some(file) => Ok(session.load_document(file)?),
            None => Ok(()),
        }
    }

    /// Whether the file has these tokens and no others, of as many layers as the session has read.
    pub fn is_current(&self, tokens: &[u32], session: &Session) -> bool {
        let layers = session.document().map(|d| d.n_layers_read());
        self.found.as_ref().is_some_and(|file| Some(file.n_layer()) == layers && file.tokens() == tokens)
    }

    /// Says how much of the file served a prompt that begins with `tokens`, if not all of either.
    pub fn say_what_served(&self, tokens: &[u32], n_reused: usize, session: &Session) {
        let Some(file) = &self.found else { return };
        let name = file.path();
        let n_file = file.n_tokens();
        let shared = file.tokens().iter().zip(tokens).take_while(|(a, b)| a == b).count();
        if n_reused > 0 && shared == n_file.min(tokens.len()) {
            return;
        }
        let layers = session.document().map_or(0, |d| d.n_layers_read());
        if n_reused == 0 && layers != file.n_layer() {
            return note(&format!(
                "{}: has what {} layers computed, and this prompt begins to skip in layer {layers}: read anew",
                name.display(),
                file.n_layer()
            ));
        }
        note(&format!(
            "{}: has {} tokens, and parts from this prompt behind {}: read {}",
            name.display(),
            grouped(n_file),
            grouped(shared),
            // States of recurrent layers are there at a document's end alone.
            if n_reused == 0 { "anew" } else { "from there on" }
        ));
    }

    /// Writes the session's document, unless the file `is_current`.
    ///
    /// # Errors
    /// The file cannot be written; the one that was there is still there.
    pub fn keep(self, session: &Session, is_current: bool) -> Result<(), Failure> {
        let Some(document) = session.document().filter(|_| !is_current && !self.read_only) else { return Ok(()) };
        let out = match (self.out, self.found) {
            (Some(out), _) => out,
            (None, Some(found)) => OutputFile::create(&found.path(), &[])?,
            (None, None) => return Ok(()),
        };
        note(&format!("--prompt-cache: writing {} to {}", mib(document.n_bytes()), out.path().display()));
        Ok(document.save_into(out)?)
    }
}

fn open(path: &Path, args: &RunArgs, model: &ModelFile, n_ctx: Option<usize>) -> Result<DocumentFile, Failure> {
    let file = DocumentFile::open(path).map_err(spts::Error::from)?;
    let types = (args.memory.cache_type_k.library(), args.memory.cache_type_v.library());
    let blocks = args.spts.attention.0;
    file.check(model, n_ctx.unwrap_or(model.hparams().n_ctx_train), types, blocks).map_err(spts::Error::from)?;
    Ok(file)
}
