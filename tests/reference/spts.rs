//! The parts of SPTS that the forward pass is made of: budgets, scores, selection, proxies.

use super::model::{Gelu, Matrix, Model, dot, silu};

/// What one layer may compute. Counts of tokens; at or above the number of candidates they mean all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerBudget {
    /// Candidates that enter the layer (checked).
    pub candidates: usize,
    pub active_attn: usize,
    pub active_ffn: usize,
    /// Candidates left after the layer, where a stage ends here.
    pub prune_to: Option<usize>,
}

impl LayerBudget {
    /// A layer that computes everything.
    pub fn dense(candidates: usize) -> Self {
        LayerBudget { candidates, active_attn: candidates, active_ffn: candidates, prune_to: None }
    }
}

/// Pooling of the probe scores over neighbouring candidates: `width` of them, odd, centred; fewer at the ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pool {
    None,
    Avg(usize),
    Max(usize),
    /// The maximum of the chunk that the candidate is in: chunks of so many candidates, from the first one on.
    Chunks(usize),
}

/// Low-rank proxy of one FFN. Matrices in ggml order `[n_in, n_out]`.
#[derive(Clone, Debug)]
pub struct Proxy {
    /// `[n_embd, 2 r]`: U_g, then U_u.
    pub u_gu: Matrix,
    /// `[r, D_low]`
    pub v_gate: Matrix,
    /// `[r, D_low]`
    pub v_up: Matrix,
    /// `[D_low, r]`: V_d, with the singular values; U_d is orthonormal and leaves the norm alone.
    pub v_down: Matrix,
    /// Round what is multiplied by a matrix to f16: ggml's CPU products do, where the matrix is F16.
    pub f16_inputs: bool,
}

impl Proxy {
    /// `C = || V_d (act(V_g U_g x) * (V_u U_u x)) ||` of a normalised FFN input.
    pub fn norm(&self, model: &Model, x: &[f32]) -> f32 {
        let low = self.times(&self.u_gu, x);
        let (low_gate, low_up) = low.split_at(self.v_gate.n_in);
        let gate = self.times(&self.v_gate, low_gate);
        let up = self.times(&self.v_up, low_up);
        let z: Vec<f32> = gate.iter().zip(&up).map(|(g, u)| model.gated(*g, *u)).collect();
        let y = self.times(&self.v_down, &z);
        dot(&y, &y).sqrt() as f32
    }

    fn times(&self, w: &Matrix, x: &[f32]) -> Vec<f32> {
        if !self.f16_inputs {
            return w.times(x);
        }
        w.times(&x.iter().map(|x| half::f16::from_f32(*x).to_f32()).collect::<Vec<_>>())
    }
}

/// How a layer's tokens see each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Attention to all before.
    Full,
    /// Attention through a sliding window.
    Local,
    /// A recurrence.
    Recurrent,
}

/// A schedule as the method's table has it, in tokens: what the budgets of a prompt follow from.
#[derive(Clone, Debug)]
pub struct Layout {
    /// First layer that skips.
    pub skip_from: usize,
    /// Last layer, M_fixed and cut of each stage.
    pub stages: Vec<(usize, usize, usize)>,
    /// Times the first budget at which the budgets are as given; up to there they come down from the first.
    pub ramp: f64,
    /// Numbers of the stages that prune nothing.
    pub keeping: Vec<usize>,
    /// Probing queries, first tokens and last tokens that always stay; a budget never goes below them.
    pub queries: usize,
    pub sinks: usize,
    pub recent: usize,
    pub skip_attn: bool,
    pub skip_ffn: bool,
    pub prune: bool,
}

