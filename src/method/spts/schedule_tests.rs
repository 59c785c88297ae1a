//! What must hold of every resolved schedule.

use proptest::prelude::*;

use super::*;
use crate::model::shape::{LayerKind, Shape};

const NO_SWA: &dyn Fn(usize) -> LayerKind = &|_| LayerKind::Full;
const K: usize = 1024;

fn windowed(is_swa: bool) -> LayerKind {
    if is_swa { LayerKind::Windowed } else { LayerKind::Full }
}

fn llama() -> Schedule {
    Schedule::paper_for(&Shape::named("llama-3.1-8b").unwrap()).unwrap()
}

fn one_stage(budget: Budget, cut: Budget) -> Schedule {
    Schedule {
        name: "one".into(),
        skip_from: 1,
        stages: vec![Stage { last_layer: 2, budget, cut: Some(cut) }],
        ..llama()
    }
}

#[test]
fn llama_at_32k_is_the_papers_arithmetic() {
    let r = llama().resolve(32, 32 * K, NO_SWA, Reach::AboveFirstBudget).unwrap();
    assert_eq!(r.cache_kept(), (10. * 32. + 4. * 9. + 5. * 7. + 5. * 4. + 5. * 2. + 3.) / 1024.);
    assert_eq!(format!("{:.1}", 100. * r.cache_kept()), "41.4");
    assert_eq!(r.layers[9], LayerBudget::dense(32 * K));
    let l = |candidates, active, prune_to| LayerBudget {
        candidates,
        active_attn: active,
        active_ffn: active,
        probe: true,
        proxy: true,
        prune_to,
    };
    assert_eq!(r.layers[10], l(32 * K, 9 * K, None));
    assert_eq!(r.layers[13], l(32 * K, 9 * K, Some(8 * K)));
    assert_eq!(r.layers[14], l(8 * K, 7 * K, None));
    assert_eq!(r.layers[28], l(3 * K, 2 * K, Some(K)));
    assert_eq!(r.layers[29], LayerBudget::dense(K));
    assert!(!r.is_dense());
}

#[test]
fn the_first_budget_is_a_cliff() {
    assert!(llama().resolve(32, 9 * K, NO_SWA, Reach::AboveFirstBudget).unwrap().is_dense());
    let above = llama().resolve(32, 9 * K + 1, NO_SWA, Reach::AboveFirstBudget).unwrap();
    assert!(!above.is_dense());
    assert!((0.6..0.7).contains(&above.cache_kept()));
    // The paper's own 8K figure needs the stages although its first budget is 9K.
    let forced = llama().resolve(32, 8 * K, NO_SWA, Reach::EveryLayer).unwrap();
    assert_eq!(format!("{:.0}", 100. * forced.cache_kept()), "70");
    assert!(llama().resolve(32, 8 * K, NO_SWA, Reach::AboveFirstBudget).unwrap().is_dense());
}

#[test]
fn a_stage_without_a_cut_prunes_nothing() {
    let mut s = llama();
    (s.stages[0].cut, s.stages[2].cut) = (None, None);
    let r = s.resolve(32, 32 * K, NO_SWA, Reach::AboveFirstBudget).unwrap();
    assert_eq!((r.layers[13].candidates, r.layers[13].active_attn, r.layers[13].prune_to), (32 * K, 9 * K, None));
    assert_eq!((r.layers[14].candidates, r.layers[18].prune_to), (32 * K, Some(6 * K)));
    assert_eq!((r.layers[23].prune_to, r.layers[24].candidates, r.layers[28].prune_to), (None, 6 * K, Some(K)));
    s.stages.iter_mut().for_each(|s| s.cut = None);
    assert_eq!(
        s.resolve(32, 32 * K, NO_SWA, Reach::AboveFirstBudget),
        Schedule { prune: false, ..llama() }.resolve(32, 32 * K, NO_SWA, Reach::AboveFirstBudget)
    );
}

