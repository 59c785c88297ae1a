//! Searching a schedule: `spts-cli tune -m model.gguf --data prompts.jsonl`.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Args;
use spts::eval::EvalError;
use spts::eval::needle::{self, NeedlePrompt, NeedleTask};
use spts::eval::results::{Header, ResultLine, Results, ResultsWriter};
use spts::eval::score::Metric;
use spts::eval::summary::{Cell, Summary};
use spts::eval::tasks::{Task, TaskData, fnv1a};
use spts::method::spts::schedule::{Budget, Schedule};
use spts::method::spts::schedule_file::{parse_schedule_arg, path_beside};
use spts::method::spts::sidecar::{Sidecar, fingerprint};
use spts::output_file::OutputFile;
use spts::session::prefill::PrefillProgress;
use spts::tokenizer::{ChatPrompt, PromptText};
use spts::tune::halves::halves;
use spts::tune::halving::{self, Round, Search, Standing};
use spts::tune::space::{Candidate, candidates};
use spts::tune::trial::{Asked, DENSE, Known, SessionTrial, Watcher};
use spts::{Model, Session, SessionOptions};

use super::eval::tables::{self, Format, Table, spread};
use super::eval::tasks::{device_names, encode};
use super::failure::Failure;
use super::options::{DeviceArgs, MemoryArgs};
use super::proxies::{self as sidecars, Waiting};
use super::{bench, fit, interrupt, note, prompt, warn};
use crate::report::{Progress, grouped, seconds};

/// For help texts.
pub const HELP: &str =
    "Half of the prompts is for the search, the other half says what the schedule found is worth. The search starts from a base
(--schedule) and varies where skipping begins, where stages end, budgets, pooling, carried scores and probing tokens: all
variants on few prompts, the better half on twice as many, and so on. Every result is kept beside the schedule, in
FILE.jsonl: the same command goes on where it was stopped, also with another --max-loss, and eval tasks --report reads it.
Without a schedule within the bound nothing is written. Runs without --schedule take MODEL.schedule from beside the model.";

/// How a file that this command wrote begins; others are not overwritten.
const MARK: &str = "# Found by spts-cli tune ";

/// Name of a schedule that was found.
const NAME: &str = "tuned";

/// Numbers hidden in a prompt that is made of a text, a task each.
const KEYS: [usize; 2] = [1, 4];

/// Prompts of each such task.
const SAMPLES: u32 = 16;

/// Tokens of such a prompt for budgets that are fractions of it.
const SHORT: usize = 4096;

/// Time between two notes where standard error is no terminal.
const NOTE_EVERY: Duration = Duration::from_secs(30);

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
    /// Schedule to start from: a preset, fractions of the prompt, or a file
    #[arg(long, value_name = "WHAT", default_value = "default")]
    schedule: String,
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

    fn n_ctx(&self) -> Option<usize> {
        self.ctx_size.filter(|&n| n > 0).map(|n| n as usize)
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
    let model = Model::open(&args.model, args.device.model_options(None))?;
    warn(model.file());
    let base = parse_schedule_arg(&args.schedule, model.shape())?;
    let prompts = match args.text {
        Some(_) => hidden_numbers(args, &model, &base, &source)?,
        None => with_answers(args, &model, &source)?,
    };
    let out = args.out.clone().unwrap_or_else(|| path_beside(&args.model));
    let file = create(&out, args)?;
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
    let options = SessionOptions {
        n_ctx: args.n_ctx(),
        n_ubatch: args.memory.n_ubatch(),
        n_threads: args.n_threads(),
        cache_type_k: args.memory.cache_type_k.library(),
        cache_type_v: args.memory.cache_type_v.library(),
        sidecar,
        ..SessionOptions::default()
    };
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
        (halving::most_answers(all.len(), search_half.len()) + 2 * report_half.len()).saturating_sub(known.len()),
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
    let kept = |e: spts::Error| {
        note(&format!("what was measured is kept in {}: the same command goes on from there", journal.display()));
        Failure::from(e)
    };
    let search = halving::search(all.len(), search_half.len(), args.max_loss, &mut trial).map_err(kept)?;
    let tried = tried(args, &all, search_half.len(), &search);
    // What was tried is worth seeing in any case.
    let but_tried = |e: Failure| {
        let _ = std::io::stderr().write_all(tried.as_bytes());
        e
    };
    let Some(found) = search.found else {
        screen.progress.clear();
        return Err(but_tried(nothing_found(args, &all, &search, &journal)));
    };
    check_dense(args, trial.score_of_dense(), &journal).map_err(but_tried)?;
    let lines = trial.report(found, &report_half).map_err(kept)?;
    screen.progress.clear();
    let label = &all[found].label;
    let summary = Summary::new(&Results { header, lines }, &[DENSE.to_owned(), label.clone()]);
    let outcome = Outcome { args, candidates: &all, found, summary: &summary };
    outcome.check(&journal).map_err(but_tried)?;
    write(file, &(outcome.comments() + &tuned(&all[found].schedule).to_string()))?;
    Ok(tried + &outcome.text(&out))
}

