//! Chat templates: the Jinja program under `tokenizer.chat_template` writes a conversation out as the text that the model was
//! trained on, control tokens included.
//!
//! Templates are written for Python's Jinja2 as Hugging Face's transformers set it up: `trim_blocks` and `lstrip_blocks`,
//! methods of Python's str, list and dict, `raise_exception`, `strftime_now`, and a `tojson` that formats like Python's
//! json.dumps.
//!
//! # Whose control tokens
//!
//! Only the template's own control tokens count. `<|im_end|>` in a document or a question is text, or the document could open
//! a turn of its own; so are user-defined tokens that are marks of a chat's format (`tokenizer/markup.rs`). Roles are words. A
//! rendered text does not show who wrote what, so [`ChatTemplate::encode`] renders twice:
//!
//! - once with the messages as they are: the *plain* text;
//! - once with marks in them that survive `trim`, `upper`, `replace` and the like: the *marked* text.
//!
//! If the marked text without its marks is the plain one, which it is with nearly every template and message, the marks say
//! which bytes are the messages'; there control tokens are not recognized, and everything else is tokenized as if nothing had
//! been marked. A template that looks into the messages (`'/no_think' in content`) may answer to the marks. Then a third text
//! is rendered in which only the control tokens inside the messages are broken, and the messages are looked for in it. It
//! is taken if it holds all of them and the template writes the same control tokens as in the marked text; if not, something in
//! a message brought one about, or cut it, and the marked text without its marks is taken.
//!
//! A message counts as there only as a whole, from its first mark to its last, or word by word. A template may strip blanks at
//! its ends, and leave out what an assistant thought in earlier turns. A message that is whole in none of these texts is lost, and
//! then the messages are handed over once more as lists of parts, which some templates want. If that does not help either, it is
//! an error. All renderings share one deadline, and whoever spends it, or what it may compute, has no second try.
//!
//! | file | what |
//! |---|---|
//! | `source` | limits and rewriting before the engine sees a template |
//! | `engine` | runs it, within bounds |
//! | `message` | turns of a conversation |
//! | `compare` | what comparisons cost |
//! | `given` | templates and variables that a caller gives |
//! | `python` | `json.dumps`, `strftime` |
//! | `marks` | marks in messages and what they say afterwards |

mod compare;
mod engine;
mod given;
mod marks;
mod message;
mod python;
mod source;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::special::Plain;
use super::{Tokenizer, TokenizerError};
use crate::gguf::Gguf;
use engine::{Failed, Setting, Turn};
use marks::{Marks, Unmarked, joined, trimmed};

pub use engine::THREAD as TEMPLATE_THREAD;
pub use given::TemplateVariables;
pub use message::Message;
pub(super) use message::{is_plain_role, unmarked_words};
use message::Part;

const KEY: &str = "tokenizer.chat_template";

/// ChatML, for models that bring no template.
const CHATML: &str = "{% for message in messages %}\
{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}\
{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// A conversation, or a message alone, as tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatPrompt {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// The text that they are of.
    pub text: String,
    /// For each message: the tokens that hold its content (white space at its ends aside), a token that holds text of the
    /// template, too, included. `None` where the template changed the content beyond recognition, or it is blank.
    pub contents: Vec<Option<Range<usize>>>,
    /// The tokens that hold the question of the last message made by [`Message::about`].
    pub question: Option<Range<usize>>,
}

impl ChatPrompt {
    /// A message as it is, without a template around it: the tokens of [`Tokenizer::encode`] with `add_special`, but that without
    /// `parse_special` user-defined tokens that are marks of a chat's format are text as well.
    pub fn raw(tokenizer: &Tokenizer, message: &Message, parse_special: bool) -> ChatPrompt {
        let text = message.content().to_owned();
        let plain = match parse_special {
            true => Plain::default(),
            false => Plain { markup: tokenizer.specials.markup(""), ..Plain::all(text.len()) },
        };
        let whole = |part: Part| Some(trimmed(&text, part.range)).filter(|r| !r.is_empty());
        let parts = message.parts().into_iter().map(whole).collect();
        let bos = tokenizer.bos().filter(|_| tokenizer.add_bos());
        let mut prompt = located(tokenizer, std::slice::from_ref(message), Written { text, plain, parts }, bos);
        prompt.tokens.extend(tokenizer.eos().filter(|_| tokenizer.add_eos()));
        prompt
    }
}

/// A model's chat template.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    source: Arc<str>,
    builtin: bool,
    /// Name of the template that was given in place of the model's.
    given: Option<String>,
    /// The model's file, if it came from there.
    file: Option<Arc<Path>>,
    variables: TemplateVariables,
    bos: String,
    eos: String,
}

/// What a template wrote, and what in it is whose.
struct Written {
    text: String,
    plain: Plain,
    /// The bytes of every part of every message.
    parts: Vec<Option<Range<usize>>>,
}

/// A template's answer to one form of the messages.
enum Outcome {
    Written(Written),
    /// This message is missing.
    Lost(usize),
}

