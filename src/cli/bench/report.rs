//! What `bench` prints: one JSON object, or tables.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use spts::Model;
use spts::bench::measure::{BenchOptions, Measurements, Mode, ModeResult, Samples};
use spts::ggml::backend;
use spts::method::spts::schedule::Schedule;
use spts::session::physical_cores;

use super::BenchArgs;
use crate::report::{self, grouped};

/// What is printed: the field names are the keys of `--json`, a stable interface.
#[derive(Serialize)]
pub(super) struct BenchReport {
    /// Of this program.
    version: &'static str,
    commit: &'static str,
    ggml: &'static str,
    /// When it was measured, in UTC (ISO 8601).
    date: String,
    model: ModelReport,
    devices: Vec<DeviceReport>,
    threads: usize,
    cache_type_k: &'static str,
    cache_type_v: &'static str,
    /// Weights rearranged for the CPU, in bytes.
    repacked_bytes: usize,
    /// Name of the schedule of the SPTS runs; null if there are none.
    schedule: Option<String>,
    /// Whether FFNs are scored by proxies.
    proxies: bool,
    repetitions: usize,
    n_decode: usize,
    /// Pause before each run.
    rest_s: f64,
    seed: u64,
    /// Opening the model, in seconds; making it not included.
    load_s: f64,
    #[serde(flatten)]
    measured: Measurements,
    peak_rss_bytes: Option<u64>,
}

#[derive(Serialize)]
struct ModelReport {
    name: String,
    file: String,
    synthetic: bool,
    arch: &'static str,
    n_layer: usize,
    n_params: u64,
    bytes: u64,
    /// The type that holds most of the weights.
    main_type: &'static str,
}

#[derive(Serialize)]
struct DeviceReport {
    name: String,
    description: String,
}

/// What was measured, and on what.
pub(super) fn describe(
    args: &BenchArgs,
    model: &Model,
    options: &BenchOptions,
    schedule: Option<&Schedule>,
    load_s: f64,
    measured: Measurements,
) -> BenchReport {
    let all = backend::devices();
    let devices = model.placement().devices.iter().map(|name| DeviceReport {
        name: name.clone(),
        description: all.iter().find(|d| d.name == *name).map_or_else(String::new, |d| d.description.clone()),
    });
    BenchReport {
        version: env!("CARGO_PKG_VERSION"),
        commit: env!("SPTS_COMMIT"),
        ggml: env!("SPTS_GGML_VERSION"),
        date: date(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs())),
        model: model_report(args, model),
        devices: devices.collect(),
        threads: options.session.n_threads.unwrap_or_else(physical_cores),
        cache_type_k: options.session.cache_type_k.ggml().name(),
        cache_type_v: options.session.cache_type_v.ggml().name(),
        repacked_bytes: model.repacked_bytes(),
        schedule: options.method.as_ref().map(|m| m.name().to_owned()),
        proxies: schedule.is_some_and(|s| s.use_proxy && s.skip_ffn),
        repetitions: options.repetitions,
        n_decode: options.n_decode,
        rest_s: options.rest.as_secs_f64(),
        seed: options.seed,
        load_s,
        measured,
        peak_rss_bytes: report::peak_rss_bytes(),
    }
}

fn model_report(args: &BenchArgs, model: &Model) -> ModelReport {
    let gguf = model.gguf();
    let mut by_type: Vec<(&'static str, u64)> = Vec::new();
    for t in gguf.tensors() {
        match by_type.iter_mut().find(|(name, _)| *name == t.ty.name()) {
            Some((_, n)) => *n += t.n_elements(),
            None => by_type.push((t.ty.name(), t.n_elements())),
        }
    }
    ModelReport {
        name: model.shape().name.clone(),
        file: gguf.path().display().to_string(),
        synthetic: args.synthetic.is_some(),
        arch: model.hparams().arch.name(),
        n_layer: model.shape().n_layer,
        n_params: gguf.tensors().map(|t| t.n_elements()).sum(),
        bytes: gguf.tensors().map(|t| t.nbytes).sum(),
        main_type: by_type.iter().max_by_key(|(_, n)| *n).map_or("", |(name, _)| name),
    }
}

/// Days since 1970 to a date, by Hinnant's `civil_from_days`.
pub fn date(unix_seconds: u64) -> String {
    let (days, seconds) = (unix_seconds / 86_400, unix_seconds % 86_400);
    // Eras of 400 years that begin on 1 March, so that leap days come last.
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let m = (5 * day_of_year + 2) / 153;
    let (day, month) = (day_of_year - (153 * m + 2) / 5 + 1, if m < 10 { m + 3 } else { m - 9 });
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (h, m, s) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}Z")
}

