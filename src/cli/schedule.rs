//! Which schedule a command runs by: that of the flags, or without `--schedule` the one that lies beside the model.

use std::path::{Path, PathBuf};

use spts::ModelFile;
use spts::method::Prompt;
use spts::method::spts::schedule::Schedule;
use spts::method::spts::schedule_file;
use spts::model::shape::Shape;

use super::failure::Failure;
use super::options::SptsArgs;
use super::{note, proxies};

/// The schedule for a model in a file; `None` with `--no-spts` and with `--method`. One that is found beside the model is named on
/// standard error.
///
/// # Errors
/// No such schedule, a file that cannot be read, or one that does not fit the model.
pub fn of_model(args: &SptsArgs, model: &Path, shape: &Shape) -> Result<Option<Schedule>, Failure> {
    let (schedule, beside) = find(args, model, shape)?;
    if let Some(path) = beside {
        note(&format!("schedule of {}; --schedule default goes without it", path.display()));
    }
    Ok(schedule)
}

/// The schedule, and the file beside the model that it comes from.
fn find(args: &SptsArgs, model: &Path, shape: &Shape) -> Result<(Option<Schedule>, Option<PathBuf>), Failure> {
    if args.no_spts || args.method.is_some() || args.schedule.is_some() {
        return Ok((args.schedule(shape)?, None));
    }
    let Some((path, schedule)) = schedule_file::beside(model, shape)? else { return Ok((args.schedule(shape)?, None)) };
    Ok((Some(args.changed(schedule, shape)?), Some(path)))
}

/// Checks what a configuration asks of a prompt of so many tokens, before any weight is placed.
///
/// # Errors
/// A schedule or a method that does not fit the model, a draft that is missing, a sidecar that is of no use.
pub fn check(args: &SptsArgs, file: &ModelFile, n_tokens: usize) -> Result<(), Failure> {
    args.check_draft()?;
    let (schedule, _) = find(args, file.gguf().path(), file.shape())?;
    args.method(schedule.clone()).budgets(file.shape(), Prompt::of(n_tokens))?;
    proxies::find(file, args.sidecar.as_deref(), schedule.as_ref(), n_tokens)?;
    Ok(())
}
