//! Runs a template, which comes with the model and is as trustworthy as any download: time, memory, depth and the length of
//! the result are bounded, and what goes wrong becomes an error.
//!
//! | what | bound |
//! |---|---|
//! | source | [`source`](super::source): bytes, tokens of a tag |
//! | steps, bytes made or compared | the engine's fuel, in proportion to the conversation |
//! | values | [`MAX_DEPTH`] levels where they get a name; a namespace holds no namespace |
//! | widths and indents | what fuel does not count is checked here |
//! | the rest | a thread with a large stack, given up at a deadline; where it goes round in a loop it then ends as well |

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, ValueKind, merge_maps};
use minijinja::{Environment, Error, ErrorKind, State, Value};

use super::given::TemplateVariables;
use super::{compare, python};
use super::source::{self, SourceError};
use crate::printable::printable;
use crate::tokenizer::TokenizerError;

/// Steps of the engine, or 64 bytes that it makes, for the template alone.
const FUEL: u64 = 400_000;
/// As much again for each turn.
const TURN_FUEL: u64 = 2_000;
/// As much again for every byte of the conversation, so that a template may copy it this often (64 bytes are one step).
const COPIES: u64 = 16;
/// Bytes that a template may write beside the conversation.
const MAX_OWN_BYTES: usize = 1 << 20;
/// Levels of lists and maps in a value that is assigned.
const MAX_DEPTH: usize = 64;
/// Digits of a width or precision in a format string.
const MAX_WIDTH_DIGITS: usize = 4;
/// For all renderings of a conversation together.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);
/// Address space; only what is used takes memory.
const STACK_BYTES: usize = 256 << 20;
/// Name of the threads that templates run in. A panic there becomes an error; a program may keep its hook silent about it.
pub const THREAD: &str = "chat template";

/// A conversation as a template sees it.
#[derive(Clone, Debug)]
pub(super) struct Turn {
    pub(super) role: String,
    pub(super) content: String,
}

/// What else a template sees.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    pub(super) bos: String,
    pub(super) eos: String,
    pub(super) add_generation_prompt: bool,
    /// Whether a content is a list of parts, `[{"type": "text", "text": ...}]`, instead of a string.
    pub(super) as_parts: bool,
    /// What the caller adds.
    pub(super) variables: TemplateVariables,
    /// What `strftime_now` takes for the present, so that two renderings of a conversation are alike.
    pub(super) now: jiff::ZonedDateTime,
    /// When the work has to be done.
    pub(super) deadline: Instant,
}

/// Why a conversation is not written out.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) error: TokenizerError,
    /// Time or fuel is spent: to try once more in another way would only take as long again.
    pub(super) is_spent: bool,
}

/// Writes the turns out.
///
/// # Errors
/// [`TokenizerError::Refused`] if the template raises an exception, [`TokenizerError::Template`] for everything else.
pub(super) fn render(source: &Arc<str>, turns: Vec<Turn>, setting: Setting) -> Result<String, Failed> {
    let left = setting.deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(late());
    }
    let (sender, receiver) = sync_channel(1);
    let source = source.clone();
    let work = move || {
        let result = run(&source, &turns, &setting);
        // Nobody waits any more if the time was up.
        let _ = sender.send(result);
    };
    let thread = std::thread::Builder::new().name(THREAD.into()).stack_size(STACK_BYTES);
    if let Err(e) = thread.spawn(work) {
        return Err(template(format!("no thread to run it in: {e}")).into());
    }
    match receiver.recv_timeout(left) {
        Ok(result) => result,
        Err(RecvTimeoutError::Timeout) => Err(late()),
        Err(RecvTimeoutError::Disconnected) => Err(template("the template engine failed on it".into()).into()),
    }
}

fn late() -> Failed {
    let error = template(format!("took more than {} s", TIMEOUT.as_secs()));
    Failed { error, is_spent: true }
}

impl From<TokenizerError> for Failed {
    fn from(error: TokenizerError) -> Failed {
        Failed { error, is_spent: false }
    }
}

