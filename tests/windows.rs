//! Layers with a window keep of a long prompt what they still see: answers are those of whole caches.

mod reference;
mod runtime;
mod support;

use std::ops::ControlFlow;

use runtime::{Pair, assert_close, one_stage, prefill};
use spts::model::placement::Placement;
use spts::{CacheType, Error, Model, ModelFile, Session, SessionOptions};
use support::tiny::Tiny;

const NAMES: [&str; 5] = ["gemma3", "gemma4", "gemma4-small", "gpt-oss", "olmo3"];

/// More than the windows of 16 and 512 besides.
const LONG: usize = 700;

fn model(name: &str) -> Pair {
    Pair::new(Tiny::named(name))
}

/// In tiles, so that layers are read one by one.
fn in_turns(pair: &Pair) -> Session {
    pair.session(|o| o.n_ubatch = Some(96))
}

/// In one tile, so that all layers are read at once, and keep every entry (of prompts that are not much longer than what is kept).
fn whole(pair: &Pair) -> Session {
    pair.session(|o| o.n_ubatch = Some(4096))
}

fn read(session: &mut Session, document: &[u32]) -> usize {
    session.read(document, &mut |_| ControlFlow::Continue(())).expect("a document").n_reused
}

/// Checks that layers with a window keep fewer entries than the `n` tokens that were read, and that others keep all.
fn check_lengths(pair: &Pair, session: &Session, n: usize, what: &str) {
    let shape = pair.model.shape();
    for (layer, entries) in session.kv_lengths().into_iter().enumerate() {
        let forgets = shape.layer_kind(layer) == spts::LayerKind::Windowed;
        let expected = if shape.has_cache(layer) { n } else { 0 };
        let fits = if forgets { (16..=16 + 2 * 512).contains(&entries) && entries < n } else { entries == expected };
        assert!(fits, "{what}, layer {layer}: {entries} entries of {n} tokens");
    }
}

#[test]
fn prompts_and_answers_are_those_of_whole_caches() {
    for name in NAMES {
        let pair = model(name);
        let tokens = pair.tiny.prompt(2 * LONG + 50);
        let mut session = in_turns(&pair);
        let mut expected = whole(&pair);
        for s in [&mut session, &mut expected] {
            prefill(s, &tokens[..LONG]).expect("a prompt");
        }
        assert_close(session.logits(), expected.logits(), pair.tolerance(), &format!("{name}, a prompt"));
        check_lengths(&pair, &session, LONG, name);
        assert_eq!(session.n_past(), LONG);
        assert!(session.n_bytes() < expected.n_bytes(), "{name}: {} bytes", session.n_bytes());
        for &token in &tokens[LONG..LONG + 30] {
            for s in [&mut session, &mut expected] {
                s.decode(token).expect("room");
            }
            assert_close(session.logits(), expected.logits(), 3.0 * pair.tolerance(), &format!("{name}, a token"));
        }
        // Behind what was kept, in turns again, and then few tokens at once.
        for range in [LONG + 30..2 * LONG, 2 * LONG..2 * LONG + 50] {
            for s in [&mut session, &mut expected] {
                prefill(s, &tokens[range.clone()]).expect("more");
            }
            assert_close(session.logits(), expected.logits(), 3.0 * pair.tolerance(), &format!("{name}, {range:?}"));
        }
        check_lengths(&pair, &session, 2 * LONG + 50, name);
    }
}

/// However large the tiles: a prompt of which most is forgotten is read layer by layer.
#[test]
fn a_prompt_of_one_tile_is_read_in_turns_if_it_is_long() {
    for name in NAMES {
        let pair = model(name);
        let tokens = pair.tiny.prompt(1500);
        let (mut one_tile, mut many) = (whole(&pair), in_turns(&pair));
        for session in [&mut one_tile, &mut many] {
            prefill(session, &tokens).expect("a prompt");
            check_lengths(&pair, session, tokens.len(), name);
        }
        assert_close(one_tile.logits(), many.logits(), pair.tolerance(), name);
        let [few, as_many] = [&one_tile, &many].map(|session| session.kv_lengths());
        assert_eq!(few, as_many, "{name}");
    }
}

/// Token by token the memory is that of the window.
#[test]
fn answers_of_any_length_take_no_more_memory_in_layers_with_a_window() {
    for name in ["gemma3", "gpt-oss"] {
        let pair = model(name);
        let tokens = pair.tiny.prompt(1700);
        let mut session = in_turns(&pair);
        prefill(&mut session, &tokens[..40]).expect("a prompt");
        tokens[40..].iter().for_each(|&token| session.decode(token).expect("room"));
        check_lengths(&pair, &session, 1700, name);
        let mut expected = in_turns(&pair);
        prefill(&mut expected, &tokens).expect("a prompt");
        assert_close(session.logits(), expected.logits(), 3.0 * pair.tolerance(), name);
    }
}

