//! Making FFN proxies: `spts-cli calibrate -m model.gguf -f texts...`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use spts::method::spts::sidecar::{Sidecar, SidecarError};
use spts::output_file::OutputFile;
use spts::proxies::calibrate::CalibrateOptions;
use spts::{Model, ModelFile};

use super::failure::Failure;
use super::options::{DeviceArgs, OverrideArgs};
use super::{inputs, interrupt, note, prompt, proxies, warn};
use crate::report::{self, Progress};

/// What `calibrate` makes proxies of.
#[derive(Args, Clone, Debug)]
pub struct CalibrateArgs {
    /// Model, a GGUF file
    #[arg(short, long, value_name = "FILE")]
    pub model: PathBuf,
    /// Texts of the kind that the model will read, UTF-8; a JSON object with the key `text` will do too
    #[arg(short = 'f', long = "file", value_name = "FILE", required = true, num_args = 1..)]
    pub files: Vec<PathBuf>,
    /// Where to write [default: MODEL.spts.gguf beside the model]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Most tokens to read, over all texts
    #[arg(long, value_name = "N", default_value_t = 8192, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub tokens: u32,
    /// FFN channels that a proxy keeps [default: after the model's width]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub d_low: Option<u32>,
    /// Rank of a proxy [default: after the model's width]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub rank: Option<u32>,
    /// Overwrite a file that is no sidecar of this model
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub overrides: OverrideArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
}

impl CalibrateArgs {
    /// Every file that is read.
    pub fn files(&self) -> Vec<PathBuf> {
        std::iter::once(&self.model).chain(&self.files).cloned().collect()
    }
}

/// Reads the texts, calibrates, writes the sidecar.
pub fn calibrate(args: &CalibrateArgs) -> Result<(), Failure> {
    interrupt::install()?;
    let texts = args.files.iter().map(|f| prompt::read_text(f)).collect::<Result<Vec<_>, _>>()?;
    let start = Instant::now();
    args.device.set_up_process();
    let file = ModelFile::open_with(&args.model, args.device.open_options(), &args.overrides.library())?;
    warn(&file);
    let path = args.output.clone().unwrap_or_else(|| Sidecar::path_beside(&args.model));
    let out = create(&path, args, &file)?;
    let model = Model::place(file, args.device.model_options(None))?;

    let texts: Vec<Vec<u32>> = texts.iter().map(|t| model.tokenizer().encode(t, false, false)).collect();
    let mut size = model.shape().proxy_size();
    size.d_low = args.d_low.map_or(size.d_low, |n| n as usize);
    size.rank = args.rank.map_or(size.rank, |n| n as usize);
    let mut options = CalibrateOptions::new(size, "default");
    options.n_tokens = args.tokens as usize;
    options.n_threads = args.device.threads.map(usize::from);
    let made = proxies::make(&model, &texts, &options, &mut Progress::new())?;
    made.write_into(out).map_err(spts::Error::from)?;
    note(&proxies::summary(&made, &path, start.elapsed().as_secs_f64()));
    if let Some(peak) = report::peak_rss_bytes() {
        note(&format!("peak memory {}", report::mib(peak)));
    }
    Ok(())
}

/// Creates the sidecar before the work. A file that is there is replaced if it is this model's sidecar, any other only with
/// `--force`, and what is read never.
fn create(path: &Path, args: &CalibrateArgs, model: &ModelFile) -> Result<OutputFile, Failure> {
    let out = inputs::create_output(path, &args.files())?;
    if args.force || !path.exists() {
        return Ok(out);
    }
    let refused = match Sidecar::open(path).and_then(|s| s.check(model)) {
        Ok(()) => return Ok(out),
        Err(e @ SidecarError::OtherModel { .. }) => e.to_string(),
        Err(_) => format!("{}: exists, and is no sidecar", path.display()),
    };
    Err(Failure::Failed(format!("{refused}; choose another -o, or overwrite it with --force")))
}
