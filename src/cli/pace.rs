//! How fast a measurement of many answers goes on, and when it will be done.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use super::note;
use crate::report::seconds;

/// Time between two notes where standard error is no terminal.
const NOTE_EVERY: Duration = Duration::from_secs(30);

/// How fast it goes.
pub(super) struct Pace {
    start: Instant,
    noted: Instant,
    done: usize,
    todo: usize,
    /// Before numbers that are upper bounds.
    bound: &'static str,
}

impl Pace {
    /// So many answers are to come.
    pub(super) fn of(todo: usize) -> Pace {
        let now = Instant::now();
        Pace { start: now, noted: now, done: 0, todo, bound: "" }
    }

    /// No more than so many answers are to come.
    pub(super) fn of_at_most(todo: usize) -> Pace {
        Pace { bound: "at most ", ..Pace::of(todo) }
    }

    /// `answer 3 of 8`: the one under way.
    pub(super) fn under_way(&self) -> String {
        format!("answer {} of {}{}", self.done + 1, self.bound, self.todo)
    }

    /// Time left, as far as it is known.
    pub(super) fn left(&self) -> String {
        if self.done == 0 {
            return "time left unknown".into();
        }
        let each = self.start.elapsed().as_secs_f64() / self.done as f64;
        format!("{}{} left", self.bound, seconds(each * self.todo.saturating_sub(self.done) as f64))
    }

    /// One more is done, which is called `what`; now and then that is said where there is no progress line.
    pub(super) fn step(&mut self, what: &str) {
        self.done += 1;
        if !std::io::stderr().is_terminal() && self.noted.elapsed() >= NOTE_EVERY {
            self.noted = Instant::now();
            note(&format!("{} of {}{} answers ({what}), {}", self.done, self.bound, self.todo, self.left()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_is_that_of_what_is_not_done() {
        let mut pace = Pace::of_at_most(4);
        assert_eq!((pace.under_way(), pace.left()), ("answer 1 of at most 4".into(), "time left unknown".into()));
        pace.start = Instant::now() - Duration::from_secs(60);
        pace.step("one");
        pace.step("two");
        assert_eq!(pace.under_way(), "answer 3 of at most 4");
        let left = pace.left();
        assert_eq!(left, format!("at most {} left", seconds(60.0)));
        // More than was thought.
        (0..9).for_each(|_| pace.step("more"));
        assert_eq!(pace.left(), format!("at most {} left", seconds(0.0)));
        assert_eq!(Pace::of(3).under_way(), "answer 1 of 3");
    }
}
