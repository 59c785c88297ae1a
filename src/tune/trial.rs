//! The trial of schedules on prompts: a session that asks, and the file of results that remembers.

use std::collections::{BTreeMap, HashMap};
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use super::beside_dense;
use super::halving::{Round, Standing, Trial};
use super::space::Candidate;
use crate::eval::EvalError;
use crate::eval::results::{BesideDense, ResultLine, ResultsWriter};
use crate::eval::statistics::{mean, mean_of_means, median};
use crate::eval::tasks::{self, Task, TaskAnswer};
use crate::method::{Dense, Method};
use crate::session::prefill::PrefillProgress;
use crate::tokenizer::ChatPrompt;
use crate::{Result, Session};

/// Name of the configuration that leaves nothing out.
pub const DENSE: &str = "dense";

/// A prompt, encoded.
#[derive(Clone, Debug)]
pub struct Asked {
    /// What is to be answered.
    pub task: Task,
    /// Its tokens.
    pub prompt: ChatPrompt,
}

/// Sees what goes on.
pub trait Watcher {
    /// A prefill: the configuration's name and where it is. Breaking ends the trial with [`crate::Error::Interrupted`].
    fn prefill(&mut self, task: &Task, config: &str, progress: PrefillProgress) -> ControlFlow<()>;

    /// An answer was measured.
    fn answered(&mut self, line: &ResultLine);

    /// A round of the search is over.
    fn round_done(&mut self, round: &Round);
}

/// Candidates on the prompts to choose by.
pub struct SessionTrial<'a> {
    /// Where everything runs; its method changes from run to run.
    pub session: Session,
    /// The schedules.
    pub candidates: &'a [Candidate],
    /// The prompts to choose by.
    pub prompts: &'a [Asked],
    /// All settings of a configuration, the candidate or dense, for its results.
    pub settings: &'a dyn Fn(Option<&Candidate>) -> String,
    /// What was measured, by line of the data and name of the configuration.
    pub known: Known,
    /// Who looks on.
    pub watcher: &'a mut dyn Watcher,
}

/// Results in a file, and at hand.
pub struct Known {
    writer: ResultsWriter,
    lines: HashMap<(usize, String), ResultLine>,
}

impl Known {
    /// Goes on with the results that a file holds.
    pub fn new(writer: ResultsWriter, lines: Vec<ResultLine>) -> Known {
        let key = |l: &ResultLine| (l.line, l.config.clone());
        Known { writer, lines: lines.into_iter().map(|l| (key(&l), l)).collect() }
    }

    /// Results at hand.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether nothing was measured yet.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// The result of a prompt under a configuration.
    pub fn get(&self, task: &Task, config: &str) -> Option<&ResultLine> {
        self.lines.get(&(task.line, config.to_owned()))
    }

    fn add(&mut self, line: ResultLine) -> Result<()> {
        self.writer.add(&line).map_err(EvalError::from)?;
        self.lines.insert((line.line, line.config.clone()), line);
        Ok(())
    }
}

