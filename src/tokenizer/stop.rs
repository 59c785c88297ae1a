//! Stop strings: texts before which an answer ends, also where they begin in one token and end in another.

use std::sync::Arc;

/// Texts that end an answer. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopStrings(Arc<[String]>);

impl Default for StopStrings {
    fn default() -> Self {
        StopStrings(Arc::new([]))
    }
}

impl<S: Into<String>> FromIterator<S> for StopStrings {
    /// Empty texts are left out: they would end every answer before it begins.
    fn from_iter<I: IntoIterator<Item = S>>(texts: I) -> Self {
        StopStrings(texts.into_iter().map(S::into).filter(|text| !text.is_empty()).collect())
    }
}

impl StopStrings {
    /// Whether there are no stop strings.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `text` is one of them.
    pub fn contains(&self, text: &str) -> bool {
        self.0.iter().any(|stop| stop == text)
    }

    /// A filter for one text.
    pub fn filter(&self) -> StopFilter {
        StopFilter { stops: self.clone(), held: String::new(), has_stopped: false }
    }
}

/// Ends a text that comes in pieces before the first of its stop strings: that is the one that is complete first, and the longest
/// of those. What may still become a stop string is held back, and nothing else.
#[derive(Clone, Debug)]
pub struct StopFilter {
    stops: StopStrings,
    /// The end of what was pushed: the beginning of a stop string, as far as one can tell.
    held: String,
    has_stopped: bool,
}

impl StopFilter {
    /// Takes the next piece of the text, and returns what is certain to stand before any stop string.
    pub fn push(&mut self, text: &str) -> String {
        if self.has_stopped {
            return String::new();
        }
        self.held.push_str(text);
        let found = self.stops.0.iter().filter_map(|stop| {
            let start = self.held.find(stop.as_str())?;
            Some((start + stop.len(), start))
        });
        let certain = match found.min() {
            Some((_, start)) => {
                self.has_stopped = true;
                start
            }
            None => self.held.len() - self.held_back(),
        };
        let rest = self.held.split_off(certain);
        let out = std::mem::replace(&mut self.held, rest);
        if self.has_stopped {
            self.held.clear();
        }
        out
    }

    /// Bytes at the end that are the beginning of a stop string, the most that are.
    fn held_back(&self) -> usize {
        let of = |stop: &String| {
            let longest = (stop.len() - 1).min(self.held.len());
            // Both are UTF-8, so that whole characters match whole characters.
            (1..=longest).rev().find(|&n| self.held.as_bytes().ends_with(&stop.as_bytes()[..n])).unwrap_or(0)
        };
        self.stops.0.iter().map(of).max().unwrap_or(0)
    }

    /// Whether a stop string was met: nothing comes after it.
    pub fn has_stopped(&self) -> bool {
        self.has_stopped
    }

    /// The end of the text: what is still held back, since no stop string came of it.
    pub fn flush(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn filtered(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let mut filter = stops.iter().copied().collect::<StopStrings>().filter();
        let mut out: Vec<String> = pieces.iter().map(|piece| filter.push(piece)).collect();
        out.push(filter.flush());
        (out, filter.has_stopped())
    }

    #[test]
    fn a_text_ends_before_the_first_stop_string() {
        for (stops, pieces, out, stopped) in [
            (&[][..], &["a", "b"][..], &["a", "b", ""][..], false),
            (&["\n\n"], &["a\n", "b\n\n", "c"], &["a", "\nb", "", ""], true),
            (&["STOP"], &["a S", "TO", "P b"], &["a ", "", "", ""], true),
            // What did not become one is given after all.
            (&["STOP"], &["ST", "SToP", "ST"], &["", "STSToP", "", "ST"], false),
            (&["aab"], &["aaa", "b"], &["a", "", ""], true),
            // The one that is complete first, and of those the longest.
            (&["abcd", "bc"], &["xabcd"], &["xa", ""], true),
            (&["bc", "abc"], &["xabc"], &["x", ""], true),
            (&["b", "b"], &["abab"], &["a", ""], true),
            (&["é"], &["e\u{301}", "\u{ea}é"], &["e\u{301}", "\u{ea}", ""], true),
        ] {
            assert_eq!(filtered(stops, pieces), (out.iter().map(|s| s.to_string()).collect(), stopped), "{pieces:?}");
        }
    }

    #[test]
    fn empty_texts_are_no_stop_strings() {
        let stops: StopStrings = ["", "x", ""].into_iter().collect();
        assert!(!stops.is_empty() && stops.contains("x") && !stops.contains(""));
        assert!([""].into_iter().collect::<StopStrings>().is_empty() && StopStrings::default().is_empty());
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(
            text in "[abé]{0,24}",
            stops in prop::collection::vec("[abé]{1,4}", 0..4),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let stops: StopStrings = stops.into_iter().collect();
            let chars: Vec<char> = text.chars().collect();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(chars.len() + 1)).collect();
            cuts.extend([0, chars.len()]);
            cuts.sort_unstable();
            let (mut whole, mut pieces) = (stops.filter(), stops.filter());
            let expected = whole.push(&text) + &whole.flush();
            let out: String =
                cuts.windows(2).map(|w| pieces.push(&chars[w[0]..w[1]].iter().collect::<String>())).collect();
            prop_assert_eq!(out + &pieces.flush(), expected.clone());
            prop_assert_eq!(pieces.has_stopped(), whole.has_stopped());
            prop_assert!(whole.has_stopped() || expected == text);
        }
    }
}
