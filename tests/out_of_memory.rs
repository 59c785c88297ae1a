//! Memory that runs out, at every allocation there is: an error or smaller tiles, never a broken session, and no generated token
//! lost.

mod reference;
mod runtime;
mod support;

use std::ops::ControlFlow;

use runtime::{Pair, assert_close, one_stage, prefill};
use spts::ggml::injected::{fail_allocation, is_pending};
use spts::model::placement::Placement;
use spts::{
    Error, GenerateOptions, GgmlError, Model, ModelFile, Sampler, SamplerParams, Session, SessionOptions, StopReason,
};
use support::tiny::Tiny;

/// Long enough for two tiles, and for tiles of half the size.
const N: usize = 600;

fn skipping(pair: &Pair) -> impl Fn(&mut SessionOptions) + use<> {
    let schedule = one_stage(&pair.tiny, 200, 40);
    move |o| {
        o.n_ubatch = None;
        o.method = schedule.clone().into();
    }
}

fn dense(o: &mut SessionOptions) {
    o.n_ubatch = None;
}

/// What came of a call during which the `n`-th allocation failed, and whether there were so many.
fn with_failure<T>(n: usize, call: impl FnOnce() -> T) -> (T, bool) {
    fail_allocation(n);
    let result = call();
    let came = !is_pending();
    fail_allocation(0);
    (result, came)
}

/// Runs `attempt` with the first, second, ... allocation failing, until there are not so many. Says how many attempts failed.
fn at_every_allocation(mut attempt: impl FnMut(usize) -> (Result<(), Error>, bool)) -> usize {
    let mut n_failed = 0;
    for n in 1..500 {
        match attempt(n) {
            (Ok(()), false) => return n_failed,
            (Ok(()), true) => {}
            (Err(e @ Error::Ggml(GgmlError::OutOfMemory { .. })), true) => {
                assert!(!e.to_string().contains('\n'), "allocation {n}: {e}");
                n_failed += 1;
            }
            (Err(e), came) => panic!("allocation {n}, {came}: {e}"),
        }
    }
    panic!("there is no end to allocations")
}

fn sampler() -> Sampler {
    Sampler::new(SamplerParams::greedy()).expect("a sampler")
}

/// A session that failed is empty, and reads the prompt as a new one does.
#[test]
fn a_prompt() {
    for name in ["llama", "gemma3", "gemma4-small", "qwen3moe", "qwen35"] {
        let pair = Pair::new(Tiny::named(name));
        let tokens = pair.tiny.prompt(N);
        for change in [&dense as &dyn Fn(&mut SessionOptions), &skipping(&pair)] {
            let mut fresh = pair.session(change);
            prefill(&mut fresh, &tokens).expect("a prompt");
            let n_failed = at_every_allocation(|n| {
                let mut session = pair.session(change);
                let (result, came) = with_failure(n, || prefill(&mut session, &tokens));
                if result.is_err() {
                    assert_eq!(session.n_past(), 0, "{name}, allocation {n}");
                    prefill(&mut session, &tokens).expect("the next time there is memory");
                }
                // With smaller tiles sums are rounded elsewhere.
                assert_close(session.logits(), fresh.logits(), pair.tolerance(), &format!("{name}, allocation {n}"));
                assert_eq!(session.kv_lengths(), fresh.kv_lengths());
                (result.map(|_| ()), came)
            });
            assert!(n_failed > 3, "{name}: only {n_failed} allocations could fail");
        }
    }
}

