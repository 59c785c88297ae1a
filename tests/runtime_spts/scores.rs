//! Which tokens are chosen: probing queries, pools, what is carried from layer to layer, proxies, and chance.

use std::ops::ControlFlow;

use spts::Error;
use spts::method::spts::schedule::{Join, Pool, Selection};
use spts::session::prefill::PrefillOptions;
use spts::session::sequence::CacheType;

use crate::runtime::Pair;
use crate::runtime::proxies::SidecarFile;
use crate::runtime::skipping::{Run, run, stages, two_globals};
use crate::support::tiny::{NAMES, Tiny};

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
