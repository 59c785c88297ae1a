//! Measuring quality: `spts-cli eval tasks`, `eval needle`, `eval kl`, `eval proxies`, each in the file of its name.

mod configuration;
mod kl;
mod needle;
mod proxies;
pub(super) mod tables;
pub(super) mod tasks;

use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, Subcommand};
use spts::method::spts::schedule::Schedule;
use spts::output_file::OutputFile;
use spts::session::prefill::PrefillProgress;
use spts::{Model, ModelFile, Session, SessionOptions};

use super::failure::Failure;
use super::options::{DeviceArgs, OverrideArgs, SptsArgs};
use super::proxies::{self as sidecars, Waiting};
use super::{inputs, interrupt, prompt, schedule, warn};
use crate::report::Progress;
use configuration::{CONFIGURATIONS, Configuration};

/// What `eval` measures.
#[derive(Args, Clone, Debug)]
pub struct EvalArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Clone, Debug)]
enum What {
    /// Ask prompts whose answers are known, and score what comes
    #[command(after_help = tasks::HELP)]
    Tasks(Box<tasks::TasksArgs>),
    /// Ask for numbers hidden in a long text
    #[command(after_help = CONFIGURATIONS)]
    Needle(needle::NeedleArgs),
    /// Compare FFN proxies with the FFNs, layer by layer
    Proxies(proxies::ProxiesArgs),
    /// Divergence from dense over the tokens that follow a prompt
    #[command(after_help = CONFIGURATIONS, visible_alias = "text")]
    Kl(kl::KlArgs),
}

impl EvalArgs {
    /// Every file that is read, of the commands that write any.
    #[cfg(test)]
    pub fn files(&self) -> Option<Vec<PathBuf>> {
        match &self.what {
            What::Tasks(a) => Some(a.files()),
            What::Needle(a) => Some(a.files()),
            What::Proxies(_) | What::Kl(_) => None,
        }
    }

    /// The name of the command behind `eval`.
    pub fn name(&self) -> &'static str {
        match self.what {
            What::Tasks(_) => "tasks",
            What::Needle(_) => "needle",
            What::Proxies(_) => "proxies",
            What::Kl(_) => "kl",
        }
    }
}

/// What every measurement needs.
#[derive(Args, Clone, Debug)]
struct TextArgs {
    /// Model, a GGUF file
    #[arg(short, long, value_name = "FILE")]
    model: PathBuf,
    /// Long text, UTF-8; a JSON object with the key `text` will do too
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Where the model runs, and what of its file is changed: groups with headings, which come last in a help text.
#[derive(Args, Clone, Debug)]
struct ModelArgs {
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    overrides: OverrideArgs,
}

/// Measures, and returns the text that `eval` prints.
pub fn eval(args: &EvalArgs) -> Result<String, Failure> {
    // Nothing but a plot that is not finished is cleaned up: Ctrl-C ends the process.
    interrupt::install()?;
    let (json, (object, table)) = match &args.what {
        What::Tasks(a) => return tasks::print(a),
        What::Needle(a) => (a.text.json, needle::run(a)?),
        What::Proxies(a) => (a.text.json, proxies::run(a)?),
        What::Kl(a) => (a.text.json, kl::run(a)?),
    };
    Ok(if json { format!("{object}\n") } else { table })
}

/// The files of a measurement: the model's, those given, and those of the configurations.
fn files<'a>(
    model: Option<&Path>,
    given: impl IntoIterator<Item = &'a PathBuf>,
    configs: &[Configuration],
) -> Vec<PathBuf> {
    let mut files = inputs::with_those_beside(model);
    files.extend(given.into_iter().cloned());
    files.extend(configs.iter().flat_map(|c| c.spts.files()).map(Path::to_owned));
    files
}

/// Writes a plot, which takes its name when it is complete.
fn write_plot(mut out: OutputFile, svg: &str) -> Result<(), Failure> {
    let written = out.write_all(svg.as_bytes());
    written.map_err(|e| Failure::Failed(format!("{}: cannot write: {e}", out.path().display())))?;
    Ok(out.finish()?)
}

/// The model and the text's tokens.
struct Subject<'a> {
    path: &'a Path,
    device: &'a DeviceArgs,
    model: Arc<Model>,
    tokens: Vec<u32>,
    progress: Progress,
}

impl<'a> Subject<'a> {
    /// Opens the file, and places its weights when `check`, which says how long prompts will be, and the configurations fit.
    fn open(
        text: &'a TextArgs,
        ModelArgs { device, overrides }: &'a ModelArgs,
        configs: &[Configuration],
        check: impl FnOnce(&ModelFile, &[u32]) -> Result<usize, Failure>,
    ) -> Result<Subject<'a>, Failure> {
        let TextArgs { model: path, file, .. } = text;
        let text = prompt::read_text(file)?;
        device.set_up_process();
        let file = ModelFile::open_with(path, device.open_options(), &overrides.library())?;
        warn(&file);
        let tokens = file.tokenizer().encode(&text, false, false);
        let n_tokens = check(&file, &tokens)?;
        for config in configs {
            schedule::check(&config.spts, &file, n_tokens)?;
        }
        let model = Model::place(file, device.model_options(None))?;
        Ok(Subject { path, device, model, tokens, progress: Progress::new() })
    }

    fn n_threads(&self) -> Option<usize> {
        self.device.threads.map(usize::from)
    }

    fn name(&self) -> String {
        self.model.shape().name.clone()
    }

    fn schedule(&self, spts: &SptsArgs) -> Result<Option<Schedule>, Failure> {
        schedule::of_model(spts, self.path, self.model.shape())
    }

    /// A session for prompts like `prompt`.
    fn session(&mut self, config: &Configuration, prompt: &[u32]) -> Result<Session, Failure> {
        let mut schedule = self.schedule(&config.spts)?;
        let n_threads = self.n_threads();
        let given = config.spts.sidecar.as_deref();
        let found = sidecars::find(self.model.file(), given, schedule.as_ref(), prompt.len())?;
        let waiting = Waiting { model: &self.model, prompt, n_ctx: None, n_threads };
        let sidecar = sidecars::settle(found, &waiting, schedule.as_mut(), &mut self.progress)?;
        let method = config.spts.method(schedule);
        let draft = config.spts.open_draft(self.device)?;
        Ok(Session::new(
            self.model.clone(),
            SessionOptions { n_threads, method, sidecar, draft, ..SessionOptions::default() },
        )?)
    }
}

/// Shows a prefill under a title.
fn shown<'p>(progress: &'p mut Progress, title: &'p str) -> impl FnMut(PrefillProgress) -> ControlFlow<()> + 'p {
    move |p| {
        progress.note(&format!("{title}  layer {}/{}", p.layer + 1, p.n_layer));
        ControlFlow::Continue(())
    }
}
