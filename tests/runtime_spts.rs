//! The runtime's prefill with SPTS against the method's pseudo-code in the naive reference: the same tokens in every layer,
//! the same logits, the same caches, and decoding behind it.

mod reference;
mod runtime;
mod support;

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use reference::{Chosen, Follow, Layout, Output, SptsPlan};
use runtime::proxies::{Proxies, SidecarFile};
use runtime::{Pair, assert_close, logits, prefill};
use spts::method::spts::Spts;
use spts::method::spts::schedule::{Join, Pool, Probe, Reach, Schedule, Selection};
use spts::session::prefill::{PrefillOptions, PrefillReport};
use spts::session::select::random_scores;
use spts::session::sequence::CacheType;
use spts::{Error, Session, SessionOptions};
use support::tiny::{Arch, NAMES, Tiny};

/// One prefill to be compared.
#[derive(Clone, Debug)]
struct Run {
    layout: Layout,
    join: Join,
    pool: Pool,
    carry: f32,
    use_proxy: bool,
    selection: Selection,
    n_ubatch: usize,
    cache: CacheType,
}

/// Two stages, one probing query, no pooling, no proxies.
fn run(skip_from: usize, stages: &[(usize, usize, usize)]) -> Run {
    Run {
        layout: Layout {
            skip_from,
            stages: stages.to_vec(),
            ramp: 1.0,
            keeping: vec![],
            queries: 1,
            sinks: 0,
            recent: 0,
            skip_attn: true,
            skip_ffn: true,
            prune: true,
        },
        join: Join::Mean,
        pool: Pool::None,
        carry: 0.0,
        use_proxy: false,
        selection: Selection::Probe,
        n_ubatch: 512,
        cache: CacheType::F32,
    }
}

impl Run {
    fn queries(mut self, queries: usize) -> Run {
        self.layout.queries = queries;
        self
    }

    fn schedule(&self) -> Schedule {
        let probe = Probe {
            queries: self.layout.queries,
            by_question: false,
            join: self.join,
            pool: self.pool,
            carry: self.carry,
        };
        let mut stages = runtime::schedule(&self.layout.stages, probe).stages;
        self.layout.keeping.iter().for_each(|&number| stages[number].cut = None);
        Schedule {
            skip_from: self.layout.skip_from,
            stages,
            ramp: self.layout.ramp,
            sinks: self.layout.sinks,
            recent: self.layout.recent,
            skip_attn: self.layout.skip_attn,
            skip_ffn: self.layout.skip_ffn,
            use_proxy: self.use_proxy,
            prune: self.layout.prune,
            selection: self.selection,
            ..runtime::schedule(&self.layout.stages, probe)
        }
    }

    /// Session options that make the runtime do this.
    fn apply(&self, o: &mut SessionOptions, proxies: Option<&Proxies>) {
        o.method = self.schedule().into();
        o.n_ubatch = Some(self.n_ubatch);
        o.record_selection = true;
        o.sidecar = proxies.map(|p| p.sidecar.clone());
        (o.cache_type_k, o.cache_type_v) = (self.cache, self.cache);
    }

    /// The reference's plan for n tokens.
    fn plan(&self, pair: &Pair, n: usize, proxies: Option<&Proxies>) -> SptsPlan {
        let layers = self.layout.budgets(pair.tiny.n_layer, n, |l| pair.reference.layers[l].kind());
        let given = |seed| layers.iter().enumerate().map(|(l, b)| random_scores(seed, l, b.candidates)).collect();
        SptsPlan {
            probe_queries: self.layout.queries,
            sinks: self.layout.sinks,
            recent: self.layout.recent,
            best_query: self.join == Join::Max,
            pool: match self.pool {
                Pool::None => reference::Pool::None,
                Pool::Avg(w) => reference::Pool::Avg(w),
                Pool::Max(w) => reference::Pool::Max(w),
                Pool::Chunks(w) => reference::Pool::Chunks(w),
                other => panic!("the reference has no pool {other}"),
            },
            carry: self.carry,
            carry_from: self.layout.skip_from,
            proxies: proxies.filter(|_| self.use_proxy).map(|p| p.reference.clone()),
            given_scores: match self.selection {
                Selection::Probe => None,
                Selection::Random { seed } => Some(given(seed)),
                other => panic!("the reference has no selection {other:?}"),
            },
            ..SptsPlan::new(layers)
        }
    }

    /// Scores this close, relatively, are equal but for rounding: of F32 sums; of the F16 inputs of a proxy's products, or of
    /// ggml's GELU table, where a value near the middle of two f16 numbers falls on either side; of F16 keys.
    fn tie(&self, pair: &Pair) -> f32 {
        match (self.cache, self.use_proxy || pair.tiny.arch == Arch::Gemma3) {
            (CacheType::F32, false) => 2e-5,
            (CacheType::F32, true) => 2e-3,
            _ => 2e-2,
        }
    }

