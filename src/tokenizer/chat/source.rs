//! A template's source before the engine sees it: what is too large or too deep is refused, and what the engine takes
//! otherwise than Jinja2 does is rewritten.
//!
//! Both work on the engine's own tokens, so that strings, comments and raw blocks are told apart as it does.

use minijinja::Error;
use minijinja::machinery::{Token, tokenize};
use minijinja::syntax::SyntaxConfig;

/// Bytes of a source. The longest templates that models carry have some 30 KB.
const MAX_BYTES: usize = 1 << 20;
/// Tokens between `{{` and `}}`, or `{%` and `%}`. The engine's parser recurses once for each sign, and its syntax trees nest
/// once for each operator, filter or attribute.
const MAX_TAG_TOKENS: usize = 4096;
/// `elif` tags: each nests in the one before.
const MAX_ELIFS: usize = 2048;

/// A source that is safe to compile, and the names of the two functions that it calls.
#[derive(Debug)]
pub(super) struct Prepared {
    /// Jinja.
    pub(super) text: String,
    /// Takes what `set` assigns; refuses values that nest too deeply or hold themselves.
    pub(super) kept: String,
    /// Takes what `for` iterates over; refuses `none`.
    pub(super) iterated: String,
}

/// Why a source is refused.
#[derive(Debug)]
pub(super) enum SourceError {
    /// Not Jinja.
    Syntax(Error),
    /// One of the limits above, in words.
    Limit(String),
}

/// Checks the limits, and rewrites:
///
/// - `{% generation %}` ... `{% endgeneration %}`, transformers' own marks around the assistant's part for training, become
///   blocks that do nothing and trim the same;
/// - `{% set a = b %}` becomes `{% set a = kept((b)) %}`;
/// - `{% for a in b %}` becomes `{% for a in iterated((b)) %}`.
///
/// # Errors
/// A limit, or what the engine's lexer says.
pub(super) fn prepare(source: &str, syntax: SyntaxConfig) -> Result<Prepared, SourceError> {
    if source.len() > MAX_BYTES {
        return Err(SourceError::Limit(format!("{} bytes long, expected {MAX_BYTES} at most", source.len())));
    }
    let mut edits = Edits {
        source,
        kept: unused_name(source, "kept"),
        iterated: unused_name(source, "iterated"),
        edits: Vec::new(),
    };
    let mut tag: Vec<(Token<'_>, usize, usize)> = Vec::new();
    let mut elifs = 0;
    for token in tokenize(source, false, syntax) {
        let (token, span) = token.map_err(SourceError::Syntax)?;
        match token {
            Token::TemplateData(_) | Token::VariableStart | Token::BlockStart => tag.clear(),
            Token::VariableEnd | Token::BlockEnd => {
                if matches!(token, Token::BlockEnd) {
                    edits.block(&tag);
                }
                tag.clear();
            }
            token => {
                elifs += usize::from(matches!(token, Token::Ident("elif")));
                tag.push((token, span.start_offset as usize, span.end_offset as usize));
                if tag.len() > MAX_TAG_TOKENS {
                    return Err(SourceError::Limit(format!(
                        "line {}: a tag of more than {MAX_TAG_TOKENS} words and signs",
                        span.start_line
                    )));
                }
                if elifs > MAX_ELIFS {
                    return Err(SourceError::Limit(format!("more than {MAX_ELIFS} elif")));
                }
                if let [
                    ..,
                    (Token::Dot, ..),
                    (Token::Ident("cycle"), ..),
                    (Token::ParenOpen, ..),
                    (Token::ParenClose, ..),
                ] = tag[..]
                {
                    return Err(SourceError::Limit(format!(
                        "line {}: cycle() without items to cycle among",
                        span.start_line
                    )));
                }
            }
        }
    }
    let text = edits.apply();
    Ok(Prepared { text, kept: edits.kept, iterated: edits.iterated })
}

/// `name`, longer until the source does not hold it.
fn unused_name(source: &str, name: &str) -> String {
    let mut name = format!("_{name}");
    while source.contains(&name) {
        name.push('_');
    }
    name
}

struct Edits<'s> {
    source: &'s str,
    kept: String,
    iterated: String,
    /// (start, end, new text), in order.
    edits: Vec<(usize, usize, String)>,
}

impl Edits<'_> {
    /// The tokens between `{%` and `%}`.
    fn block(&mut self, tag: &[(Token<'_>, usize, usize)]) {
        match tag {
            [(Token::Ident("generation"), start, end)] => self.edits.push((*start, *end, "if true".into())),
            [(Token::Ident("endgeneration"), start, end)] => self.edits.push((*start, *end, "endif".into())),
            [(Token::Ident("set"), ..), rest @ ..] => {
                if let Some(at) = outside_brackets(rest, |t| matches!(t, Token::Assign)) {
                    self.wrap(&rest[at..], self.kept.clone());
                }
            }
            [(Token::Ident("for"), ..), rest @ ..] => {
                if let Some(at) = outside_brackets(rest, |t| matches!(t, Token::Ident("in"))) {
                    let rest = &rest[at..];
                    let end = outside_brackets(&rest[1..], |t| matches!(t, Token::Ident("if" | "recursive")));
                    self.wrap(end.map_or(rest, |end| &rest[..=end]), self.iterated.clone());
                }
            }
            _ => {}
        }
    }

    /// Calls `function` with what follows the first of `tokens`.
    fn wrap(&mut self, tokens: &[(Token<'_>, usize, usize)], function: String) {
        if let [(_, _, begin), .., (_, _, end)] = *tokens {
            self.edits.push((begin, begin, format!(" {function}((")));
            self.edits.push((end, end, "))".into()));
        }
    }

    fn apply(&self) -> String {
        let mut out = String::with_capacity(self.source.len() + 32 * self.edits.len());
        let mut from = 0;
        for (start, end, text) in &self.edits {
            out.push_str(self.source.get(from..*start).unwrap_or_default());
            out.push_str(text);
            from = *end;
        }
        out.push_str(self.source.get(from..).unwrap_or_default());
        out
    }
}

/// The first token that `wanted` takes and no brackets enclose.
fn outside_brackets(tokens: &[(Token<'_>, usize, usize)], wanted: impl Fn(&Token<'_>) -> bool) -> Option<usize> {
    let mut depth = 0usize;
    tokens.iter().position(|(token, ..)| {
        match token {
            Token::ParenOpen | Token::BracketOpen | Token::BraceOpen => depth += 1,
            Token::ParenClose | Token::BracketClose | Token::BraceClose => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth == 0 && wanted(token)
    })
}
