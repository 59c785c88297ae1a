//! Schedules that need no file: the paper's three tables, and rules for every other model.

use super::schedule::{Budget, Probe, ProxySize, Schedule, ScheduleError, Selection, Stage};
use crate::model::shape::Shape;

const K: usize = 1024;

/// One of the paper's tables.
struct Preset {
    name: &'static str,
    /// Architecture names that GGUF files use for this model.
    arch: &'static [&'static str],
    n_layer: usize,
    n_embd: usize,
    skip_from: usize,
    last_layers: [usize; 4],
    budgets: [usize; 4],
    cut: usize,
}

/// LLaMA's budgets, and the wider ones of the paper's two smaller models.
const NARROW: ([usize; 4], usize) = ([9 * K, 7 * K, 4 * K, 2 * K], K);
const WIDE: ([usize; 4], usize) = ([13 * K, 10 * K, 7 * K, 4 * K], 2 * K);

/// The schedule table of arXiv 2601.13155v2.
const PRESETS: [Preset; 3] = [
    Preset {
        name: "llama-3.1-8b",
        arch: &["llama"],
        n_layer: 32,
        n_embd: 4096,
        skip_from: 10,
        last_layers: [13, 18, 23, 28],
        budgets: NARROW.0,
        cut: NARROW.1,
    },
    Preset {
        name: "qwen2.5-7b",
        arch: &["qwen2"],
        n_layer: 28,
        n_embd: 3584,
        skip_from: 9,
        last_layers: [12, 16, 20, 24],
        budgets: WIDE.0,
        cut: WIDE.1,
    },
    Preset {
        name: "openpangu-1b",
        arch: &["pangu-embedded"],
        n_layer: 26,
        n_embd: 1536,
        skip_from: 11,
        last_layers: [13, 16, 19, 22],
        budgets: WIDE.0,
        cut: WIDE.1,
    },
];

/// Names that [`Schedule::preset`] knows, for messages and help texts.
pub const PRESET_NAMES: [&str; 8] =
    ["default", "early", "fast", "paper", "rule", "llama-3.1-8b", "qwen2.5-7b", "openpangu-1b"];

/// Where the stages of a model outside the paper's tables end, as shares of its layers (exclusive ends).
const STAGE_ENDS: [f64; 4] = [0.45, 0.59, 0.75, 0.90];

/// Budgets in tokens act in full from so many times the first one on, so that a token more never drops a third of the cache. The
/// figures of 16K and 32K tokens in LLaMA's table, and those of 32K in the others, are beyond it.
pub(super) const RAMP: f64 = 1.5;

/// Share of the layers that stay dense at the start.
const SKIP_FROM: f64 = 0.32;

/// A rule: where skipping begins and stages end as shares of the layers (exclusive ends), and the stages' budgets and cuts.
struct Rule {
    name: &'static str,
    skip_from: f64,
    stages: &'static [(f64, usize, Option<usize>)],
}

/// Skips from a seventh of the layers on, generously and without pruning at first, so that the scores that prune are sums over
/// many layers. Chosen on one set of RULER's prompts among eight, reported on another (docs/quality.md): the answers of
/// qwen2.5-coder-1.5b at 32K are better than dense ones.
const EARLY: Rule = Rule {
    name: "early",
    skip_from: 4. / 28.,
    stages: &[
        (9. / 28., 20 * K, None),
        (0.45, 10 * K, Some(2 * K)),
        (0.59, 8 * K, Some(2 * K)),
        (0.75, 5 * K, Some(2 * K)),
        (0.90, 3 * K, Some(K)),
    ],
};

/// What the default's budgets are of [`EARLY`]'s: with more tokens late, texts go on as dense ones do (a KL divergence of 0.016
/// in place of 0.027 at 32K), and answers are as good (docs/quality.md).
const DEFAULT_KEEP: f64 = 1.1;

/// The same from 10K tokens on, without the first stage.
const FAST: Rule = Rule {
    name: "fast",
    skip_from: 6. / 28.,
    stages: &[
        (0.45, 10 * K, Some(2 * K)),
        (0.59, 8 * K, Some(2 * K)),
        (0.75, 5 * K, Some(2 * K)),
        (0.90, 3 * K, Some(K)),
    ],
};

/// From this width on models outside the paper's tables get LLaMA's.
const WIDTH_OF_LLAMA: usize = 4096;

/// LLaMA's budgets at 32K as fractions of the prompt, and their cut.
pub const FRACTIONS: ([f64; 4], f64) = ([0.28, 0.22, 0.125, 0.0625], 0.03);

/// The name of the paper's table for this model, if it is one of the three.
pub fn preset_for(shape: &Shape) -> Option<&'static str> {
    PRESETS.iter().find(|p| p.is_for(shape)).map(|p| p.name)
}

