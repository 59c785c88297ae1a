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
mod runner;
pub mod schedule;
pub mod tokenize;
pub mod tune;
pub mod usage;

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use spts::tokenizer::TemplateVariables;
use spts_quant::Preset;

use options::{DeviceArgs, MemoryArgs, OVERRIDES, OverrideArgs, PlacementArgs, SamplingArgs, SptsArgs};

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

/// What to do.
#[derive(Debug)]
pub enum Command {
    /// Answer a prompt.
    Run(Box<RunArgs>),
    /// Name the devices.
    ListDevices,
    /// Show a file.
    Info(InfoArgs),
    /// Count.
    Plan(Box<PlanArgs>),
    /// Make proxies.
    Calibrate(Box<CalibrateArgs>),
    /// Measure quality.
    Eval(Box<eval::EvalArgs>),
    /// Search a schedule.
    Tune(Box<tune::TuneArgs>),
    /// Measure speed.
    Bench(Box<BenchArgs>),
    /// Write a model in other types.
    Quantize(QuantizeArgs),
    /// Count tokens.
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
    fn files(&self) -> Option<Vec<PathBuf>> {
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

    /// As clap knows it.
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

/// Answering a prompt.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// Model, a GGUF file
    #[arg(
        short,
        long,
        value_name = "FILE",
        required_unless_present = "list_devices",
        help_heading = "Prompt and answer"
    )]
    pub model: Option<PathBuf>,
    /// Document, a UTF-8 text file; - is standard input
    #[arg(short, long, value_name = "FILE", help_heading = "Prompt and answer")]
    pub file: Option<PathBuf>,
    /// Prompt, or the question that follows the document
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true, required_unless_present_any = ["file", "list_devices"], help_heading = "Prompt and answer")]
    pub prompt: Option<String>,
    /// Questions about the document, one a line, each answered by itself; - is standard input
    #[arg(
        long,
        value_name = "FILE",
        requires = "file",
        conflicts_with_all = ["prompt", "no_cnv", "dump_selection"],
        help_heading = "Documents"
    )]
    pub questions: Option<PathBuf>,
    /// Keep what was read of the document in FILE, and begin with it the next time; one of the same model that begins with
    /// other text, or skips from another layer on, is replaced
    #[arg(long, value_name = "FILE", requires = "file", help_heading = "Documents")]
    pub prompt_cache: Option<PathBuf>,
    /// Leave the file of --prompt-cache as it is
    #[arg(long, requires = "prompt_cache", help_heading = "Documents")]
    pub prompt_cache_ro: bool,
    /// Where the document's residual stream waits for questions
    #[arg(long, value_name = "WHERE", value_enum, default_value_t = options::DocumentMemory::Device, help_heading = "Documents")]
    pub document_memory: options::DocumentMemory,
    /// System prompt
    #[arg(
        long,
        value_name = "TEXT",
        allow_hyphen_values = true,
        conflicts_with = "no_cnv",
        help_heading = "Prompt and answer"
    )]
    pub system_prompt: Option<String>,
    /// Use the prompt as it is, without the model's chat template
    #[arg(long, alias = "no-conversation", help_heading = "Prompt and answer")]
    pub no_cnv: bool,
    /// Another chat template than the model's: a Jinja file, chatml, or the Jinja text itself
    #[arg(
        long,
        value_name = "WHAT",
        allow_hyphen_values = true,
        conflicts_with = "no_cnv",
        help_heading = "Prompt and answer"
    )]
    pub chat_template: Option<String>,
    /// Variables for the chat template, as a JSON object
    #[arg(long, value_name = "JSON", conflicts_with = "no_cnv", value_parser = template_variables, help_heading = "Prompt and answer")]
    pub chat_template_kwargs: Option<TemplateVariables>,
    /// Have the chat template ask for an answer without thinking: enable_thinking is false
    #[arg(long, conflicts_with = "no_cnv", help_heading = "Prompt and answer")]
    pub no_think: bool,
    /// Most tokens of the answer; 0 computes the prompt only, -1 goes on to the answer's end
    #[arg(short = 'n', long, alias = "n-predict", value_name = "N", default_value_t = -1, value_parser = clap::value_parser!(i32).range(-1..), help_heading = "Prompt and answer")]
    pub predict: i32,
    /// Forbid the tokens with which the model would end its answer
    #[arg(long, help_heading = "Prompt and answer")]
    pub ignore_eos: bool,
    /// End the answer before TEXT; may be given several times
    #[arg(
        short,
        long,
        value_name = "TEXT",
        allow_hyphen_values = true,
        value_parser = clap::builder::NonEmptyStringValueParser::new(),
        help_heading = "Prompt and answer"
    )]
    pub reverse_prompt: Vec<String>,
    /// Print one JSON object instead of the text
    #[arg(long, help_heading = "Prompt and answer")]
    pub json: bool,
    /// Per token, add the K most likely ones to the JSON
    #[arg(long, value_name = "K", requires = "json", value_parser = clap::value_parser!(u32).range(1..=1000), help_heading = "Prompt and answer")]
    pub logprobs: Option<u32>,
    /// Say what is placed where, and let ggml speak
    #[arg(short, long, help_heading = "Prompt and answer")]
    pub verbose: bool,
    #[command(flatten)]
    pub spts: SptsArgs,
    /// Write the chosen tokens of every layer to a JSON file
    #[arg(long, value_name = "FILE", conflicts_with = "no_spts", help_heading = "Token skipping (SPTS)")]
    pub dump_selection: Option<PathBuf>,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Tokens of prompt and answer together; 0 is what the model was trained with [default: 0]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1 << 30), help_heading = "Context and memory")]
    pub ctx_size: Option<u32>,
    #[command(flatten)]
    pub memory: MemoryArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
    #[command(flatten)]
    pub overrides: OverrideArgs,
    /// Name the devices of this machine, and stop
    #[arg(long, help_heading = "Model and device")]
    pub list_devices: bool,
}