#[test]
fn forced_with_the_whole_prompt_as_budget_probes_and_skips_nothing() {
    let r = one_stage(Budget::Tokens(100), Budget::Tokens(0)).resolve(4, 100, NO_SWA, Reach::EveryLayer).unwrap();
    for (i, l) in r.layers.iter().enumerate() {
        assert_eq!(*l, LayerBudget { probe: i == 1 || i == 2, proxy: i == 1 || i == 2, ..LayerBudget::dense(100) });
    }
    assert!(!r.is_dense());
}

#[test]
fn switches_are_ablations() {
    let at = |s: &Schedule| s.resolve(32, 32 * K, NO_SWA, Reach::AboveFirstBudget).unwrap().layers[13];
    let whole = 32 * K;
    assert_eq!(at(&Schedule { skip_attn: false, ..llama() }).active_attn, whole);
    assert_eq!(at(&Schedule { skip_ffn: false, ..llama() }).active_ffn, whole);
    let unpruned = Schedule { prune: false, ..llama() }.resolve(32, whole, NO_SWA, Reach::AboveFirstBudget).unwrap();
    assert!(unpruned.layers.iter().all(|l| l.candidates == whole && l.prune_to.is_none()));
    assert_eq!(unpruned.layers[31], LayerBudget::dense(whole));
    let pruning = Schedule { skip_attn: false, skip_ffn: false, ..llama() };
    let r = pruning.resolve(32, whole, NO_SWA, Reach::AboveFirstBudget).unwrap();
    let probing: Vec<usize> = (0..32).filter(|&l| r.layers[l].probe).collect();
    assert_eq!(probing, [13, 18, 23, 28]);
    assert!(
        Schedule { prune: false, ..pruning }.resolve(32, whole, NO_SWA, Reach::AboveFirstBudget).unwrap().is_dense()
    );
}

/// Layers that select nothing themselves score for those that do, from the first that skips on.
#[test]
fn carried_scores_are_made_in_every_layer_up_to_the_last_that_selects() {
    let pruning = Schedule { skip_attn: false, skip_ffn: false, ..llama() };
    let probing = |s: &Schedule, kind: &dyn Fn(usize) -> LayerKind| {
        let r = s.resolve(32, 32 * K, kind, Reach::AboveFirstBudget).unwrap();
        (0..32).filter(|&l| r.layers[l].probe).collect::<Vec<usize>>()
    };
    let carrying = Schedule { probe: Probe { carry: 0.7, ..Probe::PAPER }, ..pruning.clone() };
    assert_eq!(probing(&carrying, NO_SWA), (10..=28).collect::<Vec<_>>());
    assert_eq!(probing(&carrying, &|l| windowed(l % 3 != 0)), [12, 15, 18, 21, 24, 27]);
    let by_chance = Schedule { selection: Selection::Random { seed: 1 }, ..carrying.clone() };
    assert_eq!(probing(&by_chance, NO_SWA), [13, 18, 23, 28]);
    assert_eq!(probing(&Schedule { prune: false, ..carrying }, NO_SWA), [0; 0]);
}

#[test]
fn sliding_window_layers_are_only_pruned() {
    // Stages 10-13, 14-18, 19-23, 24-28. Full attention in 12, 15, 16 alone.
    let r = llama().resolve(32, 32 * K, &|l| windowed(![12, 15, 16].contains(&l)), Reach::AboveFirstBudget).unwrap();
    assert_eq!((r.layers[12].prune_to, r.layers[12].active_attn), (Some(8 * K), 9 * K));
    assert_eq!(r.layers[13], LayerBudget::dense(8 * K));
    assert_eq!((r.layers[15].prune_to, r.layers[15].active_ffn), (None, 7 * K));
    assert_eq!(r.layers[16].prune_to, Some(6 * K));
    assert!(r.layers[17..].iter().all(|l| *l == LayerBudget::dense(6 * K)));
    assert!(llama().resolve(32, 32 * K, &|_| LayerKind::Windowed, Reach::AboveFirstBudget).unwrap().is_dense());
}

#[test]
fn fractions_round_down_to_at_least_one() {
    assert_eq!(Budget::Fraction(0.28).resolve(32768), 9175);
    assert_eq!(Budget::Fraction(0.01).resolve(5), 1);
    assert_eq!(Budget::Fraction(0.0).resolve(5), 0);
    assert_eq!(Budget::Fraction(1.0).resolve(5), 5);
}

