//! Searching a schedule: `spts-cli tune -m model.gguf --data prompts.jsonl`.

mod prompts;
mod report;
mod screen;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use spts::eval::error::EvalError;
use spts::eval::results::{Header, ResultLine, Results, ResultsWriter};
use spts::eval::summary::Summary;
use spts::method::spts::schedule::Schedule;
use spts::method::spts::schedule_file::{parse_schedule_arg, path_beside};
use spts::method::spts::sidecar::{Sidecar, fingerprint};
use spts::model::shape::Shape;
use spts::output_file::{OutputFile, refuse_inputs};
use spts::tune::halves::halves;
use spts::tune::halving::{self, Search};
use spts::tune::space::{Candidate, candidates};
use spts::tune::trial::{Asked, DENSE, Known, SessionTrial};
use spts::{Model, ModelFile, Session, SessionOptions};

use super::eval::tasks::device_names;
use super::failure::Failure;
use super::options::{DeviceArgs, MemoryArgs, OverrideArgs};
use super::proxies::{self as sidecars, Waiting};
use super::{inputs, interrupt, note, prompt, run, warn};
use crate::report::{Progress, grouped};
use prompts::{data_hash, hidden_numbers, with_answers};
use report::{Outcome, check_dense, nothing_found, tried};
use screen::Screen;

/// For help texts.
pub const HELP: &str = "\
Half of the prompts is for the search, the other half says what the schedule found is worth. The search starts from a base \
(--schedule) and varies where skipping begins, where stages end, budgets, pooling, carried scores and probing tokens: all \
variants on few prompts, the better half on twice as many, and so on.

Every result is kept beside the schedule, in FILE.jsonl: the same command goes on where it was stopped, also with another \
--max-loss, and eval tasks --report reads it. Without a schedule within the bound none is written. Commands that are given no \
--schedule take MODEL.schedule from beside the model.";

/// How a file that this command wrote begins; others are not overwritten.
const MARK: &str = "# Found by spts-cli tune ";

/// Name of a schedule that was found.
const NAME: &str = "tuned";

/// Searching a schedule.
#[derive(Args, Clone, Debug)]
pub struct TuneArgs {
    /// Model, a GGUF file
    #[arg(short, long, value_name = "FILE")]
    model: PathBuf,
    /// Prompts with answers, JSON lines as eval tasks takes them; - is standard input
    #[arg(long, value_name = "FILE", required_unless_present = "text", conflicts_with = "text")]
    data: Option<PathBuf>,
    /// A long text instead, UTF-8: prompts are made of it in which numbers are hidden, one or four, and one is asked for
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Tokens of a prompt made of the text [default: as many as the base needs to act in full, 4096 for fractions]
    #[arg(short = 'n', long, value_name = "N", conflicts_with = "data", value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    n_tokens: Option<u32>,
    /// Only these tasks of the data, separated by commas
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', conflicts_with = "text")]
    tasks: Vec<String>,
    /// Only the first N prompts of each task and length [default: all, of a text 16]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    samples: Option<u32>,
    /// Points of score, of 100, that the schedule may lose against dense
    #[arg(long, value_name = "POINTS", default_value_t = 1.0, value_parser = points)]
    max_loss: f64,
    /// Schedule to start from: a preset, fractions of the prompt, or a file [default: default, or early for models that skip nothing by default]
    #[arg(long, value_name = "WHAT")]
    schedule: Option<String>,
    /// Most schedules to try
    #[arg(long, value_name = "N", default_value_t = 24, value_parser = clap::value_parser!(u16).range(1..=1000))]
    candidates: u16,
    /// Decides which prompts are in which half, and which variants are tried
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Where to write the schedule [default: MODEL.schedule beside the model]
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Tokens of prompt and answer together; 0 is what the model was trained with [default: 0]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1 << 30))]
    ctx_size: Option<u32>,
    #[command(flatten)]
    overrides: OverrideArgs,
    #[command(flatten)]
    memory: MemoryArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

fn points(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|x| (0.0..=100.0).contains(x)).ok_or_else(|| "expected a number from 0 to 100".into())
}

impl TuneArgs {
    fn source(&self) -> &Path {
        self.data.as_deref().or(self.text.as_deref()).unwrap_or(Path::new(""))
    }

    /// Every file that is read.
    pub fn files(&self) -> Vec<PathBuf> {
        let sidecar = Sidecar::path_beside(&self.model);
        let base = self.schedule.as_deref().map(PathBuf::from);
        [self.model.clone(), sidecar]
            .into_iter()
            .chain(self.data.clone())
            .chain(self.text.clone())
            .chain(base)
            .collect()
    }

