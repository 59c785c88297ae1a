//! Which schedule a command runs by: that of the flags, or without `--schedule` the one that lies beside the model.

use std::path::Path;

use spts::method::spts::schedule::Schedule;
use spts::method::spts::schedule_file;
use spts::model::shape::Shape;

use super::failure::Failure;
use super::note;
use super::options::SptsArgs;

/// The schedule for a model in a file; `None` with `--no-spts` and with `--method`. One that is found beside the model is named on standard error.
///
/// # Errors
/// No such schedule, a file that cannot be read, or one that does not fit the model.
pub fn of_model(args: &SptsArgs, model: &Path, shape: &Shape) -> Result<Option<Schedule>, Failure> {
    if args.no_spts || args.method.is_some() || args.schedule.is_some() {
        return Ok(args.schedule(shape)?);
    }
    let Some((path, schedule)) = schedule_file::beside(model, shape)? else { return Ok(args.schedule(shape)?) };
    note(&format!("schedule of {}; --schedule default goes without it", path.display()));
    Ok(Some(args.changed(schedule, shape)?))
}