/// Behind a prune windows go by positions.
#[test]
fn pruned_prompts_as_well() {
    for name in ["gemma3", "gemma4-small", "gpt-oss"] {
        let mut pair = model(name);
        if name == "gemma3" {
            pair = Pair::new(Tiny { n_layer: 14, ..Tiny::named(name) });
        }
        let tokens = pair.tiny.prompt(LONG + 200);
        let schedule = spts::Schedule { skip_from: 1, ..one_stage(&pair.tiny, 650, 30) };
        let session = |n_ubatch: usize| {
            let mut session = pair.session(|o| {
                o.n_ubatch = Some(n_ubatch);
                o.method = schedule.clone().into();
            });
            prefill(&mut session, &tokens[..LONG + 170]).expect("a prompt");
            session
        };
        let (mut session, mut expected) = (session(96), session(4096));
        assert!(session.kv_lengths().iter().sum::<usize>() < expected.kv_lengths().iter().sum(), "{name}");
        assert_close(session.logits(), expected.logits(), pair.tolerance(), &format!("{name}, a prompt"));
        for &token in &tokens[LONG + 170..] {
            for s in [&mut session, &mut expected] {
                s.decode(token).expect("room");
            }
            assert_close(session.logits(), expected.logits(), 3.0 * pair.tolerance(), &format!("{name}, a token"));
        }
    }
}

#[test]
fn quantized_caches_too() {
    let pair = Pair::new(Tiny { head_dim: 32, n_rot: 32, ..Tiny::named("gemma3") });
    let tokens = pair.tiny.prompt(LONG);
    let q8 = |n_ubatch: usize| {
        let mut session = pair.session(|o| {
            (o.n_ubatch, o.cache_type_k, o.cache_type_v) = (Some(n_ubatch), CacheType::Q8_0, CacheType::Q8_0);
        });
        prefill(&mut session, &tokens).expect("a prompt");
        session.decode(3).expect("room");
        session
    };
    let (session, expected) = (q8(96), q8(4096));
    assert_close(session.logits(), expected.logits(), pair.tolerance(), "q8_0");
}

#[test]
fn layers_on_two_devices_take_turns_as_well() {
    let pair = model("gemma3");
    let tokens = pair.tiny.prompt(LONG);
    let file = ModelFile::from_gguf(pair.model.file().gguf().clone()).expect("a model");
    let placement = Placement::split("CPU".into(), pair.tiny.n_layer, 3, 0);
    let split = Model::place_as(file, placement, runtime::on_cpu()).expect("a model");
    let options = SessionOptions { n_ubatch: Some(96), ..runtime::exact(2048) };
    let mut session = Session::new(split, options).expect("a session");
    let mut expected = in_turns(&pair);
    for s in [&mut session, &mut expected] {
        prefill(s, &tokens).expect("a prompt");
        s.decode(5).expect("room");
    }
    assert_eq!(session.kv_lengths(), expected.kv_lengths());
    assert_eq!(session.logits(), expected.logits());
}

#[test]
fn what_was_forgotten_cannot_be_gone_back_to() {
    let pair = model("gemma3");
    let tokens = pair.tiny.prompt(LONG + 20);
    let mut session = in_turns(&pair);
    prefill(&mut session, &tokens[..LONG]).expect("a prompt");
    tokens[LONG..].iter().for_each(|&token| session.decode(token).expect("room"));
    // The prompt's end is near enough.
    session.truncate(LONG).expect("the answer forgotten");
    tokens[LONG..].iter().for_each(|&token| session.decode(token).expect("room"));
    let mut expected = whole(&pair);
    prefill(&mut expected, &tokens).expect("a prompt");
    assert_close(session.logits(), expected.logits(), 3.0 * pair.tolerance(), "decoded again");
    match session.truncate(LONG - 300) {
        Err(e @ Error::Truncate { .. }) => assert!(e.to_string().contains("not all entries are there"), "{e}"),
        other => panic!("{other:?}"),
    }
    session.clear();
    prefill(&mut session, &tokens).expect("a prompt again");
    assert_close(session.logits(), expected.logits(), pair.tolerance(), "again");
}

