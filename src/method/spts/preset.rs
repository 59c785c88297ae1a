//! Schedules that need no file: the paper's three tables, and a rule for every other model.

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
pub const PRESET_NAMES: [&str; 6] = ["default", "paper", "rule", "llama-3.1-8b", "qwen2.5-7b", "openpangu-1b"];

/// Where the stages of a model outside the paper's tables end, as shares of its layers (exclusive ends).
const STAGE_ENDS: [f64; 4] = [0.45, 0.59, 0.75, 0.90];

/// Budgets in tokens act in full from so many times the first one on, so that a token more never drops a third of the cache. The
/// figures of 16K and 32K tokens in LLaMA's table, and those of 32K in the others, are beyond it.
pub(super) const RAMP: f64 = 1.5;

/// Share of the layers that stay dense at the start.
const SKIP_FROM: f64 = 0.32;

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

impl Schedule {
    /// What a model runs with unless told otherwise: its table of the paper, else [`Schedule::rule_for`]; probed by
    /// [`Probe::SPANS`], FFNs by attention alone.
    ///
    /// # Errors
    /// [`ScheduleError::NoLayers`] for a model without layers.
    pub fn default_for(shape: &Shape) -> Result<Schedule, ScheduleError> {
        match PRESETS.iter().find(|p| p.is_for(shape)) {
            Some(p) => Ok(p.schedule(shape)),
            None => Schedule::rule_for(shape),
        }
    }

    /// [`Schedule::default_for`] as the paper probes: one query, no pooling, nothing carried, FFNs with their proxies,
    /// in full at once.
    pub fn paper_for(shape: &Shape) -> Result<Schedule, ScheduleError> {
        Ok(Schedule {
            name: "paper".into(),
            probe: Probe::PAPER,
            use_proxy: true,
            ramp: 1.0,
            ..Schedule::default_for(shape)?
        })
    }

    /// The rule for models outside the paper's tables (ours): dense up to `round(0.32 L)`, stages that end before
    /// `round(x L)` for x of 0.45, 0.59, 0.75 and 0.90, which for 32 layers is LLaMA's table. In a model of so few layers
    /// that two ends coincide the later stage is left out.
    ///
    /// Budgets are absolute: short prompts, where small models lose most, stay dense. From a width of 4096 on they are
    /// LLaMA's (9K, 7K, 4K, 2K; cut 1K); narrower models get those that the paper gives its own two narrower ones
    /// (13K, 10K, 7K, 4K; cut 2K), with which qwen2.5-coder-1.5b was measured too.
    pub fn rule_for(shape: &Shape) -> Result<Schedule, ScheduleError> {
        let (budgets, cut) = if shape.n_embd >= 4096 { NARROW } else { WIDE };
        by_rule("rule", shape, budgets.map(Budget::Tokens), Budget::Tokens(cut))
    }

    /// The rule's layers with budgets that are fractions of the prompt, so that short prompts skip too. The name is
    /// `fractions`.
    ///
    /// # Errors
    /// Fractions outside (0, 1], growing ones, and a cut that is not below every fraction.
    pub fn fractional(shape: &Shape, budgets: [f64; 4], cut: f64) -> Result<Schedule, ScheduleError> {
        let schedule = by_rule("fractions", shape, budgets.map(Budget::Fraction), Budget::Fraction(cut))?;
        schedule.validate()?;
        Ok(schedule)
    }

    /// A schedule by its name (one of [`PRESET_NAMES`]): `default`, `paper` and `rule` are made for the model, the others
    /// are the paper's tables whatever the model (proxies are always of the model's own size). `Ok(None)`: no such name.
    pub fn preset(name: &str, shape: &Shape) -> Result<Option<Schedule>, ScheduleError> {
        match name {
            "default" => Schedule::default_for(shape).map(Some),
            "paper" => Schedule::paper_for(shape).map(Some),
            "rule" => Schedule::rule_for(shape).map(Some),
            _ => Ok(PRESETS.iter().find(|p| p.name == name).map(|p| p.schedule(shape))),
        }
    }
}

fn by_rule(name: &str, shape: &Shape, budgets: [Budget; 4], cut: Budget) -> Result<Schedule, ScheduleError> {
    if shape.n_layer == 0 {
        return Err(ScheduleError::NoLayers(name.to_owned()));
    }
    let share = |x: f64| (x * shape.n_layer as f64).round() as usize;
    let skip_from = share(SKIP_FROM).min(shape.n_layer - 1);
    let mut stages: Vec<Stage> = Vec::new();
    for (x, budget) in STAGE_ENDS.into_iter().zip(budgets) {
        let end = share(x);
        let start = stages.last().map_or(skip_from, |s| s.last_layer + 1);
        if end > start {
            stages.push(Stage { last_layer: end - 1, budget, cut: Some(cut) });
        }
    }
    if stages.is_empty() {
        stages.push(Stage { last_layer: shape.n_layer - 1, budget: budgets[0], cut: Some(cut) });
    }
    Ok(assemble(name, skip_from, stages, shape.proxy_size()))
}

#[cfg(test)]
#[path = "preset_tests.rs"]
mod tests;
