//! Successive halving (Jamieson and Talwalkar 2016): all candidates on few prompts, the better half of them on twice as many, and
//! so on, until few candidates have seen every prompt.
//!
//! Wanted is the fastest whose loss of score stays within a bound. On few prompts scores say little, while how far a candidate
//! departs from dense's own answer is seen at every token. So each round first finds what a departure costs, in points of score,
//! over all candidates together, and predicts each one's loss by that price and its own departure.

use std::ops::Range;

use crate::eval::statistics::Estimate;

/// Candidates that see every prompt, if there are prompts enough to get down to so few.
const FINALISTS: usize = 3;

/// Prompts of the first round, if there are so many: of fewer, chance decides, and not only about scores (times scatter, too).
const FEWEST: usize = 4;

/// A candidate below this speed-up takes no further part; a little less than 1, as times scatter.
const TOO_SLOW: f64 = 0.95;

/// Of so many places in a round one goes to the candidate nearest to dense, whatever its speed: should the cheap measures have
/// promised too much, there is one to fall back on.
const ONE_SAFE_IN: usize = 3;

/// How good and how fast a candidate is after some prompts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Standing {
    /// Points of score, of 100, that it loses against dense; below 0 are gains. The interval is of 95 %.
    pub loss: Estimate,
    /// Share of the tokens of dense's own answers that it would not have chosen.
    pub departure: f64,
    /// Mean KL divergence from dense along these answers, in nats.
    pub kl: f64,
    /// Dense's time to the first token by its own: the median over prompts.
    pub speed_up: f64,
}

impl Standing {
    /// Whether more prompts will hardly make it one that [`Standing::meets`] the bound: chance alone does not explain a loss above
    /// it, or it is slower than dense.
    pub fn is_out_of_reach(&self, max_loss: f64) -> bool {
        self.loss.interval.is_some_and(|[low, _]| low > max_loss) || self.speed_up < TOO_SLOW
    }

    /// Whether it loses no more than the bound, and is faster than dense.
    pub fn meets(&self, max_loss: f64) -> bool {
        // A mean of scores such as 2/3 may miss the bound by rounding.
        self.loss.value <= max_loss + 1e-9 && self.speed_up > 1.0
    }
}

/// A round: the candidates that took part, as numbers, and what is known of each by then.
#[derive(Clone, Debug, PartialEq)]
pub struct Round {
    /// Prompts that each has seen.
    pub n_prompts: usize,
    /// All that took part.
    pub standings: Vec<(usize, Standing)>,
    /// Those that go on.
    pub kept: Vec<usize>,
}

/// Measures candidates for a search.
pub trait Trial {
    /// Why candidates cannot be measured.
    type Error;

    /// Measures these candidates on these prompts.
    ///
    /// # Errors
    /// The search ends with it.
    fn measure(&mut self, candidates: &[usize], prompts: Range<usize>) -> Result<(), Self::Error>;

    /// What the first `n_prompts` prompts, all of them measured, say about a candidate.
    fn standing(&self, candidate: usize, n_prompts: usize) -> Standing;

    /// Is told that a round is over.
    fn round_done(&mut self, round: &Round) {
        let _ = round;
    }
}

/// The rounds of a search, and what it found.
#[derive(Clone, Debug, PartialEq)]
pub struct Search {
    /// All rounds.
    pub rounds: Vec<Round>,
    /// The fastest of those that saw every prompt and stayed within the bound; `None` if none did.
    pub found: Option<usize>,
    /// The one that lost least in the last round.
    pub nearest: usize,
}

/// Prompts that the candidates of each round have seen: twice as many each time, from [`FEWEST`] on, and all of them in the end.
fn rounds(n_candidates: usize, n_prompts: usize) -> Vec<usize> {
    let mut halvings = 0;
    let mut left = n_candidates;
    while left > FINALISTS {
        left = places(left);
        halvings += 1;
    }
    let mut sizes: Vec<usize> =
        (0..=halvings).rev().map(|h| n_prompts.div_ceil(1 << h).max(FEWEST.min(n_prompts))).collect();
    sizes.dedup();
    sizes
}

