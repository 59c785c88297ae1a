//! The budget schedule (MSDP, multi-stage delayed pruning): which layers skip, and how many tokens each of them works on.
//!
//! Source: "Probe and Skip: Self-Predictive Token Skipping for Efficient Long-Context LLM Inference", arXiv 2601.13155.
//! A [`Schedule`] is what a user writes or picks; [`Schedule::resolve`] turns it, for one prompt length, into exact counts
//! per layer ([`Budgets`]), which the rewrite passes then build into the graph. Nothing here looks at data.
//!
//! Three words are kept apart: a *candidate* is a token still in the network at a layer; an *active* token is a candidate
//! that a module computes, the others are *skipped* and may be active again later; a *pruned* token is gone for good.

use std::fmt;

use thiserror::Error;

use crate::method::{Budgets, Held, LayerBudget};
use crate::model::shape::LayerKind;

pub use crate::graph::ir::{Join, Pool};

/// What is wrong with a schedule, or with a schedule for this model.
#[derive(Clone, Debug, Error, PartialEq)]
#[allow(missing_docs)] // the fields are what the messages name
#[non_exhaustive]
pub enum ScheduleError {
    /// The name cannot be written to a schedule file.
    #[error("schedule: name {0:?} is not usable; expected 1 to 64 printable characters without '#'")]
    Name(String),
    /// There is nothing to skip or prune.
    #[error("schedule '{0}': no stages; add at least one line `stage = last_layer budget cut`")]
    NoStages(String),
    /// A layer that the model does not have.
    #[error("schedule '{name}': {what} is layer {layer}, but the model has layers 0 to {last}; use a schedule made for this model", last = n_layer.saturating_sub(1))]
    LayerOutOfRange { name: String, what: String, layer: usize, n_layer: usize },
    /// Stages have to follow each other.
    #[error("schedule '{name}': stage {stage} ends at layer {last_layer}; expected layer {at_least} or a later one")]
    StageOrder { name: String, stage: usize, last_layer: usize, at_least: usize },
    /// Pruned tokens never come back, so a later budget cannot be larger.
    #[error("schedule '{name}': the budget of stage {stage} grows from {before} to {budget}; budgets must not grow")]
    BudgetGrows { name: String, stage: usize, before: Budget, budget: Budget },
    /// A budget of zero tokens, or a fraction outside (0, 1].
    #[error(
        "schedule '{name}': the budget of stage {stage} is {budget}; expected at least 1 token, or a fraction in (0, 1]"
    )]
    BudgetRange { name: String, stage: usize, budget: Budget },
    /// A fraction outside [0, 1) as cut.
    #[error(
        "schedule '{name}': the cut of stage {stage} is {cut}; expected a number of tokens, or a fraction in [0, 1)"
    )]
    CutRange { name: String, stage: usize, cut: Budget },
    /// Pruning would leave no token.
    #[error(
        "schedule '{name}': the cut of stage {stage} is {cut}, not below its budget of {budget}; nothing would be left"
    )]
    CutNotBelowBudget { name: String, stage: usize, budget: Budget, cut: Budget },
    /// Tokens and fractions cannot be compared before the prompt's length is known.
    #[error(
        "schedule '{name}': stage {stage} mixes token counts and fractions; write all budgets and cuts in one of the two"
    )]
    MixedBudgets { name: String, stage: usize },
    /// Without a probing query there are no scores.
    #[error("schedule '{0}': probe_queries is 0; expected at least 1")]
    NoQueries(String),
    /// A pooling window has a middle.
    #[error("schedule '{name}': pool width {width}; expected an odd number, at least 1")]
    PoolWidth { name: String, width: usize },
    /// A chunk has at least one candidate.
    #[error("schedule '{name}': chunks of {width} candidates; expected at least 1")]
    ChunkWidth { name: String, width: usize },
    /// A ramp goes from the first budget on upwards.
    #[error("schedule '{name}': ramp is {ramp}; expected a finite number, at least 1")]
    Ramp { name: String, ramp: f64 },
    /// A fraction grows with the prompt and has no step to smooth.
    #[error(
        "schedule '{name}': ramp is {ramp}, but its budgets are fractions; a ramp (other than 1) takes token counts"
    )]
    RampOfFractions { name: String, ramp: f64 },
    /// More tokens than any prompt has.
    #[error("schedule '{name}': {what} is {found}; expected at most {most}")]
    TooMany { name: String, what: &'static str, found: usize, most: usize },
    /// A factor that would let old scores outgrow the new ones.
    #[error("schedule '{name}': carry is {carry}; expected a number from 0 to 1")]
    Carry { name: String, carry: f32 },
    /// A proxy without channels, or with a rank above them.
    #[error("schedule '{name}': proxy of {d_low} channels and rank {rank}; expected 1 <= rank <= channels")]
    Proxy { name: String, d_low: usize, rank: usize },
    /// `--keep` takes a positive number.
    #[error("schedule: keep factor {0}; expected a finite number above 0")]
    Keep(f64),
    /// There is nothing to schedule.
    #[error("schedule '{0}': the prompt is empty; expected at least 1 token")]
    EmptyPrompt(String),
    /// The schedule rule has no layers to place its stages in.
    #[error("schedule '{0}': the model has no layers")]
    NoLayers(String),
}

