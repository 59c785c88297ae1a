//! Turns one tile of a phase into a ggml graph, each node in the form that [`super::forms`] has chosen.
//!
//! Conventions: a stored value is a persistent matrix `[n_feat, n_rows]`, of which a tile reads and writes its own rows; a
//! gather or a scatter addresses the whole of it. Writes (cache, slots) are put into the graph before anything that reads
//! them, and ggml computes in that order.

mod attention;
mod delta_net;
mod experts;
mod masks;
mod probes;

use std::collections::HashMap;
use std::ops::Range;

use super::forms::{Form, Forms};
use super::memory::{CacheMode, Memory};
use super::phases::{Phase, Program, Storage};
use crate::ggml::Tensor;
use crate::ggml::kernels::Target;
use crate::ggml::ops::{Ops, Precision};
use crate::gguf::GgmlType;
use crate::graph::ir::*;

pub use masks::{MASK_HEIGHT, masks_needed};

/// Key and value rows that attention reads come in multiples of this (ggml's fast paths); caches have room for it.
pub const KV_PAD: usize = 256;

/// What the host fills in after the graph is allocated and before it is computed.
pub struct HostInput<'a> {
    /// The tensor that is written.
    pub tensor: Tensor<'a>,
    /// The kind of its contents.
    pub what: InputKind,
}

/// Contents of a [`HostInput`], relative to the length of a layer's cache, so that they hold for the next token too. Layers
/// for which they are the same share one input; `layer` is the first of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputKind {
    /// I64 `[rows]`: cache rows `n_past ..`.
    CacheRows {
        /// The layer.
        layer: usize,
    },
    /// F16 `[n_kv, rows]`: mask of queries whose own keys are the cache rows `n_past + ahead ..`.
    Mask {
        /// The layer (its cache's positions count, with a window).
        layer: usize,
        /// Rows between the cache's end and the first query's own key.
        ahead: usize,
        /// First cache row that is read.
        from: usize,
        /// Sliding window.
        window: Option<usize>,
    },
}

/// A tile lowered into `ops`: what the host has to fill in, and what it may read afterwards.
#[derive(Default)]
pub struct Lowered<'a> {
    /// To fill in.
    pub inputs: Vec<HostInput<'a>>,
    /// Captured values.
    pub captures: Vec<(usize, Tap, Tensor<'a>)>,
}

/// Cache rows that attention of `n` queries reads, the first of which has its own key in row `first`: with a window, rows
/// before it are not even looked at.
pub fn key_rows(first: usize, n: usize, window: Option<usize>, capacity: usize) -> Range<usize> {
    let from = window.map_or(0, |w| (first + 1).saturating_sub(w) / KV_PAD * KV_PAD);
    from..(first + n).next_multiple_of(KV_PAD).min(capacity)
}

/// An upper bound on ggml operations for a tile of so many rows of a phase, to size its graph: for each node its own, a view of
/// each source and of its place, and the copy there. Attention and probe scores take as much again for every part they are
/// cut into. tests/lower_bounds.rs compares it with graphs.
pub fn max_ggml_nodes(graph: &Graph, phase: &Phase, tile: usize) -> usize {
    // Attention of a part: views of q, k and v, the mask from positions (4 to read them, 12 to compare), the kernel between
    // three changes of shape, and a view and a copy to gather the parts.
    const ATTENTION_PART: usize = 3 + 16 + 4 + 2;
    // Probing of a chunk: from the view of its queries to the sum with those before.
    const PROBE_CHUNK: usize = 13;
    let of = |node: &Node| match node.op {
        Op::Attention { .. } => ATTENTION_PART * tile.div_ceil(MASK_HEIGHT),
        Op::ProbeScores { heads, .. } => {
            let n_probe = graph.node(node.src[0]).n_rows;
            PROBE_CHUNK * n_probe.div_ceil(masks::probe_chunk(node.n_rows, n_probe, heads.n_head))
        }
        // Products of seven matrices where there is no kernel for it.
        Op::ProxyNorm { .. } => 12,
        // Convolution, norms, and the two states.
        Op::DeltaNet { .. } => 24,
        // Choosing them, three products, and a sum over them.
        Op::Experts { n_used, .. } => 20 + 2 * n_used,
        _ => 0,
    };
    phase.nodes.iter().map(|id| 16 + of(graph.node(*id))).sum::<usize>() + 16
}

