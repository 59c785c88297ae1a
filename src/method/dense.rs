//! The method that leaves nothing out.

use super::spts::schedule::ScheduleError;
use super::{Budgets, Method, Prompt};
use crate::graph::Graph;
use crate::graph::verify::VerifyError;
use crate::model::shape::Shape;

/// Every token in every layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dense;

impl Method for Dense {
    fn name(&self) -> &str {
        "dense"
    }

    fn budgets(&self, shape: &Shape, prompt: Prompt) -> Result<Budgets, ScheduleError> {
        Ok(Budgets::dense(shape.n_layer, prompt.n_tokens))
    }

    fn rewrite(&self, dense: &Graph, _: &Budgets) -> Result<Graph, VerifyError> {
        Ok(dense.clone())
    }
}
