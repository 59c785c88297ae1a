//! What a prefill skips, and by which method.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum};
use spts::method::rivals::Rival;
use spts::method::spts::schedule::{Join, Pool, Schedule, Selection};
use spts::method::spts::schedule_file::{ScheduleFileError, parse_schedule_arg};
use spts::method::{BlockSparse, Dense, Method};
use spts::model::shape::Shape;
use spts::{BlockShare, Model};

use super::device::DeviceArgs;
use super::numbers::{above_zero_f64, at_least_one, number, probability};

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
    /// The mean of the scores
    Mean,
    /// The maximum of the scores
    Max,
}

/// What of the keys attention reads, if not all.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention(pub Option<BlockShare>);

impl Attention {
    /// A method with this attention.
    pub fn of(self, method: Arc<dyn Method>) -> Arc<dyn Method> {
        match self.0 {
            Some(share) => Arc::new(BlockSparse::new(method, share)),
            None => method,
        }
    }
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
    /// Keys that tokens look at in long prompts: dense for all; sparse, or sparse:MASS, for the blocks that have such a share of the
    /// attention by estimate, 0.9 unless said otherwise; sparse:density=X for a share of the blocks, to measure speed
    #[arg(long, value_name = "HOW", default_value = "dense", value_parser = attention, help_heading = "Attention")]
    pub attention: Attention,
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
        self.attention.of(match (self.method, schedule) {
            (Some(rival), _) => rival.method(),
            (None, Some(schedule)) => schedule.into(),
            (None, None) => Arc::new(Dense),
        })
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

fn queries(text: &str) -> Result<Queries, String> {
    if text == "question" {
        return Ok(Queries::Question);
    }
    number(text, |n: &usize| (1..=1 << 16).contains(n), "a number from 1 to 65536, or question").map(Queries::Last)
}

fn rival(text: &str) -> Result<Rival, String> {
    Rival::parse(text).map_err(|e| e.to_string())
}

fn attention(text: &str) -> Result<Attention, String> {
    BlockSparse::parse_share(text).map(Attention)
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