impl RunArgs {
    /// Every file that a run may read.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files = inputs::with_those_beside(self.model.as_deref());
        let template = self.chat_template.as_deref().map(Path::new);
        let given = [self.file.as_deref(), self.questions.as_deref(), template, self.prompt_cache.as_deref()];
        files.extend(given.into_iter().flatten().chain(self.spts.files()).map(Path::to_owned));
        files
    }

    /// The same, without a file that this run both reads and writes.
    pub fn files_but(&self, own: &Path) -> Vec<PathBuf> {
        let cache = self.prompt_cache.as_deref();
        let mut files = RunArgs { prompt_cache: None, ..self.clone() }.files();
        files.extend(cache.filter(|cache| *cache != own).map(Path::to_owned));
        files
    }
}

/// Showing a file.
#[derive(Args, Clone, Debug)]
pub struct InfoArgs {
    /// GGUF file
    #[arg(value_name = "FILE", required_unless_present = "model")]
    pub file: Option<PathBuf>,
    /// The same, as a flag
    #[arg(short, long, value_name = "FILE", conflicts_with = "file")]
    pub model: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Print long lists in full
    #[arg(long)]
    pub full: bool,
}

impl InfoArgs {
    /// The file, however it was given.
    pub fn path(&self) -> PathBuf {
        self.file.clone().or_else(|| self.model.clone()).unwrap_or_default()
    }
}

/// Counting.
#[derive(Args, Clone, Debug)]
pub struct PlanArgs {
    /// Model, a GGUF file
    #[arg(short, long, value_name = "FILE", required_unless_present = "shape", conflicts_with = "shape")]
    pub model: Option<PathBuf>,
    /// A well-known model's shape instead, without metadata to change: llama-3.1-8b, llama-3.2-1b, qwen2.5-7b, qwen2.5-1.5b, qwen2.5-0.5b, smollm2-135m, gemma-3-270m, qwen3-30b-a3b, gpt-oss-20b, gpt-oss-120b, qwen3.6-27b, qwen3.6-35b-a3b
    #[arg(long, value_name = "NAME", value_parser = clap::builder::PossibleValuesParser::new(spts::model::shape::SHAPE_NAMES), hide_possible_values = true, conflicts_with_all = OVERRIDES)]
    pub shape: Option<String>,
    /// Tokens of the prompt
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 30))]
    pub n_tokens: u32,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Count the stages even if the prompt is not longer than the first budget
    #[arg(long)]
    pub forced: bool,
    /// Print the program that would run: its graph after all rewrites, and its devices (needs -m)
    #[arg(long, conflicts_with_all = ["json", "shape", "forced"])]
    pub graph: bool,
    #[command(flatten)]
    pub placement: PlacementArgs,
    #[command(flatten)]
    pub overrides: OverrideArgs,
    #[command(flatten)]
    pub spts: SptsArgs,
    #[command(flatten)]
    pub memory: MemoryArgs,
}

