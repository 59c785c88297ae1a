//! UniPrefill (arXiv 2605.06221): behind every fourth layer blocks of 64 tokens are dropped that get little of the attention of
//! the last 128 tokens; the first 128 always stay.
//!
//! In hybrids, as the paper has it for Qwen3-Next, it is behind every layer that attends.
//!
//! Where this differs: the paper keeps as many blocks as hold 99 % of the attention, so that how many stay is data; here it is
//! the share left behind the last step, reached in equal factors, as shapes are known before anything runs. A token counts by
//! the mean of the 65 around it, in place of its aligned block of 64.

use super::pruning::{Steps, geometric, prune};
use super::{Budgets, Method, Prompt, Rival, RivalError};
use crate::graph::Graph;
use crate::graph::ir::Pool;
use crate::graph::verify::VerifyError;
use crate::method::MethodError;
use crate::model::shape::Shape;

/// First tokens that always stay, and last ones that choose.
const ENDS: usize = 128;

/// Drops blocks behind every so many layers.
const EVERY: usize = 4;

/// Steps behind every fourth layer.
#[derive(Debug)]
pub(super) struct UniPrefill(pub(super) Rival);

impl UniPrefill {
    fn steps(&self, shape: &Shape, prompt: Prompt) -> Result<Steps, RivalError> {
        self.0.check(shape, prompt)?;
        let every = (EVERY - 1..shape.n_layer.saturating_sub(1)).step_by(EVERY);
        let layers: Vec<usize> = match &shape.recurrent {
            None => every.collect(),
            Some(r) => (0..shape.n_layer.saturating_sub(1)).filter(|&l| !r.layers[l]).collect(),
        };
        let n = prompt.n_tokens;
        let left = geometric(n, self.0.left(n, 2 * ENDS), layers.len());
        Ok(Steps { left: layers.iter().copied().zip(left).collect(), queries: ENDS, sinks: ENDS })
    }
}

impl Method for UniPrefill {
    fn name(&self) -> &str {
        "uniprefill"
    }

    fn budgets(&self, shape: &Shape, prompt: Prompt) -> Result<Budgets, MethodError> {
        Ok(self.steps(shape, prompt)?.budgets(shape, prompt.n_tokens))
    }

    fn rewrite(&self, dense: &Graph, budgets: &Budgets) -> Result<Graph, VerifyError> {
        prune(dense, budgets, Pool::Avg(65))
    }
}
