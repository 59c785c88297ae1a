//! Picks the next token from the logits.
//!
//! The chain and its order are llama.cpp's: repetition penalty, top-k, top-p, min-p, temperature, draw. Top-p and min-p look
//! at the probabilities before the temperature. The same seed, parameters and logits give the same tokens; the random
//! numbers are not llama.cpp's. Forbidden tokens are taken out before anything else.

use std::cmp::Ordering;
use std::collections::{HashMap, VecDeque};

use thiserror::Error;

use crate::random::SplitMix64;

/// What is wrong with sampling parameters or with logits.
#[derive(Clone, Debug, Error, PartialEq)]
#[allow(missing_docs)] // the fields are what the messages name
#[non_exhaustive]
pub enum SamplerError {
    /// A parameter outside its range.
    #[error("{name} {value}: expected {expected}")]
    Parameter { name: &'static str, value: f64, expected: &'static str },
    /// There are no logits.
    #[error("sampler: no logits; expected one per token of the vocabulary")]
    Empty,
    /// NaN or +infinity: the model's computation went wrong.
    #[error(
        "the model's logit of token {id} is {value}; expected a finite number (a damaged model file, or an overflow in F16)"
    )]
    NotFinite { id: usize, value: f32 },
    /// All logits are -infinity.
    #[error("all {0} logits of the model are -inf; expected at least one finite number")]
    NothingPossible(usize),
}

/// Sampling parameters, named as llama.cpp's flags.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplerParams {
    /// Temperature, 0 or above; 0 takes the most likely token.
    pub temp: f32,
    /// Only the k most likely tokens; 0 is all.
    pub top_k: usize,
    /// The fewest most likely tokens that together reach this probability, in [0, 1]; 1 is off. One token is always left.
    pub top_p: f32,
    /// Only tokens at least this likely relative to the most likely one, in [0, 1]; 0 is off.
    pub min_p: f32,
    /// Logits of tokens in the recent history are divided (above 0) or multiplied (else) by this, above 0; 1 is off.
    pub repeat_penalty: f32,
    /// Length of that history in tokens; 0 is off, -1 everything accepted so far.
    pub repeat_last_n: i64,
    /// Seed of the random numbers.
    pub seed: u64,
}

/// llama.cpp's defaults, with a fixed seed: runs repeat.
impl Default for SamplerParams {
    fn default() -> SamplerParams {
        SamplerParams {
            temp: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            seed: 0,
        }
    }
}

impl SamplerParams {
    /// The most likely token every time.
    pub fn greedy() -> SamplerParams {
        SamplerParams { temp: 0.0, ..SamplerParams::default() }
    }

    /// Checks that every parameter is in its range.
    ///
    /// # Errors
    /// [`SamplerError::Parameter`] for the first that is off.
    pub fn validate(&self) -> Result<(), SamplerError> {
        let check = |name, value: f32, good: bool, expected| match good {
            true => Ok(()),
            false => Err(SamplerError::Parameter { name, value: value.into(), expected }),
        };
        check("temp", self.temp, self.temp.is_finite() && self.temp >= 0.0, "a finite number, 0 (greedy) or above")?;
        check("top_p", self.top_p, (0.0..=1.0).contains(&self.top_p), "a number from 0 to 1 (1 is off)")?;
        check("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "a number from 0 to 1 (0 is off)")?;
        let penalty = self.repeat_penalty;
        check("repeat_penalty", penalty, penalty.is_finite() && penalty > 0.0, "a finite number above 0 (1 is off)")?;
        let last_n = self.repeat_last_n;
        check("repeat_last_n", last_n as f32, last_n >= -1, "a number of tokens, 0 (off), or -1 (all)")
    }
}

/// A token and its logit.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Candidate {
    id: u32,
    logit: f32,
}

/// Best first: higher logit, then lower id.
fn best_first(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
}

/// Draws tokens. Holds the history for the repetition penalty, the random state, and buffers that are used again.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: SamplerParams,
    random: SplitMix64,
    history: VecDeque<u32>,
    /// How often each token is in `history`.
    counts: HashMap<u32, usize>,
    /// The logits after penalties and bans.
    adjusted: Vec<f32>,
    candidates: Vec<Candidate>,
    weights: Vec<f64>,
}

