//! What a prefill will cost, by counting: operations, cache and memory of a shape, a schedule and a prompt length. Pure: no
//! model is opened, and nothing is measured.
//!
//! # What is counted
//! A multiplication and its addition are 2 FLOP. Counted are
//! - *linear*: the matrix products of all layers, for the tokens that run through them: keys for all candidates, queries,
//!   values and the output projection for the active tokens of attention, the FFN for its active tokens;
//!   A recurrent layer's projections are those of all its candidates;
//! - *attention*: `Q K^T` and `P V`. Causal: half of the rectangle, so `n^2 (d_k + d_v) H` for n tokens (a sliding window W
//!   counts `(2 n W - W^2) (d_k + d_v) H` once n exceeds it). Of a recurrent layer its convolution, and for each value head and
//!   token the products of the state with key and query and its change, `6 d^2`;
//! - *probes*: of attention, the queries' projection and their scores `2 q n d_k H` over all n candidates; of the FFN, the
//!   low-rank proxy of all candidates, `2 n (2 D r + 2 r d_low + d_low r)` for a gated one.
//!
//! Not counted: the output head, element-wise work (norms, rope, softmax, gathers), and what last layers save by computing
//! only what will be read: the model's what the last token needs, a stage's the FFN of the tokens that stay
//! ([`crate::method::spts::prune`]; 0.5 to 1.2 % of LLaMA's operations between 32K and 8K tokens). Nor does anything here know how
//! fast a kernel is. But for that percent the ratio is a ceiling.

use std::fmt;

use serde::Serialize;

use crate::attributes::{CACHE_GROWTH, entries_that_stay};
use crate::method::entry::{Entry, Reader};
use crate::method::spts::schedule::{Budget, ProxySize, Reach, Schedule, ScheduleError, Selection};
use crate::method::{Budgets, LayerBudget, Method, MethodError, Prompt};
use crate::model::shape::{LayerKind, Shape};

/// What a plan needs to know of the session.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PlanOptions {
    /// Bytes of one key in the cache: F32 4, F16 2, Q8_0 34/32.
    pub k_bytes: f64,
    /// Bytes of one value in the cache.
    pub v_bytes: f64,
    /// Tokens per tile.
    pub n_ubatch: usize,
    /// Which prompts go through the stages.
    pub reach: Reach,
    /// Experts that stay on the CPU.
    pub cpu_experts: CpuExperts,
}

/// Bytes of experts that stay on the CPU while their layers are on a GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuExperts {
    /// Bytes of the experts of all these layers together.
    pub bytes: u64,
    /// Bytes of the largest layer's experts, for which the GPU has room.
    pub of_a_layer: u64,
}

impl CpuExperts {
    /// The sum and the largest of the layers' bytes of experts.
    pub fn of(layers: &[u64]) -> CpuExperts {
        CpuExperts { bytes: layers.iter().sum(), of_a_layer: layers.iter().copied().max().unwrap_or(0) }
    }
}

impl Default for PlanOptions {
    fn default() -> PlanOptions {
        PlanOptions {
            k_bytes: 2.0,
            v_bytes: 2.0,
            n_ubatch: 512,
            reach: Reach::AboveFirstBudget,
            cpu_experts: CpuExperts::default(),
        }
    }
}

/// Operations of a prefill, in FLOP.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Flops {
    /// Matrix products with weights.
    pub linear: f64,
    /// Products of attention.
    pub attention: f64,
    /// What selecting costs.
    pub probes: f64,
}

impl Flops {
    /// The sum of all parts.
    pub fn total(&self) -> f64 {
        self.linear + self.attention + self.probes
    }
}

