//! Cutting special tokens out of the text before it is tokenized.
//!
//! The tokens take the text in order of length, longest first, each wherever it occurs in what
//! the longer ones left (llama.cpp's order). Vocabularies have thousands of them and a text a
//! handful, so a trie first finds which occur at all.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::markup::{counterpart, is_tag, looks_like_markup};
use super::vocab::{Attr, HIDDEN, SPECIAL, Vocab};

/// A part of the text.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Fragment {
    /// Ordinary text: its bytes in the whole.
    Text(Range<usize>),
    /// A special token, and the bytes that spell it.
    Token(u32, Range<usize>),
}

/// User-defined tokens that count as control tokens do, because they are marks of a chat's format
/// ([`markup`](super::markup)). Ascending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Markup(Arc<[u32]>);

impl Markup {
    pub(super) fn contains(&self, id: u32) -> bool {
        self.0.binary_search(&id).is_ok()
    }
}

/// Where in a text control tokens stand for themselves instead of being recognized: nobody vouches for what is written there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plain {
    /// Bytes that belong to no control token. In order, apart from each other.
    pub(super) ranges: Vec<Range<usize>>,
    /// Positions that no control token spans. In order.
    pub(super) cuts: Vec<usize>,
    /// What counts as control tokens besides.
    pub(super) markup: Markup,
}

impl Plain {
    /// All of a text of `n` bytes.
    pub(super) fn all(n: usize) -> Plain {
        Plain { ranges: std::iter::once(0..n).collect(), ..Plain::default() }
    }

    fn touches(&self, token: &Range<usize>) -> bool {
        let next = self.ranges.partition_point(|r| r.end <= token.start);
        let cut = self.cuts.partition_point(|&at| at <= token.start);
        self.ranges.get(next).is_some_and(|r| r.start < token.end)
            || self.cuts.get(cut).is_some_and(|&at| at < token.end)
    }
}

/// The special tokens of a vocabulary.
pub(super) struct Specials {
    /// Longest first: (id, text, hidden, swallows white space after it).
    tokens: Vec<Special>,
    /// Which bytes begin a special token.
    first: [bool; 256],
    /// Trie over the texts: (node, byte) -> node.
    edges: HashMap<(u32, u8), u32>,
    /// Per node: the index into `tokens` of the token that ends there.
    ends: Vec<Option<u32>>,
}

struct Special {
    id: u32,
    text: String,
    /// A control or unknown token: matched only on request.
    hidden: bool,
    rstrip: bool,
}

impl Special {
    fn is_hidden(&self, markup: &Markup) -> bool {
        self.hidden || markup.contains(self.id)
    }
}

impl Specials {
    pub(super) fn new(vocab: &Vocab) -> Specials {
        let mut tokens: Vec<Special> = (0..vocab.len() as u32)
            .filter(|&id| vocab.attr(id).any(SPECIAL))
            .filter_map(|id| {
                Some(Special {
                    id,
                    text: std::str::from_utf8(vocab.text(id)).ok()?.to_owned(),
                    hidden: vocab.attr(id).any(HIDDEN),
                    rstrip: vocab.attr(id).any(Attr::RSTRIP),
                })
            })
            .collect();
        tokens.sort_by_key(|t| std::cmp::Reverse(t.text.len()));
        let mut s = Specials { tokens: Vec::new(), first: [false; 256], edges: HashMap::new(), ends: vec![None] };
        for (i, token) in (0u32..).zip(&tokens) {
            let mut node = 0;
            for &b in token.text.as_bytes() {
                let fresh = s.ends.len() as u32;
                node = *s.edges.entry((node, b)).or_insert(fresh);
                if node == fresh {
                    s.ends.push(None);
                }
            }
            s.ends[node as usize] = Some(i);
            if let Some(&b) = token.text.as_bytes().first() {
                s.first[usize::from(b)] = true;
            }
        }
        s.tokens = tokens;
        s
    }

    /// Cuts `text`. Hidden tokens are looked for only if `parse_special`.
    pub(super) fn partition(&self, text: &str, parse_special: bool) -> Vec<Fragment> {
        let plain = if parse_special { Plain::default() } else { Plain::all(text.len()) };
        self.partition_around(text, &plain)
    }

