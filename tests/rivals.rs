//! The rivals against the naive reference: the tokens that their papers' rules choose, and the logits, caches and answers of a
//! model that reads these alone.

mod reference;
mod runtime;
mod support;

use std::ops::ControlFlow;

use reference::{LayerBudget, LayerCache, Model as Reference, Pool, SptsPlan, State, top};
use runtime::{Pair, assert_close, prefill};
use spts::method::rivals::{RIVAL_NAMES, Rival};
use spts::session::prefill::PrefillReport;
use spts::{Error, Session};
use support::tiny::{NAMES, Tiny};

const N: usize = 150;

/// Models whose layers all attend to everything.
fn without_windows() -> impl Iterator<Item = Pair> {
    NAMES.into_iter().map(|name| Pair::new(Tiny::named(name))).filter(|pair| pair.model.shape().swa.is_none())
}

/// The layers that score tokens.
fn attending(pair: &Pair) -> impl Iterator<Item = usize> {
    (0..pair.reference.layers.len()).filter(|&l| pair.reference.layers[l].delta.is_none())
}

fn session(pair: &Pair, method: &str, draft: Option<&Pair>) -> Session {
    pair.session(|options| {
        options.method = Rival::parse(method).expect("a rival").method();
        options.draft = draft.map(|draft| draft.model.clone());
        options.record_selection = true;
    })
}

/// The tokens of the last layer.
fn read(report: &PrefillReport) -> Vec<usize> {
    report.selection.last().expect("recorded").candidates.iter().map(|&i| i as usize).collect()
}

/// The reference reads these rows alone, one after the other, each at its position.
fn read_alone(reference: &Reference, tokens: &[u32], rows: &[usize], positions: &[usize]) -> (Vec<f32>, State) {
    let mut state = State { n_past: 0, cache: vec![LayerCache::default(); reference.layers.len()] };
    let mut logits = Vec::new();
    for (&row, &position) in rows.iter().zip(positions) {
        state.n_past = position;
        logits = reference.decode(&mut state, tokens[row]);
    }
    (logits, state)
}

/// The reference's scores in one layer of a dense pass.
fn scores(reference: &Reference, tokens: &[u32], layer: usize, queries: usize, pool: Pool) -> Vec<f32> {
    let n = tokens.len();
    // A layer has scores where it prunes.
    let mut layers = vec![LayerBudget::dense(n); reference.layers.len()];
    layers[layer].prune_to = Some(n - 1);
    layers[layer + 1..].fill(LayerBudget::dense(n - 1));
    let mut plan = SptsPlan::new(layers);
    (plan.probe_queries, plan.pool) = (queries, pool);
    reference.forward(tokens, Some(&plan)).layers[layer].scores.clone().expect("a layer that prunes scores")
}

#[test]
fn controls_read_their_tokens_alone_and_answer_at_the_next_position() {
    for pair in without_windows() {
        let tokens = pair.tiny.prompt(N);
        for method in ["random:0.6", "last:0.2", "last:1"] {
            let mut session = session(&pair, method, None);
            let report = prefill(&mut session, &tokens).expect("a prefill");
            let rows = read(&report);
            let (logits, mut state) = read_alone(&pair.reference, &tokens, &rows, &rows);
            let what = format!("{}, {method}", pair.tiny.name);
            assert_close(session.logits(), &logits, pair.tolerance(), &what);
            let lengths: Vec<usize> = state.cache.iter().map(|c| c.positions.len()).collect();
            assert_eq!(session.kv_lengths(), lengths, "{what}");
            assert_eq!((session.n_past(), report.n_tokens), (N, N), "{what}");
            assert!((report.cache_kept - rows.len() as f64 / N as f64).abs() < 1e-12, "{what}");
            assert!(report.layers.iter().all(|l| l.candidates == rows.len()), "{what}");
            state.n_past = N;
            for token in [3, 7] {
                let expected = pair.reference.decode(&mut state, token);
                session.decode(token).expect("a token");
                assert_close(session.logits(), &expected, pair.tolerance(), &what);
            }
        }
    }
}

