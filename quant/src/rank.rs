//! How well scores order tokens: against the truth, and against chance.

/// Ranks of `values` from 1; equal values share the mean of their ranks.
fn mean_ranks(values: &[f32]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    while start < order.len() {
        let value = values[order[start]];
        let end = start + order[start..].iter().take_while(|&&i| values[i].total_cmp(&value).is_eq()).count();
        for &i in &order[start..end] {
            ranks[i] = (start + 1 + end) as f64 / 2.0;
        }
        start = end;
    }
    ranks
}

/// Spearman's rank correlation of two lists, ties sharing their mean rank: Pearson's correlation
/// of the ranks, in [-1, 1].
///
/// `None` if the lengths differ, if there are fewer than two values, or if one list is constant.
pub fn spearman(a: &[f32], b: &[f32]) -> Option<f64> {
    if a.len() != b.len() || a.len() < 2 {
        return None;
    }
    let (ra, rb) = (mean_ranks(a), mean_ranks(b));
    let mean = (a.len() + 1) as f64 / 2.0;
    let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for (x, y) in ra.iter().zip(&rb) {
        ab += (x - mean) * (y - mean);
        aa += (x - mean) * (x - mean);
        bb += (y - mean) * (y - mean);
    }
    (aa > 0.0 && bb > 0.0).then(|| ab / (aa * bb).sqrt())
}

/// The indices of the `m` largest scores, in ascending order. Of equal scores the one with the lower index
/// is taken, as the runtime does.
pub fn top_m(scores: &[f32], m: usize) -> Vec<u32> {
    crate::saliency::select_channels(scores, m)
}

/// Share of the true top-`m` that `scores` finds with `m` picks, in [0, 1].
///
/// `None` if the lengths differ or if there is nothing to pick. `m` is clamped to the length.
pub fn top_m_recall(scores: &[f32], truth: &[f32], m: usize) -> Option<f64> {
    let m = m.min(truth.len());
    if scores.len() != truth.len() || m == 0 {
        return None;
    }
    let mut wanted = vec![false; truth.len()];
    for i in top_m(truth, m) {
        wanted[i as usize] = true;
    }
    let found = top_m(scores, m).into_iter().filter(|&i| wanted[i as usize]).count();
    Some(found as f64 / m as f64)
}

/// Mean and standard deviation of [`top_m_recall`] for `m` tokens picked at random out of `n`
/// (the hypergeometric distribution): what a score has to beat.
///
/// `None` if there is nothing to pick. `m` is clamped to `n`.
pub fn random_recall(n: usize, m: usize) -> Option<(f64, f64)> {
    let m = m.min(n);
    if m == 0 {
        return None;
    }
    let (n, m) = (n as f64, m as f64);
    let share = m / n;
    let variance = if n > 1.0 { share * (1.0 - share) * (n - m) / (n - 1.0) / m } else { 0.0 };
    Some((share, variance.sqrt()))
}

/// `n` scores, uniform in [0, 1) and the same for the same seed (SplitMix64): the random control.
pub fn random_scores(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    (0..n)
        .map(|_| {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut x = state;
            x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            ((x ^ (x >> 31)) >> 40) as f32 / (1u32 << 24) as f32
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn correlation_of_known_lists() {
        let a = [1.0, 2.0, 3.0, 4.0, 5.0];
        assert_eq!(spearman(&a, &[10.0, 20.0, 40.0, 80.0, 160.0]), Some(1.0));
        assert_eq!(spearman(&a, &[5.0, 4.0, 3.0, 2.0, 1.0]), Some(-1.0));
        // 1 - 6 sum d^2 / (n (n^2 - 1)), d = (1, 1, 0, 1, 1).
        let rho = spearman(&a, &[2.0, 1.0, 3.0, 5.0, 4.0]).unwrap();
        assert!((rho - 0.8).abs() < 1e-12);
        // Ties: ranks (1.5, 1.5, 3) against (1, 2, 3).
        let rho = spearman(&[1.0, 1.0, 2.0], &[1.0, 2.0, 3.0]).unwrap();
        assert!((rho - 0.75f64.sqrt()).abs() < 1e-12);
        assert_eq!(spearman(&a, &[1.0; 5]), None);
        assert_eq!(spearman(&a, &[1.0; 4]), None);
    }

    #[test]
    fn recall_and_its_control() {
        let truth = [0.1, 0.9, 0.8, 0.2];
        assert_eq!(top_m_recall(&[0.0, 1.0, 0.0, 0.5], &truth, 2), Some(0.5));
        assert_eq!(top_m_recall(&truth, &truth, 9), Some(1.0));
        assert_eq!(top_m_recall(&truth, &truth, 0), None);
        assert_eq!(random_recall(4, 4), Some((1.0, 0.0)));
        assert_eq!(random_recall(0, 3), None);

        let (n, m, trials) = (200, 50, 400u64);
        let truth = random_scores(n, 1);
        let found: Vec<f64> =
            (0..trials).map(|s| top_m_recall(&random_scores(n, 100 + s), &truth, m).unwrap()).collect();
        let mean = found.iter().sum::<f64>() / trials as f64;
        let sd = (found.iter().map(|f| (f - mean).powi(2)).sum::<f64>() / trials as f64).sqrt();
        let (expected, expected_sd) = random_recall(n, m).unwrap();
        assert!((mean - expected).abs() < 4.0 * expected_sd / (trials as f64).sqrt());
        assert!((sd / expected_sd - 1.0).abs() < 0.2, "{sd} {expected_sd}");
    }
}
