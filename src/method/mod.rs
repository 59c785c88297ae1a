//! Methods: what of a prompt's work is left out.
//!
//! A [`Method`] says how many tokens each layer works on ([`Budgets`]) and rewrites the dense graph so that it computes just these.
//! [`Dense`] leaves nothing out; [`spts`] skips and prunes. A method knows graphs; it knows nothing of devices, weights or sessions.

pub mod budget;
mod dense;
pub mod spts;

use std::fmt;

use crate::graph::Graph;
use crate::graph::verify::VerifyError;
use crate::model::shape::Shape;

pub use budget::{Budgets, LayerBudget};
pub use dense::Dense;
use spts::schedule::ScheduleError;

/// A way to read a prompt.
pub trait Method: fmt::Debug + Send + Sync {
    /// Name for reports.
    fn name(&self) -> &str;

    /// The budgets of a prompt of `n_tokens` tokens. Dense ones ([`Budgets::is_dense`]) leave the graph as it is.
    ///
    /// # Errors
    /// The method does not fit the model.
    fn budgets(&self, shape: &Shape, n_tokens: usize) -> Result<Budgets, ScheduleError>;

    /// Rewrites the dense graph of a prompt after its budgets.
    ///
    /// # Errors
    /// A rewrite broke an invariant of the graph: a bug.
    fn rewrite(&self, dense: &Graph, budgets: &Budgets) -> Result<Graph, VerifyError>;
}
