//! One schedule on one prompt, measured beside dense: by its own answer, and by how near it stays to dense's.
//!
//! Dense answers first. Then the schedule reads the prompt once and is led along dense's answer, token by token, whatever it would
//! have said: that shows at every token whether it still chooses the same one, where a score shows one number an answer. Its own
//! answer comes from the same prefill: it is dense's up to the first token that it chooses otherwise, and goes on from there.

use std::ops::ControlFlow;
use std::time::Instant;

use crate::eval::divergence::{kl, log_softmax};
use crate::eval::results::Nearness;
use crate::eval::tasks::{Task, TaskAnswer};
use crate::session::prefill::{PrefillOptions, PrefillProgress};
use crate::session::sampler::{Sampler, SamplerParams};
use crate::tokenizer::{ChatPrompt, StreamDecoder};
use crate::{Error, Model, Result, Session};

/// Tokens of an answer whose distributions are compared: those of dense are kept meanwhile, `n_vocab` numbers each.
const COMPARED: usize = 64;

/// Sees where a prefill is, and may stop it.
pub type OnProgress<'a> = &'a mut dyn FnMut(PrefillProgress) -> ControlFlow<()>;

/// The dense answer to a prompt, beside which candidates are measured.
pub struct DenseAnswer {
    /// As [`crate::eval::tasks::ask`] has it.
    pub answer: TaskAnswer,
    /// Its tokens.
    tokens: Vec<u32>,
    /// Log probabilities `[n_vocab]` before each of the first tokens.
    log_probs: Vec<Vec<f32>>,
}

/// Asks a session whose method is [`crate::method::Dense`]. What it has read before is forgotten.
///
/// # Errors
/// As [`Session::prefill_with`] and [`Session::decode`].
pub fn dense(session: &mut Session, task: &Task, prompt: &ChatPrompt, progress: OnProgress) -> Result<DenseAnswer> {
    let model = session.model().clone();
    let mut walk = Walk::start(session, &model, task, prompt, progress)?;
    let mut log_probs = Vec::new();
    loop {
        if log_probs.len() < COMPARED {
            log_probs.push(log_softmax(walk.session.logits()));
        }
        if !walk.step()? {
            break;
        }
        walk.read_last()?;
    }
    let (answer, tokens) = walk.finish();
    Ok(DenseAnswer { answer, tokens, log_probs })
}

/// Measures the session's method on a prompt that dense has answered. What the session has read before is forgotten. The answer
/// is the one that [`crate::eval::tasks::ask`] gets.
///
/// # Errors
/// As [`Session::prefill_with`] and [`Session::decode`].
pub fn beside(
    session: &mut Session,
    task: &Task,
    prompt: &ChatPrompt,
    dense: &DenseAnswer,
    progress: OnProgress,
) -> Result<(TaskAnswer, Nearness)> {
    let model = session.model().clone();
    let mut walk = Walk::start(session, &model, task, prompt, progress)?;
    let mut divergence = 0.0;
    let mut same = 0;
    // Where it first chooses otherwise, and what.
    let mut parted: Option<(usize, u32)> = None;
    for (i, &token) in dense.tokens.iter().enumerate() {
        if let Some(p) = dense.log_probs.get(i) {
            divergence += kl(p, &log_softmax(walk.session.logits()));
        }
        let chosen = walk.choose()?;
        if chosen == token {
            same += 1;
        } else if parted.is_none() {
            parted = Some((i, chosen));
        }
        if i + 1 < dense.tokens.len() {
            walk.session.decode(token)?;
        }
    }
    let nearness = Nearness {
        agreement: same as f64 / dense.tokens.len().max(1) as f64,
        // Rounding may make that of two equal distributions a little less than 0.
        kl: (divergence / dense.log_probs.len().max(1) as f64).max(0.0),
    };
    if let Some((at, chosen)) = parted {
        walk.go_back(prompt, &dense.tokens[..at], progress)?;
        dense.tokens[..at].iter().for_each(|&token| _ = walk.take(token));
        let mut more = walk.take(chosen);
        while more {
            walk.read_last()?;
            more = walk.step()?;
        }
        return Ok((walk.finish().0, nearness));
    }
    let answer = TaskAnswer { ttft_s: walk.ttft_s, cache_kept: walk.cache_kept, ..dense.answer.clone() };
    Ok((answer, nearness))
}

/// A greedy answer under way: the logits are those of the next token.
struct Walk<'s> {
    session: &'s mut Session,
    task: &'s Task,
    sampler: Sampler,
    decoder: StreamDecoder<'s>,
    text: String,
    tokens: Vec<u32>,
    ttft_s: f64,
    cache_kept: f64,
}

impl<'s> Walk<'s> {
    /// Begins an answer by reading the prompt.
    fn start(
        session: &'s mut Session,
        model: &'s Model,
        task: &'s Task,
        prompt: &ChatPrompt,
        progress: OnProgress,
    ) -> Result<Walk<'s>> {
        session.clear();
        let options = PrefillOptions { question_start: prompt.question.as_ref().map(|q| q.start) };
        let mut sampler = Sampler::new(SamplerParams::greedy())?;
        let start = Instant::now();
        session.plan_answer(task.n_predict);
        let report = session.prefill_with(&prompt.tokens, options, progress)?;
        sampler.sample(session.logits()).map_err(|e| session.bad_logits(e))?;
        let ttft_s = start.elapsed().as_secs_f64();
        let decoder = StreamDecoder::new(model.tokenizer());
        let (text, tokens) = (String::new(), Vec::new());
        Ok(Walk { session, task, sampler, decoder, text, tokens, ttft_s, cache_kept: report.cache_kept })
    }

    fn choose(&mut self) -> Result<u32> {
        self.sampler.sample(self.session.logits()).map_err(|e| self.session.bad_logits(e))
    }

    /// Makes a token the answer's next one; `false` if it is the last.
    fn take(&mut self, token: u32) -> bool {
        self.text.push_str(&self.decoder.push(token));
        self.tokens.push(token);
        let is_settled = self.task.metric.is_settled(&self.text, &self.task.answers);
        let ends = self.session.model().tokenizer().is_eog(token);
        !is_settled && !ends && self.tokens.len() < self.task.n_predict
    }

    /// [`Walk::take`] of the most likely token.
    fn step(&mut self) -> Result<bool> {
        let token = self.choose()?;
        Ok(self.take(token))
    }

    /// Goes back to the first tokens of the answer. What cannot be forgotten token by token is read anew.
    fn go_back(&mut self, prompt: &ChatPrompt, answer: &[u32], progress: OnProgress) -> Result<()> {
        match self.session.truncate(prompt.tokens.len() + answer.len()) {
            Err(Error::TruncateState { .. } | Error::Truncate { .. }) => {}
            done => return done,
        }
        self.session.clear();
        let options = PrefillOptions { question_start: prompt.question.as_ref().map(|q| q.start) };
        self.session.prefill_with(&prompt.tokens, options, progress)?;
        answer.iter().try_for_each(|&token| self.session.decode(token))
    }

    /// Reads the answer's last token.
    fn read_last(&mut self) -> Result<()> {
        self.tokens.last().map_or(Ok(()), |&token| self.session.decode(token))
    }

    /// The answer and its tokens.
    fn finish(mut self) -> (TaskAnswer, Vec<u32>) {
        self.text.push_str(&self.decoder.flush());
        let Walk { text, tokens, ttft_s, cache_kept, .. } = self;
        let score = self.task.metric.score(&text, &self.task.answers);
        (TaskAnswer { text, score, n_generated: tokens.len(), ttft_s, cache_kept }, tokens)
    }
}