fn failed(e: impl Into<EvalError>) -> Failure {
    spts::Error::from(e.into()).into()
}

/// The prompts of `--data`.
fn with_answers(args: &TuneArgs, model: &Arc<Model>, source: &str) -> Result<Vec<Asked>, Failure> {
    let origin = args.source().display().to_string();
    let data = TaskData::parse(source, &origin).map_err(failed)?;
    let chosen = data.choose(&args.tasks, args.samples.map(|n| n as usize), &origin).map_err(failed)?;
    let prompts = encode(model, &chosen, args.n_ctx().unwrap_or(model.hparams().n_ctx_train))?;
    Ok(prompts.into_iter().map(|(task, prompt)| Asked { task: task.clone(), prompt }).collect())
}

/// Prompts made of `--text`.
fn hidden_numbers(args: &TuneArgs, model: &Arc<Model>, base: &Schedule, source: &str) -> Result<Vec<Asked>, Failure> {
    let in_full = match base.stages.first().map(|s| s.budget) {
        Some(Budget::Fraction(_)) => SHORT,
        _ => base.in_full_from(),
    };
    let n_tokens = args.n_tokens.map_or(in_full, |n| n as usize);
    let n_ctx = args.n_ctx().unwrap_or(model.hparams().n_ctx_train);
    let n = n_tokens + needle::ANSWER_TOKENS;
    if n > n_ctx {
        let n_ctx_train = model.hparams().n_ctx_train;
        return Err(spts::Error::ContextFull { n_tokens: n, n_ctx, n_ctx_train }.into());
    }
    let text = model.tokenizer().encode(source, false, false);
    let n_samples = args.samples.unwrap_or(SAMPLES) as usize;
    let mut asked = Vec::new();
    for n_keys in KEYS {
        let task = NeedleTask { n_tokens, n_keys, n_samples };
        let prompts = task.prompts(model.tokenizer(), &text).map_err(spts::Error::from)?;
        for NeedlePrompt { tokens, expected, .. } in prompts {
            let text = model.tokenizer().decode(&tokens);
            let task = Task {
                line: asked.len() + 1,
                id: None,
                task: if n_keys == 1 { "1 number".into() } else { format!("{n_keys} numbers") },
                text: PromptText::Raw(text.clone()),
                hash: fnv1a(text.as_bytes()),
                answers: vec![expected],
                metric: Metric::Prefix,
                n_predict: needle::ANSWER_TOKENS,
                length: Some(n_tokens),
            };
            asked.push(Asked { task, prompt: ChatPrompt { tokens, text, contents: Vec::new(), question: None } });
        }
    }
    Ok(asked)
}

/// Of the data; of a text, and what was made of it.
fn data_hash(args: &TuneArgs, source: &str, prompt: &ChatPrompt) -> u64 {
    match args.text {
        None => fnv1a(source.trim_end().as_bytes()),
        Some(_) => {
            let made = format!("{} tokens, {} samples\n", prompt.tokens.len(), args.samples.unwrap_or(SAMPLES));
            fnv1a((made + source).as_bytes())
        }
    }
}