/// Lowers rows `tile` of a phase.
pub fn lower<'a>(
    ops: &'a Ops,
    memory: &'a dyn Memory,
    graph: &Graph,
    program: &Program,
    phase: &Phase,
    tile: Range<usize>,
    mode: CacheMode,
) -> Lowered<'a> {
    let forms = Forms::of(memory, graph, program, phase, tile.len(), mode);
    let (values, out) = (HashMap::new(), Lowered::default());
    let mut l = Lowerer { ops, memory, graph, program, forms, tile, mode, values, out };
    for &id in &phase.nodes {
        l.node(id);
    }
    l.out
}

struct Lowerer<'a, 'g> {
    ops: &'a Ops,
    memory: &'a dyn Memory,
    graph: &'g Graph,
    program: &'g Program,
    forms: Forms,
    tile: Range<usize>,
    mode: CacheMode,
    values: HashMap<NodeId, Tensor<'a>>,
    out: Lowered<'a>,
}

impl<'a> Lowerer<'a, '_> {
    fn node(&mut self, id: NodeId) {
        let node = self.graph.node(id);
        let form = self.forms.get(id);
        let value = match &node.op {
            _ if form == Form::InReader => return,
            Op::Tokens | Op::Positions | Op::Residual => return,
            Op::Embed { weight, first, scale } => self.embed(node, *weight, *first, *scale),
            Op::RmsNorm { weight, eps, .. } if form == Form::OursInBf16 => {
                let weight = weight.map(|w| self.memory.weight(w));
                self.ops.rms_norm_16(self.rows(node.src[0]), weight, *eps, None)
            }
            Op::RmsNorm { weight, eps, group } => self.rms_norm(node, *weight, *eps, *group),
            Op::Normalize { eps } => {
                let to = self.destination(id, self.tile.clone());
                return self.written(id, self.ops.rms_norm_16(self.rows(node.src[0]), None, *eps, to), to);
            }
            Op::NormalizeRows { .. } => unreachable!("rows are normalised by the scatter-add that changes them"),
            Op::Linear { .. } => self.linear(node, form),
            Op::Rope { head_dim, rope } if matches!(form, Form::Ours | Form::OursInPlace) => {
                let (x, to) = (self.rows(node.src[0]), self.destination(id, self.tile.clone()));
                let to = to.filter(|to| matches!(to.ty(), GgmlType::F32 | GgmlType::F16));
                let factors = rope.factors.map(|f| self.memory.weight(f));
                let place = to.or_else(|| (form == Form::OursInPlace).then_some(x));
                let rotated = self.ops.rope_rows(x, self.index(node.src[1]), factors, *head_dim, rope, place);
                return self.written(id, rotated, to);
            }
            Op::Rope { head_dim, rope } => {
                let x = self.rows(node.src[0]);
                let heads = self.ops.reshape(x, [*head_dim, node.n_feat / head_dim, x.ne(1)]);
                let factors = rope.factors.map(|f| self.memory.weight(f));
                let rotated = self.ops.rope(heads, self.index(node.src[1]), factors, rope);
                // A view, not a reshape: the CUDA backend writes keys straight into the cache if it sees just this.
                self.ops.view_2d(rotated, [node.n_feat, x.ne(1)], rotated.nb(2), 0)
            }
            Op::Attention { layer, heads, window, blocks } => {
                self.attention(node, form, *layer, heads, *window, *blocks)
            }
            Op::Scale { factor } => self.ops.scale(self.rows(node.src[0]), *factor),
            Op::ScaleBy { weight } => self.ops.mul(self.rows(node.src[0]), self.memory.weight(*weight)),
            Op::Softcap { cap } => {
                let within = self.ops.tanh(self.ops.scale(self.rows(node.src[0]), 1.0 / cap));
                self.ops.scale(within, *cap)
            }
            Op::Temperature { every, scale } => self.temperature(node, *every, *scale),
            Op::Features { group, start, len } => self.features(node, *group, *start, *len),
            Op::Sigmoid => self.ops.sigmoid(self.rows(node.src[0])),
            Op::DeltaNet { .. } => self.delta_net(node),
            Op::Glu { act } => self.ops.glu(*act, self.rows(node.src[0]), self.rows(node.src[1])),
            Op::GatedFfn { .. } => self.gated_ffn(node, form, target(form)),
            Op::Experts { .. } => self.experts(node),
            Op::Add => self.residual_add(id, node, form),
            Op::Mul => match form {
                Form::TimesProxyNorm(norm) => {
                    let to = self.destination(id, self.tile.clone());
                    let scores = self.proxy_scores(self.graph.node(norm), self.rows(node.src[1]), to);
                    return self.written(id, scores, to);
                }
                _ => self.ops.mul(self.rows(node.src[0]), self.rows(node.src[1])),
            },
            Op::GetRows | Op::Prune => return self.gather(id, node),
            Op::ScatterAdd => {
                let (h, idx) = (self.memory.stored(node.src[0]), self.index(node.src[1]));
                let x = self.rows(node.src[2]);
                let written = match form {
                    Form::AddsAndNormalizes(normalized) => {
                        let node = self.graph.node(normalized);
                        let Op::NormalizeRows { eps } = node.op else { unreachable!("the form names such a node") };
                        self.ops.scatter_add_normalized(h, x, idx, self.memory.stored(node.src[0]), eps)
                    }
                    Form::Ours => self.ops.scatter_add(h, x, idx),
                    _ => self.ops.set_rows(h, self.ops.add(self.ops.get_rows(h, idx), x), idx),
                };
                self.ops.expand(written);
                return;
            }
            Op::LastRows { rows } => self.last_rows(node, *rows),
            Op::ProbeScores { heads, join } => match self.probed_keys(node) {
                k if self.memory.kernels().probe_scores(k.ty(), heads) => {
                    let to = self.destination(id, 0..node.n_rows);
                    let scores = self.ops.probe_scores(self.memory.stored(node.src[0]), k, heads, *join, to);
                    return self.written(id, scores, to);
                }
                k => self.probe_scores(node, k, heads, *join),
            },
            Op::AddScaled { factor } => {
                let carried = self.ops.scale(self.rows(node.src[1]), *factor);
                self.ops.add(self.rows(node.src[0]), carried)
            }
            Op::PoolScores { pool } => self.pool_scores(node, *pool),
            Op::ProxyNorm { .. } => self.proxy_norm(node, form),
            Op::TopK { m, first, forced } => {
                let to = self.destination(id, 0..*m);
                let best = self.ops.top_k(self.memory.stored(node.src[0]), *m, [*first, *forced], to);
                return self.written(id, best, to);
            }
            Op::IsMember => {
                let to = self.destination(id, 0..node.n_rows);
                let [rows, members] = [0, 1].map(|i| self.memory.stored(node.src[i]));
                return self.written(id, self.ops.is_member(rows, members, to), to);
            }
            Op::RandomScores { .. } => unreachable!("random scores are written by the host"),
            Op::Capture { layer, tap } => {
                let x = self.rows(node.src[0]);
                self.ops.output(x);
                self.ops.expand(x);
                self.out.captures.push((*layer, *tap, x));
                x
            }
        };
        self.written(id, value, None);
    }

    /// A node is lowered. Its value goes where others look for it, unless it was written there (`to`) already.
    fn written(&mut self, id: NodeId, value: Tensor<'a>, to: Option<Tensor<'a>>) {
        self.values.insert(id, value);
        if to.is_none() {
            self.store(id, value);
        }
        // A reshape comes with its readers, if there are any.
        self.ops.expand(self.ops.before_reshape(value).unwrap_or(value));
    }

    /// Where rows of a value are stored, for operations that can write there.
    fn destination(&self, id: NodeId, rows: Range<usize>) -> Option<Tensor<'a>> {
        let (all, first) = match self.program.storage[id.index()] {
            Storage::Slot(_) if !self.program.is_in_place(self.graph, id) => (self.memory.stored(id), rows.start),
            Storage::CacheK(layer) if self.mode == CacheMode::Fixed => {
                (self.memory.cache_k(layer), self.memory.n_past(layer) + rows.start)
            }
            _ => return None,
        };
        Some(self.ops.rows(all, first, rows.len()))
    }

    /// Factors on the queries of this tile, by their positions. `-> [1, n]`
    fn temperature(&self, node: &Node, every: usize, scale: f32) -> Tensor<'a> {
        let position = self.ops.cast(self.index(node.src[0]), GgmlType::F32);
        let n = position.n_elements();
        // Half a position more, so that a product's rounding never takes a whole step away.
        let step = self.ops.floor(self.ops.scale_bias(position, 1.0 / every as f32, 0.5 / every as f32));
        let logarithm = self.ops.log(self.ops.scale_bias(step, 1.0, 1.0));
        self.ops.reshape(self.ops.scale_bias(logarithm, scale, 1.0), [1, n, 1])
    }

    fn gather(&mut self, id: NodeId, node: &Node) {
        let (a, idx) = (self.memory.stored(node.src[0]), self.index(node.src[1]));
        let to = self.destination(id, self.tile.clone());
        // ggml's turns 16-bit rows into F32.
        let (wide, alike) = (a.ty() != GgmlType::F16, to.is_some_and(|to| to.ty() == a.ty()));
        if self.memory.kernels().selection() && (alike || (wide && to.is_none())) {
            let rows = self.ops.gather(a, idx, to);
            self.written(id, rows, to);
        } else {
            self.written(id, self.ops.get_rows(a, idx), None);
        }
    }

    /// This tile's rows of a float value.
    fn rows(&self, id: NodeId) -> Tensor<'a> {
        match self.values.get(&id) {
            Some(&t) => t,
            None => self.ops.rows(self.memory.stored(id), self.tile.start, self.tile.len()),
        }
    }

    /// This tile's part of a list of indices, tokens or positions, as a vector.
    fn index(&self, id: NodeId) -> Tensor<'a> {
        if let Some(&t) = self.values.get(&id) {
            return self.ops.reshape(t, [t.n_elements(), 1, 1]);
        }
        let all = self.memory.stored(id);
        if self.tile.start == 0 && [all.ne(0), all.ne(1)] == [self.tile.len(), 1] {
            return all;
        }
        self.ops.view_2d(all, [self.tile.len(), 1], self.tile.len() * 4, self.tile.start * 4)
    }

    fn flat(&self, t: Tensor<'a>, n_feat: usize) -> Tensor<'a> {
        let n = t.n_elements() / n_feat;
        self.ops.reshape(t, [n_feat, n, 1])
    }

    fn store(&mut self, id: NodeId, value: Tensor<'a>) {
        let target = match self.program.storage[id.index()] {
            Storage::Transient => return,
            Storage::Slot(_) if self.program.is_in_place(self.graph, id) => return,
            Storage::Slot(_) => {
                let all = self.memory.stored(id);
                self.ops.view_2d(all, [value.ne(0), value.ne(1)], all.nb(1), self.tile.start * all.nb(1))
            }
            Storage::CacheK(layer) => return self.store_in_cache(layer, self.memory.cache_k(layer), value),
            Storage::CacheV(layer) => return self.store_in_cache(layer, self.memory.cache_v(layer), value),
        };
        let stored = self.copy(value, target);
        self.ops.expand(stored);
        // Whoever adds to it must find it where it stays.
        if value.ty() == target.ty() {
            self.values.insert(id, stored);
        }
    }

    fn copy(&self, value: Tensor<'a>, to: Tensor<'a>) -> Tensor<'a> {
        let rows_of_f32 = value.ty() == GgmlType::F32 && value.nb(1) == 4 * value.ne(0);
        let halves = rows_of_f32 && to.ty() == GgmlType::F16;
        if halves && self.memory.kernels().store_f16(value.ne(0)) {
            self.ops.store_f16(to, value)
        } else {
            self.ops.copy(value, to)
        }
    }

    fn store_in_cache(&mut self, layer: usize, cache: Tensor<'a>, value: Tensor<'a>) {
        let n_past = self.memory.n_past(layer);
        let write = match self.mode {
            CacheMode::Fixed => self.copy(value, self.ops.rows(cache, n_past + self.tile.start, value.ne(1))),
            CacheMode::Indexed => {
                let rows = self.input(GgmlType::I64, [value.ne(1), 1], InputKind::CacheRows { layer });
                self.ops.set_rows(cache, value, rows)
            }
        };
        self.ops.expand(write);
    }

    /// A host input, shared by all nodes that want the same contents.
    fn input(&mut self, ty: GgmlType, ne: [usize; 2], what: InputKind) -> Tensor<'a> {
        let same = |i: &&HostInput| i.tensor.ne(0) == ne[0] && self.same_contents(i.what, what);
        if let Some(found) = self.out.inputs.iter().find(same) {
            return found.tensor;
        }
        let tensor = self.ops.input(ty, ne);
        self.out.inputs.push(HostInput { tensor, what });
        tensor
    }

    fn same_contents(&self, a: InputKind, b: InputKind) -> bool {
        let n_past = |layer| self.memory.n_past(layer);
        match (a, b) {
            (InputKind::CacheRows { layer: a }, InputKind::CacheRows { layer: b }) => n_past(a) == n_past(b),
            (
                InputKind::Mask { layer: a, ahead: ahead_a, from: from_a, window: window_a },
                InputKind::Mask { layer: b, ahead: ahead_b, from: from_b, window: window_b },
            ) => {
                // Positions count only with a window.
                let in_order = window_a.is_none() || !(self.memory.has_gaps(a) || self.memory.has_gaps(b));
                (n_past(a), ahead_a, from_a, window_a) == (n_past(b), ahead_b, from_b, window_b) && (a == b || in_order)
            }
            _ => false,
        }
    }

    /// `-> [f, n]`: the features from `first` on of the tokens' rows.
    fn embed(&self, node: &Node, weight: WeightId, first: usize, scale: f32) -> Tensor<'a> {
        let all = self.memory.weight(weight);
        let rows = if all.ne(0) == node.n_feat {
            all
        } else {
            let offset = first / all.ty().block_size() * all.ty().type_size();
            self.ops.view_2d(all, [node.n_feat, all.ne(1)], all.nb(1), offset)
        };
        let rows = self.ops.get_rows(rows, self.index(node.src[0]));
        if scale == 1.0 { rows } else { self.ops.scale(rows, scale) }
    }

    fn rms_norm(&self, node: &Node, weight: Option<WeightId>, eps: f32, group: usize) -> Tensor<'a> {
        let x = self.rows(node.src[0]);
        let grouped = if group == node.n_feat { x } else { self.ops.reshape(x, [group, node.n_feat / group, x.ne(1)]) };
        let normed = self.ops.rms_norm(grouped, eps);
        let normed = weight.map_or(normed, |weight| self.ops.mul(normed, self.memory.weight(weight)));
        if group == node.n_feat { normed } else { self.flat(normed, node.n_feat) }
    }

    fn linear(&self, node: &Node, form: Form) -> Tensor<'a> {
        let Op::Linear { weight, scale, bias, norm } = node.op else { unreachable!("the caller has seen the node") };
        let x = self.rows(node.src[0]);
        let w = self.memory.matrix(weight, x.ne(1));
        let factors = norm.map(|n| self.memory.weight(n));
        let y = match form {
            Form::Ggml => self.product(w, self.by_norm(x, factors)),
            _ => self.ops.product(w, x, factors, target(form)),
        };
        let y = scale.map_or(y, |scale| self.ops.mul(y, self.memory.weight(scale)));
        bias.map_or(y, |bias| self.ops.add(y, self.memory.weight(bias)))
    }

    fn product(&self, w: Tensor<'a>, x: Tensor<'a>) -> Tensor<'a> {
        if self.memory.kernels().product(x.ne(1), w.ty()) {
            return self.ops.product(w, x, None, Target::F32);
        }
        let kernels = self.memory.kernels();
        let w = if kernels.widens(w.ty(), x.ne(1)) { self.ops.cast(w, GgmlType::F32) } else { w };
        let y = self.ops.mul_mat(w, x);
        if kernels.multiplies_in_bf16(x.ne(1)) {
            self.ops.accumulate_in(y, Precision::Bf16);
        }
        y
    }

    /// Normalised rows times the norm's weight, for products that don't take it themselves; other rows as they are.
    fn by_norm(&self, x: Tensor<'a>, factors: Option<Tensor<'a>>) -> Tensor<'a> {
        factors.map_or(x, |factors| self.ops.mul(self.ops.cast(x, GgmlType::F32), factors))
    }

    /// An [`Op::GatedFfn`]: one operation where the device has it.
    fn gated_ffn(&self, node: &Node, form: Form, to: Target<'a>) -> Tensor<'a> {
        let Op::GatedFfn { gate, up, down, act, norm } = node.op else { unreachable!("the caller has seen the node") };
        let x = self.rows(node.src[0]);
        let weights = [gate, up, down].map(|w| self.memory.matrix(w, x.ne(1)));
        let factors = norm.map(|n| self.memory.weight(n));
        let row_factors = node.src.get(1).map(|s| self.rows(*s));
        if form != Form::Ggml {
            return self.ops.gated_ffn(act, weights, x, factors, row_factors, to);
        }
        let [gate, up, down] = weights;
        let x = self.by_norm(x, factors);
        let y = self.product(down, self.ops.glu(act, self.product(gate, x), self.product(up, x)));
        row_factors.map_or(y, |factors| self.ops.mul(y, factors))
    }

    fn residual_add(&self, id: NodeId, node: &Node, form: Form) -> Tensor<'a> {
        let (mut a, mut b) = (node.src[0], node.src[1]);
        if let Form::AddsProduct(product) = form {
            let other = if product == a { b } else { a };
            return self.add_product(self.rows(other), self.graph.node(product));
        }
        let storage = self.program.storage[id.index()];
        let resident = |s: NodeId| storage != Storage::Transient && self.program.storage[s.index()] == storage;
        if resident(b) {
            (a, b) = (b, a);
        }
        if resident(a) {
            self.ops.add_in_place(self.rows(a), self.rows(b))
        } else {
            self.ops.add(self.rows(a), self.rows(b))
        }
    }

    /// Computes a product and adds it to `h`.
    fn add_product(&self, h: Tensor<'a>, node: &Node) -> Tensor<'a> {
        match node.op {
            Op::GatedFfn { .. } => self.gated_ffn(node, Form::Ours, Target::Added(h)),
            Op::Linear { weight, norm, .. } => {
                let x = self.rows(node.src[0]);
                let factors = norm.map(|n| self.memory.weight(n));
                self.ops.product(self.memory.matrix(weight, x.ne(1)), x, factors, Target::Added(h))
            }
            _ => unreachable!("only products are added"),
        }
    }

    fn last_rows(&self, node: &Node, rows: usize) -> Tensor<'a> {
        let source = self.graph.node(node.src[0]);
        if rows == source.n_rows && self.values.contains_key(&node.src[0]) {
            return self.rows(node.src[0]);
        }
        let all = self.memory.stored(node.src[0]);
        // Tiles of the last rows: the view starts behind the rows left out.
        self.ops.rows(all, source.n_rows - rows + self.tile.start, self.tile.len())
    }
}

/// Where a product of the device's own goes.
fn target<'a>(form: Form) -> Target<'a> {
    if form == Form::OursInBf16 { Target::Bf16 } else { Target::F32 }
}
