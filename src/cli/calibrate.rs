//! Making FFN proxies: `spts-cli calibrate -m model.gguf -f texts...`.

use std::path::Path;
use std::time::Instant;

use spts::method::spts::sidecar::{Sidecar, SidecarError};
use spts::proxies::calibrate::CalibrateOptions;
use spts::{Model, ModelFile};

use super::failure::Failure;
use super::{CalibrateArgs, interrupt, note, prompt, proxies};
use crate::report::{self, Progress};

/// Reads the texts, calibrates, writes the sidecar.
pub fn calibrate(args: &CalibrateArgs) -> Result<(), Failure> {
    // Until the file is written there is nothing to clean up: Ctrl-C ends the process.
    interrupt::install()?;
    let texts = args.files.iter().map(|f| prompt::read_text(f)).collect::<Result<Vec<_>, _>>()?;
    let start = Instant::now();
    args.device.set_up_process();
    let file = ModelFile::open(&args.model, args.device.open_options())?;
    let path = args.output.clone().unwrap_or_else(|| Sidecar::path_beside(&args.model));
    check_target(&path, args, &file)?;
    let model = Model::place(file, args.device.model_options(None))?;

    let texts: Vec<Vec<u32>> = texts.iter().map(|t| model.tokenizer().encode(t, false, false)).collect();
    let mut size = model.shape().proxy_size();
    size.d_low = args.d_low.map_or(size.d_low, |n| n as usize);
    size.rank = args.rank.map_or(size.rank, |n| n as usize);
    let mut options = CalibrateOptions::new(size, "default");
    options.n_tokens = args.tokens as usize;
    options.n_threads = args.device.threads.map(usize::from);
    let made = proxies::make(&model, &texts, &options, &mut Progress::new())?;
    made.write(&path).map_err(spts::Error::from)?;
    note(&proxies::summary(&made, &path, start.elapsed().as_secs_f64()));
    if let Some(peak) = report::peak_rss_bytes() {
        note(&format!("peak memory {}", report::mib(peak)));
    }
    Ok(())
}

/// A file that is there is replaced if it is this model's sidecar; any other only with `--force`, and the model never.
fn check_target(path: &Path, args: &CalibrateArgs, model: &ModelFile) -> Result<(), Failure> {
    let same_file = |a: &Path, b: &Path| matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b);
    if same_file(path, &args.model) {
        return Err(Failure::Failed(format!("{}: is the model itself; choose another -o", path.display())));
    }
    // Found before the work, not after it.
    if path.parent().is_some_and(|folder| !folder.as_os_str().is_empty() && !folder.is_dir()) {
        return Err(Failure::Failed(format!("{}: there is no such folder", path.display())));
    }
    if args.force || !path.exists() {
        return Ok(());
    }
    let refused = match Sidecar::open(path).and_then(|s| s.check(model)) {
        Ok(()) => return Ok(()),
        Err(e @ SidecarError::OtherModel { .. }) => e.to_string(),
        Err(_) => format!("{}: exists, and is no sidecar", path.display()),
    };
    Err(Failure::Failed(format!("{refused}; choose another -o, or overwrite it with --force")))
}