#[test]
fn probing_tokens_are_never_dropped() {
    let s = Schedule { probe: Probe::SHORT_SPANS, ..one_stage(Budget::Fraction(0.1), Budget::Fraction(0.05)) };
    let r = s.resolve(4, 100, NO_SWA, Reach::AboveFirstBudget).unwrap();
    assert_eq!((r.layers[1].active_attn, r.layers[2].prune_to, r.queries), (32, Some(32), 32));
    assert!(s.resolve(4, 32, NO_SWA, Reach::AboveFirstBudget).unwrap().is_dense());
    assert_eq!(s.resolve(4, 7, NO_SWA, Reach::AboveFirstBudget).unwrap().queries, 7);
}

#[test]
fn first_and_recent_tokens_are_never_dropped() {
    let s = Schedule { sinks: 4, recent: 40, ..one_stage(Budget::Fraction(0.1), Budget::Fraction(0.05)) };
    let r = s.resolve(4, 100, NO_SWA, Reach::AboveFirstBudget).unwrap();
    assert_eq!((r.layers[1].active_attn, r.layers[2].prune_to, r.queries), (44, Some(44), 1));
    assert_eq!(r.held, Held { first: 4, last: 40 });
    assert!(s.resolve(4, 44, NO_SWA, Reach::AboveFirstBudget).unwrap().is_dense());
    assert_eq!(s.resolve(4, 42, NO_SWA, Reach::EveryLayer).unwrap().held, Held { first: 2, last: 40 });
    let many = Schedule { sinks: usize::MAX, ..s };
    assert!(matches!(many.validate(), Err(ScheduleError::TooMany { what: "sinks", .. })));
}

#[test]
fn the_question_probes_where_it_is_known() {
    let by_question = Schedule { probe: Probe { by_question: true, ..Probe::SPANS }, ..llama() };
    let queries = |s: &Schedule, start| {
        s.for_question(20_000, start).resolve(32, 20_000, NO_SWA, Reach::AboveFirstBudget).unwrap().queries
    };
    assert_eq!(queries(&by_question, Some(19_950)), 50);
    assert_eq!(queries(&by_question, Some(15_000)), Probe::MOST_OF_A_QUESTION);
    assert_eq!((queries(&by_question, Some(20_000)), queries(&by_question, None)), (1, 32));
    assert_eq!(queries(&llama(), Some(19_950)), 1);
}

#[test]
fn keep_scales_budgets_and_stays_valid() {
    let half = llama().scaled(0.5).unwrap();
    assert_eq!(half.stages[0].budget, Budget::Tokens(4608));
    assert_eq!(half.stages[0].cut, Some(Budget::Tokens(512)));
    for keep in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(matches!(llama().scaled(keep), Err(ScheduleError::Keep(_))));
    }
}

