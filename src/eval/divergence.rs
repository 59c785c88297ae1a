//! How far a prefill that skips moves the model: KL divergence from the dense one, token by token of a given continuation.

use std::ops::ControlFlow;

use crate::session::prefill::PrefillProgress;
use crate::session::sampler::check_logits;
use crate::{Result, Session};

/// Log probabilities `[n_vocab]` after the prompt and after each token of its continuation but the last.
///
/// # Errors
/// As [`Session::prefill`] and [`Session::decode`]; logits that are no distribution.
pub fn log_probs(
    session: &mut Session,
    prompt: &[u32],
    continuation: &[u32],
    progress: &mut dyn FnMut(PrefillProgress) -> ControlFlow<()>,
) -> Result<Vec<Vec<f32>>> {
    session.clear();
    session.prefill(prompt, progress)?;
    let mut out = Vec::with_capacity(continuation.len());
    for (i, &token) in continuation.iter().enumerate() {
        check_logits(session.logits()).map_err(|e| session.bad_logits(e))?;
        out.push(log_softmax(session.logits()));
        if i + 1 < continuation.len() {
            session.decode(token)?;
        }
    }
    Ok(out)
}

/// Log probabilities of logits `[n_vocab]`.
pub fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
    let log_sum = max + sum.ln() as f32;
    logits.iter().map(|&x| x - log_sum).collect()
}

/// `sum p (log p - log q)` in nats, of log probabilities.
pub fn kl(p: &[f32], q: &[f32]) -> f64 {
    let likely = p.iter().zip(q).filter(|(p, _)| **p > f32::NEG_INFINITY);
    likely.map(|(&p, &q)| f64::from(p).exp() * f64::from(p - q)).sum()
}

/// True if both have the same most likely token.
pub fn same_top(p: &[f32], q: &[f32]) -> bool {
    let top = |x: &[f32]| x.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(i, _)| i);
    top(p) == top(q)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_divergences() {
        let p = log_softmax(&[0.0, 0.0]);
        let q = log_softmax(&[3f32.ln(), 0.0]);
        assert!((p[0] - 0.5f32.ln()).abs() < 1e-6);
        // 1/2 ln(2/3) + 1/2 ln 2
        assert!((kl(&p, &q) - 0.5 * (4.0f64 / 3.0).ln()).abs() < 1e-6);
        assert_eq!(kl(&q, &q), 0.0);
        // Impossible tokens count for nothing.
        let r = log_softmax(&[0.0, f32::NEG_INFINITY]);
        assert_eq!(kl(&r, &r), 0.0);
        assert!(same_top(&q, &[5.0, 1.0]) && !same_top(&q, &[1.0, 5.0]));
        // Large logits do not overflow.
        assert!(log_softmax(&[1e4, 0.0])[0].abs() < 1e-6);
    }
}
