//! Measuring: `spts-cli bench -m model.gguf -p 8192,32768`.

mod report;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use clap::Args;
use spts::bench::measure::{self, BenchOptions, Mode};
use spts::bench::synthetic::{self, Synthetic};
use spts::ggml::backend;
use spts::gguf::Gguf;
use spts::method::spts::Spts;
use spts::method::spts::schedule::{Reach, Schedule};
use spts::method::spts::sidecar::Sidecar;
use spts::method::{Dense, Method, Prompt};
use spts::model::named_shapes::SHAPE_NAMES;
use spts::model::shape::Shape;
use spts::{Model, ModelFile, SessionOptions, runtime};
use spts_quant::Preset;

pub(super) use self::report::date;
use self::report::{describe, markdown};
use super::failure::Failure;
use super::inputs::{self, create_output};
use super::options::{DeviceArgs, MemoryArgs, OverrideArgs, SptsArgs};
use super::quantize::preset;
use super::{interrupt, note, run, schedule, warn};
use crate::report::{SharedProgress, grouped};

/// Seed of weights and prompts: the same ones every time.
const SEED: u64 = 1;

/// What `bench` measures, and how often.
#[derive(Args, Clone, Debug)]
pub struct BenchArgs {
    /// Model, a GGUF file
    #[arg(short, long, value_name = "FILE", required_unless_present = "synthetic", conflicts_with = "synthetic")]
    pub model: Option<PathBuf>,
    /// A well-known model's shape with random weights instead; plan's --shape lists the names
    #[arg(long, value_name = "SHAPE", value_parser = clap::builder::PossibleValuesParser::new(SHAPE_NAMES), hide_possible_values = true)]
    pub synthetic: Option<String>,
    /// Types of the random weights: mxfp4_moe, q4_0, q4_k_s, q4_k_m (also q4_k), q5_k_m (also q5_k), q6_k, q8_0, f16 or f32
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
    /// Also show which kinds of operation take which share of the prefill, from one more run
    #[arg(long)]
    pub ops: bool,
    /// Print one JSON object, with every value measured
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub overrides: OverrideArgs,
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

/// The text that `bench` prints.
pub fn bench(args: &BenchArgs) -> Result<String, Failure> {
    interrupt::install()?;
    runtime::set_log_level(runtime::Level::Silent);
    let progress = SharedProgress::new();
    let mut gguf = gguf(args, &progress)?;
    args.overrides.library().apply(&mut gguf).map_err(spts::Error::from)?;
    if args.repetitions == 0 {
        progress.lock().clear();
        return Ok(String::new());
    }
    let device_bytes_before = backend::gpu_bytes_used();
    let start = Instant::now();
    let shown = progress.clone();
    args.device.set_up_process();
    let options = args.device.model_options(Some(Box::new(move |fraction| shown.lock().load(fraction))));
    let file = ModelFile::from_gguf(Arc::new(gguf))?;
    let longest = args.prompts.iter().copied().max().unwrap_or(0) as usize;
    if args.model.is_some() {
        schedule::check(&args.spts, &file, longest)?;
    }
    let model = Model::place(file, options)?;
    let load_s = start.elapsed().as_secs_f64();
    progress.lock().clear();
    warn(model.file());
    // Random weights were not trained at all.
    if args.synthetic.is_none() {
        let n_ctx_train = model.hparams().n_ctx_train;
        let behind = [("-n", args.n_gen as usize), ("--questions", args.questions.unwrap_or(0) as usize)];
        let (flag, most) = behind.into_iter().max_by_key(|(_, n)| *n).unwrap_or_default();
        if longest > n_ctx_train {
            run::note_beyond_training("-p", longest, n_ctx_train);
        } else {
            run::note_beyond_training(
                &format!("-p {longest} with {flag} {most}, together"),
                longest + most,
                n_ctx_train,
            );
        }
    }

    let (schedule, sidecar) = skipping(args, &model)?.unzip();
    let reach = reach(args);
    let method = match args.spts.method {
        Some(rival) => Some(rival.method()),
        None => schedule.clone().map(|schedule| Arc::new(Spts { schedule, reach }) as Arc<dyn Method>),
    };
    // Dense prompts are measured beside those of any method: with another attention they are one.
    let attention = args.spts.attention;
    let method =
        method.or_else(|| attention.0.map(|_| Arc::new(Dense) as Arc<dyn Method>)).map(|method| attention.of(method));
    let session = SessionOptions {
        sidecar: sidecar.flatten(),
        draft: args.spts.open_draft(&args.device)?,
        ..args.memory.session_options(&args.device)
    };
    let options = BenchOptions {
        prompts: args.prompts.iter().map(|&n| n as usize).collect(),
        n_decode: args.n_gen as usize,
        n_question: args.questions.map(|n| n as usize),
        repetitions: args.repetitions as usize,
        op_times: args.ops,
        rest: Duration::from_millis(args.rest.into()),
        seed: SEED,
        method,
        session,
    };
    let mut watch = Watch { progress: progress.clone(), repetitions: options.repetitions };
    let measured = measure::measure(&model, &options, device_bytes_before, &mut watch);
    progress.lock().clear();
    let report = describe(args, &model, &options, schedule.as_ref(), load_s, measured?);
    if args.json {
        let json = serde_json::to_string(&report).map_err(|e| Failure::Failed(format!("JSON: {e}")))?;
        return Ok(json + "\n");
    }
    Ok(markdown(&report))
}

/// The file, or one that is made up.
fn gguf(args: &BenchArgs, progress: &SharedProgress) -> Result<Gguf, Failure> {
    let options = args.device.open_options();
    let open = |path: &Path| Gguf::open(path, options).map_err(spts::Error::from);
    let Some(made) = synthetic(args)? else {
        return Ok(open(args.model.as_deref().unwrap_or(Path::new("")))?);
    };
    let mut show = |tensor: &str, share: f64| {
        progress.lock().note(&format!("making {tensor}  {:.0} %", 100.0 * share));
    };
    let Some(path) = &args.write else {
        return Ok(made.open(&mut show).map_err(spts::Error::from)?);
    };
    // Places that cannot be written are found before the work, not after it.
    let inputs = args.files();
    let out = create_output(path, &inputs)?;
    let schedule = args.spts.schedule(&made.shape)?;
    let sidecar = schedule.map(|s| Ok::<_, Failure>((s, create_output(&Sidecar::path_beside(path), &inputs)?)));
    let sidecar = sidecar.transpose()?;
    made.write_into(out, &mut show).map_err(spts::Error::from)?;
    let gguf = open(path)?;
    if let Some((schedule, out)) = sidecar {
        synthetic::write_sidecar_into(&gguf, &made.shape, &schedule, out).map_err(spts::Error::from)?;
    }
    Ok(gguf)
}

fn synthetic(args: &BenchArgs) -> Result<Option<Synthetic>, Failure> {
    let Some(name) = &args.synthetic else { return Ok(None) };
    let shape = Shape::named(name).ok_or_else(|| Failure::Failed(format!("--synthetic {name}: no such shape")))?;
    Ok(Some(Synthetic { shape, preset: args.preset, seed: SEED }))
}

/// A schedule with the proxies that it needs.
type WithProxies = (Schedule, Option<Arc<Sidecar>>);

/// What is measured beside dense.
fn skipping(args: &BenchArgs, model: &Model) -> Result<Option<WithProxies>, Failure> {
    let schedule = match &args.model {
        Some(path) => schedule::of_model(&args.spts, path, model.shape())?,
        None => args.spts.schedule(model.shape())?,
    };
    let Some(mut schedule) = schedule else { return Ok(None) };
    let sidecar = match schedule.use_proxy && schedule.skip_ffn {
        true => sidecar(args, model, &mut schedule)?,
        false => None,
    };
    Ok(Some((schedule, sidecar)))
}

fn reach(args: &BenchArgs) -> Reach {
    if args.at_any_length { Reach::AnyLength } else { Reach::AboveFirstBudget }
}

/// The proxies: those of `--sidecar`, those beside the model, random ones for a model without a file, or none.
fn sidecar(args: &BenchArgs, model: &Model, schedule: &mut Schedule) -> Result<Option<Arc<Sidecar>>, Failure> {
    let beside = args.model.as_ref().or(args.write.as_ref()).map(|path| Sidecar::path_beside(path));
    let found = args.spts.sidecar.clone().or_else(|| beside.filter(|path| path.exists()));
    let sidecar = match (found, synthetic(args)?) {
        (Some(path), _) => Sidecar::open(&path),
        (None, Some(made)) => synthetic::open_sidecar(model.gguf(), &made.shape, schedule)
            .map_err(Into::into)
            .and_then(Sidecar::from_gguf),
        (None, None) => {
            note("no FFN proxies for this model: tokens are chosen by attention alone");
            schedule.use_proxy = false;
            return Ok(None);
        }
    };
    let sidecar = sidecar.map_err(spts::Error::from)?;
    sidecar.check(model.file()).map_err(spts::Error::from)?;
    let method = Spts { schedule: schedule.clone(), reach: reach(args) };
    for &n in &args.prompts {
        let budgets = method.budgets(model.shape(), Prompt::of(n as usize))?;
        sidecar.check_layers(budgets.layers_with_proxy()).map_err(spts::Error::from)?;
    }
    Ok(Some(Arc::new(sidecar)))
}

/// Shows which run is under way.
struct Watch {
    progress: SharedProgress,
    repetitions: usize,
}

impl measure::Progress for Watch {
    fn session(&mut self, stop: &Arc<AtomicBool>) {
        interrupt::stops(stop);
    }

    fn run(&mut self, n_prompt: usize, mode: Mode, repetition: Option<usize>) {
        let at = match repetition {
            Some(i) => format!("run {} of {}", i + 1, self.repetitions),
            None => "warm-up".into(),
        };
        self.progress.lock().note(&format!("{} tokens, {}: {at}", grouped(n_prompt), mode.name()));
    }

    fn questions(&mut self, n_document: usize, repetition: Option<usize>) {
        let at = match repetition {
            Some(i) => format!("run {} of {}", i + 1, self.repetitions),
            None => "warm-up".into(),
        };
        self.progress.lock().note(&format!("questions about {} tokens: {at}", grouped(n_document)));
    }
}
