//! What a search has to say in the end: what was tried, what was found and what it is worth, or why nothing was.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use spts::eval::summary::{Cell, Summary};
use spts::method::spts::schedule_file::path_beside;
use spts::tune::halving::{Search, Standing};
use spts::tune::space::Candidate;

use super::{MARK, TuneArgs};
use crate::cli::eval::tables::{self, Format, Table, spread};
use crate::cli::failure::Failure;
use crate::cli::{bench, fit, note, version};
use crate::report::grouped;

/// Where dense has less to lose than the bound, any schedule stays within it.
pub(super) fn check_dense(args: &TuneArgs, score: f64, journal: &Path) -> Result<(), Failure> {
    if args.has_something_to_lose(score) {
        return Ok(());
    }
    Err(Failure::Failed(format!(
        "{}: dense itself scores {:.1} of 100 on the prompts searched by, so that no schedule can lose more than --max-loss {}: give prompts that this model can answer (eval tasks --keep-text shows what it says), or a smaller bound; the results are in {}",
        args.source().display(),
        100.0 * score,
        args.max_loss,
        journal.display()
    )))
}

/// No schedule is within the bound: which is nearest.
pub(super) fn nothing_found(args: &TuneArgs, all: &[Candidate], search: &Search, journal: &Path) -> Failure {
    let last = search.rounds.last();
    let nearest = last.and_then(|r| r.standings.iter().find(|(c, _)| *c == search.nearest));
    let nearest = nearest.map_or(String::new(), |(c, s)| {
        format!(
            "; the nearest, {}, loses {} points on {} prompts and is {:.2} times as fast",
            all[*c].label,
            spread(&s.loss, 1.0, 1),
            last.map_or(0, |r| r.n_prompts),
            s.speed_up
        )
    });
    Failure::Failed(format!(
        "no schedule of {} is faster than dense and within --max-loss {}{nearest}; nothing was written but the results in {}, which a search with another bound goes on from",
        all.len(),
        args.max_loss,
        journal.display()
    ))
}

/// A schedule was found.
pub(super) struct Outcome<'a> {
    pub(super) args: &'a TuneArgs,
    /// The schedule that the search started from.
    pub(super) base: &'a str,
    pub(super) candidates: &'a [Candidate],
    pub(super) found: usize,
    /// Of dense and the schedule found, on the prompts to report.
    pub(super) summary: &'a Summary,
}

impl Outcome<'_> {
    fn label(&self) -> &str {
        &self.candidates[self.found].label
    }

    /// The reported figures of dense and of the schedule.
    fn cells(&self) -> Result<(&Cell, &Cell), Failure> {
        match self.summary.configs.as_slice() {
            [dense, it] => Ok((&dense.all, &it.all)),
            _ => Err(Failure::Failed("internal: the results to report are not of two configurations".into())),
        }
    }

    /// Whether the other half of the prompts contradicts what the search has found.
    pub(super) fn check(&self, journal: &Path) -> Result<(), Failure> {
        let (_, it) = self.cells()?;
        let loss = it.difference.times(-100.0);
        let on = format!("on the {} prompts that had no part in the search", self.summary.n_prompts);
        let fails = |what: String| {
            Err(Failure::Failed(format!(
                "{}, which the search has found, {what} {on}; nothing was written but the results in {}: give more prompts, or another --max-loss",
                self.label(),
                journal.display()
            )))
        };
        if loss.interval.is_some_and(|[low, _]| low > self.args.max_loss) {
            return fails(format!(
                "loses {} points, more than --max-loss {},",
                spread(&loss, 1.0, 1),
                self.args.max_loss
            ));
        }
        if it.speed_up.value <= 1.0 {
            return fails(format!("is no faster than dense ({:.2} times as fast)", it.speed_up.value));
        }
        if loss.value > self.args.max_loss {
            note(&format!(
                "{on} the schedule loses {} points: that may be chance, but more prompts would tell",
                spread(&loss, 1.0, 1)
            ));
        }
        Ok(())
    }

    /// The head of the schedule's file.
    pub(super) fn comments(&self) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs());
        let (args, s) = (self.args, self.summary);
        let mut lines = vec![
            format!("{MARK}{} on {} for {} on {}.", version(), bench::date(now), s.model, s.device),
            format!(
                "# {} of {} schedules around {}, on half of the prompts of {} (seed {}), within --max-loss {}.",
                self.label(),
                self.candidates.len(),
                self.base,
                args.source().display(),
                args.seed,
                args.max_loss
            ),
        ];
        if let Ok((dense, it)) = self.cells() {
            lines.push(format!(
                "# On the other {}: score {} dense, {} with this, a difference of {} points; first token {} times as fast, {:.1} % of the cache kept.",
                s.n_prompts,
                spread(&dense.score, 100.0, 1),
                spread(&it.score, 100.0, 1),
                spread(&it.difference, 100.0, 1),
                spread(&it.speed_up, 1.0, 2),
                100.0 * it.cache_kept
            ));
        }
        // Names of files and models do not break out of their line.
        lines.iter().map(|l| fit(&l.replace(['\n', '\r'], " ")) + "\n").collect()
    }

    pub(super) fn text(&self, out: &Path) -> String {
        let text = format!(
            "\nFound: {}. On the prompts that had no part in the search:\n\n{}",
            self.label(),
            tables::report(self.summary, Format::Text)
        );
        let use_it = match *out == path_beside(&self.args.model) {
            true => "runs of this model take it from there; --schedule default goes without it".to_owned(),
            false => format!("--schedule {} takes it", out.display()),
        };
        text + &format!("\nWritten to {}: {use_it}.\n", out.display())
    }
}

/// The table of what was tried: all candidates by what the last round in which each took part says, those that got farther first.
pub(super) fn tried(args: &TuneArgs, all: &[Candidate], n_searched: usize, search: &Search) -> String {
    let mut last: BTreeMap<usize, (usize, Standing, &str)> = BTreeMap::new();
    for (i, round) in search.rounds.iter().enumerate() {
        for (c, standing) in &round.standings {
            let fate = match (search.found == Some(*c), round.kept.contains(c), i + 1 == search.rounds.len()) {
                (true, _, true) => "found",
                (_, true, true) => "within the bound",
                _ => "",
            };
            last.insert(*c, (round.n_prompts, *standing, fate));
        }
    }
    let mut rows: Vec<_> = last.into_iter().collect();
    rows.sort_by(|(_, (n, a, _)), (_, (m, b, _))| m.cmp(n).then(b.speed_up.total_cmp(&a.speed_up)));
    let header = ["schedule", "prompts", "loss", "tokens unlike dense's", "KL", "speed-up", ""].map(str::to_owned);
    let rows = rows.into_iter().map(|(c, (n, s, fate))| {
        vec![
            all[c].label.clone(),
            grouped(n),
            spread(&s.loss, 1.0, 1),
            format!("{:.1} %", 100.0 * s.departure),
            format!("{:.4}", s.kl),
            format!("{:.2}", s.speed_up),
            fate.to_owned(),
        ]
    });
    let title = format!(
        "{} schedules on {} prompts (seed {}). Loss: points of score against dense.",
        all.len(),
        grouped(n_searched),
        args.seed
    );
    let mut text = String::new();
    Table { title, header: header.to_vec(), rows: rows.collect() }.write(Format::Text, &mut text);
    text
}
