//! What results of tasks say: scores, and what they cost or gain against the first configuration.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Serialize;

use super::results::{ResultLine, Results};
use super::statistics::{Estimate, mean, mean_of_means, median, median_of_all};

/// All of a file's results. A prompt counts if every configuration has answered it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The model's name.
    pub model: String,
    /// Where it ran.
    pub device: String,
    /// Prompts that count.
    pub n_prompts: usize,
    /// Prompts left out, since a configuration has not answered them.
    pub incomplete: usize,
    /// Tasks, by name.
    pub tasks: Vec<String>,
    /// Lengths that prompts were made for; `None` for prompts without one.
    pub lengths: Vec<Option<usize>>,
    /// In the order in which the file has them. The first is what the others are compared with.
    pub configs: Vec<ConfigSummary>,
}

/// The results of one configuration.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ConfigSummary {
    /// Its name.
    pub name: String,
    /// All of its settings.
    pub settings: String,
    /// Over all prompts.
    pub all: Cell,
    /// For each of [`Summary::tasks`].
    pub by_task: Vec<Cell>,
    /// For each of [`Summary::lengths`].
    pub by_length: Vec<Cell>,
    /// For each of [`Summary::lengths`], for each of [`Summary::tasks`].
    pub by_length_and_task: Vec<Vec<Cell>>,
}

/// Some prompts under one configuration. Scores are from 0 to 1, the mean over tasks of the mean over prompts.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cell {
    /// Prompts.
    pub n: usize,
    /// Mean score.
    pub score: Estimate,
    /// Mean score less the first configuration's, prompt by prompt.
    pub difference: Estimate,
    /// Median time to the first token, in seconds.
    pub ttft_s: f64,
    /// Median over prompts of the first configuration's time to the first token by this one's.
    pub speed_up: Estimate,
    /// Mean share of the cache that was kept.
    pub cache_kept: f64,
}

/// An answer beside the first configuration's to the same prompt.
struct Pair<'a> {
    it: &'a ResultLine,
    first: &'a ResultLine,
}

impl Summary {
    /// Counts. `only`, if not empty, names the configurations to compare, the first of them being what others are compared with.
    pub fn new(results: &Results, only: &[String]) -> Summary {
        let mut names: Vec<&str> = only.iter().map(String::as_str).collect();
        if names.is_empty() {
            for line in &results.lines {
                if !names.contains(&line.config.as_str()) {
                    names.push(&line.config);
                }
            }
        }
        // An answer that stands there twice (it cannot, save by hand) counts once.
        let mut answers: BTreeMap<usize, HashMap<&str, &ResultLine>> = BTreeMap::new();
        for line in results.lines.iter().filter(|l| names.contains(&l.config.as_str())) {
            answers.entry(line.line).or_default().entry(&line.config).or_insert(line);
        }
        let complete: Vec<&HashMap<&str, &ResultLine>> =
            answers.values().filter(|of_prompt| of_prompt.len() == names.len()).collect();
        let firsts: Vec<&ResultLine> = complete.iter().map(|of_prompt| of_prompt[names[0]]).collect();
        let tasks: BTreeSet<&str> = firsts.iter().map(|l| l.task.as_str()).collect();
        let lengths: BTreeSet<Option<usize>> = firsts.iter().map(|l| l.length).collect();

        let configs = names.iter().map(|name| {
            let pairs: Vec<Pair> = complete.iter().map(|p| Pair { it: p[name], first: p[names[0]] }).collect();
            let cell = |task: Option<&str>, length: Option<Option<usize>>| {
                Cell::new(
                    pairs
                        .iter()
                        .filter(|p| task.is_none_or(|t| p.it.task == t) && length.is_none_or(|l| p.it.length == l)),
                )
            };
            ConfigSummary {
                name: (*name).to_owned(),
                settings: pairs.first().map_or_else(String::new, |p| p.it.settings.clone()),
                all: cell(None, None),
                by_task: tasks.iter().map(|t| cell(Some(t), None)).collect(),
                by_length: lengths.iter().map(|l| cell(None, Some(*l))).collect(),
                by_length_and_task: lengths
                    .iter()
                    .map(|l| tasks.iter().map(|t| cell(Some(t), Some(*l))).collect())
                    .collect(),
            }
        });
        Summary {
            model: results.header.model.clone(),
            device: results.header.device.clone(),
            n_prompts: complete.len(),
            incomplete: answers.len() - complete.len(),
            configs: configs.collect(),
            tasks: tasks.iter().map(|t| (*t).to_owned()).collect(),
            lengths: lengths.iter().copied().collect(),
        }
    }
}

