//! Marks that travel with a message's text through a template, so that afterwards one can tell what came from where.
//!
//! A mark is a private-use character that occurs neither in the conversation nor in the template's source. A message's parts
//! are enclosed, white space at their ends left outside for filters such as `trim`: `⟨begin⟩7⟨begin⟩ text ⟨end⟩7⟨end⟩`. A
//! third mark follows every character with which a control token could begin, so that none stands in a message's text
//! whatever a template makes of it.

use std::ops::Range;

use super::message::Part;
use crate::tokenizer::special::Plain;

/// The three characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Marks {
    begin: char,
    end: char,
    cut: char,
}

/// A rendered text without its marks, and where they were.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Unmarked {
    pub(super) text: String,
    pub(super) cuts: Vec<usize>,
    /// (part, position), as they came.
    begins: Vec<(usize, usize)>,
    ends: Vec<(usize, usize)>,
}

impl Marks {
    /// Characters that none of `texts` holds; `None` if they use up all of plane 16.
    pub(super) fn unused_in(texts: &[&str]) -> Option<Marks> {
        let used: std::collections::HashSet<char> =
            texts.iter().flat_map(|t| t.chars()).filter(|&c| c >= '\u{100000}').collect();
        let mut free = ('\u{100000}'..='\u{10fffd}').filter(|c| !used.contains(c));
        Some(Marks { begin: free.next()?, end: free.next()?, cut: free.next()? })
    }

    /// `content` with its parts, which are numbered from `first`, marked.
    pub(super) fn mark(&self, content: &str, parts: &[Part], first: usize, beginnings: &[char]) -> String {
        let mut out = String::with_capacity(content.len() + content.len() / 8 + 16);
        let mut from = 0;
        for (part, Part { range, .. }) in (first..).zip(parts) {
            let body = trimmed(content, range.clone());
            out.push_str(&content[from..body.start]);
            from = body.end;
            if body.is_empty() {
                continue;
            }
            out.push_str(&format!("{0}{part}{0}", self.begin));
            for c in content[body].chars() {
                out.push(c);
                if beginnings.contains(&c) {
                    out.push(self.cut);
                }
            }
            out.push_str(&format!("{0}{part}{0}", self.end));
        }
        out.push_str(&content[from..]);
        out
    }

    /// `content` with nothing but the control tokens in it cut, which begin at `starts`, in order.
    pub(super) fn cut(&self, content: &str, starts: impl Iterator<Item = usize>) -> String {
        let mut out = String::with_capacity(content.len() + content.len() / 8);
        let mut starts = starts.peekable();
        for (at, c) in content.char_indices() {
            out.push(c);
            if starts.next_if_eq(&at).is_some() {
                out.push(self.cut);
            }
        }
        out
    }

    /// Takes the marks away again. Halves of marks, which a template may leave, are dropped.
    pub(super) fn unmark(&self, marked: &str) -> Unmarked {
        let mut out = Unmarked { text: String::with_capacity(marked.len()), ..Unmarked::default() };
        let mut rest = marked;
        while let Some(at) = rest.find([self.begin, self.end, self.cut]) {
            out.text.push_str(&rest[..at]);
            rest = &rest[at..];
            let Some(mark) = rest.chars().next() else { break };
            rest = &rest[mark.len_utf8()..];
            if mark == self.cut {
                out.cuts.push(out.text.len());
                continue;
            }
            let number = rest.split(mark).next().unwrap_or_default();
            if let (Ok(part), true) = (number.parse(), number.len() < rest.len()) {
                rest = &rest[number.len() + mark.len_utf8()..];
                let list = if mark == self.begin { &mut out.begins } else { &mut out.ends };
                list.push((part, out.text.len()));
            }
        }
        out.text.push_str(rest);
        out.cuts.dedup();
        out
    }
}

impl Unmarked {
    /// Whether a mark of this part is in the text.
    pub(super) fn has(&self, part: usize) -> bool {
        self.begins.iter().chain(&self.ends).any(|(p, _)| *p == part)
    }

    /// The bytes of a part where it stands last, if it is whole.
    pub(super) fn range(&self, part: usize) -> Option<Range<usize>> {
        self.ranges(part).last()
    }

    fn ranges(&self, part: usize) -> impl Iterator<Item = Range<usize>> + '_ {
        self.begins.iter().filter(move |(p, _)| *p == part).filter_map(move |&(_, begin)| {
            let &(_, end) = self.ends.iter().find(|&&(p, end)| p == part && end >= begin)?;
            Some(begin..end)
        })
    }

    /// Where control tokens are not recognized: in the parts and where they were cut.
    pub(super) fn plain(&self, n_parts: usize) -> Plain {
        let mut ranges: Vec<Range<usize>> = (0..n_parts).flat_map(|part| self.ranges(part)).collect();
        ranges.sort_unstable_by_key(|r| (r.start, r.end));
        Plain { ranges: joined(ranges), cuts: self.cuts.clone(), ..Plain::default() }
    }
}

/// Ranges in order of their starts, with those that overlap made one.
pub(super) fn joined(ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    let mut out: Vec<Range<usize>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match out.last_mut() {
            Some(last) if range.start < last.end => last.end = last.end.max(range.end),
            _ => out.push(range),
        }
    }
    out
}

/// The bytes of `range` without white space at its ends.
pub(super) fn trimmed(content: &str, range: Range<usize>) -> Range<usize> {
    let text = &content[range.clone()];
    let start = range.start + text.len() - text.trim_start().len();
    start..start + text.trim().len()
}
