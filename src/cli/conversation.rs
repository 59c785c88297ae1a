//! A conversation about a document, at a terminal: a line is a question, the answer streams, follow-ups see the turns before.

use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::Ordering;

use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use spts::session::document_file::DocumentFile;
use spts::session::generate::StopReason;
use spts::tokenizer::Message;

use super::failure::Failure;
use super::prompt::Document;
use super::questions::summary;
use super::runner::{Answer, Runner};
use super::{built, inputs, interrupt, note};
use crate::report::mib;

const HELP: &str = "\
a line is a question; follow-ups see the turns before
/new          the next question is independent of the turns before
/save FILE    write what was read of the document, for --prompt-cache FILE
/quit         leave, as Ctrl-D does
Ctrl-C stops an answer; a line that begins with // is a question that begins with /
";

/// What a line asks for.
#[derive(Debug, PartialEq)]
enum Line<'l> {
    Nothing,
    Question(&'l str),
    New,
    Save(&'l str),
    Quit,
    Help,
    Unknown(&'l str),
}

impl Line<'_> {
    fn parse(line: &str) -> Line<'_> {
        let line = line.trim();
        if spts::tokenizer::is_without_text(line) {
            return Line::Nothing;
        }
        let Some(command) = line.strip_prefix('/') else { return Line::Question(line) };
        if command.starts_with('/') {
            return Line::Question(command);
        }
        match command.split_once(char::is_whitespace).unwrap_or((command, "")) {
            ("new", "") => Line::New,
            ("save", file) => Line::Save(file.trim()),
            ("quit" | "exit", "") => Line::Quit,
            ("help", "") => Line::Help,
            _ => Line::Unknown(line),
        }
    }
}

/// Talks until the user has had enough.
///
/// # Errors
/// The terminal is gone.
pub fn hold(runner: &mut Runner, document: &Document) -> Result<(), Failure> {
    let terminal = |e: ReadlineError| Failure::Failed(format!("the terminal: {e}"));
    let mut editor = DefaultEditor::new().map_err(terminal)?;
    runner.say_what_was_read();
    note("/help says what can be typed");
    let mut turns: Vec<Message> = Vec::new();
    loop {
        let line = match interrupt::at_rest(|| editor.readline("> ")) {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => {
                note("/quit or Ctrl-D leaves");
                continue;
            }
            Err(ReadlineError::Eof) => return Ok(()),
            Err(e) => return Err(terminal(e)),
        };
        let parsed = Line::parse(&line);
        if parsed != Line::Nothing {
            let _ = editor.add_history_entry(&line);
        }
        match parsed {
            Line::Nothing => {}
            Line::Quit => return Ok(()),
            Line::Help => {
                let _ = io::stderr().write_all(HELP.as_bytes());
            }
            Line::New => {
                turns.clear();
                note("the next question is independent of the turns before");
            }
            Line::Save(file) => save(runner, file),
            Line::Unknown(command) => note(&format!("{command}: no such command; /help names them")),
            Line::Question(question) => ask(runner, document, &mut turns, question)?,
        }
    }
}

/// Asks, and takes question and answer among the turns. What goes wrong with a question is told, and the conversation goes on.
fn ask(runner: &mut Runner, document: &Document, turns: &mut Vec<Message>, question: &str) -> Result<(), Failure> {
    turns.push(if turns.is_empty() { document.with(question) } else { Message::new("user", question) });
    let mut answer = Answer::new(true);
    let generation = match inputs::encode(runner.args, runner.session.model().file(), turns) {
        Ok(prompt) => runner.answer(&prompt, &mut answer),
        Err(e) => Err(e),
    };
    // The user has stopped an answer, not what comes after it.
    runner.session.interrupt_flag().store(false, Ordering::Relaxed);
    let generation = match generation {
        Ok(generation) => generation,
        Err(Failure::BrokenPipe) => return Err(Failure::BrokenPipe),
        Err(e) => {
            turns.pop();
            match e.message(&built()) {
                Some(message) => note(&format!("{message}; the turns before are still there, /new forgets them")),
                None => note("stopped; the question is not part of the conversation"),
            }
            return Ok(());
        }
    };
    answer.end_line()?;
    match generation.stop {
        StopReason::ContextFull => note("the context is full: /new begins again behind the document; -c sets its size"),
        StopReason::Failed => {
            note(&generation.failure.as_ref().map_or_else(|| "the answer failed".to_owned(), ToString::to_string));
        }
        _ => {}
    }
    note(&summary(&runner.report(&generation, String::new())));
    turns.push(Message::new("assistant", answer.text().trim_end()));
    Ok(())
}

fn save(runner: &Runner, file: &str) {
    if file.is_empty() {
        return note("/save needs the name of a file");
    }
    let Some(document) = runner.session.document() else { return note("nothing was kept of the document") };
    let (size, path) = (mib(document.n_bytes()), Path::new(file));
    if path.exists() && DocumentFile::open(path).is_err() {
        return note(&format!("{file}: is there, and holds no document: choose another name"));
    }
    let saved = inputs::create_output(path, &runner.args.files_but(path)).and_then(|out| Ok(document.save_into(out)?));
    match saved {
        Ok(()) => note(&format!("{file}: {size} written; --prompt-cache '{file}' begins with it")),
        Err(e) => note(&e.message(&built()).unwrap_or_else(|| "stopped".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::Line;

    #[test]
    fn lines_are_questions_or_commands() {
        for (line, expected) in [
            ("", Line::Nothing),
            (" \t", Line::Nothing),
            (" What is it? ", Line::Question("What is it?")),
            ("/new", Line::New),
            ("/new ", Line::New),
            ("/quit", Line::Quit),
            ("/exit", Line::Quit),
            ("/help", Line::Help),
            ("/save  a b.gguf ", Line::Save("a b.gguf")),
            ("/save", Line::Save("")),
            ("/new question", Line::Unknown("/new question")),
            ("/etc/passwd?", Line::Unknown("/etc/passwd?")),
            ("//etc/passwd?", Line::Question("/etc/passwd?")),
        ] {
            assert_eq!(Line::parse(line), expected, "{line:?}");
        }
    }
}
