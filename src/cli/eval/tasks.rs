//! `eval tasks`: prompts whose answers are known, under several configurations in turns.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use rayon::prelude::*;
use spts::eval::error::EvalError;
use spts::eval::plot::{self, Point};
use spts::eval::results::{self, Header, ResultLine, Results, ResultsWriter};
use spts::eval::summary::Summary;
use spts::eval::tasks::{self, Task, TaskData};
use spts::ggml::backend;
use spts::method::Method;
use spts::method::spts::schedule::Schedule;
use spts::method::spts::sidecar::{Sidecar, fingerprint};
use spts::output_file::refuse_inputs;
use spts::tokenizer::ChatPrompt;
use spts::{Model, ModelFile, Session, SessionOptions};

use super::configuration::{Configuration, configuration, or_default};
use super::tables::{self, Format};
use crate::cli::failure::Failure;
use crate::cli::inputs::create_output;
use crate::cli::options::{DeviceArgs, MemoryArgs, OverrideArgs};
use crate::cli::pace::Pace;
use crate::cli::proxies::{self as sidecars, Waiting};
use crate::cli::{note, prompt, run, schedule};
use crate::report::{Progress, grouped};

/// What the help says of data and configurations.
pub(super) const HELP: &str = "A line of the data is a JSON object:
  task, answers (list), metric (all, any, exact, prefix), n_predict; prompt (text as it is), or messages (role and content of
  each) with the assistant's first words as prefix; and if you like length and id. scripts/ruler.py makes RULER's tasks.

A configuration is dense, or what --schedule takes, then more flags of token skipping; NAME= before it names it:
  --config dense --config paper --config 'mild=0.5,0.4,0.3,0.2 --probe-queries 16 --pool max:7'
  --config 'one shot=--method fastkv:0.1@12'
The first one is what the others are compared with.";

/// One of several parts of the prompts.
#[derive(Clone, Copy, Debug)]
struct Part {
    /// Which part it is, counted from 1.
    number: usize,
    of: usize,
}

fn part(text: &str) -> Result<Part, String> {
    let numbers = text.split_once('/').and_then(|(k, n)| Some((k.parse().ok()?, n.parse().ok()?)));
    let good = numbers.filter(|(number, of): &(usize, usize)| (1..=*of).contains(number));
    good.map(|(number, of)| Part { number, of }).ok_or_else(|| "expected a part of how many, as in 1/4".into())
}

/// Prompts with answers.
#[derive(Args, Clone, Debug)]
pub(super) struct TasksArgs {
    /// Model, a GGUF file
    #[arg(short, long, value_name = "FILE", required_unless_present = "report")]
    model: Option<PathBuf>,
    /// Prompts with answers, JSON lines; - is standard input
    #[arg(long, value_name = "FILE", required_unless_present = "report")]
    data: Option<PathBuf>,
    /// Configuration, once for each [default: dense, default]
    #[arg(long = "config", value_name = "WHAT", allow_hyphen_values = true, value_parser = configuration)]
    configs: Vec<Configuration>,
    /// Only these tasks, separated by commas
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    tasks: Vec<String>,
    /// Only the first N prompts of each task and length
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    samples: Option<u32>,
    /// Only part K of N of the prompts, for several GPUs or machines at once; --report takes their files together
    #[arg(long, value_name = "K/N", value_parser = part)]
    part: Option<Part>,
    /// Keep each result in a file, line by line; answers that are there already are not asked for again
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Keep the text of each answer, too
    #[arg(long)]
    keep_text: bool,
    /// Print what a file of --out says, without a model; once for each file of the same data
    #[arg(long, value_name = "FILE", conflicts_with_all = ["model", "data", "out", "configs", "tasks", "samples", "part", "keep_text"])]
    report: Vec<PathBuf>,
    /// Of a report, only these configurations, separated by commas; the first is what the others are compared with
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', requires = "report")]
    only: Vec<String>,
    /// How results are printed
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
    /// Also draw score against speed-up, as an SVG file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Tokens of prompt and answer together; 0 is what the model was trained with [default: 0]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1 << 30))]
    ctx_size: Option<u32>,
    #[command(flatten)]
    memory: MemoryArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    overrides: OverrideArgs,
}