    fn tolerance(&self, pair: &Pair) -> f32 {
        match self.cache {
            CacheType::F32 => pair.tolerance(),
            CacheType::F16 => runtime::F16_CACHE,
            CacheType::Q8_0 => runtime::Q8_0_CACHE,
            other => panic!("no tolerance is known for a cache of {other:?}"),
        }
    }

    /// Runs both and compares everything a prefill leaves behind.
    fn compare(&self, pair: &Pair, tokens: &[u32], proxies: Option<&Proxies>) -> Compared {
        let mut session = pair.session(|o| self.apply(o, proxies));
        let report = prefill(&mut session, tokens).expect("a prefill");
        let what = format!("{}, {} tokens, {self:?}", pair.tiny.name, tokens.len());

        let chosen = chosen(&report);
        let mut plan = self.plan(pair, tokens.len(), proxies);
        plan.follow = Some(Follow { layers: chosen.clone(), tie: self.tie(pair) });
        let expected = pair.reference.forward(tokens, Some(&plan));
        let mut kept = 0;
        for (il, (got, want)) in chosen.iter().zip(&expected.layers).enumerate() {
            let want = Chosen {
                candidates: want.candidates.clone(),
                active_attn: want.active_attn.clone(),
                active_ffn: want.active_ffn.clone(),
            };
            assert_eq!(*got, want, "layer {il} of {what}");
            let (budget, wanted) = (report.layers[il], plan.layers[il]);
            assert_eq!(
                (budget.candidates, budget.active_attn, budget.active_ffn, budget.prune_to),
                (wanted.candidates, wanted.active_attn, wanted.active_ffn, wanted.prune_to),
                "budget of layer {il} of {what}"
            );
            if pair.reference.layers[il].delta.is_none() {
                kept += want.active_attn.len();
            }
        }
        assert_eq!(chosen.len(), pair.tiny.n_layer);
        let attending = pair.reference.layers.iter().filter(|l| l.delta.is_none()).count();
        assert_eq!(session.kv_lengths(), expected.kv_lengths(), "{what}");
        assert_eq!(session.n_past(), tokens.len());
        assert_eq!(report.cache_kept, kept as f64 / (tokens.len() * attending) as f64, "{what}");
        assert_close(session.logits(), &expected.logits, self.tolerance(pair), &what);
        Compared { session, expected }
    }

    /// As [`Run::compare`]; then a few tokens are decoded, and read in one call by another session.
    fn compare_with_decoding(&self, pair: &Pair, tokens: &[u32], proxies: Option<&Proxies>) {
        let what = format!("{}, {} tokens, {self:?}", pair.tiny.name, tokens.len());
        let next: Vec<u32> = pair.tiny.prompt(tokens.len() + 5)[tokens.len()..].to_vec();
        let Compared { mut session, mut expected } = self.compare(pair, tokens, proxies);
        // Each token reads what the ones before it wrote, rounding included.
        let decoding = 3.0 * self.tolerance(pair);
        let mut last = Vec::new();
        for (i, token) in next.iter().enumerate() {
            session.decode(*token).expect("decode");
            last = pair.reference.decode(&mut expected.state, *token);
            assert_close(session.logits(), &last, decoding, &format!("decoded token {i} behind {what}"));
        }
        assert_eq!(session.kv_lengths(), expected.kv_lengths(), "decoding behind {what}");

        let mut session = self.compare(pair, tokens, proxies).session;
        prefill(&mut session, &next).expect("a second prefill");
        assert_close(session.logits(), &last, decoding, &format!("second prefill behind {what}"));
        assert_eq!(session.kv_lengths(), expected.kv_lengths(), "second prefill behind {what}");
        session.decode(7).expect("decode");
        let then = pair.reference.decode(&mut expected.state, 7);
        assert_close(session.logits(), &then, decoding, &format!("decode behind both prefills, {what}"));
    }
}

struct Compared {
    session: Session,
    expected: Output,
}

fn chosen(report: &PrefillReport) -> Vec<Chosen> {
    let set = |s: &[i32]| s.iter().map(|p| *p as usize).collect();
    report
        .selection
        .iter()
        .enumerate()
        .map(|(i, s)| {
            assert_eq!(s.il, i);
            Chosen { candidates: set(&s.candidates), active_attn: set(&s.active_attn), active_ffn: set(&s.active_ffn) }
        })
        .collect()
}

/// Gemma 3 with two global layers, 5 and 11, so that stages lie between layers with windows.
fn two_globals() -> Tiny {
    Tiny { n_layer: 14, ..Tiny::named("gemma3") }
}

/// Stages that suit each of the tiny models.
fn stages(tiny: &Tiny) -> Run {
    match tiny.n_layer {
        14 => run(3, &[(7, 24, 4), (12, 14, 2)]),
        7 => run(2, &[(5, 22, 5)]),
        n => run(1, &[(n - 3, 24, 4), (n - 2, 14, 3)]),
    }
}

