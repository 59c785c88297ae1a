//! Chat templates: the Jinja program under `tokenizer.chat_template` that writes a conversation
//! out as the text that the model was trained on.
//!
//! Templates are written for Python's Jinja2 as Hugging Face's transformers set it up:
//! `trim_blocks` and `lstrip_blocks`, methods of Python's str, list and dict, `raise_exception`,
//! `strftime_now`, and a `tojson` that formats like Python's json.dumps.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, Value};

use super::{Tokenizer, TokenizerError};
use crate::gguf::Gguf;

const KEY: &str = "tokenizer.chat_template";

/// ChatML, for models that bring no template.
const CHATML: &str = "{% for message in messages %}\
{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}\
{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// Steps that a template may take: a hostile one must not run for ever.
const FUEL: u64 = 5_000_000;

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
}

impl Message {
    /// A turn.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        Message { role: role.into(), content: content.into() }
    }
}

/// A model's chat template.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    source: String,
    builtin: bool,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// The template of a GGUF; ChatML if it has none. Whether it compiles shows when it is applied,
    /// so that a model with a broken template still runs without one.
    ///
    /// # Errors
    /// The key is there but no string.
    pub fn from_gguf(gguf: &Gguf, tokenizer: &Tokenizer) -> Result<ChatTemplate, TokenizerError> {
        let source = gguf.str(KEY)?;
        let text = |id: Option<u32>| id.map(|id| tokenizer.token_text(id)).unwrap_or_default();
        Ok(ChatTemplate {
            source: plain_jinja(source.unwrap_or(CHATML)),
            builtin: source.is_none(),
            bos: text(tokenizer.bos()),
            eos: text(tokenizer.eos()),
        })
    }

    /// A template from its source.
    pub fn new(source: &str, bos: &str, eos: &str) -> ChatTemplate {
        ChatTemplate { source: plain_jinja(source), builtin: false, bos: bos.to_owned(), eos: eos.to_owned() }
    }

    /// The Jinja source.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the GGUF had no template, so that ChatML is used.
    pub fn is_builtin(&self) -> bool {
        self.builtin
    }

    /// Writes `messages` out, with the beginning of the assistant's answer if
    /// `add_generation_prompt`. Encode the result with [`Tokenizer::encode_chat`].
    ///
    /// # Errors
    /// [`TokenizerError::Refused`] if the template refuses the conversation (a system message for a
    /// model that knows none, say), [`TokenizerError::Template`] if it does not compile or run.
    pub fn apply(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, TokenizerError> {
        let mut env = environment()?;
        let turns: Vec<Value> =
            messages.iter().map(|m| Value::from_pairs([("role", &*m.role), ("content", &*m.content)])).collect();
        env.add_template("chat", &self.source).map_err(|e| broken(&e))?;
        let context = minijinja::context! {
            messages => turns,
            add_generation_prompt => add_generation_prompt,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
            tools => (),
            documents => (),
        };
        env.get_template("chat").and_then(|t| t.render(context)).map_err(|e| {
            let has_system = messages.iter().any(|m| m.role == "system");
            match refusal(&e) {
                Some(reason) if has_system => TokenizerError::Refused {
                    reason: format!(
                        "{reason} (it may know no system role: put that text into the first \
                             user message, without -sys)"
                    ),
                },
                Some(reason) => TokenizerError::Refused { reason },
                None => broken(&e),
            }
        })
    }
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

fn broken(e: &Error) -> TokenizerError {
    let what = e.detail().map_or_else(|| e.kind().to_string(), str::to_owned);
    let reason = match e.line() {
        Some(line) => format!("line {line}: {what}"),
        None => what,
    };
    TokenizerError::Template { reason: reason.replace('\n', " ") }
}

fn environment<'s>() -> Result<Environment<'s>, TokenizerError> {
    let mut env = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(|e| broken(&e))?;
    env.set_syntax(syntax);
    env.set_fuel(Some(FUEL));
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.add_filter("tojson", tojson);
    env.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
    });
    env.add_function("strftime_now", |format: String| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        strftime(&format, now.map_or(0, |d| d.as_secs()))
    });
    Ok(env)
}

