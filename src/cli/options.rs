//! Groups of flags that several subcommands share. Names and meanings are llama.cpp's where it has the flag.
//!
//! Parsing has no side effects: no file is opened here, no device asked.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use spts::ModelOptions;
use spts::model::loaded::LoadProgress;
use spts::session::kv_cache::CacheType;
use spts::session::sampler::SamplerParams;
use spts::spts::preset::ModelKey;
use spts::spts::schedule::{Pool, Schedule, Selection};
use spts::spts::schedule_file::{ScheduleFileError, parse_schedule_arg};

/// Where the model runs.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Model and device")]
pub struct DeviceArgs {
    /// Layers on the GPU, counted from the last; 0 is none [default: all]
    #[arg(long, alias = "gpu-layers", value_name = "N")]
    pub n_gpu_layers: Option<u32>,
    /// Device for the layers, as --list-devices names it [default: the first GPU, else CPU]
    #[arg(long, value_name = "NAME", value_parser = device)]
    pub device: Option<String>,
    /// Threads on the CPU [default: one per physical core]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=512))]
    pub threads: Option<u16>,
    /// Read the file into memory instead of mapping it
    #[arg(long)]
    pub no_mmap: bool,
    /// Lock the mapped file in memory
    #[arg(long, conflicts_with = "no_mmap")]
    pub mlock: bool,
    /// Use CPU weights as they lie in the file: starts at once and takes no second copy, but is slower
    #[arg(long)]
    pub no_repack: bool,
    /// Rows up to which a GPU multiplies quantized weights in integers; more rows go to cuBLAS in 16 bits [default: 256 on
    /// data-centre GPUs, else all]
    #[arg(long, value_name = "N")]
    pub integer_rows: Option<u32>,
}

impl DeviceArgs {
    /// The library's options; `progress` sees the share of the weights that is in place.
    pub fn model_options(&self, progress: Option<LoadProgress>) -> ModelOptions {
        ModelOptions {
            mmap: !self.no_mmap,
            mlock: self.mlock,
            repack: !self.no_repack,
            device: self.device.clone(),
            n_gpu_layers: self.n_gpu_layers.map(|n| n as usize),
            progress,
            integer_rows: self.integer_rows.map(|n| n as usize),
            // A process runs one model.
            overlap_launches: true,
        }
    }
}

/// Element type of a KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CacheTypeArg {
    /// 4 bytes
    #[value(name = "f32")]
    F32,
    /// 2 bytes
    #[value(name = "f16")]
    F16,
    /// 1 byte and a scale per 32
    #[value(name = "q8_0")]
    Q8_0,
}

impl CacheTypeArg {
    /// Bytes of one element.
    pub fn bytes(self) -> f64 {
        match self {
            CacheTypeArg::F32 => 4.0,
            CacheTypeArg::F16 => 2.0,
            CacheTypeArg::Q8_0 => 34.0 / 32.0,
        }
    }

    /// The library's type.
    pub fn library(self) -> CacheType {
        match self {
            CacheTypeArg::F32 => CacheType::F32,
            CacheTypeArg::F16 => CacheType::F16,
            CacheTypeArg::Q8_0 => CacheType::Q8_0,
        }
    }
}

/// Memory of a session.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Context and memory")]
pub struct MemoryArgs {
    /// Most tokens in a batch: an upper bound of -ub, for llama.cpp's sake
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub batch_size: Option<u32>,
    /// Tokens computed at a time: more is faster and takes more memory [default: 512, on a GPU 10240]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub ubatch_size: Option<u32>,
    /// Type of the cached keys
    #[arg(long, value_name = "TYPE", default_value = "f16")]
    pub cache_type_k: CacheTypeArg,
    /// Type of the cached values
    #[arg(long, value_name = "TYPE", default_value = "f16")]
    pub cache_type_v: CacheTypeArg,
}

impl MemoryArgs {
    /// Tokens of a tile, if it was asked for.
    pub fn n_ubatch(&self) -> Option<usize> {
        [self.ubatch_size, self.batch_size].into_iter().flatten().min().map(|n| n as usize)
    }
}