/// Answers that a search measures at most, dense's included.
pub fn most_answers(n_candidates: usize, n_prompts: usize) -> usize {
    let (mut alive, mut seen, mut answers) = (n_candidates, 0, n_prompts);
    for n in rounds(n_candidates, n_prompts) {
        answers += alive * (n - seen);
        (alive, seen) = (places(alive), n);
    }
    answers
}

/// Places in the round behind one of so many candidates.
fn places(n_candidates: usize) -> usize {
    n_candidates.div_ceil(2).max(FINALISTS).min(n_candidates)
}

/// Searches candidates `0..n_candidates` on prompts `0..n_prompts`, both at least 1.
///
/// # Errors
/// Those of the measurements.
pub fn search<T: Trial>(
    n_candidates: usize,
    n_prompts: usize,
    max_loss: f64,
    trial: &mut T,
) -> Result<Search, T::Error> {
    let sizes = rounds(n_candidates, n_prompts);
    let mut alive: Vec<usize> = (0..n_candidates).collect();
    let mut rounds: Vec<Round> = Vec::new();
    let mut seen = 0;
    for n in sizes {
        trial.measure(&alive, seen..n)?;
        seen = n;
        let standings: Vec<(usize, Standing)> = alive.iter().map(|&c| (c, trial.standing(c, n))).collect();
        let kept = match n == n_prompts {
            true => standings.iter().filter(|(_, s)| s.meets(max_loss)).map(|(c, _)| *c).collect(),
            false => survivors(&standings, n, max_loss),
        };
        let round = Round { n_prompts: n, standings, kept };
        trial.round_done(&round);
        alive.clone_from(&round.kept);
        rounds.push(round);
        if alive.is_empty() {
            break;
        }
    }
    let last: &[(usize, Standing)] = rounds.last().map_or(&[], |r| &r.standings);
    let faster = |a: &Standing, b: &Standing| b.speed_up.total_cmp(&a.speed_up);
    let best = last.iter().filter(|(c, _)| alive.contains(c)).min_by(|(_, a), (_, b)| faster(a, b));
    let nearest =
        last.iter().min_by(|(_, a), (_, b)| a.loss.value.total_cmp(&b.loss.value).then(faster(a, b))).map(|(c, _)| *c);
    Ok(Search { found: best.map(|(c, _)| *c), nearest: nearest.unwrap_or(0), rounds })
}

/// The half that goes on, of those that may still be within the bound.
fn survivors(standings: &[(usize, Standing)], n_prompts: usize, max_loss: f64) -> Vec<usize> {
    let within: Vec<&(usize, Standing)> = standings.iter().filter(|(_, s)| !s.is_out_of_reach(max_loss)).collect();
    let places = places(standings.len()).min(within.len());
    let price = price(standings, n_prompts);
    let predicted = |s: &Standing| price * s.departure;
    // The fastest of those that should stay within the bound, then the others, the nearest to it first.
    let mut promising = within.clone();
    promising.sort_by(|(_, a), (_, b)| match (predicted(a) <= max_loss, predicted(b) <= max_loss) {
        (true, true) => b.speed_up.total_cmp(&a.speed_up),
        (false, false) => predicted(a).total_cmp(&predicted(b)),
        (a, b) => b.cmp(&a),
    });
    let mut safe = within;
    safe.sort_by(|(_, a), (_, b)| a.kl.total_cmp(&b.kl));
    let mut kept: Vec<usize> = Vec::with_capacity(places);
    while kept.len() < places {
        let order = if kept.len() % ONE_SAFE_IN == ONE_SAFE_IN - 1 { &safe } else { &promising };
        let Some((next, _)) = order.iter().find(|(c, _)| !kept.contains(c)) else { break };
        kept.push(*next);
    }
    kept.sort_unstable();
    kept
}