#[test]
fn one_probing_query_as_in_the_paper() {
    for name in NAMES {
        let pair = Pair::new(Tiny::named(name));
        stages(&pair.tiny).compare_with_decoding(&pair, &pair.tiny.prompt(40), None);
    }
    let pair = Pair::new(two_globals());
    stages(&pair.tiny).compare_with_decoding(&pair, &pair.tiny.prompt(40), None);
}

#[test]
fn windows_of_queries_and_pools() {
    for name in ["llama", "qwen2", "qwen3", "gemma3", "phi3", "gpt-oss"] {
        let pair = Pair::new(Tiny::named(name));
        let tokens = pair.tiny.prompt(61);
        for (queries, pool) in [
            (1, Pool::Max(5)),
            (4, Pool::None),
            (4, Pool::Avg(3)),
            (7, Pool::Max(13)),
            // As many queries as the smallest budget, more than it, and a pool wider than the prompt.
            (14, Pool::Avg(1)),
            (16, Pool::Max(3)),
            (2, Pool::Avg(125)),
            (1, Pool::Chunks(1)),
            (4, Pool::Chunks(6)),
            (9, Pool::Chunks(32)),
            (2, Pool::Chunks(200)),
            (2, Pool::Max(16_777_217)),
            (2, Pool::Avg(usize::MAX)),
        ] {
            let run = Run { pool, n_ubatch: 9, ..stages(&pair.tiny).queries(queries) };
            run.compare_with_decoding(&pair, &tokens, None);
        }
    }
}

/// Through prunes, layers with windows, and layers that score for later ones alone.
#[test]
fn scores_carried_from_layer_to_layer() {
    for tiny in NAMES.map(Tiny::named).into_iter().chain([two_globals()]) {
        let pair = Pair::new(tiny);
        let tokens = pair.tiny.prompt(61);
        for (queries, pool, carry) in [(1, Pool::None, 1.0), (4, Pool::Max(5), 0.7), (3, Pool::Avg(3), 0.25)] {
            let run = Run { pool, carry, n_ubatch: 13, ..stages(&pair.tiny).queries(queries) };
            run.compare_with_decoding(&pair, &tokens, None);
        }
        let mut pruning = Run { carry: 0.7, n_ubatch: 20, ..stages(&pair.tiny).queries(2) };
        (pruning.layout.skip_attn, pruning.layout.skip_ffn, pruning.layout.skip_from) = (false, false, 0);
        pruning.compare_with_decoding(&pair, &tokens, None);
    }
}

/// What is carried must decide something, or the test above would pass without it.
#[test]
fn carried_scores_change_the_choice() {
    let pair = Pair::new(Tiny::named("llama"));
    let tokens = pair.tiny.prompt(61);
    let with = Run { carry: 0.7, ..stages(&pair.tiny) }.compare(&pair, &tokens, None).expected;
    let without = stages(&pair.tiny).compare(&pair, &tokens, None).expected;
    // Nothing comes before the first layer that skips.
    assert_eq!(with.layers[1].active_attn, without.layers[1].active_attn);
    assert_ne!(with.layers[2].active_attn, without.layers[2].active_attn);
}

/// Early layers skip and prune nothing; what they skipped is active again before one prune takes most of it.
#[test]
fn early_skipping_and_late_pruning() {
    for tiny in NAMES.map(Tiny::named).into_iter().chain([two_globals()]) {
        let pair = Pair::new(tiny);
        let tokens = pair.tiny.prompt(61);
        let mut run = Run { pool: Pool::Max(5), carry: 0.7, n_ubatch: 13, ..stages(&pair.tiny).queries(3) };
        let n_stages = run.layout.stages.len();
        // The last stage leaves less than half of its budget.
        run.layout.stages[n_stages - 1].2 = 9;
        run.layout.keeping = (0..n_stages - 1).collect();
        run.compare_with_decoding(&pair, &tokens, None);
        run.layout.keeping = (0..n_stages).collect();
        run.compare_with_decoding(&pair, &tokens, None);
    }
}

/// From the first budget on to twice that length.
#[test]
fn budgets_along_a_ramp() {
    let pair = Pair::new(Tiny::named("llama"));
    let mut run = stages(&pair.tiny).queries(2);
    run.layout.ramp = 2.0;
    let tokens = pair.tiny.prompt(60);
    let kept = |n: usize| run.compare(&pair, &tokens[..n], None).session.kv_lengths().iter().sum::<usize>();
    // One token above the first budget no layer lacks more than two tokens; without a ramp the last one has 11.
    assert!(kept(25) >= pair.tiny.n_layer * 23);
    for n in [26, 30, 47, 48, 49, 60] {
        run.compare_with_decoding(&pair, &tokens[..n], None);
    }
}

