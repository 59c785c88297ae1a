//! Pre-tokenizers: the splitting of text into words that precedes BPE merging.
//!
//! A model names its pre-tokenizer in `tokenizer.ggml.pre`. Each is defined by regular expressions
//! (tokenizer.json of the model's family); applied one after another, each splits every piece left
//! by the one before into its matches and the gaps between them. Here they are hand-written
//! scanners: a single pass, no backtracking, linear on any input. The expression that a scanner
//! implements stands above it.

use super::TokenizerError;
use super::unicode::{Classes, LETTER, MARK, NUMBER, PUNCT, SPACE, SYMBOL};

/// What a pre-tokenizer name means: its scanners and the defaults that come with it.
pub(super) struct PreTokenizer {
    steps: &'static [Step],
    /// A word that is a token as a whole is taken without merging.
    pub(super) ignore_merges: bool,
    /// `add_bos` where the GGUF does not say.
    pub(super) add_bos: bool,
    /// Tokens are spelled in raw UTF-8 with U+2581 for the space, not in GPT-2's byte alphabet.
    pub(super) raw_utf8: bool,
}

/// One regular expression.
enum Step {
    /// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
    Gpt2,
    /// The family of llama 3 and qwen 2, see [`Modern`].
    Modern(Modern),
    /// The main expression of deepseek-v3:
    /// `[!-/:-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
    DeepSeek3,
    /// `PREFIX?CLASS{1,max}`; what lies between matches stays a piece of its own.
    Run {
        prefix: Prefix,
        class: fn(char, u8) -> bool,
        max: usize,
    },
    /// `[0-9][0-9][0-9]`
    DigitTriples,
    /// `\s+$`
    TrailingSpace,
    /// `[^\n]+|[\n]+`
    Lines,
}

#[derive(Clone, Copy, PartialEq)]
enum Prefix {
    None,
    /// ` ?`
    Blank,
    /// `\s?`
    Space,
}

#[derive(Clone, Copy, PartialEq)]
enum Contraction {
    None,
    /// `(?i:'s|'t|'re|'ve|'m|'ll|'d)` as the first alternative
    Word,
    /// the same, optional, at the end of a word
    Suffix,
}

