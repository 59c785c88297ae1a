//! The text format of schedules, and schedules in one argument.
//!
//! One `key = value` per line; `#` starts a comment; blank lines are ignored; every key at most once except `stage`.
//!
//! ```text
//! name          = llama-3.1-8b
//! skip_from     = 10              # first layer that skips, from 0
//! stage         = 13 9K 1K        # last layer (inclusive), budget, cut; one line per stage, in order
//! stage         = 18 7K 1K        # a count is an integer (9216) or in units of 1024 (9K)
//! stage         = 23 4K -         # without a cut the stage skips and prunes nothing: all its candidates go on
//! stage         = 28 2K 1K        # a fraction of the prompt has a point (0.28) or is in percent (28%)
//! ramp          = 1.5             # at so many times the first budget the schedule acts in full (budgets in counts alone)
//! probe_queries = 32              # last tokens that score the others; `question`: from the question on, where it is known,
//!                                 # else 32; `question 16`: else 16
//! join          = mean            # of the queries' scores, or their max
//! pool          = max 65          # none, avg WIDTH, max WIDTH or chunks WIDTH
//! sinks         = 0               # first tokens that are always kept
//! recent        = 0               # last tokens that are always kept; those that probe are in any case
//! carry         = 0.7             # to a layer's scores so many times those of the layer before are added, 0 to 1
//! proxy         = 512 192         # channels and rank of the FFN proxies
//! skip_attn     = true
//! skip_ffn      = true
//! use_proxy     = false           # true: score FFNs by the probe times the proxies, else by the probe alone
//! prune         = true
//! selection     = probe           # or: random SEED
//! ```
//!
//! `skip_from` and at least one `stage` are required. The others default to the values above, but `pool` to `max 13`, `carry` to
//! 0 and `ramp` to 1 where the budgets are fractions; `name` to `schedule`, and `proxy` to what the rule gives for the model.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use thiserror::Error;

use super::preset::{FRACTIONS, PRESET_NAMES, RAMP};
use super::schedule::{Budget, Join, Pool, Probe, ProxySize, Schedule, ScheduleError, Selection, Stage};
use crate::model::shape::Shape;

/// A schedule has a few hundred bytes; more is another kind of file.
const MAX_BYTES: u64 = 64 * 1024;

/// What is wrong with a schedule file or a schedule in one argument.
#[derive(Debug, Error)]
#[allow(missing_docs)] // the fields are what the messages name
#[non_exhaustive]
pub enum ScheduleFileError {
    /// A line that cannot be read.
    #[error("{origin}:{line}: {message}")]
    Line { origin: String, line: usize, message: String },
    /// A required key is not there.
    #[error("{origin}: no `{key}`; add a line `{key} = ...`")]
    Missing { origin: String, key: &'static str },
    /// The file cannot be read.
    #[error("{origin}: cannot read the schedule: {source}")]
    Io { origin: String, source: std::io::Error },
    /// The file is no schedule.
    #[error("{origin}: {message}")]
    NotASchedule { origin: String, message: String },
    /// Neither a preset, nor fractions, nor a file.
    #[error("schedule {0:?}: no such file or preset; expected a file, one of {names}, or fractions such as 0.28,0.22,0.125,0.0625:0.03", names = PRESET_NAMES.join(", "))]
    Unknown(String),
    /// The fractions are malformed.
    #[error(
        "schedule {arg:?}: {message}; expected four fractions and, if wanted, a cut, such as 0.28,0.22,0.125,0.0625:0.03"
    )]
    Fractions { arg: String, message: String },
    /// Well-formed, but not a possible schedule.
    #[error("{origin}: {source}")]
    Invalid { origin: String, source: ScheduleError },
}

