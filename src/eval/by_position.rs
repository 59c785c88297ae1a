//! Divergence by position behind the prompt: what skipping costs the first token of a continuation, and what the later ones.

use serde::Serialize;

use super::error::EvalError;
use super::divergence::{kl, same_top};
use super::statistics::{Estimate, mean, mean_of_means};

/// A configuration's next-token distribution against the dense one, at one position.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenDivergence {
    /// KL divergence from dense, in nats.
    pub kl: f64,
    /// Both have the same most likely token.
    pub same_top: bool,
    /// By how much less likely the text's own token has become, in nats.
    pub surprise: f64,
}

/// Compares the log probabilities `[n_vocab]` before each token of a continuation. `what` names the run in messages.
///
/// # Errors
/// A value that is no finite number.
pub fn compare(
    dense: &[Vec<f32>],
    found: &[Vec<f32>],
    continuation: &[u32],
    what: &str,
) -> Result<Vec<TokenDivergence>, EvalError> {
    let each = dense.iter().zip(found).zip(continuation).enumerate();
    each.map(|(position, ((p, q), &token))| {
        let of = |x: &[f32]| x.get(token as usize).copied().map_or(f64::NAN, f64::from);
        let it = TokenDivergence { kl: kl(p, q), same_top: same_top(p, q), surprise: of(p) - of(q) };
        if it.kl.is_finite() && it.surprise.is_finite() {
            return Ok(it);
        }
        Err(EvalError::NotFinite { what: what.to_owned(), position: position + 1 })
    })
    .collect()
}

/// Means over the prompts of a configuration, of some positions.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Bucket {
    /// First position behind the prompt, from 1.
    pub first: usize,
    /// Last position, inclusive.
    pub last: usize,
    /// KL divergence in nats.
    pub kl: Estimate,
    /// Share of the positions with dense's most likely token.
    pub same_top: Estimate,
    /// Perplexity of the text over the dense one's.
    pub perplexity_ratio: Estimate,
}

/// Positions `first ..= last` of every prompt's tokens. Intervals are over the prompts: tokens of one are not independent.
pub fn bucket(prompts: &[Vec<TokenDivergence>], first: usize, last: usize) -> Bucket {
    let means = |value: &dyn Fn(&TokenDivergence) -> f64| {
        let of_prompt =
            |tokens: &Vec<TokenDivergence>| mean(&tokens[first - 1..last].iter().map(value).collect::<Vec<_>>());
        mean_of_means(&[prompts.iter().map(of_prompt).collect()])
    };
    let surprise = means(&|t| t.surprise);
    Bucket {
        first,
        last,
        kl: means(&|t| t.kl),
        same_top: means(&|t| f64::from(u8::from(t.same_top))),
        perplexity_ratio: Estimate {
            value: surprise.value.exp(),
            interval: surprise.interval.map(|ends| ends.map(f64::exp)),
        },
    }
}

/// Ranges of positions up to `n`, each four times as long as the one before: 1, 2 to 8, 9 to 32, 33 to 128 ...
pub fn ranges(n: usize) -> Vec<(usize, usize)> {
    let mut out = Vec::new();
    let (mut first, mut last) = (1, 1);
    while first <= n {
        out.push((first, last.min(n)));
        first = last + 1;
        last = if last == 1 { 8 } else { last * 4 };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(p: [f64; 2]) -> Vec<f32> {
        p.map(|x| x.ln() as f32).to_vec()
    }

    #[test]
    fn known_divergences() {
        let (dense, found) = (vec![log([0.5, 0.5]), log([0.9, 0.1])], vec![log([0.5, 0.5]), log([0.3, 0.7])]);
        let tokens = compare(&dense, &found, &[0, 0], "x").unwrap();
        assert_eq!((tokens[0].kl, tokens[0].same_top, tokens[0].surprise), (0.0, true, 0.0));
        let expected = 0.9 * 3f64.ln() + 0.1 * (1.0f64 / 7.0).ln();
        assert!((tokens[1].kl - expected).abs() < 1e-6 && !tokens[1].same_top);
        assert!((tokens[1].surprise - 3f64.ln()).abs() < 1e-6);

        let prompts = vec![tokens.clone(), tokens];
        let first = bucket(&prompts, 1, 1);
        assert_eq!((first.kl.value, first.same_top.value, first.perplexity_ratio.value), (0.0, 1.0, 1.0));
        let both = bucket(&prompts, 1, 2);
        assert!((both.perplexity_ratio.value - 3f64.sqrt()).abs() < 1e-6 && both.same_top.value == 0.5);
        let [low, high] = both.kl.interval.unwrap();
        assert!((high - low).abs() < 1e-12, "prompts that are alike");
    }

    #[test]
    fn what_is_no_number_is_no_result() {
        let good = vec![log([0.5, 0.5])];
        let bad = vec![vec![f32::NAN, 0.0]];
        let error = compare(&good, &bad, &[1], "half, sample 2").unwrap_err();
        assert_eq!(error, EvalError::NotFinite { what: "half, sample 2".into(), position: 1 });
        assert!(compare(&good, &good, &[7], "x").is_err(), "a token outside of the vocabulary");
    }

    #[test]
    fn ranges_cover_every_position_once() {
        assert_eq!(ranges(1), [(1, 1)]);
        assert_eq!(ranges(64), [(1, 1), (2, 8), (9, 32), (33, 64)]);
        assert_eq!(ranges(129).last(), Some(&(129, 129)));
    }
}