impl Layout {
    /// MSDP for a prompt of n tokens. A layer that attends through a sliding window holds every candidate, and so does a recurrent
    /// one, but that its FFN skips once a layer has scored; the prune of a stage moves to its last layer that is neither.
    pub fn budgets(&self, n_layer: usize, n: usize, kind: impl Fn(usize) -> Kind) -> Vec<LayerBudget> {
        let staying = self.sinks + self.queries.max(self.recent);
        let first_budget = self.stages[0].1.max(staying) as f64;
        let staying = staying.min(n);
        let way = if self.ramp > 1.0 { (n as f64 - first_budget) / ((self.ramp - 1.0) * first_budget) } else { 1.0 };
        let ramped = |count: usize| match first_budget - count as f64 {
            above if above > 0.0 && way < 1.0 => count + (above * (1.0 - way)).floor() as usize,
            _ => count,
        };
        let mut candidates = n;
        let mut scored = false;
        let mut first = self.skip_from;
        let mut layers = vec![LayerBudget::dense(n); first];
        for (number, (last, budget, cut)) in self.stages.iter().copied().enumerate() {
            let prunes = self.prune && !self.keeping.contains(&number);
            let pruning_layer = (first..=last).rfind(|l| kind(*l) == Kind::Full);
            let (left, budget) = (ramped(budget - cut).max(staying), ramped(budget));
            for l in first..=last {
                let mut layer = LayerBudget::dense(candidates);
                let active = budget.max(staying).min(candidates);
                scored |= kind(l) == Kind::Full;
                if kind(l) == Kind::Full && self.skip_attn {
                    layer.active_attn = active;
                }
                if kind(l) != Kind::Local && scored && self.skip_ffn {
                    layer.active_ffn = active;
                }
                if prunes && pruning_layer == Some(l) && left < candidates {
                    layer.prune_to = Some(left);
                    candidates = left;
                }
                layers.push(layer);
            }
            first = last + 1;
        }
        layers.resize(n_layer, LayerBudget::dense(candidates));
        layers
    }
}

/// A whole prefill's budgets and how tokens are scored.
#[derive(Clone, Debug)]
pub struct SptsPlan {
    /// One for every layer.
    pub layers: Vec<LayerBudget>,
    /// Probing queries: the last tokens, always active, never pruned.
    pub probe_queries: usize,
    /// First and last tokens that are always active and never pruned, besides those that probe.
    pub sinks: usize,
    pub recent: usize,
    /// The best of the queries' scores, in place of their mean.
    pub best_query: bool,
    pub pool: Pool,
    /// To the scores of a layer so many times those that the layer before it ended up with are added, before pooling.
    pub carry: f32,
    /// The first layer that scores for later ones, where scores are carried.
    pub carry_from: usize,
    /// One for every layer whose FFN skips. Without any, S alone scores the FFN.
    pub proxies: Option<Vec<Option<Proxy>>>,
    /// Scores of the candidates of every layer to use instead of the probe's (a control that selects at random).
    pub given_scores: Option<Vec<Vec<f32>>>,
    /// The choices of an implementation under test.
    pub follow: Option<Follow>,
}

impl SptsPlan {
    /// The paper's: one probing query, no pooling, no proxies.
    pub fn new(layers: Vec<LayerBudget>) -> Self {
        SptsPlan {
            layers,
            probe_queries: 1,
            sinks: 0,
            recent: 0,
            best_query: false,
            pool: Pool::None,
            carry: 0.0,
            carry_from: 0,
            proxies: None,
            given_scores: None,
            follow: None,
        }
    }
}

/// Sets that an implementation under test chose. Rounding can swap tokens whose scores are equal but for it. The reference
/// goes along with such a swap, so that everything behind it can still be compared, and refuses any other.
#[derive(Clone, Debug)]
pub struct Follow {
    /// By layer.
    pub layers: Vec<Chosen>,
    /// Scores closer than this to the worst chosen one, relative to it, count as equal to it.
    pub tie: f32,
}

/// One layer's sets, by original position.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chosen {
    pub candidates: Vec<usize>,
    pub active_attn: Vec<usize>,
    pub active_ffn: Vec<usize>,
}

