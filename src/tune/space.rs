//! Which schedules are tried: a base and variants of it, one change at a time and then several.

use crate::method::spts::Spts;
use crate::method::spts::schedule::{Budget, Pool, Schedule};
use crate::method::{Method, Prompt};
use crate::model::shape::Shape;
use crate::random::SplitMix64;

/// Label of the schedule that the others are variants of.
pub const BASE: &str = "base";

/// Draws of several changes for each schedule wanted: in a small space most are there already.
const DRAWS: usize = 64;

/// A schedule to be tried.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// What is changed, such as `from 7 + keep 0.7`; [`BASE`] for nothing. No two of a search have the same.
    pub label: String,
    /// The schedule.
    pub schedule: Schedule,
}

/// A change of a schedule.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Change {
    /// Skipping begins so many layers later.
    Start(isize),
    /// All stages end so many layers later.
    Ends(isize),
    /// All budgets and cuts times this.
    Keep(f64),
    /// The maximum over so many neighbours.
    Width(usize),
    /// So much of a layer's scores is handed on.
    Carry(f32),
    /// So many last tokens probe.
    Queries(usize),
}

impl Change {
    /// The changed schedule; `None` where there is no such layer or budget.
    fn apply(self, s: &Schedule) -> Option<Schedule> {
        let mut s = s.clone();
        match self {
            Change::Start(by) => s.skip_from = s.skip_from.checked_add_signed(by)?,
            Change::Ends(by) => {
                for stage in &mut s.stages {
                    stage.last_layer = stage.last_layer.checked_add_signed(by)?;
                }
            }
            Change::Keep(keep) => s = s.scaled(keep).ok()?,
            Change::Width(width) => s.probe.pool = Pool::Max(width),
            Change::Carry(carry) => s.probe.carry = carry,
            Change::Queries(queries) => (s.probe.queries, s.probe.by_question) = (queries, false),
        }
        Some(s)
    }

    /// What it made of a schedule, in words.
    fn label(self, changed: &Schedule) -> String {
        match self {
            Change::Start(_) => format!("from {}", changed.skip_from),
            Change::Ends(by) => format!("ends {by:+}"),
            Change::Keep(keep) => format!("keep {keep}"),
            Change::Width(width) => format!("max {width}"),
            Change::Carry(carry) => format!("carry {carry}"),
            Change::Queries(queries) => format!("{queries} queries"),
        }
    }
}

/// The changes of every kind, in either direction as far as there are two, so that a short list has faster and safer ones.
fn axes(base: &Schedule, n_layer: usize) -> [Vec<Change>; 6] {
    // One layer of 16; of a small model a single one.
    let step = ((n_layer + 8) / 16).max(1) as isize;
    // Of short prompts, which fractions are for, little is kept, and wide spans use it up.
    let widths = match base.stages.first().map(|s| s.budget) {
        Some(Budget::Fraction(_)) => [7, 33, 13],
        _ => [33, 129, 65],
    };
    [
        [0.7, 1.4, 0.5, 2.0].map(Change::Keep).to_vec(),
        [-step, step, -2 * step].map(Change::Start).to_vec(),
        widths.map(Change::Width).to_vec(),
        [-step, step].map(Change::Ends).to_vec(),
        [0.0, 0.5, 0.7].map(Change::Carry).to_vec(),
        [16, 64, 32].map(Change::Queries).to_vec(),
    ]
}

/// At most `most` different schedules, each possible for the model and with something to leave out of one of the prompts at
/// least, whose `lengths` are in tokens. The base is the first, if it leaves something out; then come its variants with one
/// change, of every kind in turns, and then such with several changes, drawn by `seed`. The same arguments give the same list.
pub fn candidates(base: &Schedule, shape: &Shape, lengths: &[usize], most: usize, seed: u64) -> Vec<Candidate> {
    let mut list = List { base, shape, lengths, found: Vec::new() };
    let axes = axes(base, shape.n_layer);
    list.add(&[]);
    let deepest = axes.iter().map(Vec::len).max().unwrap_or(0);
    for change in (0..deepest).flat_map(|i| axes.iter().filter_map(move |axis| axis.get(i))) {
        list.add(&[*change]);
    }
    let mut random = SplitMix64(seed);
    for _ in 0..DRAWS * most {
        if list.found.len() >= most {
            break;
        }
        // Each kind is left alone with the same probability as each of its changes is taken.
        let drawn = axes.iter().filter_map(|axis| axis.get((random.uniform() * (axis.len() + 1) as f64) as usize));
        list.add(&drawn.copied().collect::<Vec<_>>());
    }
    list.found.truncate(most);
    list.found
}

struct List<'a> {
    base: &'a Schedule,
    shape: &'a Shape,
    lengths: &'a [usize],
    found: Vec<Candidate>,
}

