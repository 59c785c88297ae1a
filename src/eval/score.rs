//! How good an answer is: a number from 0 to 1 by comparison with the answers that are right.

/// A rule that compares a generated text with right answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    /// Share of the answers that the text contains, ignoring case (RULER's `string_match_all`).
    All,
    /// 1 if the text contains one of the answers, ignoring case (RULER's `string_match_part`, for questions).
    Any,
    /// 1 if the text is one of the answers, white space around it aside.
    Exact,
    /// 1 if the text begins with one of the answers, white space before it aside.
    Prefix,
}

impl Metric {
    /// Every metric, by name.
    pub const NAMES: [(&'static str, Metric); 4] =
        [("all", Metric::All), ("any", Metric::Any), ("exact", Metric::Exact), ("prefix", Metric::Prefix)];

    /// The metric of this name.
    pub fn from_name(name: &str) -> Option<Metric> {
        Metric::NAMES.iter().find(|(n, _)| *n == name).map(|(_, metric)| *metric)
    }

    /// The metric's name in data files.
    pub fn name(self) -> &'static str {
        Metric::NAMES.iter().find(|(_, m)| *m == self).map_or("", |(name, _)| name)
    }

    /// The score of `text`, from 0 to 1.
    pub fn score(self, text: &str, answers: &[String]) -> f64 {
        let some = |found: bool| f64::from(u8::from(found));
        match self {
            Metric::All => contained(text, answers) as f64 / answers.len().max(1) as f64,
            Metric::Any => some(contained(text, answers) > 0),
            Metric::Exact => some(answers.iter().any(|a| a.trim() == text.trim())),
            Metric::Prefix => some(answers.iter().any(|a| text.trim_start().starts_with(a.trim_start()))),
        }
    }

    /// Whether the score of `text` is 1 and stays 1, whatever follows.
    pub fn is_settled(self, text: &str, answers: &[String]) -> bool {
        self != Metric::Exact && self.score(text, answers) == 1.0
    }
}

/// How many of the answers stand in the text.
fn contained(text: &str, answers: &[String]) -> usize {
    let text = lower(text);
    answers.iter().filter(|a| text.contains(&lower(a))).count()
}

/// Lower case letter by letter, so that more text never changes what was there (Greek's final sigma would).
fn lower(text: &str) -> String {
    text.chars().flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(metric: Metric, text: &str, answers: &[&str]) -> f64 {
        metric.score(text, &answers.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn scores() {
        for (metric, text, answers, expected) in [
            (Metric::All, " 123 and ABC.", &["123", "abc", "x", "y"][..], 0.5),
            (Metric::All, "", &["a"], 0.0),
            (Metric::Any, "It was PARIS", &["London", "Paris"], 1.0),
            (Metric::Any, "It was Rome", &["London", "Paris"], 0.0),
            (Metric::Exact, " yes\n", &["no", "yes"], 1.0),
            (Metric::Exact, "yes.", &["yes"], 0.0),
            (Metric::Exact, "Yes", &["yes"], 0.0),
            (Metric::Prefix, "\n42 is it", &["42"], 1.0),
            (Metric::Prefix, "is it 42", &["42"], 0.0),
        ] {
            assert_eq!(score(metric, text, answers), expected, "{metric:?} {text:?} {answers:?}");
        }
    }

    #[test]
    fn what_is_settled_stays_so() {
        let answers = ["ας".to_owned(), "b".to_owned()];
        assert!(!Metric::All.is_settled("ας", &answers) && Metric::All.is_settled("ΑΣ b", &answers[1..]));
        assert!(Metric::Any.is_settled("b", &answers) && Metric::Prefix.is_settled(" b", &answers));
        assert!(!Metric::Exact.is_settled("b", &answers), "more text may follow");
        let sigma = ["ασ".to_owned()];
        assert!(Metric::All.is_settled("ΑΣ", &sigma) && Metric::All.is_settled("ΑΣΑ", &sigma));
    }

    #[test]
    fn names() {
        for (name, metric) in Metric::NAMES {
            assert_eq!((Metric::from_name(name), metric.name()), (Some(metric), name));
        }
        assert_eq!(Metric::from_name("none"), None);
    }
}
