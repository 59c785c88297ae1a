//! Generation: prefill, then sample and decode until something says stop.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use crate::model::weights::Model;
use crate::tokenizer::{Pending, StopFilter, StopStrings, Tokenizer};
use crate::{Error, Result};

use super::Session;
use super::prefill::{PrefillOptions, PrefillProgress, PrefillReport};
use super::sampler::{Sampler, SamplerError, log_softmax_top};

/// When to stop, and what to keep.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// Tokens to generate at most; fewer if the context ends before.
    pub n_predict: usize,
    /// Stop at the model's end-of-generation tokens. If not, they are forbidden, as with llama.cpp's `--ignore-eos`: what a
    /// model writes behind one is the next turn of a conversation that nobody has.
    pub stop_at_eog: bool,
    /// Texts that end the answer. The tokens that spell one are still among the answer's tokens; [`StopStrings::filter`] leaves its
    /// text out, and whatever the last of these tokens brings behind it. A control token ends the answer if its name in the
    /// vocabulary is one of these texts.
    pub stop: StopStrings,
    /// Log probabilities to keep for each step; 0 is none.
    pub logprobs: usize,
    /// What is known of the prompt.
    pub prompt: PrefillOptions,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            n_predict: 512,
            stop_at_eog: true,
            stop: StopStrings::default(),
            logprobs: 0,
            prompt: PrefillOptions::default(),
        }
    }
}

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopReason {
    /// An end-of-generation token (the last of `tokens`).
    Eog,
    /// The answer came to a stop string, which the last of `tokens` completes.
    StopString,
    /// `n_predict` tokens.
    Length,
    /// The context is full.
    ContextFull,
    /// The callback said so.
    Caller,
    /// The interrupt flag was set after the prefill.
    Interrupted,
    /// Reading the last token failed: [`Generation::failure`] says why.
    Failed,
}

/// What was generated.
#[derive(Debug)]
#[non_exhaustive]
pub struct Generation {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// The most likely tokens of every step with their log probabilities, if asked for.
    pub logprobs: Vec<Vec<(u32, f32)>>,
    /// Why it ended.
    pub stop: StopReason,
    /// What went wrong behind the tokens above, such as memory that ran out.
    pub failure: Option<Error>,
    /// The prefill.
    pub prefill: PrefillReport,
    /// Seconds from the call to the first sampled token.
    pub ttft: f64,
    /// Seconds spent decoding the tokens after the first.
    pub decode_seconds: f64,
    /// Tokens decoded in that time.
    pub decoded: usize,
}

impl Generation {
    /// This, unless it was cut off by something that has nothing to do with the answer: for measurements, where a cut answer would
    /// count as a wrong one.
    ///
    /// # Errors
    /// [`Error::Interrupted`], or the failure.
    pub fn unless_cut(self) -> Result<Generation> {
        match (self.stop, self.failure) {
            (StopReason::Interrupted, _) | (StopReason::Failed, None) => Err(Error::Interrupted),
            (StopReason::Failed, Some(e)) => Err(e),
            (_, failure) => Ok(Generation { failure, ..self }),
        }
    }
}

/// An answer under way: an iterator over its tokens. Each is computed when it is asked for, so that dropping the iterator ends
/// the answer; what was read and written so far stays in the session.
#[derive(Debug)]
pub struct Answer<'s> {
    session: &'s mut Session,
    sampler: &'s mut Sampler,
    model: Arc<Model>,
    options: GenerateOptions,
    prefill: PrefillReport,
    /// The token before, which the model has not read yet.
    unread: Option<u32>,
    n_generated: usize,
    n_decoded: usize,
    logprobs: Vec<(u32, f32)>,
    /// `None` without stop strings: nothing needs to be decoded then.
    watch: Option<Watch>,
    stop: Option<StopReason>,
}

/// Reads along in an answer for its stop strings.
#[derive(Debug)]
struct Watch {
    stops: StopStrings,
    pending: Pending,
    filter: StopFilter,
}

impl Watch {
    fn new(stops: &StopStrings) -> Option<Watch> {
        let watch = || Watch { stops: stops.clone(), pending: Pending::default(), filter: stops.filter() };
        (!stops.is_empty()).then(watch)
    }

    /// Whether the answer ends with this token.
    fn ends_with(&mut self, tokenizer: &Tokenizer, token: u32) -> bool {
        if tokenizer.is_control(token) && self.stops.contains(&tokenizer.token_text(token)) {
            return true;
        }
        self.filter.push(&self.pending.push(tokenizer, token));
        self.filter.has_stopped()
    }
}

