//! The passes in their order.

use crate::graph::Graph;
use crate::graph::verify::{VerifyError, check};
use crate::method::Budgets;

use super::attention_probe::{ProbeSettings, insert_attention_probes};
use super::ffn_proxy::insert_ffn_proxies;
use super::prune::insert_pruning;

/// Rewrites a dense graph so that it skips and prunes after the budgets.
///
/// # Errors
/// A pass broke an invariant of the graph: a bug.
pub fn skip_and_prune(graph: &Graph, budgets: &Budgets, probe: &ProbeSettings) -> Result<Graph, VerifyError> {
    let probed = insert_attention_probes(graph, &budgets.layers, probe);
    check(&probed)?;
    let skipping = insert_ffn_proxies(&probed, &budgets.layers, probe);
    check(&skipping)?;
    Ok(insert_pruning(&skipping, &budgets.layers, probe.held))
}
