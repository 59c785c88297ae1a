//! The trial of schedules on prompts: a session that asks, and the file of results that remembers.

use std::collections::{BTreeMap, HashMap};
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use super::beside_dense;
use super::halving::{Round, Standing, Trial};
use super::space::Candidate;
use crate::eval::error::EvalError;
use crate::eval::results::{BesideDense, Nearness, ResultLine, ResultsWriter};
use crate::eval::statistics::{mean, mean_of_means, median};
use crate::eval::tasks::{self, Task, TaskAnswer};
use crate::method::{Dense, Method};
use crate::session::prefill::PrefillProgress;
use crate::tokenizer::ChatPrompt;
use crate::{Result, Session};

/// Name of the configuration that leaves nothing out.
pub const DENSE: &str = "dense";

/// A prompt with its tokens.
#[derive(Clone, Debug)]
pub struct Asked {
    /// What is to be answered.
    pub task: Task,
    /// Its tokens.
    pub prompt: ChatPrompt,
}

/// Is told what a trial does while it goes on.
pub trait Watcher {
    /// A prefill: the configuration's name and where it is. Breaking ends the trial with [`crate::Error::Interrupted`].
    fn prefill(&mut self, task: &Task, config: &str, progress: PrefillProgress) -> ControlFlow<()>;

    /// Is told of an answer that was measured.
    fn answered(&mut self, line: &ResultLine);

    /// A round of the search is over.
    fn round_done(&mut self, round: &Round);
}

/// Measures candidates with a session, on the prompts of a search.
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
    /// Is told what happens.
    pub watcher: &'a mut dyn Watcher,
}

/// Results that are kept in a file and in memory.
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
    /// both, those of before included; the times are such as were measured one directly after the other.
    ///
    /// # Errors
    /// As [`tasks::ask`]; the file cannot be written.
    pub fn report(&mut self, candidate: usize, prompts: &[Asked]) -> Result<Vec<ResultLine>> {
        let candidate = &self.candidates[candidate];
        let mut lines = Vec::new();
        for (i, asked) in prompts.iter().enumerate() {
            let Asked { task, .. } = asked;
            if self.known.get(task, &candidate.label).is_none_or(|l| l.beside_dense.is_none()) {
                // Whatever the first of two runs has to bear falls upon each in turn.
                let (dense, answer) = if i % 2 == 0 {
                    let dense = self.ask(asked, None)?;
                    (dense, self.ask(asked, Some(candidate))?)
                } else {
                    let answer = self.ask(asked, Some(candidate))?;
                    (self.ask(asked, None)?, answer)
                };
                let beside = BesideDense { dense_ttft_s: dense.ttft_s, nearness: None };
                self.keep(asked, None, dense, None)?;
                self.keep(asked, Some(candidate), answer, Some(beside))?;
            }
            if let (Some(dense), Some(it)) = (self.known.get(task, DENSE), self.known.get(task, &candidate.label)) {
                let in_turn = it.beside_dense.map_or(dense.ttft_s, |b| b.dense_ttft_s);
                lines.extend([ResultLine { ttft_s: in_turn, ..dense.clone() }, it.clone()]);
            }
        }
        Ok(lines)
    }

    fn ask(&mut self, Asked { task, prompt }: &Asked, config: Option<&Candidate>) -> Result<TaskAnswer> {
        self.session.set_method(method(config))?;
        let (watcher, name) = (&mut *self.watcher, config.map_or(DENSE, |c| &c.label));
        tasks::ask(&mut self.session, task, prompt, &mut |p| watcher.prefill(task, name, p))
    }

    /// Writes a result down; dense's only the first time.
    fn keep(
        &mut self,
        Asked { task, prompt }: &Asked,
        config: Option<&Candidate>,
        answer: TaskAnswer,
        beside_dense: Option<BesideDense>,
    ) -> Result<()> {
        if config.is_none() && self.known.get(task, DENSE).is_some() {
            return Ok(());
        }
        let name = config.map_or(DENSE, |c| &c.label);
        let line = ResultLine::new(task, prompt.tokens.len(), name, (self.settings)(config), &answer);
        let line = ResultLine { beside_dense, ..line };
        self.watcher.answered(&line);
        self.known.add(line)
    }

    /// Dense answers a prompt, then those candidates that have not yet, each time beginning with another one.
    fn measure_prompt(&mut self, candidates: &[usize], number: usize) -> Result<()> {
        let (all, prompts) = (self.candidates, self.prompts);
        let asked = &prompts[number];
        let Asked { task, prompt } = asked;
        let mut todo: Vec<&Candidate> = candidates.iter().map(|&c| &all[c]).collect();
        todo.rotate_left(number % candidates.len().max(1));
        // Of one that was asked otherwise, to be reported or by `eval tasks`, the nearness is not known.
        todo.retain(|c| self.known.get(task, &c.label).and_then(nearness).is_none());
        if todo.is_empty() {
            return Ok(());
        }
        self.session.set_method(Arc::new(Dense))?;
        let watcher = &mut *self.watcher;
        let dense = beside_dense::dense(&mut self.session, task, prompt, &mut |p| watcher.prefill(task, DENSE, p))?;
        self.keep(asked, None, dense.answer.clone(), None)?;
        for candidate in todo {
            self.session.set_method(method(Some(candidate)))?;
            let watcher = &mut *self.watcher;
            let (answer, nearness) = beside_dense::beside(&mut self.session, task, prompt, &dense, &mut |p| {
                watcher.prefill(task, &candidate.label, p)
            })?;
            let beside = BesideDense { dense_ttft_s: dense.answer.ttft_s, nearness: Some(nearness) };
            self.keep(asked, Some(candidate), answer, Some(beside))?;
        }
        Ok(())
    }
}

fn nearness(line: &ResultLine) -> Option<Nearness> {
    line.beside_dense.and_then(|b| b.nearness)
}

/// Dense's time to the first token by that of a configuration that was measured with it.
fn speed_up(line: &ResultLine) -> Option<f64> {
    line.beside_dense.map(|b| b.dense_ttft_s / line.ttft_s.max(f64::MIN_POSITIVE))
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
        let loss = |(it, dense): &(&ResultLine, &ResultLine)| 100.0 * (dense.score - it.score);
        let losses: Vec<Vec<f64>> = by_task.values().map(|pairs| pairs.iter().map(loss).collect()).collect();
        let all = |value: &dyn Fn(&ResultLine) -> Option<f64>| -> Vec<f64> {
            by_task.values().flatten().filter_map(|(it, _)| value(it)).collect()
        };
        Standing {
            loss: mean_of_means(&losses),
            departure: mean(&all(&|l| nearness(l).map(|n| 1.0 - n.agreement))),
            kl: mean(&all(&|l| nearness(l).map(|n| n.kl))),
            speed_up: median(&all(&speed_up)),
        }
    }

    fn round_done(&mut self, round: &Round) {
        self.watcher.round_done(round);
    }
}
