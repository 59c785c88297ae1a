//! The protocol: dense and SPTS in turns, so that whatever else the machine does falls on both.
//!
//! For every prompt length there is one session for each mode, with compute buffers allocated by a warm-up run that does not
//! count. Then the modes take turns, and who begins changes from turn to turn. A run is
//!
//! 1. TTFT: from the call with token ids to the first sampled id (greedy), caches empty;
//! 2. decoding: a fixed number of tokens behind the prompt. They are random ones, as the prompt is, as in llama-bench: which
//!    token is read makes no difference to the time, and sampling is not part of it.
//!
//! Ratios are taken turn by turn, each dense run against the SPTS run beside it, never between medians of different times.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use crate::ggml::backend;
use crate::method::Dense;
use crate::random::SplitMix64;
use crate::session::prefill::PrefillReport;
use crate::session::sampler::{Sampler, SamplerParams};
use crate::{Model, Result, Session};

pub use super::protocol::{BenchOptions, Mode, Progress, Samples};
use super::questions::{Folder, QuestionResult, measure_questions};

/// Tokens read before decoding with an empty cache.
const SHORTEST_PROMPT: usize = 1;

/// What was measured in one mode at one prompt length.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModeResult {
    /// From the call with token ids to the first sampled id, in seconds.
    pub ttft_s: Samples,
    /// Prompt tokens per second of the prefill.
    pub prefill_tps: Samples,
    /// Tokens per second of decoding behind the prompt; `None` if none were decoded.
    pub decode_tps: Option<Samples>,
    /// Whether tokens were skipped: not below the schedule's first budget.
    pub skips: bool,
    /// Share of the dense cache's entries that the prefill kept.
    pub cache_kept: f64,
    /// What the session allocated for itself: caches, masks, hidden states, scratch. Without weights and proxies.
    pub session_bytes: u64,
    /// The most memory that was in use on devices with memory of their own, weights and the driver's own included, sampled
    /// between layers of the warm-up; 0 without such devices.
    pub peak_device_bytes: u64,
    /// Share of the prefill's time by kind of operation ([`crate::ggml::profile`]), if asked for.
    pub ops: Option<BTreeMap<String, f64>>,
}

/// How dense and SPTS compare, each run with the one measured next to it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Ratios {
    /// TTFT, dense over SPTS: above 1, SPTS is faster.
    pub ttft: Samples,
    /// Decoding speed, SPTS over dense: above 1, SPTS is faster.
    pub decode: Option<Samples>,
}

/// What was measured at one prompt length.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PromptResult {
    /// Tokens of the prompt.
    pub n_prompt: usize,
    /// The dense runs: every token is computed.
    pub dense: ModeResult,
    /// The runs by the method, if there is one.
    pub spts: Option<ModeResult>,
    /// How the two modes compare.
    pub ratios: Option<Ratios>,
    /// Questions about it as a document, if asked for.
    pub questions: Option<QuestionResult>,
}

/// The results of a benchmark.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measurements {
    /// Tokens computed at a time.
    pub ubatch: usize,
    /// Tokens per second of decoding with an empty cache; `None` if none were decoded.
    pub decode_empty_tps: Option<Samples>,
    /// One entry per prompt length, in the order asked for.
    pub prompts: Vec<PromptResult>,
}

/// Measures. `device_bytes_before` is [`backend::gpu_bytes_used`] from before the model was opened.
///
/// # Errors
/// As [`Session::prefill`] and [`Session::decode`]; interrupted.
pub fn measure(
    model: &Arc<Model>,
    options: &BenchOptions,
    device_bytes_before: u64,
    progress: &mut dyn Progress,
) -> Result<Measurements> {
    let mut out = Measurements { ubatch: 0, decode_empty_tps: None, prompts: Vec::new() };
    if options.n_decode > 0 {
        let mut lane = Lane::new(model, options, SHORTEST_PROMPT, Mode::Dense, device_bytes_before, progress)?;
        for repetition in 0..options.repetitions {
            progress.run(SHORTEST_PROMPT, Mode::Dense, Some(repetition));
            std::thread::sleep(options.rest);
            lane.run(&mut || {})?;
        }
        out.decode_empty_tps = Samples::new(lane.decode_tps);
    }
    for &n_prompt in &options.prompts {
        let modes: &[Mode] = if options.method.is_some() { &[Mode::Dense, Mode::Spts] } else { &[Mode::Dense] };
        // What is in use besides the lane under way: before the model, so that the weights count for every lane.
        let mut others = device_bytes_before;
        let mut lanes = Vec::new();
        for &mode in modes {
            let before = backend::gpu_bytes_used();
            let lane = Lane::new(model, options, n_prompt, mode, others, progress)?;
            out.ubatch = lane.session.tile();
            lanes.push(lane);
            others += backend::gpu_bytes_used().saturating_sub(before);
        }
        for repetition in 0..options.repetitions {
            let turn = |i: usize| if repetition % 2 == 0 { i } else { modes.len() - 1 - i };
            for i in 0..modes.len() {
                progress.run(n_prompt, modes[turn(i)], Some(repetition));
                std::thread::sleep(options.rest);
                lanes[turn(i)].run(&mut || {})?;
            }
        }
        for lane in lanes.iter_mut().filter(|_| options.op_times) {
            lane.ops = Some(lane.op_shares()?);
        }
        let results: Vec<ModeResult> = lanes.into_iter().filter_map(Lane::result).collect();
        let mut results = results.into_iter();
        if let Some(dense) = results.next() {
            let spts = results.next();
            let ratios = spts.as_ref().and_then(|spts| ratios(&dense, spts));
            let questions = match options.n_question {
                Some(n) => measure_questions(model, options, n_prompt, n, Folder::new()?.path(), progress)?,
                None => None,
            };
            out.prompts.push(PromptResult { n_prompt, dense, spts, ratios, questions });
        }
    }
    Ok(out)
}

