//! The FFN proxies of a run: found before the weights are placed, made from the prompt afterwards where there are none.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use spts::method::spts::Spts;
use spts::method::spts::schedule::Schedule;
use spts::method::spts::sidecar::{NewSidecar, Sidecar};
use spts::method::{Method, Prompt};
use spts::output_file::OutputFile;
use spts::proxies::calibrate::{CalibrateOptions, CalibrationStep, calibrate};
use spts::proxies::error::CalibrationError;
use spts::proxies::{self, Found, PROMPT_TOKENS};
use spts::{Model, ModelFile};

use super::failure::Failure;
use super::note;
use crate::report::{self, Progress, mib};

/// Looks for the proxies that a schedule needs for a prompt of so many tokens.
pub fn find(
    file: &ModelFile,
    given: Option<&Path>,
    schedule: Option<&Schedule>,
    n_tokens: usize,
) -> Result<Found, Failure> {
    let Some(schedule) = schedule else { return Ok(Found::NotNeeded) };
    let budgets = Spts::new(schedule.clone()).budgets(file.shape(), Prompt::of(n_tokens))?;
    Ok(proxies::find(file, given, &budgets).map_err(spts::Error::from)?)
}

/// A prompt that waits for proxies, which can be made from it.
pub struct Waiting<'a> {
    /// The model.
    pub model: &'a Arc<Model>,
    /// The prompt.
    pub prompt: &'a [u32],
    /// Context of the run, as in [`spts::SessionOptions`].
    pub n_ctx: Option<usize>,
    /// CPU threads.
    pub n_threads: Option<usize>,
}

/// The proxies that were found, or new ones from the prompt. Where none can be made, FFNs are scored by attention alone: the
/// schedule says so afterwards, and so does a line on standard error.
pub fn settle(
    found: Found,
    waiting: &Waiting,
    schedule: Option<&mut Schedule>,
    progress: &mut Progress,
) -> Result<Option<Arc<Sidecar>>, Failure> {
    let Some(schedule) = schedule else { return Ok(None) };
    let sidecar = match found {
        Found::NotNeeded => return Ok(None),
        Found::Sidecar(sidecar) => Some(sidecar),
        Found::Nothing { keep_at, unusable } => {
            if let Some(e) = unusable {
                note(&format!("{e}: making them again"));
            }
            from_prompt(keep_at.as_deref(), waiting, schedule, progress)?.map(Arc::new)
        }
    };
    match &sidecar {
        Some(sidecar) => schedule.proxy = sidecar.size(),
        None => schedule.use_proxy = false,
    }
    Ok(sidecar)
}

fn from_prompt(
    keep_at: Option<&Path>,
    waiting: &Waiting,
    schedule: &Schedule,
    progress: &mut Progress,
) -> Result<Option<Sidecar>, Failure> {
    let without = |why: &str| {
        note(&format!("no FFN proxies, tokens are chosen by attention alone: {why}"));
        Ok(None)
    };
    let Some(path) = keep_at else {
        return without("there is no cache folder to keep them in (XDG_CACHE_HOME and HOME are not set)");
    };
    if let Some(folder) = path.parent()
        && let Err(e) = std::fs::create_dir_all(folder)
    {
        return without(&format!("{}: cannot make this folder: {e}", folder.display()));
    }
    let Waiting { model, prompt, n_ctx, n_threads } = *waiting;
    let out = match OutputFile::create(path, &[model.gguf().path()]) {
        Ok(out) => out,
        Err(e) => return without(&e.to_string()),
    };
    let n = prompt.len().min(PROMPT_TOKENS);
    note(&format!(
        "first run of this model with skipping: making its FFN proxies from {n} tokens of the prompt, to be kept in {}",
        path.display()
    ));
    let options = CalibrateOptions { n_ctx, n_threads, ..CalibrateOptions::new(schedule.proxy, &schedule.name) };
    let start = Instant::now();
    let made = proxies::from_prompt(model, prompt, &options, &mut |step| {
        progress.note(&line(step, start));
        ControlFlow::Continue(())
    });
    progress.clear();
    let made = match made {
        Ok(made) => made,
        Err(spts::Error::Calibration(e @ (CalibrationError::TooShort { .. } | CalibrationError::Experts))) => {
            return without(&e.to_string());
        }
        Err(e) => return Err(e.into()),
    };
    let opened = made.write_into(out).and_then(|()| Sidecar::open(path));
    match opened.and_then(|s| s.check(model.file()).map(|()| s)) {
        Ok(sidecar) => Ok(Some(sidecar)),
        Err(e) => without(&e.to_string()),
    }
}

/// Calibrates, with a progress line.
pub fn make(
    model: &Arc<Model>,
    texts: &[Vec<u32>],
    options: &CalibrateOptions,
    progress: &mut Progress,
) -> spts::Result<NewSidecar> {
    let start = Instant::now();
    let made = calibrate(model, texts, options, &mut |step| {
        progress.note(&line(step, start));
        ControlFlow::Continue(())
    });
    progress.clear();
    made
}

fn line(step: CalibrationStep, start: Instant) -> String {
    match step {
        CalibrationStep::Reading { n_tokens, fraction } => {
            let elapsed = start.elapsed().as_secs_f64();
            let eta = match fraction > 0.01 {
                true => format!("  ETA {}", report::seconds(elapsed / f64::from(fraction) - elapsed)),
                false => String::new(),
            };
            let read = (f64::from(fraction) * n_tokens as f64) as usize;
            format!("calibrating  {} of {} tokens{eta}", report::grouped(read), report::grouped(n_tokens))
        }
        CalibrationStep::Decomposing { done, n_layer } => {
            format!("calibrating  decomposing layer {}/{n_layer}", done + 1)
        }
    }
}

/// What was made, in one line.
pub fn summary(made: &NewSidecar, path: &Path, elapsed: f64) -> String {
    let bytes = std::fs::metadata(path).map_or(0, |m| m.len());
    format!(
        "{}: proxies of {} layers ({} channels, rank {}), {}, from {} tokens in {}; --proxy uses them",
        path.display(),
        made.layers.len(),
        made.size.d_low,
        made.size.rank,
        mib(bytes),
        made.n_tokens,
        report::seconds(elapsed)
    )
}