impl Preset {
    // The three numbers tell the models apart; n_ff and the vocabulary differ between fine-tunes and are not looked at.
    fn is_for(&self, shape: &Shape) -> bool {
        self.arch.contains(&shape.arch.as_str()) && self.n_layer == shape.n_layer && self.n_embd == shape.n_embd
    }

    fn schedule(&self, shape: &Shape) -> Schedule {
        let stages = self.last_layers.iter().zip(self.budgets).map(|(&last_layer, budget)| Stage {
            last_layer,
            budget: Budget::Tokens(budget),
            cut: Some(Budget::Tokens(self.cut)),
        });
        assemble(self.name, self.skip_from, stages.collect(), shape.proxy_size())
    }
}

fn assemble(name: &str, skip_from: usize, stages: Vec<Stage>, proxy: ProxySize) -> Schedule {
    Schedule {
        name: name.to_owned(),
        skip_from,
        probe: Probe::for_budgets(stages[0].budget),
        ramp: if stages.iter().all(Stage::is_in_tokens) { RAMP } else { 1.0 },
        stages,
        sinks: 0,
        recent: 0,
        proxy,
        skip_attn: true,
        skip_ffn: true,
        use_proxy: false,
        prune: true,
        selection: Selection::Probe,
    }
}

/// Why a model skips nothing unless told to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeftDense {
    /// It is narrower than [`Schedule::WIDTH_THAT_SKIPS`].
    Narrow,
    /// It is a mixture of experts, has recurrent layers or is a Gemma 4, and what skipping does to answers of such models has not been measured.
    Unmeasured,
}

impl Schedule {
    /// Models narrower than this (n_embd) skip nothing by default: qwen2.5-coder-1.5b's answers bear skipping, those of the 0.5B
    /// (896) do not (docs/quality.md). Wider ones skip unless [`Schedule::left_dense`] has another reason.
    pub const WIDTH_THAT_SKIPS: usize = 1536;

    /// What a model runs with unless told otherwise: its table of the paper; without one, from a width of 4096 on
    /// [`Schedule::rule_for`], from 1536 on [`Schedule::early_for`] with budgets times 1.1. Models of which [`Schedule::left_dense`] has something to say
    /// skip nothing: the budget of their one stage is the whole prompt. Probed by [`Probe::SPANS`], FFNs by attention alone.
    ///
    /// # Errors
    /// [`ScheduleError::NoLayers`] for a model without layers.
    pub fn default_for(shape: &Shape) -> Result<Schedule, ScheduleError> {
        match PRESETS.iter().find(|p| p.is_for(shape)) {
            Some(p) => Ok(p.schedule(shape)),
            None if Self::left_dense(shape).is_some() => by_rule("dense", shape, 0.0, &[(1.0, Budget::Fraction(1.0), None)]),
            None if shape.n_embd >= WIDTH_OF_LLAMA => Schedule::rule_for(shape),
            None => Ok(Schedule { name: "default".into(), ..Schedule::early_for(shape)?.scaled(DEFAULT_KEEP)? }),
        }
    }

    /// Why [`Schedule::default_for`] leaves prompts of any length dense, if it does.
    pub fn left_dense(shape: &Shape) -> Option<LeftDense> {
        if preset_for(shape).is_some() {
            None
        } else if shape.n_embd < Self::WIDTH_THAT_SKIPS {
            Some(LeftDense::Narrow)
        } else {
            let is_new = shape.experts.is_some() || shape.recurrent.is_some() || shape.arch == "gemma4";
            is_new.then_some(LeftDense::Unmeasured)
        }
    }

    /// Skips early and prunes late (ours): dense up to `round(L / 7)`; stages that end before `round(x L)` for x of 0.32, 0.45,
    /// 0.59, 0.75 and 0.90 with budgets of 20K, 10K, 8K, 5K and 3K tokens, the first of which prunes nothing.
    ///
    /// # Errors
    /// [`ScheduleError::NoLayers`] for a model without layers.
    pub fn early_for(shape: &Shape) -> Result<Schedule, ScheduleError> {
        EARLY.schedule(shape)
    }

    /// [`Schedule::early_for`] for shorter prompts: from 10K tokens on, dense up to `round(0.21 L)`, without the first stage.
    ///
    /// # Errors
    /// [`ScheduleError::NoLayers`] for a model without layers.
    pub fn fast_for(shape: &Shape) -> Result<Schedule, ScheduleError> {
        FAST.schedule(shape)
    }

