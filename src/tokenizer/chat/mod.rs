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
//! a turn of its own. A rendered text does not show who wrote what, so [`ChatTemplate::encode`] renders twice:
//!
//! - once with the messages as they are: the *plain* text;
//! - once with marks in them that survive `trim`, `upper`, `replace` and the like: the *marked* text.
//!
//! If the marked text without its marks is the plain one, which it is with nearly every template and message, the marks say
//! which bytes are the messages'; there control tokens are not recognized, and everything else is tokenized as if nothing had
//! been marked. A template that looks into the messages (`'/no_think' in content`) may answer to the marks. Then a third text
//! is rendered in which only the control tokens inside the messages are broken, and the messages are looked for in it. It
//! is taken if the template writes the same control tokens as in the marked text; if not, something in a message brought
//! one about, and the marked text without its marks is taken.
//!
//! A message that is in none of these texts is lost, and then the messages are handed over once more as lists of parts, which
//! some templates want. If that does not help either, it is an error.
//!
//! | file | what |
//! |---|---|
//! | `source` | limits and rewriting before the engine sees a template |
//! | `engine` | runs it, within bounds |
//! | `compare` | what comparisons cost |
//! | `given` | templates and variables that a caller gives |
//! | `python` | `json.dumps`, `strftime` |
//! | `marks` | marks in messages and what they say afterwards |

mod compare;
mod engine;
mod given;
mod marks;
mod python;
mod source;

use std::ops::Range;
use std::sync::Arc;

use super::special::Plain;
use super::{Tokenizer, TokenizerError};
use crate::gguf::Gguf;
use engine::{Failed, Setting, Turn};
use marks::{Marks, Unmarked, joined, trimmed};

pub use engine::THREAD as TEMPLATE_THREAD;
pub use given::TemplateVariables;

const KEY: &str = "tokenizer.chat_template";

/// ChatML, for models that bring no template.
const CHATML: &str = "{% for message in messages %}\
{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}\
{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// Between a document and the question about it.
const BETWEEN: &str = "\n\n";

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    role: String,
    content: String,
    /// Where the question begins, if a document stands before it.
    question: Option<usize>,
}

