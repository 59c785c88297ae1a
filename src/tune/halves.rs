//! Two halves of the prompts: one to choose by, one to report.

use std::collections::BTreeMap;

use crate::eval::tasks::Task;
use crate::hash::fnv1a;
use crate::random::SplitMix64;

/// Divides prompts into those to choose by and those to report. Of each task and length either half gets as many, save one
/// where the number is odd: these go to the halves in turns. Which prompt goes where, and the order in each half, is drawn by
/// `seed`; in both halves the tasks take turns, so that the first prompts are of all kinds. The prompts' own order does not
/// matter, as long as their lines in the data are the same.
pub fn halves<T>(prompts: Vec<T>, task: impl Fn(&T) -> &Task, seed: u64) -> (Vec<T>, Vec<T>) {
    let mut strata: BTreeMap<(String, Option<usize>), Vec<T>> = BTreeMap::new();
    for prompt in prompts {
        let key = (task(&prompt).task.clone(), task(&prompt).length);
        strata.entry(key).or_default().push(prompt);
    }
    let mut halves: [Vec<(usize, T)>; 2] = [Vec::new(), Vec::new()];
    // The half that gets the first prompt of the next task, and so the one that is left over.
    let mut first = 0;
    for ((name, length), mut of_task) in strata {
        of_task.sort_by_key(|p| task(p).line);
        let mut random = SplitMix64(seed ^ fnv1a(name.as_bytes()) ^ length.unwrap_or(0) as u64);
        for i in (1..of_task.len()).rev() {
            of_task.swap(i, (random.uniform() * (i + 1) as f64) as usize);
        }
        let n = of_task.len();
        for (i, prompt) in of_task.into_iter().enumerate() {
            halves[(first + i) % 2].push((i / 2, prompt));
        }
        first = (first + n) % 2;
    }
    halves.each_mut().iter_mut().for_each(|half| half.sort_by_key(|(turn, _)| *turn));
    let [search, report] = halves.map(|half| half.into_iter().map(|(_, prompt)| prompt).collect());
    (search, report)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::eval::tasks::TaskData;

    fn data(names: &[&str]) -> Vec<Task> {
        let line = |name: &&str| {
            format!(r#"{{"task": "{name}", "prompt": "p", "answers": ["x"], "metric": "all", "n_predict": 3}}"#)
        };
        TaskData::parse(&names.iter().map(line).collect::<Vec<_>>().join("\n"), "d").unwrap().tasks
    }

    fn lines(tasks: &[Task]) -> Vec<usize> {
        tasks.iter().map(|t| t.line).collect()
    }

    #[test]
    fn every_task_is_in_both_halves() {
        let names = [["a"; 6].as_slice(), &["b"; 5], &["c"; 3]].concat();
        let (search, report) = halves(data(&names), |t| t, 1);
        assert_eq!((search.len(), report.len()), (7, 7));
        let of = |half: &[Task], name: &str| half.iter().filter(|t| t.task == name).count();
        for (name, n) in [("a", 6), ("b", 5), ("c", 3)] {
            assert_eq!(of(&search, name) + of(&report, name), n);
            assert!(of(&search, name).abs_diff(of(&report, name)) <= 1);
        }
        // Nothing twice, nothing lost, and each task's first comes before any task's second.
        assert_eq!([lines(&search), lines(&report)].concat().into_iter().collect::<HashSet<_>>().len(), 14);
        let first: HashSet<&str> = search[..3].iter().map(|t| t.task.as_str()).collect();
        assert_eq!(first.len(), 3);
    }

    #[test]
    fn the_seed_decides_and_the_order_does_not() {
        let tasks = data(&["a"; 20]);
        let (one, _) = halves(tasks.clone(), |t| t, 1);
        let (again, _) = halves(tasks.iter().rev().cloned().collect(), |t| t, 1);
        let (other, _) = halves(tasks, |t| t, 2);
        assert_eq!(lines(&one), lines(&again));
        assert_ne!(lines(&one), lines(&other));
        assert_ne!(lines(&one), (1..=20).step_by(2).collect::<Vec<_>>());
    }

    #[test]
    fn a_single_prompt_has_no_other_half() {
        let (search, report) = halves(data(&["a"]), |t| t, 1);
        assert_eq!((search.len(), report.len()), (1, 0));
        // Tasks with a prompt each take turns.
        let (search, report) = halves(data(&["a", "b", "c"]), |t| t, 1);
        assert_eq!((search.len(), report.len()), (2, 1));
    }
}
