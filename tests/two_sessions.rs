//! Two sessions of one model at the same time, each in a thread of its own: results are those of one alone.

mod reference;
mod runtime;
mod support;

use runtime::{Pair, prefill, schedule};
use spts::method::spts::schedule::{Pool, Probe, Schedule};
use spts::{Session, SessionOptions};
use support::tiny::Tiny;

/// Logits behind each of some prompts and behind a few tokens that follow, one bit pattern a float.
fn read(session: &mut Session, prompts: &[Vec<u32>]) -> Vec<Vec<u32>> {
    let mut out = Vec::new();
    for prompt in prompts {
        session.clear();
        prefill(session, prompt).expect("a prefill");
        out.push(session.logits().iter().map(|x| x.to_bits()).collect());
        for token in [3, 1, 4] {
            session.decode(token).expect("decode");
            out.push(session.logits().iter().map(|x| x.to_bits()).collect());
        }
    }
    out
}

#[test]
fn sessions_side_by_side_do_not_touch_each_other() {
    for name in ["llama", "gemma3", "phi3-longrope"] {
        let pair = Pair::new(Tiny::named(name));
        let skips = Schedule {
            use_proxy: false,
            ..schedule(&[(pair.tiny.n_layer - 2, 24, 4)], Probe { queries: 4, pool: Pool::Max(3), ..Probe::PAPER })
        };
        let dense = |_: &mut SessionOptions| ();
        let skipping = |o: &mut SessionOptions| o.method = skips.clone().into();
        // Lengths differ from prompt to prompt and from thread to thread.
        let prompts = |first: usize| -> Vec<Vec<u32>> {
            (0..8).map(|i| pair.tiny.prompt(first + 37 * i)[i..].to_vec()).collect()
        };
        let (mine, others) = (prompts(50), prompts(310));
        let alone = [
            read(&mut pair.session(dense), &mine),
            read(&mut pair.session(skipping), &others),
            read(&mut pair.session(skipping), &mine),
        ];
        for _ in 0..3 {
            let together = std::thread::scope(|s| {
                let threads = [
                    s.spawn(|| read(&mut pair.session(dense), &mine)),
                    s.spawn(|| read(&mut pair.session(skipping), &others)),
                    s.spawn(|| read(&mut pair.session(skipping), &mine)),
                ];
                threads.map(|t| t.join().expect("a thread that ends"))
            });
            assert!(together == alone, "{name}: sessions side by side give other logits");
        }
    }
}