#[derive(Clone, Copy, PartialEq)]
enum Letters {
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
struct Modern {
    contraction: Contraction,
    letters: Letters,
    digits: usize,
    /// characters that may follow punctuation
    tail: &'static str,
}

const LLAMA3: Modern = Modern {
    contraction: Contraction::Word,
    letters: Letters::All,
    digits: 3,
    tail: "\r\n",
};
const QWEN2: Modern = Modern {
    digits: 1,
    ..LLAMA3
};

const fn run(prefix: Prefix, class: fn(char, u8) -> bool, max: usize) -> Step {
    Step::Run { prefix, class, max }
}

const ANY: usize = usize::MAX;
const NUMBER_EACH: Step = run(Prefix::None, is_number, 1);
const NEWLINE_EACH: Step = run(Prefix::None, is_newline, 1);

fn is_letter(_: char, k: u8) -> bool {
    k & LETTER != 0
}
fn is_number(_: char, k: u8) -> bool {
    k & NUMBER != 0
}
fn is_punct(_: char, k: u8) -> bool {
    k & PUNCT != 0
}
fn is_newline(c: char, _: u8) -> bool {
    c == '\r' || c == '\n'
}
/// `[\p{P}$+<=>^~|]`
fn is_punct_default(c: char, k: u8) -> bool {
    k & PUNCT != 0 || "$+<=>^~|".contains(c)
}
/// falcon adds the backtick
fn is_punct_falcon(c: char, k: u8) -> bool {
    is_punct_default(c, k) || c == '`'
}
/// `[^(\s|.,!?…。，、।۔،)]` of bloom and its kin
fn is_bloom_word(c: char, k: u8) -> bool {
    k & SPACE == 0 && !"(|.,!?…。，、।۔،)".contains(c)
}
/// `[一-龥぀-ゟ゠-ヿ]`
fn is_cjk_deepseek3(c: char, _: u8) -> bool {
    matches!(c, '\u{4e00}'..='\u{9fa5}' | '\u{3040}'..='\u{30ff}')
}
/// `[一-龥ࠀ-一가-퟿]`: all from U+0800 to U+9FA5, and Hangul
fn is_cjk_deepseek(c: char, k: u8) -> bool {
    matches!(c, '\u{800}'..='\u{9fa5}' | '\u{ac00}'..='\u{d7ff}') && k & SPACE == 0
}
/// ASCII punctuation, its full-width forms, general quotation marks, CJK comma and stop
fn is_punct_deepseek(c: char, _: u8) -> bool {
    matches!(c, '!'..='/' | ':'..='~' | '！'..='／' | '：'..='～' | '‘'..='‟' | '\u{3001}'..='。')
}
/// The cased scripts that deepseek-llm counts as letters.
fn is_letter_deepseek(c: char, _: u8) -> bool {
    if c.is_ascii() {
        return c.is_ascii_alphabetic();
    }
    DEEPSEEK_LETTERS
        .binary_search_by(|&(lo, hi)| {
            if hi < c {
                std::cmp::Ordering::Less
            } else if lo > c {
                std::cmp::Ordering::Greater
            } else {
                std::cmp::Ordering::Equal
            }
        })
        .is_ok()
}

impl PreTokenizer {
    /// The pre-tokenizer named `name`; `None` stands for a GGUF without `tokenizer.ggml.pre`.
    ///
    /// # Errors
    /// [`TokenizerError::UnsupportedPreTokenizer`] for an unknown name.
    pub(super) fn named(name: Option<&str>) -> Result<PreTokenizer, TokenizerError> {
        const GPT2: &[Step] = &[Step::Gpt2];
        const DIGITS_GPT2: &[Step] = &[NUMBER_EACH, Step::Gpt2];
        const BLOOM: &[Step] = &[run(Prefix::Blank, is_bloom_word, ANY)];
        let mut ignore_merges = false;
        let mut add_bos = false;
        let mut raw_utf8 = false;
        let steps: &'static [Step] = match name.unwrap_or("default") {
            "default" | "" => &[
                run(Prefix::None, is_punct_default, ANY),
                Step::Gpt2,
                run(Prefix::None, is_number, ANY),
                Step::DigitTriples,
            ],
            "gpt-2" | "phi-2" | "mpt" | "olmo" | "jais" | "gigachat" | "a.x-4.0" | "mellum"
            | "exaone4" | "trillion" | "granite-docling" => GPT2,
            "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone"
            | "minerva-7b" | "mellum2" => DIGITS_GPT2,
            "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "falcon-h1" | "pixtral"
            | "midm-2.0" | "lfm2" => {
                ignore_merges = true;
                add_bos = true;
                &[Step::Modern(LLAMA3)]
            }
            "dbrx" | "smaug-bpe" | "chatglm-bpe" => &[Step::Modern(LLAMA3)],
            "glm4" | "glm5" => {
                ignore_merges = true;
                &[Step::Modern(LLAMA3)]
            }
            "qwen2" | "deepseek-r1-qwen" | "kormo" | "megrez" | "stablelm2" | "hunyuan"
            | "solar-open" | "grok-2" | "bailingmoe" | "bailingmoe2" | "llada-moe" => {
                &[Step::Modern(QWEN2)]
            }
            "qwen35" => &[Step::Modern(Modern {
                letters: Letters::AndMarks,
                ..QWEN2
            })],
            "seed-coder" => &[Step::Modern(Modern { tail: "", ..QWEN2 })],
            "tekken" => {
                ignore_merges = true;
                add_bos = true;
                &[Step::Modern(Modern {
                    contraction: Contraction::None,
                    letters: Letters::Cased,
                    digits: 1,
                    tail: "\r\n/",
                })]
            }
            "gpt-4o" | "llama4" | "kanana2" | "minimax-m2" => &[Step::Modern(Modern {
                contraction: Contraction::Suffix,
                letters: Letters::Cased,
                digits: 3,
                tail: "\r\n/",
            })],
            "falcon" => &[
                run(Prefix::None, is_punct_falcon, ANY),
                Step::Gpt2,
                Step::DigitTriples,
            ],
            "bloom" | "poro-chat" | "gpt3-finnish" => BLOOM,
            "viking" => &[run(Prefix::Blank, is_bloom_word, ANY), NUMBER_EACH],
            "deepseek-llm" => &[
                NEWLINE_EACH,
                run(Prefix::Space, is_letter_deepseek, ANY),
                run(Prefix::Space, is_punct_deepseek, ANY),
                Step::TrailingSpace,
                run(Prefix::None, is_cjk_deepseek, ANY),
                run(Prefix::None, is_number, ANY),
            ],
            "deepseek-coder" => &[
                NEWLINE_EACH,
                run(Prefix::Space, is_letter, ANY),
                run(Prefix::Space, is_punct, ANY),
                run(Prefix::None, is_cjk_deepseek, ANY),
                NUMBER_EACH,
            ],
            "deepseek-v3" | "hunyuan-dense" | "joyai-llm" | "hy_v4" => &[
                run(Prefix::None, is_number, 3),
                run(Prefix::None, is_cjk_deepseek3, ANY),
                Step::DeepSeek3,
            ],
            "gemma4" => {
                raw_utf8 = true;
                add_bos = true;
                &[Step::Lines]
            }
            other => {
                return Err(TokenizerError::UnsupportedPreTokenizer {
                    name: other.to_owned(),
                });
            }
        };
        Ok(PreTokenizer {
            steps,
            ignore_merges,
            add_bos,
            raw_utf8,
        })
    }