    /// The paper's: the model's table, or [`Schedule::rule_for`], probed by one query, no pooling, nothing carried, FFNs with
    /// their proxies, in full at once.
    ///
    /// # Errors
    /// [`ScheduleError::NoLayers`] for a model without layers.
    pub fn paper_for(shape: &Shape) -> Result<Schedule, ScheduleError> {
        let stages = match PRESETS.iter().find(|p| p.is_for(shape)) {
            Some(p) => p.schedule(shape),
            None => Schedule::rule_for(shape)?,
        };
        Ok(Schedule { name: "paper".into(), probe: Probe::PAPER, use_proxy: true, ramp: 1.0, ..stages })
    }

    /// The rule for models outside the paper's tables (ours): dense up to `round(0.32 L)`, stages that end before
    /// `round(x L)` for x of 0.45, 0.59, 0.75 and 0.90, which for 32 layers is LLaMA's table. In a model of so few layers
    /// that two ends coincide the later stage is left out.
    ///
    /// Budgets are absolute: short prompts, where small models lose most, stay dense. From a width of 4096 on they are
    /// LLaMA's (9K, 7K, 4K, 2K; cut 1K); narrower models get those that the paper gives its own two narrower ones
    /// (13K, 10K, 7K, 4K; cut 2K).
    ///
    /// # Errors
    /// [`ScheduleError::NoLayers`] for a model without layers.
    pub fn rule_for(shape: &Shape) -> Result<Schedule, ScheduleError> {
        let (budgets, cut) = if shape.n_embd >= WIDTH_OF_LLAMA { NARROW } else { WIDE };
        by_rule("rule", shape, SKIP_FROM, &at_stage_ends(budgets.map(Budget::Tokens), Budget::Tokens(cut)))
    }

    /// The rule's layers with budgets that are fractions of the prompt, so that short prompts skip too. The name is
    /// `fractions`.
    ///
    /// # Errors
    /// Fractions outside (0, 1], growing ones, and a cut that is not below every fraction.
    pub fn fractional(shape: &Shape, budgets: [f64; 4], cut: f64) -> Result<Schedule, ScheduleError> {
        let stages = at_stage_ends(budgets.map(Budget::Fraction), Budget::Fraction(cut));
        let schedule = by_rule("fractions", shape, SKIP_FROM, &stages)?;
        schedule.validate()?;
        Ok(schedule)
    }

    /// A schedule by its name (one of `PRESET_NAMES`): `default`, `early`, `fast`, `paper` and `rule` are made for the model,
    /// the others are the paper's tables whatever the model (proxies are always of the model's own size). `Ok(None)`: no such name.
    pub fn preset(name: &str, shape: &Shape) -> Result<Option<Schedule>, ScheduleError> {
        match name {
            "default" => Schedule::default_for(shape).map(Some),
            "early" => Schedule::early_for(shape).map(Some),
            "fast" => Schedule::fast_for(shape).map(Some),
            "paper" => Schedule::paper_for(shape).map(Some),
            "rule" => Schedule::rule_for(shape).map(Some),
            _ => Ok(PRESETS.iter().find(|p| p.name == name).map(|p| p.schedule(shape))),
        }
    }
}

/// A stage of a rule: its end as a share of the layers (exclusive), budget and cut.
type RuleStage = (f64, Budget, Option<Budget>);

/// Stages at [`STAGE_ENDS`], all with one cut.
fn at_stage_ends(budgets: [Budget; 4], cut: Budget) -> Vec<RuleStage> {
    STAGE_ENDS.into_iter().zip(budgets).map(|(end, budget)| (end, budget, Some(cut))).collect()
}

impl Rule {
    fn schedule(&self, shape: &Shape) -> Result<Schedule, ScheduleError> {
        let stages = self.stages.iter().map(|&(end, m, cut)| (end, Budget::Tokens(m), cut.map(Budget::Tokens)));
        by_rule(self.name, shape, self.skip_from, &stages.collect::<Vec<RuleStage>>())
    }
}

fn by_rule(name: &str, shape: &Shape, skip_from: f64, stages: &[RuleStage]) -> Result<Schedule, ScheduleError> {
    if shape.n_layer == 0 {
        return Err(ScheduleError::NoLayers(name.to_owned()));
    }
    let share = |x: f64| (x * shape.n_layer as f64).round() as usize;
    let skip_from = share(skip_from).min(shape.n_layer - 1);
    let mut placed: Vec<Stage> = Vec::new();
    for &(x, budget, cut) in stages {
        let end = share(x);
        let start = placed.last().map_or(skip_from, |s| s.last_layer + 1);
        if end > start {
            placed.push(Stage { last_layer: end - 1, budget, cut });
        }
    }
    if placed.is_empty() {
        let (_, budget, cut) = stages[0];
        placed.push(Stage { last_layer: shape.n_layer - 1, budget, cut });
    }
    Ok(assemble(name, skip_from, placed, shape.proxy_size()))
}

#[cfg(test)]
#[path = "preset_tests.rs"]
mod tests;
