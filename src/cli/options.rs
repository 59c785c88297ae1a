//! Groups of flags that several subcommands share. Names and meanings are llama.cpp's where it has the flag.
//!
//! Parsing has no side effects: no file is opened here, no device asked.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum};
use spts::gguf::OpenOptions;
use spts::method::rivals::Rival;
use spts::method::spts::schedule::{Join, Pool, Schedule, Selection};
use spts::method::spts::schedule_file::{ScheduleFileError, parse_schedule_arg};
use spts::method::{Dense, Method};
use spts::model::shape::Shape;
use spts::model::weights::LoadProgress;
use spts::session::sampler::SamplerParams;
use spts::session::sequence::CacheType;
use spts::{MetadataOverride, Model, ModelOptions, ModelOverrides, RopeScaling, SessionOptions, runtime};

/// Which device computes which layers.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Model and device")]
pub struct PlacementArgs {
    /// Layers on the GPU, counted from the last; 0 is none [default: all]
    #[arg(long, alias = "gpu-layers", value_name = "N")]
    pub n_gpu_layers: Option<u32>,
    /// Keep the experts of the first N layers on the CPU; prompts of 32 tokens or more bring them to the GPU, a layer at a time
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub n_cpu_moe: u32,
    /// Keep the experts of all layers there
    #[arg(long, conflicts_with = "n_cpu_moe")]
    pub cpu_moe: bool,
    /// Device for the layers, as --list-devices names it [default: the first GPU, else CPU]
    #[arg(long, value_name = "NAME", value_parser = device)]
    pub device: Option<String>,
}

impl PlacementArgs {
    /// Layers whose experts lie on the CPU.
    pub fn n_cpu_moe(&self) -> usize {
        if self.cpu_moe { usize::MAX } else { self.n_cpu_moe as usize }
    }
}

/// Where and how the model runs.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Model and device")]
pub struct DeviceArgs {
    #[command(flatten)]
    pub placement: PlacementArgs,
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
    /// How the file is opened.
    pub fn open_options(&self) -> OpenOptions {
        OpenOptions { mmap: !self.no_mmap, mlock: self.mlock }
    }

    /// Sets what holds for the whole process.
    pub fn set_up_process(&self) {
        if let Some(rows) = self.integer_rows {
            runtime::set_integer_rows(rows as usize);
        }
        // A process runs one model.
        runtime::overlap_launches();
    }

    /// The library's options; `progress` sees the share of the weights that is in place.
    pub fn model_options(&self, progress: Option<LoadProgress>) -> ModelOptions {
        ModelOptions {
            mmap: !self.no_mmap,
            mlock: self.mlock,
            repack: !self.no_repack,
            device: self.placement.device.clone(),
            n_gpu_layers: self.placement.n_gpu_layers.map(|n| n as usize),
            n_cpu_moe: self.placement.n_cpu_moe(),
            progress,
        }
    }
}

/// How the position encoding's frequencies are scaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RopeScalingArg {
    /// Not at all
    None,
    /// All alike
    Linear,
    /// The low ones
    Yarn,
}

/// Names of [`OverrideArgs`]' flags.
pub const OVERRIDES: [&str; 6] =
    ["override_kv", "rope_freq_base", "rope_scaling", "rope_scale", "rope_freq_scale", "yarn_orig_ctx"];

/// What is changed of a model's metadata before it is read.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Changes of the model's metadata")]
pub struct OverrideArgs {
    /// Put a value in the place of the file's: KEY=TYPE:VALUE with int, float, bool or str; may be given several times
    #[arg(long, value_name = "KEY=TYPE:VALUE", value_parser = metadata_override)]
    pub override_kv: Vec<MetadataOverride>,
    /// Base frequency of the position encoding (RoPE)
    #[arg(long, value_name = "X", value_parser = above_zero_f32)]
    pub rope_freq_base: Option<f32>,
    /// How its frequencies are scaled: none, linear or yarn
    #[arg(long, value_name = "HOW", hide_possible_values = true)]
    pub rope_scaling: Option<RopeScalingArg>,
    /// Grow the context by X: its frequencies are divided by it, unless --rope-scaling is none
    #[arg(long, value_name = "X", value_parser = above_zero_f32)]
    pub rope_scale: Option<f32>,
    /// The same as its inverse: multiply the frequencies by X
    #[arg(long, value_name = "X", value_parser = above_zero_f32, conflicts_with = "rope_scale")]
    pub rope_freq_scale: Option<f32>,
    /// Tokens of the context that the model was trained with, for yarn
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 30))]
    pub yarn_orig_ctx: Option<u32>,
}

