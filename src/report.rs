//! What a run tells its user: progress while it works, then timings, or all of it as JSON.
//!
//! Progress goes to standard error and only if that is a terminal. Nothing here can fail a run: a closed standard error is
//! ignored.

use std::fmt;
use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
pub use spts::plan::grouped;
use spts::printable::printable;

/// Time between two updates of the progress line.
const UPDATE_EVERY: Duration = Duration::from_millis(80);

/// A [`Progress`] that several parts of a run write to, also while weights are placed.
#[derive(Clone)]
pub struct SharedProgress(Arc<Mutex<Progress>>);

impl SharedProgress {
    /// Makes a line that shows nothing yet.
    pub fn new() -> SharedProgress {
        SharedProgress(Arc::new(Mutex::new(Progress::new())))
    }

    /// Locks the line until the guard is dropped.
    pub fn lock(&self) -> MutexGuard<'_, Progress> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A line on the terminal that is overwritten as the work goes on.
pub struct Progress {
    enabled: bool,
    shown: bool,
    last: Option<Instant>,
}

impl Progress {
    /// Shows nothing if standard error is no terminal.
    pub fn new() -> Progress {
        Progress { enabled: std::io::stderr().is_terminal(), shown: false, last: None }
    }

    /// Loading: the fraction of the weights that are in place.
    pub fn load(&mut self, fraction: f32) {
        self.show(|| format!("loading {:.0} %", 100.0 * fraction));
    }

    /// Shows how far a prefill is.
    pub fn prefill(&mut self, step: &PrefillStep) {
        self.show(|| step.to_string());
    }

    /// Any other work that takes long.
    pub fn note(&mut self, text: &str) {
        self.show(|| text.to_owned());
    }

    fn show(&mut self, line: impl FnOnce() -> String) {
        if !self.enabled || self.last.is_some_and(|t| t.elapsed() < UPDATE_EVERY) {
            return;
        }
        self.last = Some(Instant::now());
        self.shown = true;
        let _ = write!(std::io::stderr(), "\r\x1b[K{}", printable(&line()));
    }

    /// Takes the line away, before anything else is printed.
    pub fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
        self.last = None;
    }
}

/// How far a prefill is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PrefillStep {
    /// Layers that are done.
    pub layer: usize,
    /// Layers of the model.
    pub n_layer: usize,
    /// Tokens that this layer computes.
    pub active: usize,
    /// Tokens of the prompt.
    pub n_tokens: usize,
    /// Share of the work that is done, from 0 to 1.
    pub fraction: f64,
    /// Since the prefill began.
    pub elapsed: Duration,
}

/// `prefill layer 13/32  9,216 of 32,768 active  41,200 t/s  ETA 0.4 s`: the rate is what the whole prompt will have, if the
/// rest of the work goes on like this.
impl fmt::Display for PrefillStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "prefill layer {}/{}  {} of {} active",
            self.layer,
            self.n_layer,
            grouped(self.active),
            grouped(self.n_tokens)
        )?;
        let elapsed = self.elapsed.as_secs_f64();
        // The first steps of a question behind a document say nothing of the others.
        if self.fraction > 0.02 && elapsed > 0.0 {
            let total = elapsed / self.fraction;
            write!(
                f,
                "  {} t/s  ETA {}",
                grouped((self.n_tokens as f64 / total).round() as usize),
                seconds((total - elapsed).max(0.0))
            )?;
        }
        Ok(())
    }
}

/// Consecutive layers with the same counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct StageReport {
    /// First layer, from 0.
    pub first_layer: usize,
    /// Last layer, inclusive.
    pub last_layer: usize,
    /// Tokens at the input of each.
    pub candidates: usize,
    /// Tokens of its attention, and entries of its KV cache.
    pub active_attn: usize,
    /// Tokens of its FFN.
    pub active_ffn: usize,
}

