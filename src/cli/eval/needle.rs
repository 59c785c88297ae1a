//! `eval needle`: numbers hidden in a long text.

use std::fmt::Write;
use std::path::PathBuf;

use clap::Args;
use serde_json::{Value as Json, json};
use spts::eval::needle::{self, NeedleTask};
use spts::eval::plot::{self, HeatMap};

use super::configuration::{Configuration, configuration, or_default};
use super::{ModelArgs, Subject, TextArgs, shown};
use crate::cli::failure::Failure;
use crate::cli::inputs::create_output;
use crate::report::grouped;

/// Numbers in a long text.
#[derive(Args, Clone, Debug)]
pub(super) struct NeedleArgs {
    #[command(flatten)]
    pub(super) text: TextArgs,
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
    #[arg(long = "config", value_name = "WHAT", allow_hyphen_values = true, value_parser = configuration)]
    configs: Vec<Configuration>,
    /// Also draw which needles were found, by depth and length, as an SVG file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
}

impl NeedleArgs {
    /// Every file that is read.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        super::files(Some(&self.text.model), [&self.text.file], &self.configs)
    }
}

/// Asks, and returns the result as JSON and as a table.
pub(super) fn run(args: &NeedleArgs) -> Result<(Json, String), Failure> {
    // A place that cannot be written is better known before the work.
    let plot = args.svg.as_deref().map(|path| create_output(path, &args.files())).transpose()?;
    let configs = or_default(&args.configs, &["dense", "paper", "default"]);
    let task = |n_tokens: u32, n_keys: u8| NeedleTask {
        n_tokens: n_tokens as usize,
        n_keys: n_keys.into(),
        n_samples: args.samples.into(),
    };
    let mut subject = Subject::open(&args.text, &args.model, &configs, |file, text| {
        for (&n_tokens, &n_keys) in args.n_tokens.iter().flat_map(|n| args.keys.iter().map(move |k| (n, k))) {
            task(n_tokens, n_keys).prompts(file.tokenizer(), text).map_err(spts::Error::from)?;
        }
        Ok(args.n_tokens.iter().copied().max().unwrap_or(0) as usize)
    })?;
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
    let mut found: Vec<Found> = Vec::new();
    for &n_tokens in &args.n_tokens {
        for &n_keys in &args.keys {
            let prompts = task(n_tokens, n_keys)
                .prompts(subject.model.tokenizer(), &subject.tokens)
                .map_err(spts::Error::from)?;
            for (c, config) in configs.iter().enumerate() {
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
                    found.push(Found { n_tokens, n_keys, config: c, sample: i, correct: answer.correct });
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
    if let Some(file) = plot {
        let title = format!("{}: numbers found, in %", subject.name());
        super::write_plot(file, &plot::heat_maps(&title, "tokens", "depth", &maps(args, &configs, &found)))?;
    }
    Ok((json!({ "model": subject.name(), "results": results }), table))
}

/// Whether one number was found.
struct Found {
    n_tokens: u32,
    n_keys: u8,
    /// Its place among the configurations.
    config: usize,
    sample: usize,
    correct: bool,
}

/// A map for each configuration and number of keys. The i-th sample of every length has its needle at the same depth.
fn maps(args: &NeedleArgs, configs: &[Configuration], found: &[Found]) -> Vec<HeatMap> {
    let samples = usize::from(args.samples);
    let share = |config: usize, n_keys: u8, n_tokens: u32, sample: usize| {
        let it =
            found.iter().find(|f| (f.config, f.n_keys, f.n_tokens, f.sample) == (config, n_keys, n_tokens, sample));
        it.map(|f| f64::from(u8::from(f.correct)))
    };
    let each = configs.iter().enumerate().flat_map(|c| args.keys.iter().map(move |&k| (c, k)));
    each.map(|((c, config), n_keys)| HeatMap {
        title: if args.keys.len() > 1 {
            format!("{}, {n_keys} {}", config.name, if n_keys == 1 { "key" } else { "keys" })
        } else {
            config.name.clone()
        },
        columns: args.n_tokens.iter().map(|&n| grouped(n as usize)).collect(),
        rows: (0..samples).map(|i| format!("{:.0} %", 100.0 * (i as f64 + 0.5) / samples as f64)).collect(),
        shares: (0..samples).map(|i| args.n_tokens.iter().map(|&n| share(c, n_keys, n, i)).collect()).collect(),
    })
    .collect()
}