    /// Calls `word` for the pieces of `text` from left to right; joined they are `text`.
    pub(super) fn split<'t>(&self, text: &'t str, word: &mut impl FnMut(&'t str)) {
        apply(self.steps, Classes::get(), text, word);
    }
}

fn apply<'t, F: FnMut(&'t str)>(
    steps: &'static [Step],
    table: &'static Classes,
    text: &'t str,
    word: &mut F,
) {
    let Some((step, rest)) = steps.split_first() else {
        word(text);
        return;
    };
    let s = Scan { text, table };
    let mut from = 0;
    while from < text.len() {
        let to = step.piece(&s, from);
        if rest.is_empty() {
            word(&text[from..to]);
        } else {
            apply(rest, table, &text[from..to], word);
        }
        from = to;
    }
}

/// A character of the text; `len` 0 is the end.
#[derive(Clone, Copy)]
struct At {
    c: char,
    len: usize,
    class: u8,
}

impl At {
    fn is(self, class: u8) -> bool {
        self.class & class != 0
    }
    fn newline(self) -> bool {
        self.c == '\n' || self.c == '\r'
    }
    /// in none of `classes`, and not the end
    fn other_than(self, classes: u8) -> bool {
        self.len > 0 && self.class & classes == 0
    }
}

struct Scan<'t> {
    text: &'t str,
    table: &'static Classes,
}

impl Scan<'_> {
    #[inline]
    fn at(&self, i: usize) -> At {
        match self.text.as_bytes().get(i) {
            Some(&b) if b < 0x80 => At {
                c: b as char,
                len: 1,
                class: self.table.of(b as char),
            },
            Some(_) => match self.text.get(i..).and_then(|t| t.chars().next()) {
                Some(c) => At {
                    c,
                    len: c.len_utf8(),
                    class: self.table.of(c),
                },
                None => At::END,
            },
            None => At::END,
        }
    }

    /// End of the run from `i` of characters for which `keep` holds.
    #[inline]
    fn run(&self, mut i: usize, keep: impl Fn(At) -> bool) -> usize {
        loop {
            let a = self.at(i);
            if a.len == 0 || !keep(a) {
                return i;
            }
            i += a.len;
        }
    }

    /// End of `'s|'t|'re|'ve|'m|'ll|'d` at `i`, if it stands there.
    fn contraction(&self, i: usize, any_case: bool) -> Option<usize> {
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
    fn blanks(&self, i: usize) -> usize {
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
        if last > i {
            last
        } else {
            self.step_over(i)
        }
    }

    /// End of the one character at `i`.
    fn step_over(&self, i: usize) -> usize {
        i + self.at(i).len
    }

    /// `\s*[\r\n]+|\s+(?!\S)|\s+`
    fn blanks_and_lines(&self, i: usize) -> usize {
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
        if after_newline > i {
            after_newline
        } else {
            self.blanks(i)
        }
    }
}

impl At {
    const END: At = At {
        c: '\0',
        len: 0,
        class: 0,
    };
}