impl SessionTrial<'_> {
    /// Dense's score on the prompts to choose by, from 0 to 1: the mean over tasks.
    pub fn score_of_dense(&self) -> f64 {
        let mut by_task: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for line in self.prompts.iter().filter_map(|p| self.known.get(&p.task, DENSE)) {
            by_task.entry(&line.task).or_default().push(line.score);
        }
        mean_of_means(&by_task.into_values().collect::<Vec<_>>()).value
    }

    /// Asks prompts that had no part in the search, dense and by a candidate in turns, as `eval tasks` does. Returns the results of
    /// both, those of before included.
    ///
    /// # Errors
    /// As [`tasks::ask`]; the file cannot be written.
    pub fn report(&mut self, candidate: usize, prompts: &[Asked]) -> Result<Vec<ResultLine>> {
        let candidates = self.candidates;
        let configs = [None, Some(&candidates[candidate])];
        let mut lines = Vec::new();
        for (i, Asked { task, prompt }) in prompts.iter().enumerate() {
            for c in 0..configs.len() {
                let config = configs[(i + c) % configs.len()];
                let name = config.map_or(DENSE, |c| &c.label);
                if self.known.get(task, name).is_none() {
                    self.session.set_method(method(config))?;
                    let watcher = &mut *self.watcher;
                    let answer = tasks::ask(&mut self.session, task, prompt, &mut |p| watcher.prefill(task, name, p))?;
                    self.keep(task, prompt, config, answer, None)?;
                }
            }
            lines.extend([DENSE, &candidates[candidate].label].iter().filter_map(|c| self.known.get(task, c)).cloned());
        }
        Ok(lines)
    }

    fn keep(
        &mut self,
        task: &Task,
        prompt: &ChatPrompt,
        config: Option<&Candidate>,
        answer: TaskAnswer,
        beside_dense: Option<BesideDense>,
    ) -> Result<()> {
        let line = ResultLine {
            line: task.line,
            id: task.id.clone(),
            hash: format!("{:016x}", task.hash),
            task: task.task.clone(),
            length: task.length,
            n_tokens: prompt.tokens.len(),
            config: config.map_or(DENSE, |c| &c.label).to_owned(),
            settings: (self.settings)(config),
            score: answer.score,
            ttft_s: answer.ttft_s,
            cache_kept: answer.cache_kept,
            n_generated: answer.n_generated,
            text: None,
            beside_dense,
        };
        self.watcher.answered(&line);
        self.known.add(line)
    }

    /// Dense answers a prompt, then those candidates that have not yet, each time beginning with another one.
    fn measure_prompt(&mut self, candidates: &[usize], number: usize) -> Result<()> {
        let (all, prompts) = (self.candidates, self.prompts);
        let Asked { task, prompt } = &prompts[number];
        let mut todo: Vec<&Candidate> = candidates.iter().map(|&c| &all[c]).collect();
        todo.rotate_left(number % candidates.len().max(1));
        todo.retain(|c| self.known.get(task, &c.label).is_none());
        if todo.is_empty() {
            return Ok(());
        }
        self.session.set_method(Arc::new(Dense))?;
        let watcher = &mut *self.watcher;
        let dense = beside_dense::dense(&mut self.session, task, prompt, &mut |p| watcher.prefill(task, DENSE, p))?;
        if self.known.get(task, DENSE).is_none() {
            self.keep(task, prompt, None, dense.answer.clone(), None)?;
        }
        for candidate in todo {
            self.session.set_method(method(Some(candidate)))?;
            let watcher = &mut *self.watcher;
            let (answer, beside) = beside_dense::beside(&mut self.session, task, prompt, &dense, &mut |p| {
                watcher.prefill(task, &candidate.label, p)
            })?;
            self.keep(task, prompt, Some(candidate), answer, Some(beside))?;
        }
        Ok(())
    }
}

fn method(config: Option<&Candidate>) -> Arc<dyn Method> {
    config.map_or_else(|| Arc::new(Dense) as Arc<dyn Method>, |c| c.schedule.clone().into())
}

impl Trial for SessionTrial<'_> {
    type Error = crate::Error;

    fn measure(&mut self, candidates: &[usize], prompts: Range<usize>) -> Result<()> {
        prompts.into_iter().try_for_each(|number| self.measure_prompt(candidates, number))
    }

    fn standing(&self, candidate: usize, n_prompts: usize) -> Standing {
        let label = &self.candidates[candidate].label;
        let mut by_task: BTreeMap<&str, Vec<(&ResultLine, &ResultLine)>> = BTreeMap::new();
        for Asked { task, .. } in &self.prompts[..n_prompts] {
            if let (Some(it), Some(dense)) = (self.known.get(task, label), self.known.get(task, DENSE)) {
                by_task.entry(&task.task).or_default().push((it, dense));
            }
        }
        let strata = |value: &dyn Fn(&ResultLine, &ResultLine) -> f64| -> Vec<Vec<f64>> {
            by_task.values().map(|pairs| pairs.iter().map(|(it, dense)| value(it, dense)).collect()).collect()
        };
        // Where another search, by another seed, has reported a prompt, there is none.
        let of_beside = |value: &dyn Fn(&BesideDense) -> f64| {
            let pairs = by_task.values().flatten();
            mean(&pairs.filter_map(|(it, _)| it.beside_dense.as_ref().map(value)).collect::<Vec<f64>>())
        };
        Standing {
            loss: mean_of_means(&strata(&|it, dense| 100.0 * (dense.score - it.score))),
            departure: of_beside(&|b| 1.0 - b.agreement),
            kl: of_beside(&|b| b.kl),
            speed_up: median(&strata(&|it, dense| dense.ttft_s / it.ttft_s.max(f64::MIN_POSITIVE)).concat()),
        }
    }

    fn round_done(&mut self, round: &Round) {
        self.watcher.round_done(round);
    }
}