/// How the next token is chosen.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Temperature; 0 takes the most likely token
    #[arg(long, alias = "temperature", value_name = "T", default_value_t = 0.8, value_parser = at_least_zero)]
    pub temp: f32,
    /// Only the K most likely tokens; 0 is all
    #[arg(long, value_name = "K", default_value_t = 40)]
    pub top_k: u32,
    /// The most likely tokens that together reach this probability; 1 is off
    #[arg(long, value_name = "P", default_value_t = 0.95, value_parser = probability)]
    pub top_p: f32,
    /// Only tokens this likely relative to the most likely one; 0 is off
    #[arg(long, value_name = "P", default_value_t = 0.05, value_parser = probability)]
    pub min_p: f32,
    /// Penalty on tokens that were there before; 1 is off
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = above_zero_f32)]
    pub repeat_penalty: f32,
    /// Tokens back that the penalty looks; 0 is off, -1 all
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(i64).range(-1..))]
    pub repeat_last_n: i64,
    /// Seed of the random numbers; -1 takes another one each time
    #[arg(short, long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(i64).range(-1..))]
    pub seed: i64,
}

impl SamplingArgs {
    /// The library's parameters. `fresh_seed` is used for a seed of -1.
    pub fn params(&self, fresh_seed: u64) -> SamplerParams {
        SamplerParams {
            temp: self.temp,
            top_k: self.top_k as usize,
            top_p: self.top_p,
            min_p: self.min_p,
            repeat_penalty: self.repeat_penalty,
            repeat_last_n: self.repeat_last_n,
            seed: u64::try_from(self.seed).unwrap_or(fresh_seed),
        }
    }
}

/// What the prefill skips.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Token skipping (SPTS)")]
pub struct SptsArgs {
    /// Compute every token in every layer
    #[arg(long, conflicts_with_all = ["schedule", "keep", "no_proxy", "no_prune", "no_attn_skip", "no_ffn_skip", "random_selection", "probe_queries", "pool", "sidecar"])]
    pub no_spts: bool,
    /// Budgets: a preset (default, paper, rule, llama-3.1-8b, qwen2.5-7b, openpangu-1b), fractions of the prompt (0.28,0.22,0.125,0.0625:0.03, the last is the cut), or a file
    #[arg(long, value_name = "WHAT")]
    pub schedule: Option<String>,
    /// Multiply all budgets by X
    #[arg(long, value_name = "X", value_parser = above_zero_f64)]
    pub keep: Option<f64>,
    /// Last tokens of the prompt that score the others [default: the schedule's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 16))]
    pub probe_queries: Option<u32>,
    /// Pooling of scores over neighbours: none, avg:7, max:13 [default: the schedule's]
    #[arg(long, value_name = "HOW", value_parser = pool)]
    pub pool: Option<Pool>,
    /// Score the FFN by attention alone: needs no sidecar
    #[arg(long, conflicts_with = "sidecar")]
    pub no_proxy: bool,
    /// File of FFN proxies [default: MODEL.spts.gguf beside the model, else made from the prompt and kept in the cache folder]
    #[arg(long, value_name = "FILE")]
    pub sidecar: Option<PathBuf>,
    /// Never drop a token for good
    #[arg(long)]
    pub no_prune: bool,
    /// Compute attention for all candidates
    #[arg(long)]
    pub no_attn_skip: bool,
    /// Compute the FFN for all candidates
    #[arg(long)]
    pub no_ffn_skip: bool,
    /// Choose tokens by chance: the control that a method has to beat
    #[arg(long, value_name = "SEED")]
    pub random_selection: Option<u64>,
}

impl SptsArgs {
    /// The schedule for a model: `None` with `--no-spts`. Reads the file of `--schedule`.
    ///
    /// # Errors
    /// No such schedule, a file that cannot be read, or one that does not fit the model.
    pub fn schedule(&self, key: &ModelKey) -> Result<Option<Schedule>, ScheduleFileError> {
        if self.no_spts {
            return Ok(None);
        }
        let mut s = parse_schedule_arg(self.schedule.as_deref().unwrap_or("default"), key)?;
        let invalid = |source| ScheduleFileError::Invalid { origin: "flags".into(), source };
        if let Some(keep) = self.keep {
            s = s.scaled(keep).map_err(invalid)?;
        }
        if let Some(queries) = self.probe_queries {
            s.probe.queries = queries as usize;
        }
        if let Some(pool) = self.pool {
            s.probe.pool = pool;
        }
        if let Some(seed) = self.random_selection {
            s.selection = Selection::Random { seed };
        }
        s.use_proxy &= !self.no_proxy;
        s.prune &= !self.no_prune;
        s.skip_attn &= !self.no_attn_skip;
        s.skip_ffn &= !self.no_ffn_skip;
        s.validate_for(key.n_layer).map_err(invalid)?;
        Ok(Some(s))
    }
}

