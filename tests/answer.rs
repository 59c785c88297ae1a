//! An answer as an iterator: the tokens of `generate`, each when it is asked for.

mod reference;
mod runtime;
mod support;

use std::ops::ControlFlow;

use runtime::{Pair, prefill};
use spts::{GenerateOptions, Sampler, SamplerParams, SessionOptions, StopReason, StopStrings};
use support::tiny::Tiny;

fn greedy() -> Sampler {
    Sampler::new(SamplerParams::greedy()).expect("valid parameters")
}

fn options(n_predict: usize) -> GenerateOptions {
    GenerateOptions { n_predict, stop_at_eog: false, logprobs: 3, ..GenerateOptions::default() }
}

#[test]
fn the_same_tokens_as_with_callbacks() {
    let pair = Pair::new(Tiny::named("llama"));
    let prompt = pair.tiny.prompt(30);
    let go_on = |_| ControlFlow::Continue(());
    let expected = pair
        .session(|_| {})
        .generate(&prompt, &mut greedy(), options(12), &mut { go_on }, &mut |_| ControlFlow::Continue(()))
        .expect("an answer");
    let (mut session, mut sampler) = (pair.session(|_| {}), greedy());
    let mut answer = session.answer(&prompt, &mut sampler, options(12)).expect("a prompt");
    assert_eq!((answer.prefill().n_tokens, answer.stop()), (30, None));
    let mut tokens = Vec::new();
    while let Some(token) = answer.next() {
        tokens.push(token.expect("a token"));
        assert_eq!(answer.logprobs(), expected.logprobs[tokens.len() - 1]);
    }
    assert_eq!((tokens, answer.stop()), (expected.tokens, Some(StopReason::Length)));
    assert!(answer.next().is_none());
}

#[test]
fn dropping_it_ends_the_answer_and_leaves_the_session() {
    let pair = Pair::new(Tiny::named("llama"));
    let prompt = pair.tiny.prompt(30);
    let (mut session, mut sampler) = (pair.session(|_| {}), greedy());
    let first: Vec<u32> = session
        .answer(&prompt, &mut sampler, options(12))
        .expect("a prompt")
        .take(3)
        .map(|token| token.expect("a token"))
        .collect();
    // The third token was sampled and not read.
    assert_eq!((first.len(), session.n_past()), (3, 32));
    prefill(&mut session, &first[2..]).expect("what follows");
    let mut fresh = pair.session(|_| {});
    prefill(&mut fresh, &[&prompt[..], &first].concat()).expect("the same at once");
    runtime::assert_close(session.logits(), fresh.logits(), pair.tolerance(), "behind a dropped answer");
}

#[test]
fn it_says_why_it_ends() {
    let pair = Pair::new(Tiny::named("llama"));
    let prompt = pair.tiny.prompt(30);
    let mut session = pair.session(|options: &mut SessionOptions| options.n_ctx = Some(34));
    let mut sampler = greedy();
    let mut answer = session.answer(&prompt, &mut sampler, options(100)).expect("a prompt");
    assert_eq!(answer.by_ref().count(), 5);
    assert_eq!(answer.stop(), Some(StopReason::ContextFull));

    let mut session = pair.session(|_| {});
    let flag = session.interrupt_flag();
    let mut answer = session.answer(&prompt, &mut sampler, options(100)).expect("a prompt");
    assert!(answer.next().is_some_and(|token| token.is_ok()));
    flag.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(answer.next().is_none());
    assert_eq!(answer.stop(), Some(StopReason::Interrupted));

    let mut session = pair.session(|_| {});
    let mut answer = session.answer(&prompt, &mut sampler, options(0)).expect("a prompt");
    assert!(answer.next().is_none());
    assert_eq!(answer.stop(), Some(StopReason::Length));
}

#[test]
fn stop_strings_end_it_wherever_tokens_end() {
    let pair = Pair::new(Tiny::named("llama"));
    let prompt = pair.tiny.prompt(30);
    let tokens_until = |stop: StopStrings| {
        let (mut session, mut sampler) = (pair.session(|_| {}), greedy());
        let options = GenerateOptions { stop, ..options(24) };
        let mut answer = session.answer(&prompt, &mut sampler, options).expect("a prompt");
        let tokens: Vec<u32> = answer.by_ref().map(|token| token.expect("a token")).collect();
        (tokens, answer.stop())
    };
    let model = pair.session(|_| {}).model().clone();
    let tokenizer = model.tokenizer();
    let (all, stop) = tokens_until(StopStrings::default());
    assert_eq!((all.len(), stop), (24, Some(StopReason::Length)));
    let text = |n: usize| tokenizer.decode(&all[..n]);
    // A stop string over the border between two tokens: the last letter of one, and the first of the next.
    let mut n_tried = 0;
    for n in 2..all.len() {
        let (before, after) = (text(n), text(n + 1));
        let (last, next) = (before.chars().next_back(), after.strip_prefix(&before).and_then(|t| t.chars().next()));
        let (Some(last), Some(next)) = (last, next) else { continue };
        let stop = format!("{last}{next}");
        if stop.contains('\u{fffd}') || before.contains(&stop) {
            continue;
        }
        let (tokens, reason) = tokens_until([stop.as_str()].into_iter().collect());
        assert_eq!((&tokens[..], reason), (&all[..=n], Some(StopReason::StopString)), "{stop:?}");
        // The text behind the filter ends before it.
        let stops: StopStrings = [stop.as_str()].into_iter().collect();
        let (mut decoder, mut filter) = (spts::StreamDecoder::new(tokenizer), stops.filter());
        let shown: String = tokens.iter().map(|&token| filter.push(&decoder.push(token))).collect();
        assert_eq!(shown, before[..before.len() - last.len_utf8()], "{stop:?}");
        n_tried += 1;
    }
    assert!(n_tried > 2, "{all:?}: {:?}", text(all.len()));
    // Texts that are not said end nothing.
    let (tokens, reason) = tokens_until(["never said", ""].into_iter().collect());
    assert_eq!((tokens, reason), (all, Some(StopReason::Length)));
}