impl Answer<'_> {
    /// Says what the prompt's prefill did.
    pub fn prefill(&self) -> &PrefillReport {
        &self.prefill
    }

    /// Why the answer ended; `None` while it goes on.
    pub fn stop(&self) -> Option<StopReason> {
        self.stop
    }

    /// The most likely tokens where the last token was sampled, with their log probabilities, if they were asked for.
    pub fn logprobs(&self) -> &[(u32, f32)] {
        &self.logprobs
    }

    /// Has the model read the token before. True unless the answer ends instead.
    fn read(&mut self) -> Result<bool> {
        let Some(token) = self.unread.take() else { return Ok(true) };
        self.stop = Some(match self.session.decode(token) {
            Ok(()) => {
                self.n_decoded += 1;
                return Ok(true);
            }
            Err(Error::ContextFull { .. }) => StopReason::ContextFull,
            Err(Error::Interrupted) => StopReason::Interrupted,
            Err(e) => {
                self.stop = Some(StopReason::Failed);
                return Err(e);
            }
        });
        Ok(false)
    }

    fn sample(&mut self) -> Result<u32> {
        if self.options.logprobs > 0 {
            self.logprobs = log_softmax_top(self.session.logits(), self.options.logprobs);
        }
        let tokenizer = self.model.tokenizer();
        let forbidden = if self.options.stop_at_eog { &[] } else { tokenizer.eog_ids() };
        let token = self.sampler.sample_without(self.session.logits(), forbidden);
        let token = token.map_err(|e| self.session.bad_logits(e))?;
        self.sampler.accept(token);
        self.n_generated += 1;
        if self.options.stop_at_eog && tokenizer.is_eog(token) {
            self.stop = Some(StopReason::Eog);
        } else if self.watch.as_mut().is_some_and(|watch| watch.ends_with(tokenizer, token)) {
            self.stop = Some(StopReason::StopString);
        } else {
            self.unread = Some(token);
        }
        Ok(token)
    }
}

impl Iterator for Answer<'_> {
    type Item = Result<u32>;

    /// The next token, an end-of-generation token or the last one of a stop string last. After an error nothing follows.
    fn next(&mut self) -> Option<Result<u32>> {
        if self.stop.is_some() {
            return None;
        }
        if self.n_generated == self.options.n_predict {
            self.stop = Some(StopReason::Length);
            return None;
        }
        match self.read() {
            Ok(true) => {}
            Ok(false) => return None,
            Err(e) => return Some(Err(e)),
        }
        let token = self.sample();
        if token.is_err() {
            self.stop = Some(StopReason::Failed);
        }
        Some(token)
    }
}

impl Session {
    /// Reads `prompt` and returns its answer, token by token as they are asked for.
    ///
    /// # Errors
    /// As [`Session::prefill`]; each token may fail as [`Session::decode`] does.
    pub fn answer<'s>(
        &'s mut self,
        prompt: &[u32],
        sampler: &'s mut Sampler,
        options: GenerateOptions,
    ) -> Result<Answer<'s>> {
        self.answer_watched(prompt, sampler, options, &mut |_| ControlFlow::Continue(()))
    }

    fn answer_watched<'s>(
        &'s mut self,
        prompt: &[u32],
        sampler: &'s mut Sampler,
        options: GenerateOptions,
        on_progress: &mut dyn FnMut(PrefillProgress) -> ControlFlow<()>,
    ) -> Result<Answer<'s>> {
        for &t in prompt {
            sampler.accept(t);
        }
        if options.n_predict < usize::MAX {
            self.plan_answer(options.n_predict);
        }
        let prefill = self.prefill_with(prompt, options.prompt, on_progress)?;
        let model = self.model().clone();
        let (unread, stop, logprobs, watch) = (None, None, Vec::new(), Watch::new(&options.stop));
        let (n_generated, n_decoded) = (0, 0);
        let session = self;
        Ok(Answer { session, sampler, model, options, prefill, unread, n_generated, n_decoded, logprobs, watch, stop })
    }

    /// What a sampler has against the logits, naming the model's file.
    pub(crate) fn bad_logits(&self, source: SamplerError) -> Error {
        Error::Logits { file: self.model().gguf().path().display().to_string(), source }
    }

    /// Reads `prompt` and generates. `on_token` sees each token as it is sampled; `on_progress` sees the prefill. For tokens one by
    /// one and no callbacks there is [`Session::answer`].
    ///
    /// # Errors
    /// As [`Session::prefill`]; what was generated before an interruption or a failure is returned.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        sampler: &mut Sampler,
        options: GenerateOptions,
        on_progress: &mut dyn FnMut(PrefillProgress) -> ControlFlow<()>,
        on_token: &mut dyn FnMut(u32) -> ControlFlow<()>,
    ) -> Result<Generation> {
        let start = Instant::now();
        let keeps_logprobs = options.logprobs > 0;
        let mut answer = self.answer_watched(prompt, sampler, options, on_progress)?;
        let (mut tokens, mut logprobs) = (Vec::new(), Vec::new());
        let (mut failure, mut stop) = (None, None);
        let (mut first, mut ttft, mut decode_seconds) = (None, 0.0, 0.0);
        while let Some(token) = answer.next() {
            let token = match token {
                Ok(token) => token,
                // A token that could not be sampled is the caller's error, one that could not be read ends the answer.
                Err(e @ Error::Sampler(_)) => return Err(e),
                Err(e) => {
                    failure = Some(e);
                    break;
                }
            };
            if keeps_logprobs {
                logprobs.push(answer.logprobs().to_vec());
            }
            let begun = *first.get_or_insert_with(|| {
                ttft = start.elapsed().as_secs_f64();
                Instant::now()
            });
            tokens.push(token);
            decode_seconds = begun.elapsed().as_secs_f64();
            if on_token(token).is_break() && answer.stop().is_none() {
                stop = Some(StopReason::Caller);
                break;
            }
        }
        let stop = stop.or(answer.stop()).unwrap_or(StopReason::Length);
        let Answer { prefill, n_decoded: decoded, .. } = answer;
        Ok(Generation { tokens, logprobs, stop, failure, prefill, ttft, decode_seconds, decoded })
    }
}
