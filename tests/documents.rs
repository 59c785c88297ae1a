//! Documents: what a session keeps of a text serves later questions exactly. Everything is compared with a session that reads
//! each prompt from the start.

mod reference;
mod runtime;
mod support;

use std::ops::ControlFlow;
use std::path::Path;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use runtime::{F16_CACHE, Pair, Q8_0_CACHE, assert_close, assert_lengths, distance, one_stage, prefill};
use spts::method::rivals::Rival;
use spts::method::spts::schedule::Schedule;
use spts::session::document::DocumentMemory;
use spts::session::document_error::DocumentError;
use spts::session::document_file::DocumentFile;
use spts::session::sequence::CacheType;
use spts::{Error, Session, SessionOptions};
use support::tiny::{NAMES, Tiny};

fn skips(pair: &Pair) -> Schedule {
    one_stage(&pair.tiny, 24, 4)
}

fn skipping(pair: &Pair) -> impl Fn(&mut SessionOptions) {
    let schedule = skips(pair);
    move |o| {
        o.method = schedule.clone().into();
        o.record_selection = true;
    }
}

fn dense(o: &mut SessionOptions) {
    o.record_selection = true;
}

fn read(session: &mut Session, document: &[u32]) -> usize {
    session.read(document, &mut |_| ControlFlow::Continue(())).expect("a document").n_reused
}

/// Asks, and compares with a session that reads the same from the start: logits, entries, selected sets, and three tokens more.
/// Returns how many tokens were not read anew.
#[track_caller]
fn ask(session: &mut Session, fresh: &mut Session, prompt: &[u32], tolerance: f32) -> usize {
    session.clear();
    fresh.forget_document();
    let (report, expected) = (prefill(session, prompt).expect("an answer"), prefill(fresh, prompt).expect("a prompt"));
    assert_close(session.logits(), fresh.logits(), tolerance, "behind a document");
    assert_eq!(session.n_past(), fresh.n_past());
    assert_lengths(session, &fresh.kv_lengths(), "behind a document");
    assert_eq!((report.n_tokens, &report.layers), (prompt.len(), &expected.layers));
    assert!((report.cache_kept - expected.cache_kept).abs() < 1e-12);
    if !expected.layers.is_empty() {
        assert_eq!(report.selection, expected.selection, "selected sets");
    }
    for token in [3, 1, 4] {
        session.decode(token).expect("room");
        fresh.decode(token).expect("room");
        assert_close(session.logits(), fresh.logits(), tolerance, "decoding behind a document");
    }
    report.n_reused
}

/// A document and questions of different lengths behind it.
fn prompts(pair: &Pair, n_document: usize, questions: usize) -> (Vec<u32>, Vec<Vec<u32>>) {
    let text = pair.tiny.prompt(n_document + 16 * questions);
    let (document, rest) = text.split_at(n_document);
    let question = |i: usize| [document, &rest[16 * i..16 * i + 3 + i]].concat();
    (document.to_vec(), (0..questions).map(question).collect())
}

#[test]
fn ten_questions_are_answered_as_if_each_were_read_from_the_start() {
    for name in NAMES {
        let pair = Pair::new(Tiny::named(name));
        for (n_document, is_dense) in [(90, false), (150, false), (90, true)] {
            let change: &dyn Fn(&mut SessionOptions) = if is_dense { &dense } else { &skipping(&pair) };
            let (mut session, mut fresh) = (pair.session(change), pair.session(change));
            let (document, questions) = prompts(&pair, n_document, 10);
            assert_eq!(read(&mut session, &document), 0);
            for question in &questions {
                let n = ask(&mut session, &mut fresh, question, pair.tolerance());
                assert_eq!(n, n_document, "{name}");
            }
            let kept = session.document().expect("a document");
            assert_eq!(kept.tokens(), document);
            // Local layers are left whole, and so are more of the first ones; recurrent ones wait for scores.
            match (is_dense, name) {
                (true, _) => assert_eq!(kept.n_layers_read(), pair.tiny.n_layer),
                (false, "gemma3") => assert!((2..pair.tiny.n_layer).contains(&kept.n_layers_read())),
                (false, "gpt-oss" | "olmo3" | "gemma4-small" | "qwen35" | "qwen3next") => {
                    assert_eq!(kept.n_layers_read(), 3)
                }
                (false, _) => assert_eq!(kept.n_layers_read(), 2),
            }
        }
    }
}