/// Points of score that it costs to depart from dense at every token, over all candidates and prompts; as if one answer more had
/// departed from the first token on and lost everything, so that no loss seen does not mean that departing is free.
fn price(standings: &[(usize, Standing)], n_prompts: usize) -> f64 {
    let sum = |of: &dyn Fn(&Standing) -> f64| standings.iter().map(|(_, s)| of(s)).sum::<f64>() * n_prompts as f64;
    ((sum(&|s| s.loss.value) + 100.0) / (sum(&|s| s.departure) + 1.0)).max(0.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::eval::statistics::mean_of_means;
    use crate::random::SplitMix64;

    /// Candidates with a true loss (in points), departure and speed; what a prompt shows scatters around them.
    struct World {
        truth: Vec<(f64, f64, f64)>,
        seed: u64,
        /// Measurements made, as candidate and prompt.
        log: Vec<(usize, usize)>,
        rounds: usize,
        fail_at: Option<usize>,
    }

    impl World {
        fn new(truth: &[(f64, f64, f64)]) -> World {
            World { truth: truth.to_vec(), seed: 7, log: Vec::new(), rounds: 0, fail_at: None }
        }

        fn random(&self, candidate: usize, prompt: usize) -> f64 {
            let mut random = SplitMix64(self.seed ^ ((candidate as u64) << 32) ^ prompt as u64);
            random.next();
            random.uniform()
        }
    }

    impl Trial for World {
        type Error = &'static str;

        fn measure(&mut self, candidates: &[usize], prompts: Range<usize>) -> Result<(), &'static str> {
            for prompt in prompts {
                for &c in candidates {
                    if self.fail_at == Some(self.log.len()) {
                        return Err("stopped");
                    }
                    assert!(!self.log.contains(&(c, prompt)), "measured twice");
                    self.log.push((c, prompt));
                }
            }
            Ok(())
        }

        fn standing(&self, c: usize, n: usize) -> Standing {
            let (loss, departure, speed_up) = self.truth[c];
            // An answer is lost or not.
            let losses = (0..n).map(|p| if self.random(c, p) * 100.0 < loss { 100.0 } else { 0.0 }).collect();
            Standing { loss: mean_of_means(&[losses]), departure, kl: departure, speed_up }
        }

        fn round_done(&mut self, round: &Round) {
            self.rounds += 1;
            assert!(round.kept.iter().all(|k| round.standings.iter().any(|(c, _)| c == k)));
        }
    }

    /// The faster, the more is lost: 24 candidates with losses from 0 to 46 points.
    fn ladder() -> Vec<(f64, f64, f64)> {
        (0..24).map(|i| (2.0 * f64::from(i), 0.01 * f64::from(i), 1.1 + 0.1 * f64::from(i))).collect()
    }

    #[test]
    fn rounds_grow_to_all_prompts() {
        assert_eq!(rounds(24, 40), [5, 10, 20, 40]);
        assert_eq!((rounds(24, 10), rounds(24, 8), rounds(24, 4)), (vec![4, 5, 10], vec![4, 8], vec![4]));
        assert_eq!((rounds(3, 40), rounds(1, 1), rounds(24, 1)), (vec![40], vec![1], vec![1]));
        assert_eq!(rounds(4, 9), [5, 9]);
    }

    #[test]
    fn the_fastest_within_the_bound_is_found_cheaply() {
        let mut world = World::new(&ladder());
        let search = search(24, 80, 10.0, &mut world).unwrap();
        // Candidate 5 loses 10 points; what 80 prompts show scatters by three.
        let found = search.found.expect("candidate 0 loses nothing");
        assert!((3..=8).contains(&found), "{found}");
        assert!(world.standing(found, 80).loss.value <= 10.0);
        // A third of what it takes to measure all, 80 answers of dense included.
        assert_eq!(most_answers(24, 80), 24 * 10 + 12 * 10 + 6 * 20 + 3 * 40 + 80);
        assert!(world.log.len() + 80 <= most_answers(24, 80), "{} measurements", world.log.len());
        let alive: Vec<usize> = search.rounds.iter().map(|r| r.standings.len()).collect();
        assert_eq!((alive[0], search.rounds.last().unwrap().n_prompts, world.rounds), (24, 80, alive.len()));
        assert!(alive.windows(2).all(|w| w[1] <= w[0].div_ceil(2)), "{alive:?}");
    }

    #[test]
    fn one_that_is_as_good_as_dense_survives_cheap_measures_that_promise_too_much() {
        // Nobody's few first answers are lost, all depart alike, and the faster ones lose everything later on.
        struct Late(World);
        impl Trial for Late {
            type Error = &'static str;
            fn measure(&mut self, candidates: &[usize], prompts: Range<usize>) -> Result<(), &'static str> {
                self.0.measure(candidates, prompts)
            }
            fn standing(&self, c: usize, n: usize) -> Standing {
                let late = if c > 0 && n >= 32 { 100.0 } else { 0.0 };
                let loss = Estimate { value: late, interval: Some([late, late]) };
                Standing { loss, departure: 1e-6, kl: c as f64, speed_up: 1.1 + c as f64 }
            }
        }
        let search = search(24, 32, 1.0, &mut Late(World::new(&ladder()))).unwrap();
        assert_eq!(search.found, Some(0));
    }

    #[test]
    fn a_bound_that_nothing_meets_names_the_nearest() {
        // All lose everything: one prompt tells nothing for certain, but the second does.
        let mut world = World::new(&[(100.0, 0.5, 2.0); 8]);
        let all = search(8, 64, 1.0, &mut world).unwrap();
        assert_eq!((all.found, all.rounds.len()), (None, 1));
        // One loses less than the others.
        let mut truth = [(100.0, 0.5, 2.0); 3];
        truth[1].0 = 50.0;
        let some = search(3, 64, 1.0, &mut World::new(&truth)).unwrap();
        assert_eq!((some.found, some.nearest), (None, 1));
        // None loses, but none is faster either.
        let slow = search(2, 8, 1.0, &mut World::new(&[(0.0, 0.0, 0.9), (0.0, 0.0, 1.0)])).unwrap();
        assert_eq!((slow.found, slow.nearest), (None, 1));
    }

    #[test]
    fn slow_ones_take_no_place() {
        // As good as dense, and slower: of no use, however near.
        let mut truth = ladder();
        truth.iter_mut().take(12).for_each(|t| *t = (0.0, 0.0, 0.8));
        let search = search(24, 64, 100.0, &mut World::new(&truth)).unwrap();
        assert!(search.rounds[0].kept.iter().all(|&c| c >= 12), "{:?}", search.rounds[0].kept);
        assert!(search.found.is_some());
    }

    #[test]
    fn a_failure_ends_the_search() {
        let mut world = World { fail_at: Some(30), ..World::new(&ladder()) };
        assert_eq!(search(24, 40, 1.0, &mut world), Err("stopped"));
        assert_eq!(world.log.len(), 30);
    }

    proptest! {
        #[test]
        fn every_search_ends(
            truth in prop::collection::vec((0.0f64..100.0, 0.0f64..1.0, 0.5f64..4.0), 1..40),
            n_prompts in 1usize..50,
            max_loss in 0.0f64..100.0,
            seed: u64,
        ) {
            let mut world = World { seed, ..World::new(&truth) };
            let search = search(truth.len(), n_prompts, max_loss, &mut world).unwrap();
            prop_assert!(search.nearest < truth.len());
            if let Some(found) = search.found {
                prop_assert!(world.standing(found, n_prompts).meets(max_loss));
                prop_assert_eq!(search.rounds.last().unwrap().n_prompts, n_prompts);
            }
            for pair in search.rounds.windows(2) {
                prop_assert!(pair[0].n_prompts < pair[1].n_prompts);
                prop_assert_eq!(pair[1].standings.len(), pair[0].kept.len());
            }
        }
    }
}