#[test]
fn the_best_of_the_queries() {
    for name in ["llama", "qwen2", "gemma3"] {
        let pair = Pair::new(Tiny::named(name));
        let tokens = pair.tiny.prompt(61);
        for (queries, carry) in [(1, 0.0), (2, 0.0), (9, 0.7)] {
            let run = Run { join: Join::Max, pool: Pool::Max(3), carry, ..stages(&pair.tiny).queries(queries) };
            run.compare_with_decoding(&pair, &tokens, None);
        }
        let chosen = |join| {
            let run = Run { join, ..stages(&pair.tiny).queries(9) };
            run.compare(&pair, &tokens, None).expected.layers.iter().map(|l| l.active_attn.clone()).collect::<Vec<_>>()
        };
        assert_ne!(chosen(Join::Max), chosen(Join::Mean), "{name}");
    }
    // More queries than the attention mask has rows: they are scored in parts.
    let pair = Pair::new(Tiny::named("llama"));
    let run = Run { join: Join::Max, ..run(1, &[(2, 680, 10)]).queries(650) };
    run.compare(&pair, &pair.tiny.prompt(700), None);
}

#[test]
fn first_and_recent_tokens_stay() {
    for name in ["llama", "qwen2", "gemma3"] {
        let pair = Pair::new(Tiny::named(name));
        let tokens = pair.tiny.prompt(61);
        let proxies = SidecarFile::for_model(&pair, 12, 5).open();
        for (queries, sinks, recent) in [(1, 4, 0), (3, 0, 9), (2, 3, 6), (3, 1, 2)] {
            let mut run =
                Run { pool: Pool::Max(3), carry: 0.5, use_proxy: true, ..stages(&pair.tiny).queries(queries) };
            (run.layout.sinks, run.layout.recent) = (sinks, recent);
            run.compare_with_decoding(&pair, &tokens, Some(&proxies));
            let last = recent.max(queries);
            for s in run.compare(&pair, &tokens, Some(&proxies)).expected.layers {
                for set in [&s.active_attn, &s.active_ffn, &s.kept] {
                    let held = (0..sinks).chain(61 - last..61);
                    assert!(held.into_iter().all(|t| set.contains(&t)), "{name}: {sinks} and {last} in {set:?}");
                }
            }
        }
    }
}

/// A session that is told where the question begins computes what one with so many probing queries does; told nothing, what
/// the schedule's number says. Prompts of one length whose questions differ in length do not share a graph.
#[test]
fn the_question_probes() {
    for tiny in [Tiny::named("llama"), two_globals()] {
        let pair = Pair::new(tiny);
        let tokens = pair.tiny.prompt(61);
        let run = Run { pool: Pool::Max(5), ..stages(&pair.tiny).queries(3) };
        let mut session = pair.session(|o| {
            run.apply(o, None);
            let mut schedule = run.schedule();
            schedule.probe.by_question = true;
            o.method = schedule.into();
        });
        let mut read = |question_start| {
            session.clear();
            let options = PrefillOptions { question_start };
            session.prefill_with(&tokens, options, &mut |_| ControlFlow::Continue(())).map(|report| {
                let chosen = report.selection.iter().map(|s| s.active_attn.clone()).collect::<Vec<_>>();
                (session.logits().to_vec(), chosen)
            })
        };
        let mut seen = Vec::new();
        for question_start in [Some(52), Some(60), None, Some(49), Some(52)] {
            let queries = question_start.map_or(3, |start| 61 - start);
            let expected = run.clone().queries(queries).compare(&pair, &tokens, None).session;
            let (logits, chosen) = read(question_start).unwrap();
            assert_eq!(logits, expected.logits(), "{}, {question_start:?}", pair.tiny.name);
            seen.push(chosen);
        }
        assert_eq!(seen[0], seen[4]);
        assert!(seen[0] != seen[1] && seen[1] != seen[2] && seen[0] != seen[3]);
        let outside = Err(Error::QuestionOutside { question_start: 61, n_tokens: 61 }.to_string());
        assert_eq!(read(Some(61)).map_err(|e| e.to_string()), outside);
    }
}

#[test]
fn ffn_scores_by_proxies() {
    for tiny in NAMES.map(Tiny::named).into_iter().chain([two_globals()]) {
        let pair = Pair::new(tiny);
        let tokens = pair.tiny.prompt(50);
        for (d_low, rank) in [(12, 5), (7, 7), (pair.tiny.n_ff, 3)] {
            let proxies = SidecarFile::for_model(&pair, d_low, rank).open();
            let run = Run { use_proxy: true, n_ubatch: 17, ..stages(&pair.tiny).queries(3) };
            run.compare_with_decoding(&pair, &tokens, Some(&proxies));
            // A proxy that is there and not asked for.
            stages(&pair.tiny).compare(&pair, &tokens, Some(&proxies));
        }
    }
}

