//! Methods: what of a prompt's work is left out.
//!
//! A [`Method`] says which tokens of a prompt enter the network ([`Entry`]) and how many of them each layer works on
//! ([`Budgets`]), and rewrites the dense graph so that it computes just these. [`Dense`] leaves nothing out; [`spts`] skips and
//! prunes; [`rivals`] are other papers' methods and controls, to compare with; [`BlockSparse`] goes with any of them. A method knows graphs; it knows nothing of
//! devices, weights or sessions.

pub mod block_sparse;
pub mod budget;
mod dense;
pub mod entry;
pub mod rivals;
pub mod spts;

use std::fmt;

use crate::attributes::BlockShare;
use crate::graph::Graph;
use crate::graph::verify::VerifyError;
use crate::model::shape::Shape;

pub use block_sparse::BlockSparse;
pub use budget::{Budgets, Held, LayerBudget};
pub use dense::Dense;
pub use entry::Entry;
use rivals::error::RivalError;
use spts::schedule::ScheduleError;

/// Why a method cannot read a prompt with a model.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum MethodError {
    /// A schedule that does not fit.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// A rival that does not fit.
    #[error(transparent)]
    Rival(#[from] RivalError),
}

/// What a method may know of a prompt before it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// Tokens.
    pub n_tokens: usize,
    /// The first token of the question, counted from the prompt's first, where it is known.
    pub question_start: Option<usize>,
}

impl Prompt {
    /// A prompt of which only the length is known.
    pub fn of(n_tokens: usize) -> Prompt {
        Prompt { n_tokens, question_start: None }
    }
}

/// A way to read a prompt.
pub trait Method: fmt::Debug + Send + Sync {
    /// The method's name in reports.
    fn name(&self) -> &str;

    /// The budgets of a prompt. Dense ones ([`Budgets::is_dense`]) leave the graph as it is.
    ///
    /// # Errors
    /// The method does not fit the model.
    fn budgets(&self, shape: &Shape, prompt: Prompt) -> Result<Budgets, MethodError>;

    /// The tokens that enter. Those that do are read densely: such a method's budgets say so, and it rewrites nothing.
    ///
    /// # Errors
    /// The method does not fit the model.
    fn entry(&self, _shape: &Shape, _prompt: Prompt) -> Result<Entry, MethodError> {
        Ok(Entry::All)
    }

    /// What of the keys attention reads, in layers without a window; `None`: all that a token sees.
    fn blocks(&self) -> Option<BlockShare> {
        None
    }

    /// Rewrites the dense graph of a prompt after its budgets.
    ///
    /// # Errors
    /// A rewrite broke an invariant of the graph: a bug.
    fn rewrite(&self, dense: &Graph, _budgets: &Budgets) -> Result<Graph, VerifyError> {
        Ok(dense.clone())
    }
}
