//! What all measurements share: what is asked for, who is told, and what samples come to.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use serde::Serialize;

use crate::SessionOptions;
use crate::method::Method;

/// What a benchmark measures, and how often.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// Lengths of the prompts, in tokens.
    pub prompts: Vec<usize>,
    /// Tokens decoded in each run; 0 measures the prefill alone.
    pub n_decode: usize,
    /// Tokens of questions that are asked about each prompt as a document; without them none are.
    pub n_question: Option<usize>,
    /// Runs of each mode that count, at least 1.
    pub repetitions: usize,
    /// Also record which kinds of operation take which share of the prefill's time.
    pub op_times: bool,
    /// Pause before each run. Without one a GPU runs at its power limit, slower than for a single prompt.
    pub rest: Duration,
    /// Seed of the random token ids.
    pub seed: u64,
    /// What is measured beside dense; without one only dense runs are made.
    pub method: Option<Arc<dyn Method>>,
    /// How sessions run. The method's place is taken by the mode's, and the context is made as long as each run needs.
    pub session: SessionOptions,
}

/// Watches a benchmark.
pub trait Progress {
    /// Is told of a new session, which setting the flag stops.
    fn session(&mut self, stop: &Arc<AtomicBool>);
    /// Is told that the next run begins.
    fn run(&mut self, n_prompt: usize, mode: Mode, repetition: Option<usize>);
    /// Is told that the next run of questions about a document begins.
    fn questions(&mut self, _n_document: usize, _repetition: Option<usize>) {}
}

/// Whether a run computes every token or skips some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Every token in every layer.
    Dense,
    /// The tokens that the method leaves in each layer.
    Spts,
}

impl Mode {
    /// The name in tables and messages.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Dense => "dense",
            Mode::Spts => "SPTS",
        }
    }
}

/// The values of repeated runs, with their median and extremes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Samples {
    /// The middle value; of an even number the mean of the middle two.
    pub median: f64,
    /// The smallest value.
    pub min: f64,
    /// The largest value.
    pub max: f64,
    /// All values, in the order in which they were measured.
    pub samples: Vec<f64>,
}

impl Samples {
    /// The statistics of these values; `None` if there are none.
    pub fn new(samples: Vec<f64>) -> Option<Samples> {
        let mut sorted = samples.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
        Some(Samples { median, min, max, samples })
    }
}