/// Memory at the end of a prefill, in bytes. Scratch is an estimate from the tile size.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Memory {
    /// Bytes of all weights.
    pub weights: f64,
    /// KV cache as SPTS leaves it.
    pub kv: f64,
    /// KV cache of a dense prefill.
    pub kv_dense: f64,
    /// Bytes of the states of recurrent layers, each of which is held twice.
    pub states: f64,
    /// The residual stream of the whole prompt, F32.
    pub hidden: f64,
    /// One layer's keys, scores and tile, the logits, and an attention mask, which devices with a kernel of our own do without.
    pub scratch: f64,
    /// Experts that stay on the CPU: their bytes, which are among the weights, and the room that the GPU has for one layer's.
    pub cpu_experts: CpuExperts,
    /// What stays of a document of these tokens for later questions, and is not in the sum: the cache of the layers before the
    /// first one that skips, which is in `kv` already, and the residual stream behind them. 0 if the first layer skips.
    pub document: f64,
}

impl Memory {
    /// Bytes that the run needs: weights, cache, states, hidden states and scratch.
    pub fn total(&self) -> f64 {
        self.weights + self.kv + self.states + self.hidden + self.scratch + self.cpu_experts.of_a_layer as f64
    }

    /// Bytes that the layers' device holds: the total without the experts that stay on the CPU.
    pub fn beside_cpu_experts(&self) -> f64 {
        self.total() - self.cpu_experts.bytes as f64
    }
}

/// One layer of the plan. The field names are keys of the JSON interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PlanLayer {
    /// Layer, from 0.
    pub il: usize,
    /// Tokens at its input.
    pub candidates: usize,
    /// Tokens of its attention.
    pub active_attn: usize,
    /// Tokens of its FFN.
    pub active_ffn: usize,
    /// Entries of its KV cache.
    pub kv: usize,
}

/// The step at the first budget: one token above it the schedule acts in full, or, with a ramp, begins to act.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Cliff {
    /// The longest prompt that stays dense.
    pub first_budget: usize,
    /// Share of the cache kept one token above.
    pub cache_kept_above: f64,
    /// Ratio of operations one token above.
    pub speedup_above: f64,
    /// The shortest prompt on which the schedule acts in full.
    pub in_full_from: usize,
}

/// The plan. It serialises to the keys `n_tokens`, `predicted_speedup`, `cache_kept`, `flops_dense`, `flops_spts`,
/// `memory_bytes`, `document_bytes`, `cpu_expert_bytes` and `layers`, which are a stable interface; [`fmt::Display`] gives the
/// table for people.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Plan {
    /// Length of the prompt.
    pub n_tokens: usize,
    /// Ratio of operations, dense to SPTS; 1 if the prompt stays dense.
    pub predicted_speedup: f64,
    /// Share of the dense cache's entries that are kept.
    pub cache_kept: f64,
    /// FLOP of a dense prefill.
    pub flops_dense: u64,
    /// FLOP with this schedule, probes included.
    pub flops_spts: u64,
    /// Weights, cache, hidden state and scratch.
    pub memory_bytes: u64,
    /// What stays of a document of these tokens for later questions, and the size of its file.
    pub document_bytes: u64,
    /// Bytes of the experts that stay on the CPU, which are part of `memory_bytes`.
    pub cpu_expert_bytes: u64,
    /// One entry per layer.
    pub layers: Vec<PlanLayer>,
    /// Name of the shape.
    #[serde(skip)]
    pub shape: String,
    /// Name of the schedule.
    #[serde(skip)]
    pub schedule: String,
    /// `flops_dense` in parts.
    #[serde(skip)]
    pub dense: Flops,
    /// `flops_spts` in parts.
    #[serde(skip)]
    pub spts: Flops,
    /// `memory_bytes` in parts.
    #[serde(skip)]
    pub memory: Memory,
    /// The step at the first budget, where budgets are counts.
    #[serde(skip)]
    pub cliff: Option<Cliff>,
    /// The schedule's counts.
    #[serde(skip)]
    pub budgets: Budgets,
}

