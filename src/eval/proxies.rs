//! How well proxy norms order tokens: against the true norms of the FFN's output, and against the scores that they multiply.

use std::ops::ControlFlow;

use serde::Serialize;
use spts_quant::rank::{spearman, top_m_recall};

use crate::graph::ir::Tap;
use crate::method::spts::capture::Capture;
use crate::method::spts::schedule::Probe;
use crate::session::prefill::PrefillProgress;
use crate::session::sampler::check_logits;
use crate::{Result, Session};

/// One layer. Shares are of the true top M that is found with M picks.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerQuality {
    /// Layer.
    pub il: usize,
    /// Spearman's correlation of C = ||proxy(x)|| and ||FFN(x)||; `None` if one is constant.
    pub rank_correlation: Option<f64>,
    /// Truth: ||FFN(x)||. Found by C.
    pub norm_by_c: f64,
    /// By C * S.
    pub norm_by_cs: f64,
    /// By S, the attention probe's score, alone.
    pub norm_by_s: f64,
    /// Truth: S * ||FFN(x)||, what C * S stands for. Found by C * S.
    pub product_by_cs: f64,
    /// By S alone.
    pub product_by_s: f64,
    /// Coefficient of variation (deviation over mean) of the true norms: how much there is to choose from.
    pub norm_spread: f64,
}

/// Measures the proxies that `session` holds, in `layers`, over the states of a dense prefill of `tokens`. M is `share` of the
/// tokens. A random choice finds `share` of any truth.
///
/// # Errors
/// As [`Session::prefill_capturing`]; a prefill whose logits are no numbers.
pub fn proxy_quality(
    session: &mut Session,
    tokens: &[u32],
    layers: &[usize],
    probe: Probe,
    share: f64,
    progress: &mut dyn FnMut(PrefillProgress) -> ControlFlow<()>,
) -> Result<Vec<LayerQuality>> {
    let n_embd = session.model().shape().n_embd;
    let taps = [Tap::ProbeScores, Tap::ProxyNorm, Tap::FfnOutput];
    let mut states: Vec<States> = layers.iter().map(|&il| States { il, ..States::default() }).collect();
    session.clear();
    session.prefill_capturing(tokens, &Capture { layers, taps: &taps, probe }, progress, &mut |captured| {
        let Some(layer) = states.iter_mut().find(|s| s.il == captured.layer) else { return };
        match captured.tap {
            Tap::ProbeScores => layer.s.extend_from_slice(captured.values),
            Tap::ProxyNorm => layer.c.extend_from_slice(captured.values),
            Tap::FfnOutput => layer.norm.extend(captured.values.chunks_exact(n_embd).map(norm)),
            Tap::FfnHidden => {}
        }
    })?;
    check_logits(session.logits()).map_err(|e| session.bad_logits(e))?;
    let m = ((share * tokens.len() as f64) as usize).max(1);
    Ok(states.iter().map(|s| s.quality(m)).collect())
}

fn norm(x: &[f32]) -> f32 {
    x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt() as f32
}

/// What a layer captured, with a norm for each token.
#[derive(Default)]
struct States {
    il: usize,
    s: Vec<f32>,
    c: Vec<f32>,
    norm: Vec<f32>,
}

impl States {
    fn quality(&self, m: usize) -> LayerQuality {
        let times = |a: &[f32]| a.iter().zip(&self.s).map(|(a, s)| a * s).collect::<Vec<f32>>();
        let (cs, product) = (times(&self.c), times(&self.norm));
        // The lists have equal lengths and m is not 0, so there is always a share.
        let found = |scores: &[f32], truth: &[f32]| top_m_recall(scores, truth, m).unwrap_or(0.0);
        let n = self.norm.len().max(1) as f64;
        let mean = self.norm.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        let variance = self.norm.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
        LayerQuality {
            il: self.il,
            rank_correlation: spearman(&self.c, &self.norm),
            norm_by_c: found(&self.c, &self.norm),
            norm_by_cs: found(&cs, &self.norm),
            norm_by_s: found(&self.s, &self.norm),
            product_by_cs: found(&cs, &product),
            product_by_s: found(&self.s, &product),
            norm_spread: variance.sqrt() / mean,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_perfect_proxy_finds_everything() {
        let norm = vec![4.0, 1.0, 3.0, 2.0];
        let q = States { il: 3, s: vec![0.1, 0.4, 0.2, 0.3], c: norm.clone(), norm }.quality(2);
        assert_eq!((q.il, q.rank_correlation, q.norm_by_c, q.product_by_cs), (3, Some(1.0), 1.0, 1.0));
        // S's best are 1 and 3; the norm's 0 and 2; the product's 2 and 3 (0.6 each).
        assert_eq!((q.norm_by_s, q.product_by_s), (0.0, 0.5));
        assert_eq!(q.norm_by_cs, 0.5);
    }
}