/// C must decide something, or the tests above would pass without it.
#[test]
fn proxies_change_the_choice() {
    let pair = Pair::new(Tiny::named("llama"));
    let tokens = pair.tiny.prompt(50);
    let proxies = SidecarFile::for_model(&pair, 12, 5).open();
    let with = Run { use_proxy: true, ..stages(&pair.tiny) }.compare(&pair, &tokens, Some(&proxies)).expected;
    let without = stages(&pair.tiny).compare(&pair, &tokens, None).expected;
    assert_eq!(with.layers[1].active_attn, without.layers[1].active_attn);
    assert_ne!(with.layers[1].active_ffn, without.layers[1].active_ffn);
}

/// Longer than a mask's height and the padding of the keys; stages end in the first and in the last layer.
#[test]
fn long_prompts_and_every_place_of_a_stage() {
    for tiny in [Tiny::named("llama"), Tiny::named("qwen35"), two_globals()] {
        let pair = Pair::new(tiny);
        let n_layer = pair.tiny.n_layer;
        let tokens = pair.tiny.prompt(700);
        let late = [(n_layer / 2, 600, 30), (n_layer - 1, 299, 40)];
        let early = [(0, 650, 3), (1, 520, 0), (n_layer - 2, 90, 9)];
        for (n_ubatch, stages) in [(512, &late[..]), (1024, &early[..]), (100, &early[..])] {
            let run = Run { n_ubatch, pool: Pool::Max(13), ..run(0, stages).queries(32) };
            run.compare_with_decoding(&pair, &tokens, None);
        }
    }
}

/// No layer keeps more than a part of what the first one's probe scores; more probing queries than a mask has rows, too.
#[test]
fn skipping_from_the_first_layer_on() {
    for n_layer in [1, 5] {
        let pair = Pair::new(Tiny { n_layer, ..Tiny::named("llama") });
        for (n, kept, queries) in
            [(40, 12, 1), (40, 12, 5), (300, 60, 8), (700, 70, 32), (1300, 200, 32), (1300, 1000, 900)]
        {
            let run = Run { pool: Pool::Max(3), ..run(0, &[(n_layer - 1, kept, 5)]).queries(queries) };
            run.compare_with_decoding(&pair, &pair.tiny.prompt(n), None);
        }
    }
}

#[test]
fn every_part_can_be_switched_off() {
    for tiny in [Tiny::named("qwen2"), Tiny::named("llama"), Tiny::named("qwen35"), two_globals()] {
        let pair = Pair::new(tiny);
        let tokens = pair.tiny.prompt(47);
        let proxies = SidecarFile::for_model(&pair, 10, 4).open();
        for switches in 0..8 {
            let on = |bit: usize| switches & (1 << bit) != 0;
            for use_proxy in [false, true] {
                let mut run = Run { use_proxy, n_ubatch: 20, ..stages(&pair.tiny).queries(2) };
                (run.layout.skip_attn, run.layout.skip_ffn, run.layout.prune) = (on(0), on(1), on(2));
                if switches == 0 {
                    // Nothing is left to do: the graph is the dense one.
                    let mut session = pair.session(|o| run.apply(o, Some(&proxies)));
                    let report = prefill(&mut session, &tokens).unwrap();
                    assert!(report.layers.is_empty());
                    assert_eq!(session.logits(), logits(pair.session(|o| o.n_ubatch = Some(20)), &tokens));
                } else {
                    run.compare_with_decoding(&pair, &tokens, Some(&proxies));
                }
            }
        }
    }
}

#[test]
fn random_selection_is_the_same_everywhere() {
    for tiny in [Tiny::named("phi3"), two_globals()] {
        let pair = Pair::new(tiny);
        let tokens = pair.tiny.prompt(52);
        let proxies = SidecarFile::for_model(&pair, 10, 4).open();
        for (seed, use_proxy) in [(0, false), (1, false), (u64::MAX, true)] {
            let selection = Selection::Random { seed };
            // Pooling belongs to the probe: chance is not pooled.
            let run = Run { selection, use_proxy, pool: Pool::Max(3), ..stages(&pair.tiny).queries(3) };
            run.compare_with_decoding(&pair, &tokens, Some(&proxies));
        }
    }
}

/// Keys and values in F16 or Q8_0: the reference follows the choice where scores are close, and the logits are near.
#[test]
fn smaller_caches_choose_nearly_the_same() {
    for (cache, name) in [(CacheType::F16, "llama"), (CacheType::F16, "qwen3"), (CacheType::Q8_0, "llama")] {
        let tiny = Tiny::named(name);
        let tiny = if cache == CacheType::Q8_0 { Tiny { head_dim: 32, n_rot: 32, ..tiny } } else { tiny };
        let pair = Pair::new(tiny);
        let run = Run { cache, n_ubatch: 16, pool: Pool::Max(3), ..stages(&pair.tiny).queries(4) };
        run.compare_with_decoding(&pair, &pair.tiny.prompt(60), None);
    }
}

