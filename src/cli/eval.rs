//! Measuring quality: `spts-cli eval needle`, `eval proxies`, `eval kl`.

use std::fmt::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Parser, Subcommand};
use serde_json::{Value as Json, json};
use spts::eval::needle::NeedleTask;
use spts::eval::proxies::LayerQuality;
use spts::eval::{EvalError, divergence, needle, proxies as proxy_quality};
use spts::session::prefill::PrefillProgress;
use spts::spts::schedule::Schedule;
use spts::spts::sidecar::Sidecar;
use spts::{Model, Session, SessionOptions};

use super::failure::Failure;
use super::options::{DeviceArgs, SptsArgs};
use super::proxies::{self, Wanted};
use super::{interrupt, plan, prompt};
use crate::report::{Progress, grouped};

const CONFIGURATIONS: &str =
    "A configuration is dense, or what --schedule takes, then more flags of token skipping; NAME= before it names it:
  --config dense --config paper --config 'mild=0.5,0.4,0.3,0.2 --probe-queries 16 --pool max:7'";

/// Measuring.
#[derive(Args, Clone, Debug)]
pub struct EvalArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Clone, Debug)]
enum What {
    /// Ask for numbers hidden in a long text
    #[command(after_help = CONFIGURATIONS)]
    Needle(NeedleArgs),
    /// Compare FFN proxies with the FFNs, layer by layer
    Proxies(ProxiesArgs),
    /// Divergence from dense over the tokens that follow a prompt
    #[command(after_help = CONFIGURATIONS)]
    Kl(KlArgs),
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
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Args, Clone, Debug)]
struct NeedleArgs {
    #[command(flatten)]
    text: TextArgs,
    /// Tokens of a prompt; several lengths with commas
    #[arg(short = 'n', long, value_name = "N,...", value_delimiter = ',', default_value = "4096", value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    n_tokens: Vec<u32>,
    /// Numbers hidden in a prompt, one of which is asked for; several tasks with commas
    #[arg(long, value_name = "K,...", value_delimiter = ',', default_value = "1", value_parser = clap::value_parser!(u8).range(1..=16))]
    keys: Vec<u8>,
    /// Prompts of each length, each with its needle at another depth
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u16).range(1..))]
    samples: u16,
    /// Configuration, once for each [default: dense, paper, default]
    #[arg(long = "config", value_name = "WHAT", value_parser = configuration)]
    configs: Vec<Configuration>,
}

#[derive(Args, Clone, Debug)]
struct KlArgs {
    #[command(flatten)]
    text: TextArgs,
    /// Tokens of a prompt
    #[arg(short = 'n', long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    n_tokens: u32,
    /// Tokens after it that are compared
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    next: u16,
    /// Prompts, from as many places of the text
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    samples: u16,
    /// Configuration, once for each [default: paper, default]
    #[arg(long = "config", value_name = "WHAT", value_parser = configuration)]
    configs: Vec<Configuration>,
}

#[derive(Args, Clone, Debug)]
struct ProxiesArgs {
    #[command(flatten)]
    text: TextArgs,
    /// Tokens to read, from the end of the text (calibration may have seen its beginning)
    #[arg(short = 'n', long, value_name = "N", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(2..=1 << 24))]
    n_tokens: u32,
    /// M, as a share of the tokens
    #[arg(long, value_name = "X", default_value_t = 0.28, value_parser = share)]
    share: f64,
    #[command(flatten)]
    spts: SptsArgs,
}

/// A way to run a prompt.
#[derive(Clone, Debug)]
struct Configuration {
    name: String,
    spts: SptsArgs,
}

#[derive(Parser)]
#[command(name = "--config", no_binary_name = true, disable_help_flag = true)]
struct ConfigurationFlags {
    #[command(flatten)]
    spts: SptsArgs,
}

fn configuration(text: &str) -> Result<Configuration, String> {
    let is_name = |s: &str| {
        !s.is_empty() && s.chars().all(|c| c.is_ascii_alphanumeric() || "-_ ".contains(c)) && !s.starts_with('-')
    };
    let (name, what) = text.split_once('=').filter(|(name, _)| is_name(name)).unwrap_or((text, text));
    let mut words: Vec<&str> = what.split_whitespace().collect();
    match words.first() {
        None => return Err("expected dense, a schedule, or flags".into()),
        Some(&"dense") => words[0] = "--no-spts",
        Some(first) if !first.starts_with('-') => words.insert(0, "--schedule"),
        Some(_) => {}
    }
    let flags = ConfigurationFlags::try_parse_from(words).map_err(|e| super::usage::one_line(&e))?;
    Ok(Configuration { name: name.trim().to_owned(), spts: flags.spts })
}

