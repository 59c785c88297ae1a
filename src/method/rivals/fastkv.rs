//! FastKV (arXiv 2502.01068): one shot. Behind a layer in the middle a fifth of the tokens go on, chosen by the attention of the
//! last eight, averaged over seven neighbours.
//!
//! Where this differs: the paper's layer is 15 of 32, which is taken in proportion; heads are averaged with equal weight; and
//! the KV caches of the layers before the shot stay whole. (The paper cuts each of them as well, which saves decoding time and
//! can only lose answers.)

use super::pruning::{Steps, prune};
use super::{Budgets, Method, Prompt, Rival, RivalError};
use crate::graph::Graph;
use crate::graph::ir::Pool;
use crate::graph::verify::VerifyError;
use crate::method::MethodError;
use crate::model::shape::Shape;

/// Last tokens whose attention chooses.
const QUERIES: usize = 8;

/// One shot behind a layer.
#[derive(Debug)]
pub(super) struct FastKv(pub(super) Rival);

impl FastKv {
    fn steps(&self, shape: &Shape, prompt: Prompt) -> Result<Steps, RivalError> {
        self.0.check(shape, prompt)?;
        let left = self.0.left(prompt.n_tokens, QUERIES);
        Ok(Steps { left: vec![(self.0.layer(shape, 15)?, left)], queries: QUERIES, sinks: 0 })
    }
}

impl Method for FastKv {
    fn name(&self) -> &str {
        "fastkv"
    }

    fn budgets(&self, shape: &Shape, prompt: Prompt) -> Result<Budgets, MethodError> {
        Ok(self.steps(shape, prompt)?.budgets(shape, prompt.n_tokens))
    }

    fn rewrite(&self, dense: &Graph, budgets: &Budgets) -> Result<Graph, VerifyError> {
        prune(dense, budgets, Pool::Avg(7))
    }
}
