//! `spts-cli`: parse, do, exit code. The work is in the library and in `cli/`.

mod cli;
mod report;

use std::io::Write;
use std::process::ExitCode;

use cli::failure::Failure;
use cli::{Command, Parsed};

const FAILED: u8 = 1;
const USAGE: u8 = 2;
/// 128 + SIGINT, as a shell reports it.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    silence_templates();
    let command = match cli::parse(std::env::args_os()) {
        Parsed::Usage(message) => return fail(&message, USAGE),
        Parsed::Text(text) => return end(write_stdout(&text), &None),
        Parsed::Command(command) => command,
    };
    let result = match &command {
        Command::Run(args) => cli::run::run(args),
        Command::ListDevices => write_report(&cli::info::devices()),
        Command::Info(args) => cli::info::info(args).and_then(|text| write_report(&text)),
        Command::Calibrate(args) => cli::calibrate::calibrate(args),
        Command::Eval(args) => cli::eval::eval(args).and_then(|text| write_report(&text)),
        Command::Quantize(args) => cli::quantize::quantize(args).and_then(|text| write_report(&text)),
        Command::Tokenize(args) => cli::tokenize::tokenize(args),
        Command::Tune(args) => cli::tune::tune(args).and_then(|text| write_report(&text)),
        Command::Bench(args) => cli::bench::bench(args).and_then(|text| write_report(&text)),
        Command::Plan(args) => cli::plan::plan(args).and_then(|text| write_report(&text)),
    };
    end(result, &Some(command))
}

/// The exit code; what has failed is said.
fn end(result: Result<(), Failure>, command: &Option<Command>) -> ExitCode {
    match result {
        Ok(()) | Err(Failure::BrokenPipe) => ExitCode::SUCCESS,
        Err(Failure::Interrupted) => ExitCode::from(INTERRUPTED),
        Err(failed) => {
            let flags = command.as_ref().map_or_else(clap::Command::default, Command::flags);
            fail(&failed.message(&flags).unwrap_or_default(), FAILED)
        }
    }
}

/// A report: names in it come from files.
fn write_report(text: &str) -> Result<(), Failure> {
    write_stdout(&spts::printable::printable_report(text))
}

fn write_stdout(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Failure::stdout)
}

/// A panic in a model's chat template becomes an error, which is told once and in one line.
fn silence_templates() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if std::thread::current().name() != Some(spts::tokenizer::TEMPLATE_THREAD) {
            hook(info);
        }
    }));
}

/// One line on standard error, whatever the message holds. A closed standard error is no reason to panic.
fn fail(message: &str, code: u8) -> ExitCode {
    let line = message.split('\n').map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join(" ");
    let _ = writeln!(std::io::stderr(), "spts-cli: error: {}", cli::fit(&line));
    ExitCode::from(code)
}