fn run(source: &str, turns: &[Turn], setting: &Setting) -> Result<String, Failed> {
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(|e| broken(&e))?;
    let prepared = source::prepare(source, syntax.clone()).map_err(|e| match e {
        SourceError::Syntax(e) => broken(&e),
        SourceError::Limit(what) => template(what),
    })?;
    let n_bytes: usize = turns.iter().map(|t| t.content.len()).sum();
    let mut env = environment(syntax, setting.now.clone());
    env.set_fuel(Some(FUEL + turns.len() as u64 * TURN_FUEL + n_bytes as u64 * COPIES / 64));
    let deadline = setting.deadline;
    env.add_function(prepared.kept.clone(), move |state: &State, value: Value| -> Result<Value, Error> {
        if Instant::now() > deadline {
            return Err(ErrorKind::OutOfFuel.into());
        }
        check_depth(state, &value, MAX_DEPTH)?;
        Ok(value)
    });
    env.add_function(prepared.iterated.clone(), iterated);
    env.add_filter(prepared.iterated.clone(), iterated);
    env.add_filter(prepared.compared.clone(), |state: &State, value: Value| -> Result<Value, Error> {
        compare::pay(state, &value)?;
        Ok(value)
    });
    env.add_filter(prepared.searched.clone(), |state: &State, value: Value| -> Result<Value, Error> {
        compare::pay_for_search(state, &value)?;
        Ok(value)
    });
    env.add_template("chat", &prepared.text).map_err(|e| broken(&e))?;
    // A key that shows where a template prints the list instead of its text.
    let mut shown = String::from("_part");
    while source.contains(&shown) || turns.iter().any(|t| t.content.contains(&shown)) {
        shown.push('_');
    }
    let content = |text: &str| match setting.as_parts {
        true => Value::from(vec![Value::from_pairs([(&*shown, ""), ("type", "text"), ("text", text)])]),
        false => Value::from(text),
    };
    let messages: Vec<Value> = turns
        .iter()
        .map(|t| Value::from_pairs([("role", Value::from(&*t.role)), ("content", content(&t.content))]))
        .collect();
    let context = minijinja::context! {
        messages => messages,
        add_generation_prompt => setting.add_generation_prompt,
        bos_token => setting.bos.as_str(),
        eos_token => setting.eos.as_str(),
        // The last one that has a name counts.
        ..merge_maps([minijinja::context! { tools => (), documents => () }, Value::from(Serde(&*setting.variables.0))])
    };
    let text = env.get_template("chat").and_then(|t| t.render(context)).map_err(|e| Failed {
        is_spent: e.kind() == ErrorKind::OutOfFuel,
        error: failed(&e, turns),
    })?;
    if setting.as_parts && text.contains(&shown) {
        return Err(template("writes the list of a message's parts, expected their text".into()).into());
    }
    let most = MAX_OWN_BYTES.saturating_add(n_bytes.saturating_mul(4));
    if text.len() > most {
        return Err(template(format!("writes {} bytes, expected {most} at most", text.len())).into());
    }
    Ok(text)
}

fn template(reason: String) -> TokenizerError {
    TokenizerError::Template { reason: printable(&reason) }
}

fn failed(e: &Error, turns: &[Turn]) -> TokenizerError {
    let Some(reason) = refusal(e) else { return broken(e) };
    let reason = printable(&reason);
    let hint = match turns.iter().any(|t| t.role == "system") {
        true => " (it may know no system role: put that text into the first user message)",
        false => "",
    };
    TokenizerError::Refused { reason: format!("{reason}{hint}") }
}

fn broken(e: &Error) -> TokenizerError {
    let what = match e.kind() {
        ErrorKind::OutOfFuel => "does more work than a chat template has to".to_owned(),
        kind => e.detail().map_or_else(|| kind.to_string(), str::to_owned),
    };
    template(match e.line() {
        Some(line) => format!("line {line}: {what}"),
        None => what,
    })
}

/// Marks errors made by `raise_exception`.
#[derive(Debug)]
struct Raised(String);

impl std::fmt::Display for Raised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

fn refusal(e: &Error) -> Option<String> {
    let mut cause = Some(e as &(dyn std::error::Error + 'static));
    while let Some(e) = cause {
        if let Some(raised) = e.downcast_ref::<Raised>() {
            return Some(raised.0.clone());
        }
        cause = e.source();
    }
    None
}

fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// Jinja2 as transformers sets it up, within bounds.
fn environment<'s>(syntax: SyntaxConfig, now: jiff::ZonedDateTime) -> Environment<'s> {
    let mut env = Environment::new();
    env.set_syntax(syntax);
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    env.set_formatter(|out, state, value| {
        check_depth(state, value, MAX_DEPTH)?;
        minijinja::escape_formatter(out, state, value)
    });
    env.set_unknown_method_callback(method);
    env.add_filter("tojson", tojson);
    compare::add_tests(&mut env);
    env.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    // Prints the engine's state, which Jinja2 does not offer.
    env.remove_global("debug");
    env.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(invalid(message.clone()).with_source(Raised(message)))
    });
    env.add_function("strftime_now", move |format: String| -> Result<String, Error> {
        if has_long_number(&format) {
            return Err(invalid("strftime_now: a width beyond reason"));
        }
        Ok(python::strftime(&format, &now))
    });
    env
}

