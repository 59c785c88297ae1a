//! Attention of prompts on CPUs by ggml's kernel behind masks: what other systems than Linux have, heads of more than 256 elements,
//! and whoever asks for it. The switch holds for the whole process, and so these tests are a program of their own.

mod reference;
mod runtime;
mod support;

use std::ops::ControlFlow;
use std::sync::{Mutex, MutexGuard, PoisonError};

use runtime::skipping::{Run, stages, two_globals};
use runtime::{Pair, assert_close, logits, one_stage, prefill};
use spts::method::spts::schedule::Pool;
use support::tiny::{NAMES, Tiny};

/// Sessions made while it lives have ggml's attention.
struct ByGgml(#[allow(dead_code)] MutexGuard<'static, ()>);

impl ByGgml {
    fn new() -> ByGgml {
        static SWITCH: Mutex<()> = Mutex::new(());
        let alone = SWITCH.lock().unwrap_or_else(PoisonError::into_inner);
        spts::runtime::attend_by_ggml(true);
        ByGgml(alone)
    }
}

impl Drop for ByGgml {
    fn drop(&mut self) {
        spts::runtime::attend_by_ggml(false);
    }
}

fn every_tiny() -> impl Iterator<Item = Tiny> {
    NAMES.map(Tiny::named).into_iter().chain([two_globals()])
}

/// Longer than a mask is high, and in tiles of which the last one is short.
#[test]
fn dense_prompts() {
    let _by_ggml = ByGgml::new();
    for tiny in every_tiny() {
        let pair = Pair::new(tiny);
        for (n, tiles) in [(40, [1, 7]), (540, [37, 540])] {
            let tokens = pair.tiny.prompt(n);
            let expected = pair.reference.forward(&tokens, None).logits;
            let tolerance = pair.tolerance_of_rounding(&tokens);
            for n_ubatch in tiles {
                let got = logits(pair.session(|o| o.n_ubatch = Some(n_ubatch)), &tokens);
                assert_close(&got, &expected, tolerance, &format!("{}, {n} in tiles of {n_ubatch}", pair.tiny.name));
            }
        }
    }
}

/// Windows behind prunes see by positions, which their masks are made from.
#[test]
fn skipping_prompts() {
    let _by_ggml = ByGgml::new();
    for tiny in every_tiny() {
        let pair = Pair::new(tiny);
        let run = Run { pool: Pool::Max(5), carry: 0.7, n_ubatch: 17, ..stages(&pair.tiny).queries(4) };
        run.compare_with_decoding(&pair, &pair.tiny.prompt(120), None);
    }
}

/// A few rows are not computed as precisely as many by this kernel, so a short question takes some of the document with it; where a
/// state stands at the document's end, nothing.
#[test]
fn short_questions_take_a_tile_of_queries() {
    let _by_ggml = ByGgml::new();
    for (name, n_reused) in [("llama", 123 - 64), ("gpt-oss", 123 - 64), ("qwen35", 120)] {
        let pair = Pair::new(Tiny::named(name));
        let tokens = pair.tiny.prompt(123);
        let skips = |o: &mut spts::SessionOptions| o.method = one_stage(&pair.tiny, 24, 4).into();
        for change in [&(|_: &mut spts::SessionOptions| ()) as &dyn Fn(&mut _), &skips] {
            let mut session = pair.session(change);
            session.read(&tokens[..120], &mut |_| ControlFlow::Continue(())).expect("a document");
            let report = prefill(&mut session, &tokens).expect("a question");
            assert_eq!(report.n_reused, n_reused, "{name}");
            let fresh = logits(pair.session(change), &tokens);
            assert_close(session.logits(), &fresh, pair.tolerance(), name);
        }
    }
}

/// A session keeps the kernel that it was made with.
#[test]
fn sessions_do_not_change() {
    let pair = Pair::new(Tiny::named("gpt-oss"));
    let tokens = pair.tiny.prompt(100);
    let read = |session: &mut spts::Session| {
        session.clear();
        prefill(session, &tokens).expect("a prompt");
        session.decode(3).expect("decode");
        session.logits().to_vec()
    };
    let by_ggml = ByGgml::new();
    let mut ggmls = pair.session(|_| ());
    let first = read(&mut ggmls);
    spts::runtime::attend_by_ggml(false);
    let mut ours = pair.session(|_| ());
    let other = read(&mut ours);
    if cfg!(target_os = "linux") {
        assert_ne!(first, other, "two kernels, and not a bit between them");
    }
    assert_close(&first, &other, pair.tolerance_of_rounding(&tokens), "two kernels");
    assert_eq!(read(&mut ggmls), first);
    spts::runtime::attend_by_ggml(true);
    assert_eq!((read(&mut ours), read(&mut ggmls)), (other, first));
    drop(by_ggml);
}
