//! Why something cannot be measured.

use std::path::PathBuf;

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
        /// Names that there are.
        most: usize,
    },
    /// A probability is no finite number.
    #[error("evaluation: {what}: token {position} behind the prompt has a probability that is no finite number")]
    NotFinite {
        /// Configuration and sample.
        what: String,
        /// Number of the token, from 1.
        position: usize,
    },
    /// Tasks that cannot be read.
    #[error(transparent)]
    TaskData(#[from] TaskDataError),
    /// Results that cannot be read or kept.
    #[error(transparent)]
    Results(#[from] ResultsError),
}

/// A line that is no task, or a file without any.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TaskDataError {
    /// What is wrong with a line.
    #[error("{origin}: line {line}: {what}")]
    Line {
        /// The file.
        origin: String,
        /// Number of the line, from 1.
        line: usize,
        /// What was found, and what was expected.
        what: String,
    },
    /// No line with a task.
    #[error(
        "{origin}: no tasks in it, expected one JSON object a line with task, prompt or messages, answers, metric and n_predict"
    )]
    Empty {
        /// The file.
        origin: String,
    },
    /// A task was asked for that no line has.
    #[error("{origin}: no task is called `{name}`; there are {known}")]
    NoSuchTask {
        /// The file.
        origin: String,
        /// The name.
        name: String,
        /// The names that there are.
        known: String,
    },
}

/// Why results cannot be read or kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ResultsError {
    /// Opening, reading or writing failed.
    #[error("{}: cannot {what} results: {reason}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// `read` or `write`.
        what: &'static str,
        /// What the system says.
        reason: String,
    },
    /// Another process writes to it.
    #[error("{}: another run writes its results there: wait for it, or name another file", path.display())]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// A line is no result, or the file is damaged.
    #[error("{}: line {line}: no results of eval tasks: {what}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Number of the line, from 1.
        line: usize,
        /// What is wrong with it.
        what: String,
    },
    /// Not what is to be measured now.
    #[error("{}: holds results of another {what}: found {found}, expected {expected}; name another file", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Model, data, device or configuration.
        what: String,
        /// What the file says.
        found: String,
        /// What this run would write.
        expected: String,
    },
}