impl Sampler {
    /// A sampler with an empty history.
    ///
    /// # Errors
    /// [`SamplerError::Parameter`].
    pub fn new(params: SamplerParams) -> Result<Sampler, SamplerError> {
        params.validate()?;
        Ok(Sampler {
            params,
            random: SplitMix64(params.seed),
            history: VecDeque::new(),
            counts: HashMap::new(),
            adjusted: Vec::new(),
            candidates: Vec::new(),
            weights: Vec::new(),
        })
    }

    /// The parameters it was made with.
    pub fn params(&self) -> &SamplerParams {
        &self.params
    }

    /// Adds a token to the history; call it for the prompt's tokens too, as llama.cpp does.
    pub fn accept(&mut self, token: u32) {
        let last_n = match self.params.repeat_last_n {
            -1 => usize::MAX,
            n => usize::try_from(n).unwrap_or(0),
        };
        if self.params.repeat_penalty == 1.0 || last_n == 0 {
            return;
        }
        if self.history.len() >= last_n
            && let Some(old) = self.history.pop_front()
            && let Some(count) = self.counts.get_mut(&old)
        {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&old);
            }
        }
        self.history.push_back(token);
        *self.counts.entry(token).or_default() += 1;
    }

    /// Back to the state after [`Sampler::new`].
    pub fn reset(&mut self) {
        self.random = SplitMix64(self.params.seed);
        self.history.clear();
        self.counts.clear();
    }

    /// The next token. Does not [`Sampler::accept`] it.
    ///
    /// `logits`: one per token of the vocabulary; -infinity is a token that cannot be. Greedy ties: the lowest id.
    ///
    /// # Errors
    /// No logits, a logit that is NaN or +infinity, or none that is finite.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32, SamplerError> {
        self.sample_without(logits, &[])
    }

    /// [`Sampler::sample`] with the logits of `forbidden` tokens at -infinity.
    ///
    /// # Errors
    /// As [`Sampler::sample`]; also if all tokens that could be are forbidden.
    pub fn sample_without(&mut self, logits: &[f32], forbidden: &[u32]) -> Result<u32, SamplerError> {
        check_logits(logits)?;
        if self.counts.is_empty() && forbidden.is_empty() {
            return Ok(self.choose(logits));
        }
        let mut adjusted = std::mem::take(&mut self.adjusted);
        adjusted.clear();
        adjusted.extend_from_slice(logits);
        for &id in forbidden {
            if let Some(logit) = adjusted.get_mut(id as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        for &id in self.counts.keys() {
            if let Some(logit) = adjusted.get_mut(id as usize) {
                let p = self.params.repeat_penalty;
                // Dividing a negative logit would make the token more likely. A product past the largest number is cut
                // there, so that an extreme penalty leaves no infinities.
                let new = if *logit <= 0.0 { *logit * p } else { *logit / p };
                *logit = if logit.is_finite() { new.clamp(f32::MIN, f32::MAX) } else { *logit };
            }
        }
        let token = check_logits(&adjusted).map(|()| self.choose(&adjusted));
        self.adjusted = adjusted;
        token
    }

    /// `logits` are checked: at least one finite, none NaN.
    fn choose(&mut self, logits: &[f32]) -> u32 {
        // Every filter keeps the most likely token, so greedy needs none of them.
        if self.params.temp == 0.0 || self.params.top_k == 1 {
            return argmax(logits);
        }
        let SamplerParams { temp, top_k, top_p, min_p, .. } = self.params;
        let candidates = &mut self.candidates;
        candidates.clear();
        let mut sorted = false;
        if top_k > 0 && top_k < logits.len() {
            top_candidates(logits, top_k, candidates);
            sorted = true;
        } else {
            candidates.extend(logits.iter().enumerate().map(|(i, &logit)| Candidate { id: i as u32, logit }));
        }
        if top_p < 1.0 {
            keep_top_p(candidates, &mut self.weights, top_p, sorted);
        }
        let max = candidates.iter().map(|c| c.logit).fold(f32::NEG_INFINITY, f32::max);
        if min_p > 0.0 {
            let least = max + min_p.ln();
            candidates.retain(|c| c.logit >= least);
        }
        // The largest logit is taken off before the division, so that no temperature overflows.
        self.weights.clear();
        self.weights.extend(candidates.iter().map(|c| ((f64::from(c.logit) - f64::from(max)) / f64::from(temp)).exp()));
        let mut rest = self.random.uniform() * self.weights.iter().sum::<f64>();
        let mut last = candidates.first().map_or(0, |c| c.id);
        for (c, &w) in candidates.iter().zip(&self.weights) {
            if w > 0.0 {
                last = c.id;
                rest -= w;
                if rest < 0.0 {
                    break;
                }
            }
        }
        // Rounding can leave a crumb of `rest`; the last possible token takes it.
        last
    }
}

/// The k most likely tokens with their natural-log probabilities over the whole vocabulary, most likely first, ties by the
/// lower id; fewer if the vocabulary is smaller. Sums are in F64. A NaN among the logits makes every result NaN.
pub fn log_softmax_top(logits: &[f32], k: usize) -> Vec<(u32, f32)> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let max = f64::from(max);
    let sum: f64 = logits.iter().map(|&x| (f64::from(x) - max).exp()).sum();
    let norm = max + sum.ln();
    let mut top = Vec::new();
    top_candidates(logits, k, &mut top);
    top.into_iter().map(|c| (c.id, (f64::from(c.logit) - norm) as f32)).collect()
}

