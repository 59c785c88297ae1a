//! `--questions FILE`: each line is a question about the document, answered by itself.

use std::path::Path;

use serde::Serialize;
use spts::session::generate::StopReason;

use super::failure::Failure;
use super::prompt::{self, Document};
use super::runner::{Answer, Runner};
use super::{built, inputs, note};
use crate::report::{RunReport, grouped, seconds};

/// A line of `--json`: the question, then the keys of a single run.
#[derive(Serialize)]
struct Answered<'a> {
    question: &'a str,
    #[serde(flatten)]
    report: RunReport,
}

/// Reads the questions; `-` is standard input. Lines without text are none.
///
/// # Errors
/// A file that cannot be read, or that has no question.
pub fn read(path: &Path) -> Result<Vec<String>, Failure> {
    let text = prompt::read_document(path)?;
    let questions: Vec<String> =
        text.lines().map(str::trim).filter(|line| !spts::tokenizer::is_without_text(line)).map(str::to_owned).collect();
    match questions.is_empty() {
        true => Err(Failure::Failed(format!("{}: no question; there is one in each line", path.display()))),
        false => Ok(questions),
    }
}

/// Answers all of them. One that cannot be answered is told, and the others go on.
///
/// # Errors
/// Interrupted; standard output is closed; some were not answered.
pub fn answer(runner: &mut Runner, document: &Document, questions: &[String]) -> Result<(), Failure> {
    runner.say_what_was_read();
    let mut failed = 0;
    for question in questions {
        match answer_one(runner, document, question) {
            Ok(()) => {}
            Err(e) => match e.message(&built()) {
                Some(message) => {
                    note(&format!("{question}: {message}"));
                    failed += 1;
                }
                None => return Err(e),
            },
        }
    }
    match failed {
        0 => Ok(()),
        n => Err(Failure::Failed(format!("{n} of {} questions were not answered", questions.len()))),
    }
}

fn answer_one(runner: &mut Runner, document: &Document, question: &str) -> Result<(), Failure> {
    let args = runner.args;
    let prompt = inputs::encode(args, runner.session.model().file(), &[document.with(question)])?;
    if !args.json {
        crate::write_stdout(&format!("> {}\n", spts::printable::printable_within(question, usize::MAX)))?;
    }
    let mut answer = Answer::new(!args.json);
    let generation = runner.answer(&prompt, &mut answer)?;
    let report = runner.report(&generation, answer.text().to_owned());
    if args.json {
        runner.write_json(&Answered { question, report })?;
    } else {
        answer.end_line()?;
        crate::write_stdout("\n")?;
        note(&summary(&report));
    }
    match generation.stop {
        StopReason::Interrupted => Err(Failure::Interrupted),
        StopReason::Failed => Err(generation.failure.map_or(Failure::Interrupted, |e| Failure::Failed(e.to_string()))),
        StopReason::ContextFull => {
            note("this answer stops short: the context is full; -c sets its size");
            Ok(())
        }
        _ => Ok(()),
    }
}

/// `312 of 16,512 tokens read anew, first token after 0.4 s, 120 tokens at 12.3 t/s`
pub fn summary(report: &RunReport) -> String {
    let (all, anew) = (report.prompt_tokens, report.prompt_tokens - report.reused_tokens);
    let mut line = format!("{} of {} tokens read anew", grouped(anew), grouped(all));
    if let Some(ttft) = report.ttft_s {
        line += &format!(", first token after {}", seconds(ttft));
    }
    if let Some(tps) = report.decode_tps {
        line += &format!(", {} tokens at {tps:.1} t/s", grouped(report.generated.len()));
    }
    line
}
