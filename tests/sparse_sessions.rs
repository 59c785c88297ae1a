//! Prompts whose attention reads a part of the keys, in whole models on the CPU.
#![cfg(target_os = "linux")]

mod reference;
mod runtime;
mod support;

use std::ops::ControlFlow;
use std::sync::Arc;

use runtime::{Pair, distance, one_stage, prefill};
use spts::session::document_error::DocumentError;
use spts::{BlockShare, BlockSparse, Dense, Error, Method, Session};
use support::tiny::Tiny;

/// More than the queries from which blocks are chosen, and no multiple of a block.
const N: usize = 1700;

/// Models with layers behind the first two that see all keys of many queries.
fn models() -> Vec<Tiny> {
    let gemma3 = Tiny { n_layer: 14, ..Tiny::named("gemma3") };
    ["llama", "qwen2", "gpt-oss", "qwen35"].into_iter().map(Tiny::named).chain([gemma3]).collect()
}

fn sparse(method: Arc<dyn Method>, share: BlockShare) -> Arc<dyn Method> {
    Arc::new(BlockSparse::new(method, share))
}

fn session(pair: &Pair, method: &Arc<dyn Method>, n_ubatch: usize) -> Session {
    pair.session(|o| {
        o.method = method.clone();
        o.n_ubatch = Some(n_ubatch);
    })
}

fn logits(pair: &Pair, method: &Arc<dyn Method>, n_ubatch: usize) -> Vec<f32> {
    let mut session = session(pair, method, n_ubatch);
    prefill(&mut session, &pair.tiny.prompt(N)).expect("a prompt");
    session.logits().to_vec()
}

#[test]
fn nearly_all_of_the_attention_gives_nearly_the_same() {
    for tiny in models() {
        let (name, pair) = (tiny.name, Pair::new(tiny));
        let dense: Arc<dyn Method> = Arc::new(Dense);
        let expected = logits(&pair, &dense, 512);
        let [most, little] = [BlockShare::Mass(0.9999), BlockShare::Density(0.05)]
            .map(|share| distance(&logits(&pair, &sparse(dense.clone(), share), 512), &expected));
        println!("{name}: {most:.1e} with 0.9999 of the mass, {little:.1e} with a twentieth of the blocks");
        assert!(most <= 1e-2, "{name}: {most}");
        assert!(little > most && little.is_finite(), "{name}: {little}, {most} with nearly all");
    }
}

/// Tiles are of whole blocks, whatever their size: the same keys are read.
#[test]
fn tiles_of_whole_blocks_read_the_same() {
    for tiny in models() {
        let (name, pair) = (tiny.name, Pair::new(tiny));
        let schedule = one_stage(&pair.tiny, 1400, 900);
        for inner in [Arc::new(Dense) as Arc<dyn Method>, schedule.into()] {
            let method = sparse(inner, BlockShare::Density(0.3));
            let expected = logits(&pair, &method, 512);
            for n_ubatch in [128, 1024, 4096] {
                let got = logits(&pair, &method, n_ubatch);
                let distance = distance(&got, &expected);
                assert!(distance <= pair.tolerance(), "{name}, {}, tiles of {n_ubatch}: {distance}", method.name());
            }
        }
    }
}

/// What a conversation has read stays, whatever the prompts to come look at.
#[test]
fn another_attention_leaves_a_conversation() {
    let pair = Pair::new(Tiny::named("llama"));
    let dense: Arc<dyn Method> = Arc::new(Dense);
    let mut session = session(&pair, &dense, 512);
    let report = prefill(&mut session, &pair.tiny.prompt(N)).expect("a prompt");
    assert_eq!(report.sparse_layers, 0);
    session.set_method(sparse(dense, BlockShare::Mass(0.9))).expect("a method");
    assert_eq!(session.n_past(), N);
    session.decode(3).expect("room");
    session.clear();
    // All but the first two, and the last, of which one query is left.
    let report = prefill(&mut session, &pair.tiny.prompt(N)).expect("a prompt");
    assert_eq!(report.sparse_layers, pair.tiny.n_layer - 3);
}

#[test]
fn documents_belong_to_an_attention() {
    let pair = Pair::new(Tiny::named("llama"));
    let schedule: Arc<dyn Method> = one_stage(&pair.tiny, 600, 300).into();
    let with = |mass: f32| sparse(schedule.clone(), BlockShare::Mass(mass));
    let document = pair.tiny.prompt(N);
    let mut reading = session(&pair, &with(0.9), 512);
    let mut go = |_| ControlFlow::Continue(());
    reading.read(&document, &mut go).expect("a document");
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("document");
    reading.document().expect("a document").save(&file).expect("a file");

    // Opened where attention is the same, a question is answered as beside the document that was read.
    let mut opened = session(&pair, &with(0.9), 512);
    opened.open_document(&file).expect("the same attention");
    let prompt = [&document[..], &[3, 1, 4]].concat();
    let [first, second] = [&mut reading, &mut opened].map(|session| {
        let report = prefill(session, &prompt).expect("an answer");
        assert!(report.n_reused >= N - 64, "{} reused", report.n_reused);
        session.logits().to_vec()
    });
    assert_eq!(first, second);

    for other in [schedule.clone(), with(0.8)] {
        let mut session = session(&pair, &other, 512);
        let refused = session.open_document(&file).expect_err("another attention");
        assert!(matches!(refused, Error::Document(DocumentError::OtherSettings { .. })), "{refused}");
    }

    // A method of the same attention keeps the document, another does not.
    opened.set_method(with(0.9)).expect("a method");
    assert!(opened.document().is_some());
    opened.set_method(schedule).expect("a method");
    assert!(opened.document().is_none() && opened.n_past() == 0);
}
