//! Measures of quality: what skipping costs, and how good the proxies are.
//!
//! [`needle`] asks for numbers hidden in a long text; [`divergence`] compares next-token distributions with dense ones, and
//! [`by_position`] says where they part; [`proxies`] compares proxy norms with the true ones. [`tasks`] asks prompts whose answers
//! are known, [`score`] rates what comes, [`results`] keeps it in a file, and [`summary`] says with [`statistics`] what it means.
//! [`plot`] draws. None knows the command line.

pub mod by_position;
pub mod divergence;
pub mod needle;
pub mod plot;
pub mod proxies;
pub mod results;
pub mod score;
pub mod statistics;
pub mod summary;
pub mod tasks;

/// Why something cannot be measured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// The text is shorter than the prompt that is to be made of it.
    #[error(
        "evaluation: the text has {found} tokens, and {needed} are needed: give a longer one, or ask for shorter prompts"
    )]
    TextTooShort {
        /// Tokens of the text.
        found: usize,
        /// Tokens needed.
        needed: usize,
    },
    /// The prompt is shorter than question and needles.
    #[error("evaluation: a prompt of {found} tokens has no room for the question: at least {needed} are needed")]
    PromptTooShort {
        /// Tokens asked for.
        found: usize,
        /// Tokens needed.
        needed: usize,
    },
    /// More keys than there are names for.
    #[error("evaluation: {found} keys, expected 1 to {most}")]
    Keys {
        /// Keys asked for.
        found: usize,
        /// Names there are.
        most: usize,
    },
    /// Probabilities that are none.
    #[error("evaluation: {what}: token {position} behind the prompt has a probability that is no finite number")]
    NotFinite {
        /// Configuration and sample.
        what: String,
        /// From 1.
        position: usize,
    },
    /// Tasks that cannot be read.
    #[error(transparent)]
    TaskData(#[from] tasks::TaskDataError),
    /// Results that cannot be read or kept.
    #[error(transparent)]
    Results(#[from] results::ResultsError),
}