#[test]
fn a_prompt_within_the_first_budget_is_dense_to_the_last_bit() {
    for name in NAMES {
        let pair = Pair::new(Tiny::named(name));
        let run = stages(&pair.tiny);
        let first_budget = run.layout.stages[0].1;
        let tokens = pair.tiny.prompt(first_budget + 1);
        for n in [1, first_budget - 1, first_budget] {
            let mut dense = pair.session(|_| ());
            let mut session = pair.session(|o| run.apply(o, None));
            prefill(&mut dense, &tokens[..n]).unwrap();
            let report = prefill(&mut session, &tokens[..n]).unwrap();
            assert_eq!(session.logits(), dense.logits(), "{name}, {n}");
            assert_eq!(session.kv_lengths(), dense.kv_lengths());
            assert!(report.layers.is_empty() && report.cache_kept == 1.0, "{name}, {n}");
            session.decode(5).unwrap();
            dense.decode(5).unwrap();
            assert_eq!(session.logits(), dense.logits(), "{name}, {n}, decoded");
        }
        // One more token, and the schedule acts.
        run.compare(&pair, &tokens, None);
        assert_ne!(
            logits(pair.session(|o| run.apply(o, None)), &tokens),
            logits(pair.session(|_| ()), &tokens),
            "{name}"
        );
        // Without an empty session there is nothing to skip.
        let mut session = pair.session(|o| run.apply(o, None));
        prefill(&mut session, &tokens[..3]).unwrap();
        assert!(prefill(&mut session, &tokens[3..]).unwrap().layers.is_empty());
    }
}

/// All the machinery with nothing to skip: gathers and scatters of every row, a prune that takes none.
#[test]
fn probes_forced_upon_a_budget_of_the_whole_prompt_compute_the_dense_model() {
    const N: usize = 45;
    for tiny in NAMES.map(Tiny::named).into_iter().chain([two_globals()]) {
        let pair = Pair::new(tiny);
        let tokens = pair.tiny.prompt(N);
        let dense = pair.reference.forward(&tokens, None);
        let proxies = SidecarFile::for_model(&pair, 9, 4).open();
        let whole = [(pair.tiny.n_layer / 2, N, 0), (pair.tiny.n_layer - 1, N, 0)];
        let run = Run { use_proxy: true, n_ubatch: 16, ..run(0, &whole).queries(4) };
        let mut session = pair.session(|o| {
            run.apply(o, Some(&proxies));
            o.method = Arc::new(Spts { schedule: run.schedule(), reach: Reach::EveryLayer });
        });
        let report = prefill(&mut session, &tokens).unwrap();
        assert!(report.layers.iter().any(|l| l.probe), "{}", pair.tiny.name);
        assert_close(session.logits(), &dense.logits, pair.tolerance_of_rounding(&tokens), pair.tiny.name);
        assert_eq!(session.kv_lengths(), dense.kv_lengths());
        let all: Vec<i32> = (0..N as i32).collect();
        for s in &report.selection {
            assert_eq!([&s.candidates, &s.active_attn, &s.active_ffn], [&all; 3], "{}", pair.tiny.name);
        }
        assert_eq!(report.cache_kept, 1.0);
    }
}

#[test]
fn a_session_can_be_cleared_and_used_again() {
    for tiny in [Tiny::named("llama"), two_globals()] {
        let pair = Pair::new(tiny);
        let tokens = pair.tiny.prompt(60);
        let run = stages(&pair.tiny);
        let mut session = pair.session(|o| run.apply(o, None));
        prefill(&mut session, &tokens).unwrap();
        session.decode(3).unwrap();
        let first = session.logits().to_vec();
        // A dense prompt in between.
        session.clear();
        prefill(&mut session, &tokens[..9]).unwrap();
        assert_eq!(session.logits(), logits(pair.session(|_| ()), &tokens[..9]));
        session.clear();
        prefill(&mut session, &tokens).unwrap();
        session.decode(3).unwrap();
        assert_eq!(session.logits(), first);
    }
}

