//! Making a model file smaller: `spts-cli quantize -m in.gguf -o out.gguf --type q4_k_m`.

use std::fmt::Write;
use std::path::PathBuf;

use clap::Args;
use spts::gguf::{Gguf, OpenOptions};
use spts::quantize::{self, QuantizeOptions, QuantizeReport, TensorPlan};
use spts::runtime;
use spts_quant::Preset;

use super::failure::Failure;
use super::interrupt;
use crate::report::{Progress, mib};

/// Writing a model in other types.
#[derive(Args, Clone, Debug)]
pub struct QuantizeArgs {
    /// Model to read, a GGUF file, best in F32, F16 or BF16
    #[arg(short, long, value_name = "FILE")]
    pub model: PathBuf,
    /// Model to write
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Mix of types: mxfp4_moe (experts in MXFP4, other matrices in Q8_0), q4_0, q4_k_s, q4_k_m (also q4_k), q5_k_m (also q5_k), q6_k, q8_0, f16 or f32
    #[arg(long = "type", value_name = "TYPE", value_parser = preset)]
    pub preset: Preset,
    /// Quantize weights that are quantized already: what the first time lost stays lost
    #[arg(long)]
    pub allow_requantize: bool,
    /// Threads [default: one per core]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=512))]
    pub threads: Option<u16>,
}

/// The mix of types of this name.
pub(super) fn preset(name: &str) -> Result<Preset, String> {
    let names = || Preset::ALL.map(|p| p.name().to_lowercase()).join(", ");
    Preset::from_name(name).ok_or_else(|| format!("expected one of {}", names()))
}

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