/// Groups the layers' `(candidates, active_attn, active_ffn)`.
pub fn stages(layers: impl IntoIterator<Item = (usize, usize, usize)>) -> Vec<StageReport> {
    let mut out: Vec<StageReport> = Vec::new();
    for (layer, (candidates, active_attn, active_ffn)) in layers.into_iter().enumerate() {
        match out.last_mut() {
            Some(s) if (s.candidates, s.active_attn, s.active_ffn) == (candidates, active_attn, active_ffn) => {
                s.last_layer = layer
            }
            _ => out.push(StageReport { first_layer: layer, last_layer: layer, candidates, active_attn, active_ffn }),
        }
    }
    out
}

/// Why the answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stop {
    /// The model ended it.
    Eog,
    /// A stop string, which is not part of the text.
    #[serde(rename = "stop_string")]
    Text,
    /// As many tokens as asked for.
    Length,
    /// The context is full.
    Context,
    /// The user pressed Ctrl-C.
    Interrupted,
    /// The next token could not be computed.
    Failed,
}

/// A run. The field names are the keys of `--json`: a stable interface.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunReport {
    /// Tokens of the prompt, template included.
    pub prompt_tokens: usize,
    /// The first of them that were read before, for an earlier question or by an earlier run.
    pub reused_tokens: usize,
    /// Ids of the answer, without the token that ends it.
    pub generated: Vec<u32>,
    /// The answer's text.
    pub text: String,
    /// Per token of the answer, the most likely ids and their natural-log probabilities.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<Vec<Vec<(u32, f32)>>>,
    /// Why the answer ends.
    pub stop: Stop,
    /// Opening the model, in seconds.
    pub load_s: f64,
    /// From the prompt's ids to the first id of the answer, in seconds.
    pub ttft_s: Option<f64>,
    /// Tokens per second of the prefill.
    pub prefill_tps: Option<f64>,
    /// Tokens per second after the first one.
    pub decode_tps: Option<f64>,
    /// Share of the dense KV cache's entries that the prefill kept.
    pub cache_kept: f64,
    /// Name of the schedule; `dense` if every layer computed every token.
    pub schedule: String,
    /// What each layer computed.
    pub stages: Vec<StageReport>,
    /// Most memory the process held, where the system tells.
    pub peak_rss_bytes: Option<u64>,
    /// Memory on devices.
    pub peak_device_bytes: u64,
}

/// The timing block.
impl fmt::Display for RunReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "load      {}", seconds(self.load_s))?;
        match self.reused_tokens {
            0 => write!(f, "prefill   {} tokens", grouped(self.prompt_tokens))?,
            reused => {
                let anew = grouped(self.prompt_tokens - reused);
                write!(f, "prefill   {anew} of {} tokens read anew", grouped(self.prompt_tokens))?;
            }
        }
        if let Some(tps) = self.prefill_tps {
            write!(f, " at {} t/s", rate(tps))?;
        }
        if let Some(ttft) = self.ttft_s {
            write!(f, ", first token after {}", seconds(ttft))?;
        }
        write!(f, "\ndecode    {} tokens", grouped(self.generated.len()))?;
        if let Some(tps) = self.decode_tps {
            write!(f, " at {} t/s", rate(tps))?;
        }
        writeln!(
            f,
            "\ncache     {:.1} % of the prompt's entries kept, schedule {}",
            100.0 * self.cache_kept,
            self.schedule
        )?;
        write!(f, "memory    ")?;
        match self.peak_rss_bytes {
            Some(bytes) => write!(f, "peak {}", mib(bytes))?,
            None => write!(f, "peak unknown")?,
        }
        if self.peak_device_bytes > 0 {
            write!(f, ", on devices {}", mib(self.peak_device_bytes))?;
        }
        writeln!(f)
    }
}

/// Tokens per second, or nothing where nothing was measured.
pub fn per_second(n: usize, seconds: f64) -> Option<f64> {
    (n > 0 && seconds > 0.0).then(|| n as f64 / seconds)
}