/// The table for people.
pub(super) fn markdown(r: &BenchReport) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(out, "spts-cli {} ({}), ggml {}, {}  ", r.version, r.commit, r.ggml, r.date);
    let m = &r.model;
    let _ = writeln!(
        out,
        "{}: {}, {} layers, {:.2} B parameters, mostly {}, {}  ",
        m.name,
        m.arch,
        m.n_layer,
        m.n_params as f64 / 1e9,
        m.main_type,
        report::mib(m.bytes)
    );
    let devices: Vec<String> = r.devices.iter().map(|d| format!("{} ({})", d.name, d.description)).collect();
    let schedule = match (&r.schedule, r.proxies) {
        (None, _) => "dense only".to_owned(),
        (Some(name), true) => format!("schedule {name} with proxies"),
        (Some(name), false) => format!("schedule {name} without proxies"),
    };
    let _ = writeln!(
        out,
        "{}, {} threads, tiles of {}, cache {}/{}, {schedule}  ",
        devices.join(", "),
        r.threads,
        r.measured.ubatch,
        r.cache_type_k,
        r.cache_type_v
    );
    let _ = writeln!(
        out,
        "median (least to most) of {} runs each, in turns, after a warm-up{}; {} tokens decoded\n",
        r.repetitions,
        if r.rest_s > 0.0 { format!(", {} s of rest before each", r.rest_s) } else { String::new() },
        r.n_decode
    );
    let _ = writeln!(out, "| prompt | | TTFT, ms | prefill, t/s | decode, t/s | cache kept | session | on devices |");
    let _ = writeln!(out, "|---:|---|---:|---:|---:|---:|---:|---:|");
    if let Some(decode) = &r.measured.decode_empty_tps {
        let _ = writeln!(out, "| none | dense | | | {} | | | |", spread(decode, 1.0));
    }
    for p in &r.measured.prompts {
        let n = grouped(p.n_prompt);
        let _ = writeln!(out, "{}", row(&n, Mode::Dense.name(), &p.dense));
        if let Some(spts) = &p.spts {
            let _ = writeln!(out, "{}", row(&n, name_of(r, spts), spts));
        }
        if let Some(ratios) = &p.ratios {
            let decode = ratios.decode.as_ref().map_or_else(String::new, |s| spread_of(s, 1.0, "x"));
            let _ = writeln!(out, "| {n} | speed-up | {} | | {decode} | | | |", spread_of(&ratios.ttft, 1.0, "x"));
        }
    }
    out.push_str(&questions(&r.measured));
    for p in &r.measured.prompts {
        for (mode, result) in [(Mode::Dense, Some(&p.dense)), (Mode::Spts, p.spts.as_ref())] {
            if let Some(ops) = result.and_then(|r| r.ops.as_ref()) {
                let _ = writeln!(out, "\n{} {}: {}", grouped(p.n_prompt), mode.name(), shares(ops));
            }
        }
    }
    if let Some(bytes) = r.peak_rss_bytes {
        let _ = writeln!(out, "\npeak memory of the process {}", report::mib(bytes));
    }
    out
}

/// The table of questions about documents, if there were any.
fn questions(measured: &Measurements) -> String {
    let mut out = String::new();
    for (p, q) in measured.prompts.iter().filter_map(|p| Some((p, p.questions.as_ref()?))) {
        if out.is_empty() {
            out.push_str("\n| document | question | TTFT from the start, ms | behind the document, ms | speed-up | from a file, ms | reading, ms | kept | file |\n");
            out.push_str("|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n");
        }
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            grouped(p.n_prompt),
            q.n_question,
            spread(&q.fresh_s, 1e3),
            spread(&q.question_s, 1e3),
            spread_of(&q.speedup, 1.0, "x"),
            spread(&q.opened_s, 1e3),
            spread(&q.read_s, 1e3),
            report::mib(q.document_bytes),
            report::mib(q.file_bytes)
        );
    }
    out
}

/// `mul_mat 61.2 %, flash_attn_ext 20.1 %, ...`, the largest first.
fn shares(ops: &BTreeMap<String, f64>) -> String {
    let mut sorted: Vec<_> = ops.iter().filter(|(_, share)| **share >= 0.0005).collect();
    sorted.sort_by(|a, b| b.1.total_cmp(a.1));
    let each: Vec<String> = sorted.iter().map(|(kind, share)| format!("{kind} {:.1} %", 100.0 * **share)).collect();
    each.join(", ")
}

/// What the second row of a prompt is called.
fn name_of(r: &BenchReport, m: &ModeResult) -> &'static str {
    let is_sparse = r.schedule.as_ref().is_some_and(|name| name.contains("attention sparse"));
    match (m.skips, is_sparse) {
        (true, _) => Mode::Spts.name(),
        (false, true) => "sparse attention",
        (false, false) => "SPTS (stays dense)",
    }
}

fn row(n: &str, name: &str, m: &ModeResult) -> String {
    let decode = m.decode_tps.as_ref().map_or_else(String::new, |s| spread(s, 1.0));
    let device = if m.peak_device_bytes > 0 { report::mib(m.peak_device_bytes) } else { String::new() };
    format!(
        "| {n} | {name} | {} | {} | {decode} | {:.1} % | {} | {device} |",
        spread(&m.ttft_s, 1e3),
        spread(&m.prefill_tps, 1.0),
        100.0 * m.cache_kept,
        report::mib(m.session_bytes)
    )
}

fn spread(s: &Samples, unit: f64) -> String {
    spread_of(s, unit, "")
}

/// `281.3 (279.9 to 282.0)`, all with the digits that the median deserves; `mark` follows the median.
fn spread_of(s: &Samples, unit: f64, mark: &str) -> String {
    let digits = match unit * s.median {
        x if x < 10.0 => 2,
        x if x < 1000.0 => 1,
        _ => 0,
    };
    let [median, min, max] = [s.median, s.min, s.max].map(|x| format!("{:.digits$}", unit * x));
    format!("{median}{mark} ({min} to {max})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_200, "2024-03-01T00:00:00Z"),
            (4_102_444_799, "2099-12-31T23:59:59Z"),
        ] {
            assert_eq!(date(seconds), expected);
        }
    }

    #[test]
    fn spreads_for_people() {
        let s = |v: [f64; 3]| Samples::new(v.to_vec()).map(|s| spread(&s, 1.0));
        assert_eq!(s([1.504, 1.45, 1.6]).as_deref(), Some("1.50 (1.45 to 1.60)"));
        assert_eq!(s([280.0, 281.26, 283.0]).as_deref(), Some("281.3 (280.0 to 283.0)"));
        assert_eq!(s([9751.3, 9700.0, 9800.0]).as_deref(), Some("9751 (9700 to 9800)"));
    }
}
