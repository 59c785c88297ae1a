//! Checks a graph before it is lowered.
//!
//! 1. Every source is an earlier node.
//! 2. Element types fit: indices, token ids and positions are I32, normalised rows BF16, all else is F32, as sources and as
//!    results.
//! 3. Shapes fit the operation: elementwise sources agree, indices are `[1, m]`, heads and groups divide the features.
//! 4. Selections are possible: `0 < forced` and `first + forced <= m <= n`.
//! 5. Every layer has exactly one attention node or delta net, the anchored one, and no other layer has any; the keys and values of
//!    an attention have the same rows, and no fewer than its queries. They are its layer's own, or those of an earlier layer.
//! 6. Rows are in position order: indices come from `top_k`, which sorts them.
//! 7. A value that is scattered into, or of which rows are normalised anew, has no reader afterwards: it is written in place.
//! 8. The logits, where there are any, have one row. A graph that ends between layers ends with the residual stream there.

use std::ops::Deref;

use super::ir::*;

/// What is wrong with a graph: a bug in an architecture or a pass, never in a file.
#[derive(Debug, thiserror::Error, PartialEq)]
#[error("graph node {node} ({op}, {name}): {what}")]
#[non_exhaustive]
pub struct VerifyError {
    /// The node.
    pub node: NodeId,
    /// Its operation.
    pub op: &'static str,
    /// Its name.
    pub name: &'static str,
    /// The broken invariant.
    pub what: String,
}

/// A graph that keeps the invariants listed at the head of this module: only such a one can be cut into phases and run.
#[derive(Clone, Debug, PartialEq)]
pub struct Verified(Graph);

impl Deref for Verified {
    type Target = Graph;

    fn deref(&self) -> &Graph {
        &self.0
    }
}

/// Checks a graph, and returns it with the proof.
///
/// # Errors
/// The first broken invariant.
pub fn verify(graph: Graph) -> Result<Verified, VerifyError> {
    check(&graph)?;
    Ok(Verified(graph))
}

/// Checks the invariants listed at the head of this module.
///
/// # Errors
/// The first broken one.
pub fn check(graph: &Graph) -> Result<(), VerifyError> {
    for i in 0..graph.nodes.len() {
        let id = NodeId(i as u32);
        check_node(graph, id).map_err(|what| error(graph, id, what))?;
    }
    check_layers(graph)?;
    check_scatter_targets(graph)?;
    let is_residual = |id: NodeId| graph.logits().is_none() && id.index() + 1 == graph.nodes.len();
    if let Some(&logits) = graph.outputs.first().filter(|id| graph.node(**id).n_rows != 1 && !is_residual(**id)) {
        let found = graph.node(logits).n_rows;
        return Err(error(graph, logits, format!("logits of {found} rows, expected 1")));
    }
    Ok(())
}

fn error(graph: &Graph, id: NodeId, what: String) -> VerifyError {
    let node = graph.node(id);
    VerifyError { node: id, op: node.op.name(), name: node.name, what }
}