#[test]
fn a_question_can_be_asked_again_to_the_last_bit() {
    let pair = Pair::new(Tiny::named("qwen3"));
    let (document, questions) = prompts(&pair, 100, 2);
    let mut session = pair.session(skipping(&pair));
    read(&mut session, &document);
    let mut answers = Vec::new();
    for question in [&questions[0], &questions[1], &questions[0]] {
        session.clear();
        prefill(&mut session, question).expect("an answer");
        answers.push(session.logits().to_vec());
    }
    assert_eq!(answers[0], answers[2]);
    assert_ne!(answers[0], answers[1]);
    // All of it is there: only the layers that skip run again.
    session.clear();
    assert_eq!(prefill(&mut session, &questions[0]).expect("an answer").n_reused, questions[0].len());
    assert_eq!(session.logits(), answers[0]);
}

/// Where the tiles of a document and a question behind it are those of the whole prompt, not a bit differs.
#[test]
fn of_the_same_tiles_to_the_last_bit() {
    for name in NAMES {
        let pair = Pair::new(Tiny::named(name));
        for change in [&dense as &dyn Fn(&mut SessionOptions), &skipping(&pair)] {
            let change = |o: &mut SessionOptions| {
                change(o);
                o.n_ubatch = Some(64);
            };
            let (mut session, mut fresh) = (pair.session(change), pair.session(change));
            let text = pair.tiny.prompt(192);
            read(&mut session, &text[..128]);
            assert_eq!(ask(&mut session, &mut fresh, &text, 0.0), 128, "{name}");
        }
    }
}

#[test]
fn a_conversation_of_five_turns() {
    for name in ["llama", "gemma3", "phi3"] {
        let pair = Pair::new(Tiny::named(name));
        for is_dense in [false, true] {
            let change: &dyn Fn(&mut SessionOptions) = if is_dense { &dense } else { &skipping(&pair) };
            let (mut session, mut fresh) = (pair.session(change), pair.session(change));
            let text = pair.tiny.prompt(400);
            let mut turns = text[..120].to_vec();
            read(&mut session, &turns);
            for turn in 0..5 {
                let so_far = turns.len();
                turns.extend(&text[120 + 10 * turn..120 + 10 * turn + 4 + turn]);
                let n = ask(&mut session, &mut fresh, &turns, pair.tolerance());
                // Of a dense conversation the answer before was read as it was made.
                assert_eq!(n, so_far, "{name}, turn {turn}");
                turns.extend([3, 1, 4]);
                if !is_dense {
                    // The answer's residual stream is not there: it is read with the next question.
                    turns.truncate(turns.len() - 3);
                    session.clear();
                    assert_eq!(prefill(&mut session, &turns).expect("an answer").n_reused, turns.len());
                }
            }
        }
    }
}

#[test]
fn a_changed_document_is_read_from_where_it_changed() {
    let pair = Pair::new(Tiny::named("llama"));
    let (document, questions) = prompts(&pair, 120, 1);
    let (mut session, mut fresh) = (pair.session(skipping(&pair)), pair.session(skipping(&pair)));
    read(&mut session, &document);
    let mut changed = questions[0].clone();
    changed[70] = (changed[70] + 1) % pair.tiny.n_vocab() as u32;
    assert_eq!(ask(&mut session, &mut fresh, &changed, pair.tolerance()), 70);
    assert_eq!(session.document().expect("what is left").tokens().len(), 70);
    assert_eq!(read(&mut session, &document), 70);
    assert_eq!(ask(&mut session, &mut fresh, &questions[0], pair.tolerance()), 120);
    session.forget_document();
    assert!(session.document().is_none());
    assert_eq!(ask(&mut session, &mut fresh, &questions[0], pair.tolerance()), 0);
}