impl Plan {
    /// Counts what `schedule` costs on `shape` for a prompt of `n_tokens`.
    ///
    /// # Errors
    /// What [`Schedule::resolve`] refuses.
    pub fn new(
        shape: &Shape,
        schedule: &Schedule,
        n_tokens: usize,
        options: &PlanOptions,
    ) -> Result<Plan, ScheduleError> {
        let budgets = schedule.resolve(shape.n_layer, n_tokens, &|l| shape.layer_kind(l), options.reach)?;
        let spts = spts_flops(shape, Some(schedule), &budgets);
        Ok(Plan { cliff: cliff(shape, schedule)?, ..Plan::counted(shape, &schedule.name, budgets, spts, options) })
    }

    /// Counts what another method costs; a program that scores tokens beforehand is among the probes. A draft is not counted.
    ///
    /// # Errors
    /// The method does not fit the shape.
    pub fn of_method(
        shape: &Shape,
        method: &dyn Method,
        n_tokens: usize,
        options: &PlanOptions,
    ) -> Result<Plan, MethodError> {
        let prompt = Prompt::of(n_tokens);
        let budgets = method.budgets(shape, prompt)?;
        let mut spts = spts_flops(shape, None, &budgets);
        if let Entry::Best(search) = method.entry(shape, prompt)?
            && let Reader::Layer(layer) = search.reader
        {
            let n = n_tokens as f64;
            let before: f64 = (0..layer).map(|l| shape.w_mixing(l) + shape.w_ffn(l) + shape.w_per_layer()).sum();
            spts.probes += 2. * n * (before + shape.w_k(layer));
            spts.probes += (0..layer).map(|l| mixing_flops(shape, l, n_tokens)).sum::<f64>();
        }
        Ok(Plan::counted(shape, method.name(), budgets, spts, options))
    }

    /// Whether a layer has entries in a cache, or else a state.
    fn has_cache(&self, layer: usize) -> bool {
        self.layers[layer].kv > 0
    }

    fn counted(shape: &Shape, name: &str, budgets: Budgets, spts: Flops, options: &PlanOptions) -> Plan {
        let dense = dense_flops(shape, budgets.n_tokens);
        let memory = memory(shape, &budgets, options);
        let layer = |(il, l): (usize, &LayerBudget)| PlanLayer {
            il,
            candidates: l.candidates,
            active_attn: l.active_attn,
            active_ffn: l.active_ffn,
            kv: if shape.has_cache(il) { l.active_attn } else { 0 },
        };
        Plan {
            n_tokens: budgets.n_tokens,
            predicted_speedup: dense.total() / spts.total(),
            cache_kept: budgets.cache_kept_by(&|l| shape.has_cache(l)),
            // A cast from F64 saturates, so that absurd lengths do no harm.
            flops_dense: dense.total() as u64,
            flops_spts: spts.total() as u64,
            memory_bytes: memory.total() as u64,
            document_bytes: memory.document as u64,
            cpu_expert_bytes: memory.cpu_experts.bytes,
            layers: budgets.layers.iter().enumerate().map(layer).collect(),
            shape: shape.name.clone(),
            schedule: name.to_owned(),
            dense,
            spts,
            memory,
            cliff: None,
            budgets,
        }
    }
}

fn cliff(shape: &Shape, schedule: &Schedule) -> Result<Option<Cliff>, ScheduleError> {
    // A fraction grows with the prompt, which is then always above it.
    let Some(Budget::Tokens(_)) = schedule.stages.first().map(|s| s.budget) else {
        return Ok(None);
    };
    let first_budget = schedule.first_budget(1);
    let Some(above) = first_budget.checked_add(1) else {
        return Ok(None);
    };
    let budgets = schedule.resolve(shape.n_layer, above, &|l| shape.layer_kind(l), Reach::AboveFirstBudget)?;
    let speedup_above = dense_flops(shape, above).total() / spts_flops(shape, Some(schedule), &budgets).total();
    let cache_kept_above = budgets.cache_kept_by(&|l| shape.has_cache(l));
    Ok(Some(Cliff { first_budget, cache_kept_above, speedup_above, in_full_from: schedule.in_full_from() }))
}