/// Making proxies.
#[derive(Args, Clone, Debug)]
pub struct CalibrateArgs {
    /// Model, a GGUF file
    #[arg(short, long, value_name = "FILE")]
    pub model: PathBuf,
    /// Texts of the kind that the model will read, UTF-8; a JSON object with the key `text` will do too
    #[arg(short = 'f', long = "file", value_name = "FILE", required = true, num_args = 1..)]
    pub files: Vec<PathBuf>,
    /// Where to write [default: MODEL.spts.gguf beside the model]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Most tokens to read, over all texts
    #[arg(long, value_name = "N", default_value_t = 8192, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub tokens: u32,
    /// FFN channels that a proxy keeps [default: after the model's width]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub d_low: Option<u32>,
    /// Rank of a proxy [default: after the model's width]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub rank: Option<u32>,
    /// Overwrite a file that is no sidecar of this model
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub device: DeviceArgs,
}

impl CalibrateArgs {
    /// Every file that is read.
    pub fn files(&self) -> Vec<PathBuf> {
        std::iter::once(&self.model).chain(&self.files).cloned().collect()
    }
}

/// Measuring.
#[derive(Args, Clone, Debug)]
pub struct BenchArgs {
    /// Model, a GGUF file
    #[arg(short, long, value_name = "FILE", required_unless_present = "synthetic", conflicts_with = "synthetic")]
    pub model: Option<PathBuf>,
    /// A well-known model's shape with random weights instead; plan's --shape lists the names
    #[arg(long, value_name = "SHAPE", value_parser = clap::builder::PossibleValuesParser::new(spts::model::shape::SHAPE_NAMES), hide_possible_values = true)]
    pub synthetic: Option<String>,
    /// Types of the random weights: mxfp4_moe, q4_0, q4_k_s, q4_k_m (also q4_k), q5_k_m, q6_k, q8_0, f16 or f32
    #[arg(long = "type", value_name = "TYPE", default_value = "q4_k_m", value_parser = preset)]
    pub preset: Preset,
    /// Keep the random model as a GGUF file, with random FFN proxies beside it
    #[arg(long, value_name = "FILE", requires = "synthetic", conflicts_with = "model")]
    pub write: Option<PathBuf>,
    /// Tokens of each prompt, separated by commas; their ids are random
    #[arg(short, long, value_name = "N,...", value_delimiter = ',', default_value = "8192", value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub prompts: Vec<u32>,
    /// Tokens to decode, with an empty cache and behind each prompt; 0 leaves that out
    #[arg(short = 'n', long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(0..=1 << 20))]
    pub n_gen: u32,
    /// Runs that count, after a warm-up; 0 only makes the model of --write
    #[arg(short, long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub repetitions: u32,
    /// Pause before each run, in milliseconds: without one a GPU soon computes at its power limit, unlike for a prompt that
    /// comes alone
    #[arg(long, value_name = "MS", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=60_000))]
    pub rest: u32,
    /// Go through the schedule's stages even if a prompt is not longer than the first budget, as the paper does at 8K
    #[arg(long, conflicts_with = "no_spts")]
    pub at_any_length: bool,
    /// Also read each prompt as a document and ask questions of N tokens about it, 32 unless said otherwise
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "32", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub questions: Option<u32>,
    #[command(flatten)]
    pub overrides: OverrideArgs,
    /// Also show which kinds of operation take which share of the prefill, from one more run
    #[arg(long)]
    pub ops: bool,
    /// Print one JSON object, with every value measured
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub spts: SptsArgs,
    #[command(flatten)]
    pub memory: MemoryArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
}

impl BenchArgs {
    /// Every file that is read.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files = inputs::with_those_beside(self.model.as_deref());
        files.extend(self.spts.files().map(Path::to_owned));
        files
    }
}

/// Writing a model in other types.
#[derive(Args, Clone, Debug)]
pub struct QuantizeArgs {
    /// Model to read, a GGUF file, best in F32, F16 or BF16
    #[arg(short, long, value_name = "FILE")]
    pub model: PathBuf,
    /// Model to write
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Mix of types: mxfp4_moe (experts in MXFP4, other matrices in Q8_0), q4_0, q4_k_s, q4_k_m (also q4_k), q5_k_m (also q5_k), q6_k, q8_0, f16 or f32
    #[arg(long = "type", value_name = "TYPE", value_parser = preset)]
    pub preset: Preset,
    /// Quantize weights that are quantized already: what the first time lost stays lost
    #[arg(long)]
    pub allow_requantize: bool,
    /// Threads [default: one per core]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=512))]
    pub threads: Option<u16>,
}