fn ratios(dense: &ModeResult, spts: &ModeResult) -> Option<Ratios> {
    let pairs = |a: &Samples, b: &Samples| Samples::new(a.samples.iter().zip(&b.samples).map(|(a, b)| a / b).collect());
    let decode = match (&spts.decode_tps, &dense.decode_tps) {
        (Some(spts), Some(dense)) => pairs(spts, dense),
        _ => None,
    };
    Some(Ratios { ttft: pairs(&dense.ttft_s, &spts.ttft_s)?, decode })
}

/// One mode at one prompt length: its session, and what it has measured.
struct Lane {
    session: Session,
    sampler: Sampler,
    prompt: Vec<u32>,
    answer: Vec<u32>,
    report: PrefillReport,
    session_bytes: u64,
    peak_device_bytes: u64,
    ttft_s: Vec<f64>,
    prefill_tps: Vec<f64>,
    decode_tps: Vec<f64>,
    ops: Option<BTreeMap<String, f64>>,
}

impl Lane {
    /// A warm session. Memory beyond `others` is the lane's.
    fn new(
        model: &Arc<Model>,
        options: &BenchOptions,
        n_prompt: usize,
        mode: Mode,
        others: u64,
        progress: &mut dyn Progress,
    ) -> Result<Lane> {
        let mut session_options = options.session.clone();
        session_options.n_ctx = Some(n_prompt + options.n_decode);
        match (mode, &options.method) {
            (Mode::Spts, Some(method)) => session_options.method = method.clone(),
            _ => {
                session_options.method = Arc::new(Dense);
                session_options.sidecar = None;
            }
        }
        let session = Session::new(model.clone(), session_options)?;
        progress.session(&session.interrupt_flag());
        progress.run(n_prompt, mode, None);
        let mut rng = SplitMix64(options.seed);
        let n_vocab = model.shape().n_vocab as u64;
        let mut ids = |n: usize| (0..n).map(|_| (rng.next() % n_vocab) as u32).collect();
        let mut lane = Lane {
            session,
            sampler: Sampler::new(SamplerParams::greedy())?,
            prompt: ids(n_prompt),
            answer: ids(options.n_decode),
            report: PrefillReport::default(),
            session_bytes: 0,
            peak_device_bytes: 0,
            ttft_s: Vec::new(),
            prefill_tps: Vec::new(),
            decode_tps: Vec::new(),
            ops: None,
        };
        let mut peak = 0;
        lane.run(&mut || peak = peak.max(backend::gpu_bytes_used()))?;
        lane.session_bytes = (lane.session.n_bytes() + lane.report.slot_bytes) as u64;
        lane.peak_device_bytes = peak.saturating_sub(others);
        lane.ttft_s.clear();
        lane.prefill_tps.clear();
        lane.decode_tps.clear();
        Ok(lane)
    }

    /// One run. `between` is called between layers and at the end.
    fn run(&mut self, between: &mut dyn FnMut()) -> Result<()> {
        self.session.clear();
        let start = Instant::now();
        self.report = self.session.prefill(&self.prompt, &mut |_| {
            between();
            ControlFlow::Continue(())
        })?;
        self.sampler.sample(self.session.logits()).map_err(|e| self.session.bad_logits(e))?;
        self.ttft_s.push(start.elapsed().as_secs_f64());
        self.prefill_tps.push(self.prompt.len() as f64 / self.report.seconds);
        if !self.answer.is_empty() {
            let start = Instant::now();
            for &token in &self.answer {
                self.session.decode(token)?;
            }
            self.decode_tps.push(self.answer.len() as f64 / start.elapsed().as_secs_f64());
        }
        between();
        Ok(())
    }

    /// Shares of the prefill's time by kind of operation, from a run of their own that does not count.
    fn op_shares(&mut self) -> Result<BTreeMap<String, f64>> {
        self.session.clear();
        self.session.record_op_times();
        let prefill = self.session.prefill(&self.prompt, &mut |_| ControlFlow::Continue(()));
        let times = self.session.take_op_times();
        prefill?;
        let sum: f64 = times.values().sum();
        Ok(times.into_iter().map(|(kind, seconds)| (kind, seconds / sum)).collect())
    }

    /// `None` if nothing was measured.
    fn result(self) -> Option<ModeResult> {
        Some(ModeResult {
            ttft_s: Samples::new(self.ttft_s)?,
            prefill_tps: Samples::new(self.prefill_tps)?,
            decode_tps: Samples::new(self.decode_tps),
            skips: !self.report.layers.is_empty(),
            cache_kept: self.report.cache_kept,
            session_bytes: self.session_bytes,
            peak_device_bytes: self.peak_device_bytes,
            ops: self.ops,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_spreads() {
        let s = Samples::new(vec![3.0, 1.0, 2.0]).expect("three values");
        assert_eq!((s.median, s.min, s.max, s.samples), (2.0, 1.0, 3.0, vec![3.0, 1.0, 2.0]));
        assert_eq!(Samples::new(vec![4.0, 1.0, 2.0, 3.0]).map(|s| s.median), Some(2.5));
        assert_eq!(Samples::new(Vec::new()), None);
    }
}
