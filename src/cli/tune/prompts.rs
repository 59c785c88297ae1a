//! The prompts of a search: those of `--data`, or such as are made of a text.

use spts::ModelFile;
use spts::eval::needle::{self, NeedlePrompt, NeedleTask};
use spts::eval::score::Metric;
use spts::eval::tasks::{Task, TaskData};
use spts::hash::fnv1a;
use spts::method::spts::schedule::{Budget, Schedule};
use spts::tokenizer::{ChatPrompt, PromptText};
use spts::tune::trial::Asked;

use super::{TuneArgs, failed};
use crate::cli::eval::tasks::encode;
use crate::cli::failure::Failure;
use crate::report::grouped;

/// Numbers hidden in a prompt that is made of a text, a task each.
const KEYS: [usize; 2] = [1, 4];

/// Prompts of each such task.
const SAMPLES: u32 = 16;

/// Tokens of such a prompt for budgets that are fractions of it.
const SHORT: usize = 4096;

/// The prompts of `--data`.
pub(super) fn with_answers(args: &TuneArgs, file: &ModelFile, source: &str) -> Result<Vec<Asked>, Failure> {
    let origin = args.source().display().to_string();
    let data = TaskData::parse(source, &origin).map_err(failed)?;
    let chosen = data.choose(&args.tasks, args.samples.map(|n| n as usize), &origin).map_err(failed)?;
    let prompts = encode(file, &chosen, args.n_ctx().unwrap_or(file.hparams().n_ctx_train))?;
    Ok(prompts.into_iter().map(|(task, prompt)| Asked { task: task.clone(), prompt }).collect())
}

/// Prompts made of `--text`.
pub(super) fn hidden_numbers(
    args: &TuneArgs,
    file: &ModelFile,
    base: &Schedule,
    source: &str,
) -> Result<Vec<Asked>, Failure> {
    let in_full = match base.stages.first().map(|s| s.budget) {
        Some(Budget::Fraction(_)) => SHORT,
        _ => base.in_full_from(),
    };
    let n_tokens = args.n_tokens.map_or(in_full, |n| n as usize);
    let n_ctx = args.n_ctx().unwrap_or(file.hparams().n_ctx_train);
    let n = n_tokens + needle::ANSWER_TOKENS;
    if n > n_ctx {
        return Err(Failure::Failed(format!(
            "-n {n_tokens}: with its answer such a prompt has {} tokens, but the context holds {}: ask for shorter ones (below the first budget start from fractions, as in --schedule 0.5,0.4,0.3,0.2), or raise -c",
            grouped(n),
            grouped(n_ctx)
        )));
    }
    let text = file.tokenizer().encode(source, false, false);
    let n_samples = args.samples.unwrap_or(SAMPLES) as usize;
    let mut asked = Vec::new();
    for n_keys in KEYS {
        let task = NeedleTask { n_tokens, n_keys, n_samples };
        let prompts = task.prompts(file.tokenizer(), &text).map_err(spts::Error::from)?;
        for NeedlePrompt { tokens, expected, .. } in prompts {
            let text = file.tokenizer().decode(&tokens);
            let task = Task {
                line: asked.len() + 1,
                id: None,
                task: if n_keys == 1 { "1 number".into() } else { format!("{n_keys} numbers") },
                text: PromptText::Raw(text.clone()),
                hash: fnv1a(text.as_bytes()),
                answers: vec![expected],
                metric: Metric::Prefix,
                n_predict: needle::ANSWER_TOKENS,
                length: Some(n_tokens),
            };
            asked.push(Asked { task, prompt: ChatPrompt { tokens, text, contents: Vec::new(), question: None } });
        }
    }
    Ok(asked)
}

/// Of the data; of a text, and what was made of it.
pub(super) fn data_hash(args: &TuneArgs, source: &str, prompt: &ChatPrompt) -> u64 {
    match args.text {
        None => fnv1a(source.trim_end().as_bytes()),
        Some(_) => {
            let made = format!("{} tokens, {} samples\n", prompt.tokens.len(), args.samples.unwrap_or(SAMPLES));
            fnv1a((made + source).as_bytes())
        }
    }
}