/// A schedule in one argument: a preset's name, fractions (`0.28,0.22,0.125,0.0625`, with `:0.03` for the cut), or a
/// file. A preset's name wins over a file of that name; write `./NAME` for the file.
///
/// # Errors
/// All of [`ScheduleFileError`]; the schedule that comes back is valid for `shape.n_layer` layers.
pub fn parse_schedule_arg(arg: &str, shape: &Shape) -> Result<Schedule, ScheduleFileError> {
    let invalid = |source| ScheduleFileError::Invalid { origin: format!("schedule {arg:?}"), source };
    let schedule = match Schedule::preset(arg, shape).map_err(invalid)? {
        Some(preset) => preset,
        None if looks_like_fractions(arg) => parse_fractions(arg, shape)?,
        None => read_schedule(Path::new(arg), shape)?,
    };
    schedule.validate_for(shape.n_layer).map_err(invalid)?;
    Ok(schedule)
}

/// Where a model's own schedule lies: `model.gguf` -> `model.schedule`. Of other names nothing is taken away, so that no two models
/// share one: `model-1.5b` -> `model-1.5b.schedule`.
pub fn path_beside(model: &Path) -> PathBuf {
    if model.extension().is_some_and(|extension| extension == "gguf") {
        return model.with_extension("schedule");
    }
    let mut name = model.file_name().unwrap_or_default().to_owned();
    name.push(".schedule");
    model.with_file_name(name)
}

/// The schedule that lies beside a model, and its file; `None` if there is no such file.
///
/// # Errors
/// There is one, and it is broken, or does not fit the model.
pub fn beside(model: &Path, shape: &Shape) -> Result<Option<(PathBuf, Schedule)>, ScheduleFileError> {
    let path = path_beside(model);
    let schedule = match read_schedule(&path, shape) {
        // A link that leads nowhere is none.
        Err(ScheduleFileError::Unknown(_)) => return Ok(None),
        read => read?,
    };
    let origin = || path.display().to_string();
    schedule.validate_for(shape.n_layer).map_err(|source| ScheduleFileError::Invalid { origin: origin(), source })?;
    Ok(Some((path, schedule)))
}

/// Reads a schedule file.
///
/// # Errors
/// I/O, and everything [`parse_schedule`] finds.
pub fn read_schedule(path: &Path, shape: &Shape) -> Result<Schedule, ScheduleFileError> {
    let origin = path.display().to_string();
    let io = |source| ScheduleFileError::Io { origin: origin.clone(), source };
    let not = |message: String| ScheduleFileError::NotASchedule { origin: origin.clone(), message };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(ScheduleFileError::Unknown(origin)),
        Err(e) => return Err(io(e)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(not(format!(
            "longer than {MAX_BYTES} bytes; a schedule is a short text file of `key = value` lines"
        )));
    }
    let text = String::from_utf8(bytes)
        .map_err(|e| not(format!("not UTF-8 text at byte {}", e.utf8_error().valid_up_to())))?;
    parse_schedule(&text, &origin, shape)
}

/// Parses a schedule's text. `origin` names it in messages; `shape` gives the default proxy size.
///
/// # Errors
/// The first bad line with its number, a missing key, or a [`ScheduleError`].
pub fn parse_schedule(text: &str, origin: &str, shape: &Shape) -> Result<Schedule, ScheduleFileError> {
    let mut s = Schedule {
        name: "schedule".into(),
        skip_from: 0,
        stages: Vec::new(),
        ramp: 1.0,
        probe: Probe::SPANS,
        sinks: 0,
        recent: 0,
        proxy: shape.proxy_size(),
        skip_attn: true,
        skip_ffn: true,
        use_proxy: false,
        prune: true,
        selection: Selection::Probe,
    };
    // Editors on Windows put a byte order mark in front.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut seen: Vec<&str> = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let fail = |message: String| ScheduleFileError::Line { origin: origin.into(), line: i + 1, message };
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let (k, value) =
            line.split_once('=').ok_or_else(|| fail(format!("{line:?} is not of the form `key = value`")))?;
        let (k, value) = (k.trim(), value.trim());
        if k != "stage" && seen.contains(&k) {
            return Err(fail(format!("`{k}` is there a second time")));
        }
        set(&mut s, k, value).map_err(fail)?;
        seen.push(k);
    }
    for required in ["skip_from", "stage"] {
        if !seen.contains(&required) {
            return Err(ScheduleFileError::Missing { origin: origin.into(), key: required });
        }
    }
    let usual = Probe::for_budgets(s.stages[0].budget);
    if !seen.contains(&"probe_queries") {
        s.probe.queries = usual.queries;
    }
    if !seen.contains(&"pool") {
        s.probe.pool = usual.pool;
    }
    if !seen.contains(&"ramp") && s.stages.iter().all(Stage::is_in_tokens) {
        s.ramp = RAMP;
    }
    if !seen.contains(&"carry") {
        s.probe.carry = usual.carry;
    }
    s.validate().map_err(|source| ScheduleFileError::Invalid { origin: origin.into(), source })?;
    Ok(s)
}