/// Questions begin where a document ends, however far the answer before went.
#[test]
fn a_document_is_asked_again_after_long_answers() {
    for name in NAMES {
        let pair = model(name);
        let tokens = pair.tiny.prompt(LONG + 100);
        let schedule = one_stage(&pair.tiny, 650, 30);
        for skips in [false, true] {
            let session = || {
                pair.session(|o| {
                    o.n_ubatch = Some(96);
                    if skips {
                        o.method = spts::Schedule { skip_from: 3, ..schedule.clone() }.into();
                    }
                })
            };
            let mut asked = session();
            read(&mut asked, &tokens[..LONG]);
            let whole_bytes = asked.document().expect("a document").n_bytes();
            for (n_question, n_answer) in [(20, 3), (40, 700), (60, 10)] {
                let prompt = &[&tokens[..LONG], &tokens[n_question..2 * n_question]].concat();
                asked.clear();
                let report = prefill(&mut asked, prompt).expect("a question");
                let what = format!("{name}, a question of {n_question} tokens, skips: {skips}");
                assert_eq!(report.n_reused, LONG, "{what}");
                let mut fresh = session();
                prefill(&mut fresh, prompt).expect("a prompt");
                assert_close(asked.logits(), fresh.logits(), pair.tolerance(), &what);
                for (i, &token) in tokens[..n_answer].iter().enumerate() {
                    asked.decode(token).expect("room");
                    if i < 5 {
                        fresh.decode(token).expect("room");
                        assert_close(asked.logits(), fresh.logits(), 3.0 * pair.tolerance(), &what);
                    }
                }
                assert_eq!(asked.document().expect("a document").n_bytes(), whole_bytes);
            }
        }
    }
}

/// What was kept of one text serves no other that is as long.
#[test]
fn what_was_kept_serves_its_own_text_alone() {
    let pair = model("gemma3");
    let tokens = pair.tiny.prompt(2 * LONG);
    let mut session = in_turns(&pair);
    read(&mut session, &tokens[..LONG]);
    // Another text from the middle on, longer than the document.
    let other: Vec<u32> = [&tokens[..300], &tokens[500..1200]].concat();
    session.clear();
    assert_eq!(prefill(&mut session, &other).expect("a prompt").n_reused, 0);
    session.clear();
    let longer: Vec<u32> = [&other[..], &tokens[..20]].concat();
    prefill(&mut session, &longer[..LONG + 5]).expect("a part of it");
    let mut fresh = in_turns(&pair);
    prefill(&mut fresh, &longer[..LONG + 5]).expect("a prompt");
    assert_close(session.logits(), fresh.logits(), pair.tolerance(), "a part of another text");
}

#[test]
fn a_long_documents_file_serves_another_session() {
    for name in ["gemma3", "gemma4-small", "gpt-oss"] {
        let pair = model(name);
        let tokens = pair.tiny.prompt(LONG + 30);
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("document.gguf");
        let mut session = in_turns(&pair);
        read(&mut session, &tokens[..LONG]);
        // Saved when the caches are far ahead.
        session.clear();
        prefill(&mut session, &tokens).expect("a question");
        tokens[..600].iter().for_each(|&token| session.decode(token).expect("room"));
        let document = session.document().expect("a document");
        document.save(&path).expect("a file");
        let n_bytes = std::fs::metadata(&path).expect("a file").len();
        assert!(n_bytes < document.n_bytes() + 20_000, "{name}: a file of {n_bytes} bytes");
        let mut opened = in_turns(&pair);
        opened.open_document(&path).expect("a document");
        assert_eq!(prefill(&mut opened, &tokens).expect("a question").n_reused, LONG, "{name}");
        let mut fresh = in_turns(&pair);
        prefill(&mut fresh, &tokens).expect("a prompt");
        assert_close(opened.logits(), fresh.logits(), pair.tolerance(), name);
    }
}

/// Interrupted at every place where it looks for that, behind a prompt that was read in turns.
#[test]
fn an_interrupt_leaves_what_was_kept() {
    let pair = model("gemma3");
    let tokens = pair.tiny.prompt(2 * LONG);
    let mut undisturbed = in_turns(&pair);
    prefill(&mut undisturbed, &tokens[..LONG]).expect("a prompt");
    let mut looks = 0;
    let more = &tokens[LONG..];
    undisturbed
        .prefill(more, &mut |_| {
            looks += 1;
            ControlFlow::Continue(())
        })
        .expect("more");
    let mut session = in_turns(&pair);
    prefill(&mut session, &tokens[..LONG]).expect("a prompt");
    for stop_at in 0..looks {
        let mut seen = 0;
        let stopped = session.prefill(more, &mut |_| {
            seen += 1;
            if seen > stop_at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(matches!(stopped, Err(Error::Interrupted)), "at {stop_at}");
    }
    prefill(&mut session, more).expect("more");
    assert_eq!(session.logits(), undisturbed.logits());
}