/// `theirs` where it is a right choice of the m best scores, rounding considered.
///
/// # Panics
/// Where it is not.
pub fn settle(what: &str, scores: &[f32], m: usize, forced: usize, theirs: &[usize], tie: f32) -> Vec<usize> {
    let own = top(scores, m, forced);
    if own == theirs {
        return own;
    }
    assert!(theirs.is_sorted_by(|a, b| a < b), "{what}: {theirs:?} is not ascending");
    assert_eq!(theirs.len(), own.len(), "{what}: members");
    let last = scores.len() - forced.min(m);
    assert!((last..scores.len()).all(|i| theirs.contains(&i)), "{what}: the last {forced} are not all in {theirs:?}");
    let worst = own.iter().filter(|i| **i < last).map(|i| scores[*i]).fold(f32::INFINITY, f32::min);
    let swapped = |a: &[usize], b: &[usize]| a.iter().copied().filter(|i| !b.contains(i)).collect::<Vec<_>>();
    for i in swapped(&own, theirs).into_iter().chain(swapped(theirs, &own)) {
        let distance = (scores[i] - worst).abs() / worst.abs();
        assert!(
            distance <= tie,
            "{what}: candidate {i} of score {:e} is chosen wrongly: the worst of the best {m} has {worst:e}",
            scores[i]
        );
    }
    theirs.to_vec()
}

impl Model {
    /// The product that `down` takes: of the gate's activation and the other factor.
    pub fn gated(&self, gate: f32, up: f32) -> f32 {
        let Some(limit) = self.gate_limit else {
            return self.activate(gate) * up;
        };
        let (gate, up) = (gate.min(limit), up.clamp(-limit, limit));
        (f64::from(gate) / (1.0 + (-1.702 * f64::from(gate)).exp()) * (f64::from(up) + 1.0)) as f32
    }

    /// The gate's activation.
    pub fn activate(&self, x: f32) -> f32 {
        if !self.gelu_gate {
            return silu(x);
        }
        match self.gelu {
            Gelu::Exact => gelu(x),
            Gelu::F16Table if x <= -10.0 => 0.0,
            Gelu::F16Table if x >= 10.0 => x,
            Gelu::F16Table => half::f16::from_f32(gelu(half::f16::from_f32(x).to_f32())).to_f32(),
        }
    }
}

fn gelu(x: f32) -> f32 {
    let x = f64::from(x);
    let inner = (2.0 / std::f64::consts::PI).sqrt() * x * (1.0 + 0.044715 * x * x);
    (0.5 * x * (1.0 + inner.tanh())) as f32
}

/// Pools scores over neighbours in order; an average counts only the neighbours that exist.
pub fn pool_scores(scores: &[f32], pool: Pool) -> Vec<f32> {
    if let Pool::Chunks(width) = pool {
        let best = |chunk: &[f32]| chunk.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        return scores.chunks(width).flat_map(|chunk| vec![best(chunk); chunk.len()]).collect();
    }
    let (Pool::Avg(width) | Pool::Max(width)) = pool else {
        return scores.to_vec();
    };
    assert!(width % 2 == 1, "pool width {width} has no centre");
    let reach = width / 2;
    let range = |i: usize| &scores[i.saturating_sub(reach)..(i + reach + 1).min(scores.len())];
    (0..scores.len())
        .map(|i| match pool {
            Pool::Max(_) => range(i).iter().copied().fold(f32::NEG_INFINITY, f32::max),
            _ => (range(i).iter().map(|s| f64::from(*s)).sum::<f64>() / range(i).len() as f64) as f32,
        })
        .collect()
}

/// Indices of the `m` best scores, ascending. The last `forced` are always among them; the lower index wins ties.
pub fn top(scores: &[f32], m: usize, forced: usize) -> Vec<usize> {
    let n = scores.len();
    let m = m.min(n);
    let forced = forced.min(m);
    let mut rest: Vec<usize> = (0..n - forced).collect();
    rest.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
    rest.truncate(m - forced);
    rest.extend(n - forced..n);
    rest.sort_unstable();
    rest
}