/// A session keeps graphs and memory from call to call: what it computes with them is what a fresh one does.
#[test]
#[allow(clippy::single_range_in_vec_init)] // one call of that range
fn nothing_is_left_of_what_was_read_before() {
    for tiny in [Tiny::named("llama"), Tiny::named("qwen35"), two_globals()] {
        let pair = Pair::new(tiny);
        let tokens = pair.tiny.prompt(140);
        let run = stages(&pair.tiny).queries(4);
        let read = |session: &mut Session, calls: &[Range<usize>]| {
            session.clear();
            let mut logits = Vec::new();
            for call in calls {
                prefill(session, &tokens[call.clone()]).unwrap();
                logits.push(session.logits().to_vec());
            }
            for token in [3, 1, 4] {
                session.decode(token).unwrap();
                logits.push(session.logits().to_vec());
            }
            logits
        };
        // Prompts of the same length, shorter and longer ones, and second ones behind caches of other lengths. 60 tokens skip.
        let series: [&[Range<usize>]; 11] = [
            &[0..9],
            &[0..60],
            &[60..120],
            &[0..9],
            &[9..18],
            &[0..9, 9..18],
            &[20..29, 40..49],
            &[0..60, 60..69],
            &[60..120, 9..18],
            &[0..9, 9..69],
            &[0..60],
        ];
        let mut session = pair.session(|o| run.apply(o, None));
        // With room for all that comes, memory tells nothing of a graph's age.
        prefill(&mut session, &tokens).unwrap();
        for calls in series {
            let expected = read(&mut pair.session(|o| run.apply(o, None)), calls);
            assert_eq!(read(&mut session, calls), expected, "{}, {calls:?}", pair.tiny.name);
        }
    }
}