/// Creates the schedule's file before the work. A file that this command has not written stays, and what is read.
fn create(out: &Path, args: &TuneArgs) -> Result<OutputFile, Failure> {
    let (sidecar, base) = (Sidecar::path_beside(&args.model), PathBuf::from(&args.schedule));
    let file = OutputFile::create(out, &[&args.model, args.source(), &sidecar, &base])?;
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
    let or_default = |n: Option<usize>| n.map_or("default".into(), |n| n.to_string());
    format!(
        "{}; tile {}, cache {:?}/{:?}, threads {}",
        schedule.map_or(DENSE.into(), |s| format!("{s:?}")),
        or_default(args.memory.n_ubatch()),
        args.memory.cache_type_k,
        args.memory.cache_type_v,
        or_default(args.n_threads())
    )
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

/// Where dense has less to lose than the bound, any schedule stays within it.
fn check_dense(args: &TuneArgs, score: f64, journal: &Path) -> Result<(), Failure> {
    if 100.0 * score > args.max_loss {
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
fn nothing_found(args: &TuneArgs, all: &[Candidate], search: &Search, journal: &Path) -> Failure {
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

/// The schedule as it is written and named in reports.
fn tuned(schedule: &Schedule) -> Schedule {
    Schedule { name: NAME.into(), ..schedule.clone() }
}

fn write(mut file: OutputFile, text: &str) -> Result<(), Failure> {
    let path = file.path().display().to_string();
    file.write_all(text.as_bytes()).map_err(|e| Failure::Failed(format!("{path}: cannot write: {e}")))?;
    Ok(file.finish()?)
}

/// A schedule was found.
struct Outcome<'a> {
    args: &'a TuneArgs,
    candidates: &'a [Candidate],
    found: usize,
    /// Of dense and the schedule found, on the prompts to report.
    summary: &'a Summary,
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
    fn check(&self, journal: &Path) -> Result<(), Failure> {
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
    fn comments(&self) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs());
        let (args, s) = (self.args, self.summary);
        let mut lines = vec![
            format!("{MARK}{} on {} for {} on {}.", super::version(), bench::date(now), s.model, s.device),
            format!(
                "# {} of {} schedules around {}, on half of the prompts of {} (seed {}), within --max-loss {}.",
                self.label(),
                self.candidates.len(),
                args.schedule,
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

    fn text(&self, out: &Path) -> String {
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
fn tried(args: &TuneArgs, all: &[Candidate], n_searched: usize, search: &Search) -> String {
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

/// What the user sees meanwhile.
struct Screen {
    progress: Progress,
    start: Instant,
    noted: Instant,
    done: usize,
    most: usize,
    max_loss: f64,
    labels: Vec<String>,
}

impl Screen {
    fn new(most: usize, max_loss: f64, labels: Vec<String>) -> Screen {
        let now = Instant::now();
        Screen { progress: Progress::new(), start: now, noted: now, done: 0, most, max_loss, labels }
    }

    fn left(&self) -> String {
        if self.done == 0 {
            return "time left unknown".into();
        }
        let each = self.start.elapsed().as_secs_f64() / self.done as f64;
        format!("at most {} left", seconds(each * self.most.saturating_sub(self.done) as f64))
    }
}

impl Watcher for Screen {
    fn prefill(&mut self, task: &Task, config: &str, p: PrefillProgress) -> ControlFlow<()> {
        let at = format!("answer {} of at most {}, {}, {config}", self.done + 1, self.most, task.task);
        let line = format!("{at}, layer {}/{}, {}", p.layer + 1, p.n_layer, self.left());
        self.progress.note(&line);
        ControlFlow::Continue(())
    }

    fn answered(&mut self, _: &ResultLine) {
        self.done += 1;
        if !std::io::stderr().is_terminal() && self.noted.elapsed() >= NOTE_EVERY {
            self.noted = Instant::now();
            note(&format!("{} of at most {} answers, {}", self.done, self.most, self.left()));
        }
    }

    fn round_done(&mut self, round: &Round) {
        self.progress.clear();
        let kept = round.standings.iter().filter(|(c, _)| round.kept.contains(c));
        let best = kept.min_by(|(_, a), (_, b)| b.speed_up.total_cmp(&a.speed_up));
        let best = best.map_or(
            format!("none can still be faster than dense and within --max-loss {}", self.max_loss),
            |(c, s)| {
                let loss = spread(&s.loss, 1.0, 1);
                format!("the fastest of them {}, {:.2} times as fast, loss {loss}", self.labels[*c], s.speed_up)
            },
        );
        let (n, prompts, kept) = (round.standings.len(), round.n_prompts, round.kept.len());
        note(&format!("{n} schedules after {prompts} prompts: {kept} go on, {best}"));
    }
}