impl List<'_> {
    /// Adds the base with these changes, if that is a possible schedule, a new one, and one that does anything.
    fn add(&mut self, changes: &[Change]) {
        let mut schedule = self.base.clone();
        let mut labels = Vec::new();
        for change in changes {
            let Some(changed) = change.apply(&schedule) else { return };
            if changed != schedule {
                labels.push(change.label(&changed));
            }
            schedule = changed;
        }
        let possible = schedule.validate_for(self.shape.n_layer).is_ok();
        if !possible || self.found.iter().any(|c| c.schedule == schedule) || !self.acts(&schedule) {
            return;
        }
        let label = if labels.is_empty() { BASE.to_owned() } else { labels.join(" + ") };
        self.found.push(Candidate { label, schedule });
    }

    /// Whether the schedule leaves something out of one of the prompts.
    fn acts(&self, schedule: &Schedule) -> bool {
        let method = Spts::new(schedule.clone());
        let budgets = |&n: &usize| method.budgets(self.shape, Prompt::of(n));
        self.lengths.iter().any(|n| budgets(n).is_ok_and(|b| !b.is_dense()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::named_shapes::SHAPE_NAMES;

    fn bases(shape: &Shape) -> [Schedule; 3] {
        let fractions = Schedule::fractional(shape, [0.5, 0.4, 0.3, 0.2], 0.1).unwrap();
        [Schedule::early_for(shape).unwrap(), Schedule::paper_for(shape).unwrap(), fractions]
    }

    fn check(shape: &Shape, base: &Schedule, found: &[Candidate], most: usize) {
        assert!(found.len() <= most);
        for (i, c) in found.iter().enumerate() {
            c.schedule.validate_for(shape.n_layer).unwrap();
            assert!(found[..i].iter().all(|o| o.schedule != c.schedule && o.label != c.label), "{c:?}");
            assert_eq!(c.schedule.ramp, base.ramp);
            // What is written to the results can be named there, and on a command line.
            assert!(!c.label.contains(',') && c.label != "dense");
        }
        assert_eq!(found.first().map(|c| (c.label.as_str(), &c.schedule)), Some((BASE, base)));
    }

    #[test]
    fn every_model_has_possible_and_different_schedules() {
        for name in SHAPE_NAMES {
            let shape = Shape::named(name).unwrap();
            for base in bases(&shape) {
                let budgets = Spts::new(base.clone()).budgets(&shape, Prompt::of(65_536)).unwrap();
                // The layers of the smallest Gemma 4 that could skip come before these begin to.
                if name == "gemma-4-e2b" && budgets.is_dense() {
                    continue;
                }
                let found = candidates(&base, &shape, &[65_536], 24, 1);
                assert_eq!(found.len(), 24, "{name}");
                check(&shape, &base, &found, 24);
                assert_eq!(found, candidates(&base, &shape, &[65_536], 24, 1));
                assert_ne!(found, candidates(&base, &shape, &[65_536], 24, 2), "{name}");
                assert_eq!(found[..7], candidates(&base, &shape, &[65_536], 7, 3)[..], "single changes come first");
                // Some are cheaper and some are safer than the base.
                let kept =
                    |s: &Schedule| Spts::new(s.clone()).budgets(&shape, Prompt::of(65_536)).unwrap().cache_kept();
                let of_base = kept(&base);
                assert!(found.iter().any(|c| kept(&c.schedule) < 0.95 * of_base));
                // Where few layers skip, as in Gemma 4, it is little.
                let safer = if shape.arch == "gemma4" { 1.0 } else { 1.02 };
                assert!(found.iter().any(|c| kept(&c.schedule) > safer * of_base), "{name}");
            }
        }
    }

    #[test]
    fn every_kind_of_change_is_tried_alone() {
        let shape = Shape::named("llama-3.1-8b").unwrap();
        let found = candidates(&Schedule::default_for(&shape).unwrap(), &shape, &[32_768], 24, 1);
        let labels: Vec<&str> = found.iter().map(|c| c.label.as_str()).collect();
        let expected =
            ["base", "keep 0.7", "from 8", "max 33", "ends -2", "carry 0", "16 queries", "keep 1.4", "from 12"];
        assert_eq!(labels[..9], expected);
        assert!(labels.iter().any(|l| l.contains(" + ")), "{labels:?}");
    }

    #[test]
    fn what_skips_nothing_is_not_tried() {
        let shape = Shape::named("llama-3.1-8b").unwrap();
        let base = Schedule::default_for(&shape).unwrap();
        assert!(candidates(&base, &shape, &[4000, 3000], 24, 1).is_empty());
        // Half of 9,216 tokens is below 5,000.
        let found = candidates(&base, &shape, &[5000], 24, 1);
        assert!(!found.is_empty() && found.iter().all(|c| c.label.contains("keep 0.5")), "{found:?}");
        assert!(found.len() > 1, "{found:?}");
    }

    proptest! {
        #[test]
        fn small_models_too(n_layer in 1usize..12, most in 0usize..40, seed: u64, n_tokens in 1usize..4000) {
            let shape = Shape { n_layer, ..Shape::named("smollm2-135m").unwrap() };
            for base in bases(&shape) {
                let found = candidates(&base, &shape, &[n_tokens], most, seed);
                if found.first().is_some_and(|c| c.label == BASE) {
                    check(&shape, &base, &found, most);
                }
                for c in &found {
                    c.schedule.validate_for(n_layer).unwrap();
                }
            }
        }
    }
}
