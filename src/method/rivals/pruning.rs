//! Pruning alone: layers compute all their candidates, and behind some of them the worst are gone for good.

use crate::graph::Graph;
use crate::graph::ir::{Join, Pool};
use crate::graph::verify::VerifyError;
use crate::method::spts::attention_probe::ProbeSettings;
use crate::method::spts::passes::skip_and_prune;
use crate::method::spts::schedule::Selection;
use crate::method::{Budgets, Held, LayerBudget};
use crate::model::shape::Shape;

/// How many tokens are left behind which layer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Steps {
    /// Layers, ascending, and the candidates left behind each.
    pub(super) left: Vec<(usize, usize)>,
    /// Last tokens that probe.
    pub(super) queries: usize,
    /// First tokens that always stay.
    pub(super) sinks: usize,
}

impl Steps {
    /// The budgets of a prompt of `n_tokens`. What always stays counts as left whatever a step says.
    pub(super) fn budgets(&self, shape: &Shape, n_tokens: usize) -> Budgets {
        let queries = self.queries.min(n_tokens);
        let held = Held { first: self.sinks.min(n_tokens - queries), last: queries };
        let mut n = n_tokens;
        let layer = |l: usize| {
            let step = self.left.iter().find(|(layer, _)| *layer == l).map(|(_, left)| (*left).max(held.count()));
            let prune_to = step.filter(|&left| left < n);
            let budget = LayerBudget { probe: prune_to.is_some(), prune_to, ..LayerBudget::dense(n) };
            n = prune_to.unwrap_or(n);
            budget
        };
        let layers = (0..shape.n_layer).map(layer).collect();
        Budgets { n_tokens, layers, queries, held, forced: false }
    }
}

/// Rewrites the dense graph after these budgets, by scores pooled in this way.
pub(super) fn prune(dense: &Graph, budgets: &Budgets, pool: Pool) -> Result<Graph, VerifyError> {
    let probe = ProbeSettings {
        queries: budgets.queries,
        held: budgets.held,
        join: Join::Mean,
        carry: 0.0,
        pool,
        selection: Selection::Probe,
        forced: false,
    };
    skip_and_prune(dense, budgets, &probe)
}

/// `left` of `n` tokens in `steps` equal factors: what is left behind each step.
pub(super) fn geometric(n: usize, left: usize, steps: usize) -> impl Iterator<Item = usize> {
    let ratio = left as f64 / n as f64;
    (1..=steps).map(move |i| (n as f64 * ratio.powf(i as f64 / steps as f64)).round() as usize)
}