/// Tokens that a layer computes of `n` that enter it: the last one alone where later layers do not need the others' keys.
fn computed(shape: &Shape, layer: usize, n: usize) -> usize {
    if layer < shape.n_layer_kv() { n } else { n.min(1) }
}

/// Operations by which n tokens of a layer see each other: attention over the last `n` of `n`, or a recurrence over them.
fn mixing_flops(shape: &Shape, layer: usize, n: usize) -> f64 {
    let last = computed(shape, layer, n) < n;
    let n = n as f64;
    if let Some(heads) = shape.recurrence(layer) {
        let (states, conv) = (heads.head_dim * heads.n_values(), heads.d_conv * heads.n_channels());
        return n * (6. * states as f64 + 2. * conv as f64);
    }
    let twice_pairs = match &shape.swa {
        _ if last => 2. * n.min(shape.window(layer).map_or(n, |window| window as f64)),
        Some(swa) if shape.is_swa(layer) && n > swa.window as f64 => {
            2. * n * swa.window as f64 - (swa.window as f64).powi(2)
        }
        _ => n * n,
    };
    twice_pairs * 2. * shape.sizes(layer).head_dim as f64 * shape.n_head as f64
}

fn dense_flops(shape: &Shape, n_tokens: usize) -> Flops {
    let of_layer = |l: usize| {
        computed(shape, l, n_tokens) as f64 * (shape.w_mixing(l) + shape.w_ffn(l) + shape.w_per_layer())
    };
    Flops {
        linear: 2. * (0..shape.n_layer).map(of_layer).sum::<f64>(),
        attention: (0..shape.n_layer).map(|l| mixing_flops(shape, l, n_tokens)).sum(),
        probes: 0.,
    }
}

fn spts_flops(shape: &Shape, schedule: Option<&Schedule>, budgets: &Budgets) -> Flops {
    let by_chance = schedule.is_some_and(|s| s.selection != Selection::Probe);
    let proxy = schedule.map_or(ProxySize { d_low: 0, rank: 0 }, |s| s.proxy);
    let mut sum = Flops::default();
    for (layer, l) in budgets.layers.iter().enumerate() {
        let [n, a, b] = [l.candidates, l.active_attn, l.active_ffn].map(|x| computed(shape, layer, x) as f64);
        let mixing = match shape.recurrence(layer) {
            Some(heads) => n * shape.w_delta(&heads),
            None => n * shape.w_k(layer) + a * (shape.w_q(layer) + shape.w_v(layer) + shape.w_o(layer)),
        };
        sum.linear += 2. * (mixing + b * shape.w_ffn(layer) + n * shape.w_per_layer());
        sum.attention += mixing_flops(shape, layer, l.active_attn);
        if l.probe && !by_chance {
            let q = budgets.queries as f64;
            let head_dim = shape.sizes(layer).head_dim;
            sum.probes += 2. * q * (shape.w_q(layer) + n * (head_dim as f64 * shape.n_head as f64));
        }
        if l.proxy {
            let (r, d_low) = (proxy.rank as f64, proxy.d_low as f64);
            sum.probes += 2. * n * (2. * (shape.n_embd as f64 * r + r * d_low) + d_low * r);
        }
    }
    sum
}