/// A number of tokens: absolute, or a fraction of the prompt.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Budget {
    /// This many tokens, whatever the prompt's length.
    Tokens(usize),
    /// This share of the prompt's N tokens, rounded down.
    Fraction(f64),
}

impl Budget {
    /// The count for a prompt of `n_tokens`. Fractions above 0 round down, but never to less than 1.
    pub fn resolve(self, n_tokens: usize) -> usize {
        match self {
            Budget::Tokens(n) => n,
            Budget::Fraction(f) if f <= 0.0 => 0,
            Budget::Fraction(f) => ((f * n_tokens as f64).floor() as usize).max(1),
        }
    }

    fn same_kind(self, other: Budget) -> bool {
        // Zero is the same in tokens and in fractions.
        matches!(
            (self, other),
            (Budget::Tokens(_), Budget::Tokens(_))
                | (Budget::Fraction(_), Budget::Fraction(_))
                | (Budget::Tokens(0), _)
                | (_, Budget::Tokens(0))
        )
    }

    fn value(self) -> f64 {
        match self {
            Budget::Tokens(n) => n as f64,
            Budget::Fraction(f) => f,
        }
    }
}

/// As in a schedule file: a count is an integer, a fraction always has a point.
impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Budget::Tokens(n) => write!(f, "{n}"),
            Budget::Fraction(x) => {
                let text = x.to_string();
                let point = if text.contains('.') || !x.is_finite() { "" } else { ".0" };
                write!(f, "{text}{point}")
            }
        }
    }
}

/// How candidates are scored by the attention probe.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Probe {
    /// Probing queries: the last tokens of the prompt. They are always active and never pruned.
    pub queries: usize,
    /// The question probes, and everything behind it, in place of `queries` tokens, where a prompt says where its question
    /// begins; at most the last [`Probe::MOST_OF_A_QUESTION`] of them.
    pub by_question: bool,
    /// How the queries' scores are joined.
    pub join: Join,
    /// Pooling of the scores over neighbouring candidates.
    pub pool: Pool,
    /// Scores are carried from layer to layer: to those of a layer this many times those of the probing layer before it are
    /// added (which hold what that one was handed), and the sum is pooled and selects. Between 0 and 1; 0 is the paper's,
    /// every layer by its own scores.
    pub carry: f32,
}

impl Probe {
    /// Tokens of a question, and of what is behind it, that probe at most.
    pub const MOST_OF_A_QUESTION: usize = 256;