impl Step {
    /// End of the piece (a match, or a gap up to the next match) that begins at `i`, which is
    /// not the end of the text.
    fn piece(&self, s: &Scan<'_>, i: usize) -> usize {
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
                    b.get(j..j + 3)
                        .is_some_and(|t| t.iter().all(u8::is_ascii_digit))
                };
                if triple(i) {
                    i + 3
                } else {
                    gap(s, i, triple)
                }
            }
            Step::TrailingSpace => {
                let trimmed = s.text.trim_end_matches(|c| s.table.of(c) & SPACE != 0);
                if trimmed.len() <= i {
                    s.text.len()
                } else {
                    trimmed.len()
                }
            }
            Step::Lines => {
                let newline = s.at(i).c == '\n';
                s.run(i, |a| (a.c == '\n') == newline)
            }
        }
    }
}

/// The first place after `i` where a match begins, or the end.
fn gap(s: &Scan<'_>, i: usize, begins: impl Fn(usize) -> bool) -> usize {
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
    let (j, b) = if a.c == ' ' {
        (i + 1, s.at(i + 1))
    } else {
        (i, a)
    };
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
        let (j, b) = if a.c == ' ' {
            (i + 1, s.at(i + 1))
        } else {
            (i, a)
        };
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

fn deepseek3(s: &Scan<'_>, i: usize) -> usize {
    let a = s.at(i);
    if a.c.is_ascii_punctuation() && s.at(i + 1).c.is_ascii_alphabetic() {
        return s.run(i + 1, |a| a.c.is_ascii_alphabetic());
    }
    let prefixable = a.len > 0 && !a.newline() && !a.is(LETTER | PUNCT | SYMBOL);
    if a.is(LETTER | MARK) || (prefixable && s.at(i + a.len).is(LETTER | MARK)) {
        return s.run(i + a.len, |a| a.is(LETTER | MARK));
    }
    let (j, b) = if a.c == ' ' {
        (i + 1, s.at(i + 1))
    } else {
        (i, a)
    };
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
        b.is(SPACE | LETTER | MARK | PUNCT | SYMBOL)
            || s.at(j + b.len).is(LETTER | MARK)
    })
}

