//! `eval kl`: divergence from dense over the tokens that follow a prompt.

use std::fmt::Write;

use clap::Args;
use serde_json::{Value as Json, json};
use spts::eval::{EvalError, divergence};

use super::configuration::{Configuration, configuration, or_default};
use super::{Subject, TextArgs, shown};
use crate::cli::failure::Failure;
use crate::report::grouped;

/// Divergence from dense.
#[derive(Args, Clone, Debug)]
pub(super) struct KlArgs {
    #[command(flatten)]
    pub(super) text: TextArgs,
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

/// Compares, and returns the result as JSON and as a table.
pub(super) fn run(args: &KlArgs) -> Result<(Json, String), Failure> {
    let mut subject = Subject::open(&args.text)?;
    let configs = or_default(&args.configs, &["paper", "default"]);
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