impl TasksArgs {
    /// Every file that is read; that of `--out`, which is written as well, is not among them.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        super::files(self.model.as_deref(), self.data.iter().chain(&self.report), &self.configs)
    }
}

/// The text to print.
pub(super) fn print(args: &TasksArgs) -> Result<String, Failure> {
    let mut inputs = args.files();
    if let Some(out) = &args.out {
        refuse_inputs(out, &inputs.iter().map(PathBuf::as_path).collect::<Vec<_>>())?;
        inputs.push(out.clone());
    }
    // A place that cannot be written is better known before the work.
    let svg = args.svg.as_deref().map(|path| create_output(path, &inputs)).transpose()?;
    let (results, only) = match args.report.as_slice() {
        [] => measure(args)?,
        [path, ..] => {
            let results = results::read_all(&args.report).map_err(failed)?;
            if let Some(name) = args.only.iter().find(|name| !results.lines.iter().any(|l| l.config == **name)) {
                return Err(Failure::Failed(format!("{}: no results of a configuration `{name}`", path.display())));
            }
            (results, args.only.clone())
        }
    };
    let summary = Summary::new(&results, &only);
    if let Some(file) = svg {
        super::write_plot(file, &plot(&summary))?;
    }
    if args.format == Format::Json {
        let json = serde_json::to_string(&summary).map_err(|e| Failure::Failed(format!("JSON: {e}")))?;
        return Ok(json + "\n");
    }
    Ok(tables::report(&summary, args.format))
}

fn failed(e: impl Into<EvalError>) -> Failure {
    spts::Error::from(e.into()).into()
}

/// A point for each configuration.
fn plot(s: &Summary) -> String {
    let points: Vec<Point> = s
        .configs
        .iter()
        .map(|c| Point { label: c.name.clone(), speed_up: c.all.speed_up, score: c.all.score })
        .collect();
    let title = format!("{}: {} prompts of {} tasks, {}", s.model, grouped(s.n_prompts), s.tasks.len(), s.device);
    plot::score_against_speed_up(&title, &points)
}

/// A configuration, ready to run.
struct Ready {
    name: String,
    method: Arc<dyn Method>,
    settings: String,
}

