//! `eval proxies`: FFN proxies against the FFNs that they stand for.

use std::fmt::Write;
use std::sync::Arc;

use clap::Args;
use serde_json::{Value as Json, json};
use spts::eval::error::EvalError;
use spts::eval::proxies as proxy_quality;
use spts::eval::proxies::LayerQuality;
use spts::method::spts::sidecar::Sidecar;
use spts::{Session, SessionOptions};

use super::{ModelArgs, Subject, TextArgs, shown};
use crate::cli::failure::Failure;
use crate::cli::options::SptsArgs;
use crate::cli::schedule;
use crate::report::grouped;

/// Quality of proxies.
#[derive(Args, Clone, Debug)]
pub(super) struct ProxiesArgs {
    #[command(flatten)]
    pub(super) text: TextArgs,
    /// Tokens to read, from the end of the text (calibration may have seen its beginning)
    #[arg(short = 'n', long, value_name = "N", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(2..=1 << 24))]
    n_tokens: u32,
    /// M, as a share of the tokens
    #[arg(long, value_name = "X", default_value_t = 0.28, value_parser = share)]
    share: f64,
    #[command(flatten)]
    spts: SptsArgs,
    #[command(flatten)]
    model: ModelArgs,
}

fn share(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|x| *x > 0.0 && *x < 1.0).ok_or_else(|| "expected a number between 0 and 1".into())
}

/// Compares, and returns the result as JSON and as a table.
pub(super) fn run(args: &ProxiesArgs) -> Result<(Json, String), Failure> {
    let n = args.n_tokens as usize;
    let path = args.spts.sidecar.clone().unwrap_or_else(|| Sidecar::path_beside(&args.text.model));
    let sidecar = Arc::new(Sidecar::open(&path).map_err(spts::Error::from)?);
    let mut subject = Subject::open(&args.text, &args.model, &[], |file, text| match text.len() < n {
        true => Err(spts::Error::from(EvalError::TextTooShort { found: text.len(), needed: n }).into()),
        false => schedule::check(&args.spts, file, n).map(|()| n),
    })?;
    let tokens = subject.tokens[subject.tokens.len() - n..].to_vec();
    let Some(schedule) = subject.schedule(&args.spts)? else {
        return Err(Failure::Failed("--no-spts: without token skipping there is no probe to compare with".into()));
    };
    // The layers that can skip under this schedule, as far as there are proxies for them and they have scores of their own.
    let last = schedule.stages.last().map_or(0, |s| s.last_layer);
    let attends = |l: &usize| subject.model.shape().recurrence(*l).is_none();
    let skips = |l: &usize| (schedule.skip_from..=last).contains(l);
    let mut layers: Vec<usize> = sidecar.layers().iter().copied().filter(skips).filter(attends).collect();
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
