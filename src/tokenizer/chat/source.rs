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

/// Filters that go through what they get, and in Jinja2 refuse `none`. Not `map`, `select` and their kind, which there take what is
/// false for empty.
const ITERATING: [&str; 17] = [
    "batch", "count", "dictsort", "first", "groupby", "items", "join", "last", "length", "list", "max", "min", "reverse",
    "slice", "sort", "sum", "unique",
];
/// Those among them that compare the items.
const ORDERING: [&str; 6] = ["dictsort", "groupby", "max", "min", "sort", "unique"];

/// A source that is safe to compile, and the names of the functions and filters that it calls.
#[derive(Debug)]
pub(super) struct Prepared {
    /// Jinja.
    pub(super) text: String,
    /// Takes what gets a name; refuses values that nest too deeply, hold themselves, or are too large, and all when the time is
    /// up.
    pub(super) kept: String,
    /// Takes what `for` iterates over, and as a filter what filters do; refuses the same, and `none`.
    pub(super) iterated: String,
    /// A filter, for what is compared.
    pub(super) compared: String,
    /// A filter, for what is looked up with `in`.
    pub(super) searched: String,
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
/// - `{% for a in b %}` becomes `{% for a in iterated((b)) %}`;
/// - behind tags that name values otherwise (`macro`, `call`, `with`, recursive loops) stands `{% set a = kept((a)) %}`;
/// - behind tags whose body runs again and again stands a `kept` as well;
/// - `a == b` becomes `a | compared == b`, `a in b` becomes `a | searched in b`;
/// - `a | list` becomes `a | iterated | list`, `a | sort` becomes `a | iterated | compared | sort`.
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
        compared: unused_name(source, "compared"),
        searched: unused_name(source, "searched"),
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
                edits.operator(&tag, &token, span.start_offset as usize);
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
    let Edits { kept, iterated, compared, searched, .. } = edits;
    Ok(Prepared { text, kept, iterated, compared, searched })
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
    compared: String,
    searched: String,
    /// (start, end, new text); of those at one place the first comes first.
    edits: Vec<(usize, usize, String)>,
}

impl Edits<'_> {
    /// A token, which begins at `start`, and those before it in its tag.
    fn operator(&mut self, before: &[(Token<'_>, usize, usize)], token: &Token<'_>, start: usize) {
        let (at, filters) = match (before, token) {
            // An attribute, a test.
            ([.., (Token::Dot | Token::Ident("is"), ..)], Token::Ident(_))
            | ([.., (Token::Ident("is"), ..), (Token::Ident("not"), ..)], Token::Ident(_)) => return,
            // The loop's own.
            ([(Token::Ident("for"), ..), targets @ ..], Token::Ident("in"))
                if outside_brackets(targets, |t| matches!(t, Token::Ident("in"))).is_none() =>
            {
                return;
            }
            ([.., (Token::Ident("not"), at, _)], Token::Ident("in")) => (*at, format!(" | {} ", self.searched)),
            (_, Token::Ident("in")) => (start, format!(" | {} ", self.searched)),
            (_, Token::Eq | Token::Ne | Token::Lt | Token::Lte | Token::Gt | Token::Gte) => {
                (start, format!(" | {} ", self.compared))
            }
            ([.., (Token::Pipe, at, _)], Token::Ident(name)) if ORDERING.contains(name) => {
                (*at, format!(" | {} | {} ", self.iterated, self.compared))
            }
            ([.., (Token::Pipe, at, _)], Token::Ident(name)) if ITERATING.contains(name) => {
                (*at, format!(" | {} ", self.iterated))
            }
            _ => return,
        };
        self.edits.push((at, at, filters));
    }

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
                    let (targets, rest) = rest.split_at(at);
                    let end = outside_brackets(&rest[1..], |t| matches!(t, Token::Ident("if" | "recursive")));
                    self.wrap(end.map_or(rest, |end| &rest[..=end]), self.iterated.clone());
                    self.check_time(tag);
                    if let Some((Token::Ident("recursive"), ..)) = rest.last() {
                        self.check_names(tag, &names(targets));
                    }
                }
            }
            [(Token::Ident("macro"), ..), (Token::Ident(_), ..), rest @ ..] => {
                self.check_time(tag);
                self.check_names(tag, &parameters(rest));
            }
            [(Token::Ident("call"), ..), (Token::ParenOpen, ..), ..] => self.check_names(tag, &parameters(&tag[1..])),
            [(Token::Ident("with"), ..), rest @ ..] => {
                let mut all = Vec::new();
                let mut targets = rest;
                while let Some(at) = outside_brackets(targets, |t| matches!(t, Token::Assign)) {
                    all.extend(names(&targets[..at]));
                    let value = &targets[at..];
                    let next = outside_brackets(value, |t| matches!(t, Token::Comma));
                    targets = next.map_or(&[], |next| &value[next + 1..]);
                }
                self.check_names(tag, &all);
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

    /// Puts `{% set NAME = kept((NAME)) %}` behind a tag, with the tag's own ending at the last of them.
    fn check_names(&mut self, tag: &[(Token<'_>, usize, usize)], names: &[&str]) {
        if let Some((_, _, end)) = tag.last() {
            let kept = &self.kept;
            let sets: String = names.iter().map(|n| format!(" %}}{{% set {n} = {kept}(({n}))")).collect();
            self.edits.push((*end, *end, sets));
        }
    }

    /// Puts `{% set kept_ = kept((0)) %}` behind a tag: when the time is up, what goes round and round ends.
    fn check_time(&mut self, tag: &[(Token<'_>, usize, usize)]) {
        if let Some((_, _, end)) = tag.last() {
            let kept = &self.kept;
            self.edits.push((*end, *end, format!(" %}}{{% set {kept}_ = {kept}((0))")));
        }
    }

    fn apply(&mut self) -> String {
        self.edits.sort_by_key(|(start, ..)| *start);
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

/// The names of a macro's or a call block's parameters; `tokens` begin with the parenthesis.
fn parameters<'t>(tokens: &[(Token<'t>, usize, usize)]) -> Vec<&'t str> {
    let [(Token::ParenOpen, ..), inner @ ..] = tokens else { return Vec::new() };
    let end = outside_brackets(tokens, |t| matches!(t, Token::ParenClose)).unwrap_or(tokens.len());
    let inner = &inner[..end.saturating_sub(1).min(inner.len())];
    let mut names = Vec::new();
    let mut rest = inner;
    while let [(token, ..), ..] = rest {
        if let Token::Ident(name) = token {
            names.push(*name);
        }
        let next = outside_brackets(rest, |t| matches!(t, Token::Comma));
        rest = next.map_or(&[], |next| &rest[next + 1..]);
    }
    names
}

/// All names among assignment targets.
fn names<'t>(targets: &[(Token<'t>, usize, usize)]) -> Vec<&'t str> {
    targets.iter().filter_map(|(token, ..)| if let Token::Ident(name) = token { Some(*name) } else { None }).collect()
}