fn device(text: &str) -> Result<String, String> {
    match text {
        "" => Err("expected a name".into()),
        "none" => Ok("CPU".into()),
        name => Ok(name.to_owned()),
    }
}

fn number<T: std::str::FromStr>(text: &str, good: impl Fn(&T) -> bool, expected: &str) -> Result<T, String> {
    text.parse::<T>().ok().filter(good).ok_or_else(|| format!("expected {expected}"))
}

fn at_least_zero(text: &str) -> Result<f32, String> {
    number(text, |x: &f32| x.is_finite() && *x >= 0.0, "a number, 0 or above")
}

fn above_zero_f32(text: &str) -> Result<f32, String> {
    number(text, |x: &f32| x.is_finite() && *x > 0.0, "a number above 0")
}

fn above_zero_f64(text: &str) -> Result<f64, String> {
    number(text, |x: &f64| x.is_finite() && *x > 0.0, "a number above 0")
}

fn probability(text: &str) -> Result<f32, String> {
    number(text, |x: &f32| (0.0..=1.0).contains(x), "a number from 0 to 1")
}

fn pool(text: &str) -> Result<Pool, String> {
    let expected = "expected none, avg:WIDTH or max:WIDTH with an odd width";
    if text == "none" {
        return Ok(Pool::None);
    }
    let (how, width) = text.split_once(':').ok_or(expected)?;
    let width: usize = number(width, |w: &usize| w % 2 == 1, "an odd width, as in max:13")?;
    match how {
        "avg" => Ok(Pool::Avg(width)),
        "max" => Ok(Pool::Max(width)),
        _ => Err(expected.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: ModelKey = ModelKey { arch: "llama", n_layer: 32, n_embd: 4096, n_ff: 14336 };

    #[derive(clap::Parser)]
    struct Spts {
        #[command(flatten)]
        args: SptsArgs,
    }

    fn schedule(args: &[&str]) -> Result<Option<Schedule>, ScheduleFileError> {
        let args = std::iter::once("x").chain(args.iter().copied());
        <Spts as clap::Parser>::try_parse_from(args).unwrap().args.schedule(&KEY)
    }

    #[test]
    fn flags_change_the_schedule() {
        assert_eq!(schedule(&["--no-spts"]).unwrap(), None);
        assert_eq!(schedule(&[]).unwrap(), Some(Schedule::default_for(&KEY).unwrap()));
        let s = schedule(&[
            "--keep",
            "0.5",
            "--probe-queries",
            "4",
            "--pool",
            "avg:7",
            "--no-proxy",
            "--no-prune",
            "--no-attn-skip",
            "--no-ffn-skip",
        ]);
        let s = s.unwrap().unwrap();
        assert_eq!(
            (s.probe.queries, s.probe.pool, s.stages[0].budget),
            (4, Pool::Avg(7), spts::spts::schedule::Budget::Tokens(4608))
        );
        assert!(!(s.use_proxy || s.prune || s.skip_attn || s.skip_ffn));
        assert_eq!(schedule(&["--random-selection", "7"]).unwrap().unwrap().selection, Selection::Random { seed: 7 });
        schedule(&["--schedule", "no-such"]).unwrap_err();
    }

    #[test]
    fn pools_have_odd_widths() {
        assert_eq!(
            (pool("none"), pool("max:13"), pool("avg:7")),
            (Ok(Pool::None), Ok(Pool::Max(13)), Ok(Pool::Avg(7)))
        );
        for bad in ["", "max", "max:", "max:2", "min:3", "max:-1", "max:0"] {
            pool(bad).unwrap_err();
        }
    }
}