/// A recurrent layer has one state: at the document's end, and where the last prompt went on to. What parts from these before is
/// read from the start, and what goes on behind them is not.
#[test]
fn recurrent_layers_begin_where_a_state_is_there() {
    for name in ["qwen35", "qwen35moe", "qwen3next"] {
        let pair = Pair::new(Tiny::named(name));
        for is_dense in [false, true] {
            let change: &dyn Fn(&mut SessionOptions) = if is_dense { &dense } else { &skipping(&pair) };
            let (mut session, mut fresh) = (pair.session(change), pair.session(change));
            let mut ask = |session: &mut Session, prompt: &[u32]| ask(session, &mut fresh, prompt, pair.tolerance());
            let text = pair.tiny.prompt(300);
            read(&mut session, &text[..100]);
            assert_eq!(read(&mut session, &text[..100]), 100, "{name}: the same again");
            assert_eq!(ask(&mut session, &text[..120]), 100, "{name}: behind the document");
            // A dense answer was read as it was made; another one's residual stream is not there.
            let turn = [&text[..120], &[3, 1, 4], &text[120..130]].concat();
            assert_eq!(ask(&mut session, &turn), if is_dense { 123 } else { 100 }, "{name}: the next turn");
            // A longer document begins with the one before.
            assert_eq!(read(&mut session, &text[..140]), 100, "{name}");
            assert_eq!(ask(&mut session, &text[..150]), 140, "{name}: behind the longer document");
            // The document itself: of a dense one the last token's logits are wanted.
            assert_eq!(ask(&mut session, &text[..140]), if is_dense { 0 } else { 140 }, "{name}: the document alone");
            read(&mut session, &text[..140]);
            // It parts within the document, whose state is then gone.
            let other = [&text[..139], &text[200..210]].concat();
            assert_eq!(ask(&mut session, &other), 0, "{name}: another document");
            assert!(session.document().is_none(), "{name}");
            assert_eq!(ask(&mut session, &text[..150]), 0, "{name}: the first one again");
            // Nothing but everything can be forgotten.
            let n = session.n_past();
            let e = session.truncate(n - 1).expect_err("no such state");
            assert!(matches!(e, Error::TruncateState { read, .. } if read == n), "{e}");
            session.truncate(n).expect("nothing to forget");
            session.truncate(0).expect("everything");
            assert_eq!(ask(&mut session, &text[..150]), 0, "{name}: after all");
        }
    }
}

#[test]
fn what_does_not_serve_is_read_anew() {
    let pair = Pair::new(Tiny::named("llama"));
    let (document, questions) = prompts(&pair, 120, 1);
    let (mut session, mut fresh) = (pair.session(skipping(&pair)), pair.session(skipping(&pair)));
    read(&mut session, &document);
    // Below the first budget a prompt is dense: what the first layers have is not enough.
    assert_eq!(ask(&mut session, &mut fresh, &document[..20], pair.tolerance()), 0);
    read(&mut session, &document);
    // A schedule that skips later can begin with it, one that skips earlier cannot.
    for (skip_from, served) in [(3, 120), (1, 0)] {
        let other = Schedule { skip_from, ..skips(&pair) };
        session.set_method(other.clone().into()).expect("a schedule that fits");
        fresh.set_method(other.into()).expect("a schedule that fits");
        assert_eq!(ask(&mut session, &mut fresh, &questions[0], pair.tolerance()), served, "from layer {skip_from}");
    }
    // From the first layer on: nothing can be kept, and prompts are read all the same.
    let other = Schedule { skip_from: 0, ..skips(&pair) };
    session.set_method(other.clone().into()).expect("a schedule that fits");
    fresh.set_method(other.into()).expect("a schedule that fits");
    assert_eq!(ask(&mut session, &mut fresh, &questions[0], pair.tolerance()), 0);
    let e = session.read(&document, &mut |_| ControlFlow::Continue(())).expect_err("nothing to keep");
    assert!(matches!(e, Error::MethodReadsAnew { .. }), "{e}");
    // Another method chooses what enters.
    session.set_method(Rival::parse("last:0.5").expect("a rival").method()).expect("a method that fits");
    let e = session.read(&document, &mut |_| ControlFlow::Continue(())).expect_err("nothing to keep");
    assert!(e.to_string().contains("reads every prompt anew"), "{e}");
    session.clear();
    assert_eq!(prefill(&mut session, &questions[0]).expect("a prompt").n_reused, 0);
}

#[test]
fn a_prompt_of_another_kind_leaves_nothing_behind() {
    let pair = Pair::new(Tiny::named("llama"));
    let (document, questions) = prompts(&pair, 120, 1);
    let others =
        [Schedule { skip_from: 0, ..skips(&pair) }.into(), Rival::parse("last:0.5").expect("a rival").method()];
    for other in others {
        let (mut session, mut fresh) = (pair.session(dense), pair.session(dense));
        read(&mut session, &document);
        session.set_method(other).expect("a method that fits");
        prefill(&mut session, &questions[0]).expect("a prompt");
        session.decode(document[0]).expect("room");
        session.set_method(std::sync::Arc::new(spts::Dense)).expect("dense fits");
        assert_eq!(ask(&mut session, &mut fresh, &questions[0], pair.tolerance()), 0);
    }
}