    /// The paper's: the last token alone, no pooling.
    pub const PAPER: Probe = Probe { queries: 1, by_question: false, join: Join::Mean, pool: Pool::None, carry: 0.0 };
    /// Ours for budgets in tokens: 32 queries, maximum over 65 neighbours, so that what is kept is spans, and 0.7 of the layers
    /// before (docs/quality.md has what each is worth).
    pub const SPANS: Probe = Probe { queries: 32, pool: Pool::Max(65), carry: 0.7, ..Probe::PAPER };
    /// Ours for budgets in fractions: 32 queries, maximum over 13 neighbours. Of a short prompt the later stages keep a few
    /// hundred tokens, which wide spans use up on one place.
    pub const SHORT_SPANS: Probe = Probe { queries: 32, pool: Pool::Max(13), ..Probe::PAPER };

    /// The probe that goes with budgets of this kind, unless another is asked for.
    pub fn for_budgets(budget: Budget) -> Probe {
        match budget {
            Budget::Tokens(_) => Probe::SPANS,
            Budget::Fraction(_) => Probe::SHORT_SPANS,
        }
    }
}

/// Size of the low-rank FFN proxies, and the rule that gives it.
pub use spts_quant::ProxySize;

/// What decides which tokens stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Selection {
    /// The attention probe.
    Probe,
    /// Chance: the control that a method has to beat.
    Random {
        /// Seed of the random scores.
        seed: u64,
    },
}

impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Selection::Probe => write!(f, "probe"),
            Selection::Random { seed } => write!(f, "random {seed}"),
        }
    }
}

/// Consecutive layers that share one candidate set and one budget.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stage {
    /// Last layer of the stage, inclusive, from 0; candidates are pruned behind it, if at all.
    pub last_layer: usize,
    /// Active tokens per layer (M of the paper).
    pub budget: Budget,
    /// Pruning leaves `budget - cut` candidates; `None`: the stage only skips, and all its candidates go on.
    pub cut: Option<Budget>,
}

impl Stage {
    /// Whether its budget is a count, whatever the prompt's length.
    pub(super) fn is_in_tokens(&self) -> bool {
        matches!(self.budget, Budget::Tokens(_))
    }
}

/// A budget schedule and everything else that decides what a prefill skips.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// For reports.
    pub name: String,
    /// First layer that skips; the layers before it are dense.
    pub skip_from: usize,
    /// At least one, in ascending order. Layers after the last stage run dense on the candidates that are left.
    pub stages: Vec<Stage>,
    /// Where the schedule acts in full: on prompts of this many times the first budget and more. On shorter ones (above the
    /// first budget, up to which prompts stay dense) every budget, and what is left behind every stage, lies as far between the
    /// first budget and its own value as the prompt's length between the two ends. 1, the paper's: in full at once.
    pub ramp: f64,
    /// How candidates are scored.
    pub probe: Probe,
    /// First tokens of the prompt that are always active and never pruned: much attention goes to them whatever they say.
    pub sinks: usize,
    /// Last tokens of the prompt that are always active and never pruned, where they are more than those that probe.
    pub recent: usize,
    /// Size of the FFN proxies that this schedule wants.
    pub proxy: ProxySize,
    /// Skip in attention (PAP). Off is an ablation.
    pub skip_attn: bool,
    /// Skip in the FFN (LTP). Off is an ablation.
    pub skip_ffn: bool,
    /// Score the FFN by proxy norm times probe score; off: by the probe score alone, which needs no sidecar.
    pub use_proxy: bool,
    /// Prune at the ends of stages. Off is an ablation: every layer then keeps all N candidates.
    pub prune: bool,
    /// Probe, or chance.
    pub selection: Selection,
}

impl Schedule {
    /// Tokens that may be set to be always active at each of a prompt's ends.
    const MOST_HELD: usize = 1 << 30;