fn check_node(graph: &Graph, id: NodeId) -> Result<(), String> {
    let node = graph.node(id);
    if let Some(s) = node.src.iter().find(|s| s.0 >= id.0) {
        return Err(format!("source {s} is not an earlier node"));
    }
    let arity = match node.op {
        Op::Tokens | Op::Positions | Op::Residual => 0,
        Op::Rope { .. } | Op::Glu { .. } | Op::Add | Op::GetRows | Op::ProbeScores { .. } | Op::Mul => 2,
        Op::AddScaled { .. } => 2,
        Op::IsMember | Op::Prune => 2,
        Op::GatedFfn { .. } | Op::Experts { .. } => node.src.len().clamp(1, 2),
        Op::ScatterAdd | Op::NormalizeRows { .. } | Op::DeltaNet { .. } => 3,
        Op::Attention { .. } => 5,
        _ => 1,
    };
    if node.src.len() != arity {
        return Err(format!("{} sources, expected {arity}", node.src.len()));
    }
    let src = |i: usize| graph.node(node.src[i]);
    let want = |ok: bool, what: &str| {
        if ok { Ok(()) } else { Err(format!("{what} (shape [{}, {}])", node.n_feat, node.n_rows)) }
    };
    let same = |i: usize| src(i).n_feat == node.n_feat && src(i).n_rows == node.n_rows;
    let row_factors = |i: usize| src(i).n_feat == 1 && src(i).n_rows == node.n_rows;
    let indices = |i: usize| src(i).n_feat == 1 && matches!(src(i).op, Op::TopK { .. });
    want(node.n_rows > 0 && node.n_feat > 0, "an empty value")?;
    let ill_typed = (0..arity).find(|&i| element_type(&node.op, i).is_some_and(|t| src(i).dtype != t));
    if let Some(i) = ill_typed {
        return Err(format!("source {} has the element type {:?}", node.src[i], src(i).dtype));
    }
    let result = match node.op {
        Op::Tokens | Op::Positions | Op::TopK { .. } => DType::I32,
        Op::GetRows | Op::Prune | Op::LastRows { .. } => src(0).dtype,
        Op::Normalize { .. } | Op::NormalizeRows { .. } => DType::Bf16,
        _ => DType::F32,
    };
    want(node.dtype == result, "not the operation's element type")?;
    match &node.op {
        Op::Tokens | Op::Positions => want(node.n_feat == 1, "one feature"),
        Op::Residual => Ok(()),
        Op::RandomScores { .. } => want(node.n_feat == 1 && src(0).n_rows == node.n_rows, "one score a row"),
        Op::Embed { .. } => want(src(0).n_rows == node.n_rows, "one token id a row"),
        Op::RmsNorm { group, .. } => {
            want(same(0) && *group > 0 && node.n_feat.is_multiple_of(*group), "groups divide the features")
        }
        Op::Normalize { .. } => want(same(0), "shape of its source"),
        Op::NormalizeRows { .. } => {
            want(same(0) && indices(1) && same(2), "rows of one value")?;
            want(src(2).op == Op::ScatterAdd && src(2).src[1] == node.src[1], "the rows that a scatter-add has changed")
        }
        Op::Linear { .. } => want(src(0).n_rows == node.n_rows, "rows as its source"),
        Op::ScaleBy { .. } => want(same(0), "shape of its source"),
        Op::Softcap { cap } => want(same(0) && *cap > 0.0 && cap.is_finite(), "its source within a positive number"),
        Op::Scale { factor } => want(same(0) && factor.is_finite(), "its source times a finite number"),
        Op::Temperature { every, scale } => {
            want(same(0) && node.n_feat == 1, "a factor for each position")?;
            want(*every > 0 && scale.is_finite(), "a number of positions and a finite factor")
        }
        Op::Rope { head_dim, rope } => {
            want(same(0) && *head_dim > 0 && node.n_feat.is_multiple_of(*head_dim), "heads divide the features")?;
            want(rope.n_rot <= *head_dim && rope.n_rot % 2 == 0, "rotated dimensions are even and within the head")?;
            want(src(1).n_rows == node.n_rows, "one position a row")
        }
        Op::Attention { heads, window, blocks, .. } => {
            let (q, k, v) = (src(0), src(1), src(2));
            want(
                blocks.is_none_or(|share| window.is_none() && share.share() > 0.0 && share.share() < 1.0),
                "a share of the keys between 0 and 1, without a window",
            )?;
            want(same(0) && q.n_feat == heads.n_head * heads.head_dim, "queries of all heads")?;
            want(heads.n_head_kv > 0 && heads.n_head % heads.n_head_kv == 0, "query heads are a multiple of KV heads")?;
            want(
                k.n_feat == heads.n_head_kv * heads.head_dim && v.n_feat == k.n_feat,
                "keys and values of all KV heads",
            )?;
            want(k.n_rows == v.n_rows && q.n_rows <= k.n_rows, "as many values as keys, no more queries than keys")?;
            want(src(3).n_rows == q.n_rows && src(4).n_rows == k.n_rows, "positions of queries and keys")
        }
        Op::Features { group, start, len } => {
            want(*group > 0 && src(0).n_feat.is_multiple_of(*group), "groups divide the features")?;
            want(*len > 0 && start + len <= *group, "features within a group")?;
            want(
                node.n_feat == src(0).n_feat / group * len && node.n_rows == src(0).n_rows,
                "so many features of each group",
            )
        }
        Op::Sigmoid => want(same(0), "shape of its source"),
        Op::DeltaNet { heads, .. } => {
            want(heads.n_head_k > 0 && heads.n_head_v.is_multiple_of(heads.n_head_k), "value heads are a multiple of key heads")?;
            want(heads.head_dim > 0 && heads.d_conv > 1, "heads, and a convolution over some rows")?;
            want(
                node.n_feat == heads.n_values() && src(0).n_feat == heads.n_channels(),
                "queries, keys and values of all heads",
            )?;
            want([1, 2].iter().all(|&i| src(i).n_feat == heads.n_head_v), "two gates for each value head")?;
            want((0..3).all(|i| src(i).n_rows == node.n_rows), "rows as its sources")
        }
        Op::GatedFfn { .. } => want(same(0) && (arity == 1 || row_factors(1)), "shape of its source, a factor a row"),
        Op::Experts { n_expert, n_used, .. } => {
            want((0..arity).all(same), "shape of its sources")?;
            want((1..=*n_expert).contains(n_used), "as many experts as there are, at most")
        }
        Op::Glu { .. } | Op::Add => want(same(0) && same(1), "sources of the same shape"),
        Op::Mul => want(same(0) && (same(1) || row_factors(1)), "sources of the same shape, or a factor a row"),
        Op::GetRows | Op::Prune => {
            want(indices(1) && src(1).n_rows == node.n_rows && src(0).n_feat == node.n_feat, "rows chosen by top_k")?;
            want(node.n_rows <= src(0).n_rows, "no more rows than there are")
        }
        Op::ScatterAdd => want(
            same(0) && indices(1) && src(2).n_rows == src(1).n_rows && src(2).n_feat == node.n_feat,
            "an addend row for each index",
        ),
        Op::LastRows { rows } => {
            want(node.n_feat == src(0).n_feat, "rows of its source")?;
            want(*rows == node.n_rows && *rows <= src(0).n_rows, "no more rows than there are")
        }
        Op::ProbeScores { heads, .. } => {
            want(
                src(0).n_feat == heads.n_head * heads.head_dim && src(1).n_feat == heads.n_head_kv * heads.head_dim,
                "queries and keys of all heads",
            )?;
            want(
                node.n_feat == 1 && node.n_rows == src(1).n_rows && src(0).n_rows <= src(1).n_rows,
                "a score for every candidate",
            )
        }
        Op::AddScaled { factor } => {
            want(same(0) && same(1) && node.n_feat == 1, "two scores a row")?;
            want(factor.is_finite(), "a finite factor")
        }
        Op::PoolScores { .. } => want(same(0) && node.n_feat == 1, "one score a row"),
        Op::ProxyNorm { .. } => want(node.n_feat == 1 && src(0).n_rows == node.n_rows, "one norm a row"),
        Op::TopK { m, first, forced } => {
            want(src(0).n_feat == 1, "one score a row")?;
            want(
                *m == node.n_rows && *forced >= 1 && first + forced <= *m && *m <= src(0).n_rows,
                "0 < forced, first + forced <= m <= candidates",
            )
        }
        Op::IsMember => want(indices(0) && indices(1) && same(0), "an answer for each index chosen by top_k"),
        Op::Capture { .. } => want(same(0), "its source unchanged"),
    }
}