fn set(s: &mut Schedule, key: &str, value: &str) -> Result<(), String> {
    let words: Vec<&str> = value.split_whitespace().collect();
    let expected = |what: &str| format!("`{key} = {value}`: expected {what}");
    let number = || value.parse::<usize>().map_err(|_| expected("a whole number"));
    let switch = || value.parse::<bool>().map_err(|_| expected("true or false"));
    match key {
        "name" => s.name = value.to_owned(),
        "skip_from" => s.skip_from = number()?,
        "stage" => {
            let [last_layer, budget, cut] = words[..] else {
                return Err(expected("`last_layer budget cut`, such as `13 9K 1K`"));
            };
            s.stages.push(Stage {
                last_layer: last_layer.parse().map_err(|_| expected("a layer number as its first value"))?,
                budget: budget.parse().map_err(|m: String| expected(&m))?,
                cut: match cut {
                    "-" | "keep" => None,
                    cut => Some(cut.parse().map_err(|m: String| expected(&format!("{m}, or `-` to prune nothing")))?),
                },
            });
        }
        "sinks" => s.sinks = number()?,
        "recent" => s.recent = number()?,
        "ramp" => s.ramp = value.parse().map_err(|_| expected("a number, at least 1"))?,
        "probe_queries" => {
            let count = |w: &str| w.parse().map_err(|_| expected("a whole number, or question"));
            s.probe.by_question = words.first() == Some(&"question");
            s.probe.queries = match words[..] {
                ["question"] => Probe::SPANS.queries,
                ["question", number] | [number] => count(number)?,
                _ => return Err(expected("a whole number, `question` or `question NUMBER`")),
            }
        }
        "join" => {
            s.probe.join = match value {
                "mean" => Join::Mean,
                "max" => Join::Max,
                _ => return Err(expected("mean or max")),
            }
        }
        "pool" => {
            s.probe.pool = match words[..] {
                ["none"] => Pool::None,
                ["avg", w] => Pool::Avg(w.parse().map_err(|_| expected("a whole number as width"))?),
                ["max", w] => Pool::Max(w.parse().map_err(|_| expected("a whole number as width"))?),
                ["chunks", w] => Pool::Chunks(w.parse().map_err(|_| expected("a whole number as width"))?),
                _ => return Err(expected("none, `avg WIDTH`, `max WIDTH` or `chunks WIDTH`")),
            }
        }
        "carry" => s.probe.carry = value.parse().map_err(|_| expected("a number from 0 to 1"))?,
        "proxy" => {
            let size = |w: &str| w.parse().map_err(|_| expected("two whole numbers"));
            let [d_low, rank] = words[..] else {
                return Err(expected("`channels rank`, such as `512 192`"));
            };
            s.proxy = ProxySize { d_low: size(d_low)?, rank: size(rank)? };
        }
        "skip_attn" => s.skip_attn = switch()?,
        "skip_ffn" => s.skip_ffn = switch()?,
        "use_proxy" => s.use_proxy = switch()?,
        "prune" => s.prune = switch()?,
        "selection" => {
            s.selection = match words[..] {
                ["probe"] => Selection::Probe,
                ["random", seed] => {
                    Selection::Random { seed: seed.parse().map_err(|_| expected("a whole number as seed"))? }
                }
                _ => return Err(expected("probe or `random SEED`")),
            }
        }
        _ => {
            return Err(format!(
                "unknown key `{key}`; expected name, skip_from, stage, ramp, probe_queries, join, pool, sinks, recent, carry, proxy, skip_attn, skip_ffn, use_proxy, prune or selection"
            ));
        }
    }
    Ok(())
}

