//! `eval kl`: divergence from dense over the tokens that follow a prompt.

use std::fmt::Write;

use clap::Args;
use serde_json::{Value as Json, json};
use spts::eval::by_position::{self, Bucket};
use spts::eval::divergence;
use spts::eval::error::EvalError;

use super::configuration::{Configuration, configuration, or_default};
use super::tables::spread;
use super::{ModelArgs, Subject, TextArgs, shown};
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
    #[arg(long = "config", value_name = "WHAT", allow_hyphen_values = true, value_parser = configuration)]
    configs: Vec<Configuration>,
    #[command(flatten)]
    model: ModelArgs,
}

/// Compares, and returns the result as JSON and as a table.
pub(super) fn run(args: &KlArgs) -> Result<(Json, String), Failure> {
    let configs = or_default(&args.configs, &["paper", "default"]);
    let (n, next, samples) = (args.n_tokens as usize, usize::from(args.next), usize::from(args.samples));
    let needed = n + next;
    let mut subject = Subject::open(&args.text, &args.model, &configs, |_, text| match text.len() < needed {
        true => Err(spts::Error::from(EvalError::TextTooShort { found: text.len(), needed }).into()),
        false => Ok(n),
    })?;
    let room = subject.tokens.len() - needed;
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
        "{}, {} tokens, the next {next}, {samples} samples; in brackets 95 % intervals over the samples\n\n\
         {:width$}  {:>9}  {:>24}  {:>21}  {:>20}\n",
        subject.name(),
        grouped(n),
        "configuration",
        "token",
        "KL (nats)",
        "same top, %",
        "perplexity ratio"
    );
    let mut results = Vec::new();
    for config in &configs {
        let mut session = subject.session(config, &places[0][..n])?;
        let mut prompts = Vec::new();
        for (i, p) in places.iter().enumerate() {
            let title = format!("{}, sample {}/{samples}", config.name, i + 1);
            let found =
                divergence::log_probs(&mut session, &p[..n], &p[n..], &mut shown(&mut subject.progress, &title))?;
            prompts.push(by_position::compare(&reference[i], &found, &p[n..], &title).map_err(spts::Error::from)?);
        }
        let all = by_position::bucket(&prompts, 1, next);
        let buckets: Vec<Bucket> = by_position::ranges(next)
            .into_iter()
            .map(|(first, last)| by_position::bucket(&prompts, first, last))
            .collect();
        for (i, b) in std::iter::once(&all).chain(buckets.iter().filter(|_| buckets.len() > 1)).enumerate() {
            let name = if i == 0 { config.name.as_str() } else { "" };
            let range = if b.first == b.last { b.first.to_string() } else { format!("{} to {}", b.first, b.last) };
            let _ = writeln!(
                table,
                "{name:width$}  {range:>9}  {:>24}  {:>21}  {:>20}",
                spread(&b.kl, 1.0, 4),
                spread(&b.same_top, 100.0, 1),
                spread(&b.perplexity_ratio, 1.0, 3)
            );
        }
        results.push(json!({
            "config": config.name, "kl": all.kl.value, "same_top": all.same_top.value, "all": all, "by_position": buckets,
        }));
    }
    subject.progress.clear();
    Ok((json!({ "model": subject.name(), "n_tokens": n, "next": next, "samples": samples, "results": results }), table))
}