#[test]
fn mistakes_have_their_own_errors() {
    use Budget::{Fraction as F, Tokens as T};
    let stage = |last_layer, budget, cut| Stage { last_layer, budget, cut: Some(cut) };
    let check = |edit: &dyn Fn(&mut Schedule)| {
        let mut s = llama();
        edit(&mut s);
        s.resolve(32, 32 * K, NO_SWA, Reach::AboveFirstBudget).unwrap_err()
    };
    assert!(matches!(check(&|s| s.stages.clear()), ScheduleError::NoStages(_)));
    assert!(matches!(check(&|s| s.skip_from = 14), ScheduleError::StageOrder { stage: 0, at_least: 14, .. }));
    assert!(matches!(check(&|s| s.stages[2].last_layer = 18), ScheduleError::StageOrder { stage: 2, .. }));
    assert!(matches!(check(&|s| s.stages[3].last_layer = 32), ScheduleError::LayerOutOfRange { layer: 32, .. }));
    assert!(matches!(check(&|s| s.stages[3].last_layer = usize::MAX), ScheduleError::LayerOutOfRange { .. }));
    assert!(matches!(check(&|s| s.stages[1].budget = T(10_000)), ScheduleError::BudgetGrows { stage: 1, .. }));
    assert!(matches!(check(&|s| s.stages[3].cut = Some(T(2048))), ScheduleError::CutNotBelowBudget { stage: 3, .. }));
    assert!(matches!(check(&|s| s.stages[0].budget = F(1.01)), ScheduleError::BudgetRange { .. }));
    assert!(matches!(check(&|s| s.stages[0].budget = F(f64::NAN)), ScheduleError::BudgetRange { .. }));
    assert!(matches!(check(&|s| s.stages[0].budget = T(0)), ScheduleError::BudgetRange { .. }));
    assert!(matches!(check(&|s| s.stages[0].cut = Some(F(-0.1))), ScheduleError::CutRange { .. }));
    assert!(matches!(check(&|s| s.stages[0] = stage(13, F(0.5), T(5))), ScheduleError::MixedBudgets { stage: 0, .. }));
    assert!(matches!(
        check(&|s| s.stages[0] = stage(13, F(0.5), F(0.1))),
        ScheduleError::MixedBudgets { stage: 1, .. }
    ));
    assert!(matches!(check(&|s| s.probe.queries = 0), ScheduleError::NoQueries(_)));
    assert!(matches!(check(&|s| s.probe.pool = Pool::Max(4)), ScheduleError::PoolWidth { width: 4, .. }));
    assert!(matches!(check(&|s| s.probe.pool = Pool::Chunks(0)), ScheduleError::ChunkWidth { width: 0, .. }));
    assert!(matches!(check(&|s| s.probe.pool = Pool::Avg(0)), ScheduleError::PoolWidth { width: 0, .. }));
    for carry in [-0.1, 1.1, f32::NAN] {
        assert!(matches!(check(&|s| s.probe.carry = carry), ScheduleError::Carry { .. }));
    }
    for ramp in [0.9, -1.0, f64::NAN, f64::INFINITY] {
        assert!(matches!(check(&|s| s.ramp = ramp), ScheduleError::Ramp { .. }));
    }
    let mut fractions = one_stage(F(0.5), F(0.1));
    fractions.ramp = 1.5;
    assert!(matches!(fractions.validate(), Err(ScheduleError::RampOfFractions { .. })));
    assert!(matches!(check(&|s| s.proxy.rank = 0), ScheduleError::Proxy { .. }));
    assert!(matches!(check(&|s| s.name = "a\nb".into()), ScheduleError::Name(_)));
    assert!(matches!(
        llama().resolve(28, 100, NO_SWA, Reach::AboveFirstBudget),
        Err(ScheduleError::LayerOutOfRange { layer: 28, .. })
    ));
    assert!(matches!(llama().resolve(32, 0, NO_SWA, Reach::AboveFirstBudget), Err(ScheduleError::EmptyPrompt(_))));
}

fn any_carry() -> impl Strategy<Value = f32> {
    prop_oneof![Just(0.0), Just(1.0), 0.0..1.0f32]
}

/// Valid schedules of both kinds for `n_layer` layers.
pub(crate) fn any_schedule(n_layer: usize) -> impl Strategy<Value = Schedule> {
    let ends = proptest::sample::subsequence((0..n_layer).collect::<Vec<_>>(), 2..=5.min(n_layer));
    let budgets = proptest::collection::vec((0.0001..1.0f64, 0.0..0.999f64, proptest::bool::weighted(0.8)), 5);
    let probe = (1usize..70, any::<bool>(), 0usize..4, 0usize..8, any_carry());
    let probe = probe.prop_map(|(queries, by_question, kind, half, carry)| Probe {
        queries,
        by_question,
        join: if half % 2 == 0 { Join::Mean } else { Join::Max },
        pool: [Pool::None, Pool::Avg(2 * half + 1), Pool::Max(2 * half + 1), Pool::Chunks(half + 1)][kind],
        carry,
    });
    let switches = (any::<[bool; 4]>(), any::<bool>(), proptest::option::of(any::<u64>()));
    let ramp = prop_oneof![Just(1.0), 1.0..4.0f64];
    let held = prop_oneof![Just((0, 0)), (0usize..20, 0usize..100)];
    (ends, budgets, probe, held, ramp, switches).prop_map(
        |(ends, mut budgets, probe, (sinks, recent), ramp, ([skip_attn, skip_ffn, use_proxy, prune], tokens, seed))| {
            budgets.sort_by(|a, b| b.0.total_cmp(&a.0));
            let stages = ends[1..].iter().zip(budgets).map(|(&last_layer, (b, c, prunes))| {
                let (b_tokens, c_share) = ((b * 5000.) as usize + 1, b * c);
                let (budget, cut) = match tokens {
                    true => (Budget::Tokens(b_tokens), Budget::Tokens((b_tokens as f64 * c) as usize)),
                    false => (Budget::Fraction(b), Budget::Fraction(c_share)),
                };
                Stage { last_layer, budget, cut: prunes.then_some(cut) }
            });
            Schedule {
                name: "any schedule".into(),
                skip_from: ends[0],
                stages: stages.collect(),
                ramp: if tokens { ramp } else { 1.0 },
                probe,
                sinks,
                recent,
                proxy: ProxySize { d_low: 64, rank: 32 },
                skip_attn,
                skip_ffn,
                use_proxy,
                prune,
                selection: seed.map_or(Selection::Probe, |seed| Selection::Random { seed }),
            }
        },
    )
}

