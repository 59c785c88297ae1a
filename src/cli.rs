//! The command line: argv in, a [`Command`] out, and no side effects on the way.
//!
//! `cli/flags.rs` turns llama.cpp's `-ngl` and the like into long flags (`cli/llama_cpp.rs` knows those that are not here),
//! `cli/options.rs` holds the groups of flags that subcommands share, `cli/usage.rs` says what is wrong with a command line, and
//! each subcommand is carried out by the file of its name.

pub mod bench;
pub mod calibrate;
mod conversation;
pub mod eval;
pub mod failure;
pub mod flags;
pub mod info;
mod inputs;
pub mod interrupt;
mod llama_cpp;
pub mod options;
mod pace;
pub mod plan;
pub mod prompt;
mod prompt_cache;
pub mod proxies;
pub mod quantize;
mod questions;
pub mod run;
pub mod run_args;
mod runner;
pub mod schedule;
pub mod tokenize;
pub mod tune;
pub mod usage;

use std::ffi::OsString;
use std::io::Write;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use bench::BenchArgs;
use calibrate::CalibrateArgs;
use info::InfoArgs;
use plan::PlanArgs;
use quantize::QuantizeArgs;
use run_args::RunArgs;

const ABOUT: &str = "Runs GGUF language models on long prompts, and skips the tokens that do not matter.";
const USAGE: &str = "spts-cli -m MODEL [-f FILE] [-p TEXT] [FLAGS]\n       spts-cli COMMAND ...";
const EXAMPLES: &str = "Examples:
  spts-cli -m model.gguf -f long.txt -p 'What does the author conclude?'
  spts-cli -m model.gguf -f long.txt                (a conversation about it)
  spts-cli -m model.gguf -f long.txt --questions questions.txt --prompt-cache long.cache
  spts-cli -m model.gguf -p 'Name three rivers.' -n 64 --temp 0
  spts-cli plan --shape llama-3.1-8b -n 32768
  spts-cli calibrate -m model.gguf -f essays.txt
  spts-cli bench -m model.gguf -p 8192,32768
  spts-cli tune -m model.gguf --data prompts.jsonl

The answer goes to standard output, everything else to standard error.
Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.";

/// What clap parses.
#[derive(Debug, Parser)]
#[command(name = "spts-cli", version = version(), about = ABOUT, override_usage = USAGE, after_help = EXAMPLES, max_term_width = 110)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    disable_help_subcommand = true,
    disable_help_flag = true
)]
struct Cli {
    // Clap's own shows a longer form for --help: two texts where one will do.
    /// Print help
    #[arg(short, long, global = true, action = clap::ArgAction::HelpShort)]
    help: Option<bool>,
    #[command(flatten)]
    run: RunArgs,
    #[command(subcommand)]
    command: Option<Sub>,
}

#[derive(Debug, Subcommand)]
enum Sub {
    /// Show a GGUF file's metadata and tensors
    Info(InfoArgs),
    /// Show what a schedule makes of a prompt: tokens per layer, operations, memory
    Plan(PlanArgs),
    /// Make a model's FFN proxies from text
    Calibrate(CalibrateArgs),
    /// Measure what skipping costs in quality
    Eval(eval::EvalArgs),
    /// Search the fastest schedule that loses little on your prompts
    #[command(after_help = tune::HELP)]
    Tune(Box<tune::TuneArgs>),
    /// Measure time to first token and speed, dense and with SPTS in turns
    Bench(Box<BenchArgs>),
    /// Write a model in other types: smaller, or back to floats
    Quantize(QuantizeArgs),
    /// Show or count the tokens of a text
    #[command(after_help = tokenize::HELP)]
    Tokenize(tokenize::TokenizeArgs),
}

/// The command that was given, with its arguments.
#[derive(Debug)]
pub enum Command {
    /// Answers prompts (no subcommand).
    Run(Box<RunArgs>),
    /// Lists the devices (`--list-devices`).
    ListDevices,
    /// Shows what a file says (`info`).
    Info(InfoArgs),
    /// Counts what a prompt will cost (`plan`).
    Plan(Box<PlanArgs>),
    /// Makes proxies from a text (`calibrate`).
    Calibrate(Box<CalibrateArgs>),
    /// Measures what skipping loses (`eval`).
    Eval(Box<eval::EvalArgs>),
    /// Searches for a schedule (`tune`).
    Tune(Box<tune::TuneArgs>),
    /// Measures speed (`bench`).
    Bench(Box<BenchArgs>),
    /// Writes a model in other types (`quantize`).
    Quantize(QuantizeArgs),
    /// Shows or counts the tokens of a text (`tokenize`).
    Tokenize(tokenize::TokenizeArgs),
}

