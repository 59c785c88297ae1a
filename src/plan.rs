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

mod flops;
mod memory;
mod text;

use serde::Serialize;

use crate::method::entry::{Entry, Reader};
use crate::method::spts::schedule::{Budget, Reach, Schedule, ScheduleError};
use crate::method::{Budgets, LayerBudget, Method, MethodError, Prompt};
use crate::model::shape::Shape;

use flops::{dense_flops, mixing_flops, spts_flops};
use memory::memory;

pub use text::grouped;

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
/// `memory_bytes`, `document_bytes`, `cpu_expert_bytes` and `layers`, which are a stable interface; [`std::fmt::Display`] gives the
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

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
