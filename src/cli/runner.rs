//! A session that answers one prompt after another, and what it tells of each.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use spts::Session;
use spts::ggml::backend;
use spts::session::document::ReadReport;
use spts::session::generate::{GenerateOptions, Generation, StopReason};
use spts::session::prefill::{PrefillOptions, PrefillProgress, PrefillReport};
use spts::session::sampler::Sampler;
use spts::tokenizer::{ChatPrompt, StreamDecoder};

use super::failure::Failure;
use super::options::DocumentMemory;
use super::prompt_cache::PromptCache;
use super::{RunArgs, note};
use crate::report::{self, PrefillStep, RunReport, SharedProgress, Stop, grouped};

/// A session with what its reports tell.
pub struct Runner<'a> {
    /// The command line.
    pub args: &'a RunArgs,
    /// The session.
    pub session: Session,
    /// Name of the method.
    pub schedule: String,
    /// Time that opening the model took.
    pub load: Duration,
    /// Memory in use on devices before.
    pub device_bytes_before: u64,
    /// The progress line.
    pub progress: SharedProgress,
    /// What reading the document did, until a report has told it.
    pub read: Option<ReadReport>,
}

impl Runner<'_> {
    /// Reads what every prompt begins with, from the cache as far as that goes, and keeps it there. A file that could not be
    /// written is returned: answers do not need it.
    pub fn read_document(&mut self, tokens: &[u32], cache: Option<PromptCache>) -> Result<Option<Failure>, Failure> {
        if tokens.is_empty() {
            return Ok(None);
        }
        if let Some(cache) = &cache {
            cache.load(&mut self.session)?;
        }
        let mut step = self.step();
        let read = match self.session.read(tokens, &mut |p| step(p)) {
            Ok(read) => read,
            Err(e @ spts::Error::MethodReadsAnew { .. }) if cache.is_none() => {
                note(&e.to_string());
                return Ok(None);
            }
            Err(e) => return Err(e.into()),
        };
        self.progress.lock().clear();
        self.read = Some(read.clone());
        if self.args.verbose
            && let Some(document) = self.session.document()
        {
            let place = match self.args.document_memory {
                DocumentMemory::Device => "with the layers that read it",
                DocumentMemory::Host => "its residual stream in host memory",
            };
            note(&format!(
                "the document's first {} layers are kept, {place}: {}",
                document.n_layers_read(),
                report::mib(document.n_bytes())
            ));
        }
        let Some(cache) = cache else { return Ok(None) };
        cache.say_what_served(tokens, read.n_reused, &self.session);
        let is_current = cache.is_current(tokens, &self.session);
        Ok(cache.keep(&self.session, is_current).err())
    }

    /// Answers a prompt: what it begins with is not read anew if it was read before.
    pub fn answer(&mut self, prompt: &ChatPrompt, answer: &mut Answer) -> Result<Generation, Failure> {
        let args = self.args;
        let fresh_seed = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_nanos() as u64);
        let mut sampler = Sampler::new(args.sampling.params(fresh_seed)).map_err(spts::Error::from)?;
        let options = GenerateOptions {
            n_predict: usize::try_from(args.predict).unwrap_or(usize::MAX),
            stop_at_eog: !args.ignore_eos,
            stop: args.reverse_prompt.iter().collect(),
            logprobs: args.logprobs.unwrap_or(0) as usize,
            prompt: PrefillOptions { question_start: prompt.question.as_ref().map(|q| q.start) },
        };
        let mut step = self.step();
        let model = self.session.model().clone();
        let mut decoder = StreamDecoder::new(model.tokenizer());
        let mut filter = options.stop.filter();
        let progress = self.progress.clone();
        let mut on_token = |token| {
            progress.lock().clear();
            answer.push(&filter.push(&decoder.push(token)));
            // Without a reader the rest of the answer is wasted work.
            if answer.error.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        self.session.clear();
        let generation = self.session.generate(&prompt.tokens, &mut sampler, options, &mut |p| step(p), &mut on_token);
        self.progress.lock().clear();
        let generation = match generation {
            Ok(generation) => generation,
            Err(e) => {
                let _ = answer.end_line();
                return Err(e.into());
            }
        };
        answer.push(&filter.push(&decoder.flush()));
        answer.push(&filter.flush());
        match answer.error.take() {
            Some(e) => Err(Failure::stdout(e)),
            None => Ok(generation),
        }
    }

    /// Shows a prefill's progress.
    fn step(&self) -> impl FnMut(PrefillProgress) -> ControlFlow<()> + use<> {
        let (progress, start) = (self.progress.clone(), Instant::now());
        move |p| {
            progress.lock().prefill(&PrefillStep {
                layer: p.layer + 1,
                n_layer: p.n_layer,
                active: p.active,
                n_tokens: p.n_tokens,
                fraction: p.fraction.into(),
                elapsed: start.elapsed(),
            });
            ControlFlow::Continue(())
        }
    }

    /// All of an answer, as `--json` and the timing block tell it.
    pub fn report(&self, generation: &Generation, text: String) -> RunReport {
        let prefill = &generation.prefill;
        let dense = prefill.layers.is_empty();
        let n_layer = self.session.model().shape().n_layer;
        let layers = match dense {
            true => vec![(prefill.n_tokens, prefill.n_tokens, prefill.n_tokens); n_layer],
            false => prefill.layers.iter().map(|l| (l.candidates, l.active_attn, l.active_ffn)).collect(),
        };
        let read_whole = prefill.n_reused == 0;
        let (schedule, attention) = match (dense, self.args.spts.attention.0) {
            (false, None) => (self.schedule.clone(), String::new()),
            (true, None) => ("dense".to_owned(), String::new()),
            (false, Some(_)) => (self.schedule.clone(), sparse_layers(prefill)),
            (true, Some(share)) => (format!("dense, attention sparse:{share}"), sparse_layers(prefill)),
        };
        RunReport {
            prompt_tokens: prefill.n_tokens,
            reused_tokens: prefill.n_reused,
            generated: generation.tokens.clone(),
            text,
            logprobs: self.args.logprobs.map(|_| generation.logprobs.clone()),
            stop: match generation.stop {
                StopReason::Eog => Stop::Eog,
                StopReason::StopString => Stop::Text,
                StopReason::ContextFull => Stop::Context,
                StopReason::Interrupted => Stop::Interrupted,
                StopReason::Failed => Stop::Failed,
                // Nothing but the number of tokens is left: this program's callback ends no answer.
                _ => Stop::Length,
            },
            load_s: self.load.as_secs_f64(),
            ttft_s: (!generation.tokens.is_empty()).then_some(generation.ttft),
            prefill_tps: report::per_second(prefill.n_tokens, prefill.seconds).filter(|_| read_whole),
            decode_tps: report::per_second(generation.decoded, generation.decode_seconds),
            cache_kept: prefill.cache_kept,
            schedule: schedule + &attention,
            stages: report::stages(layers),
            peak_rss_bytes: report::peak_rss_bytes(),
            peak_device_bytes: backend::gpu_bytes_used().saturating_sub(self.device_bytes_before),
        }
    }

    /// [`Runner::report`] of the prompt for which the document was read: that is part of it.
    pub fn report_with_document(&mut self, generation: &Generation, text: String) -> RunReport {
        let report = self.report(generation, text);
        let Some(read) = self.read.take() else { return report };
        let seconds = generation.prefill.seconds + read.seconds;
        let reused_tokens = report.reused_tokens.min(read.n_reused);
        RunReport {
            reused_tokens,
            ttft_s: report.ttft_s.map(|ttft| ttft + read.seconds),
            prefill_tps: report::per_second(report.prompt_tokens, seconds).filter(|_| reused_tokens == 0),
            ..report
        }
    }

    /// Says on standard error what reading the document took.
    pub fn say_what_was_read(&mut self) {
        let Some(read) = self.read.take() else { return };
        let anew = grouped(read.n_tokens - read.n_reused);
        note(&format!(
            "{anew} of the document's {} tokens read in {}",
            grouped(read.n_tokens),
            report::seconds(read.seconds)
        ));
    }

    /// A line of JSON on standard output.
    pub fn write_json(&self, report: &impl serde::Serialize) -> Result<(), Failure> {
        let line = serde_json::to_string(report).map_err(|e| Failure::Failed(format!("JSON: {e}")))?;
        crate::write_stdout(&(line + "\n"))
    }
}

