//! How many tokens each layer computes: stages, ramps, prunes, tiles, and budgets that leave nothing to skip.

use std::sync::Arc;

use spts::method::spts::Spts;
use spts::method::spts::schedule::{Pool, Reach};

use crate::runtime::proxies::SidecarFile;
use crate::runtime::skipping::{Run, run, stages, two_globals};
use crate::runtime::{Pair, assert_close, logits, prefill};
use crate::support::tiny::{NAMES, Tiny};

#[test]
fn one_probing_query_as_in_the_paper() {
    for name in NAMES {
        let pair = Pair::new(Tiny::named(name));
        stages(&pair.tiny).compare_with_decoding(&pair, &pair.tiny.prompt(40), None);
    }
    let pair = Pair::new(two_globals());
    stages(&pair.tiny).compare_with_decoding(&pair, &pair.tiny.prompt(40), None);
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
        // Beside the same sums of the dense model hardly anything is rounded elsewhere.
        let own = logits(pair.session(|_| ()), &tokens);
        assert_close(session.logits(), &own, 1e-6, pair.tiny.name);
        assert_close(session.logits(), &dense.logits, pair.tolerance_of_rounding(&tokens), pair.tiny.name);
        assert_eq!(session.kv_lengths(), dense.kv_lengths());
        let all: Vec<i32> = (0..N as i32).collect();
        for s in &report.selection {
            assert_eq!([&s.candidates, &s.active_attn, &s.active_ffn], [&all; 3], "{}", pair.tiny.name);
        }
        assert_eq!(report.cache_kept, 1.0);
    }
}
