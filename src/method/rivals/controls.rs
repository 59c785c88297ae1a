//! Controls: choices that look at nothing. A method that does not beat them at equal speed has chosen nothing.

use super::{Budgets, Method, Prompt, Rival};
use crate::method::{Entry, MethodError};
use crate::model::shape::Shape;
use crate::random::SplitMix64;

/// First tokens that [`Last`] keeps: attention goes to them whatever they say (StreamingLLM, arXiv 2309.17453).
const SINKS: usize = 4;

/// Last tokens that [`Random`] keeps, so that the question is there.
const QUESTION: usize = 64;

/// Seed of [`Random`].
const SEED: u64 = 1;

/// Tokens drawn by chance enter, and the last 64.
#[derive(Debug)]
pub(super) struct Random(pub(super) Rival);

impl Method for Random {
    fn name(&self) -> &str {
        "random"
    }

    fn budgets(&self, shape: &Shape, prompt: Prompt) -> Result<Budgets, MethodError> {
        Ok(self.0.budgets_of_entry(shape, prompt, self.0.left(prompt.n_tokens, QUESTION))?)
    }

    fn entry(&self, shape: &Shape, prompt: Prompt) -> Result<Entry, MethodError> {
        self.0.check(shape, prompt)?;
        let n = prompt.n_tokens;
        let free = n - QUESTION.min(n);
        let chosen = self.0.left(n, QUESTION) - QUESTION.min(n);
        // A draw without replacement: the first places of a shuffle.
        let mut rows: Vec<usize> = (0..free).collect();
        let mut random = SplitMix64(SEED);
        for i in 0..chosen {
            rows.swap(i, i + (random.next() % (free - i) as u64) as usize);
        }
        rows.truncate(chosen);
        rows.sort_unstable();
        rows.extend(free..n);
        Ok(Entry::At(rows))
    }
}

/// The first four tokens enter, and the last ones.
#[derive(Debug)]
pub(super) struct Last(pub(super) Rival);

impl Method for Last {
    fn name(&self) -> &str {
        "last"
    }

    fn budgets(&self, shape: &Shape, prompt: Prompt) -> Result<Budgets, MethodError> {
        Ok(self.0.budgets_of_entry(shape, prompt, self.0.left(prompt.n_tokens, SINKS + 1))?)
    }

    fn entry(&self, shape: &Shape, prompt: Prompt) -> Result<Entry, MethodError> {
        self.0.check(shape, prompt)?;
        let n = prompt.n_tokens;
        let left = self.0.left(n, SINKS + 1);
        let sinks = SINKS.min(left - 1);
        Ok(Entry::At((0..sinks).chain(n - (left - sinks)..n).collect()))
    }
}
