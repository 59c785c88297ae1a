//! What must hold of sampling.

use proptest::prelude::*;

use super::*;

/// Everything off but the draw at temperature 1.
const PLAIN: SamplerParams =
    SamplerParams { temp: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, repeat_penalty: 1.0, repeat_last_n: 64, seed: 7 };

fn logits(p: &[f64]) -> Vec<f32> {
    p.iter().map(|p| p.ln() as f32).collect()
}

/// Every token that 2000 draws give.
fn support(params: SamplerParams, logits: &[f32]) -> Vec<u32> {
    let mut s = Sampler::new(params).unwrap();
    let mut ids: Vec<u32> = (0..2000).map(|_| s.sample(logits).unwrap()).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

#[test]
fn greedy_takes_the_lowest_of_equals() {
    let mut s = Sampler::new(SamplerParams::greedy()).unwrap();
    assert_eq!(s.sample(&[1.0, 3.0, 3.0, f32::NEG_INFINITY]), Ok(1));
    assert_eq!(s.sample(&[-5.0]), Ok(0));
    assert_eq!(support(SamplerParams { top_k: 1, ..PLAIN }, &[0.0, 2.0, 2.0]), [1]);
}

#[test]
fn forbidden_tokens_are_never_drawn() {
    let l = logits(&[0.05, 0.5, 0.15, 0.3]);
    for params in [PLAIN, SamplerParams { top_k: 2, ..PLAIN }, SamplerParams::greedy()] {
        let mut s = Sampler::new(params).unwrap();
        // An id outside the vocabulary changes nothing.
        assert!((0..500).all(|_| matches!(s.sample_without(&l, &[1, 3, 99]), Ok(0 | 2))), "{params:?}");
        assert_eq!(s.sample_without(&l, &[0, 1, 2, 3]), Err(SamplerError::NothingPossible(4)));
    }
    let mut s = Sampler::new(SamplerParams { repeat_penalty: 1.5, ..SamplerParams::greedy() }).unwrap();
    s.accept(1);
    assert_eq!(s.sample_without(&[1.0, 9.0, 2.0], &[1]), Ok(2));
    assert_eq!(s.sample(&[1.0, 9.0, 2.0]), Ok(1));
}

#[test]
fn draws_follow_the_probabilities() {
    let p = [0.5, 0.3, 0.15, 0.05];
    let mut s = Sampler::new(PLAIN).unwrap();
    let mut counts = [0usize; 4];
    for _ in 0..100_000 {
        counts[s.sample(&logits(&p)).unwrap() as usize] += 1;
    }
    for (count, p) in counts.into_iter().zip(p) {
        assert!((count as f64 / 100_000. - p).abs() < 0.01, "{counts:?}");
    }
}

#[test]
fn filters_keep_what_they_should() {
    let l = logits(&[0.05, 0.5, 0.15, 0.3]);
    assert_eq!(support(SamplerParams { top_k: 2, ..PLAIN }, &l), [1, 3]);
    assert_eq!(support(SamplerParams { top_p: 0.79, ..PLAIN }, &l), [1, 3]);
    assert_eq!(support(SamplerParams { top_p: 0.81, ..PLAIN }, &l), [1, 2, 3]);
    assert_eq!(support(SamplerParams { top_p: 0.0, ..PLAIN }, &l), [1]);
    assert_eq!(support(SamplerParams { min_p: 0.29, ..PLAIN }, &l), [1, 2, 3]);
    assert_eq!(support(SamplerParams { min_p: 1.0, ..PLAIN }, &l), [1]);
    // Top-p renormalises over top-k: 0.5 of 0.8 reaches 0.6.
    assert_eq!(support(SamplerParams { top_k: 2, top_p: 0.6, ..PLAIN }, &l), [1]);
    // Top-p and min-p look at the probabilities before the temperature.
    assert_eq!(support(SamplerParams { top_p: 0.79, min_p: 0.29, temp: 5.0, ..PLAIN }, &l), [1, 3]);
}

#[test]
fn top_p_agrees_with_a_full_sort_on_large_vocabularies() {
    // Nearly flat, so that the first parts are not enough.
    let l: Vec<f32> = (0..20_000u32).map(|i| (i.wrapping_mul(2_654_435_761) % 20_000) as f32 * 1e-5).collect();
    let mut kept: Vec<Candidate> = l.iter().enumerate().map(|(i, &logit)| Candidate { id: i as u32, logit }).collect();
    let mut whole = kept.clone();
    keep_top_p(&mut kept, &mut Vec::new(), 0.7, false);
    whole.sort_unstable_by(best_first);
    keep_top_p(&mut whole, &mut Vec::new(), 0.7, true);
    assert!(whole.len() > 10_000);
    assert_eq!(kept, whole);
}

#[test]
fn penalties_act_on_the_recent_history_alone() {
    let params = SamplerParams { repeat_penalty: 2.0, repeat_last_n: 2, ..SamplerParams::greedy() };
    let mut s = Sampler::new(params).unwrap();
    let l = [3.0, 2.0, -1.0];
    assert_eq!(s.sample(&l), Ok(0));
    s.accept(0);
    assert_eq!(s.sample(&l), Ok(1));
    s.accept(9);
    s.accept(9);
    // Token 0 has left the history; token 9 is outside the vocabulary and does no harm.
    assert_eq!(s.sample(&l), Ok(0));
    // A negative logit becomes more negative.
    s.accept(1);
    assert_eq!(s.sample(&[f32::NEG_INFINITY, -1.0, -1.5]), Ok(2));
    let mut all = Sampler::new(SamplerParams { repeat_last_n: -1, ..params }).unwrap();
    all.accept(0);
    (0..100).for_each(|_| all.accept(2));
    assert_eq!(all.sample(&l), Ok(1));
    all.reset();
    assert_eq!(all.sample(&l), Ok(0));
}

#[test]
fn the_seed_decides() {
    let l = vec![0.0; 1000];
    let run = |seed| {
        let mut s = Sampler::new(SamplerParams { seed, ..PLAIN }).unwrap();
        (0..20).map(|_| s.sample(&l).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn bad_input_is_an_error() {
    let mut s = Sampler::new(PLAIN).unwrap();
    assert_eq!(s.sample(&[]), Err(SamplerError::Empty));
    assert!(matches!(s.sample(&[0.0, f32::NAN]), Err(SamplerError::NotFinite { id: 1, .. })));
    assert!(matches!(s.sample(&[f32::INFINITY]), Err(SamplerError::NotFinite { id: 0, .. })));
    assert_eq!(s.sample(&[f32::NEG_INFINITY; 2]), Err(SamplerError::NothingPossible(2)));
    for params in [
        SamplerParams { temp: -1.0, ..PLAIN },
        SamplerParams { temp: f32::NAN, ..PLAIN },
        SamplerParams { top_p: 1.1, ..PLAIN },
        SamplerParams { min_p: -0.1, ..PLAIN },
        SamplerParams { repeat_penalty: 0.0, ..PLAIN },
        SamplerParams { repeat_last_n: -2, ..PLAIN },
    ] {
        assert!(matches!(Sampler::new(params), Err(SamplerError::Parameter { .. })));
    }
}

#[test]
fn log_probabilities_are_those_of_the_whole_vocabulary() {
    let top = log_softmax_top(&logits(&[0.05, 0.5, 0.15, 0.3]), 2);
    assert_eq!((top[0].0, top[1].0), (1, 3));
    assert!((top[0].1 - 0.5f32.ln()).abs() < 1e-6 && (top[1].1 - 0.3f32.ln()).abs() < 1e-6);
    assert_eq!(log_softmax_top(&[1000.0, 1000.0], 9), [(0, -std::f32::consts::LN_2), (1, -std::f32::consts::LN_2)]);
    assert_eq!(log_softmax_top(&[1.0], 0), []);
    assert_eq!(log_softmax_top(&[], 3), []);
    assert!(log_softmax_top(&[f32::NAN, 1.0], 2)[0].1.is_nan());
}

/// Not a benchmark: a bound far above what a release build needs (about 0.1 ms), to catch a full sort.
#[test]
fn large_vocabularies_are_quick() {
    let l: Vec<f32> = (0..151_936u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / 1e6).collect();
    let mut s = Sampler::new(SamplerParams::default()).unwrap();
    s.sample(&l).unwrap();
    let start = std::time::Instant::now();
    for _ in 0..20 {
        s.sample(&l).unwrap();
    }
    let ms = start.elapsed().as_secs_f64() * 1000. / 20.;
    println!("{ms:.3} ms per sample");
    assert!(ms < 20., "{ms} ms");
}

proptest! {
    #[test]
    fn top_candidates_are_those_of_a_full_sort(l in proptest::collection::vec(-8i8..8, 0..3000), k in 0usize..60) {
        let l: Vec<f32> = l.into_iter().map(f32::from).collect();
        let mut all: Vec<Candidate> = l.iter().enumerate().map(|(i, &logit)| Candidate { id: i as u32, logit }).collect();
        all.sort_by(best_first);
        all.truncate(k);
        let mut top = Vec::new();
        top_candidates(&l, k, &mut top);
        prop_assert_eq!(top, all);
    }

    #[test]
    fn any_parameters_give_a_possible_token(
        l in proptest::collection::vec(prop_oneof![9 => -1e4f32..1e4, 1 => Just(f32::NEG_INFINITY)], 1..300),
        temp in prop_oneof![Just(0.0f32), Just(f32::MIN_POSITIVE), 0.0f32..3.0, Just(f32::MAX)],
        top_k in 0usize..400, top_p in 0.0f32..=1.0, min_p in 0.0f32..=1.0, repeat_penalty in prop_oneof![0.1f32..3.0, Just(f32::MAX)], seed: u64,
    ) {
        let params = SamplerParams { temp, top_k, top_p, min_p, repeat_penalty, repeat_last_n: 8, seed };
        let mut s = Sampler::new(params).unwrap();
        let possible = l.iter().any(|x| x.is_finite());
        for _ in 0..20 {
            match s.sample(&l) {
                Ok(id) => {
                    prop_assert!(l[id as usize].is_finite());
                    s.accept(id);
                }
                Err(e) => prop_assert!(!possible, "{}", e),
            }
        }
    }
}