impl ChatTemplate {
    /// The template of a GGUF; ChatML if it has none, or an empty one. Whether it compiles shows when it is applied, so that
    /// a model with a broken template still runs without one.
    ///
    /// # Errors
    /// The key is there but no string.
    pub fn from_gguf(gguf: &Gguf, tokenizer: &Tokenizer) -> Result<ChatTemplate, TokenizerError> {
        let source = gguf.str(KEY)?.filter(|s| !s.trim().is_empty());
        let text = |id: Option<u32>| id.map(|id| tokenizer.token_text(id)).unwrap_or_default();
        Ok(ChatTemplate {
            source: source.unwrap_or(CHATML).into(),
            builtin: source.is_none(),
            given: None,
            file: Some(gguf.path().into()),
            variables: TemplateVariables::default(),
            bos: text(tokenizer.bos()),
            eos: text(tokenizer.eos()),
        })
    }

    /// A template from its source.
    pub fn new(source: &str, bos: &str, eos: &str) -> ChatTemplate {
        let (bos, eos) = (bos.to_owned(), eos.to_owned());
        let variables = TemplateVariables::default();
        ChatTemplate { source: source.into(), builtin: false, given: None, file: None, variables, bos, eos }
    }

    /// The Jinja source of the template.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the GGUF had no template, so that ChatML is used.
    pub fn is_builtin(&self) -> bool {
        self.builtin
    }