fn memory(shape: &Shape, budgets: &Budgets, options: &PlanOptions) -> Memory {
    let n = budgets.n_tokens as f64;
    let entry = |l: usize| shape.n_embd_kv(l) as f64 * (options.k_bytes + options.v_bytes);
    let cached = |layers: usize| (0..layers).filter(|&l| shape.has_cache(l));
    let tile = options.n_ubatch.clamp(1, budgets.n_tokens) as f64;
    // What layers with a window keep of a prompt of several tiles; they read it in turns, in memory that they share.
    let kept = |l: usize, rows: f64| match shape.window(l).map(|window| (window + CACHE_GROWTH) as f64) {
        Some(enough) if shape.layer_kind(l) == LayerKind::Windowed && rows > enough.max(tile) => Some(enough),
        _ => None,
    };
    let kv = |rows: &dyn Fn(usize) -> f64| {
        let own = cached(shape.n_layer).map(|l| kept(l, rows(l)).unwrap_or(rows(l)) * entry(l)).sum::<f64>();
        let in_turns = cached(shape.n_layer).filter(|&l| kept(l, rows(l)).is_some());
        own + in_turns.map(|l| rows(l) * entry(l)).fold(0., f64::max)
    };
    let largest = |of: &dyn Fn(usize) -> usize| (0..shape.n_layer).map(of).max().unwrap_or(0) as f64;
    let (n_ff, head_dim) = (largest(&|l| shape.sizes(l).n_ff), largest(&|l| shape.sizes(l).head_dim));
    // States of the first layers, F32.
    let states = |layers: usize| {
        (0..layers).filter_map(|l| shape.recurrence(l)).map(|heads| 4. * heads.n_state() as f64).sum::<f64>()
    };
    // Values are F32 in scratch: the FFN's activations or attention's, whichever is wider, of one tile.
    let ffn = 3. * n_ff + 2. * shape.n_embd as f64;
    let attention = 3. * shape.n_head as f64 * head_dim + 2. * shape.n_embd as f64;
    // Channels before and behind the convolution; the gate, the result and its norm.
    let recurrence = shape.recurrent.as_ref().map_or(0, |r| 3 * (r.heads.n_channels() + r.heads.n_values())) as f64;
    // The mask is one F16 buffer for all tiles: a row per token of a tile, as long as the prompt and a tile.
    let mask = 2. * tile * (n + tile);
    // Keys of all candidates and the scores exist only where a layer probes.
    let probing = budgets.layers.iter().filter(|l| l.probe).map(|l| l.candidates).max().unwrap_or(0) as f64;
    let probe =
        probing * (largest(&|l| shape.n_embd_kv(l)) * 4. + (budgets.queries as f64 * shape.n_head as f64 + 4.) * 4.);
    Memory {
        weights: shape.weight_bytes.map_or(shape.n_params() * 4.5 / 8., |b| b as f64),
        kv: kv(&|l| budgets.layers[l].active_attn as f64),
        kv_dense: kv(&|_| n),
        states: 2. * states(shape.n_layer),
        hidden: n * shape.n_embd as f64 * 4.,
        cpu_experts: options.cpu_experts,
        scratch: 4. * tile * ffn.max(attention).max(recurrence) + mask + probe + 4. * shape.n_vocab as f64,
        document: match budgets.dense_layers() {
            0 => 0.,
            l => {
                let residual = if l == shape.n_layer { 0. } else { 4. * shape.n_embd as f64 };
                let entries = |l: usize| entries_that_stay(shape.window(l), budgets.n_tokens) as f64;
                n * residual + cached(l).map(|l| entries(l) * entry(l)).sum::<f64>() + states(l)
            }
        },
    }
}

