//! SpecPrefill (arXiv 2502.02789): a draft model reads the whole prompt and chooses chunks of 32 tokens; these alone enter the
//! model, each at its position.
//!
//! Where this differs: the draft's queries are the last eight tokens of the prompt, where the paper has it write eight more and
//! takes those; heads are averaged (the paper takes their maximum), layers are joined by the maximum as there. Scores are
//! averaged over 13 neighbours before chunks are ranked by their means.

use super::{Budgets, Method, Prompt, Rival};
use crate::graph::ir::{Join, Pool};
use crate::method::MethodError;
use crate::method::entry::{Entry, Positions, Reader, Search};
use crate::method::spts::schedule::Probe;
use crate::model::shape::Shape;

/// Last tokens whose attention chooses.
const QUERIES: usize = 8;

/// Chunks of the prompt that a draft chooses.
#[derive(Debug)]
pub(super) struct SpecPrefill(pub(super) Rival);

impl Method for SpecPrefill {
    fn name(&self) -> &str {
        "specprefill"
    }

    fn budgets(&self, shape: &Shape, prompt: Prompt) -> Result<Budgets, MethodError> {
        Ok(self.0.budgets_of_entry(shape, prompt, self.0.left(prompt.n_tokens, QUERIES))?)
    }

    fn entry(&self, shape: &Shape, prompt: Prompt) -> Result<Entry, MethodError> {
        self.0.check(shape, prompt)?;
        Ok(Entry::Best(Search {
            reader: Reader::Draft,
            probe: Probe { queries: QUERIES, by_question: false, join: Join::Mean, pool: Pool::Avg(13), carry: 0.0 },
            keep: self.0.left(prompt.n_tokens, QUERIES),
            chunk: 32,
            positions: Positions::Own,
        }))
    }
}