/// Replaces `{% generation %}` ... `{% endgeneration %}`, transformers' own marks around the
/// assistant's part for training, by blocks that do nothing and trim the same.
fn plain_jinja(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let Some(end) = rest.find("%}") else {
            break;
        };
        let (tag, after) = rest.split_at(end + 2);
        let inner = tag[2..end].trim_matches(['-', '+', ' ', '\t', '\n', '\r']);
        match inner {
            "generation" => out.push_str(&tag.replace(inner, "if true")),
            "endgeneration" => out.push_str(&tag.replace(inner, "endif")),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=indent)`.
fn tojson(value: &Value, kwargs: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    // options of json.dumps that change nothing here
    let _: Option<bool> = kwargs.get("ensure_ascii")?;
    let _: Option<Value> = kwargs.get("separators")?;
    let _: Option<bool> = kwargs.get("sort_keys")?;
    kwargs.assert_all_used()?;
    let json = serde_json::to_value(value)
        .map_err(|e| Error::new(ErrorKind::BadSerialization, "tojson: value is no JSON").with_source(e))?;
    let mut out = String::new();
    dump(&json, indent, 0, &mut out);
    Ok(out)
}

fn dump(value: &serde_json::Value, indent: Option<usize>, depth: usize, out: &mut String) {
    let line = |out: &mut String, depth: usize| {
        if let Some(n) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', n * depth));
        }
    };
    let comma = if indent.is_some() { "," } else { ", " };
    match value {
        serde_json::Value::Array(items) if !items.is_empty() => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                out.push_str(if i > 0 { comma } else { "" });
                line(out, depth + 1);
                dump(item, indent, depth + 1, out);
            }
            line(out, depth);
            out.push(']');
        }
        serde_json::Value::Object(map) if !map.is_empty() => {
            out.push('{');
            for (i, (key, item)) in map.iter().enumerate() {
                out.push_str(if i > 0 { comma } else { "" });
                line(out, depth + 1);
                out.push_str(&serde_json::Value::from(key.as_str()).to_string());
                out.push_str(": ");
                dump(item, indent, depth + 1, out);
            }
            line(out, depth);
            out.push('}');
        }
        other => out.push_str(&other.to_string()),
    }
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// strftime in UTC for the fields that templates use; others are left as they are.
fn strftime(format: &str, unix_seconds: u64) -> String {
    let days = unix_seconds / 86_400;
    let (hour, minute, second) = (unix_seconds / 3600 % 24, unix_seconds / 60 % 60, unix_seconds % 60);
    let (year, month, day) = civil(days);
    let month_name = MONTHS[month as usize - 1];
    let day_name = DAYS[(days % 7) as usize];
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('Y') => out.push_str(&year.to_string()),
            Some('y') => out.push_str(&format!("{:02}", year % 100)),
            Some('m') => out.push_str(&format!("{month:02}")),
            Some('d') => out.push_str(&format!("{day:02}")),
            Some('e') => out.push_str(&format!("{day:2}")),
            Some('B') => out.push_str(month_name),
            Some('b' | 'h') => out.push_str(&month_name[..3]),
            Some('A') => out.push_str(day_name),
            Some('a') => out.push_str(&day_name[..3]),
            Some('H') => out.push_str(&format!("{hour:02}")),
            Some('M') => out.push_str(&format!("{minute:02}")),
            Some('S') => out.push_str(&format!("{second:02}")),
            Some('F') => out.push_str(&format!("{year}-{month:02}-{day:02}")),
            Some('T') => out.push_str(&format!("{hour:02}:{minute:02}:{second:02}")),
            Some('%') => out.push('%'),
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
    }
    out
}

/// (year, month, day) of a day counted from 1970-01-01.
fn civil(days: u64) -> (u64, u64, u64) {
    // Years counted from March, so that the leap day comes last; 400 years have 146097 days.
    let z = days + 719_468;
    let era = z / 146_097;
    let of_era = z % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let m = (5 * of_year + 2) / 153;
    let day = of_year - (153 * m + 2) / 5 + 1;
    let month = if m < 10 { m + 3 } else { m - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, messages: &[Message]) -> Result<String, TokenizerError> {
        ChatTemplate::new(source, "<s>", "</s>").apply(messages, true)
    }

    #[test]
    fn dates() {
        assert_eq!(
            strftime("%d %b %Y %H:%M:%S %A|%F %%%q", 1_709_210_096),
            "29 Feb 2024 12:34:56 Thursday|2024-02-29 %%q"
        );
        assert_eq!(strftime("%F %a", 0), "1970-01-01 Thu");
    }

    #[test]
    fn python_methods_and_json() -> Result<(), TokenizerError> {
        let source = "{% for m in messages %}\n    {%- if m.content.strip().startswith('x') %}\
            {{ m.content.strip().split(' ')[-1].upper() }}{% endif %}\n{% endfor %}\
            {{ {'a': [1, 'ü'], 'b': {}} | tojson }}{{ {'k': [1]} | tojson(indent=2) }}\
            {% for k, v in {'q': 1}.items() %}{{ k }}={{ v }}{% endfor %}{{ {'q': 1}.get('z') }}";
        assert_eq!(
            render(source, &[Message::new("user", " x hi ")])?,
            "HI{\"a\": [1, \"ü\"], \"b\": {}}{\n  \"k\": [\n    1\n  ]\n}q=1None"
        );
        Ok(())
    }

    #[test]
    fn refusals_and_breakage_are_told_apart() {
        let refusing = "{% if messages[0].role == 'system' %}\
            {{ raise_exception('System role not supported') }}{% endif %}";
        let e = render(refusing, &[Message::new("system", "x")]);
        assert!(matches!(&e, Err(TokenizerError::Refused { reason }) if reason.contains("-sys")), "{e:?}");
        assert!(matches!(render("{% if %}", &[]), Err(TokenizerError::Template { .. })));
        let endless = "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}";
        assert!(matches!(render(endless, &[]), Err(TokenizerError::Template { .. })));
    }

    #[test]
    fn generation_marks_are_transparent() -> Result<(), TokenizerError> {
        let source = "a {%- generation -%} b {% endgeneration %} c";
        assert_eq!(render(source, &[])?, "ab  c");
        Ok(())
    }

    #[test]
    fn strftime_now_gives_a_year() -> Result<(), TokenizerError> {
        assert!(render("{{ strftime_now('%Y') }}", &[])?.starts_with("20"));
        Ok(())
    }
}