#[test]
fn an_interrupted_question_leaves_the_document() {
    let pair = Pair::new(Tiny::named("qwen2"));
    let (document, questions) = prompts(&pair, 150, 3);
    for change in [&dense as &dyn Fn(&mut SessionOptions), &skipping(&pair)] {
        let (mut session, mut fresh) = (pair.session(change), pair.session(change));
        let mut calls = 0;
        let stopped = session.read(&document, &mut |_| {
            calls += 1;
            if calls == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(matches!(stopped, Err(Error::Interrupted)) || calls < 2);
        read(&mut session, &document);
        for stop_at in 1..12 {
            let mut calls = 0;
            session.clear();
            let result = session.prefill(&questions[stop_at % 3], &mut |p| {
                calls += 1;
                assert!((0.0..=1.0).contains(&p.fraction));
                if calls == stop_at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            if calls == stop_at {
                assert!(matches!(result, Err(Error::Interrupted)));
                assert_eq!(session.n_past(), 0);
                assert!(matches!(session.decode(1), Err(Error::NothingPrefilled)));
            }
            // Where the first layers had read the question already, more than the document is there.
            let n = ask(&mut session, &mut fresh, &questions[0], pair.tolerance());
            assert!((150..=153).contains(&n), "{n} of 153");
        }
    }
}

#[test]
fn a_file_serves_another_session() {
    let dir = tempfile::tempdir().expect("a folder");
    for name in NAMES {
        let pair = Pair::new(Tiny::named(name));
        for change in [&dense as &dyn Fn(&mut SessionOptions), &skipping(&pair)] {
            let (document, questions) = prompts(&pair, 130, 2);
            let path = dir.path().join(format!("{name}.document"));
            let mut first = pair.session(change);
            read(&mut first, &document);
            // A question in between is not part of it.
            prefill(&mut first, &questions[1]).expect("an answer");
            first.document().expect("a document").save(&path).expect("a file");
            let bytes = first.document().expect("a document").n_bytes();
            let on_disk = std::fs::metadata(&path).expect("a file").len();
            assert!(bytes < on_disk && on_disk < bytes + 16384, "{bytes} bytes, {on_disk} in the file");

            let (mut second, mut fresh) = (pair.session(change), pair.session(change));
            second.open_document(&path).expect("a document");
            assert_eq!(second.document().expect("a document").tokens(), document);
            assert_eq!(second.n_past(), 0);
            for question in &questions {
                let n = ask(&mut second, &mut fresh, question, pair.tolerance());
                assert_eq!(n, 130, "{name}");
            }
            // Between sessions not even a bit is lost.
            first.clear();
            second.clear();
            prefill(&mut first, &questions[0]).expect("an answer");
            prefill(&mut second, &questions[0]).expect("an answer");
            assert_eq!(first.logits(), second.logits());
        }
    }
}

#[test]
fn caches_of_every_type_and_host_memory() {
    let dir = tempfile::tempdir().expect("a folder");
    let pair = Pair::new(Tiny { head_dim: 32, ..Tiny::named("llama") });
    let (document, questions) = prompts(&pair, 130, 2);
    for (ty, tolerance) in [(CacheType::F16, F16_CACHE), (CacheType::Q8_0, Q8_0_CACHE)] {
        let change = |o: &mut SessionOptions| {
            dense(o);
            o.method = skips(&pair).into();
            (o.cache_type_k, o.cache_type_v) = (ty, CacheType::F16);
            o.document_memory = DocumentMemory::Host;
        };
        let (mut session, mut fresh) = (pair.session(change), pair.session(change));
        read(&mut session, &document);
        let path = dir.path().join("document");
        session.document().expect("a document").save(&path).expect("a file");
        for _ in 0..2 {
            for question in &questions {
                session.clear();
                fresh.clear();
                prefill(&mut session, question).expect("an answer");
                prefill(&mut fresh, question).expect("a prompt");
                let d = distance(session.logits(), fresh.logits());
                assert!(d < tolerance, "{ty:?}: {d}");
            }
            session = pair.session(change);
            session.open_document(&path).expect("a document");
        }
        let e = pair.session(skipping(&pair)).open_document(&path).expect_err("other caches");
        assert!(e.to_string().contains("the session's caches F32 and F32"), "{e}");
    }
}

fn refused(session: &mut Session, path: &Path) -> DocumentError {
    match session.open_document(path).expect_err("no such document") {
        Error::Document(e) => e,
        e => panic!("another error: {e}"),
    }
}

#[test]
fn a_file_of_another_model_or_setting_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("document");
    let pair = Pair::new(Tiny::named("llama"));
    let (document, _) = prompts(&pair, 100, 1);
    let mut session = pair.session(skipping(&pair));
    read(&mut session, &document);
    session.document().expect("a document").save(&path).expect("a file");

    let other = Pair::new(Tiny { seed: 9, ..Tiny::named("llama") });
    let e = refused(&mut other.session(skipping(&other)), &path);
    assert!(matches!(e, DocumentError::OtherModel { .. }), "{e}");
    let e = pair.session(|o| o.n_ctx = Some(90)).open_document(&path).expect_err("a short context");
    assert!(matches!(e, Error::ContextFull { n_tokens: 100, n_ctx: 90, .. }), "{e}");
    let e = refused(&mut session, &dir.path().join("nothing"));
    assert!(matches!(e, DocumentError::Gguf(_)), "{e}");

    // Phi-3's factors depend on the length of the context.
    let long = Pair::new(Tiny::named("phi3-longrope"));
    let mut session = long.session(skipping(&long));
    read(&mut session, &long.tiny.prompt(60));
    session.document().expect("a document").save(&path).expect("a file");
    let e = refused(&mut long.session(|o| o.n_ctx = Some(64)), &path);
    assert!(matches!(e, DocumentError::OtherSettings { .. }), "{e}");
}

#[test]
fn a_damaged_file_is_an_error_and_never_a_crash() {
    for name in ["llama", "qwen35"] {
        a_damaged_file_of(&Pair::new(Tiny::named(name)));
    }
}

fn a_damaged_file_of(pair: &Pair) {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("document");
    let (document, questions) = prompts(pair, 60, 1);
    let mut session = pair.session(skipping(pair));
    read(&mut session, &document);
    session.document().expect("a document").save(&path).expect("a file");
    let whole = std::fs::read(&path).expect("the file");
    for end in (0..whole.len()).step_by(whole.len() / 97) {
        std::fs::write(&path, &whole[..end]).expect("a file");
        refused(&mut session, &path);
    }
    // Any byte of the header, changed in any way: refused, or a document that can be asked.
    let header = whole.windows(8).position(|w| w == b"residual").expect("the last tensor's name") + 64;
    assert!(header < whole.len() / 2, "residual is no name in the header");
    let mut random = support::prng::Prng::named(1, "damage");
    let (mut opened, mut refusals) = (0, 0);
    for at in 0..header {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << random.below(8);
        std::fs::write(&path, &bytes).expect("a file");
        match session.open_document(&path) {
            Ok(()) => {
                opened += 1;
                let _ = prefill(&mut session, &questions[0]);
            }
            Err(_) => refusals += 1,
        }
    }
    assert!(refusals > header / 2, "{opened} opened, {refusals} refused");
    std::fs::write(&path, &whole).expect("a file");
    assert_eq!(DocumentFile::open(&path).expect("the file").tokens(), document);
}

#[test]
fn a_full_context_is_said_and_keeps_what_was_read() {
    let pair = Pair::new(Tiny::named("llama"));
    let (document, questions) = prompts(&pair, 100, 8);
    let change = |o: &mut SessionOptions| {
        skipping(&pair)(o);
        o.n_ctx = Some(108);
    };
    let (mut session, mut fresh) = (pair.session(change), pair.session(change));
    read(&mut session, &document);
    let e = prefill(&mut session, &questions[7]).expect_err("110 tokens");
    assert!(matches!(e, Error::ContextFull { n_tokens: 110, n_ctx: 108, .. }), "{e}");
    session.clear();
    let n = prefill(&mut session, &questions[0]).expect("an answer").n_reused;
    assert_eq!(n, 100);
    prefill(&mut fresh, &questions[0]).expect("a prompt");
    assert_close(session.logits(), fresh.logits(), pair.tolerance(), "after a full context");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, rng_seed: RngSeed::Fixed(11), ..ProptestConfig::default() })]

    /// Wherever a document ends, in tiles of any size, from any layer on.
    #[test]
    fn any_document_and_any_question(
        name in prop::sample::select(NAMES.to_vec()),
        n_document in 1usize..200,
        question in 1usize..40,
        n_ubatch in 1usize..80,
        skip_from in 1usize..4,
    ) {
        let pair = Pair::new(Tiny::named(name));
        let schedule = Schedule { skip_from: skip_from.min(pair.tiny.n_layer - 2), ..skips(&pair) };
        let change = |o: &mut SessionOptions| {
            o.method = schedule.clone().into();
            o.n_ubatch = Some(n_ubatch);
            o.record_selection = true;
        };
        let (mut session, mut fresh) = (pair.session(change), pair.session(change));
        let text = pair.tiny.prompt(n_document + question);
        read(&mut session, &text[..n_document]);
        ask(&mut session, &mut fresh, &text, pair.tolerance());
    }
}