#[test]
fn gemfilter_reads_the_tokens_of_its_layer_as_a_prompt_of_their_own() {
    for pair in without_windows() {
        let tokens = pair.tiny.prompt(N);
        for layer in attending(&pair).filter(|&l| l + 1 < pair.reference.layers.len()) {
            let what = format!("{}, layer {layer}", pair.tiny.name);
            let mut session = session(&pair, &format!("gemfilter:0.3@{layer}"), None);
            let report = prefill(&mut session, &tokens).expect("a prefill");
            let rows = read(&report);
            let by_reference = scores(&pair.reference, &tokens, layer, 1, Pool::Avg(5));
            assert_eq!(rows, reference::settle(&what, &by_reference, N * 3 / 10, 1, &rows, 1e-4), "{what}");
            let renumbered: Vec<usize> = (0..rows.len()).collect();
            let (logits, mut state) = read_alone(&pair.reference, &tokens, &rows, &renumbered);
            assert_close(session.logits(), &logits, pair.tolerance(), &what);
            assert_eq!(session.n_past(), rows.len(), "{what}");
            state.n_past = rows.len();
            let expected = pair.reference.decode(&mut state, 5);
            session.decode(5).expect("a token");
            assert_close(session.logits(), &expected, pair.tolerance(), &what);
            // What was read is no prefix of the prompt.
            let cut = session.truncate(rows.len() - 1);
            match pair.tiny.delta.is_some() {
                true => assert!(matches!(cut, Err(Error::TruncateState { .. })), "{what}: {cut:?}"),
                false => assert!(matches!(cut, Err(Error::Truncate { .. })), "{what}: {cut:?}"),
            }
            // The same again, in the memory of the first time.
            session.clear();
            assert_eq!(read(&prefill(&mut session, &tokens).expect("a prefill")), rows, "{what}");
            assert_close(session.logits(), &logits, pair.tolerance(), &what);
        }
    }
}

#[test]
fn specprefill_reads_the_chunks_of_its_draft_at_their_positions() {
    for pair in without_windows() {
        let draft = Pair::new(Tiny { seed: 2, ..pair.tiny.clone() });
        let tokens = pair.tiny.prompt(N);
        let mut session = session(&pair, "specprefill:0.5", Some(&draft));
        let rows = read(&prefill(&mut session, &tokens).expect("a prefill"));
        // The best of all layers, then the means of chunks of 32.
        let mut best = vec![0f32; N];
        for layer in attending(&draft) {
            let of_layer = scores(&draft.reference, &tokens, layer, 8, Pool::Avg(13));
            best.iter_mut().zip(of_layer).for_each(|(best, score)| *best = best.max(score));
        }
        let means: Vec<f32> =
            best.chunks(32).flat_map(|c| vec![c.iter().sum::<f32>() / c.len() as f32; c.len()]).collect();
        assert_eq!(rows, top(&means, N / 2, 8), "{}", pair.tiny.name);
        let (logits, _) = read_alone(&pair.reference, &tokens, &rows, &rows);
        assert_close(session.logits(), &logits, pair.tolerance(), pair.tiny.name);
        assert_eq!(session.n_past(), N);
    }
}

#[test]
fn those_that_prune_do_as_the_reference_does_with_their_budgets() {
    for pair in without_windows() {
        // Long enough that steps lie above what UniPrefill always keeps.
        let n = 400;
        let tokens = pair.tiny.prompt(n);
        for (method, queries, sinks, pool) in [
            ("fastkv:0.4@1", 8, 0, Pool::Avg(7)),
            ("uniprefill:0.8", 128, 128, Pool::Avg(65)),
            ("sliminfer:0.5", 64, 0, Pool::Avg(65)),
        ] {
            let what = format!("{}, {method}", pair.tiny.name);
            let mut session = session(&pair, method, None);
            let report = prefill(&mut session, &tokens).expect("a prefill");
            let to_plan = |l: &spts::method::LayerBudget| LayerBudget {
                candidates: l.candidates,
                active_attn: l.active_attn,
                active_ffn: l.active_ffn,
                prune_to: l.prune_to,
            };
            let layers: Vec<LayerBudget> = report.layers.iter().map(to_plan).collect();
            if layers.iter().all(|l| l.prune_to.is_none()) {
                // Too few layers for a step: dense.
                assert!(session.kv_lengths().iter().all(|&len| len == n), "{what}");
                continue;
            }
            let mut plan = SptsPlan::new(layers);
            (plan.probe_queries, plan.sinks, plan.pool) = (queries, sinks, pool);
            let expected = pair.reference.forward(&tokens, Some(&plan));
            assert_eq!(read(&report), expected.layers.last().expect("layers").candidates, "{what}");
            assert_close(session.logits(), &expected.logits, pair.tolerance(), &what);
            assert_eq!(session.kv_lengths(), expected.kv_lengths(), "{what}");
        }
    }
}