fn share(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|x| *x > 0.0 && *x < 1.0).ok_or_else(|| "expected a number between 0 and 1".into())
}

/// The text that `eval` prints.
pub fn eval(args: &EvalArgs) -> Result<String, Failure> {
    // There is nothing to clean up: Ctrl-C ends the process.
    interrupt::install()?;
    let (json, (object, table)) = match &args.what {
        What::Needle(a) => (a.text.json, needle(a)?),
        What::Proxies(a) => (a.text.json, proxies(a)?),
        What::Kl(a) => (a.text.json, kl(a)?),
    };
    Ok(if json { format!("{object}\n") } else { table })
}

/// The model and the text's tokens.
struct Subject<'a> {
    args: &'a TextArgs,
    model: Arc<Model>,
    tokens: Vec<u32>,
    progress: Progress,
}

impl<'a> Subject<'a> {
    fn open(args: &'a TextArgs) -> Result<Subject<'a>, Failure> {
        let text = prompt::read_text(&args.file)?;
        let model = Model::open(&args.model, args.device.model_options(None))?;
        let tokens = model.tokenizer().encode(&text, false, false);
        Ok(Subject { args, model, tokens, progress: Progress::new() })
    }

    fn n_threads(&self) -> Option<usize> {
        self.args.device.threads.map(usize::from)
    }

    fn name(&self) -> String {
        plan::shape(self.model.gguf(), self.model.hparams()).name
    }

    fn schedule(&self, spts: &SptsArgs) -> Result<Option<Schedule>, Failure> {
        Ok(spts.schedule(&plan::shape(self.model.gguf(), self.model.hparams()).key())?)
    }

    /// A session for prompts like `prompt`.
    fn session(&mut self, config: &Configuration, prompt: &[u32]) -> Result<Session, Failure> {
        let mut schedule = self.schedule(&config.spts)?;
        let n_threads = self.n_threads();
        let wanted = Wanted { model: &self.model, sidecar: config.spts.sidecar.as_deref(), prompt, n_threads };
        let sidecar = match &mut schedule {
            Some(s) => proxies::find(&wanted, s, &mut self.progress)?,
            None => None,
        };
        Ok(Session::new(
            self.model.clone(),
            SessionOptions { n_threads, schedule, sidecar, ..SessionOptions::default() },
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

fn needle(args: &NeedleArgs) -> Result<(Json, String), Failure> {
    let mut subject = Subject::open(&args.text)?;
    let defaults = || ["dense", "paper", "default"].into_iter().filter_map(|c| configuration(c).ok()).collect();
    let configs: Vec<Configuration> = if args.configs.is_empty() { defaults() } else { args.configs.clone() };
    let width = configs.iter().map(|c| c.name.len()).max().unwrap_or(0).max(13);
    let mut table = format!(
        "{}, needles\n\n{:>8} {:>5}  {:width$} {:>9} {:>11}\n",
        subject.name(),
        "tokens",
        "keys",
        "configuration",
        "answered",
        "cache kept"
    );
    let mut results = Vec::new();
    for &n_tokens in &args.n_tokens {
        for &n_keys in &args.keys {
            let task =
                NeedleTask { n_tokens: n_tokens as usize, n_keys: n_keys.into(), n_samples: args.samples.into() };
            let prompts = task.prompts(subject.model.tokenizer(), &subject.tokens).map_err(spts::Error::from)?;
            for config in &configs {
                let mut session = subject.session(config, &prompts[0].tokens)?;
                let (mut answered, mut kept, mut items) = (0, 0.0, Vec::new());
                for (i, p) in prompts.iter().enumerate() {
                    let title = format!(
                        "{n_tokens} tokens, {n_keys} keys, {}, sample {}/{}",
                        config.name,
                        i + 1,
                        prompts.len()
                    );
                    let answer = needle::ask(&mut session, p, &mut shown(&mut subject.progress, &title))?;
                    answered += usize::from(answer.correct);
                    kept = answer.cache_kept;
                    items.push(json!({ "depth": p.depth, "expected": p.expected, "text": answer.text, "correct": answer.correct }));
                }
                let _ = writeln!(
                    table,
                    "{:>8} {n_keys:>5}  {:width$} {:>9} {:>9.1} %",
                    grouped(n_tokens as usize),
                    config.name,
                    format!("{answered} of {}", prompts.len()),
                    100.0 * kept
                );
                results.push(json!({ "n_tokens": n_tokens, "keys": n_keys, "config": config.name, "answered": answered, "samples": prompts.len(), "cache_kept": kept, "items": items }));
            }
        }
    }
    subject.progress.clear();
    Ok((json!({ "model": subject.name(), "results": results }), table))
}

fn kl(args: &KlArgs) -> Result<(Json, String), Failure> {
    let mut subject = Subject::open(&args.text)?;
    let defaults = || ["paper", "default"].into_iter().filter_map(|c| configuration(c).ok()).collect();
    let configs: Vec<Configuration> = if args.configs.is_empty() { defaults() } else { args.configs.clone() };
    let (n, next, samples) = (args.n_tokens as usize, usize::from(args.next), usize::from(args.samples));
    let needed = n + next;
    let Some(room) = subject.tokens.len().checked_sub(needed) else {
        return Err(spts::Error::from(EvalError::TextTooShort { found: subject.tokens.len(), needed }).into());
    };
    let places: Vec<Vec<u32>> = (0..samples).map(|i| subject.tokens[room * i / samples..][..needed].to_vec()).collect();
    let dense = configuration("dense").map_err(Failure::Failed)?;
    let mut session = subject.session(&dense, &places[0][..n])?;
    let mut reference = Vec::new();
    for (i, p) in places.iter().enumerate() {
        let title = format!("dense, sample {}/{samples}", i + 1);
        reference.push(divergence::log_probs(
            &mut session,
            &p[..n],
            &p[n..],
            &mut shown(&mut subject.progress, &title),
        )?);
    }
    drop(session);

    let width = configs.iter().map(|c| c.name.len()).max().unwrap_or(0).max(13);
    let mut table = format!(
        "{}, {} tokens, the next {next}, {samples} samples\n\n{:width$} {:>10} {:>9}\n",
        subject.name(),
        grouped(n),
        "configuration",
        "KL (nats)",
        "same top"
    );
    let mut results = Vec::new();
    for config in &configs {
        let mut session = subject.session(config, &places[0][..n])?;
        let (mut sum, mut same) = (0.0, 0);
        for (i, p) in places.iter().enumerate() {
            let title = format!("{}, sample {}/{samples}", config.name, i + 1);
            let found =
                divergence::log_probs(&mut session, &p[..n], &p[n..], &mut shown(&mut subject.progress, &title))?;
            sum += reference[i].iter().zip(&found).map(|(p, q)| divergence::kl(p, q)).sum::<f64>();
            same += reference[i].iter().zip(&found).filter(|(p, q)| divergence::same_top(p, q)).count();
        }
        let compared = (samples * next) as f64;
        let (mean, same) = (sum / compared, same as f64 / compared);
        let _ = writeln!(table, "{:width$} {mean:>10.4} {:>7.1} %", config.name, 100.0 * same);
        results.push(json!({ "config": config.name, "kl": mean, "same_top": same }));
    }
    subject.progress.clear();
    Ok((json!({ "model": subject.name(), "n_tokens": n, "next": next, "samples": samples, "results": results }), table))
}

fn proxies(args: &ProxiesArgs) -> Result<(Json, String), Failure> {
    let mut subject = Subject::open(&args.text)?;
    let n = args.n_tokens as usize;
    let Some(start) = subject.tokens.len().checked_sub(n) else {
        return Err(spts::Error::from(EvalError::TextTooShort { found: subject.tokens.len(), needed: n }).into());
    };
    let tokens = subject.tokens[start..].to_vec();
    let path = args.spts.sidecar.clone().unwrap_or_else(|| Sidecar::path_beside(&args.text.model));
    let sidecar = Arc::new(Sidecar::open(&path).map_err(spts::Error::from)?);
    let Some(schedule) = subject.schedule(&args.spts)? else {
        return Err(Failure::Failed("--no-spts: without token skipping there is no probe to compare with".into()));
    };
    // The layers that can skip under this schedule, as far as there are proxies for them.
    let last = schedule.stages.last().map_or(0, |s| s.last_layer);
    let mut layers: Vec<usize> =
        sidecar.layers().iter().copied().filter(|l| (schedule.skip_from..=last).contains(l)).collect();
    layers.sort_unstable();
    let options =
        SessionOptions { n_threads: subject.n_threads(), sidecar: Some(sidecar.clone()), ..SessionOptions::default() };
    let mut session = Session::new(subject.model.clone(), options)?;
    let mut progress = shown(&mut subject.progress, "proxies");
    let found =
        proxy_quality::proxy_quality(&mut session, &tokens, &layers, schedule.probe, args.share, &mut progress)?;
    drop(progress);
    subject.progress.clear();

    let size = sidecar.size();
    let mut table = format!(
        "{}, proxies of {} channels and rank {}, {} tokens, M = {:.0} % of them, {} probing queries, pooling {}\n\n",
        subject.name(),
        size.d_low,
        size.rank,
        grouped(n),
        100.0 * args.share,
        schedule.probe.queries,
        schedule.probe.pool
    );
    let _ = writeln!(
        table,
        "{:>6} {:>7} {:>8} | {:^23} | {:^15}",
        "", "rank", "spread", "top ||FFN|| found by", "top S ||FFN|| by"
    );
    let _ = writeln!(
        table,
        "{:>6} {:>7} {:>8} | {:>7} {:>7} {:>7} | {:>7} {:>7}",
        "layer", "corr", "of norm", "C", "C*S", "S", "C*S", "S"
    );
    for q in &found {
        row(&mut table, &q.il.to_string(), q);
    }
    if let Some(mean) = mean(&found) {
        row(&mut table, "mean", &mean);
    }
    let _ = writeln!(table, "chance {:>48.2}", args.share);
    let json = json!({
        "model": subject.name(), "n_tokens": n, "share": args.share, "d_low": size.d_low, "rank": size.rank, "layers": found,
    });
    Ok((json, table))
}

fn row(table: &mut String, label: &str, q: &LayerQuality) {
    let rho = q.rank_correlation.map_or("-".into(), |r| format!("{r:.2}"));
    let _ = writeln!(
        table,
        "{label:>6} {rho:>7} {:>8.2} | {:>7.2} {:>7.2} {:>7.2} | {:>7.2} {:>7.2}",
        q.norm_spread, q.norm_by_c, q.norm_by_cs, q.norm_by_s, q.product_by_cs, q.product_by_s
    );
}

fn mean(all: &[LayerQuality]) -> Option<LayerQuality> {
    let of = |value: &dyn Fn(&LayerQuality) -> f64| all.iter().map(value).sum::<f64>() / all.len() as f64;
    let first = all.first()?;
    Some(LayerQuality {
        il: first.il,
        rank_correlation: all.iter().map(|q| q.rank_correlation).sum::<Option<f64>>().map(|sum| sum / all.len() as f64),
        norm_by_c: of(&|q| q.norm_by_c),
        norm_by_cs: of(&|q| q.norm_by_cs),
        norm_by_s: of(&|q| q.norm_by_s),
        product_by_cs: of(&|q| q.product_by_cs),
        product_by_s: of(&|q| q.product_by_s),
        norm_spread: of(&|q| q.norm_spread),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations() {
        let c = configuration("dense").unwrap();
        assert_eq!((c.name.as_str(), c.spts.no_spts), ("dense", true));
        let c = configuration("mild=0.5,0.4,0.3,0.2:0.03 --probe-queries 16").unwrap();
        assert_eq!(
            (c.name.as_str(), c.spts.schedule.as_deref(), c.spts.probe_queries),
            ("mild", Some("0.5,0.4,0.3,0.2:0.03"), Some(16))
        );
        let c = configuration("--keep=2").unwrap();
        assert_eq!((c.name.as_str(), c.spts.keep), ("--keep=2", Some(2.0)));
        for bad in ["", "x=", "paper --no-such-flag", "dense --keep 2"] {
            let message = configuration(bad).unwrap_err();
            assert!(!message.contains('\n'), "{message}");
        }
    }
}