/// The tokens so far are kept, and the failure is told beside them.
#[test]
fn an_answer() {
    let pair = Pair::new(Tiny::named("llama"));
    let tokens = pair.tiny.prompt(40);
    let options = GenerateOptions { n_predict: 30, stop_at_eog: false, ..GenerateOptions::default() };
    let answer = |session: &mut Session| {
        let go_on = |_| ControlFlow::Continue(());
        session
            .generate(&tokens, &mut sampler(), options.clone(), &mut go_on.clone(), &mut |_| ControlFlow::Continue(()))
    };
    let whole = answer(&mut pair.session(dense)).expect("an answer").tokens;
    let mut n_cut = 0;
    at_every_allocation(|n| {
        let mut session = pair.session(dense);
        let (result, came) = with_failure(n, || answer(&mut session));
        let result = result.map(|generation| {
            assert_eq!(generation.tokens, whole[..generation.tokens.len()], "allocation {n}");
            match generation.failure {
                None => assert_eq!(generation.tokens.len(), whole.len()),
                Some(e) => {
                    assert!(matches!(e, Error::Ggml(GgmlError::OutOfMemory { .. })), "{e}");
                    assert_eq!(generation.stop, StopReason::Failed);
                    assert!(!generation.tokens.is_empty());
                    n_cut += 1;
                }
            }
        });
        (result, came)
    });
    assert!(n_cut > 0, "no answer was cut");
}

/// Decoding that outgrows its cache: a token that found no memory can be decoded again when there is some.
#[test]
fn decoding() {
    let pair = Pair::new(Tiny::named("llama"));
    let tokens = pair.tiny.prompt(900);
    let mut fresh = pair.session(dense);
    prefill(&mut fresh, &tokens[..3]).expect("a prompt");
    tokens[3..].iter().for_each(|token| fresh.decode(*token).expect("decode"));
    let n_failed = at_every_allocation(|n| {
        let mut session = pair.session(dense);
        prefill(&mut session, &tokens[..3]).expect("a prompt");
        let mut failure = Ok(());
        fail_allocation(n);
        for token in &tokens[3..] {
            let n_past = session.n_past();
            if let Err(e) = session.decode(*token) {
                assert_eq!(session.n_past(), n_past, "allocation {n}");
                failure = Err(e);
                session.decode(*token).expect("there is memory again");
            }
        }
        let came = !is_pending();
        fail_allocation(0);
        assert_eq!(session.logits(), fresh.logits(), "allocation {n}");
        (failure, came)
    });
    assert!(n_failed > 0, "no allocation failed");
}

/// A document, and a question about it.
#[test]
fn a_document() {
    for name in ["llama", "qwen35"] {
        a_document_of(&Pair::new(Tiny::named(name)));
    }
}

fn a_document_of(pair: &Pair) {
    let tokens = pair.tiny.prompt(N);
    let mut fresh = pair.session(skipping(pair));
    prefill(&mut fresh, &tokens).expect("a prompt");
    let n_failed = at_every_allocation(|n| {
        let mut session = pair.session(skipping(pair));
        let (result, came) = with_failure(n, || {
            session.read(&tokens[..N - 20], &mut |_| ControlFlow::Continue(()))?;
            prefill(&mut session, &tokens)
        });
        if result.is_err() {
            prefill(&mut session, &tokens).expect("the next time there is memory");
        }
        assert_close(session.logits(), fresh.logits(), pair.tolerance(), &format!("allocation {n}"));
        (result.map(|_| ()), came)
    });
    assert!(n_failed > 3, "only {n_failed} allocations could fail");
}

/// Experts that lie elsewhere need room on the layers' device.
#[test]
fn experts_elsewhere() {
    let pair = Pair::new(Tiny::named("qwen3moe"));
    let file = ModelFile::from_gguf(pair.model.file().gguf().clone()).expect("a model");
    let placement = Placement::split("CPU".into(), pair.tiny.n_layer, pair.tiny.n_layer, usize::MAX);
    let model = Model::place_as(file, placement, runtime::on_cpu()).expect("a model");
    let tokens = pair.tiny.prompt(N);
    let new_session = || Session::new(model.clone(), runtime::exact(pair.n_ctx)).expect("a session");
    let mut fresh = new_session();
    prefill(&mut fresh, &tokens).expect("a prompt");
    let n_failed = at_every_allocation(|n| {
        let mut session = new_session();
        let (result, came) = with_failure(n, || prefill(&mut session, &tokens));
        if result.is_err() {
            prefill(&mut session, &tokens).expect("the next time there is memory");
        }
        assert_close(session.logits(), fresh.logits(), pair.tolerance(), &format!("allocation {n}"));
        (result.map(|_| ()), came)
    });
    assert!(n_failed > 3, "only {n_failed} allocations could fail");
}
