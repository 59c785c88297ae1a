//! What the user sees while a search goes on.

use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use spts::eval::results::ResultLine;
use spts::eval::tasks::Task;
use spts::session::prefill::PrefillProgress;
use spts::tune::halving::Round;
use spts::tune::trial::Watcher;

use crate::cli::eval::tables::spread;
use crate::cli::note;
use crate::report::{Progress, seconds};

/// Time between two notes where standard error is no terminal.
const NOTE_EVERY: Duration = Duration::from_secs(30);

/// What the user sees meanwhile.
pub(super) struct Screen {
    pub(super) progress: Progress,
    start: Instant,
    noted: Instant,
    done: usize,
    most: usize,
    max_loss: f64,
    labels: Vec<String>,
}

impl Screen {
    pub(super) fn new(most: usize, max_loss: f64, labels: Vec<String>) -> Screen {
        let now = Instant::now();
        Screen { progress: Progress::new(), start: now, noted: now, done: 0, most, max_loss, labels }
    }

    fn left(&self) -> String {
        if self.done == 0 {
            return "time left unknown".into();
        }
        let each = self.start.elapsed().as_secs_f64() / self.done as f64;
        format!("at most {} left", seconds(each * self.most.saturating_sub(self.done) as f64))
    }
}

impl Watcher for Screen {
    fn prefill(&mut self, task: &Task, config: &str, p: PrefillProgress) -> ControlFlow<()> {
        let at = format!("answer {} of at most {}, {}, {config}", self.done + 1, self.most, task.task);
        let line = format!("{at}, layer {}/{}, {}", p.layer + 1, p.n_layer, self.left());
        self.progress.note(&line);
        ControlFlow::Continue(())
    }

    fn answered(&mut self, _: &ResultLine) {
        self.done += 1;
        if !std::io::stderr().is_terminal() && self.noted.elapsed() >= NOTE_EVERY {
            self.noted = Instant::now();
            note(&format!("{} of at most {} answers, {}", self.done, self.most, self.left()));
        }
    }

    fn round_done(&mut self, round: &Round) {
        self.progress.clear();
        let kept = round.standings.iter().filter(|(c, _)| round.kept.contains(c));
        let best = kept.min_by(|(_, a), (_, b)| b.speed_up.total_cmp(&a.speed_up));
        let best = best.map_or(
            format!("none can still be faster than dense and within --max-loss {}", self.max_loss),
            |(c, s)| {
                let loss = spread(&s.loss, 1.0, 1);
                format!("the fastest of them {}, {:.2} times as fast, loss {loss}", self.labels[*c], s.speed_up)
            },
        );
        let (n, prompts, kept) = (round.standings.len(), round.n_prompts, round.kept.len());
        note(&format!("{n} schedules after {prompts} prompts: {kept} go on, {best}"));
    }
}