/// Refuses a value that nests more than `depth` lists or maps, and namespaces inside values (one that holds itself has no
/// end). Every item that is looked at is paid for.
fn check_depth(state: &State, value: &Value, depth: usize) -> Result<(), Error> {
    check_levels(state, value, depth, true)
}

fn check_levels(state: &State, value: &Value, depth: usize, outermost: bool) -> Result<(), Error> {
    if !matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable) {
        return Ok(());
    }
    let Some(object) = value.as_object() else { return Ok(()) };
    if !outermost && object.type_name().ends_with("::Namespace") {
        return Err(invalid("a namespace inside a value"));
    }
    if depth == 0 {
        return Err(invalid(format!("a value of more than {MAX_DEPTH} levels")));
    }
    if value.kind() == ValueKind::Map {
        for (key, item) in object.try_iter_pairs().into_iter().flatten() {
            state.consume_fuel(1)?;
            check_levels(state, &key, depth - 1, false)?;
            check_levels(state, &item, depth - 1, false)?;
        }
    } else {
        for item in object.try_iter().into_iter().flatten() {
            state.consume_fuel(1)?;
            check_levels(state, &item, depth - 1, false)?;
        }
    }
    Ok(())
}

/// What `for` and filters go through: as in Jinja2, `none` is nothing that one can iterate over.
fn iterated(state: &State, value: Value) -> Result<Value, Error> {
    if value.is_none() {
        return Err(invalid("'None' is not iterable"));
    }
    check_depth(state, &value, MAX_DEPTH)?;
    Ok(value)
}

/// Methods of Python's str, list and dict, whose work and results are paid for first.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let bytes: usize = args.iter().chain([value]).filter_map(|v| v.as_str()).map(str::len).sum();
    state.consume_fuel(bytes as u64 / 64)?;
    match (value.as_str(), name) {
        (Some(format), "format") => {
            if has_long_number(format) {
                return Err(invalid("format: a width or precision beyond reason"));
            }
            args.iter().try_for_each(|arg| check_depth(state, arg, MAX_DEPTH))?;
        }
        (Some(separator), "join") => {
            for item in args.iter().flat_map(Value::try_iter).flatten() {
                if item.as_object().is_some() {
                    return Err(invalid(format!("join: expected strings, found a {}", item.kind())));
                }
                state.consume_fuel(1 + (separator.len() + item.as_str().map_or(0, str::len)) as u64 / 64)?;
            }
        }
        _ => {}
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

fn has_long_number(format: &str) -> bool {
    let mut digits = 0;
    format.chars().any(|c| {
        digits = if c.is_ascii_digit() { digits + 1 } else { 0 };
        digits > MAX_WIDTH_DIGITS
    })
}

fn tojson(state: &State, value: &Value, kwargs: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    // options of json.dumps that change nothing here
    let _: Option<bool> = kwargs.get("ensure_ascii")?;
    let _: Option<Value> = kwargs.get("separators")?;
    let _: Option<bool> = kwargs.get("sort_keys")?;
    kwargs.assert_all_used()?;
    check_depth(state, value, MAX_DEPTH)?;
    let json = serde_json::to_value(value)
        .map_err(|e| Error::new(ErrorKind::BadSerialization, "tojson: value is no JSON").with_source(e))?;
    python::json(&json, indent).ok_or_else(|| invalid("tojson: an indent beyond reason"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renderings_share_one_deadline() {
        let source: Arc<str> = "{% for i in range(99999) %}{% set x = i %}{% endfor %}{{ messages[0].content }}".into();
        let turns = || vec![Turn { role: "user".into(), content: "q".into() }];
        let mut setting = Setting {
            bos: String::new(),
            eos: String::new(),
            add_generation_prompt: true,
            as_parts: false,
            variables: TemplateVariables::default(),
            now: jiff::ZonedDateTime::now(),
            deadline: Instant::now() + TIMEOUT,
        };
        let e = render(&source, turns(), setting.clone()).unwrap_err();
        assert!(e.is_spent && e.error.to_string().contains("does more work"), "{e:?}");
        let brief: Arc<str> = "{{ messages[0].content }}".into();
        assert_eq!(render(&brief, turns(), setting.clone()).unwrap(), "q");
        // The time is up: whatever it is, it is not begun, and what runs ends.
        setting.deadline = Instant::now();
        let e = render(&brief, turns(), setting.clone()).unwrap_err();
        assert!(e.is_spent && e.error.to_string().contains("took more than 10 s"), "{e:?}");
        let e = run("{% for i in [1] %}{{ i }}{% endfor %}", &turns(), &setting).unwrap_err();
        assert!(e.is_spent, "{e:?}");
    }
}