    fn n_ctx(&self) -> Option<usize> {
        self.ctx_size.filter(|&n| n > 0).map(|n| n as usize)
    }

    /// The schedule to start from, as `--schedule` would name it.
    fn base(&self, shape: &Shape) -> &str {
        self.schedule.as_deref().unwrap_or(if Schedule::left_dense(shape).is_some() { "early" } else { "default" })
    }

    /// Whether a schedule could lose more than the bound where dense has this score, from 0 to 1.
    fn has_something_to_lose(&self, score_of_dense: f64) -> bool {
        100.0 * score_of_dense > self.max_loss
    }

    fn n_threads(&self) -> Option<usize> {
        self.device.threads.map(usize::from)
    }
}

/// Searches, writes the schedule, and returns the text to print.
pub fn tune(args: &TuneArgs) -> Result<String, Failure> {
    interrupt::install()?;
    let source = match &args.text {
        Some(path) => prompt::read_text(path)?,
        None => prompt::read_document(args.source())?,
    };
    args.device.set_up_process();
    let opened = ModelFile::open_with(&args.model, args.device.open_options(), &args.overrides.library())?;
    warn(&opened);
    run::note_beyond_training("-c", args.n_ctx().unwrap_or(0), opened.hparams().n_ctx_train);
    let base = parse_schedule_arg(args.base(opened.shape()), opened.shape())?;
    let prompts = match args.text {
        Some(_) => hidden_numbers(args, &opened, &base, &source)?,
        None => with_answers(args, &opened, &source)?,
    };
    let out = args.out.clone().unwrap_or_else(|| path_beside(&args.model));
    let file = create(&out, args)?;
    let model = Model::place(opened, args.device.model_options(None))?;
    let (base, sidecar) = with_proxies(args, &model, base, &prompts)?;
    let all = variants(args, &model, &base, &prompts)?;
    let (search_half, report_half) = halves(prompts, |p| &p.task, args.seed);
    if report_half.is_empty() {
        return Err(Failure::Failed(format!(
            "{}: found a single prompt, expected two at least: one to search by, one to report",
            args.source().display()
        )));
    }

    let header = Header::new(
        model.shape().name.clone(),
        fingerprint(model.gguf()),
        data_hash(args, &source, &search_half[0].prompt),
        device_names(&model),
        super::version().to_owned(),
    );
    let settings = |c: Option<&Candidate>| settings(args, c.map(|c| &c.schedule));
    let journal = journal(&out);
    let known = open_journal(&journal, &header, &all, &settings)?;
    let options = SessionOptions { n_ctx: args.n_ctx(), sidecar, ..args.memory.session_options(&args.device) };
    let session = Session::new(model.clone(), options)?;
    interrupt::stops(&session.interrupt_flag());
    note(&format!(
        "{} schedules on {} prompts, {} more to report; results so far are kept in {}",
        all.len(),
        search_half.len(),
        report_half.len(),
        journal.display()
    ));
    let mut screen = Screen::new(
        halving::most_answers(all.len(), search_half.len()) + 2 * report_half.len(),
        args.max_loss,
        all.iter().map(|c| c.label.clone()).collect(),
    );
    let mut trial = SessionTrial {
        session,
        candidates: &all,
        prompts: &search_half,
        settings: &settings,
        known,
        watcher: &mut screen,
    };
    let measured = measure(args, &mut trial, &report_half);
    drop(trial);
    screen.progress.clear();
    let Measured { search, score_of_dense, lines } = measured.map_err(|e| {
        note(&format!("what was measured is kept in {}: the same command goes on from there", journal.display()));
        Failure::from(e)
    })?;
    let tried = tried(args, &all, search_half.len(), &search);
    // What was tried is worth seeing in any case.
    let but_tried = |e: Failure| {
        let _ = std::io::stderr().write_all(tried.as_bytes());
        e
    };
    let Some(found) = search.found else {
        return Err(but_tried(nothing_found(args, &all, &search, &journal)));
    };
    check_dense(args, score_of_dense, &journal).map_err(but_tried)?;
    let label = &all[found].label;
    let summary = Summary::new(&Results { header, lines }, &[DENSE.to_owned(), label.clone()]);
    let outcome = Outcome { args, base: args.base(model.shape()), candidates: &all, found, summary: &summary };
    outcome.check(&journal).map_err(but_tried)?;
    write(file, &(outcome.comments() + &tuned(&all[found].schedule).to_string()))?;
    Ok(tried + &outcome.text(&out))
}

/// What the search and the report have measured.
struct Measured {
    search: Search,
    /// On the prompts searched by, from 0 to 1.
    score_of_dense: f64,
    /// On the prompts to report: nothing if there is nothing to be reported.
    lines: Vec<ResultLine>,
}