impl OverrideArgs {
    /// The library's.
    pub fn library(&self) -> ModelOverrides {
        ModelOverrides {
            metadata: self.override_kv.clone(),
            rope_freq_base: self.rope_freq_base,
            rope_scaling: self.rope_scaling.map(|how| match how {
                RopeScalingArg::None => RopeScaling::None,
                RopeScalingArg::Linear => RopeScaling::Linear,
                RopeScalingArg::Yarn => RopeScaling::Yarn,
            }),
            rope_scale: self.rope_scale.or(self.rope_freq_scale.map(f32::recip)),
            rope_original_context: self.yarn_orig_ctx,
        }
    }

    /// In words, as files of results hold them: nothing where nothing is changed.
    pub fn settings(&self) -> String {
        let changes = self.library();
        if changes == ModelOverrides::default() { String::new() } else { format!("; {changes:?}") }
    }
}

fn metadata_override(text: &str) -> Result<MetadataOverride, String> {
    MetadataOverride::parse(text).map_err(|e| e.to_string())
}

/// Where a document's residual stream waits for questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DocumentMemory {
    /// Memory of the device that reads it
    Device,
    /// Host memory: slower, where the device has too little
    Host,
}

impl DocumentMemory {
    /// The library's.
    pub fn library(self) -> spts::DocumentMemory {
        match self {
            DocumentMemory::Device => spts::DocumentMemory::Device,
            DocumentMemory::Host => spts::DocumentMemory::Host,
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

    /// What these flags and the threads say of a session; the rest is as it is by default.
    pub fn session_options(&self, device: &DeviceArgs) -> SessionOptions {
        SessionOptions {
            n_ubatch: self.n_ubatch(),
            n_threads: device.threads.map(usize::from),
            cache_type_k: self.cache_type_k.library(),
            cache_type_v: self.cache_type_v.library(),
            ..SessionOptions::default()
        }
    }

    /// The tile, the types of the cache and the threads in words, as files of results hold them: results compare only under the same.
    pub fn settings(&self, device: &DeviceArgs) -> String {
        let or_default = |n: Option<usize>| n.map_or("default".into(), |n| n.to_string());
        format!(
            "tile {}, cache {:?}/{:?}, threads {}",
            or_default(self.n_ubatch()),
            self.cache_type_k,
            self.cache_type_v,
            or_default(device.threads.map(usize::from))
        )
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

/// Which tokens score the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queries {
    /// So many last ones of the prompt.
    Last(usize),
    /// The question, and what is behind it.
    Question,
}

/// How scores by several tokens become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum JoinArg {
    /// Their mean.
    Mean,
    /// Their maximum.
    Max,
}

/// Help of `--method`.
const METHODS: &str = "Read the prompt by another method, to compare: NAME[:SHARE[@LAYER]] with the share of tokens that is left and the layer that chooses; fastkv, gemfilter, uniprefill, sliminfer, specprefill, random, last";

/// What the prefill skips.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Token skipping (SPTS)")]
pub struct SptsArgs {
    /// Compute every token in every layer
    #[arg(long, conflicts_with_all = ["method", "model_draft", "schedule", "keep", "use_proxy", "no_proxy", "no_prune", "no_attn_skip", "no_ffn_skip", "random_selection", "ramp", "probe_queries", "join", "pool", "sinks", "recent", "carry", "sidecar"])]
    pub no_spts: bool,
    /// A method of another paper in place of the schedule.
    #[arg(long, value_name = "NAME", help = METHODS, help_heading = "Other methods", value_parser = rival, conflicts_with_all = ["schedule", "keep", "use_proxy", "no_proxy", "no_prune", "no_attn_skip", "no_ffn_skip", "random_selection", "ramp", "probe_queries", "join", "pool", "sinks", "recent", "carry", "sidecar"])]
    pub method: Option<Rival>,
    /// Smaller model of the same vocabulary that reads first, for --method specprefill
    #[arg(long, value_name = "FILE", help_heading = "Other methods", requires = "method")]
    pub model_draft: Option<PathBuf>,
    /// Budgets, and what the options below don't set: a preset (default, early, fast, paper, rule, llama-3.1-8b, qwen2.5-7b, openpangu-1b), fractions (0.28,0.22,0.125,0.0625:0.03, the cut last), or a file [default: MODEL.schedule beside the model, else default]
    #[arg(long, value_name = "WHAT")]
    pub schedule: Option<String>,
    /// Multiply all budgets by X
    #[arg(long, value_name = "X", value_parser = above_zero_f64)]
    pub keep: Option<f64>,
    /// Lower the budgets gradually, up to X times the first one's length
    #[arg(long, value_name = "X", value_parser = at_least_one, allow_negative_numbers = true)]
    pub ramp: Option<f64>,
    /// Tokens that score the others: the last N, or question: from the
    /// question on, where it is known
    #[arg(long, value_name = "N", value_parser = queries, allow_negative_numbers = true)]
    pub probe_queries: Option<Queries>,
    /// Scores by several tokens become one: their mean or their max
    #[arg(long, value_name = "HOW", hide_possible_values = true)]
    pub join: Option<JoinArg>,
    /// Pooling of scores over neighbours: none, avg:7, max:13, chunks:32
    #[arg(long, value_name = "HOW", value_parser = pool)]
    pub pool: Option<Pool>,
    /// First tokens that are always kept
    #[arg(long, value_name = "N")]
    pub sinks: Option<u32>,
    /// Last tokens that are always kept, besides those that score
    #[arg(long, value_name = "N")]
    pub recent: Option<u32>,
    /// Add to a layer's scores X times those of the layer before, 0 to 1
    #[arg(long, value_name = "X", value_parser = probability, allow_negative_numbers = true)]
    pub carry: Option<f32>,
    /// Score FFNs by attention times an estimate of their outputs
    #[arg(long = "proxy", conflicts_with = "no_proxy")]
    pub use_proxy: bool,
    /// Score FFNs by attention alone, whatever the schedule says
    #[arg(long, conflicts_with = "sidecar")]
    pub no_proxy: bool,
    /// File of estimates, for --proxy [default: MODEL.spts.gguf beside the model, else made from the prompt and kept in the cache folder]
    #[arg(long, value_name = "FILE")]
    pub sidecar: Option<PathBuf>,
    /// For ablations: never drop a token for good
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
    /// The files among the flags: what no output may replace. A preset's name counts as well, for want of a file of that name.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let named = [self.sidecar.as_deref(), self.model_draft.as_deref(), self.schedule.as_deref().map(Path::new)];
        named.into_iter().flatten()
    }

    /// The schedule for a model: `None` with `--no-spts` and with `--method`. Reads the file of `--schedule`.
    ///
    /// # Errors
    /// No such schedule, a file that cannot be read, or one that does not fit the model.
    pub fn schedule(&self, shape: &Shape) -> Result<Option<Schedule>, ScheduleFileError> {
        if self.no_spts || self.method.is_some() {
            return Ok(None);
        }
        let s = parse_schedule_arg(self.schedule.as_deref().unwrap_or("default"), shape)?;
        self.changed(s, shape).map(Some)
    }

    /// A schedule with what the flags change of it.
    ///
    /// # Errors
    /// What comes out does not fit the model.
    pub fn changed(&self, mut s: Schedule, shape: &Shape) -> Result<Schedule, ScheduleFileError> {
        let invalid = |source| ScheduleFileError::Invalid { origin: "flags".into(), source };
        if let Some(keep) = self.keep {
            s = s.scaled(keep).map_err(invalid)?;
        }
        if let Some(ramp) = self.ramp {
            s.ramp = ramp;
        }
        match self.probe_queries {
            Some(Queries::Last(n)) => (s.probe.queries, s.probe.by_question) = (n, false),
            Some(Queries::Question) => s.probe.by_question = true,
            None => {}
        }
        if let Some(join) = self.join {
            s.probe.join = match join {
                JoinArg::Mean => Join::Mean,
                JoinArg::Max => Join::Max,
            };
        }
        if let Some(pool) = self.pool {
            s.probe.pool = pool;
        }
        if let Some(sinks) = self.sinks {
            s.sinks = sinks as usize;
        }
        if let Some(recent) = self.recent {
            s.recent = recent as usize;
        }
        if let Some(carry) = self.carry {
            s.probe.carry = carry;
        }
        if let Some(seed) = self.random_selection {
            s.selection = Selection::Random { seed };
        }
        s.use_proxy |= self.use_proxy || self.sidecar.is_some();
        s.use_proxy &= !self.no_proxy;
        s.prune &= !self.no_prune;
        s.skip_attn &= !self.no_attn_skip;
        s.skip_ffn &= !self.no_ffn_skip;
        s.validate_for(shape.n_layer).map_err(invalid)?;
        Ok(s)
    }

    /// Whether nothing was asked for: no method, no schedule, and skipping not refused.
    pub fn is_default(&self) -> bool {
        !self.no_spts && self.method.is_none() && self.schedule.as_deref().is_none_or(|name| name == "default")
    }

    /// What a session runs by: the method asked for, else the schedule (of [`SptsArgs::schedule`]), else every token in every
    /// layer.
    pub fn method(&self, schedule: Option<Schedule>) -> Arc<dyn Method> {
        match (self.method, schedule) {
            (Some(rival), _) => rival.method(),
            (None, Some(schedule)) => schedule.into(),
            (None, None) => Arc::new(Dense),
        }
    }

    /// Checks that a draft is given where the method needs one, before anything is opened.
    ///
    /// # Errors
    /// None is given.
    pub fn check_draft(&self) -> Result<(), spts::Error> {
        match self.method {
            Some(rival) if rival.needs_draft() && self.model_draft.is_none() => {
                Err(spts::Error::DraftMissing { method: rival.method().name().to_owned() })
            }
            _ => Ok(()),
        }
    }

    /// Opens the draft, on the devices of the model.
    ///
    /// # Errors
    /// The method needs one and none is given, or the file is no model.
    pub fn open_draft(&self, device: &DeviceArgs) -> Result<Option<Arc<Model>>, spts::Error> {
        self.check_draft()?;
        self.model_draft.as_deref().map(|path| Model::open(path, device.model_options(None))).transpose()
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

fn at_least_one(text: &str) -> Result<f64, String> {
    number(text, |x: &f64| x.is_finite() && *x >= 1.0, "a number, 1 or above")
}

fn probability(text: &str) -> Result<f32, String> {
    number(text, |x: &f32| (0.0..=1.0).contains(x), "a number from 0 to 1")
}

fn queries(text: &str) -> Result<Queries, String> {
    if text == "question" {
        return Ok(Queries::Question);
    }
    number(text, |n: &usize| (1..=1 << 16).contains(n), "a number from 1 to 65536, or question").map(Queries::Last)
}

fn rival(text: &str) -> Result<Rival, String> {
    Rival::parse(text).map_err(|e| e.to_string())
}

fn pool(text: &str) -> Result<Pool, String> {
    let expected = "expected none, avg:WIDTH or max:WIDTH with an odd width, or chunks:WIDTH";
    if text == "none" {
        return Ok(Pool::None);
    }
    let (how, width) = text.split_once(':').ok_or(expected)?;
    if how == "chunks" {
        return number(width, |w: &usize| *w > 0, "a width above 0, as in chunks:32").map(Pool::Chunks);
    }
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

    fn llama() -> Shape {
        Shape::named("llama-3.1-8b").unwrap()
    }

    #[derive(clap::Parser)]
    struct Spts {
        #[command(flatten)]
        args: SptsArgs,
    }

    fn schedule(args: &[&str]) -> Result<Option<Schedule>, ScheduleFileError> {
        let args = std::iter::once("x").chain(args.iter().copied());
        <Spts as clap::Parser>::try_parse_from(args).unwrap().args.schedule(&llama())
    }

    #[test]
    fn flags_change_the_schedule() {
        assert_eq!(schedule(&["--no-spts"]).unwrap(), None);
        assert_eq!(schedule(&[]).unwrap(), Some(Schedule::default_for(&llama()).unwrap()));
        let s = schedule(&[
            "--keep",
            "0.5",
            "--probe-queries",
            "4",
            "--pool",
            "avg:7",
            "--sinks",
            "4",
            "--recent",
            "64",
            "--join",
            "max",
            "--carry",
            "0.7",
            "--ramp",
            "1.5",
            "--no-proxy",
            "--no-prune",
            "--no-attn-skip",
            "--no-ffn-skip",
        ]);
        let s = s.unwrap().unwrap();
        assert_eq!(
            (s.probe.queries, s.probe.pool, s.stages[0].budget),
            (4, Pool::Avg(7), spts::method::spts::schedule::Budget::Tokens(4608))
        );
        assert_eq!((s.sinks, s.recent), (4, 64));
        assert_eq!((s.probe.join, s.probe.carry, s.ramp), (Join::Max, 0.7, 1.5));
        assert!(!(s.use_proxy || s.prune || s.skip_attn || s.skip_ffn));
        let asked = schedule(&["--probe-queries", "question"]).unwrap().unwrap().probe;
        assert_eq!((asked.by_question, asked.queries), (true, 32));
        for bad in ["0", "65537", "-1", "answer", ""] {
            queries(bad).unwrap_err();
        }
        assert_eq!(schedule(&["--random-selection", "7"]).unwrap().unwrap().selection, Selection::Random { seed: 7 });
        schedule(&["--schedule", "no-such"]).unwrap_err();
    }

    #[test]
    fn proxies_are_used_where_they_are_asked_for() {
        for (args, uses) in [
            (&[][..], false),
            (&["--proxy"], true),
            (&["--sidecar", "x.gguf"], true),
            (&["--schedule", "paper"], true),
            (&["--schedule", "paper", "--no-proxy"], false),
        ] {
            assert_eq!(schedule(args).unwrap().unwrap().use_proxy, uses, "{args:?}");
        }
    }

    #[test]
    fn memory_and_threads_of_a_session() {
        use clap::Parser as _;

        #[derive(clap::Parser)]
        struct Flags {
            #[command(flatten)]
            memory: MemoryArgs,
            #[command(flatten)]
            device: DeviceArgs,
        }
        let of = |flags: &[&str]| {
            let Flags { memory, device } = Flags::parse_from([&["x"], flags].concat());
            (memory.session_options(&device), memory.settings(&device))
        };
        let (options, settings) = of(&["--ubatch-size", "256", "--cache-type-v", "q8_0", "--threads", "3"]);
        assert_eq!((options.n_ubatch, options.n_threads), (Some(256), Some(3)));
        assert_eq!((options.cache_type_k, options.cache_type_v), (CacheType::F16, CacheType::Q8_0));
        assert_eq!(settings, "tile 256, cache F16/Q8_0, threads 3");
        let (options, settings) = of(&[]);
        assert_eq!((options.n_ubatch, options.n_threads), (None, None));
        assert_eq!(settings, "tile default, cache F16/F16, threads default");
    }

    #[test]
    fn pools_have_odd_widths_and_chunks_any() {
        assert_eq!(
            (pool("none"), pool("max:13"), pool("avg:7"), pool("chunks:32")),
            (Ok(Pool::None), Ok(Pool::Max(13)), Ok(Pool::Avg(7)), Ok(Pool::Chunks(32)))
        );
        for bad in ["", "max", "max:", "max:2", "min:3", "max:-1", "max:0", "chunks", "chunks:0"] {
            pool(bad).unwrap_err();
        }
    }
}