/// An answer as it comes.
pub struct Answer {
    stream: bool,
    text: String,
    error: Option<io::Error>,
}

impl Answer {
    /// Nothing yet; `stream`: on standard output as it comes.
    pub fn new(stream: bool) -> Answer {
        Answer { stream, text: String::new(), error: None }
    }

    /// What was said so far.
    pub fn text(&self) -> &str {
        &self.text
    }

    fn push(&mut self, text: &str) {
        self.text.push_str(text);
        if self.stream {
            self.write(text);
        }
    }

    fn write(&mut self, text: &str) {
        if self.error.is_some() {
            return;
        }
        let mut out = io::stdout().lock();
        self.error = out.write_all(text.as_bytes()).and_then(|()| out.flush()).err();
    }

    /// A text ends with a newline.
    pub fn end_line(&mut self) -> Result<(), Failure> {
        if self.stream && !self.text.is_empty() && !self.text.ends_with('\n') {
            self.write("\n");
        }
        self.error.take().map_or(Ok(()), |e| Err(Failure::stdout(e)))
    }
}

/// In how many layers attention read a part of the keys: of prompts that were read from the start it is known.
fn sparse_layers(prefill: &PrefillReport) -> String {
    match (prefill.n_reused, prefill.sparse_layers) {
        (0, 1) => " in 1 layer".to_owned(),
        (0, n) => format!(" in {n} layers"),
        _ => String::new(),
    }
}
