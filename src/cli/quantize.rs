//! Making a model file smaller: `spts-cli quantize -m in.gguf -o out.gguf --type q4_k_m`.

use std::fmt::Write;

use spts::gguf::{Gguf, OpenOptions};
use spts::quantize::{self, QuantizeOptions, QuantizeReport, TensorPlan};
use spts::runtime;

use super::failure::Failure;
use super::{QuantizeArgs, interrupt};
use crate::report::{Progress, mib};

/// The text that `quantize` prints.
pub fn quantize(args: &QuantizeArgs) -> Result<String, Failure> {
    interrupt::install()?;
    runtime::set_log_level(runtime::Level::Silent);
    if let Some(threads) = args.threads {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads.into())
            .build_global()
            .map_err(|e| Failure::Failed(format!("-t {threads}: {e}")))?;
    }
    let gguf = Gguf::open(&args.model, OpenOptions::default()).map_err(spts::Error::from)?;
    let options = QuantizeOptions { preset: args.preset, allow_requantize: args.allow_requantize };
    let mut progress = Progress::new();
    let report = quantize::quantize(&gguf, &args.output, options, &mut |tensor: &TensorPlan, share| {
        progress.note(&format!("{} to {}  {:.0} %", tensor.name, tensor.to.name(), 100.0 * share));
    });
    progress.clear();
    let report = report.map_err(spts::Error::from)?;
    Ok(text(args, &report))
}

fn text(args: &QuantizeArgs, report: &QuantizeReport) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "{}: {}, weights {} from {}",
        args.output.display(),
        args.preset.name(),
        mib(report.bytes_after),
        mib(report.bytes_before)
    );
    for (line, n) in counted(report.tensors.iter().map(|t| match t.from == t.to {
        true => format!("{} as before", t.to),
        false => format!("{} to {}", t.from, t.to),
    })) {
        let _ = writeln!(out, "{n:>6} tensors  {line}");
    }
    let replaced = report.tensors.iter().filter_map(|t| t.instead_of.map(|wanted| (t, wanted)));
    for (line, n) in counted(replaced.map(|(t, wanted)| format!("{} in place of {wanted}", t.to))) {
        let _ = writeln!(out, "{n:>6} tensors  {line}: their rows are no whole number of its blocks");
    }
    out
}

/// Each text once, in order of appearance, and how often it came.
fn counted(texts: impl Iterator<Item = String>) -> Vec<(String, usize)> {
    let mut out: Vec<(String, usize)> = Vec::new();
    for text in texts {
        match out.iter_mut().find(|(t, _)| *t == text) {
            Some((_, n)) => *n += 1,
            None => out.push((text, 1)),
        }
    }
    out
}