    /// Checks everything that does not depend on a model or a prompt.
    pub fn validate(&self) -> Result<(), ScheduleError> {
        let name = || self.name.clone();
        let n_chars = self.name.chars().count();
        let usable = |c: char| !c.is_control() && c != '#';
        if !(1..=64).contains(&n_chars) || !self.name.chars().all(usable) || self.name.trim() != self.name {
            return Err(ScheduleError::Name(name()));
        }
        if self.probe.queries == 0 {
            return Err(ScheduleError::NoQueries(name()));
        }
        for (what, found) in [("probe_queries", self.probe.queries), ("sinks", self.sinks), ("recent", self.recent)] {
            if found > Self::MOST_HELD {
                return Err(ScheduleError::TooMany { name: name(), what, found, most: Self::MOST_HELD });
            }
        }
        if let Pool::Avg(width) | Pool::Max(width) = self.probe.pool
            && width % 2 == 0
        {
            return Err(ScheduleError::PoolWidth { name: name(), width });
        }
        if self.probe.pool == Pool::Chunks(0) {
            return Err(ScheduleError::ChunkWidth { name: name(), width: 0 });
        }
        if !(0.0..=1.0).contains(&self.probe.carry) {
            return Err(ScheduleError::Carry { name: name(), carry: self.probe.carry });
        }
        let ProxySize { d_low, rank } = self.proxy;
        if rank == 0 || rank > d_low {
            return Err(ScheduleError::Proxy { name: name(), d_low, rank });
        }
        if self.stages.is_empty() {
            return Err(ScheduleError::NoStages(name()));
        }
        let mut at_least = self.skip_from;
        let mut before: Option<Budget> = None;
        for (stage, s) in self.stages.iter().enumerate() {
            let Stage { last_layer, budget, cut } = *s;
            if last_layer < at_least {
                return Err(ScheduleError::StageOrder { name: name(), stage, last_layer, at_least });
            }
            // Saturating: a layer number at the type's end is refused for every real model anyway.
            at_least = last_layer.saturating_add(1);
            let good_budget = match budget {
                Budget::Tokens(n) => n > 0,
                Budget::Fraction(f) => f > 0.0 && f <= 1.0,
            };
            if !good_budget {
                return Err(ScheduleError::BudgetRange { name: name(), stage, budget });
            }
            if let Some(cut @ Budget::Fraction(f)) = cut
                && !(0.0..1.0).contains(&f)
            {
                return Err(ScheduleError::CutRange { name: name(), stage, cut });
            }
            if cut.is_some_and(|cut| !budget.same_kind(cut)) || before.is_some_and(|b| !b.same_kind(budget)) {
                return Err(ScheduleError::MixedBudgets { name: name(), stage });
            }
            if let Some(cut) = cut
                && cut.value() >= budget.value()
            {
                return Err(ScheduleError::CutNotBelowBudget { name: name(), stage, budget, cut });
            }
            if let Some(before) = before
                && budget.value() > before.value()
            {
                return Err(ScheduleError::BudgetGrows { name: name(), stage, before, budget });
            }
            before = Some(budget);
        }
        if !(self.ramp.is_finite() && self.ramp >= 1.0) {
            return Err(ScheduleError::Ramp { name: name(), ramp: self.ramp });
        }
        if let (true, Some(Budget::Fraction(_))) = (self.ramp > 1.0, before) {
            return Err(ScheduleError::RampOfFractions { name: name(), ramp: self.ramp });
        }
        Ok(())
    }

    /// [`Schedule::validate`], and that the model has all the layers named.
    pub fn validate_for(&self, n_layer: usize) -> Result<(), ScheduleError> {
        self.validate()?;
        let out =
            |what: String, layer| Err(ScheduleError::LayerOutOfRange { name: self.name.clone(), what, layer, n_layer });
        if self.skip_from >= n_layer {
            return out("skip_from".into(), self.skip_from);
        }
        match self.stages.iter().position(|s| s.last_layer >= n_layer) {
            Some(i) => out(format!("the end of stage {i}"), self.stages[i].last_layer),
            None => Ok(()),
        }
    }

    /// This schedule for a prompt of `n_tokens` whose question begins at token `question_start`, if that is known: probed by
    /// the question, where it is to be.
    pub fn for_question(&self, n_tokens: usize, question_start: Option<usize>) -> Schedule {
        let mut schedule = self.clone();
        if let (true, Some(start)) = (self.probe.by_question, question_start) {
            schedule.probe.queries = n_tokens.saturating_sub(start).clamp(1, Probe::MOST_OF_A_QUESTION);
        }
        schedule
    }

