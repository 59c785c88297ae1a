//! The compiler: from a model's dense graph, a method and a target to the program that runs, and nowhere else.
//!
//! ```text
//! dense graph --method--> budgets, rewritten graph --last_row, fuse_ffn, keep_normalized--> graph of the target
//!             --verify--> proof --phases--> phases of tiles, a place for every value
//! ```
//! A graph that runs for what it captures ends there ([`captures`]).
//! [`target`] is what has to be known of the devices. A [`Compiled`] is run by a session, tile by tile: [`forms`] chooses what a
//! device computes in one step, [`lower`] turns a tile into a ggml graph, on the [`memory`] that the session holds.

pub mod captures;
pub mod forms;
pub mod fuse_ffn;
pub mod keep_normalized;
pub mod last_row;
pub mod lower;
pub mod mask_buffer;
pub mod memory;
pub mod phases;
pub mod target;

use crate::Result;
use crate::graph::Graph;
use crate::graph::verify::{Verified, verify};
use crate::method::spts::capture::{Capture, insert_captures};
use crate::method::{Budgets, Method};

use captures::end_at_captures;
use fuse_ffn::fuse_gated_ffn;
use keep_normalized::keep_normalized;
use last_row::keep_last_row;
use phases::Program;
use target::Target;

/// A prompt's (or a token's) program for one target.
#[derive(Debug)]
pub struct Compiled {
    /// What is computed.
    pub graph: Verified,
    /// How many tokens each layer works on.
    pub budgets: Budgets,
    /// The graph cut into phases, with a place for every value.
    pub program: Program,
    /// Rows computed at a time, at most.
    pub tile: usize,
    cuts: Vec<bool>,
}

impl Compiled {
    fn new(graph: Verified, budgets: Budgets, tile: usize, cuts: Vec<bool>) -> Self {
        let program = phases::plan(&graph, tile, &|l| cuts[l]);
        Self { graph, budgets, program, tile, cuts }
    }

    /// The same in tiles of another size, for a device that has too little memory for these.
    pub fn in_tiles_of(self, tile: usize) -> Self {
        Self::new(self.graph, self.budgets, tile, self.cuts)
    }
}

/// Compiles the prompt that `dense` is the graph of: what `method` computes of it after its `budgets` for the prompt, as `target`
/// computes it best.
///
/// # Errors
/// A rewrite broke an invariant of the graph: a bug.
pub fn prompt(dense: Graph, method: &dyn Method, budgets: Budgets, target: &Target) -> Result<Compiled> {
    let graph = if budgets.is_dense() { dense } else { method.rewrite(&dense, &budgets)? };
    let graph = keep_last_row(&graph, target.last_queries());
    let graph = if target.has_gpu() { fuse(&graph, target) } else { graph };
    // A program that skips is long. Cut by layers, it has a GPU compute one while the next is built.
    let in_layers = target.has_gpu() && graph.layers.iter().any(|a| a.scores.is_some());
    let cuts = (0..graph.layers.len()).map(|l| l > 0 && (in_layers || target.changes_device_at(l))).collect();
    Ok(Compiled::new(verify(graph)?, budgets, target.tile(), cuts))
}

/// Compiles a dense graph as its layers are written down: no rewrites, tiles of `tile` rows. For single tokens, and for captures.
///
/// # Errors
/// The graph breaks an invariant: a bug.
pub fn as_written(graph: Graph, tile: usize, target: &Target) -> Result<Compiled> {
    let budgets = Budgets::dense(graph.layers.len(), graph.n_tokens);
    let cuts = (0..graph.layers.len()).map(|l| target.changes_device_at(l)).collect();
    Ok(Compiled::new(verify(graph)?, budgets, tile, cuts))
}

/// Compiles the part of `dense` that a capture needs: it ends behind the last value captured, without logits.
///
/// # Errors
/// A rewrite broke an invariant of the graph: a bug.
pub fn up_to_captures(dense: &Graph, capture: &Capture, target: &Target) -> Result<Compiled> {
    let graph = end_at_captures(insert_captures(dense, capture));
    let graph = if target.has_gpu() { fuse(&graph, target) } else { graph };
    let budgets = Budgets::dense(graph.layers.len(), graph.n_tokens);
    let cuts = (0..graph.layers.len() + 1).map(|l| target.changes_device_at(l)).collect();
    Ok(Compiled::new(verify(graph)?, budgets, target.tile(), cuts))
}

/// Rewrites a graph for what GPUs compute in one operation.
fn fuse(graph: &Graph, target: &Target) -> Graph {
    let graph = fuse_gated_ffn(graph);
    if !target.normalizes_in_16_bits() {
        return graph;
    }
    keep_normalized(&graph, &|op, rows| target.multiplies_16_bits(op, rows))
}
