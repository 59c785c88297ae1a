//! The scanners of the pre-tokenizers. The regular expression that a scanner implements stands
//! above it.

use super::unicode::{Classes, LETTER, MARK, NUMBER, PUNCT, SPACE, SYMBOL};

/// One regular expression.
#[derive(Clone, Copy)]
pub(super) enum Step {
    /// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
    Gpt2,
    /// The family of llama 3 and qwen 2, see [`Modern`].
    Modern(Modern),
    /// The main expression of deepseek-v3:
    /// `[!-/:-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
    DeepSeek3,
    /// `PREFIX?CLASS{1,max}`; what lies between matches stays a piece of its own.
    Run { prefix: Prefix, class: fn(char, u8) -> bool, max: usize },
    /// `[0-9][0-9][0-9]`
    DigitTriples,
    /// `\s+$`
    TrailingSpace,
    /// `[^\n]+|[\n]+`
    Lines,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Prefix {
    None,
    /// ` ?`
    Blank,
    /// `\s?`
    Space,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Contraction {
    None,
    /// `(?i:'s|'t|'re|'ve|'m|'ll|'d)` as the first alternative
    Word,
    /// the same, optional, at the end of a word
    Suffix,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Letters {
    /// `[^\r\n\p{L}\p{N}]?\p{L}+`
    All,
    /// `[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+`, and marks are no punctuation
    AndMarks,
    /// `[^\r\n\p{L}\p{N}]?U*W+|[^\r\n\p{L}\p{N}]?U+W*`, U: letters but `a-z`, W: letters but `A-Z`
    /// (how llama.cpp renders the upper and lower case classes of tekken and gpt-4o)
    Cased,
}

/// `CONTRACTION|LETTERS|\p{N}{1,digits}| ?[^\s\p{L}\p{N}]+[TAIL]*|\s*[\r\n]+|\s+(?!\S)|\s+`
#[derive(Clone, Copy)]
pub(super) struct Modern {
    pub(super) contraction: Contraction,
    pub(super) letters: Letters,
    pub(super) digits: usize,
    /// characters that may follow punctuation
    pub(super) tail: &'static str,
}

/// A character of the text; `len` 0 is the end.
#[derive(Clone, Copy)]
pub(super) struct At {
    pub(super) c: char,
    pub(super) len: usize,
    pub(super) class: u8,
}

impl At {
    pub(super) fn is(self, class: u8) -> bool {
        self.class & class != 0
    }
    pub(super) fn newline(self) -> bool {
        self.c == '\n' || self.c == '\r'
    }
    /// in none of `classes`, and not the end
    pub(super) fn other_than(self, classes: u8) -> bool {
        self.len > 0 && self.class & classes == 0
    }
}

pub(super) struct Scan<'t> {
    pub(super) text: &'t str,
    pub(super) table: &'static Classes,
}

impl Scan<'_> {
    #[inline]
    pub(super) fn at(&self, i: usize) -> At {
        match self.text.as_bytes().get(i) {
            Some(&b) if b < 0x80 => At { c: b as char, len: 1, class: self.table.of(b as char) },
            Some(_) => match self.text.get(i..).and_then(|t| t.chars().next()) {
                Some(c) => At { c, len: c.len_utf8(), class: self.table.of(c) },
                None => At::END,
            },
            None => At::END,
        }
    }

    /// End of the run from `i` of characters for which `keep` holds.
    #[inline]
    pub(super) fn run(&self, mut i: usize, keep: impl Fn(At) -> bool) -> usize {
        loop {
            let a = self.at(i);
            if a.len == 0 || !keep(a) {
                return i;
            }
            i += a.len;
        }
    }

    /// End of `'s|'t|'re|'ve|'m|'ll|'d` at `i`, if it stands there.
    pub(super) fn contraction(&self, i: usize, any_case: bool) -> Option<usize> {
        let bytes = self.text.as_bytes();
        if bytes.get(i) != Some(&b'\'') {
            return None;
        }
        let letter = |k: usize| {
            let b = *bytes.get(i + k)?;
            Some(if any_case { b.to_ascii_lowercase() } else { b })
        };
        match (letter(1)?, letter(2)) {
            (b's' | b't' | b'm' | b'd', _) => Some(i + 2),
            (b'r' | b'v', Some(b'e')) | (b'l', Some(b'l')) => Some(i + 3),
            _ => None,
        }
    }

    /// `\s+(?!\S)|\s+` from `i`: of several blanks before a word the last is left to the word.
    pub(super) fn blanks(&self, i: usize) -> usize {
        let (mut end, mut last) = (i, i);
        loop {
            let a = self.at(end);
            if a.len == 0 {
                return end.max(self.step_over(i));
            }
            if !a.is(SPACE) {
                break;
            }
            last = end;
            end += a.len;
        }
        if last > i { last } else { self.step_over(i) }
    }

    /// End of the one character at `i`.
    pub(super) fn step_over(&self, i: usize) -> usize {
        i + self.at(i).len
    }

    /// `\s*[\r\n]+|\s+(?!\S)|\s+`
    pub(super) fn blanks_and_lines(&self, i: usize) -> usize {
        let (mut end, mut after_newline) = (i, i);
        loop {
            let a = self.at(end);
            if !a.is(SPACE) {
                break;
            }
            end += a.len;
            if a.newline() {
                after_newline = end;
            }
        }
        if after_newline > i { after_newline } else { self.blanks(i) }
    }
}

impl At {
    const END: At = At { c: '\0', len: 0, class: 0 };
}

impl Step {
    /// End of the piece (a match, or a gap up to the next match) that begins at `i`, which is
    /// not the end of the text.
    pub(super) fn piece(&self, s: &Scan<'_>, i: usize) -> usize {
        match self {
            Step::Gpt2 => gpt2(s, i),
            Step::Modern(m) => m.piece(s, i),
            Step::DeepSeek3 => deepseek3(s, i),
            Step::Run { prefix, class, max } => {
                let keep = |a: At| a.len > 0 && class(a.c, a.class);
                let first = |i: usize| -> Option<usize> {
                    let a = s.at(i);
                    let prefixed = match prefix {
                        Prefix::None => false,
                        Prefix::Blank => a.c == ' ',
                        Prefix::Space => a.is(SPACE),
                    };
                    if prefixed && keep(s.at(i + a.len)) {
                        Some(i + a.len)
                    } else if keep(a) {
                        Some(i)
                    } else {
                        None
                    }
                };
                if let Some(mut end) = first(i) {
                    let mut n = 0;
                    while n < *max {
                        let a = s.at(end);
                        if !keep(a) {
                            break;
                        }
                        end += a.len;
                        n += 1;
                    }
                    return end;
                }
                gap(s, i, |j| first(j).is_some())
            }
            Step::DigitTriples => {
                let triple = |j: usize| {
                    let b = s.text.as_bytes();
                    b.get(j..j + 3).is_some_and(|t| t.iter().all(u8::is_ascii_digit))
                };
                if triple(i) { i + 3 } else { gap(s, i, triple) }
            }
            Step::TrailingSpace => {
                let trimmed = s.text.trim_end_matches(|c| s.table.of(c) & SPACE != 0);
                if trimmed.len() <= i { s.text.len() } else { trimmed.len() }
            }
            Step::Lines => {
                let newline = s.at(i).c == '\n';
                s.run(i, |a| (a.c == '\n') == newline)
            }
        }
    }
}

/// The first place after `i` where a match begins, or the end.
pub(super) fn gap(s: &Scan<'_>, i: usize, begins: impl Fn(usize) -> bool) -> usize {
    let mut j = s.step_over(i);
    while j < s.text.len() && !begins(j) {
        j = s.step_over(j);
    }
    j
}

fn gpt2(s: &Scan<'_>, i: usize) -> usize {
    let a = s.at(i);
    if let Some(end) = s.contraction(i, false) {
        return end;
    }
    let (j, b) = if a.c == ' ' { (i + 1, s.at(i + 1)) } else { (i, a) };
    if b.is(LETTER) {
        s.run(j, |a| a.is(LETTER))
    } else if b.is(NUMBER) {
        s.run(j, |a| a.is(NUMBER))
    } else if b.other_than(SPACE) {
        s.run(j, |a| a.other_than(SPACE | LETTER | NUMBER))
    } else {
        s.blanks(i)
    }
}

/// The main expression of deepseek-v3, see [`Step::DeepSeek3`].
fn deepseek3(s: &Scan<'_>, i: usize) -> usize {
    let a = s.at(i);
    if a.c.is_ascii_punctuation() && s.at(i + 1).c.is_ascii_alphabetic() {
        return s.run(i + 1, |a| a.c.is_ascii_alphabetic());
    }
    let prefixable = a.len > 0 && !a.newline() && !a.is(LETTER | PUNCT | SYMBOL);
    if a.is(LETTER | MARK) || (prefixable && s.at(i + a.len).is(LETTER | MARK)) {
        return s.run(i + a.len, |a| a.is(LETTER | MARK));
    }
    let (j, b) = if a.c == ' ' { (i + 1, s.at(i + 1)) } else { (i, a) };
    if b.is(PUNCT | SYMBOL) {
        let end = s.run(j, |a| a.is(PUNCT | SYMBOL));
        return s.run(end, At::newline);
    }
    if a.is(SPACE) {
        return s.blanks_and_lines(i);
    }
    // matched by no alternative: a gap
    gap(s, i, |j| {
        let b = s.at(j);
        b.is(SPACE | LETTER | MARK | PUNCT | SYMBOL) || s.at(j + b.len).is(LETTER | MARK)
    })
}

impl Modern {
    fn piece(&self, s: &Scan<'_>, i: usize) -> usize {
        let a = s.at(i);
        if self.contraction == Contraction::Word
            && let Some(end) = s.contraction(i, true)
        {
            return end;
        }
        if let Some(end) = self.letters(s, i, a) {
            return end;
        }
        if a.is(NUMBER) {
            let mut end = i;
            for _ in 0..self.digits {
                let d = s.at(end);
                if !d.is(NUMBER) {
                    break;
                }
                end += d.len;
            }
            return end;
        }
        let word = match self.letters {
            Letters::AndMarks => SPACE | LETTER | NUMBER | MARK,
            _ => SPACE | LETTER | NUMBER,
        };
        let (j, b) = if a.c == ' ' { (i + 1, s.at(i + 1)) } else { (i, a) };
        if b.other_than(word) {
            let end = s.run(j, |a| a.other_than(word));
            return s.run(end, |a| self.tail.contains(a.c));
        }
        s.blanks_and_lines(i)
    }

