//! What the user sees while a search goes on.

use std::ops::ControlFlow;

use spts::eval::results::ResultLine;
use spts::eval::tasks::Task;
use spts::session::prefill::PrefillProgress;
use spts::tune::halving::Round;
use spts::tune::trial::Watcher;

use crate::cli::eval::tables::spread;
use crate::cli::note;
use crate::cli::pace::Pace;
use crate::report::Progress;

/// What the user sees meanwhile.
pub(super) struct Screen {
    pub(super) progress: Progress,
    pace: Pace,
    max_loss: f64,
    labels: Vec<String>,
}

impl Screen {
    pub(super) fn new(most: usize, max_loss: f64, labels: Vec<String>) -> Screen {
        Screen { progress: Progress::new(), pace: Pace::of_at_most(most), max_loss, labels }
    }
}

impl Watcher for Screen {
    fn prefill(&mut self, task: &Task, config: &str, p: PrefillProgress) -> ControlFlow<()> {
        let at = format!("{}, {}, {config}", self.pace.under_way(), task.task);
        let line = format!("{at}, layer {}/{}, {}", p.layer + 1, p.n_layer, self.pace.left());
        self.progress.note(&line);
        ControlFlow::Continue(())
    }

    fn answered(&mut self, line: &ResultLine) {
        self.pace.step(&format!("{}, {}", line.task, line.config));
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
