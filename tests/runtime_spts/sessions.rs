//! What a session leaves behind: one can be cleared, used again and interrupted.

use std::ops::{ControlFlow, Range};

use spts::{Error, Session};

use crate::runtime::skipping::{Run, stages, two_globals};
use crate::runtime::{Pair, logits, prefill};
use crate::support::tiny::Tiny;

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
