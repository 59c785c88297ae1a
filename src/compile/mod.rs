//! The compiler: from a model's dense graph, a method and a target to the program that runs, and nowhere else.
//!
//! ```text
//! dense graph --method--> budgets, rewritten graph --last_row, sparse_attention, fuse_ffn, keep_normalized--> graph of the target
//!             --verify--> proof --phases--> phases of tiles, a place for every value
//! ```
//! A graph that runs for what it captures ends there ([`captures`]); a prompt that begins like one before it runs in two parts
//! ([`between_layers`]).
//! [`target`] is what has to be known of the devices. A [`Compiled`] is run by a session, tile by tile: [`forms`] chooses what a
//! device computes in one step, [`lower`] turns a tile into a ggml graph, on the [`memory`] that the session holds.

pub mod between_layers;
pub mod captures;
pub mod forms;
pub mod fuse_ffn;
pub mod keep_normalized;
pub mod last_row;
pub mod lower;
pub mod mask_buffer;
pub mod memory;
pub mod phases;
pub mod sparse_attention;
pub mod target;

use crate::Result;
use crate::graph::Graph;
use crate::graph::ir::NodeId;
use crate::graph::verify::{Verified, verify};
use crate::method::spts::capture::{Capture, insert_captures};
use crate::method::{Budgets, Method};

use captures::end_at_captures;
use fuse_ffn::fuse_gated_ffn;
use keep_normalized::keep_normalized;
use last_row::keep_last_row;
use phases::{Cuts, Program};
use sparse_attention::read_blocks;
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
    cuts: Cuts,
}

impl Compiled {
    fn new(graph: Verified, budgets: Budgets, tile: usize, cuts: Cuts) -> Self {
        let program = phases::plan(&graph, tile, &cuts);
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
    let graph = computed(dense, method, &budgets, target)?;
    let cuts = prompt_cuts(&graph, target);
    Ok(Compiled::new(verify(graph)?, budgets, target.tile(), cuts))
}

/// Compiles the layers before `cut` of the tokens that `dense` is the graph of. Its output is the residual stream that enters
/// layer `cut`.
///
/// # Errors
/// A rewrite broke an invariant of the graph: a bug.
pub fn before_layer(dense: Graph, cut: usize, target: &Target) -> Result<Compiled> {
    let graph = in_blocks(between_layers::before_layer(dense, cut), target);
    let graph = if target.has_gpu() { fuse(&graph, target) } else { graph };
    let budgets = Budgets::dense(cut, graph.n_tokens);
    let cuts = prompt_cuts(&graph, target);
    Ok(Compiled::new(verify(graph)?, budgets, target.tile(), cuts))
}

/// Compiles what [`prompt`] does from layer `cut` on. The residual stream that enters it is the program's input.
///
/// # Errors
/// A rewrite broke an invariant of the graph: a bug.
pub fn from_layer(dense: Graph, cut: usize, method: &dyn Method, budgets: Budgets, target: &Target) -> Result<Compiled> {
    let graph = between_layers::from_layer(&computed(dense, method, &budgets, target)?, cut);
    let cuts = prompt_cuts(&graph, target);
    Ok(Compiled::new(verify(graph)?, budgets, target.tile(), cuts))
}

/// The graph of what a prompt computes.
fn computed(dense: Graph, method: &dyn Method, budgets: &Budgets, target: &Target) -> Result<Graph> {
    let graph = if budgets.is_dense() { dense } else { method.rewrite(&dense, budgets)? };
    let graph = in_blocks(keep_last_row(&graph, target.fewest_queries()), target);
    Ok(if target.has_gpu() { fuse(&graph, target) } else { graph })
}

/// A prompt's graph with the attention that the target asks for.
fn in_blocks(graph: Graph, target: &Target) -> Graph {
    match target.blocks() {
        Some(share) => read_blocks(graph, share, &|node, heads| target.reads_blocks(node, heads)),
        None => graph,
    }
}

/// Bytes of keys and values from which on layers take turns on a GPU: a prompt in one phase is one graph, which is kept, captured, and
/// computed without a pause.
const WORTH_TURNS: usize = 256 << 20;

/// The layers at which a prompt's phases end. A program that skips is long: cut by layers, it has a GPU compute one while the next
/// is built. And layers with a window can take turns in one memory for the keys of a long prompt, even if a tile takes all of it.
fn prompt_cuts(graph: &Graph, target: &Target) -> Cuts {
    let skips = target.has_gpu() && graph.layers.iter().any(|a| a.scores.is_some());
    let forgotten = |l: usize| graph.kept_rows(l).map_or(0, |rows| target.forgotten(graph.first_layer + l, rows));
    let bytes: usize = (0..graph.layers.len()).map(forgotten).sum();
    let in_turns = bytes > if target.has_gpu() { WORTH_TURNS } else { 0 };
    cuts(graph, target, &|l| in_turns || skips && l > 0)
}

/// Where phases end: at another device's layers and experts, and where experts' weights are brought to a device, of which one
/// layer's have room at a time; and where the layers begin that `begins` names.
fn cuts(graph: &Graph, target: &Target, begins: &dyn Fn(usize) -> bool) -> Cuts {
    let mut cuts = Cuts::default();
    for (i, node) in graph.nodes.iter().enumerate() {
        let is_elsewhere = |l: usize| l > 0 && (target.fetches(node) || target.changes_device_at(l));
        if let Some(l) = node.layer.filter(|&l| begins(l) || is_elsewhere(l)) {
            cuts.layers.insert(l);
        }
        if target.is_apart(node) {
            cuts.alone.insert(NodeId(i as u32));
        }
    }
    cuts
}

/// Compiles a dense graph as its layers are written down: no rewrites, tiles of `tile` rows. For single tokens, and for captures.
///
/// # Errors
/// The graph breaks an invariant: a bug.
pub fn as_written(graph: Graph, tile: usize, target: &Target) -> Result<Compiled> {
    let budgets = Budgets::dense(graph.layers.len(), graph.n_tokens);
    let cuts = cuts(&graph, target, &|_| false);
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
    let cuts = cuts(&graph, target, &|_| false);
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