#[test]
fn an_interrupt_leaves_the_session_empty() {
    let pair = Pair::new(two_globals());
    let tokens = pair.tiny.prompt(60);
    let run = Run { n_ubatch: 16, ..stages(&pair.tiny).queries(4) };
    let mut looks = 0;
    let mut undisturbed = pair.session(|o| run.apply(o, None));
    undisturbed
        .prefill(&tokens, &mut |p| {
            assert!((0.0..=1.0).contains(&p.fraction) && p.layer < p.n_layer && p.n_tokens == 60, "{p:?}");
            looks += 1;
            ControlFlow::Continue(())
        })
        .unwrap();
    let mut session = pair.session(|o| run.apply(o, None));
    for stop_at in 0..looks {
        let mut seen = 0;
        let result = session.prefill(&tokens, &mut |_| {
            seen += 1;
            if seen > stop_at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(matches!(result, Err(Error::Interrupted)), "{result:?}");
        assert_eq!((session.n_past(), session.kv_lengths(), session.logits()), (0, vec![0; 14], &[][..]));
    }
    prefill(&mut session, &tokens).unwrap();
    session.decode(1).unwrap();
    undisturbed.decode(1).unwrap();
    assert_eq!(session.logits(), undisturbed.logits());
}

/// First layer that skips, stages, probing queries and switches of a model of so many layers, at random.
fn any_layout(n_layer: usize) -> impl Strategy<Value = Layout> {
    let stages = (0..n_layer).prop_flat_map(move |skip_from| {
        let ends = prop::collection::btree_set(skip_from..n_layer, 1..4);
        (Just(skip_from), ends, prop::collection::vec((1usize..70, 0usize..70), 4))
    });
    (stages, 1usize..9, 1u8..8).prop_map(|((skip_from, ends, numbers), queries, switches)| {
        let mut budgets: Vec<usize> = numbers.iter().map(|n| n.0).collect();
        budgets.sort_unstable_by(|a, b| b.cmp(a));
        let stage = |((end, budget), (_, cut)): ((usize, usize), &(usize, usize))| (end, budget, cut % budget);
        let stages: Vec<_> = ends.into_iter().zip(budgets).zip(&numbers).map(stage).collect();
        Layout {
            queries,
            skip_attn: switches & 1 != 0,
            skip_ffn: switches & 2 != 0,
            prune: switches & 4 != 0,
            ..run(skip_from, &stages).layout
        }
    })
}

fn any_selection() -> impl Strategy<Value = Selection> {
    prop_oneof![4 => Just(Selection::Probe), 1 => any::<u64>().prop_map(|seed| Selection::Random { seed })]
}

/// Channels and rank of the proxies, if there are any.
fn any_proxy(tiny: &Tiny) -> impl Strategy<Value = Option<(usize, usize)>> + use<> {
    let n_embd = tiny.n_embd;
    prop::option::of((1..=tiny.n_ff).prop_flat_map(move |d_low| (Just(d_low), 1..=d_low.min(n_embd))))
}

/// A shape, a prompt length, stages and how they are probed, at random.
fn any_run() -> impl Strategy<Value = (Tiny, usize, Run, Option<(usize, usize)>)> {
    let arch = prop::sample::select(vec!["llama", "qwen2", "qwen3", "gemma3", "phi3"]);
    let shape = (arch, 2usize..9, 3usize..40, 1usize..5, 1usize..4, 1usize..10, 2usize..45, any::<u16>());
    let tiny = shape.prop_map(|(arch, n_layer, n_embd, n_head_kv, group, half_head, n_ff, seed)| {
        let named = Tiny::named(arch);
        Tiny {
            n_layer,
            n_embd: n_embd.max(n_head_kv * group),
            n_head: n_head_kv * group,
            n_head_kv,
            head_dim: 2 * half_head,
            n_rot: 2 * half_head,
            n_ff,
            window: named.window.map(|_| 1 + u32::from(seed) % 40),
            seed: seed.into(),
            ..named
        }
    });
    tiny.prop_flat_map(|tiny| {
        let pool = prop_oneof![
            Just(Pool::None),
            (0usize..8).prop_map(|r| Pool::Max(2 * r + 1)),
            (0usize..8).prop_map(|r| Pool::Avg(2 * r + 1)),
        ];
        let run = (any_layout(tiny.n_layer), pool, any::<bool>(), any_selection(), 1usize..90).prop_map(
            |(layout, pool, use_proxy, selection, n_ubatch)| Run {
                layout,
                pool,
                use_proxy,
                selection,
                n_ubatch,
                ..run(0, &[])
            },
        );
        let proxy = any_proxy(&tiny);
        (Just(tiny), 1usize..80, run, proxy)
    })
}

/// One of the named models, and a schedule that uses whatever there is, at random.
fn any_options() -> impl Strategy<Value = (Tiny, usize, Run, Option<(usize, usize)>)> {
    let tiny = prop_oneof![5 => prop::sample::select(NAMES.to_vec()).prop_map(Tiny::named), 1 => Just(two_globals())];
    tiny.prop_flat_map(|tiny| {
        let ramp = prop_oneof![2 => Just(1.0), 1 => 1.0..4.0f64];
        let held = prop_oneof![2 => Just((0, 0)), 1 => (0usize..6, 0usize..14)];
        let layout = (any_layout(tiny.n_layer), any::<[bool; 3]>(), ramp, held);
        let layout = layout.prop_map(|(layout, keeping, ramp, (sinks, recent))| Layout {
            keeping: (0..layout.stages.len()).filter(|&number| keeping[number]).collect(),
            ramp,
            sinks,
            recent,
            ..layout
        });
        let pool = prop_oneof![
            1 => Just(Pool::None),
            2 => (0usize..8).prop_map(|r| Pool::Max(2 * r + 1)),
            1 => (0usize..8).prop_map(|r| Pool::Avg(2 * r + 1)),
            2 => (1usize..100).prop_map(Pool::Chunks),
        ];
        let carry = prop_oneof![2 => Just(0.0), 1 => Just(1.0), 2 => 0.0..1.0f32];
        let join = prop::sample::select(vec![Join::Mean, Join::Max]);
        let probe = (join, pool, carry, any::<bool>(), any_selection());
        let run =
            (layout, probe, 1usize..90).prop_map(|(layout, (join, pool, carry, use_proxy, selection), n_ubatch)| Run {
                layout,
                join,
                pool,
                carry,
                use_proxy,
                selection,
                n_ubatch,
                ..run(0, &[])
            });
        let proxy = any_proxy(&tiny);
        (Just(tiny), 1usize..80, run, proxy)
    })
}

fn seed() -> RngSeed {
    RngSeed::Fixed(std::env::var("PROPTEST_RNG_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(20261125))
}

/// What the reference computes, or the dense model where nothing is to be skipped.
fn check(tiny: Tiny, n: usize, mut run: Run, proxy: Option<(usize, usize)>) {
    let pair = Pair::new(tiny);
    let tokens = pair.tiny.prompt(n);
    run.use_proxy &= proxy.is_some();
    let proxies = proxy.map(|(d_low, rank)| SidecarFile::for_model(&pair, d_low, rank).open());
    let plan = run.plan(&pair, n, None);
    let layout = &run.layout;
    let first_budget = layout.stages[0].1.max(layout.sinks + layout.queries.max(layout.recent));
    let dense = plan.layers.iter().all(|l| *l == reference::LayerBudget::dense(n));
    if n <= first_budget || dense {
        let mut session = pair.session(|o| run.apply(o, proxies.as_ref()));
        prefill(&mut session, &tokens).expect("a prefill");
        let d = logits(pair.session(|o| o.n_ubatch = Some(run.n_ubatch)), &tokens);
        assert_eq!(session.logits(), &d[..]);
        let expected = pair.reference.forward(&tokens, None).logits;
        assert_close(session.logits(), &expected, pair.tolerance_of_rounding(&tokens), "dense");
    } else {
        run.compare_with_decoding(&pair, &tokens, proxies.as_ref());
    }
}

proptest! {
    // The same shapes every time: what fails for one person has to fail for all. PROPTEST_RNG_SEED tries others.
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, rng_seed: seed(), ..ProptestConfig::default() })]

    /// Whatever the shape and the stages.
    #[test]
    fn any_shape_and_schedule((tiny, n, run, proxy) in any_run()) {
        check(tiny, n, run, proxy);
    }

    /// Whatever else a schedule says.
    #[test]
    fn any_options_of_a_schedule((tiny, n, run, proxy) in any_options()) {
        check(tiny, n, run, proxy);
    }
}
