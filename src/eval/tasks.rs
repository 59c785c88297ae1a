//! Prompts whose right answers are known, one JSON object a line: read, asked, scored.
//!
//! Any benchmark can be written down like this; `scripts/ruler.py` makes RULER's tasks.

use std::collections::HashMap;
use std::ops::ControlFlow;

use serde::Deserialize;

use super::error::TaskDataError;
use super::score::Metric;
use crate::hash::fnv1a;
use crate::session::generate::GenerateOptions;
use crate::session::prefill::{PrefillOptions, PrefillProgress};
use crate::session::sampler::{Sampler, SamplerParams};
use crate::tokenizer::{ChatPrompt, PromptKeys, PromptText, StreamDecoder};
use crate::{Result, Session};

/// A prompt and its right answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// Line in the data, from 1: what results are found by.
    pub line: usize,
    /// The user's name for it.
    pub id: Option<String>,
    /// Which kind of task it is: scores are means over the prompts of each.
    pub task: String,
    /// What to read.
    pub text: PromptText,
    /// What the answer should say.
    pub answers: Vec<String>,
    /// How the answer is compared with them.
    pub metric: Metric,
    /// Most tokens of an answer.
    pub n_predict: usize,
    /// Length that the prompt was made for, in tokens; prompts are reported by it.
    pub length: Option<usize>,
    /// The 64-bit FNV-1a hash of the line.
    pub hash: u64,
}

/// The prompts that a file of data holds.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskData {
    /// The prompts, in the order of the file.
    pub tasks: Vec<Task>,
    /// The 64-bit FNV-1a hash of all lines.
    pub hash: u64,
}

/// The keys of a line.
#[derive(Deserialize)]
struct Line {
    id: Option<serde_json::Value>,
    task: String,
    #[serde(flatten)]
    text: PromptKeys,
    answers: Vec<String>,
    metric: String,
    n_predict: usize,
    length: Option<usize>,
}

impl TaskData {
    /// Reads JSON lines; empty ones are passed over. `origin` names the file in messages.
    ///
    /// # Errors
    /// The first line that is no task: no JSON, a key that is missing, no answers, an unknown metric.
    pub fn parse(content: &str, origin: &str) -> std::result::Result<TaskData, TaskDataError> {
        let mut tasks = Vec::new();
        for (i, line) in content.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let task = task(i + 1, line).map_err(|what| TaskDataError::Line {
                origin: origin.to_owned(),
                line: i + 1,
                what,
            })?;
            tasks.push(task);
        }
        if tasks.is_empty() {
            return Err(TaskDataError::Empty { origin: origin.to_owned() });
        }
        Ok(TaskData { hash: fnv1a(content.trim_end().as_bytes()), tasks })
    }

    /// The prompts to ask: of the tasks named (empty: of all), the first `samples` of each task and length, tasks in turns, so
    /// that a run that is stopped has asked of each alike.
    ///
    /// # Errors
    /// A name that no line has.
    pub fn choose(
        &self,
        names: &[String],
        samples: Option<usize>,
        origin: &str,
    ) -> std::result::Result<Vec<&Task>, TaskDataError> {
        if let Some(name) = names.iter().find(|name| !self.tasks.iter().any(|t| t.task == **name)) {
            let mut known: Vec<&str> = self.tasks.iter().map(|t| t.task.as_str()).collect();
            known.sort_unstable();
            known.dedup();
            let (origin, name, known) = (origin.to_owned(), name.clone(), known.join(", "));
            return Err(TaskDataError::NoSuchTask { origin, name, known });
        }
        let mut seen: HashMap<(&str, Option<usize>), usize> = HashMap::new();
        let mut turns: Vec<(usize, &Task)> = Vec::new();
        for t in self.tasks.iter().filter(|t| names.is_empty() || names.contains(&t.task)) {
            let turn = seen.entry((&t.task, t.length)).or_default();
            if samples.is_none_or(|n| *turn < n) {
                turns.push((*turn, t));
            }
            *turn += 1;
        }
        turns.sort_by_key(|(turn, _)| *turn);
        Ok(turns.into_iter().map(|(_, t)| t).collect())
    }
}

fn task(number: usize, line: &str) -> std::result::Result<Task, String> {
    // Where in the line it is: the message speaks of line 1, as it sees no other.
    let parsed: Line =
        serde_json::from_str(line).map_err(|e| e.to_string().replace(" at line 1 column ", " at column "))?;
    if parsed.answers.is_empty() {
        return Err("`answers` is empty, expected at least one".into());
    }
    if parsed.answers.iter().any(|a| a.trim().is_empty()) {
        return Err("`answers` has one without text: any answer would contain it".into());
    }
    let metric = Metric::from_name(&parsed.metric).ok_or_else(|| {
        let names = Metric::NAMES.map(|(name, _)| name).join(", ");
        format!("unknown metric `{}`, expected one of {names}", parsed.metric)
    })?;
    if parsed.n_predict == 0 {
        return Err("`n_predict` is 0, expected at least 1".into());
    }
    Ok(Task {
        line: number,
        id: parsed.id.map(|id| id.as_str().map_or_else(|| id.to_string(), str::to_owned)),
        task: parsed.task,
        text: parsed.text.text()?,
        answers: parsed.answers,
        metric,
        n_predict: parsed.n_predict,
        length: parsed.length,
        hash: fnv1a(line.trim_end().as_bytes()),
    })
}

