//! Means, medians and their 95 % intervals by bootstrap (Efron), over strata and with a fixed seed.
//!
//! A difference of two configurations is measured prompt by prompt: the values that come in here are then the prompts'
//! differences, which makes the bootstrap a paired one.

use serde::Serialize;

use crate::random::SplitMix64;

/// Resamples of a bootstrap.
const RESAMPLES: usize = 2000;

/// Every interval is drawn with the same seed, so that a report is the same each time it is printed.
const SEED: u64 = 2026;

/// A value and its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// Of the values as they are.
    pub value: f64,
    /// From the 2.5th to the 97.5th percentile of the resamples; `None` where a stratum has a single value, which says nothing
    /// about its spread.
    pub interval: Option<[f64; 2]>,
}

impl Estimate {
    /// In another unit; below 0 the ends of the interval change places.
    pub fn times(self, unit: f64) -> Estimate {
        let ordered =
            |[low, high]: [f64; 2]| if unit < 0.0 { [unit * high, unit * low] } else { [unit * low, unit * high] };
        // Nothing is lost or gained alike: no -0.0 in a report.
        Estimate { value: unit * self.value + 0.0, interval: self.interval.map(ordered).map(|i| i.map(|x| x + 0.0)) }
    }
}

/// The mean over strata of the mean over each one's values; empty strata do not count.
pub fn mean_of_means(strata: &[Vec<f64>]) -> Estimate {
    estimate(strata, &|strata| {
        let means = strata.iter().map(|s| mean(s));
        means.sum::<f64>() / strata.len() as f64
    })
}

/// The median of all values, resampled stratum by stratum.
pub fn median_of_all(strata: &[Vec<f64>]) -> Estimate {
    estimate(strata, &|strata| median(&strata.concat()))
}

/// The arithmetic mean; 0 of nothing.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// The middle value, or the mean of the two in the middle; 0 of nothing.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => 0.0,
        (n, half) if n % 2 == 0 => (sorted[half - 1] + sorted[half]) / 2.0,
        (_, half) => sorted[half],
    }
}

/// Of `n` values of a stratum each resample draws `n - 1`: the variance of its mean is then the unbiased one (Rao and Wu 1988),
/// where `n` draws would make the intervals of few prompts too narrow.
fn estimate(strata: &[Vec<f64>], statistic: &dyn Fn(&[Vec<f64>]) -> f64) -> Estimate {
    let strata: Vec<Vec<f64>> = strata.iter().filter(|s| !s.is_empty()).cloned().collect();
    if strata.is_empty() {
        return Estimate { value: 0.0, interval: None };
    }
    let value = statistic(&strata);
    if strata.iter().any(|s| s.len() < 2) {
        return Estimate { value, interval: None };
    }
    let mut random = SplitMix64(SEED);
    let mut drawn: Vec<Vec<f64>> = strata.iter().map(|s| vec![0.0; s.len() - 1]).collect();
    let mut resampled: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            for (from, to) in strata.iter().zip(&mut drawn) {
                to.iter_mut().for_each(|x| *x = from[(random.uniform() * from.len() as f64) as usize]);
            }
            statistic(&drawn)
        })
        .collect();
    resampled.sort_by(f64::total_cmp);
    let at = |share: f64| resampled[(share * (RESAMPLES - 1) as f64).round() as usize];
    Estimate { value, interval: Some([at(0.025), at(0.975)]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn width(e: Estimate) -> f64 {
        e.interval.map_or(0.0, |[low, high]| high - low)
    }

    #[test]
    fn medians_and_means() {
        assert_eq!((median(&[]), median(&[3.0, 1.0, 2.0]), median(&[4.0, 1.0, 2.0, 3.0])), (0.0, 2.0, 2.5));
        assert_eq!((mean(&[]), mean(&[1.0, 2.0])), (0.0, 1.5));
        // Each stratum counts the same, however many values it has.
        let unequal = [vec![1.0; 30], vec![0.0; 10], Vec::new()];
        assert_eq!(mean_of_means(&unequal), Estimate { value: 0.5, interval: Some([0.5, 0.5]) });
    }

    #[test]
    fn the_interval_of_a_share_is_the_known_one() {
        // 50 of 100: the normal approximation says 0.5 +- 1.96 * sqrt(0.25 / 99).
        let coin: Vec<f64> = (0..100).map(|i| f64::from(i % 2)).collect();
        let e = mean_of_means(std::slice::from_ref(&coin));
        let [low, high] = e.interval.unwrap();
        let expected = 1.96 * (0.25f64 / 99.0).sqrt();
        assert!((0.5 - low - expected).abs() < 0.015 && (high - 0.5 - expected).abs() < 0.015, "{e:?}");
        // Four such strata: half as wide.
        let four = mean_of_means(&vec![coin; 4]);
        assert!((width(four) / (high - low) - 0.5).abs() < 0.06, "{four:?}");
        assert_eq!(mean_of_means(&[vec![0.0, 1.0, 0.5]]), mean_of_means(&[vec![0.0, 1.0, 0.5]]), "a fixed seed");
    }

    #[test]
    fn strata_keep_apart_what_differs_between_tasks() {
        // Two tasks, one always right and one always wrong: no uncertainty within either.
        assert_eq!(width(mean_of_means(&[vec![1.0; 5], vec![0.0; 5]])), 0.0);
        assert!(width(mean_of_means(&[[vec![1.0; 5], vec![0.0; 5]].concat()])) > 0.4);
    }

    #[test]
    fn small_strata_are_not_overconfident() {
        // Two values tell no more than that the mean is somewhere between them.
        assert_eq!(mean_of_means(&[vec![0.0, 1.0]]).interval, Some([0.0, 1.0]));
        assert_eq!(mean_of_means(&[vec![0.0, 1.0], vec![1.0]]).interval, None);
        assert_eq!(mean_of_means(&[]), Estimate { value: 0.0, interval: None });
    }

    #[test]
    fn medians_shrug_off_outliers() {
        let mut ratios = vec![2.0; 40];
        ratios[7] = 1000.0;
        assert_eq!(median_of_all(&[ratios]), Estimate { value: 2.0, interval: Some([2.0, 2.0]) });
    }
}
