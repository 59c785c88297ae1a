//! The FFN proxies of a run: found beside the model or in the user's cache folder, or made on the spot from the prompt.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use spts::Model;
use spts::output_file::OutputFile;
use spts::spts::calibrate::{CalibrateOptions, CalibrationError, CalibrationStep, calibrate};
use spts::spts::schedule::Schedule;
use spts::spts::sidecar::{NewSidecar, Sidecar, fingerprint};

use super::failure::Failure;
use super::note;
use crate::report::{self, Progress, mib};

/// Tokens of its own prompt that a first run calibrates on: it has to be short beside the prefill that waits for it.
const PROMPT_TOKENS: usize = 2048;

/// What a search for proxies goes by.
pub struct Wanted<'a> {
    /// The model.
    pub model: &'a Arc<Model>,
    /// The file of `--sidecar`.
    pub sidecar: Option<&'a Path>,
    /// The prompt, to calibrate on.
    pub prompt: &'a [u32],
    /// CPU threads.
    pub n_threads: Option<usize>,
}

/// The proxies that `schedule` needs for this prompt, if any. Where there are none and none can be made, FFNs are scored by
/// attention alone: the schedule says so afterwards, and so does a line on standard error.
pub fn find(
    wanted: &Wanted,
    schedule: &mut Schedule,
    progress: &mut Progress,
) -> Result<Option<Arc<Sidecar>>, Failure> {
    let hp = wanted.model.hparams();
    let resolved = schedule.resolve(hp.n_layer, wanted.prompt.len(), &|l| hp.window(l).is_some())?;
    let skipping: Vec<usize> =
        (0..hp.n_layer).filter(|&l| resolved.layers[l].active_ffn < resolved.layers[l].candidates).collect();
    if !schedule.use_proxy || skipping.is_empty() {
        return Ok(None);
    }
    let beside = Sidecar::path_beside(wanted.model.gguf().path());
    let given = wanted.sidecar.map(Path::to_owned).or_else(|| beside.exists().then_some(beside));
    let found = match given {
        // A file that the user has put there has to be right; our own is made again if it is not.
        Some(path) => Some(open(&path, wanted.model, &skipping).map_err(spts::Error::from)?),
        None => from_cache(wanted, schedule, &skipping, progress)?,
    };
    match &found {
        Some(sidecar) => schedule.proxy = sidecar.size(),
        None => schedule.use_proxy = false,
    }
    Ok(found.map(Arc::new))
}

fn open(path: &Path, model: &Model, layers: &[usize]) -> Result<Sidecar, spts::spts::sidecar::SidecarError> {
    let sidecar = Sidecar::open(path)?;
    sidecar.check(model)?;
    sidecar.check_layers(layers.iter().copied())?;
    Ok(sidecar)
}

fn from_cache(
    wanted: &Wanted,
    schedule: &Schedule,
    layers: &[usize],
    progress: &mut Progress,
) -> Result<Option<Sidecar>, Failure> {
    let without = |why: &str| {
        note(&format!(
            "no FFN proxies, tokens are chosen by attention alone: {why} (--no-proxy says so without this note)"
        ));
        Ok(None)
    };
    let Some(folder) = cache_folder() else {
        return without("there is no cache folder to keep them in (XDG_CACHE_HOME and HOME are not set)");
    };
    let path = folder.join(format!("{}.spts.gguf", fingerprint(wanted.model.gguf())));
    if path.exists() {
        match open(&path, wanted.model, layers) {
            Ok(sidecar) => return Ok(Some(sidecar)),
            Err(e) => note(&format!("{e}: making them again")),
        }
    }
    if let Err(e) = std::fs::create_dir_all(&folder) {
        return without(&format!("{}: cannot make this folder: {e}", folder.display()));
    }
    let out = match OutputFile::create(&path, &[wanted.model.gguf().path()]) {
        Ok(out) => out,
        Err(e) => return without(&e.to_string()),
    };
    let n = wanted.prompt.len().min(PROMPT_TOKENS);
    note(&format!(
        "first run of this model with skipping: making its FFN proxies from {n} tokens of the prompt, to be kept in {}",
        path.display()
    ));
    let mut options = CalibrateOptions::new(schedule.proxy, &schedule.name);
    options.n_tokens = PROMPT_TOKENS;
    options.n_threads = wanted.n_threads;
    // Calibration puts its own in front of every piece.
    let bos = wanted.model.tokenizer().bos();
    let text =
        wanted.prompt.split_first().filter(|(first, _)| Some(**first) == bos).map_or(wanted.prompt, |(_, rest)| rest);
    let made = match make(wanted.model, &[text.to_vec()], &options, progress) {
        Ok(made) => made,
        Err(spts::Error::Calibration(e @ CalibrationError::TooShort { .. })) => return without(&e.to_string()),
        Err(e) => return Err(e.into()),
    };
    match made.write_into(out).and_then(|()| open(&path, wanted.model, layers)) {
        Ok(sidecar) => Ok(Some(sidecar)),
        Err(e) => without(&e.to_string()),
    }
}

/// `spts` in the user's cache folder. A relative XDG_CACHE_HOME is to be ignored, says its specification.
fn cache_folder() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let base = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")));
    base.map(|b| b.join("spts"))
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
        "{}: proxies of {} layers ({} channels, rank {}), {}, from {} tokens in {}",
        path.display(),
        made.layers.len(),
        made.size.d_low,
        made.size.rank,
        mib(bytes),
        made.n_tokens,
        report::seconds(elapsed)
    )
}