/// A number with commas: 32768 as `32,768`.
pub fn grouped(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}, {} tokens, schedule {}", self.shape, grouped(self.n_tokens), self.schedule)?;
        writeln!(f)?;
        writeln!(f, "{:>9} {:>12} {:>12} {:>12} {:>12}", "layers", "candidates", "attention", "FFN", "KV/layer")?;
        let layers = &self.budgets.layers;
        let mut first = 0;
        while first < layers.len() {
            let head = layers[first];
            // A row ends with a prune, or where the counts change, or the kind of the layers.
            let same = |l: usize| {
                LayerBudget { prune_to: None, ..layers[l] } == LayerBudget { prune_to: None, ..head }
                    && (head.candidates == head.active_ffn || self.has_cache(l) == self.has_cache(first))
            };
            let mut last = first;
            while layers[last].prune_to.is_none() && last + 1 < layers.len() && same(last + 1) {
                last += 1;
            }
            let range = if first == last { first.to_string() } else { format!("{first}-{last}") };
            let [n, a, b] = [head.candidates, head.active_attn, head.active_ffn].map(grouped);
            let kv = if (first..=last).any(|l| self.has_cache(l)) { a.as_str() } else { "state" };
            let then = match layers[last].prune_to {
                Some(m) => format!("  then prune to {}", grouped(m)),
                None if !head.probe && n == b => "  dense".to_owned(),
                None => String::new(),
            };
            writeln!(f, "{range:>9} {n:>12} {a:>12} {b:>12} {kv:>12}{then}")?;
            first = last + 1;
        }
        if self.memory.states > 0. {
            let attend = (0..layers.len()).filter(|&l| self.has_cache(l)).count();
            writeln!(f, "{attend} of {} layers attend; the others are recurrent: a state in place of entries", layers.len())?;
        }
        writeln!(f)?;
        writeln!(f, "{:>9} {:>12} {:>12} {:>12} {:>12}", "TFLOP", "linear", "attention", "probes", "total")?;
        for (name, x) in [("dense", &self.dense), ("SPTS", &self.spts)] {
            let [linear, attention, probes, total] = [x.linear, x.attention, x.probes, x.total()].map(|x| x / 1e12);
            writeln!(f, "{name:>9} {linear:>12.2} {attention:>12.2} {probes:>12.2} {total:>12.2}")?;
        }
        writeln!(f)?;
        writeln!(
            f,
            "predicted speed-up (ceiling) {:.2}x, cache kept {:.1} %",
            self.predicted_speedup,
            100. * self.cache_kept
        )?;
        let m = self.memory;
        let [total, weights, kv, kv_dense, states, hidden, scratch] =
            [m.total(), m.weights, m.kv, m.kv_dense, m.states, m.hidden, m.scratch].map(|x| x / f64::from(1 << 30));
        let states = if m.states > 0. { format!("recurrent states {states:.2}, ") } else { String::new() };
        writeln!(
            f,
            "memory {total:.2} GiB: weights {weights:.2}, KV cache {kv:.2} (dense {kv_dense:.2}), {states}hidden state {hidden:.2}, scratch about {scratch:.2}"
        )?;
        if m.cpu_experts.bytes > 0 {
            let CpuExperts { bytes, of_a_layer } = m.cpu_experts;
            let [gpu, cpu, layer] =
                [m.beside_cpu_experts(), bytes as f64, of_a_layer as f64].map(|x| x / f64::from(1 << 30));
            writeln!(
                f,
                "of these {cpu:.2} GiB are experts on the CPU; on the GPU {gpu:.2} GiB with room for those of one layer, {layer:.2}"
            )?;
        }
        match self.budgets.dense_layers() {
            0 => writeln!(f, "nothing of a document stays for later questions: the first layer skips"),
            l => writeln!(
                f,
                "as a document it keeps {:.2} GiB for later questions, of {l} layers{}",
                m.document / f64::from(1 << 30),
                if l < self.layers.len() { " and the residual stream behind them" } else { "" }
            ),
        }?;
        if let Some(c) = self.cliff {
            let [at, above] = [c.first_budget, c.first_budget + 1].map(grouped);
            let (kept, speedup) = (100. * c.cache_kept_above, c.speedup_above);
            match c.in_full_from - c.first_budget {
                1 => writeln!(
                    f,
                    "up to {at} tokens the prompt stays dense; at {above} the cache falls to {kept:.1} % at once ({speedup:.2}x)"
                ),
                _ => writeln!(
                    f,
                    "up to {at} tokens the prompt stays dense; at {above} {kept:.1} % of the cache are kept ({speedup:.2}x), and the schedule acts in full from {} on",
                    grouped(c.in_full_from)
                ),
            }?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