    /// The longest prompt that is left dense when it has `n_tokens` tokens: the first budget.
    pub fn first_budget(&self, n_tokens: usize) -> usize {
        self.stages.first().map_or(usize::MAX, |s| s.budget.resolve(n_tokens).max(self.held(usize::MAX).count()))
    }

    /// Of a prompt of `n_tokens`: the last ones go before the first.
    fn held(&self, n_tokens: usize) -> Held {
        let last = self.probe.queries.max(self.recent).min(n_tokens);
        Held { first: self.sinks.min(n_tokens - last), last }
    }

    /// The shortest prompt on which the schedule acts in full, for budgets in tokens.
    pub fn in_full_from(&self) -> usize {
        let first = self.first_budget(1);
        first.saturating_add(1).max((first as f64 * self.ramp).ceil() as usize)
    }

    /// Where a count stands for a prompt of `n_tokens` that is above the first budget: see [`Schedule::ramp`].
    fn ramped(&self, full: usize, n_tokens: usize) -> usize {
        let first = self.first_budget(n_tokens);
        if n_tokens as f64 >= first as f64 * self.ramp {
            return full;
        }
        let done = (n_tokens as f64 - first as f64) / ((self.ramp - 1.0) * first as f64);
        full + (first.saturating_sub(full) as f64 * (1.0 - done)) as usize
    }

    /// The counts of every layer for a prompt of `n_tokens`.
    ///
    /// - A prompt that the schedule does not reach ([`Reach`]) is dense: no probes, no pruning.
    /// - On a somewhat longer one the later budgets are nearer to the first, if the schedule has a ramp ([`Schedule::ramp`]).
    /// - An active set has exactly `min(M, candidates)` members. The tokens that are always active are among them, so a budget
    ///   below their number counts as that number.
    /// - `kind(layer)` says how a layer's tokens see each other. Those that attend through a sliding window, and those with keys
    ///   that several layers read, neither score nor skip: they hold all candidates and are only pruned. Recurrent ones go over all candidates and score none either, but their FFNs
    ///   skip by the scores of the last layer that did, if any did. A stage prunes behind its last layer with full attention; a
    ///   stage without any neither scores nor prunes.
    /// - Behind a stage without a cut all candidates go on: what it skipped may be active again.
    /// - A layer is probed only if something hangs on its scores: what it selects, or, where scores are carried, what a
    ///   later layer selects. It has a proxy only if its FFN skips.
    ///
    /// # Errors
    /// Everything [`Schedule::validate_for`] finds, and an empty prompt.
    pub fn resolve(
        &self,
        n_layer: usize,
        n_tokens: usize,
        kind: &dyn Fn(usize) -> LayerKind,
        reach: Reach,
    ) -> Result<Budgets, ScheduleError> {
        let forced = reach == Reach::EveryLayer;
        self.validate_for(n_layer)?;
        if n_tokens == 0 {
            return Err(ScheduleError::EmptyPrompt(self.name.clone()));
        }
        let (queries, held) = (self.probe.queries.min(n_tokens), self.held(n_tokens));
        let mut layers = Vec::with_capacity(n_layer);
        if reach == Reach::AboveFirstBudget && n_tokens <= self.first_budget(n_tokens) {
            layers.resize(n_layer, LayerBudget::dense(n_tokens));
            return Ok(Budgets { n_tokens, layers, queries, held, forced });
        }
        let mut n = n_tokens;
        // The last layer whose scores later ones can have.
        let mut scoring: Option<usize> = None;
        layers.resize(self.skip_from, LayerBudget::dense(n));
        for stage in &self.stages {
            let first = layers.len();
            let at_this_length = |full| match reach {
                Reach::AboveFirstBudget => self.ramped(full, n_tokens).max(held.count()),
                Reach::AnyLength | Reach::EveryLayer => full.max(held.count()),
            };
            let full = stage.budget.resolve(n_tokens);
            let budget = at_this_length(full);
            // What is left behind the stage, and the layer that prunes down to it.
            let cut = stage.cut.filter(|_| self.prune);
            let left = cut.map(|cut| at_this_length(full.saturating_sub(cut.resolve(n_tokens))));
            let prune_layer = (first..=stage.last_layer).rev().find(|&l| kind(l) == LayerKind::Full);
            for layer in first..=stage.last_layer {
                let mut l = LayerBudget::dense(n);
                let active = budget.min(n);
                match kind(layer) {
                    LayerKind::Full => {
                        l.active_attn = if self.skip_attn { active } else { n };
                        l.active_ffn = if self.skip_ffn { active } else { n };
                        l.prune_to = left.filter(|&left| prune_layer == Some(layer) && left < n);
                        l.probe = forced || l.active_attn < n || l.active_ffn < n || l.prune_to.is_some();
                        l.proxy = self.use_proxy && l.probe && (l.active_ffn < n || forced);
                        scoring = Some(layer);
                    }
                    LayerKind::Recurrent => {
                        if let Some(scoring) = scoring.filter(|_| self.skip_ffn && (forced || active < n)) {
                            l.active_ffn = active;
                            l.proxy = self.use_proxy;
                            layers[scoring].probe = true;
                        }
                    }
                    LayerKind::Windowed | LayerKind::Shared => {}
                }
                n = l.prune_to.unwrap_or(n);
                layers.push(l);
            }
        }
        layers.resize(n_layer, LayerBudget::dense(n));
        if self.carries()
            && let Some(last) = layers.iter().rposition(|l| l.probe)
        {
            let scoring = (self.skip_from..=last).filter(|&l| kind(l) == LayerKind::Full);
            scoring.for_each(|l| layers[l].probe = true);
        }
        Ok(Budgets { n_tokens, layers, queries, held, forced })
    }