impl Command {
    /// The names of the subcommand and of its own; none of a run.
    fn path(&self) -> Vec<&'static str> {
        match self {
            Command::Run(_) | Command::ListDevices => Vec::new(),
            Command::Info(_) => vec!["info"],
            Command::Plan(_) => vec!["plan"],
            Command::Calibrate(_) => vec!["calibrate"],
            Command::Eval(args) => vec!["eval", args.name()],
            Command::Tune(_) => vec!["tune"],
            Command::Bench(_) => vec!["bench"],
            Command::Quantize(_) => vec!["quantize"],
            Command::Tokenize(_) => vec!["tokenize"],
        }
    }

    /// Every file that a command may read, if it writes any: none of them is replaced. What is a file only if there is one of that
    /// name (`--schedule`, `--chat-template`) is among them.
    #[cfg(test)]
    fn files(&self) -> Option<Vec<std::path::PathBuf>> {
        match self {
            Command::Run(args) => Some(args.files()),
            Command::Calibrate(args) => Some(args.files()),
            Command::Eval(args) => args.files(),
            Command::Tune(args) => Some(args.files()),
            Command::Bench(args) => Some(args.files()),
            Command::Quantize(args) => Some(vec![args.model.clone()]),
            Command::ListDevices | Command::Info(_) | Command::Plan(_) | Command::Tokenize(_) => None,
        }
    }

    /// The command in clap's terms.
    pub fn flags(&self) -> clap::Command {
        self.path().into_iter().fold(built(), |c, name| c.find_subcommand(name).cloned().unwrap_or(c))
    }
}

/// The program's command, with what clap adds to it.
fn built() -> clap::Command {
    let mut command = with_negative_numbers(Cli::command());
    command.build();
    command
}

/// What becomes of argv.
#[derive(Debug)]
pub enum Parsed {
    /// Something to do.
    Command(Command),
    /// A text that was asked for: help, the version.
    Text(String),
    /// Wrong usage, in one line.
    Usage(String),
}

/// Parses argv, the program's name included.
pub fn parse(argv: impl IntoIterator<Item = OsString>) -> Parsed {
    let command = with_negative_numbers(Cli::command());
    let built = built();
    let (argv, typed) = match flags::expand(argv, &built) {
        Ok(expanded) => expanded,
        Err(message) => return Parsed::Usage(format!("{message}; see --help")),
    };
    let words: Vec<String> = argv.iter().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    let parsed = command.try_get_matches_from(argv).and_then(|m| Cli::from_arg_matches(&m));
    match parsed {
        Ok(Cli { command: Some(Sub::Info(args)), .. }) => Parsed::Command(Command::Info(args)),
        Ok(Cli { command: Some(Sub::Plan(args)), .. }) => Parsed::Command(Command::Plan(Box::new(args))),
        Ok(Cli { command: Some(Sub::Calibrate(args)), .. }) => Parsed::Command(Command::Calibrate(Box::new(args))),
        Ok(Cli { command: Some(Sub::Eval(args)), .. }) => Parsed::Command(Command::Eval(Box::new(args))),
        Ok(Cli { command: Some(Sub::Quantize(args)), .. }) => Parsed::Command(Command::Quantize(args)),
        Ok(Cli { command: Some(Sub::Tokenize(args)), .. }) => Parsed::Command(Command::Tokenize(args)),
        Ok(Cli { command: Some(Sub::Tune(args)), .. }) => Parsed::Command(Command::Tune(args)),
        Ok(Cli { command: Some(Sub::Bench(args)), .. }) => Parsed::Command(Command::Bench(args)),
        Ok(Cli { run, .. }) if run.list_devices => Parsed::Command(Command::ListDevices),
        Ok(Cli { run, .. }) => Parsed::Command(Command::Run(Box::new(run))),
        Err(e) => match e.kind() {
            ErrorKind::DisplayHelp => Parsed::Text(flags::show(&e.render().to_string())),
            ErrorKind::DisplayVersion => Parsed::Text(e.render().to_string()),
            _ => Parsed::Usage(typed.restore(&usage::message(&e, &built, &words))),
        },
    }
}

/// Whether some command has this flag, as it is typed.
#[cfg(test)]
fn is_flag(flag: &str) -> bool {
    fn any(command: &clap::Command, flag: &str) -> bool {
        flags::has(command, flag) || command.get_subcommands().any(|c| any(c, flag))
    }
    any(&built(), flag)
}

/// A line on standard error; a closed one is no reason to stop.
pub fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "spts-cli: {}", fit(text));
}

/// A message for the terminal: names and texts from files in it do not steer it, nor fill it.
pub fn fit(message: &str) -> String {
    spts::printable::printable_within(message, 4096)
}

/// What is odd about a model's file, a line each on standard error.
pub fn warn(model: &spts::ModelFile) {
    model.warnings().iter().for_each(|warning| note(warning));
}

/// Clap takes `-1` for a flag unless an argument says that it is a number. A message about the number is the better one.
fn with_negative_numbers(command: clap::Command) -> clap::Command {
    command
        .mut_args(|arg| match arg.get_action().takes_values() && !arg.is_positional() {
            true => arg.allow_negative_numbers(true),
            false => arg,
        })
        .mut_subcommands(with_negative_numbers)
}

/// Version, commit and ggml's version, as the build script stamped them.
fn version() -> &'static str {
    concat!(env!("CARGO_PKG_VERSION"), " (", env!("SPTS_COMMIT"), ", ggml ", env!("SPTS_GGML_VERSION"), ")")
}

#[cfg(test)]
mod tests;
