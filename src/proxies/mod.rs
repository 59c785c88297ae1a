//! The low-rank FFN proxies of a model: found beside it or in the user's cache folder ([`find`]), or made from text
//! ([`calibrate`](mod@calibrate)) and kept there.

pub mod calibrate;
pub mod error;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::Result;
use crate::method::Budgets;
use crate::method::spts::sidecar::{NewSidecar, Sidecar, SidecarError, fingerprint};
use crate::model::file::ModelFile;
use crate::model::weights::Model;

use calibrate::{CalibrateOptions, CalibrationStep, calibrate};

/// Tokens of its own prompt that a first run calibrates on: it has to be short beside the prefill that waits for it.
pub const PROMPT_TOKENS: usize = 2048;

/// The proxies of a prompt, as [`find`] found them.
#[derive(Debug)]
pub enum Found {
    /// No layer of the prompt needs a proxy.
    NotNeeded,
    /// A sidecar with a proxy for every layer that needs one.
    Sidecar(Arc<Sidecar>),
    /// None: it can be made and kept at this place of the user's cache folder, if there is one.
    Nothing {
        /// Where to keep it.
        keep_at: Option<PathBuf>,
        /// A file is there, but of no use.
        unusable: Option<SidecarError>,
    },
}

/// Looks for the proxies that a prompt with these budgets needs: in the file `given`, beside the model, in the user's cache folder.
///
/// # Errors
/// A file that the user has put there is not right for the model; one of our own in the cache folder is made again instead.
pub fn find(file: &ModelFile, given: Option<&Path>, budgets: &Budgets) -> Result<Found, SidecarError> {
    let layers: Vec<usize> = budgets.layers_with_proxy().collect();
    // One that was asked for is looked at in any case.
    let given = given.map(|path| open(path, file, &layers)).transpose()?;
    if layers.is_empty() {
        return Ok(Found::NotNeeded);
    }
    if let Some(sidecar) = given {
        return Ok(Found::Sidecar(Arc::new(sidecar)));
    }
    let beside = Sidecar::path_beside(file.gguf().path());
    if beside.exists() {
        return Ok(Found::Sidecar(Arc::new(open(&beside, file, &layers)?)));
    }
    let keep_at = cache_folder().map(|folder| folder.join(format!("{}.spts.gguf", fingerprint(file.gguf()))));
    let unusable = match &keep_at {
        Some(path) if path.exists() => match open(path, file, &layers) {
            Ok(sidecar) => return Ok(Found::Sidecar(Arc::new(sidecar))),
            Err(e) => Some(e),
        },
        _ => None,
    };
    Ok(Found::Nothing { keep_at, unusable })
}

fn open(path: &Path, file: &ModelFile, layers: &[usize]) -> Result<Sidecar, SidecarError> {
    let sidecar = Sidecar::open(path)?;
    sidecar.check(file)?;
    sidecar.check_layers(layers.iter().copied())?;
    Ok(sidecar)
}

/// Makes the proxies of a model from a prompt that waits for them.
///
/// # Errors
/// As [`calibrate`](fn@calibrate::calibrate).
pub fn from_prompt(
    model: &Arc<Model>,
    prompt: &[u32],
    options: &CalibrateOptions,
    progress: &mut dyn FnMut(CalibrationStep) -> std::ops::ControlFlow<()>,
) -> Result<NewSidecar> {
    // Calibration puts a BOS of its own in front of every piece.
    let bos = model.tokenizer().bos();
    let text = prompt.split_first().filter(|(first, _)| Some(**first) == bos).map_or(prompt, |(_, rest)| rest);
    let options = CalibrateOptions { n_tokens: PROMPT_TOKENS, ..options.clone() };
    calibrate(model, &[text.to_vec()], &options, progress)
}

/// `spts` in the user's cache folder. A relative XDG_CACHE_HOME is to be ignored, says its specification.
fn cache_folder() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let base = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")));
    base.map(|b| b.join("spts"))
}