    /// The alternatives that match letters.
    fn letters(&self, s: &Scan<'_>, i: usize, a: At) -> Option<usize> {
        let prefixable = !a.newline() && !a.is(LETTER | NUMBER);
        match self.letters {
            Letters::All => {
                if a.is(LETTER) || (prefixable && s.at(i + a.len).is(LETTER)) {
                    return Some(s.run(i + a.len, |a| a.is(LETTER)));
                }
            }
            Letters::AndMarks => {
                if a.is(LETTER | MARK) || (prefixable && s.at(i + a.len).is(LETTER | MARK)) {
                    return Some(s.run(i + a.len, |a| a.is(LETTER | MARK)));
                }
            }
            Letters::Cased => {
                let from = if prefixable { i + a.len } else { i };
                let end = cased(s, from)?;
                return Some(match self.contraction {
                    Contraction::Suffix => s.contraction(end, true).unwrap_or(end),
                    _ => end,
                });
            }
        }
        None
    }
}

/// `U*W+|U+W*` at `i`; letters outside ASCII are both U and W.
fn cased(s: &Scan<'_>, i: usize) -> Option<usize> {
    let upper = |a: At| a.is(LETTER) && !a.c.is_ascii_lowercase();
    let lower = |a: At| a.is(LETTER) && !a.c.is_ascii_uppercase();
    // U* is greedy; should no W follow, it gives back up to its last character that is also W.
    let (mut end, mut give_back) = (i, None);
    loop {
        let a = s.at(end);
        if a.len == 0 || !upper(a) {
            break;
        }
        end += a.len;
        if lower(a) {
            give_back = Some(end);
        }
    }
    let whole = s.run(end, lower);
    if whole > end {
        return Some(whole);
    }
    give_back.or((end > i).then_some(end))
}