/// The answer of a session to a [`Task`], with its score.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskAnswer {
    /// Text generated.
    pub text: String,
    /// From 0 to 1.
    pub score: f64,
    /// Tokens generated.
    pub n_generated: usize,
    /// From the prompt's ids to the first token, in seconds.
    pub ttft_s: f64,
    /// Share of the dense cache's entries that were kept.
    pub cache_kept: f64,
}

/// Asks a session, greedily, and stops as soon as the score is settled. What the session has read before is forgotten.
///
/// # Errors
/// As [`Session::generate`].
pub fn ask(
    session: &mut Session,
    task: &Task,
    prompt: &ChatPrompt,
    progress: &mut dyn FnMut(PrefillProgress) -> ControlFlow<()>,
) -> Result<TaskAnswer> {
    session.clear();
    let model = session.model().clone();
    let mut sampler = Sampler::new(SamplerParams::greedy())?;
    let options = GenerateOptions {
        n_predict: task.n_predict,
        prompt: PrefillOptions { question_start: prompt.question.as_ref().map(|q| q.start) },
        ..GenerateOptions::default()
    };
    let mut decoder = StreamDecoder::new(model.tokenizer());
    let mut text = String::new();
    let out = session.generate(&prompt.tokens, &mut sampler, options, progress, &mut |token| {
        text.push_str(&decoder.push(token));
        if task.metric.is_settled(&text, &task.answers) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    let out = out.unless_cut()?;
    text.push_str(&decoder.flush());
    let score = task.metric.score(&text, &task.answers);
    Ok(TaskAnswer { text, score, n_generated: out.tokens.len(), ttft_s: out.ttft, cache_kept: out.prefill.cache_kept })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"task": "a", "prompt": "p", "answers": ["x"], "metric": "all", "n_predict": 3}"#;

    fn parse(content: &str) -> std::result::Result<TaskData, String> {
        TaskData::parse(content, "d.jsonl").map_err(|e| e.to_string())
    }

    #[test]
    fn a_line_is_a_task() {
        let chat =
            r#"{"task": "b", "messages": [{"role": "user", "content": "q"}], "prefix": " A:", "answers": ["x", "y"],
            "metric": "any", "n_predict": 9, "length": 4096, "id": 7, "more": null}"#
                .replace('\n', " ");
        let data = parse(&format!("{GOOD}\n\n{chat}\n")).unwrap();
        assert_eq!(data.tasks.iter().map(|t| t.line).collect::<Vec<_>>(), [1, 3]);
        let [a, b] = data.tasks.as_slice() else { panic!("{data:?}") };
        assert_eq!((a.task.as_str(), a.metric, a.n_predict, a.length, &a.id), ("a", Metric::All, 3, None, &None));
        assert_eq!((b.metric, b.n_predict, b.length, b.id.as_deref()), (Metric::Any, 9, Some(4096), Some("7")));
        assert!(matches!(&b.text, PromptText::Chat { prefix, .. } if prefix == " A:"));
        assert_ne!(a.hash, b.hash);
        assert_ne!(data.hash, parse(GOOD).unwrap().hash);
        assert_eq!(parse(&format!("{GOOD}\n")).unwrap(), parse(GOOD).unwrap());
    }

    #[test]
    fn bad_lines_are_named() {
        for (from, to, expected) in [
            ("\"x\"", "", "`answers` is empty"),
            ("\"x\"", "\" \"", "without text"),
            ("\"all\"", "\"best\"", "unknown metric `best`, expected one of all, any, exact, prefix"),
            ("3}", "0}", "`n_predict` is 0"),
            ("3}", "", "EOF while parsing"),
            ("\"answers\": [\"x\"], ", "", "missing field `answers`"),
            ("\"prompt\": \"p\", ", "", "neither `prompt` nor `messages`"),
        ] {
            let message = parse(&format!("{GOOD}\n{}\n", GOOD.replace(from, to))).unwrap_err();
            assert!(message.starts_with("d.jsonl: line 2: ") && message.contains(expected), "{message}");
            assert!(!message.contains("line 1"), "{message}");
        }
        assert!(parse(" \n").unwrap_err().starts_with("d.jsonl: no tasks"));
    }

    #[test]
    fn tasks_take_turns() {
        let line = |task: &str| GOOD.replace("\"a\"", &format!("\"{task}\""));
        let data = parse(&["a", "a", "a", "b", "b"].map(line).join("\n")).unwrap();
        let lines = |names: &[&str], samples| {
            let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
            let chosen = data.choose(&names, samples, "d.jsonl");
            chosen.map(|all| all.iter().map(|t| t.line).collect::<Vec<_>>()).map_err(|e| e.to_string())
        };
        assert_eq!(lines(&[], None).unwrap(), [1, 4, 2, 5, 3]);
        assert_eq!(lines(&[], Some(1)).unwrap(), [1, 4]);
        assert_eq!(lines(&["b"], None).unwrap(), [4, 5]);
        assert_eq!(lines(&["c"], None).unwrap_err(), "d.jsonl: no task is called `c`; there are a, b");
    }
}