    /// Cuts `text`. Hidden tokens are looked for where it is not `plain`.
    pub(super) fn partition_around(&self, text: &str, plain: &Plain) -> Vec<Fragment> {
        let mut fragments = Vec::new();
        if text.is_empty() {
            return fragments;
        }
        fragments.push(Fragment::Text(0..text.len()));
        for i in self.occurring(text) {
            let token = &self.tokens[i];
            let before = std::mem::take(&mut fragments);
            for fragment in before {
                match fragment {
                    Fragment::Text(range) => cut(text, range, token, plain, &mut fragments),
                    token => fragments.push(token),
                }
            }
        }
        fragments
    }

    /// The user-defined tokens that are marks of a chat's format, by their spelling or because `template` has them.
    pub(super) fn markup(&self, template: &str) -> Markup {
        let mut occurs = vec![false; self.tokens.len()];
        self.occurring(template).into_iter().for_each(|i| occurs[i] = true);
        let is_written = |i: usize, text: &str| {
            is_tag(text) && (occurs[i] || template.contains(&counterpart(text)))
        };
        let found = (0..self.tokens.len()).filter(|&i| {
            let Special { text, hidden, .. } = &self.tokens[i];
            !hidden && (looks_like_markup(text) || is_written(i, text))
        });
        let mut ids: Vec<u32> = found.map(|i| self.tokens[i].id).collect();
        ids.sort_unstable();
        Markup(ids.into())
    }

    /// The first characters of hidden tokens and of marks.
    pub(super) fn hidden_beginnings(&self, markup: &Markup) -> Vec<char> {
        let hidden = self.tokens.iter().filter(|t| t.is_hidden(markup));
        let mut chars: Vec<char> = hidden.filter_map(|t| t.text.chars().next()).collect();
        chars.sort_unstable();
        chars.dedup();
        chars
    }

    /// Where hidden tokens and marks begin in `text`, in order.
    pub(super) fn hidden_starts(&self, text: &str, markup: &Markup) -> Vec<usize> {
        let begins = |&at: &usize| self.ending(&text.as_bytes()[at..]).any(|i| self.tokens[i].is_hidden(markup));
        (0..text.len()).filter(begins).collect()
    }

    /// Indices of the tokens that occur in `text`, in order.
    fn occurring(&self, text: &str) -> Vec<usize> {
        let mut found = vec![false; self.tokens.len()];
        for at in 0..text.len() {
            for i in self.ending(&text.as_bytes()[at..]) {
                found[i] = true;
            }
        }
        (0..found.len()).filter(|&i| found[i]).collect()
    }

    /// Indices of the tokens that `bytes` begin with.
    fn ending<'a>(&'a self, bytes: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
        let begins = bytes.first().is_some_and(|&b| self.first[usize::from(b)]);
        let mut node = 0;
        bytes
            .iter()
            .take(if begins { bytes.len() } else { 0 })
            .map_while(move |&b| {
                node = *self.edges.get(&(node, b))?;
                Some(self.ends[node as usize])
            })
            .flatten()
            .map(|i| i as usize)
    }
}

fn cut(text: &str, range: Range<usize>, token: &Special, plain: &Plain, out: &mut Vec<Fragment>) {
    // What is not yet in `out` begins at `from`; the search goes on at `at`.
    let (mut from, mut at) = (range.start, range.start);
    while let Some(found) = text[at..range.end].find(&token.text) {
        let spelled = at + found..at + found + token.text.len();
        if token.is_hidden(&plain.markup) && plain.touches(&spelled) {
            at = spelled.start + text[spelled.start..].chars().next().map_or(1, char::len_utf8);
            continue;
        }
        if from < spelled.start {
            out.push(Fragment::Text(from..spelled.start));
        }
        from = spelled.end;
        if token.rstrip {
            // isspace() of the C locale
            let rest = &text[from..range.end];
            from += rest.len() - rest.trim_start_matches([' ', '\t', '\n', '\u{b}', '\u{c}', '\r']).len();
        }
        at = from;
        out.push(Fragment::Token(token.id, spelled));
    }
    if from < range.end {
        out.push(Fragment::Text(from..range.end));
    }
}