/// Element type that source `i` must have; `None`: any.
fn element_type(op: &Op, i: usize) -> Option<DType> {
    match (op, i) {
        (Op::GetRows | Op::LastRows { .. } | Op::Prune | Op::RandomScores { .. }, 0) => None,
        (Op::Embed { .. } | Op::Temperature { .. }, 0)
        | (Op::IsMember, _)
        | (Op::NormalizeRows { .. }, 1)
        | (Op::Rope { .. } | Op::GetRows | Op::Prune | Op::ScatterAdd, 1)
        | (Op::Attention { .. }, 3 | 4) => Some(DType::I32),
        (Op::NormalizeRows { .. }, 0)
        | (
            Op::Linear { norm: Some(_), .. } | Op::GatedFfn { norm: Some(_), .. } | Op::ProxyNorm { norm: Some(_), .. },
            0,
        ) => Some(DType::Bf16),
        _ => Some(DType::F32),
    }
}

/// The layer whose keys, or whose state, a node mixes tokens by.
fn mixed_layer(node: &Node) -> Option<usize> {
    match node.op {
        Op::Attention { layer, .. } | Op::DeltaNet { layer, .. } => Some(layer),
        _ => None,
    }
}

fn check_layers(graph: &Graph) -> Result<(), VerifyError> {
    for i in 0..graph.nodes.len() {
        let id = NodeId(i as u32);
        if let Some(layer) = mixed_layer(graph.node(id))
            && !(graph.first_layer..graph.first_layer + graph.layers.len()).contains(&layer)
        {
            return Err(error(graph, id, format!("layer {layer} has no anchors")));
        }
    }
    for (l, a) in (graph.first_layer..).zip(&graph.layers) {
        let ids = (0..graph.nodes.len() as u32).map(NodeId);
        let of_layer: Vec<NodeId> = ids.filter(|&id| mixed_layer(graph.node(id)) == Some(l)).collect();
        let (is_attention, anchor) = (a.attention().is_some(), a.mixer.node());
        let with_cache = |b: &&LayerAnchors| b.attention().is_some_and(|b| b.cache == l);
        let anchored: Vec<NodeId> = match is_attention {
            true => graph.layers.iter().filter(with_cache).map(|b| b.mixer.node()).collect(),
            false => vec![anchor],
        };
        if of_layer != anchored || is_attention != matches!(graph.node(anchor).op, Op::Attention { .. }) {
            let (n, what) = (of_layer.len(), if is_attention { "attention nodes" } else { "delta nets" });
            return Err(error(graph, anchor, format!("layer {l} has {n} {what}, expected the anchored one")));
        }
        let Some(shares) = a.attention().filter(|a| a.cache != l) else { continue };
        let owner = shares.cache.checked_sub(graph.first_layer).filter(|_| shares.cache < l);
        let owner = owner.and_then(|owner| graph.layers[owner].attention()).map(|owner| [owner.k, owner.v]);
        if owner.is_none() || owner != graph.node(anchor).src.get(1..3).and_then(|kv| kv.try_into().ok()) {
            let what = format!("not the keys and values of layer {}, whose cache it reads", shares.cache);
            return Err(error(graph, anchor, what));
        }
    }
    Ok(())
}

fn check_scatter_targets(graph: &Graph) -> Result<(), VerifyError> {
    for (i, node) in graph.nodes.iter().enumerate() {
        if !matches!(node.op, Op::ScatterAdd | Op::NormalizeRows { .. }) {
            continue;
        }
        let target = node.src[0];
        let late = graph.nodes[i + 1..].iter().position(|n| n.src.contains(&target));
        if let Some(k) = late {
            let reader = NodeId((i + 1 + k) as u32);
            return Err(error(graph, reader, format!("reads {target} after it was scattered into")));
        }
    }
    Ok(())
}