/// `9216`, `9K`, `0.28` or `28%`. Ranges are the schedule's to check.
impl FromStr for Budget {
    type Err = String;

    fn from_str(text: &str) -> Result<Budget, String> {
        let bad = || format!("{text:?} to be a count (9216 or 9K) or a fraction (0.28 or 28%)");
        // `f64` also reads "inf", "nan" and exponents without a point; a budget begins with a digit.
        if !text.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
            return Err(bad());
        }
        if let Some(percent) = text.strip_suffix('%') {
            return percent.parse::<f64>().map(|p| Budget::Fraction(p / 100.0)).map_err(|_| bad());
        }
        if let Some(thousands) = text.strip_suffix(['K', 'k']) {
            let n = thousands.parse::<usize>().ok().and_then(|n| n.checked_mul(1024));
            return n.map(Budget::Tokens).ok_or_else(bad);
        }
        if text.contains('.') {
            return text.parse().map(Budget::Fraction).map_err(|_| bad());
        }
        text.parse().map(Budget::Tokens).map_err(|_| bad())
    }
}

fn looks_like_fractions(arg: &str) -> bool {
    arg.contains(',') && arg.chars().all(|c| c.is_ascii_digit() || ".,: ".contains(c))
}

fn parse_fractions(arg: &str, shape: &Shape) -> Result<Schedule, ScheduleFileError> {
    let fail = |message: String| ScheduleFileError::Fractions { arg: arg.into(), message };
    let number = |x: &str| x.trim().parse::<f64>().map_err(|_| fail(format!("{:?} is not a number", x.trim())));
    let (list, cut) = match arg.split_once(':') {
        Some((list, cut)) => (list, Some(number(cut)?)),
        None => (arg, None),
    };
    let budgets = list.split(',').map(number).collect::<Result<Vec<f64>, _>>()?;
    let budgets: [f64; 4] = budgets.try_into().map_err(|b: Vec<f64>| fail(format!("found {} fractions", b.len())))?;
    // The usual cut, unless the budgets are so small that it would leave nothing.
    let cut = cut.unwrap_or_else(|| budgets.iter().fold(FRACTIONS.1, |cut, b| cut.min(b / 2.0)));
    Schedule::fractional(shape, budgets, cut)
        .map_err(|source| ScheduleFileError::Invalid { origin: format!("schedule {arg:?}"), source })
}