/// Asks every prompt under every configuration, save what has been answered before. Returns the results of these prompts, and
/// the names of the configurations.
fn measure(args: &TasksArgs) -> Result<(Results, Vec<String>), Failure> {
    let configs = or_default(&args.configs, &["dense", "default"]);
    if let Some(i) = (1..configs.len()).find(|&i| configs[..i].iter().any(|c| c.name == configs[i].name)) {
        let name = &configs[i].name;
        return Err(Failure::Failed(format!(
            "--config: two are called `{name}`; name one of them, as in other={name}"
        )));
    }
    let path = args.data.clone().unwrap_or_default();
    let origin = path.display().to_string();
    let data = TaskData::parse(&prompt::read_document(&path)?, &origin).map_err(failed)?;
    let mut chosen = data.choose(&args.tasks, args.samples.map(|n| n as usize), &origin).map_err(failed)?;
    if let Some(Part { number, of }) = args.part {
        let mut index = 0..;
        chosen.retain(|_| index.next().is_some_and(|i: usize| i % of == number - 1));
        if chosen.is_empty() {
            return Err(Failure::Failed(format!("--part {number}/{of}: there are fewer prompts than parts")));
        }
    }
    let path = args.model.as_deref().unwrap_or("".as_ref());
    let file = ModelFile::open_with(path, args.device.open_options(), &args.overrides.library())?;
    let n_ctx = args.ctx_size.filter(|&n| n > 0).map(|n| n as usize);
    run::note_beyond_training("-c", n_ctx.unwrap_or(0), file.hparams().n_ctx_train);
    let prompts = encode(&file, &chosen, n_ctx.unwrap_or(file.hparams().n_ctx_train))?;
    let longest = prompts.iter().map(|(_, text)| text.tokens.len()).max().unwrap_or(0);
    for config in &configs {
        schedule::check(&config.spts, &file, longest)?;
    }
    let model = Model::place(file, args.device.model_options(None))?;
    let mut progress = Progress::new();
    let (ready, sidecar) = prepare(args, &model, &configs, &prompts, &mut progress)?;
    let draft = draft(args, &configs)?;

    let header = Header::new(
        model.shape().name.clone(),
        fingerprint(model.gguf()),
        data.hash,
        device_names(&model),
        crate::cli::version().to_owned(),
    );
    let named: Vec<(&str, &str)> = ready.iter().map(|r| (r.name.as_str(), r.settings.as_str())).collect();
    let (mut writer, mut lines) = match &args.out {
        Some(path) => {
            let (writer, lines) = ResultsWriter::open(path, &header, &named).map_err(failed)?;
            (Some(writer), lines)
        }
        None => (None, Vec::new()),
    };
    let asked: HashSet<usize> = prompts.iter().map(|(task, _)| task.line).collect();
    lines.retain(|l| asked.contains(&l.line));
    let there: HashSet<(usize, String)> = lines.iter().map(|l| (l.line, l.config.clone())).collect();
    let is_there = |task: &Task, config: &Ready| there.contains(&(task.line, config.name.clone()));
    let todo: usize = prompts.iter().map(|(task, _)| ready.iter().filter(|r| !is_there(task, r)).count()).sum();
    if todo > 0 {
        let mut session = Session::new(
            model.clone(),
            SessionOptions { n_ctx, sidecar, draft, ..args.memory.session_options(&args.device) },
        )?;
        let mut pace = Pace::of(todo);
        for (i, (task, text)) in prompts.iter().enumerate() {
            // Whatever the first of several runs has to bear (a processor that is cold, or hot) falls upon each in turn.
            for c in 0..ready.len() {
                let config = &ready[(i + c) % ready.len()];
                if is_there(task, config) {
                    continue;
                }
                let at = format!("prompt {}/{}, {}, {}", i + 1, prompts.len(), task.task, config.name);
                session.set_method(config.method.clone())?;
                let answer = tasks::ask(&mut session, task, text, &mut |p| {
                    progress.note(&format!("{at}, layer {}/{}, {}", p.layer + 1, p.n_layer, pace.left()));
                    ControlFlow::Continue(())
                })?;
                let said = args.keep_text.then(|| answer.text.clone());
                let line = ResultLine::new(task, text.tokens.len(), &config.name, config.settings.clone(), &answer);
                let line = ResultLine { text: said, ..line };
                if let Some(writer) = &mut writer {
                    writer.add(&line).map_err(failed)?;
                }
                lines.push(line);
                pace.step(&at);
            }
        }
        progress.clear();
    }
    Ok((Results { header, lines }, ready.into_iter().map(|r| r.name).collect()))
}

/// The devices of a model, as their makers call them: two of ggml's CUDA0 need not be alike.
pub(in crate::cli) fn device_names(model: &Model) -> String {
    let all = backend::devices();
    let described =
        |name: &String| all.iter().find(|d| d.name == *name).map_or(name.clone(), |d| d.description.clone());
    model.placement().devices.iter().map(described).collect::<Vec<_>>().join(", ")
}