impl Message {
    /// A turn of `system`, `user` or `assistant`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        Message { role: role.into(), content: content.into(), question: None }
    }

    /// A user's turn: a document, a blank line, a question about it.
    pub fn about(document: &str, question: &str) -> Message {
        let content = format!("{document}{BETWEEN}{question}");
        Message { role: "user".into(), question: Some(content.len() - question.len()), content }
    }

    /// A turn whose content ends with a question about what stands before it; `None` if it does not end so.
    pub fn asking(role: impl Into<String>, content: impl Into<String>, question: &str) -> Option<Message> {
        let (role, content) = (role.into(), content.into());
        let start = content.strip_suffix(question).filter(|_| !question.is_empty())?.len();
        Some(Message { role, content, question: Some(start) })
    }

    /// The role of the speaker, such as `user`.
    pub fn role(&self) -> &str {
        &self.role
    }

    /// The text of the message.
    pub fn content(&self) -> &str {
        &self.content
    }

    /// The bytes of the content that hold the question, if a document stands before it.
    pub fn question(&self) -> Option<Range<usize>> {
        self.question.map(|start| start..self.content.len())
    }

    /// The content in parts that are looked for one by one.
    fn parts(&self) -> Vec<Range<usize>> {
        match self.question {
            Some(start) => vec![0..start, start..self.content.len()],
            None => std::iter::once(0..self.content.len()).collect(),
        }
    }
}

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
    /// A message as it is, without a template around it: the tokens of [`Tokenizer::encode`] with `add_special`.
    pub fn raw(tokenizer: &Tokenizer, message: &Message, parse_special: bool) -> ChatPrompt {
        let text = message.content.clone();
        let plain = if parse_special { Plain::default() } else { Plain::all(text.len()) };
        let whole = |range: Range<usize>| Some(trimmed(&text, range)).filter(|r| !r.is_empty());
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
            variables: TemplateVariables::default(),
            bos: text(tokenizer.bos()),
            eos: text(tokenizer.eos()),
        })
    }

    /// A template from its source.
    pub fn new(source: &str, bos: &str, eos: &str) -> ChatTemplate {
        let (bos, eos) = (bos.to_owned(), eos.to_owned());
        let variables = TemplateVariables::default();
        ChatTemplate { source: source.into(), builtin: false, given: None, variables, bos, eos }
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
        let setting = self.setting(add_generation_prompt);
        self.render(messages, &setting, |_, m| m.content.clone()).map_err(|e| self.blame(e.error))
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
        let mut setting = self.setting(add_generation_prompt);
        let problem = match self.write(tokenizer, messages, &setting) {
            Ok(Outcome::Written(written)) => return Ok(tokens(tokenizer, messages, written)),
            Ok(Outcome::Lost(message)) => {
                TokenizerError::MessageLost { role: crate::printable::printable(&messages[message].role) }
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
        let turn = |(i, m): (usize, &Message)| Turn { role: m.role.clone(), content: content(i, m) };
        engine::render(&self.source, messages.iter().enumerate().map(turn).collect(), setting.clone())
    }

    /// Writes the messages in one form, and finds out what is whose, as the module's documentation says.
    fn write(&self, tokenizer: &Tokenizer, messages: &[Message], setting: &Setting) -> Result<Outcome, Failed> {
        let mut texts: Vec<&str> = messages.iter().map(|m| &*m.content).collect();
        texts.push(&self.source);
        let marks = Marks::unused_in(&texts).ok_or_else(|| TokenizerError::Template {
            reason: "the messages use every character of Unicode's plane 16".into(),
        })?;
        let parts: Vec<Vec<Range<usize>>> = messages.iter().map(Message::parts).collect();
        // The number of each message's first part.
        let firsts: Vec<usize> = parts.iter().scan(0, |n, p| Some(std::mem::replace(n, *n + p.len()))).collect();
        let n_parts = parts.iter().map(Vec::len).sum();

        let plain = self.render(messages, setting, |_, m| m.content.clone())?;
        let beginnings = tokenizer.specials.hidden_beginnings();
        let marked = self.render(messages, setting, |i, m| marks.mark(&m.content, &parts[i], firsts[i], &beginnings));
        let marked = match marked {
            Ok(text) => marks.unmark(&text),
            Err(e) if e.is_spent => return Err(e),
            // A template that fails on marked messages only looks into them.
            Err(_) => Unmarked::default(),
        };
        for (i, m) in messages.iter().enumerate() {
            for (part, range) in (firsts[i]..).zip(&parts[i]) {
                let body = &m.content[trimmed(&m.content, range.clone())];
                if !body.is_empty() && !marked.has(part) && !plain.contains(body) {
                    return Ok(Outcome::Lost(i));
                }
            }
        }
        let exact = |marked: Unmarked| Written {
            plain: marked.plain(n_parts),
            parts: (0..n_parts).map(|part| marked.range(part)).collect(),
            text: marked.text,
        };
        if marked.text == plain {
            return Ok(Outcome::Written(exact(marked)));
        }
        let cut = self
            .render(messages, setting, |_, m| marks.cut(&m.content, &tokenizer.specials.hidden_starts(&m.content)))?;
        let cut = marks.unmark(&cut);
        let found = search(messages, &parts, &cut.text);
        let ranges = joined(found.iter().flatten().cloned().collect());
        let written = Written { plain: Plain { ranges, cuts: cut.cuts }, parts: found, text: cut.text };
        let tokens_of = |w: &Written| tokenizer.control_tokens(&w.text, &w.plain);
        let safe = exact(marked);
        if safe.text.is_empty() || tokens_of(&written) == tokens_of(&safe) {
            return Ok(Outcome::Written(written));
        }
        Ok(Outcome::Written(safe))
    }
}

/// Where the parts of the messages stand in `text`, if they do so unchanged and in order.
fn search(messages: &[Message], parts: &[Vec<Range<usize>>], text: &str) -> Vec<Option<Range<usize>>> {
    let mut from = 0;
    let mut out = Vec::new();
    for (m, parts) in messages.iter().zip(parts) {
        for range in parts {
            let body = &m.content[trimmed(&m.content, range.clone())];
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
        let first = rest.next().flatten();
        let last = if m.question.is_some() { rest.next().flatten() } else { first.clone() };
        if m.question.is_some() {
            question = last.clone().map(of_bytes);
        }
        let whole = match (first, last) {
            (Some(a), Some(b)) if a.start <= b.end => Some(a.start..b.end),
            (a, b) => a.or(b),
        };
        contents.push(whole.map(of_bytes));
    }
    ChatPrompt { tokens, text, contents, question }
}
