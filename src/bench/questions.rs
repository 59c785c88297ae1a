//! Questions about a document that was read once, beside the same prompt read from the start.
//!
//! A run is: the document with a question, read from the start; the document alone; two questions behind it, of which the second
//! counts; and the document opened from a file in the page cache, with a question behind it. Times of questions are TTFT, as in
//! [`super::measure`].

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use crate::method::Dense;
use crate::random::SplitMix64;
use crate::session::sampler::{Sampler, SamplerParams};
use crate::{Error, Model, Result, Session};

use super::protocol::{BenchOptions, Progress, Samples};

/// What questions about a document cost.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QuestionResult {
    /// Tokens of a question.
    pub n_question: usize,
    /// TTFT of document and question read from the start, in seconds.
    pub fresh_s: Samples,
    /// Reading the document alone.
    pub read_s: Samples,
    /// TTFT of another question behind it.
    pub question_s: Samples,
    /// TTFT of a question behind the document that is opened from a file; the opening counts.
    pub opened_s: Samples,
    /// A question's TTFT from the start over that behind the document, run by run.
    pub speedup: Samples,
    /// What the session keeps of the document, in bytes.
    pub document_bytes: u64,
    /// Bytes of the file that it was saved to.
    pub file_bytes: u64,
}

/// Measures questions of `n_question` tokens behind a document of `n_document`, whose file is written into `folder`.
///
/// # Errors
/// As [`Session::read`] and [`Session::prefill`]; the file cannot be written or read.
pub(super) fn measure_questions(
    model: &Arc<Model>,
    options: &BenchOptions,
    n_document: usize,
    n_question: usize,
    folder: &Path,
    progress: &mut dyn Progress,
) -> Result<Option<QuestionResult>> {
    let mut session_options = options.session.clone();
    session_options.n_ctx = Some(n_document + n_question);
    session_options.method = options.method.clone().unwrap_or_else(|| Arc::new(Dense));
    let mut session = Session::new(model.clone(), session_options)?;
    session.plan_answer(0);
    progress.session(&session.interrupt_flag());
    let mut rng = SplitMix64(options.seed);
    let n_vocab = model.shape().n_vocab as u64;
    let mut ids = |n: usize| -> Vec<u32> { (0..n).map(|_| (rng.next() % n_vocab) as u32).collect() };
    let document = ids(n_document);
    let mut prompt = || [document.clone(), ids(n_question)].concat();
    let mut sampler = Sampler::new(SamplerParams::greedy())?;
    let mut ask = |session: &mut Session, prompt: &[u32], start: Instant| -> Result<f64> {
        session.clear();
        session.prefill(prompt, &mut |_| ControlFlow::Continue(()))?;
        sampler.sample(session.logits()).map_err(|e| session.bad_logits(e))?;
        Ok(start.elapsed().as_secs_f64())
    };
    let path = folder.join("document.gguf");
    let (mut fresh, mut read, mut question, mut opened) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut document_bytes, mut file_bytes) = (0, 0);
    for repetition in std::iter::once(None).chain((0..options.repetitions).map(Some)) {
        progress.questions(n_document, repetition);
        std::thread::sleep(options.rest);
        session.forget_document();
        let from_the_start = ask(&mut session, &prompt(), Instant::now())?;
        session.forget_document();
        let reading = session.read(&document, &mut |_| ControlFlow::Continue(()))?.seconds;
        ask(&mut session, &prompt(), Instant::now())?;
        let second = ask(&mut session, &prompt(), Instant::now())?;
        if repetition.is_none()
            && let Some(document) = session.document()
        {
            document_bytes = document.n_bytes();
            document.save(&path)?;
            file_bytes = std::fs::metadata(&path).map_or(0, |m| m.len());
        }
        session.forget_document();
        let start = Instant::now();
        session.open_document(&path)?;
        let from_file = ask(&mut session, &prompt(), start)?;
        if repetition.is_some() {
            fresh.push(from_the_start);
            read.push(reading);
            question.push(second);
            opened.push(from_file);
        }
    }
    let _ = std::fs::remove_file(&path);
    let speedup = fresh.iter().zip(&question).map(|(fresh, question)| fresh / question).collect();
    let all = [fresh, read, question, opened, speedup].map(Samples::new);
    let [Some(fresh_s), Some(read_s), Some(question_s), Some(opened_s), Some(speedup)] = all else { return Ok(None) };
    Ok(Some(QuestionResult {
        n_question,
        fresh_s,
        read_s,
        question_s,
        opened_s,
        speedup,
        document_bytes,
        file_bytes,
    }))
}

/// A folder of its own in the system's for temporary files, gone with the value.
pub(super) struct Folder(std::path::PathBuf);

impl Folder {
    /// Makes a folder that goes away with the value.
    ///
    /// # Errors
    /// The system refuses.
    pub(super) fn new() -> Result<Folder> {
        let path = std::env::temp_dir().join(format!("spts-bench-{}", std::process::id()));
        let refused = |source| Error::Gguf(crate::gguf::GgufError::Io {
            file: path.display().to_string(),
            action: "create",
            source,
        });
        std::fs::create_dir_all(&path).map_err(refused)?;
        Ok(Folder(path))
    }

    /// The folder's path.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