/// The most memory that this process held so far; `None` where the system does not tell.
pub fn peak_rss_bytes() -> Option<u64> {
    // The same counter as getrusage's, without a foreign call.
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// A number of bytes as people read it, in MiB or GiB.
pub fn mib(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib < 1024.0 { format!("{mib:.0} MiB") } else { format!("{:.2} GiB", mib / 1024.0) }
}

/// A time as people read it.
pub fn seconds(s: f64) -> String {
    match s {
        s if s < 0.0995 => format!("{:.0} ms", 1000.0 * s),
        s if s < 100.0 => format!("{s:.1} s"),
        s => format!("{}:{:02} min", s as u64 / 60, s as u64 % 60),
    }
}

fn rate(tps: f64) -> String {
    if tps < 100.0 { format!("{tps:.1}") } else { grouped(tps.round() as usize) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> RunReport {
        RunReport {
            prompt_tokens: 32768,
            reused_tokens: 0,
            generated: vec![1, 2],
            text: "a\n".into(),
            logprobs: None,
            stop: Stop::Eog,
            load_s: 0.05,
            ttft_s: Some(0.61),
            prefill_tps: Some(53_718.4),
            decode_tps: None,
            cache_kept: 0.414,
            schedule: "llama-3.1-8b".into(),
            stages: stages([(9, 9, 9), (9, 9, 9), (9, 4, 4), (3, 3, 3)]),
            peak_rss_bytes: Some(5 << 30),
            peak_device_bytes: 0,
        }
    }

    #[test]
    fn the_progress_line() {
        let step = PrefillStep {
            layer: 13,
            n_layer: 32,
            active: 9216,
            n_tokens: 32768,
            fraction: 0.5,
            elapsed: Duration::from_millis(400),
        };
        assert_eq!(step.to_string(), "prefill layer 13/32  9,216 of 32,768 active  40,960 t/s  ETA 0.4 s");
        assert_eq!(PrefillStep { fraction: 0.0, ..step }.to_string(), "prefill layer 13/32  9,216 of 32,768 active");
    }

    #[test]
    fn the_timing_block() {
        let text = report().to_string();
        assert_eq!(
            text,
            "load      50 ms\nprefill   32,768 tokens at 53,718 t/s, first token after 0.6 s\ndecode    2 tokens\n\
             cache     41.4 % of the prompt's entries kept, schedule llama-3.1-8b\nmemory    peak 5.00 GiB\n"
        );
    }

    #[test]
    fn what_was_read_anew() {
        let text = RunReport { reused_tokens: 32_000, prefill_tps: None, ..report() }.to_string();
        assert!(text.contains("\nprefill   768 of 32,768 tokens read anew, first token after 0.6 s\n"), "{text}");
    }

    #[test]
    fn json_keys_are_stable() {
        let json = serde_json::to_value(RunReport { logprobs: Some(vec![vec![(1, -0.5)]]), ..report() }).unwrap();
        let keys: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
        let expected = "prompt_tokens reused_tokens generated text logprobs stop load_s ttft_s prefill_tps decode_tps cache_kept schedule stages peak_rss_bytes peak_device_bytes";
        assert_eq!(keys, expected.split(' ').collect::<Vec<_>>());
        assert_eq!(json["logprobs"], serde_json::json!([[[1, -0.5]]]));
        assert_eq!(json["stop"], "eog");
        assert_eq!(json["stages"][1]["active_ffn"], 4);
    }

    #[test]
    fn equal_layers_are_one_stage() {
        let s = report().stages;
        assert_eq!(s.iter().map(|s| (s.first_layer, s.last_layer)).collect::<Vec<_>>(), [(0, 1), (2, 2), (3, 3)]);
    }

    #[test]
    fn numbers_for_people() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(
            [0.0004, 0.0999, 1.26, 99.99, 125.0].map(seconds),
            ["0 ms", "0.1 s", "1.3 s", "100.0 s", "2:05 min"]
        );
        assert_eq!(per_second(0, 1.0), None);
        assert_eq!(per_second(3, 2.0), Some(1.5));
    }
}
