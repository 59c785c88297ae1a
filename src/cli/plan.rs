//! Counting before running: `spts-cli plan -m model.gguf -n 32768`.

use std::path::{Path, PathBuf};

use clap::Args;
use spts::ModelFile;
use spts::compile;
use spts::compile::target::Target;
use spts::ggml::kernels::Kernels;
use spts::gguf::OpenOptions;
use spts::graph::print::print;
use spts::method::spts::schedule::Reach;
use spts::method::{Entry, Prompt};
use spts::model::named_shapes::SHAPE_NAMES;
use spts::model::placement::Placement;
use spts::model::shape::Shape;
use spts::plan::{CpuExperts, Plan, PlanOptions};

use super::failure::Failure;
use super::options::{MemoryArgs, OVERRIDES, OverrideArgs, PlacementArgs, SptsArgs};
use super::{run, schedule, warn};

/// Counting.
#[derive(Args, Clone, Debug)]
pub struct PlanArgs {
    /// Model, a GGUF file
    #[arg(short, long, value_name = "FILE", required_unless_present = "shape", conflicts_with = "shape")]
    pub model: Option<PathBuf>,
    /// A well-known model's shape instead, with which no metadata can be changed: llama-3.1-8b, llama-3.2-1b, qwen2.5-7b, qwen2.5-1.5b, qwen2.5-0.5b, smollm2-135m, gemma-3-270m, qwen3-30b-a3b, gpt-oss-20b, gpt-oss-120b, qwen3.6-27b, qwen3.6-35b-a3b
    #[arg(long, value_name = "NAME", value_parser = clap::builder::PossibleValuesParser::new(SHAPE_NAMES), hide_possible_values = true, conflicts_with_all = OVERRIDES)]
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

/// The text that `plan` prints.
pub fn plan(args: &PlanArgs) -> Result<String, Failure> {
    let n_tokens = args.n_tokens as usize;
    let n_cpu_moe = args.placement.n_cpu_moe();
    let (shape, schedule, cpu_experts) = match (&args.shape, &args.model) {
        (Some(name), _) => {
            let shape = Shape::named(name).ok_or_else(|| Failure::Failed(format!("--shape {name}: no such shape")))?;
            note_beyond_training(n_tokens, Shape::trained_context(name));
            let schedule = args.spts.schedule(&shape)?;
            let cpu_experts = shape.expert_bytes(n_cpu_moe);
            (shape, schedule, cpu_experts)
        }
        (None, Some(path)) if args.graph => return graph(args, path),
        (None, path) => {
            let file = open(args, path.as_deref().unwrap_or(Path::new("")))?;
            note_beyond_training(n_tokens, Some(file.hparams().n_ctx_train));
            let schedule = schedule::of_model(&args.spts, file.gguf().path(), file.shape())?;
            (file.shape().clone(), schedule, file.expert_bytes(n_cpu_moe))
        }
    };
    let defaults = PlanOptions::default();
    let options = PlanOptions {
        k_bytes: args.memory.cache_type_k.bytes(),
        v_bytes: args.memory.cache_type_v.bytes(),
        n_ubatch: args.memory.n_ubatch().unwrap_or(defaults.n_ubatch),
        cpu_experts: CpuExperts::of(&cpu_experts),
        reach: if args.forced { Reach::EveryLayer } else { Reach::AboveFirstBudget },
    };
    if args.spts.attention.0.is_some() {
        super::note("--attention: what sparse attention reads depends on the text; operations are those of all keys");
    }
    let plan = match schedule {
        Some(schedule) => Plan::new(&shape, &schedule, n_tokens, &options)?,
        None => Plan::of_method(&shape, &*args.spts.method(None), n_tokens, &options)?,
    };
    if args.json {
        let json = serde_json::to_string(&plan).map_err(|e| Failure::Failed(format!("JSON: {e}")))?;
        return Ok(json + "\n");
    }
    Ok(plan.to_string())
}

fn note_beyond_training(n_tokens: usize, n_ctx_train: Option<usize>) {
    if let Some(n) = n_ctx_train {
        run::note_beyond_training("-n", n_tokens, n);
    }
}

fn open(args: &PlanArgs, path: &Path) -> Result<ModelFile, Failure> {
    let options = OpenOptions { mmap: true, mlock: false };
    let file = ModelFile::open_with(path, options, &args.overrides.library())?;
    warn(&file);
    Ok(file)
}

/// The program that would run, all rewrites done, with the devices of its layers.
fn graph(args: &PlanArgs, path: &Path) -> Result<String, Failure> {
    let file = open(args, path)?;
    note_beyond_training(args.n_tokens as usize, Some(file.hparams().n_ctx_train));
    let schedule = schedule::of_model(&args.spts, file.gguf().path(), file.shape())?;
    let placement = Placement::choose(
        file.shape().n_layer,
        args.placement.device.as_deref(),
        args.placement.n_gpu_layers.map(|n| n as usize),
        if file.shape().experts.is_some() { args.placement.n_cpu_moe() } else { 0 },
    )
    .map_err(spts::Error::from)?;
    // Proxies of the size that would be made.
    let proxy = schedule.as_ref().map(|s| s.proxy);
    let kernels = Kernels::of_each(&placement.devices);
    let target = Target::new(&file, &placement, &kernels, args.memory.n_ubatch(), proxy)
        .with_attention(args.spts.attention.0, args.memory.cache_types());
    let n_tokens = args.n_tokens as usize;
    let dense = file.graph(n_tokens, file.hparams().n_ctx_train.max(n_tokens));
    let method = args.spts.method(schedule);
    if method.entry(file.shape(), Prompt::of(n_tokens))? != Entry::All {
        return Err(Failure::Failed(format!(
            "--graph: method {} reads a part of the prompt by the dense graph; it has none of its own to print",
            method.name()
        )));
    }
    let budgets = method.budgets(file.shape(), Prompt::of(n_tokens))?;
    let compiled = compile::prompt(dense, &*method, budgets, &target)?;
    let layers = |device: usize| placement.layer.iter().filter(|&&d| d == device).count();
    let devices: Vec<String> =
        placement.devices.iter().enumerate().map(|(i, name)| format!("{name}: {} layers", layers(i))).collect();
    let phases = compiled.program.phases.len();
    let head = format!("{}; {phases} phases, tiles of {} rows\n", devices.join(", "), compiled.tile);
    Ok(head + &print(&compiled.graph, |w| file.weight(w).name.clone()))
}
