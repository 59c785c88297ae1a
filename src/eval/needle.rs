//! Needle in a haystack: numbers hidden in a long text, one of them asked for (after the retrieval tasks of RULER).
//!
//! The prompt ends with the beginning of the answer, so that the model has nothing to do but to read the number out. An answer
//! of several tokens is what tests token skipping: the last prompt token selects for the *next* token, and what the later ones
//! need may be gone by then.

use std::ops::ControlFlow;

use super::error::EvalError;
use crate::random::SplitMix64;
use crate::session::generate::GenerateOptions;
use crate::session::prefill::PrefillProgress;
use crate::session::sampler::{Sampler, SamplerParams};
use crate::tokenizer::Tokenizer;
use crate::{Result, Session};

const INTRODUCTION: &str =
    "Some special numbers are hidden in the following text. You will be asked for one of them.\n\n";

/// Names of the things that have a number.
const KEYS: [&str; 16] = [
    "lighthouse",
    "orchard",
    "granary",
    "violin",
    "compass",
    "quarry",
    "teapot",
    "glacier",
    "lantern",
    "ferry",
    "almanac",
    "windmill",
    "falcon",
    "cellar",
    "meadow",
    "anvil",
];

/// Tokens of an answer: a number of seven digits, each perhaps a token, and some room.
pub const ANSWER_TOKENS: usize = 14;

/// Tokens looked through for the end of a sentence, where a needle goes in.
const SENTENCE: usize = 128;

/// A set of prompts with hidden numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeedleTask {
    /// Tokens of every prompt, exactly.
    pub n_tokens: usize,
    /// Numbers hidden in each; one is asked for, the others distract.
    pub n_keys: usize,
    /// Prompts: each from another place of the text, with the needle at another depth.
    pub n_samples: usize,
}

/// A prompt, and what should follow it.
#[derive(Clone, Debug, PartialEq)]
pub struct NeedlePrompt {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// The number that the answer should be.
    pub expected: String,
    /// Where the needle lies, from 0 (the text's start) to 1.
    pub depth: f64,
}

/// The answer to a [`NeedlePrompt`].
#[derive(Clone, Debug, PartialEq)]
pub struct NeedleAnswer {
    /// Text generated.
    pub text: String,
    /// Whether the text begins with the expected number.
    pub correct: bool,
    /// Share of the dense cache's entries that were kept.
    pub cache_kept: f64,
}

impl NeedleTask {
    /// Makes the prompts from a text's tokens. The same task over the same text gives the same prompts.
    ///
    /// # Errors
    /// The text or the prompt is too short.
    pub fn prompts(&self, tokenizer: &Tokenizer, text: &[u32]) -> std::result::Result<Vec<NeedlePrompt>, EvalError> {
        if self.n_keys == 0 || self.n_keys > KEYS.len() {
            return Err(EvalError::Keys { found: self.n_keys, most: KEYS.len() });
        }
        (0..self.n_samples).map(|i| self.prompt(tokenizer, text, i)).collect()
    }