impl Cell {
    fn new<'p>(pairs: impl Iterator<Item = &'p Pair<'p>>) -> Cell {
        let mut by_task: BTreeMap<&str, Vec<&Pair>> = BTreeMap::new();
        for pair in pairs {
            by_task.entry(&pair.it.task).or_default().push(pair);
        }
        let strata = |value: &dyn Fn(&Pair) -> f64| -> Vec<Vec<f64>> {
            by_task.values().map(|pairs| pairs.iter().map(|p| value(p)).collect()).collect()
        };
        let all = |value: &dyn Fn(&Pair) -> f64| strata(value).concat();
        Cell {
            n: by_task.values().map(Vec::len).sum(),
            score: mean_of_means(&strata(&|p| p.it.score)),
            difference: mean_of_means(&strata(&|p| p.it.score - p.first.score)),
            ttft_s: median(&all(&|p| p.it.ttft_s)),
            speed_up: median_of_all(&strata(&|p| p.first.ttft_s / p.it.ttft_s.max(f64::MIN_POSITIVE))),
            cache_kept: mean(&all(&|p| p.it.cache_kept)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::results::Header;
    use super::*;

    fn line(n: usize, task: &str, config: &str, score: f64, ttft_s: f64) -> ResultLine {
        ResultLine {
            line: n,
            id: None,
            hash: String::new(),
            task: task.into(),
            length: None,
            n_tokens: 10,
            config: config.into(),
            settings: String::new(),
            score,
            ttft_s,
            cache_kept: 0.5,
            n_generated: 1,
            text: None,
            beside_dense: None,
        }
    }

    fn summary(lines: Vec<ResultLine>, only: &[&str]) -> Summary {
        let header = Header::new("m".into(), "f".into(), 0, "CPU".into(), "1".into());
        let only: Vec<String> = only.iter().map(|n| (*n).to_owned()).collect();
        Summary::new(&Results { header, lines }, &only)
    }

    #[test]
    fn tasks_count_alike_and_prompts_are_paired() {
        let mut lines = Vec::new();
        for n in 0..9 {
            // Task a: three prompts, all lost by skipping. Task b: six prompts, half of them found by both.
            let (task, dense) = if n < 3 { ("a", 1.0) } else { ("b", f64::from(n as u32 % 2)) };
            let skip = if n < 3 { 0.0 } else { dense };
            lines.push(line(n, task, "dense", dense, 2.0 + n as f64));
            lines.push(line(n, task, "skip", skip, (2.0 + n as f64) / 2.0));
        }
        lines.push(line(9, "b", "dense", 1.0, 1.0));
        let s = summary(lines.clone(), &[]);
        assert_eq!((s.n_prompts, s.incomplete, s.tasks.len()), (9, 1, 2));
        let [dense, skip] = s.configs.as_slice() else { panic!("{s:?}") };
        assert_eq!((dense.all.score.value, skip.all.score.value), (0.75, 0.25));
        // Paired: each prompt of a task differs alike, so the difference is certain although the scores are not.
        assert_eq!(skip.all.difference, Estimate { value: -0.5, interval: Some([-0.5, -0.5]) });
        let [low, high] = skip.all.score.interval.unwrap();
        assert!(low < high);
        assert_eq!(skip.all.speed_up, Estimate { value: 2.0, interval: Some([2.0, 2.0]) });
        assert_eq!(dense.all.difference.value, 0.0);
        assert_eq!((skip.by_task[0].n, skip.by_task[1].n, skip.by_task[1].difference.value), (3, 6, 0.0));
        let turned = summary(lines, &["skip", "dense"]);
        assert_eq!((turned.configs[1].all.difference.value, turned.configs[1].all.speed_up.value), (0.5, 0.5));
    }

    #[test]
    fn nothing_in_common_is_no_crash() {
        let s = summary(vec![line(1, "a", "dense", 1.0, 1.0), line(2, "a", "skip", 1.0, 1.0)], &[]);
        assert_eq!((s.n_prompts, s.incomplete, s.configs.len()), (0, 2, 2));
    }
}
