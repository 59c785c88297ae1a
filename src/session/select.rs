//! Selection on the host: what the CPU backend uses for `top_k` and `is_member` (on a GPU they stay on the device).

use crate::random::SplitMix64;

/// Ascending indices of the `m` best scores. The `first` indices and the `last` ones are always in, in place of the worst of
/// these; the lower index wins ties; NaN counts as -inf, and -0 as 0.
///
/// # Panics
/// Unless `first + last <= m <= scores.len()`, which the graph's verifier has checked.
pub fn top_k(scores: &[f32], m: usize, [first, last]: [usize; 2]) -> Vec<i32> {
    let n = scores.len();
    assert!(first + last <= m && m <= n, "top_k: {first} + {last} <= {m} <= {n}");
    let score = |i: &i32| match scores[*i as usize] {
        s if s.is_nan() => f32::NEG_INFINITY,
        s => s + 0.0,
    };
    let mut free: Vec<i32> = (first as i32..(n - last) as i32).collect();
    let chosen = m - first - last;
    if chosen > 0 && chosen < free.len() {
        free.select_nth_unstable_by(chosen - 1, |a, b| score(b).total_cmp(&score(a)).then(a.cmp(b)));
    }
    free.truncate(chosen);
    free.extend((0..first as i32).chain((n - last) as i32..n as i32));
    free.sort_unstable();
    free
}

/// Of the `rows`: 1 for those that are among the ascending `members`, else 0.
pub fn is_member(rows: &[i32], members: &[i32]) -> Vec<f32> {
    rows.iter().map(|row| f32::from(u8::from(members.binary_search(row).is_ok()))).collect()
}

/// `n` uniform scores in [0, 1): the control that a probe has to beat. The same for a seed and layer everywhere.
pub fn random_scores(seed: u64, layer: usize, n: usize) -> Vec<f32> {
    let mut random = SplitMix64(seed ^ (layer as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    (0..n)
        // 24 bits: every one a different f32.
        .map(|_| (random.next() >> 40) as f32 / (1u64 << 24) as f32)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_in_ascending_order() {
        assert_eq!(top_k(&[0.1, 0.9, 0.5, 0.7, 0.0], 3, [0, 1]), [1, 3, 4]);
    }

    #[test]
    fn the_forced_displace_the_worst_chosen() {
        assert_eq!(top_k(&[0.9, 0.8, 0.1, 0.0], 2, [0, 1]), [0, 3]);
        assert_eq!(top_k(&[0.9, 0.8, 0.1, 0.0], 2, [0, 2]), [2, 3]);
        assert_eq!(top_k(&[0.1, 0.0, 0.9, 0.8, 0.7, 0.0], 4, [2, 1]), [0, 1, 2, 5]);
        assert_eq!(top_k(&[0.1, 0.0, 0.9, 0.8], 3, [2, 1]), [0, 1, 3]);
    }

    #[test]
    fn the_lower_index_wins_ties() {
        assert_eq!(top_k(&[0.5, 0.5, 0.5, 0.5, 0.5], 3, [0, 1]), [0, 1, 4]);
        assert_eq!(top_k(&[f32::NAN, 0.5, f32::NAN, 0.1], 2, [0, 1]), [1, 3]);
    }

    #[test]
    fn members_are_found_at_both_ends() {
        assert_eq!(is_member(&[0, 2, 3, 9], &[0, 1, 3, 8, 9]), [1.0, 0.0, 1.0, 1.0]);
        assert_eq!(is_member(&[4], &[]), [0.0]);
    }

    #[test]
    fn all_of_them_is_the_identity() {
        assert_eq!(top_k(&[0.3, 0.1, 0.2], 3, [0, 1]), [0, 1, 2]);
    }
}