    fn prompt(
        &self,
        tokenizer: &Tokenizer,
        text: &[u32],
        sample: usize,
    ) -> std::result::Result<NeedlePrompt, EvalError> {
        let encode = |s: &str| tokenizer.encode(s, false, false);
        let numbers = numbers(self.n_keys, sample as u64);
        let key = |i: usize| KEYS[(sample * self.n_keys + i) % KEYS.len()];
        let mut head: Vec<u32> = tokenizer.bos().into_iter().filter(|_| tokenizer.add_bos()).collect();
        head.extend(encode(INTRODUCTION));
        let asked = key(0);
        let tail = encode(&format!(
            "\n\nQuestion: What is the special number of the {asked}? Answer: The special number of the {asked} is"
        ));
        // The asked one first; the others lie at equal distances from it.
        let mut needles: Vec<(f64, Vec<u32>)> = (0..self.n_keys)
            .map(|i| {
                let depth = (sample as f64 + 0.5) / self.n_samples as f64 + i as f64 / self.n_keys as f64;
                (depth.fract(), encode(&format!(" The special number of the {} is {}.", key(i), numbers[i])))
            })
            .collect();
        let depth = needles[0].0;
        needles.sort_by(|a, b| a.0.total_cmp(&b.0));

        let fixed = head.len() + tail.len() + needles.iter().map(|(_, n)| n.len()).sum::<usize>();
        let n_hay = self.n_tokens.checked_sub(fixed).filter(|&n| n >= self.n_keys);
        let n_hay = n_hay.ok_or(EvalError::PromptTooShort { found: self.n_tokens, needed: fixed + self.n_keys })?;
        if text.len() < n_hay {
            return Err(EvalError::TextTooShort { found: text.len(), needed: n_hay });
        }
        let start = (text.len() - n_hay) * sample / self.n_samples;
        let hay = &text[start..start + n_hay];
        let mut tokens = head;
        let mut at = 0;
        for (depth, needle) in &needles {
            let place = sentence_end(tokenizer, hay, ((depth * n_hay as f64) as usize).max(at));
            tokens.extend_from_slice(&hay[at..place]);
            tokens.extend_from_slice(needle);
            at = place;
        }
        tokens.extend_from_slice(&hay[at..]);
        tokens.extend(tail);
        Ok(NeedlePrompt { tokens, expected: numbers[0].to_string(), depth })
    }
}

/// The first place from `at` on that follows a full stop, or `at` if none is near.
fn sentence_end(tokenizer: &Tokenizer, hay: &[u32], at: usize) -> usize {
    let near = hay[at..].iter().take(SENTENCE);
    near.enumerate().find(|&(_, &t)| tokenizer.token_bytes(t).ends_with(b".")).map_or(at, |(i, _)| at + i + 1)
}

/// Different numbers of seven digits, the same for the same seed.
fn numbers(n: usize, seed: u64) -> Vec<u32> {
    let mut random = SplitMix64(seed);
    let mut out: Vec<u32> = Vec::with_capacity(n);
    while out.len() < n {
        let number = 1_000_000 + (random.uniform() * 9e6) as u32;
        if !out.contains(&number) {
            out.push(number);
        }
    }
    out
}

/// Asks a session, greedily. What it has read before is forgotten.
///
/// # Errors
/// As [`Session::generate`].
pub fn ask(
    session: &mut Session,
    prompt: &NeedlePrompt,
    progress: &mut dyn FnMut(PrefillProgress) -> ControlFlow<()>,
) -> Result<NeedleAnswer> {
    session.clear();
    let mut sampler = Sampler::new(SamplerParams::greedy())?;
    let options = GenerateOptions { n_predict: ANSWER_TOKENS, ..GenerateOptions::default() };
    let out = session.generate(&prompt.tokens, &mut sampler, options, progress, &mut |_| ControlFlow::Continue(()))?;
    let out = out.unless_cut()?;
    let text = session.model().tokenizer().decode(&out.tokens);
    let correct = first_number(&text) == prompt.expected;
    Ok(NeedleAnswer { text, correct, cache_kept: out.prefill.cache_kept })
}

/// The digits that a text begins with, white space aside.
fn first_number(text: &str) -> &str {
    let text = text.trim_start();
    &text[..text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_seven_digits_and_differ() {
        for seed in 0..50 {
            let all = numbers(KEYS.len(), seed);
            assert_eq!(all.len(), KEYS.len());
            assert!(all.iter().all(|n| n.to_string().len() == 7));
            assert!(all.iter().enumerate().all(|(i, n)| !all[..i].contains(n)));
        }
        assert_ne!(numbers(1, 1), numbers(1, 2));
    }

    #[test]
    fn an_answer_is_its_first_number() {
        assert_eq!(first_number(" 1234567. The"), "1234567");
        assert_eq!(first_number("12345678"), "12345678");
        assert_eq!(first_number("about 7"), "");
    }
}
