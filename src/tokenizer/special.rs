//! Cutting special tokens out of the text before it is tokenized.
//!
//! The tokens take the text in order of length, longest first, each wherever it occurs in what
//! the longer ones left (llama.cpp's order). Vocabularies have thousands of them and a text a
//! handful, so a trie first finds which occur at all.

use std::collections::HashMap;

use super::vocab::{Attr, HIDDEN, SPECIAL, Vocab};

/// A part of the text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fragment<'t> {
    Text(&'t str),
    Token(u32),
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
    pub(super) fn partition<'t>(&self, text: &'t str, parse_special: bool) -> Vec<Fragment<'t>> {
        let mut fragments = Vec::new();
        if text.is_empty() {
            return fragments;
        }
        fragments.push(Fragment::Text(text));
        for i in self.occurring(text) {
            let token = &self.tokens[i];
            if token.hidden && !parse_special {
                continue;
            }
            let before = std::mem::take(&mut fragments);
            for fragment in before {
                match fragment {
                    Fragment::Text(text) => cut(text, token, &mut fragments),
                    token => fragments.push(token),
                }
            }
        }
        fragments
    }

    /// Indices of the tokens that occur in `text`, in order.
    fn occurring(&self, text: &str) -> Vec<usize> {
        let bytes = text.as_bytes();
        let mut found = vec![false; self.tokens.len()];
        for at in 0..bytes.len() {
            if !self.first[usize::from(bytes[at])] {
                continue;
            }
            let mut node = 0;
            for &b in &bytes[at..] {
                match self.edges.get(&(node, b)) {
                    Some(&next) => node = next,
                    None => break,
                }
                if let Some(i) = self.ends[node as usize] {
                    found[i as usize] = true;
                }
            }
        }
        (0..found.len()).filter(|&i| found[i]).collect()
    }
}

fn cut<'t>(mut text: &'t str, token: &Special, out: &mut Vec<Fragment<'t>>) {
    while let Some(at) = text.find(&token.text) {
        if at > 0 {
            out.push(Fragment::Text(&text[..at]));
        }
        out.push(Fragment::Token(token.id));
        text = &text[at + token.text.len()..];
        if token.rstrip {
            // isspace() of the C locale
            text = text.trim_start_matches([' ', '\t', '\n', '\u{b}', '\u{c}', '\r']);
        }
    }
    if !text.is_empty() {
        out.push(Fragment::Text(text));
    }
}