    /// Whether layers add earlier ones' scores to their own. Chance is not carried.
    fn carries(&self) -> bool {
        self.probe.carry > 0.0 && self.selection == Selection::Probe
    }

    /// All budgets and cuts times `keep` (`--keep`). Counts round down; a budget stays at least 1 token and a fraction at
    /// most 1, its cut following in proportion.
    ///
    /// # Errors
    /// [`ScheduleError::Keep`] if `keep` is not a finite number above 0.
    pub fn scaled(&self, keep: f64) -> Result<Schedule, ScheduleError> {
        if !(keep.is_finite() && keep > 0.0) {
            return Err(ScheduleError::Keep(keep));
        }
        let times = |b: Budget, by: f64| match b {
            Budget::Tokens(n) => Budget::Tokens((n as f64 * by) as usize),
            Budget::Fraction(f) => Budget::Fraction(f * by),
        };
        let mut scaled = self.clone();
        for s in &mut scaled.stages {
            let (budget, factor) = match s.budget {
                Budget::Fraction(f) if f * keep >= 1.0 => (Budget::Fraction(1.0), 1.0 / f),
                Budget::Fraction(f) => (Budget::Fraction((f * keep).max(f64::MIN_POSITIVE)), keep),
                Budget::Tokens(n) => (Budget::Tokens(((n as f64 * keep) as usize).max(1)), keep),
            };
            s.budget = budget;
            // Rounding may bring the two together.
            s.cut = s.cut.map(|cut| match (times(cut, factor), budget) {
                (Budget::Tokens(cut), Budget::Tokens(budget)) => Budget::Tokens(cut.min(budget - 1)),
                (cut, budget) if cut.value() >= budget.value() => Budget::Tokens(0),
                (cut, _) => cut,
            });
        }
        Ok(scaled)
    }
}

/// Which prompts go through a schedule's stages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reach {
    /// Those longer than the first budget; shorter ones are dense.
    #[default]
    AboveFirstBudget,
    /// All: of a shorter one the later stages may still skip and prune, and there is no ramp. (The paper's figures at 8K for LLaMA,
    /// whose first budget is 9K, are these.)
    AnyLength,
    /// All, and every layer of a stage probes and gathers, for tests and for counting: with a budget of the prompt's length and a
    /// cut of 0 the rewritten graph then computes what the dense one does.
    EveryLayer,
}

#[cfg(test)]
#[path = "schedule_tests.rs"]
pub(crate) mod tests;