/// The prompts' tokens, without the prompts that the context cannot hold.
pub(in crate::cli) fn encode<'t>(
    file: &ModelFile,
    chosen: &[&'t Task],
    n_ctx: usize,
) -> Result<Vec<(&'t Task, ChatPrompt)>, Failure> {
    let (tokenizer, template) = (file.tokenizer(), file.chat_template());
    let encoded: Vec<_> = chosen.par_iter().map(|task| (*task, task.text.encode(tokenizer, template))).collect();
    let mut prompts = Vec::new();
    let mut too_long = Vec::new();
    for (task, text) in encoded {
        let text = text.map_err(|e| Failure::Failed(format!("--data: line {}: {e}", task.line)))?;
        let n_tokens = text.tokens.len() + task.n_predict;
        if n_tokens > n_ctx {
            too_long.push((task.line, n_tokens));
        } else {
            prompts.push((task, text));
        }
    }
    if let Some((line, n)) = too_long.first() {
        let (all, n, n_ctx) = (grouped(too_long.len()), grouped(*n), grouped(n_ctx));
        let text = format!(
            "{all} of {} prompts are skipped: with their answers they exceed the context of {n_ctx} tokens (line {line}: {n})",
            grouped(chosen.len())
        );
        if prompts.is_empty() {
            return Err(Failure::Failed(format!("{text}; nothing is left to ask")));
        }
        note(&text);
    }
    Ok(prompts)
}

/// The schedules, and the proxies that they share.
fn prepare(
    args: &TasksArgs,
    model: &Arc<Model>,
    configs: &[Configuration],
    prompts: &[(&Task, ChatPrompt)],
    progress: &mut Progress,
) -> Result<(Vec<Ready>, Option<Arc<Sidecar>>), Failure> {
    // The longest prompt skips if any does.
    let longest = prompts.iter().map(|(_, text)| text.tokens.as_slice()).max_by_key(|t| t.len()).unwrap_or(&[]);
    let mut shared: Option<(Option<PathBuf>, Arc<Sidecar>)> = None;
    let mut ready = Vec::new();
    for config in configs {
        let mut schedule = schedule::of_model(&config.spts, model.gguf().path(), model.shape())?;
        let given = config.spts.sidecar.clone();
        let found = sidecars::find(model.file(), given.as_deref(), schedule.as_ref(), longest.len())?;
        let n_threads = args.device.threads.map(usize::from);
        let waiting = Waiting { model, prompt: longest, n_ctx: None, n_threads };
        if let Some(found) = sidecars::settle(found, &waiting, schedule.as_mut(), progress)? {
            match &shared {
                Some((other, _)) if *other != given => {
                    return Err(Failure::Failed(
                        "--sidecar: configurations that are measured together share one; measure the others in a second run, with the same --out".into(),
                    ));
                }
                Some(_) => {}
                None => shared = Some((given, found)),
            }
        }
        let settings = settings(args, config, schedule.as_ref());
        ready.push(Ready { name: config.name.clone(), method: config.spts.method(schedule), settings });
    }
    Ok((ready, shared.map(|(_, sidecar)| sidecar)))
}

/// The draft that the configurations share.
fn draft(args: &TasksArgs, configs: &[Configuration]) -> Result<Option<Arc<Model>>, Failure> {
    let mut shared: Option<(Option<&Path>, Arc<Model>)> = None;
    for config in configs {
        let path = config.spts.model_draft.as_deref();
        match &shared {
            Some((other, _)) if *other == path || path.is_none() => continue,
            Some(_) => {
                return Err(Failure::Failed(
                    "--model-draft: configurations that are measured together share one; measure the others in a second run, with the same --out".into(),
                ));
            }
            None => shared = config.spts.open_draft(&args.device)?.map(|draft| (path, draft)),
        }
    }
    Ok(shared.map(|(_, draft)| draft))
}

/// Everything that an answer and its time depend on, besides model, prompt and device.
fn settings(args: &TasksArgs, config: &Configuration, schedule: Option<&Schedule>) -> String {
    let schedule = match (schedule, config.spts.method) {
        (Some(schedule), _) => format!("{schedule:?}"),
        (None, Some(rival)) => {
            let draft =
                config.spts.model_draft.as_ref().map_or(String::new(), |path| format!("; draft {}", path.display()));
            format!("{rival:?}{draft}")
        }
        (None, None) => "dense".into(),
    };
    let sidecar = config.spts.sidecar.as_ref().map_or(String::new(), |path| format!("; sidecar {}", path.display()));
    let attention = config.spts.attention.0.map_or(String::new(), |share| format!("; attention sparse:{share}"));
    format!("{schedule}{sidecar}{attention}; {}{}", args.memory.settings(&args.device), args.overrides.settings())
}
