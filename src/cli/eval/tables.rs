//! Results of tasks as tables, for a terminal or in Markdown.

use std::fmt::Write;

use spts::eval::statistics::Estimate;
use spts::eval::summary::{Cell, ConfigSummary, Summary};
use spts::printable::printable;

use crate::report::grouped;

/// How tables are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(in crate::cli) enum Format {
    /// Columns aligned with blanks
    Text,
    /// Tables in Markdown
    Markdown,
    /// One JSON object, with every interval
    Json,
}

/// Rows under a header; the first column is aligned to the left.
pub(in crate::cli) struct Table {
    pub(in crate::cli) title: String,
    pub(in crate::cli) header: Vec<String>,
    pub(in crate::cli) rows: Vec<Vec<String>>,
}

impl Table {
    /// Names in it come from files and may be anything.
    pub(in crate::cli) fn write(&self, format: Format, out: &mut String) {
        let shown = |row: &Vec<String>| row.iter().map(|cell| printable(cell)).collect::<Vec<_>>();
        let header = shown(&self.header);
        let rows: Vec<Vec<String>> = self.rows.iter().map(shown).collect();
        // Writing to a String cannot fail.
        let _ = writeln!(out, "\n{}\n", printable(&self.title));
        if format == Format::Markdown {
            let line = |cells: &[String]| {
                let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
                format!("| {} |", cells.join(" | "))
            };
            let rule: String = (0..header.len()).map(|i| if i == 0 { "|---|" } else { "---:|" }).collect();
            let _ = writeln!(out, "{}\n{rule}", line(&header));
            rows.iter().for_each(|row| out.push_str(&(line(row) + "\n")));
            return;
        }
        let lines = || std::iter::once(&header).chain(&rows);
        let widths: Vec<usize> =
            (0..header.len()).map(|i| lines().map(|r| r[i].chars().count()).max().unwrap_or(0)).collect();
        for row in lines() {
            let cells: Vec<String> = row
                .iter()
                .zip(&widths)
                .enumerate()
                .map(|(i, (cell, &w))| if i == 0 { format!("{cell:w$}") } else { format!("{cell:>w$}") })
                .collect();
            let _ = writeln!(out, "{}", cells.join("  ").trim_end());
        }
    }
}

/// The whole report as text.
pub(in crate::cli) fn report(s: &Summary, format: Format) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{} on {}, {} prompts of {} tasks",
        printable(&s.model),
        printable(&s.device),
        grouped(s.n_prompts),
        s.tasks.len()
    );
    if s.incomplete > 0 {
        let _ = writeln!(out, "left out, as not every configuration has answered them: {}", grouped(s.incomplete));
    }
    if s.n_prompts == 0 {
        return out;
    }
    overview("Score: mean of the tasks, in %. In brackets 95 % intervals.".into(), s, &|c| &c.all)
        .write(format, &mut out);
    let score = |cell: &Cell| format!("{:.1}", 100.0 * cell.score.value);
    let speed_up = |cell: &Cell| format!("{:.2}", cell.speed_up.value);
    let kept = |cell: &Cell| format!("{:.1}", 100.0 * cell.cache_kept);
    by_task("Scores by task, in %".into(), s, &|c| &c.by_task, &score).write(format, &mut out);
    by_task("Speed-up by task".into(), s, &|c| &c.by_task, &speed_up).write(format, &mut out);
    by_task("Cache kept by task, in %".into(), s, &|c| &c.by_task, &kept).write(format, &mut out);
    if s.lengths.len() > 1 {
        for (i, length) in s.lengths.iter().enumerate() {
            let name = length.map_or("no length given".into(), |n| format!("{} tokens", grouped(n)));
            overview(format!("Prompts of {name}"), s, &|c| &c.by_length[i]).write(format, &mut out);
            by_task(format!("Scores by task, {name}"), s, &|c| &c.by_length_and_task[i], &score)
                .write(format, &mut out);
        }
    }
    out
}

fn overview(title: String, s: &Summary, of: &dyn Fn(&ConfigSummary) -> &Cell) -> Table {
    let header = ["configuration", "prompts", "score", "against the first", "TTFT, ms", "speed-up", "cache kept"];
    let rows = s.configs.iter().enumerate().map(|(i, c)| {
        let cell = of(c);
        let first = i == 0;
        let against =
            |e: &Estimate, unit: f64, digits: usize| if first { String::new() } else { spread(e, unit, digits) };
        vec![
            c.name.clone(),
            grouped(cell.n),
            spread(&cell.score, 100.0, 1),
            against(&cell.difference, 100.0, 1),
            format!("{:.0}", 1e3 * cell.ttft_s),
            against(&cell.speed_up, 1.0, 2),
            format!("{:.1} %", 100.0 * cell.cache_kept),
        ]
    });
    Table { title, header: header.map(str::to_owned).to_vec(), rows: rows.collect() }
}

/// One value of every task's prompts.
fn by_task(
    title: String,
    s: &Summary,
    of: &dyn Fn(&ConfigSummary) -> &Vec<Cell>,
    value: &dyn Fn(&Cell) -> String,
) -> Table {
    let header = std::iter::once("configuration".to_owned()).chain(s.tasks.iter().cloned()).collect();
    let rows = s.configs.iter().map(|c| {
        let values = of(c).iter().map(|cell| if cell.n == 0 { "-".into() } else { value(cell) });
        std::iter::once(c.name.clone()).chain(values).collect()
    });
    Table { title, header, rows: rows.collect() }
}

/// `64.6 [60.1, 68.8]`.
pub(in crate::cli) fn spread(e: &Estimate, unit: f64, digits: usize) -> String {
    let number = |x: f64| format!("{:.digits$}", unit * x);
    match e.interval {
        Some([low, high]) => format!("{} [{}, {}]", number(e.value), number(low), number(high)),
        None => number(e.value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_in_both_formats() {
        let row = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        let table = Table { title: "T".into(), header: row(["name", "n"]), rows: vec![row(["a", "10"])] };
        let written = |format| {
            let mut out = String::new();
            table.write(format, &mut out);
            out
        };
        assert_eq!(written(Format::Text), "\nT\n\nname   n\na     10\n");
        assert_eq!(written(Format::Markdown), "\nT\n\n| name | n |\n|---|---:|\n| a | 10 |\n");
    }

    #[test]
    fn names_of_files_steer_nothing() {
        let name = "a\x1b[31m\n| b\u{202e}";
        let cells = |first: &str| vec![first.to_owned(), "1".to_owned()];
        let table = Table { title: name.into(), header: cells(name), rows: vec![cells(name), cells("c")] };
        let written = |format| {
            let mut out = String::new();
            table.write(format, &mut out);
            out
        };
        let shown = "a\\u{1b}[31m | b\\u{202e}";
        let blanks = " ".repeat(shown.len() - 1);
        assert_eq!(written(Format::Text), format!("\n{shown}\n\n{shown}  1\n{shown}  1\nc{blanks}  1\n"));
        let cell = shown.replace('|', "\\|");
        let rows = format!("| {cell} | 1 |\n|---|---:|\n| {cell} | 1 |\n| c | 1 |\n");
        assert_eq!(written(Format::Markdown), format!("\n{shown}\n\n{rows}"));
    }

    #[test]
    fn intervals_for_people() {
        let e = Estimate { value: 0.6461, interval: Some([0.6, 0.69]) };
        assert_eq!(spread(&e, 100.0, 1), "64.6 [60.0, 69.0]");
        assert_eq!(spread(&Estimate { interval: None, ..e }, 1.0, 2), "0.65");
    }
}
