//! The method that leaves nothing out.

use super::{Budgets, Method, MethodError, Prompt};
use crate::model::shape::Shape;

/// Every token in every layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dense;

impl Method for Dense {
    fn name(&self) -> &str {
        "dense"
    }

    fn budgets(&self, shape: &Shape, prompt: Prompt) -> Result<Budgets, MethodError> {
        Ok(Budgets::dense(shape.n_layer, prompt.n_tokens))
    }
}
