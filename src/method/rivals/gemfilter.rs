//! GemFilter (arXiv 2409.17422): an early layer chooses tokens by the last query, averaged over five neighbours; these run again
//! from layer 0 as a short prompt of their own.
//!
//! Where this differs: the paper's layer is 13 of 32, which is taken in proportion, and it chooses 1,024 to 4,096 tokens
//! whatever the prompt's length; here it is a share. Heads are averaged after their softmax, before in the paper.

use super::{Budgets, Method, Prompt, Rival};
use crate::graph::ir::{Join, Pool};
use crate::method::MethodError;
use crate::method::entry::{Entry, Positions, Reader, Search};
use crate::method::spts::schedule::Probe;
use crate::model::shape::Shape;

/// Two runs: the first one chooses.
#[derive(Debug)]
pub(super) struct GemFilter(pub(super) Rival);

impl Method for GemFilter {
    fn name(&self) -> &str {
        "gemfilter"
    }

    fn budgets(&self, shape: &Shape, prompt: Prompt) -> Result<Budgets, MethodError> {
        self.0.layer(shape, 13)?;
        Ok(self.0.budgets_of_entry(shape, prompt, self.0.left(prompt.n_tokens, 1))?)
    }

    fn entry(&self, shape: &Shape, prompt: Prompt) -> Result<Entry, MethodError> {
        self.0.check(shape, prompt)?;
        Ok(Entry::Best(Search {
            reader: Reader::Layer(self.0.layer(shape, 13)?),
            probe: Probe { queries: 1, by_question: false, join: Join::Mean, pool: Pool::Avg(5), carry: 0.0 },
            keep: self.0.left(prompt.n_tokens, 1),
            chunk: 1,
            positions: Positions::Renumbered,
        }))
    }
}