fn measure(args: &TuneArgs, trial: &mut SessionTrial, report_half: &[Asked]) -> spts::Result<Measured> {
    let search = halving::search(trial.candidates.len(), trial.prompts.len(), args.max_loss, trial)?;
    let score_of_dense = trial.score_of_dense();
    let lines = match search.found {
        Some(found) if args.has_something_to_lose(score_of_dense) => trial.report(found, report_half)?,
        _ => Vec::new(),
    };
    Ok(Measured { search, score_of_dense, lines })
}

fn failed(e: impl Into<EvalError>) -> Failure {
    spts::Error::from(e.into()).into()
}

/// Creates the schedule's file before the work. A file that this command has not written stays, and what is read.
fn create(out: &Path, args: &TuneArgs) -> Result<OutputFile, Failure> {
    // The schedule beside the model is not read, but written; results are kept under another name.
    let inputs = args.files();
    refuse_inputs(&journal(out), &inputs.iter().map(PathBuf::as_path).collect::<Vec<_>>())?;
    let file = inputs::create_output(out, &inputs)?;
    if out.is_file() && !std::fs::read(out).is_ok_and(|bytes| bytes.starts_with(MARK.as_bytes())) {
        return Err(Failure::Failed(format!(
            "{}: exists, and was not written by tune; choose another --out, or remove it",
            out.display()
        )));
    }
    Ok(file)
}

/// Where results are kept: beside the schedule.
fn journal(out: &Path) -> PathBuf {
    let mut name = out.file_name().unwrap_or_default().to_owned();
    name.push(".jsonl");
    out.with_file_name(name)
}

fn open_journal(
    path: &Path,
    header: &Header,
    all: &[Candidate],
    settings: &dyn Fn(Option<&Candidate>) -> String,
) -> Result<Known, Failure> {
    let configs = std::iter::once(None).chain(all.iter().map(Some));
    let named: Vec<(&str, String)> = configs.map(|c| (c.map_or(DENSE, |c| &c.label), settings(c))).collect();
    let named: Vec<(&str, &str)> = named.iter().map(|(name, settings)| (*name, settings.as_str())).collect();
    let (writer, lines) = ResultsWriter::open(path, header, &named).map_err(failed)?;
    Ok(Known::new(writer, lines))
}

/// Everything that an answer and its time depend on, besides model, prompt and device.
fn settings(args: &TuneArgs, schedule: Option<&Schedule>) -> String {
    let schedule = schedule.map_or(DENSE.into(), |s| format!("{s:?}"));
    format!("{schedule}; {}{}", args.memory.settings(&args.device), args.overrides.settings())
}

/// The base with the proxies that it needs, which its variants share.
fn with_proxies(
    args: &TuneArgs,
    model: &Arc<Model>,
    base: Schedule,
    prompts: &[Asked],
) -> Result<(Schedule, Option<Arc<Sidecar>>), Failure> {
    let longest = prompts.iter().map(|p| p.prompt.tokens.as_slice()).max_by_key(|t| t.len()).unwrap_or(&[]);
    let found = sidecars::find(model.file(), None, Some(&base), longest.len())?;
    let waiting = Waiting { model, prompt: longest, n_ctx: None, n_threads: args.n_threads() };
    let mut schedule = base;
    let sidecar = sidecars::settle(found, &waiting, Some(&mut schedule), &mut Progress::new())?;
    Ok((schedule, sidecar))
}

fn variants(args: &TuneArgs, model: &Model, base: &Schedule, prompts: &[Asked]) -> Result<Vec<Candidate>, Failure> {
    let lengths: Vec<usize> = prompts.iter().map(|p| p.prompt.tokens.len()).collect();
    let all = candidates(base, model.shape(), &lengths, args.candidates.into(), args.seed);
    if all.is_empty() {
        let longest = lengths.iter().copied().max().unwrap_or(0);
        return Err(Failure::Failed(format!(
            "{}: the longest prompt has {} tokens, and no variant of schedule {} leaves anything out of it (its first budget is {}): give longer prompts, or start from fractions, as in --schedule 0.5,0.4,0.3,0.2",
            args.source().display(),
            grouped(longest),
            base.name,
            grouped(base.first_budget(longest)),
        )));
    }
    Ok(all)
}

/// The schedule as it is written and named in reports.
fn tuned(schedule: &Schedule) -> Schedule {
    Schedule { name: NAME.into(), ..schedule.clone() }
}

fn write(mut file: OutputFile, text: &str) -> Result<(), Failure> {
    let path = file.path().display().to_string();
    file.write_all(text.as_bytes()).map_err(|e| Failure::Failed(format!("{path}: cannot write: {e}")))?;
    Ok(file.finish()?)
}
