//! Generation: prefill, then sample and decode until something says stop.

use std::ops::ControlFlow;
use std::time::Instant;

use crate::{Error, Result};

use super::Session;
use super::prefill::{PrefillOptions, PrefillProgress, PrefillReport};
use super::sampler::{Sampler, log_softmax_top};

/// When to stop, and what to keep.
#[derive(Clone, Copy, Debug)]
pub struct GenerateOptions {
    /// Tokens to generate at most; fewer if the context ends before.
    pub n_predict: usize,
    /// Stop at the model's end-of-generation tokens. If not, they are forbidden, as with llama.cpp's `--ignore-eos`: what a
    /// model writes behind one is the next turn of a conversation that nobody has.
    pub stop_at_eog: bool,
    /// Log probabilities to keep for each step; 0 is none.
    pub logprobs: usize,
    /// What is known of the prompt.
    pub prompt: PrefillOptions,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self { n_predict: 512, stop_at_eog: true, logprobs: 0, prompt: PrefillOptions::default() }
    }
}

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// An end-of-generation token (the last of `tokens`).
    Eog,
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

impl Session {
    /// Reads `prompt` and generates. `on_token` sees each token as it is sampled; `on_progress` sees the prefill.
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
        let model = self.model().clone();
        let forbidden = if options.stop_at_eog { &[] } else { model.tokenizer().eog_ids() };
        for &t in prompt {
            sampler.accept(t);
        }
        if options.n_predict < usize::MAX {
            self.plan_answer(options.n_predict);
        }
        let prefill = self.prefill_with(prompt, options.prompt, on_progress)?;
        let mut out = Generation {
            tokens: Vec::new(),
            logprobs: Vec::new(),
            stop: StopReason::Length,
            failure: None,
            prefill,
            ttft: 0.0,
            decode_seconds: 0.0,
            decoded: 0,
        };
        let mut decode_start = None;
        while out.tokens.len() < options.n_predict {
            if options.logprobs > 0 {
                out.logprobs.push(log_softmax_top(self.logits(), options.logprobs));
            }
            let token = sampler.sample_without(self.logits(), forbidden)?;
            sampler.accept(token);
            let begun = *decode_start.get_or_insert_with(|| {
                out.ttft = start.elapsed().as_secs_f64();
                Instant::now()
            });
            out.tokens.push(token);
            out.decode_seconds = begun.elapsed().as_secs_f64();
            let stopped = on_token(token).is_break();
            if options.stop_at_eog && self.model().tokenizer().is_eog(token) {
                out.stop = StopReason::Eog;
                break;
            }
            if stopped {
                out.stop = StopReason::Caller;
                break;
            }
            if out.tokens.len() == options.n_predict {
                break;
            }
            match self.decode(token) {
                Ok(()) => out.decoded += 1,
                Err(Error::ContextFull { .. }) => {
                    out.stop = StopReason::ContextFull;
                    break;
                }
                Err(Error::Interrupted) => {
                    out.stop = StopReason::Interrupted;
                    break;
                }
                Err(e) => {
                    (out.stop, out.failure) = (StopReason::Failed, Some(e));
                    break;
                }
            }
        }
        Ok(out)
    }
}