#[rustfmt::skip]
const DEEPSEEK_LETTERS: &[(char, char)] = &[
    ('\u{b5}', '\u{b5}'), ('\u{c0}', '\u{d6}'), ('\u{d8}', '\u{f6}'), ('\u{f8}', '\u{1ba}'),
    ('\u{1bc}', '\u{1bf}'), ('\u{1c4}', '\u{293}'), ('\u{295}', '\u{2af}'),
    ('\u{370}', '\u{373}'), ('\u{376}', '\u{376}'), ('\u{377}', '\u{377}'),
    ('\u{37b}', '\u{37d}'), ('\u{37f}', '\u{37f}'), ('\u{386}', '\u{386}'),
    ('\u{388}', '\u{38a}'), ('\u{38c}', '\u{38c}'), ('\u{38e}', '\u{3a1}'),
    ('\u{3a3}', '\u{3f5}'), ('\u{3f7}', '\u{481}'), ('\u{48a}', '\u{52f}'),
    ('\u{531}', '\u{556}'), ('\u{10a0}', '\u{10c5}'), ('\u{13a0}', '\u{13f5}'),
    ('\u{13f8}', '\u{13fd}'), ('\u{1c90}', '\u{1cba}'), ('\u{1cbd}', '\u{1cbf}'),
    ('\u{1d00}', '\u{1d2b}'), ('\u{1d6b}', '\u{1d77}'), ('\u{1d79}', '\u{1d9a}'),
    ('\u{1e00}', '\u{1f15}'), ('\u{1f18}', '\u{1f1d}'), ('\u{1f20}', '\u{1f45}'),
    ('\u{1f48}', '\u{1f4d}'), ('\u{1f50}', '\u{1f57}'), ('\u{1f59}', '\u{1f59}'),
    ('\u{1f5b}', '\u{1f5b}'), ('\u{1f5d}', '\u{1f5d}'), ('\u{1f5f}', '\u{1f7d}'),
    ('\u{1f80}', '\u{1fb4}'), ('\u{1fb6}', '\u{1fbc}'), ('\u{1fbe}', '\u{1fbe}'),
    ('\u{1fc2}', '\u{1fc4}'), ('\u{1fc6}', '\u{1fcc}'), ('\u{1fd0}', '\u{1fd3}'),
    ('\u{1fd6}', '\u{1fdb}'), ('\u{1fe0}', '\u{1fec}'), ('\u{1ff2}', '\u{1ff4}'),
    ('\u{1ff6}', '\u{1ffc}'), ('\u{2102}', '\u{2102}'), ('\u{2107}', '\u{2107}'),
    ('\u{210a}', '\u{2113}'), ('\u{2115}', '\u{2115}'), ('\u{2119}', '\u{211d}'),
    ('\u{2124}', '\u{2124}'), ('\u{2126}', '\u{2126}'), ('\u{2128}', '\u{2128}'),
    ('\u{212a}', '\u{212d}'), ('\u{212f}', '\u{2134}'), ('\u{2139}', '\u{2139}'),
    ('\u{213c}', '\u{213f}'), ('\u{2145}', '\u{2149}'), ('\u{214e}', '\u{214e}'),
    ('\u{2183}', '\u{2183}'), ('\u{2184}', '\u{2184}'), ('\u{2c00}', '\u{2c7b}'),
    ('\u{2c7e}', '\u{2ce4}'), ('\u{2ceb}', '\u{2cee}'), ('\u{2cf2}', '\u{2cf2}'),
    ('\u{2cf3}', '\u{2cf3}'), ('\u{a640}', '\u{a66d}'), ('\u{a680}', '\u{a69b}'),
    ('\u{a722}', '\u{a76f}'), ('\u{a771}', '\u{a787}'), ('\u{a78b}', '\u{a78e}'),
    ('\u{ab70}', '\u{abbf}'), ('\u{fb00}', '\u{fb06}'), ('\u{fb13}', '\u{fb17}'),
    ('\u{ff21}', '\u{ff3a}'), ('\u{ff41}', '\u{ff5a}'), ('\u{10400}', '\u{1044f}'),
    ('\u{104b0}', '\u{104d3}'), ('\u{104d8}', '\u{104fb}'), ('\u{10c80}', '\u{10cb2}'),
    ('\u{10cc0}', '\u{10cf2}'), ('\u{118a0}', '\u{118df}'), ('\u{1e900}', '\u{1e943}'),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn words(pre: &str, text: &str) -> Vec<String> {
        let mut out = Vec::new();
        if let Ok(p) = PreTokenizer::named(Some(pre)) {
            p.split(text, &mut |w| out.push(w.to_owned()));
        }
        assert_eq!(out.concat(), text, "{pre}");
        assert!(out.iter().all(|w| !w.is_empty()), "{pre}: {out:?}");
        out
    }

    #[test]
    fn gpt2_words() {
        assert_eq!(
            words("gpt-2", "I'll  go, 12 \n\n x "),
            ["I", "'ll", " ", " go", ",", " 12", " \n\n", " x", " "]
        );
    }

    #[test]
    fn smollm_isolates_digits() {
        assert_eq!(words("smollm", "a 123  b"), ["a", " ", "1", "2", "3", " ", " b"]);
    }

    #[test]
    fn llama3_and_qwen2_differ_in_digits() {
        assert_eq!(words("llama-bpe", "x12345"), ["x", "123", "45"]);
        assert_eq!(words("qwen2", "x12"), ["x", "1", "2"]);
        assert_eq!(
            words("qwen2", "It'S (ok)\r\n \n  go"),
            ["It", "'S", " (", "ok", ")\r\n", " \n", " ", " go"]
        );
    }

    #[test]
    fn cased_families() {
        assert_eq!(words("gpt-4o", "HelloWorld's"), ["Hello", "World's"]);
        assert_eq!(words("tekken", "ABC def"), ["ABC", " def"]);
    }

    #[test]
    fn every_family_keeps_all_text() {
        let text = " \u{3000}\u{85}Ab\u{301}9②'s\r\n\t$x<|y|>日本語ー가 '\u{200b}\u{0}...\u{10ffff} ";
        for pre in [
            "default", "gpt-2", "smollm", "llama-bpe", "qwen2", "qwen35", "tekken", "gpt-4o",
            "falcon", "bloom", "viking", "deepseek-llm", "deepseek-coder", "deepseek-v3",
            "seed-coder", "gemma4",
        ] {
            for (i, _) in text.char_indices() {
                words(pre, &text[i..]);
                words(pre, &text[..i]);
            }
        }
    }

    #[test]
    fn unknown_name_is_an_error() {
        assert!(PreTokenizer::named(Some("no-such")).is_err());
    }
}
