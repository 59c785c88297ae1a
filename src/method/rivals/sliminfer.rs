//! SlimInfer (arXiv 2508.06447): from layer 10 of 32 on, blocks of hidden states are dropped step by step, at layers 10, 20 and
//! 30, by the attention of the prompt's end.
//!
//! Where this differs: the layers are taken in proportion, what is left comes down in equal factors to the share asked for (a
//! sixteenth, as the paper's 2K of 32K), blocks are the 65 tokens around a token, scored by the last 64, and keys and values are
//! not moved to host memory.

use super::pruning::{Steps, geometric, prune};
use super::{Budgets, Method, Prompt, Rival, RivalError, attending};
use crate::graph::Graph;
use crate::graph::ir::Pool;
use crate::graph::verify::VerifyError;
use crate::method::MethodError;
use crate::model::shape::Shape;

/// So many of the last tokens choose blocks.
const QUERIES: usize = 64;

/// Layers of 32 behind which tokens are dropped.
const LAYERS: [usize; 3] = [10, 20, 30];

/// Three steps from a third of the layers on.
#[derive(Debug)]
pub(super) struct SlimInfer(pub(super) Rival);

impl SlimInfer {
    fn steps(&self, shape: &Shape, prompt: Prompt) -> Result<Steps, RivalError> {
        self.0.check(shape, prompt)?;
        let n = prompt.n_tokens;
        let mut layers = LAYERS.map(|l| attending(shape, l * shape.n_layer / 32)).to_vec();
        layers.dedup();
        layers.retain(|&l| l + 1 < shape.n_layer);
        let left = geometric(n, self.0.left(n, QUERIES), layers.len());
        Ok(Steps { left: layers.iter().copied().zip(left).collect(), queries: QUERIES, sinks: 0 })
    }
}

impl Method for SlimInfer {
    fn name(&self) -> &str {
        "sliminfer"
    }

    fn budgets(&self, shape: &Shape, prompt: Prompt) -> Result<Budgets, MethodError> {
        Ok(self.steps(shape, prompt)?.budgets(shape, prompt.n_tokens))
    }

    fn rewrite(&self, dense: &Graph, budgets: &Budgets) -> Result<Graph, VerifyError> {
        prune(dense, budgets, Pool::Avg(65))
    }
}