    /// The text of `messages`, with the beginning of the assistant's answer if `add_generation_prompt`. It does not tell
    /// control tokens of the template from those in messages: for tokens use [`ChatTemplate::encode`].
    ///
    /// # Errors
    /// As [`ChatTemplate::encode`], but for lost messages.
    pub fn apply(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, TokenizerError> {
        check_roles(messages)?;
        let setting = self.setting(add_generation_prompt);
        self.render(messages, &setting, |_, m| m.content().to_owned()).map_err(|e| self.blame(e.error))
    }

    /// The tokens of `messages`, with the beginning of the assistant's answer if `add_generation_prompt`. Control tokens
    /// are the template's alone. BOS is added if the model wants it and the template does not write it.
    ///
    /// # Errors
    /// [`TokenizerError::Refused`] if the template refuses the conversation (a system message for a model that knows none,
    /// say), [`TokenizerError::MessageLost`] if a message is not in what it writes, [`TokenizerError::Template`] if it does
    /// not compile, does not run, or asks for more than a template has to.
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<ChatPrompt, TokenizerError> {
        check_roles(messages)?;
        let mut setting = self.setting(add_generation_prompt);
        let problem = match self.write(tokenizer, messages, &setting) {
            Ok(Outcome::Written(written)) => return Ok(tokens(tokenizer, messages, written)),
            Ok(Outcome::Lost(message)) => {
                TokenizerError::MessageLost { role: crate::printable::printable(messages[message].role()) }
            }
            Err(Failed { error, is_spent: true }) => return Err(self.blame(error)),
            Err(Failed { error, .. }) => error,
        };
        setting.as_parts = true;
        match self.write(tokenizer, messages, &setting) {
            Ok(Outcome::Written(written)) => Ok(tokens(tokenizer, messages, written)),
            _ => Err(self.blame(problem)),
        }
    }

    fn setting(&self, add_generation_prompt: bool) -> Setting {
        Setting {
            bos: self.bos.clone(),
            eos: self.eos.clone(),
            add_generation_prompt,
            as_parts: false,
            variables: self.variables.clone(),
            now: jiff::ZonedDateTime::now(),
            deadline: std::time::Instant::now() + engine::TIMEOUT,
        }
    }

    /// Renders the messages with what `content` makes of each.
    fn render(
        &self,
        messages: &[Message],
        setting: &Setting,
        content: impl Fn(usize, &Message) -> String,
    ) -> Result<String, Failed> {
        let turn = |(i, m): (usize, &Message)| Turn { role: m.role().to_owned(), content: content(i, m) };
        engine::render(&self.source, messages.iter().enumerate().map(turn).collect(), setting.clone())
    }

    /// Writes the messages in one form, and finds out what is whose, as the module's documentation says.
    fn write(&self, tokenizer: &Tokenizer, messages: &[Message], setting: &Setting) -> Result<Outcome, Failed> {
        let mut texts: Vec<&str> = messages.iter().map(Message::content).collect();
        texts.push(&self.source);
        let marks = Marks::unused_in(&texts).ok_or_else(|| TokenizerError::Template {
            reason: "the messages use every character of Unicode's plane 16".into(),
        })?;
        let parts: Vec<Vec<Part>> = messages.iter().map(Message::parts).collect();
        // The number of each message's first part.
        let firsts: Vec<usize> = parts.iter().scan(0, |n, p| Some(std::mem::replace(n, *n + p.len()))).collect();
        let n_parts = parts.iter().map(Vec::len).sum();
        let markup = tokenizer.specials.markup(&self.source);

        let plain = self.render(messages, setting, |_, m| m.content().to_owned())?;
        let beginnings = tokenizer.specials.hidden_beginnings(&markup);
        let marked = self.render(messages, setting, |i, m| marks.mark(m.content(), &parts[i], firsts[i], &beginnings));
        let marked = match marked {
            Ok(text) => marks.unmark(&text),
            Err(e) if e.is_spent => return Err(e),
            // A template that fails on marked messages only looks into them.
            Err(_) => Unmarked::default(),
        };
        // The first message of which a part that has to be there is not `there`.
        let lost = |there: &dyn Fn(usize) -> bool| {
            messages.iter().enumerate().position(|(i, m)| {
                (firsts[i]..).zip(&parts[i]).any(|(number, part)| {
                    !part.may_go && !trimmed(m.content(), part.range.clone()).is_empty() && !there(number)
                })
            })
        };
        let same = marked.text == plain;
        if let Some(message) = lost(&|part| marked.has(part)).filter(|_| same) {
            return Ok(Outcome::Lost(message));
        }
        let lost_in_marked = lost(&|part| marked.range(part).is_some());
        let safe = Written {
            plain: Plain { markup: markup.clone(), ..marked.plain(n_parts) },
            parts: (0..n_parts).map(|part| marked.range(part)).collect(),
            text: marked.text,
        };
        if same && lost_in_marked.is_none() {
            return Ok(Outcome::Written(safe));
        }
        let cut = self.render(messages, setting, |i, m| {
            let starts = tokenizer.specials.hidden_starts(m.content(), &markup);
            marks.cut(m.content(), starts.into_iter().filter(|at| parts[i].iter().any(|p| p.range.contains(at))))
        })?;
        let cut = marks.unmark(&cut);
        let found = search(messages, &parts, &cut.text);
        let lost_in_cut = lost(&|part| found[part].is_some());
        let ranges = joined(found.iter().flatten().cloned().collect());
        let written = Written { plain: Plain { ranges, cuts: cut.cuts, markup }, parts: found, text: cut.text };
        let tokens_of = |w: &Written| tokenizer.control_tokens(&w.text, &w.plain);
        Ok(match (lost_in_cut, lost_in_marked) {
            (Some(message), Some(_)) => Outcome::Lost(message),
            (Some(_), None) => Outcome::Written(safe),
            (None, None) if tokens_of(&written) != tokens_of(&safe) => Outcome::Written(safe),
            (None, _) => Outcome::Written(written),
        })
    }
}

/// Roles stand outside of messages' marks, where templates compare them: what is no word is refused.
fn check_roles(messages: &[Message]) -> Result<(), TokenizerError> {
    match messages.iter().find(|m| !m.has_plain_role()) {
        Some(m) => Err(TokenizerError::Role { role: crate::printable::printable(m.role()) }),
        None => Ok(()),
    }
}

/// Where the parts of the messages stand in `text`, if they do so unchanged and in order.
fn search(messages: &[Message], parts: &[Vec<Part>], text: &str) -> Vec<Option<Range<usize>>> {
    let mut from = 0;
    let mut out = Vec::new();
    for (m, parts) in messages.iter().zip(parts) {
        for part in parts {
            let body = &m.content()[trimmed(m.content(), part.range.clone())];
            let found =
                text[from..].find(body).filter(|_| !body.is_empty()).map(|at| from + at..from + at + body.len());
            from = found.as_ref().map_or(from, |r| r.end);
            out.push(found);
        }
    }
    out
}

fn tokens(tokenizer: &Tokenizer, messages: &[Message], written: Written) -> ChatPrompt {
    let Written { text, plain, parts } = written;
    let bos = tokenizer.missing_bos(&text, &plain);
    located(tokenizer, messages, Written { text, plain, parts }, bos)
}

/// The tokens of what was written, and where in them the messages stand.
fn located(tokenizer: &Tokenizer, messages: &[Message], written: Written, bos: Option<u32>) -> ChatPrompt {
    let Written { text, plain, parts } = written;
    let (tokens, starts) = tokenizer.encode_located(&text, &plain, bos);
    let of_bytes = |bytes: Range<usize>| {
        let first = starts.partition_point(|&at| at <= bytes.start).saturating_sub(1);
        first..starts.partition_point(|&at| at < bytes.end).max(first)
    };
    let mut rest = parts.into_iter();
    let (mut contents, mut question) = (Vec::new(), None);
    for m in messages {
        let of_message: Vec<Option<Range<usize>>> = rest.by_ref().take(m.parts().len()).collect();
        if m.question().is_some() {
            question = of_message.last().cloned().flatten().map(of_bytes);
        }
        let whole = of_message.into_iter().flatten().reduce(|a, b| if a.start <= b.end { a.start..b.end } else { a });
        contents.push(whole.map(of_bytes));
    }
    ChatPrompt { tokens, text, contents, question }
}
