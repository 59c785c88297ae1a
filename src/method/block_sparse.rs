//! Any method, with attention that reads a part of the keys.

use std::sync::Arc;

use super::{Budgets, Entry, Method, MethodError, Prompt};
use crate::attributes::BlockShare;
use crate::graph::Graph;
use crate::graph::verify::VerifyError;
use crate::model::shape::Shape;

/// Shares that [`BlockSparse::parse_share`] takes in words.
const SHARES: &str = "dense, sparse, sparse:MASS or sparse:density=X, with numbers between 0 and 1";

/// A method whose layers read, of the keys that a token sees, the blocks that matter most (XAttention, arXiv 2503.16428).
#[derive(Debug)]
pub struct BlockSparse {
    method: Arc<dyn Method>,
    share: BlockShare,
    name: String,
}

impl BlockSparse {
    /// `method` with attention that reads such a share.
    pub fn new(method: Arc<dyn Method>, share: BlockShare) -> Self {
        let name = format!("{}, attention sparse:{share}", method.name());
        Self { method, share, name }
    }

    /// The share of `sparse` and `sparse:0.9` (of the mass), `sparse:density=0.1` (of the blocks); `None` of `dense`.
    ///
    /// # Errors
    /// Another word, or a share that is not above 0 and below 1: what is taken instead.
    pub fn parse_share(text: &str) -> Result<Option<BlockShare>, String> {
        let share = match text.split_once(':') {
            None if text == "dense" => return Ok(None),
            None if text == "sparse" => Some(BlockShare::Mass(USUAL_MASS)),
            Some(("sparse", share)) => match share.strip_prefix("density=") {
                Some(density) => density.parse().ok().map(BlockShare::Density),
                None => share.parse().ok().map(BlockShare::Mass),
            },
            _ => None,
        };
        let is_share = |share: &BlockShare| share.share() > 0.0 && share.share() < 1.0;
        share.filter(is_share).map(Some).ok_or_else(|| format!("expected {SHARES}"))
    }
}

/// The share of the mass unless another is asked for: that of XAttention's paper.
const USUAL_MASS: f32 = 0.9;

impl Method for BlockSparse {
    fn name(&self) -> &str {
        &self.name
    }

    fn budgets(&self, shape: &Shape, prompt: Prompt) -> Result<Budgets, MethodError> {
        self.method.budgets(shape, prompt)
    }

    fn entry(&self, shape: &Shape, prompt: Prompt) -> Result<Entry, MethodError> {
        self.method.entry(shape, prompt)
    }

    fn blocks(&self) -> Option<BlockShare> {
        Some(self.share)
    }

    fn rewrite(&self, dense: &Graph, budgets: &Budgets) -> Result<Graph, VerifyError> {
        self.method.rewrite(dense, budgets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_in_words() {
        let parse = BlockSparse::parse_share;
        assert_eq!(parse("dense"), Ok(None));
        assert_eq!(parse("sparse"), Ok(Some(BlockShare::Mass(0.9))));
        assert_eq!(parse("sparse:0.95"), Ok(Some(BlockShare::Mass(0.95))));
        assert_eq!(parse("sparse:density=0.1"), Ok(Some(BlockShare::Density(0.1))));
        for wrong in ["", "Dense", "sparse:", "sparse:0", "sparse:1", "sparse:NaN", "sparse:-0.5", "sparse:mass=0.5", "dense:0.5"] {
            let message = parse(wrong).expect_err(wrong);
            assert!(message.contains("sparse:density=X"), "{message}");
        }
    }
}
