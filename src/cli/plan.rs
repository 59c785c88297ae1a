//! Counting before running: `spts-cli plan -m model.gguf -n 32768`.

use std::path::Path;

use spts::gguf::{Gguf, OpenOptions};
use spts::graph::last_row::{CPU_QUERIES, keep_last_row};
use spts::graph::print::print;
use spts::model::hparams::HParams;
use spts::spts::passes;
use spts::spts::plan::{Plan, PlanOptions};
use spts::spts::schedule::Schedule;
use spts::spts::shape::{Shape, SlidingWindow};
use spts::{Model, ModelOptions};

use super::failure::Failure;
use super::{PlanArgs, warn};

/// The text that `plan` prints.
pub fn plan(args: &PlanArgs) -> Result<String, Failure> {
    let n_tokens = args.n_tokens as usize;
    let shape = match (&args.shape, &args.model) {
        (Some(name), _) => {
            Shape::named(name).ok_or_else(|| Failure::Failed(format!("--shape {name}: no such shape")))?
        }
        (None, Some(path)) if args.graph => return graph(args, path),
        (None, path) => shape_of_file(path.as_deref().unwrap_or(Path::new("")))?,
    };
    let schedule = match args.spts.schedule(&shape.key())? {
        Some(schedule) => schedule,
        None => dense(&shape)?,
    };
    let defaults = PlanOptions::default();
    let options = PlanOptions {
        k_bytes: args.memory.cache_type_k.bytes(),
        v_bytes: args.memory.cache_type_v.bytes(),
        n_ubatch: args.memory.n_ubatch().unwrap_or(defaults.n_ubatch),
        forced: args.forced,
    };
    let plan = Plan::new(&shape, &schedule, n_tokens, &options)?;
    if args.json {
        let json = serde_json::to_string(&plan).map_err(|e| Failure::Failed(format!("JSON: {e}")))?;
        return Ok(json + "\n");
    }
    Ok(plan.to_string())
}

/// `--no-spts`: a schedule whose budget is the whole prompt.
fn dense(shape: &Shape) -> Result<Schedule, Failure> {
    Ok(Schedule { name: "dense".into(), ..Schedule::fractional(&shape.key(), [1.0; 4], 0.0)? })
}

fn shape_of_file(path: &Path) -> Result<Shape, Failure> {
    let gguf = Gguf::open(path, OpenOptions { mmap: true, mlock: false }).map_err(spts::Error::from)?;
    let hparams = HParams::from_gguf(&gguf).map_err(spts::Error::from)?;
    Ok(shape(&gguf, &hparams))
}

/// The shape of a model.
pub fn shape(gguf: &Gguf, hp: &HParams) -> Shape {
    let stem = || {
        let name = gguf.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.strip_suffix(".gguf").map_or(name.clone(), str::to_owned)
    };
    Shape {
        name: if hp.name.is_empty() { stem() } else { hp.name.clone() },
        arch: hp.arch.name().into(),
        n_layer: hp.n_layer,
        n_embd: hp.n_embd,
        n_ff: hp.n_ff,
        n_head: hp.n_head,
        n_head_kv: hp.n_head_kv,
        head_dim_k: hp.head_dim,
        head_dim_v: hp.head_dim,
        n_vocab: hp.n_vocab,
        tied: gguf.tensor("output.weight").is_none(),
        gated: true,
        weight_bytes: Some(gguf.tensors().map(|t| t.nbytes).sum()),
        swa: hp.swa.map(|s| SlidingWindow {
            window: s.window,
            layers: (0..hp.n_layer).map(|l| hp.window(l).is_some()).collect(),
        }),
    }
}

/// The graph as it would run, all rewrites done.
fn graph(args: &PlanArgs, path: &Path) -> Result<String, Failure> {
    let options = ModelOptions { repack: false, device: Some("CPU".into()), ..ModelOptions::default() };
    let model = Model::open(path, options)?;
    warn(&model);
    let hp = model.hparams();
    let n_tokens = args.n_tokens as usize;
    let dense = model.graph(n_tokens, hp.n_ctx_train.max(n_tokens));
    let rewritten = match args.spts.schedule(&shape(model.gguf(), hp).key())? {
        None => dense,
        Some(schedule) => {
            let resolved = schedule.resolve(hp.n_layer, n_tokens, &|l| hp.window(l).is_some())?;
            if resolved.is_dense() { dense } else { passes::skip_and_prune(&dense, &resolved, &schedule)? }
        }
    };
    Ok(print(&keep_last_row(&rewritten, CPU_QUERIES), |w| model.weight(w).name.clone()))
}