#[test]
fn recurrent_layers_take_what_the_last_layer_with_attention_says() {
    // Stages 10-13, 14-18, 19-23, 24-28. Full attention in every fourth layer: 3, 7, 11, 15 and so on.
    let kind = |l: usize| if l % 4 == 3 { LayerKind::Full } else { LayerKind::Recurrent };
    let r = llama().resolve(32, 32 * K, &kind, Reach::AboveFirstBudget).unwrap();
    // Nothing has scored yet.
    assert_eq!(r.layers[10], LayerBudget::dense(32 * K));
    assert_eq!(r.dense_layers(), 11);
    assert_eq!((r.layers[11].active_attn, r.layers[11].prune_to), (9 * K, Some(8 * K)));
    // Pruned to fewer than the stage's budget.
    assert_eq!(r.layers[12], LayerBudget::dense(8 * K));
    // All of them in the recurrence, the best of them in the FFN.
    let l = r.layers[14];
    assert_eq!((l.candidates, l.active_attn, l.active_ffn, l.probe, l.proxy), (8 * K, 8 * K, 7 * K, false, true));
    assert_eq!(r.layers[16], LayerBudget::dense(6 * K));
    assert_eq!((r.layers[19].prune_to, r.layers[27].prune_to), (None, Some(K)));
    let without = Schedule { use_proxy: false, skip_attn: false, prune: false, ..llama() };
    let r = without.resolve(32, 32 * K, &kind, Reach::AboveFirstBudget).unwrap();
    assert_eq!((r.layers[11].active_attn, r.layers[11].probe, r.layers[12].active_ffn), (32 * K, true, 9 * K));
    assert!(r.layers.iter().all(|l| !l.proxy));
    // A stage of recurrent layers alone, behind one that scores for them.
    let stage = |last_layer, budget| Stage { last_layer, budget: Budget::Tokens(budget), cut: None };
    let two = Schedule { skip_from: 3, stages: vec![stage(3, 50), stage(5, 20)], ..llama() };
    let r = two.resolve(8, 100, &kind, Reach::AnyLength).unwrap();
    let active: Vec<usize> = r.layers.iter().map(|l| l.active_ffn).collect();
    assert_eq!(active, [100, 100, 100, 50, 20, 20, 100, 100]);
}