fn template_variables(json: &str) -> Result<TemplateVariables, String> {
    TemplateVariables::parse(json).map_err(|e| e.to_string())
}

fn preset(name: &str) -> Result<Preset, String> {
    let names = || Preset::ALL.map(|p| p.name().to_lowercase()).join(", ");
    Preset::from_name(name).ok_or_else(|| format!("expected one of {}", names()))
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
mod tests {
    use super::*;

    fn line(args: &str) -> Parsed {
        parse(std::iter::once("spts-cli").chain(args.split_whitespace()).map(OsString::from))
    }

    fn run(args: &str) -> RunArgs {
        match line(args) {
            Parsed::Command(Command::Run(args)) => *args,
            other => panic!("{args}: {other:?}"),
        }
    }

    fn usage(args: &str) -> String {
        match line(args) {
            Parsed::Usage(message) => message,
            other => panic!("{args}: {other:?}"),
        }
    }

    #[test]
    fn clap_finds_no_fault() {
        Cli::command().debug_assert();
    }

    #[test]
    fn llama_cpp_flags() {
        let a = run(
            "-m m.gguf -f long.txt -p question -n 5 -c 4096 -t 2 -ngl 99 -b 1024 -ub 256 -s 7 -ctk q8_0 -ctv f32 --no-mmap -sys be-brief --ignore-eos -v",
        );
        assert_eq!((a.model.unwrap(), a.file.unwrap()), ("m.gguf".into(), "long.txt".into()));
        assert_eq!(
            (a.prompt.as_deref(), a.system_prompt.as_deref(), a.predict, a.ctx_size),
            (Some("question"), Some("be-brief"), 5, Some(4096))
        );
        assert_eq!(
            (a.device.threads, a.device.placement.n_gpu_layers, a.memory.n_ubatch()),
            (Some(2), Some(99), Some(256))
        );
        assert_eq!((a.memory.cache_type_k.bytes(), a.memory.cache_type_v.bytes()), (34.0 / 32.0, 4.0));
        assert!(a.device.no_mmap && a.ignore_eos && a.verbose && !a.device.mlock);
        assert_eq!(a.sampling.params(0).seed, 7);
        let a = run(
            "-m m -p x --temp 0 --top-k 1 --top-p 0.5 --min-p 0.1 --repeat-penalty 1.1 --repeat-last-n -1 --seed -1 --n-predict 3 --gpu-layers 0",
        );
        let p = a.sampling.params(99);
        assert_eq!(
            (p.temp, p.top_k, p.top_p, p.min_p, p.repeat_penalty, p.repeat_last_n, p.seed),
            (0.0, 1, 0.5, 0.1, 1.1, -1, 99)
        );
        assert_eq!((a.predict, a.device.placement.n_gpu_layers), (3, Some(0)));
        assert_eq!(a.device.placement.n_cpu_moe(), 0);
        assert_eq!(run("-m m -p x -ncmoe 3").device.placement.n_cpu_moe(), 3);
        assert_eq!(run("-m m -p x -cmoe").device.placement.n_cpu_moe(), usize::MAX);
    }

    #[test]
    fn the_defaults_are_the_librarys() {
        assert_eq!(run("-m m -p x").sampling.params(1), spts::session::sampler::SamplerParams::default());
    }

    #[test]
    fn prompts_may_begin_with_a_dash() {
        assert_eq!(run("-m m -p -ngl").prompt.as_deref(), Some("-ngl"));
        assert_eq!(run("-m m -p x -sys --help").system_prompt.as_deref(), Some("--help"));
    }

    #[test]
    fn usage_errors_name_the_flag_as_typed() {
        for (args, expected) in [
            ("-m m -p x -ngl lots", "'-ngl <N>'"),
            ("-m m -p x -n -2", "'-n <N>'"),
            ("-m m -p x --n-predict=-2", "'--n-predict <N>'"),
            ("-m m -p x --temp -1", "'--temp <T>': expected a number, 0 or above"),
            ("-m m -p x --temp nan", "expected a number, 0 or above"),
            ("-m m -p x --top-p 1.5", "expected a number from 0 to 1"),
            ("-m m -p x --repeat-penalty 0", "expected a number above 0"),
            ("-m m -p x -ub 0", "'-ub <N>'"),
            ("-m m -p x -t 0", "'-t <N>'"),
            ("-m m -p x -ctk q4_0", "[possible values: f32, f16, q8_0]"),
            ("-m m -p x --pool max:2", "'max:2'"),
            ("-m m -p x --keep 0", "'--keep <X>'"),
            ("-m m -p x --logprobs 5", "--json"),
            ("-m m -p x --no-spts --keep 2", "'--no-spts' cannot be used with '--keep <X>'"),
            ("-m m -p x -sys y -no-cnv", "-sys"),
            ("-m m -p x --no-mmap --mlock", "cannot be used with"),
            ("-m m -p x --no-map", "unknown flag --no-map (did you mean --no-mmap?)"),
            ("-m m -p x -ngl", "a value is required for '-ngl <N>'"),
            ("-p x", "missing: -m FILE (a model)"),
            ("-m m", "missing: -p TEXT (a prompt) or -f FILE (a document)"),
            ("", "missing: -m FILE (a model); -p TEXT (a prompt) or -f FILE"),
            ("-m m -p x y", "'y' has no flag before it: a prompt goes behind -p"),
            ("plan -n 5", "missing: -m FILE (a model) or --shape NAME; see plan --help"),
            ("plan --shape gpt-9 -n 5", "llama-3.1-8b"),
            ("plan --shape llama-3.1-8b -n 0", "'-n <N>'"),
            ("plan --shape llama-3.1-8b -n 5 --graph", "--graph"),
            ("info", "missing: FILE"),
            ("quantize -m m -o x --type q9", "'q9'"),
            ("quantize -m m --type q8_0", "missing: -o FILE"),
            ("bench", "missing: -m FILE (a model) or --synthetic SHAPE"),
            ("bench -m m --synthetic llama-3.1-8b", "cannot be used with"),
            ("bench --synthetic llama-3.1-8b --type q3_k", "expected one of mxfp4_moe, q4_0, "),
            ("bench -m m -p 512,0", "'-p <N,...>'"),
            ("bench -m m --write x", "cannot be used with"),
            ("bench --write x", "--synthetic"),
        ] {
            let message = usage(args);
            assert!(message.contains(expected) && !message.contains('\n'), "{args}: {message}");
        }
    }

    #[test]
    fn what_newcomers_get_wrong() {
        for (args, expected) in [
            ("m.gguf", "'m.gguf' has no flag before it: a model goes behind -m"),
            ("-m m -p hello world", "'world' has no flag before it: a prompt goes behind -p, in quotes"),
            ("-m m hello", "'hello' has no flag before it"),
            ("benhc -m m", "there is no command benhc (did you mean bench?)"),
            ("help", "there is no command help (did you mean --help?)"),
            ("chat -m m", "there is no command chat: expected info, plan, "),
            ("-m m plan -n 5", "plan is a command: it comes first"),
            ("-m m -p x --foo", "unknown flag --foo; see --help"),
            ("-m m -p x --ctx 9", "unknown flag --ctx (did you mean --ctx-size?)"),
            ("-m m -p x --temprature 0", "did you mean --temperature?"),
            ("-m m -p x -temp 0", "unknown flag -temp (did you mean --temp?)"),
            ("-model m -p x", "unknown flag -model (did you mean --model?)"),
            ("-m m -p x -nglx 3", "unknown flag -nglx"),
            ("-m m -fabc", "unknown flag -fabc; a value stands behind a blank, as in -f abc"),
            ("-m m -f d -rcp", "unknown flag -rcp"),
            ("-m m -f d -ra", "unknown flag -ra"),
            ("-m m -p x -t4x", "unknown flag -t4x"),
            ("-m m -p x -vv", "unknown flag -vv"),
            ("bench -m m -p512x", "unknown flag -p512x"),
            ("-m m -p x -gpu 3", "unknown flag -gpu"),
            ("-m m -p x --n-tokens 3", "--n-tokens is no flag of a run, only of plan, eval needle"),
            ("plan -m m -n 5 --temp 0", "--temp is no flag of plan, only of a run"),
            ("bench -m m --temp 0", "--temp is no flag of bench, only of a run; see bench --help"),
            ("bench m.gguf", "a model goes behind -m"),
            ("calibrate -m m text.txt", "'text.txt' has no flag before it: a text goes behind -f"),
            ("quantize a.gguf b.gguf q8_0", "a model goes behind -m, a file to write behind -o"),
            ("quantize -m a -o b q8_0", "'q8_0' has no flag before it: a type goes behind --type"),
            ("eval", "eval needs a command behind it: tasks, needle, proxies or kl; see eval --help"),
            ("eval -m m -f x", "eval needs a command behind it"),
            ("eval ppl -m m", "eval needs a command behind it"),
            ("eval needle", "missing: -m FILE (a model); -f FILE; see eval needle --help"),
            ("-m m -p x -n five", "expected a whole number"),
            ("-m m -p x -t 0", "'-t <N>': expected a number from 1 to 512"),
            ("-m m -p x -t -1", "'-t <N>': expected a number from 1 to 512"),
            ("-m m -p x -c -1", "'-c <N>': expected a number from 0 to "),
            ("-m m -p x -ngl -1", "'-ngl <N>'"),
            ("-m m -p x -n -2", "'-n <N>': expected -1 or more"),
            ("-m m -m n -p x", "'-m <FILE>' is there more than once"),
            ("-m m -p x --logprobs 5", "missing: --json, which --logprobs needs"),
        ] {
            let message = usage(args);
            assert!(message.contains(expected) && !message.contains('\n'), "{args}: {message}");
            assert!(!message.contains("tip:") && message.contains("; see "), "{args}: {message}");
        }
    }

    #[test]
    fn flags_of_llama_cpp_that_are_not_here() {
        for (args, expected) in [
            (
                "-m m -p x -fa",
                "-fa is a flag of llama.cpp that is not here: flash attention is always on; leave it out",
            ),
            ("-m m -p x -fa on", "flash attention is always on"),
            ("-m m -p x --flash-attn=on", "--flash-attn is a flag of llama.cpp"),
            ("-m m -p x -np 4", "one prompt is computed at a time"),
            ("-m m -p x -ot exps=CPU", "-ncmoe N keeps experts on the CPU"),
            ("-m m -p x -ser 2", "as many experts as the model says"),
            ("-m m -p x -nkvo", "-ngl N moves layers"),
            ("-m m -p x -mmdev CUDA0", "text only: there are no images and no sound"),
            ("-hf user/model -p x", "nothing is downloaded; -m takes a GGUF file"),
            ("-m m -p x --yarn-beta-fast 16", "--override-kv sets what the model file says"),
            ("-m m -p x --grammar x", "cannot be held to a grammar"),
            ("-m m -p x --reasoning-budget 0", "--no-think has the chat template ask for no thinking"),
            ("bench -m m -fa 1", "flash attention is always on"),
            ("bench -m m -pg 512,128", "`bench` decodes after every prompt"),
        ] {
            let message = usage(args);
            assert!(message.contains(expected) && !message.contains('\n'), "{args}: {message}");
        }
        // Every name, wherever it stands; but a value is a value.
        let mut n = 0;
        for name in llama_cpp::names() {
            let flag = name.replace('*', "x");
            for args in [format!("{flag} -m m -p x"), format!("-m m -p x {flag} 1")] {
                assert!(
                    usage(&args).starts_with(&format!("{flag} is a flag of llama.cpp that is not here: ")),
                    "{args}"
                );
            }
            assert_eq!(run(&format!("-m m -p {flag}")).prompt.as_deref(), Some(flag.as_str()));
            n += 1;
        }
        assert!(n > 300, "{n}");
        // Those of ours that are meant here go through.
        assert!(matches!(line("bench -m m -r 3"), Parsed::Command(Command::Bench(a)) if a.repetitions == 3));
        assert!(matches!(line("quantize -m a -o b --type q8_0"), Parsed::Command(Command::Quantize(_))));
        assert_eq!(run("-m m -p x --ctx_size 5 -n5").ctx_size, Some(5));
        let glued = run("-m m -p x -ngl99 -n 5 -t4 -ub64");
        assert_eq!((glued.device.placement.n_gpu_layers, glued.predict, glued.device.threads), (Some(99), 5, Some(4)));
        assert!(
            matches!(line("bench -m m -p512,1024 -n8"), Parsed::Command(Command::Bench(a)) if a.prompts == [512, 1024])
        );
        assert_eq!(run("-m m -p x -r User: --reverse_prompt Q:").reverse_prompt, ["User:", "Q:"]);
    }

    /// Flags of files that are written, and not read.
    const WRITTEN: [&str; 5] = ["dump-selection", "output", "out", "svg", "write"];

    /// Every flag that takes a file is among those that no output replaces.
    #[test]
    fn no_output_replaces_what_a_flag_names() {
        let places: [(&str, &[(&str, &str)]); 7] = [
            ("", &[("model", "m"), ("file", "f")]),
            ("calibrate", &[("model", "m"), ("file", "f")]),
            ("eval tasks", &[("model", "m"), ("data", "d")]),
            ("eval needle", &[("model", "m"), ("file", "f")]),
            ("tune", &[("model", "m"), ("data", "d")]),
            ("bench", &[("model", "m")]),
            ("quantize", &[("model", "m"), ("output", "o"), ("type", "q8_0")]),
        ];
        // No other command writes a file.
        fn count(command: &clap::Command) -> usize {
            let writes = command.get_arguments().any(|a| a.get_long().is_some_and(|long| WRITTEN.contains(&long)));
            usize::from(writes) + command.get_subcommands().map(count).sum::<usize>()
        }
        assert_eq!(count(&built()), places.len());
        let mut n = 0;
        for (place, needed) in places {
            let command = place.split_whitespace().fold(built(), |c, name| c.find_subcommand(name).unwrap().clone());
            for argument in command.get_arguments() {
                let Some(long) = argument.get_long() else { continue };
                let names = argument.get_value_names().unwrap_or_default();
                let may_be_file = ["schedule", "chat-template", "config"].contains(&long);
                if WRITTEN.contains(&long) || !(may_be_file || names.iter().any(|name| name.as_str() == "FILE")) {
                    continue;
                }
                let value = if long == "config" {
                    "--config=--sidecar read.gguf".into()
                } else {
                    format!("--{long}=read.gguf")
                };
                let more = match long {
                    "model-draft" => &["--method", "specprefill"][..],
                    _ => &[],
                };
                let left_out = |name: &str| {
                    name == long || (long == "report" && place == "eval tasks") || (long == "text" && name == "data")
                };
                let mut argv: Vec<String> =
                    std::iter::once("spts-cli").chain(place.split_whitespace()).map(str::to_owned).collect();
                for (name, value) in needed.iter().filter(|(name, _)| !left_out(name)) {
                    argv.push(format!("--{name}={value}"));
                }
                argv.push(value);
                argv.extend(more.iter().map(|m| (*m).to_owned()));
                let command = match parse(argv.iter().map(OsString::from)) {
                    Parsed::Command(command) => command,
                    other => panic!("{argv:?}: {other:?}"),
                };
                let files = command.files().unwrap();
                assert!(files.contains(&PathBuf::from("read.gguf")), "{argv:?}: {files:?}");
                n += 1;
            }
        }
        assert!(n >= 22, "{n}");
    }

    #[test]
    fn subcommands() {
        assert!(
            matches!(line("info m.gguf --json"), Parsed::Command(Command::Info(a)) if a.json && a.path().as_os_str() == "m.gguf")
        );
        assert!(
            matches!(line("info -m m.gguf"), Parsed::Command(Command::Info(a)) if a.path().as_os_str() == "m.gguf")
        );
        assert!(
            matches!(line("plan --shape llama-3.1-8b -n 32768 --keep 2 -ctk q8_0"), Parsed::Command(Command::Plan(a)) if a.n_tokens == 32768)
        );
        assert!(matches!(line("--list-devices"), Parsed::Command(Command::ListDevices)));
    }

    #[test]
    fn help_fits_a_screen_per_group() {
        let Parsed::Text(help) = line("--help") else { panic!("no help") };
        for flag in [
            "-ngl, --n-gpu-layers <N>",
            "-ncmoe, --n-cpu-moe <N>",
            "-cmoe, --cpu-moe",
            " -ub, --ubatch-size <N>",
            "-ctk, --cache-type-k",
            "-sys, --system-prompt",
            "  -m, --model <FILE>",
        ] {
            assert!(help.contains(flag), "{flag}\n{help}");
        }
        for group in help.split("\n\n") {
            assert!(group.lines().count() <= 24, "{group}");
            assert!(group.lines().all(|l| l.chars().count() <= 110), "{group}");
        }
        assert!(matches!(line("plan --help"), Parsed::Text(t) if t.contains("--shape")));
        assert!(matches!(line("--version"), Parsed::Text(t) if t.starts_with("spts-cli ") && t.contains("ggml ")));
    }
}