/// The schedule's file: `parse_schedule` reads back the same schedule.
impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "name = {}", self.name)?;
        writeln!(f, "skip_from = {}", self.skip_from)?;
        writeln!(f, "# stage = last_layer budget cut")?;
        for s in &self.stages {
            let cut = s.cut.map_or_else(|| "-".to_owned(), |cut| cut.to_string());
            writeln!(f, "stage = {} {} {cut}", s.last_layer, s.budget)?;
        }
        writeln!(f, "ramp = {}", self.ramp)?;
        let by_question = if self.probe.by_question { "question " } else { "" };
        writeln!(f, "probe_queries = {by_question}{}", self.probe.queries)?;
        writeln!(f, "join = {}", self.probe.join)?;
        writeln!(f, "pool = {}", self.probe.pool)?;
        writeln!(f, "sinks = {}", self.sinks)?;
        writeln!(f, "recent = {}", self.recent)?;
        writeln!(f, "carry = {}", self.probe.carry)?;
        writeln!(f, "proxy = {} {}", self.proxy.d_low, self.proxy.rank)?;
        writeln!(f, "skip_attn = {}", self.skip_attn)?;
        writeln!(f, "skip_ffn = {}", self.skip_ffn)?;
        writeln!(f, "use_proxy = {}", self.use_proxy)?;
        writeln!(f, "prune = {}", self.prune)?;
        writeln!(f, "selection = {}", self.selection)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::schedule::tests::any_schedule;
    use super::*;

    fn llama() -> Shape {
        Shape::named("llama-3.1-8b").unwrap()
    }

    fn parse(text: &str) -> Result<Schedule, ScheduleFileError> {
        parse_schedule(text, "x.schedule", &llama())
    }

    #[test]
    fn the_documented_example_is_llamas_preset() {
        let text = "name = llama-3.1-8b\nskip_from = 10 # first\r\n\n# c\nstage=13 9K 1K\nstage = 18 7168 1024\nstage = 23 4k 1K\nstage = 28 2K 1K\n\
                    probe_queries = 32\npool = max 65\ncarry = 0.7\nproxy = 512 192\nskip_attn = true\nselection = probe";
        assert_eq!(parse(text).unwrap(), Schedule::default_for(&llama()).unwrap());
    }

    #[test]
    fn short_files_take_the_defaults() {
        let s = parse("skip_from = 1\nstage = 2 28% 3%\n").unwrap();
        assert_eq!((s.probe, s.proxy.d_low, s.prune), (Probe::SHORT_SPANS, 512, true));
        assert_eq!(s.stages[0].budget, Budget::Fraction(0.28));
        assert_eq!(parse("skip_from = 1\nstage = 2 9K 1K\n").unwrap().probe, Probe::SPANS);
        let queries = parse("probe_queries = 4\nskip_from = 1\nstage = 2 28% 3%\n").unwrap().probe;
        assert_eq!(queries, Probe { queries: 4, ..Probe::SHORT_SPANS });
    }

    #[test]
    fn the_question_may_probe() {
        let probe = |line: &str| parse(&format!("skip_from = 1\nstage = 2 9K 1K\n{line}")).unwrap().probe;
        assert_eq!(probe("probe_queries = question"), Probe { by_question: true, ..Probe::SPANS });
        assert_eq!(probe("probe_queries = question 7"), Probe { by_question: true, queries: 7, ..Probe::SPANS });
    }

    #[test]
    fn stages_may_prune_nothing() {
        let s = parse("skip_from = 1\nstage = 2 9K -\nstage = 4 9K keep\nstage = 5 8K 7K").unwrap();
        let cuts: Vec<Option<Budget>> = s.stages.iter().map(|s| s.cut).collect();
        assert_eq!(cuts, [None, None, Some(Budget::Tokens(7168))]);
    }

    #[test]
    fn errors_name_the_line() {
        let message = |text: &str| parse(text).unwrap_err().to_string();
        assert!(
            message("skip_from = 1\n\nstage = 2 9K")
                .starts_with("x.schedule:3: `stage = 2 9K`: expected `last_layer budget cut`")
        );
        assert!(message("skip_from = -1").starts_with("x.schedule:1: "));
        assert!(message("a\n").contains("not of the form"));
        assert!(message("skip_from = 1\nskip_from = 2").contains(":2: `skip_from` is there a second time"));
        assert!(message("colour = red").contains("unknown key `colour`"));
        assert!(message("skip_from = 1").contains("no `stage`"));
        assert!(message("stage = 2 9K 1K").contains("no `skip_from`"));
        assert!(message("skip_from = 1\nstage = 2 1K 1K").contains("not below its budget"));
        for budget in ["inf", "nan", "-1", "1e3", "9KK", "K", "%", ".", "99999999999999999999", "18446744073709551615K"]
        {
            assert!(message(&format!("skip_from = 1\nstage = 2 {budget} 0")).contains(":2: "), "{budget}");
        }
        for line in [
            "pool = max",
            "pool = min 3",
            "pool = none 3",
            "pool = chunks",
            "carry = much",
            "sinks = all",
            "recent = -1",
            "join = sum",
            "ramp = slow",
            "proxy = 3",
            "prune = yes",
            "selection = random",
            "probe_queries = two",
            "probe_queries =",
            "probe_queries = question two",
            "probe_queries = 2 question",
        ] {
            assert!(message(line).contains(":1: "), "{line}");
        }
    }

    #[test]
    fn the_argument_is_a_preset_or_fractions_or_a_file() {
        assert_eq!(parse_schedule_arg("paper", &llama()).unwrap().probe, Probe::PAPER);
        let s = parse_schedule_arg("0.28,0.22,0.125,0.0625", &llama()).unwrap();
        assert_eq!((s.stages[0].budget, s.stages[3].cut), (Budget::Fraction(0.28), Some(Budget::Fraction(0.03))));
        assert_eq!(
            parse_schedule_arg("0.5,0.4,0.3,0.2:0.1", &llama()).unwrap().stages[0].cut,
            Some(Budget::Fraction(0.1))
        );
        assert_eq!(
            parse_schedule_arg("0.5,0.4,0.3,0.02", &llama()).unwrap().stages[0].cut,
            Some(Budget::Fraction(0.01))
        );
        for bad in
            ["0.5,0.4", "0.5,0.4,0.3,", "0.5,0.4,0.3,0.2:", "2,1,0.5,0.2", "0.1,0.2,0.3,0.4", "0.5,0.4,0.3,0.2:0.2"]
        {
            parse_schedule_arg(bad, &llama()).unwrap_err();
        }
        assert!(matches!(parse_schedule_arg("no/such.schedule", &llama()), Err(ScheduleFileError::Unknown(_))));
        // A table of the paper on a model with fewer layers.
        let small = Shape { n_layer: 16, ..llama() };
        assert!(matches!(parse_schedule_arg("llama-3.1-8b", &small), Err(ScheduleFileError::Invalid { .. })));
    }

    #[test]
    fn files_are_read_within_bounds() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let preset = Schedule::default_for(&llama()).unwrap();
        assert_eq!(parse_schedule_arg(&write("a", preset.to_string().as_bytes()), &llama()).unwrap(), preset);
        assert_eq!(parse_schedule_arg(&write("b", format!("\u{feff}{preset}").as_bytes()), &llama()).unwrap(), preset);
        assert!(matches!(
            parse_schedule_arg(&write("c", &[0xff, 0]), &llama()),
            Err(ScheduleFileError::NotASchedule { .. })
        ));
        assert!(matches!(
            parse_schedule_arg(&write("d", &vec![b'#'; 70_000]), &llama()),
            Err(ScheduleFileError::NotASchedule { .. })
        ));
        assert!(matches!(
            parse_schedule_arg(dir.path().to_str().unwrap(), &llama()),
            Err(ScheduleFileError::Io { .. })
        ));
    }

    #[test]
    fn a_models_own_schedule_lies_beside_it() {
        for (model, expected) in [
            ("a/model.gguf", "a/model.schedule"),
            ("model-a.b.gguf", "model-a.b.schedule"),
            ("model-a.gguf", "model-a.schedule"),
            ("model-1.5b", "model-1.5b.schedule"),
            ("model.bin", "model.bin.schedule"),
        ] {
            assert_eq!(path_beside(Path::new(model)), Path::new(expected));
        }
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("m.gguf");
        assert_eq!(beside(&model, &llama()).unwrap(), None);
        let preset = Schedule { name: "tuned".into(), ..Schedule::default_for(&llama()).unwrap() };
        let path = dir.path().join("m.schedule");
        std::fs::write(&path, format!("# found by tune\n{preset}")).unwrap();
        assert_eq!(beside(&model, &llama()).unwrap(), Some((path.clone(), preset)));
        // Broken ones are named: for a model with fewer layers, no schedule at all, no file.
        let small = Shape { n_layer: 16, ..llama() };
        let named = |e: ScheduleFileError| assert!(e.to_string().starts_with(&format!("{}", path.display())), "{e}");
        named(beside(&model, &small).unwrap_err());
        std::fs::write(&path, "skip_from = 1\n").unwrap();
        named(beside(&model, &llama()).unwrap_err());
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        named(beside(&model, &llama()).unwrap_err());
    }

    proptest! {
        #[test]
        fn display_round_trips(s in any_schedule(12)) {
            prop_assert_eq!(parse(&s.to_string()).unwrap(), s);
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,80}(\n[a-z_]{0,9} ?= ?[0-9a-zK%. ]{0,12}){0,4}") {
            let _ = parse(&text);
            let _ = parse_schedule_arg(&text.replace('/', ""), &llama());
        }
    }
}