fn is_no_number(logit: f32) -> bool {
    logit.is_nan() || logit == f32::INFINITY
}

/// Whether NaN or +infinity is among logits: a reduction that the compiler turns into vector code, as it runs for every token.
pub(super) fn has_no_numbers(logits: &[f32]) -> bool {
    logits.iter().fold(false, |any, &x| any | is_no_number(x))
}

/// Whether logits are a distribution.
///
/// # Errors
/// There are none, one is NaN or +infinity, or all are -infinity.
pub fn check_logits(logits: &[f32]) -> Result<(), SamplerError> {
    if logits.is_empty() {
        return Err(SamplerError::Empty);
    }
    // Two plain reductions; the culprit is looked for only if there is one.
    if has_no_numbers(logits) {
        let id = logits.iter().position(|&x| is_no_number(x)).unwrap_or(0);
        return Err(SamplerError::NotFinite { id, value: logits[id] });
    }
    if logits.iter().fold(true, |all, &x| all & (x == f32::NEG_INFINITY)) {
        return Err(SamplerError::NothingPossible(logits.len()));
    }
    Ok(())
}

fn argmax(logits: &[f32]) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (i, &x) in logits.iter().enumerate() {
        if x > best.1 {
            best = (i as u32, x);
        }
    }
    best.0
}

/// The k best, best first. One pass over the vocabulary that compares with the k-th best so far; the few that pass are cut
/// back to k whenever the buffer is full.
fn top_candidates(logits: &[f32], k: usize, out: &mut Vec<Candidate>) {
    out.clear();
    if k == 0 {
        return;
    }
    let full = k.saturating_mul(4).max(1024);
    let cut = |out: &mut Vec<Candidate>| {
        if out.len() > k {
            out.select_nth_unstable_by(k - 1, best_first);
            out.truncate(k);
        }
    };
    let mut threshold: Option<f32> = None;
    for (i, &logit) in logits.iter().enumerate() {
        // An equal logit with a higher id loses the tie.
        if threshold.is_some_and(|t| logit <= t) {
            continue;
        }
        out.push(Candidate { id: i as u32, logit });
        if out.len() >= full {
            cut(out);
            threshold = out.get(k - 1).map(|c| c.logit);
        }
    }
    cut(out);
    out.sort_unstable_by(best_first);
}

/// Keeps the shortest run of most likely tokens whose probabilities sum to `p` at least. Sorts no more of an unsorted
/// vocabulary than it has to.
fn keep_top_p(candidates: &mut Vec<Candidate>, weights: &mut Vec<f64>, p: f32, sorted: bool) {
    let max = candidates.iter().map(|c| c.logit).fold(f32::NEG_INFINITY, f32::max);
    let weight = |c: &Candidate| (f64::from(c.logit) - f64::from(max)).exp();
    weights.clear();
    weights.extend(candidates.iter().map(weight));
    let target = f64::from(p) * weights.iter().sum::<f64>();
    let n = candidates.len();
    let mut ready = if sorted { n } else { 0 };
    let mut reached = 0.0;
    for i in 0..n {
        if i == ready {
            // candidates[..ready] are the best, in order; put the next ones in order behind them.
            let more = (ready * 7).max(256).min(n - ready);
            if more < n - ready {
                candidates[ready..].select_nth_unstable_by(more, best_first);
            }
            candidates[ready..ready + more].sort_unstable_by(best_first);
            ready += more;
        }
        reached += weight(&candidates[i]);
        if reached >= target {
            candidates.truncate(i + 1);
            return;
        }
    }
}

#[cfg(test)]
#[path = "sampler_tests.rs"]
mod tests;