#[test]
fn all_tokens_are_the_dense_prompt() {
    for pair in without_windows() {
        let tokens = pair.tiny.prompt(N);
        let dense = pair.reference.forward(&tokens, None);
        for name in RIVAL_NAMES.into_iter().filter(|name| *name != "specprefill") {
            let mut session = session(&pair, &format!("{name}:1"), None);
            prefill(&mut session, &tokens).expect("a prefill");
            assert_close(session.logits(), &dense.logits, pair.tolerance(), name);
        }
    }
}

#[test]
fn what_is_missing_or_does_not_fit_is_said() {
    let pair = without_windows().next().expect("a model");
    let tokens = pair.tiny.prompt(N);
    let e = prefill(&mut session(&pair, "specprefill", None), &tokens).unwrap_err();
    assert!(matches!(&e, Error::DraftMissing { method } if method == "specprefill"), "{e}");
    let other = NAMES
        .into_iter()
        .map(Tiny::named)
        .find(|tiny| tiny.n_vocab() != pair.tiny.n_vocab())
        .expect("models of two vocabularies");
    let e = prefill(&mut session(&pair, "specprefill", Some(&Pair::new(other))), &tokens).unwrap_err();
    assert!(matches!(e, Error::DraftVocabulary { .. }), "{e}");
}

#[test]
fn scores_that_are_no_numbers_choose_nothing() {
    let pair = without_windows().next().expect("a model");
    let mut file = pair.tiny.build();
    file.tensors.iter_mut().find(|t| t.name == "blk.1.attn_k.weight").expect("keys").data[3] = f32::NAN;
    let gguf = spts::gguf::Gguf::from_bytes(file.to_bytes(), "broken").expect("a valid file");
    let model = spts::Model::from_gguf(std::sync::Arc::new(gguf), runtime::on_cpu()).expect("a model that opens");
    for method in ["gemfilter:0.3@1", "specprefill:0.5"] {
        let options = spts::SessionOptions {
            method: Rival::parse(method).expect("a rival").method(),
            draft: Some(model.clone()),
            ..runtime::exact(pair.n_ctx)
        };
        let reader = if method.starts_with("gem") { model.clone() } else { pair.model.clone() };
        let mut session = Session::new(reader, options).expect("a session");
        let e = prefill(&mut session, &pair.tiny.prompt(N)).unwrap_err();
        assert!(matches!(e, Error::NoScores { .. }), "{method}: {e}");
        assert_eq!(session.n_past(), 0, "{method}");
    }
}

#[test]
fn an_interrupted_search_leaves_the_session_as_it_was() {
    let pair = without_windows().next().expect("a model");
    let draft = Pair::new(Tiny { seed: 2, ..pair.tiny.clone() });
    let tokens = pair.tiny.prompt(N);
    for method in ["gemfilter:0.3@1", "specprefill:0.5"] {
        let mut session = session(&pair, method, Some(&draft));
        let mut calls = 0;
        let result = session.prefill(&tokens, &mut |_| {
            calls += 1;
            if calls > 1 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(matches!(result, Err(Error::Interrupted)), "{method}");
        assert_eq!((session.n_past(), session.kv_lengths().iter().sum::<usize>()), (0, 0), "{method}");
        session.interrupt_flag().store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(matches!(prefill(&mut session, &tokens), Err(Error::Interrupted)), "{method}");
        session.interrupt_flag().store(false, std::sync::atomic::Ordering::Relaxed);
        let mut fresh = self::session(&pair, method, Some(&draft));
        prefill(&mut fresh, &tokens).expect("a prefill");
        prefill(&mut session, &tokens).expect("a prefill");
        assert_eq!(session.logits(), fresh.logits(), "{method}");
    }
    // Behind what was read a prompt is dense.
    let mut session = session(&pair, "last:0.2", None);
    prefill(&mut session, &tokens[..50]).expect("a prefill");
    let kept = session.kv_lengths()[0];
    prefill(&mut session, &tokens[50..60]).expect("more");
    assert_eq!((session.kv_lengths()[0], session.n_past()), (kept + 10, 60));
}