proptest! {
    /// The probing tokens are held, and as many others as were asked for where the prompt has them.
    #[test]
    fn held_tokens_do_not_overlap(s in any_schedule(12), n in 1usize..300) {
        let r = s.resolve(12, n, NO_SWA, Reach::AboveFirstBudget).unwrap();
        prop_assert!(r.queries <= r.held.last && r.held.count() <= n);
        prop_assert_eq!(r.held.last, s.recent.max(s.probe.queries).min(n));
        prop_assert!(r.held.first == s.sinks || r.held.count() == n);
    }

    #[test]
    fn counts_are_always_possible(s in any_schedule(12), n in 1usize..6000, kinds in any::<[u8; 12]>(), how in 0usize..3) {
        let kinds = kinds.map(|k| [LayerKind::Full, LayerKind::Windowed, LayerKind::Recurrent][k as usize % 3]);
        let reach = [Reach::AboveFirstBudget, Reach::AnyLength, Reach::EveryLayer][how];
        let r = s.resolve(12, n, &|l| kinds[l], reach).unwrap();
        prop_assert_eq!(r.layers.len(), 12);
        let mut candidates = n;
        let mut active_before = (n, n);
        for (i, l) in r.layers.iter().enumerate() {
            // Candidates only shrink, and by pruning alone.
            prop_assert_eq!(l.candidates, candidates);
            candidates = l.prune_to.unwrap_or(candidates);
            prop_assert!(candidates <= l.candidates && candidates >= r.held.count());
            prop_assert!(l.prune_to.is_none_or(|m| m < l.candidates && l.probe && s.prune));
            // Sets are possible and hold the probing tokens.
            let scored = match kinds[i] {
                LayerKind::Recurrent => r.layers[..i].iter().any(|before| before.probe),
                _ => l.probe,
            };
            for m in [l.active_attn, l.active_ffn] {
                prop_assert!(r.held.count() <= m && m <= l.candidates);
                prop_assert!(m == l.candidates || scored);
            }
            let computes_all = l.active_attn == l.candidates && l.prune_to.is_none() && !l.probe;
            prop_assert!(kinds[i] == LayerKind::Full || computes_all);
            prop_assert!(kinds[i] != LayerKind::Windowed || l.active_ffn == l.candidates);
            // Budgets never grow from one skipping layer to the next.
            if l.active_attn < l.candidates {
                prop_assert!(l.active_attn <= active_before.0);
                active_before.0 = l.active_attn;
            }
            if l.active_ffn < l.candidates {
                prop_assert!(l.active_ffn <= active_before.1);
                active_before.1 = l.active_ffn;
            }
        }
        prop_assert!(r.cache_kept() <= 1.0);
        if reach == Reach::AboveFirstBudget && n <= s.first_budget(n) {
            prop_assert!(r.is_dense());
        }
    }

    /// Just above the first budget nearly everything is kept; from there on the share of the cache falls, without a jump, to
    /// what the schedule keeps without a ramp.
    #[test]
    fn a_ramp_is_continuous_and_monotone(mut s in any_schedule(12), ramp in 1.05..4.0f64, at in 0.0..1.0f64) {
        prop_assume!(matches!(s.stages[0].budget, Budget::Tokens(_)));
        let step = Schedule { ramp: 1.0, ..s.clone() };
        s.ramp = ramp;
        let entries = |s: &Schedule, n: usize| {
            s.resolve(12, n, NO_SWA, Reach::AboveFirstBudget).unwrap().layers.iter().map(|l| l.active_attn as i64).sum::<i64>()
        };
        // A layer gains the token that the prompt gains, or loses what its budget does in one step.
        let bound = 12 * (2 + (1.0 / (ramp - 1.0)).ceil() as i64);
        let (first, full) = (s.first_budget(1), s.in_full_from());
        let middle = first + ((full - first) as f64 * at) as usize;
        for around in [first, middle, full] {
            for n in around.saturating_sub(3).max(1)..around + 4 {
                let (here, next) = (entries(&s, n), entries(&s, n + 1));
                prop_assert!((next - here).abs() <= bound, "{n}: {here}, {next}");
                prop_assert!(next * n as i64 <= here * (n + 1) as i64, "{n}: the share grows from {here} to {next}");
            }
        }
        for n in [1, first, full, full + 1, 3 * full] {
            prop_assert_eq!(s.resolve(12, n, NO_SWA, Reach::AboveFirstBudget), step.resolve(12, n, NO_SWA, Reach::AboveFirstBudget));
        }
    }

    #[test]
    fn scaling_keeps_schedules_valid(s in any_schedule(12), keep in 1e-6f64..50.0) {
        let scaled = s.scaled(keep).unwrap();
        prop_assert!(scaled.validate_for(12).is_ok(), "{:?}", scaled.validate_for(12));
        prop_assert_eq!(s.scaled(1.0).unwrap(), s);
    }
}
