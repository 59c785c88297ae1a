//! Sessions: two at once, one prompt after another, what they take of memory, and what they recover from.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use spts::ggml::kernels::Kernels;
use spts::gguf::{GgmlType, Gguf, OpenOptions};
use spts::graph::ir::Heads;
use spts::method::{Dense, Method};
use spts::quantize::{QuantizeOptions, quantize};
use spts::{Session, SessionOptions};
use spts_quant::Preset;

use crate::compare::*;
use crate::support::tiny::Tiny;

/// Two sessions of one model in two threads, whose prompts are long enough for 16-bit copies of weights: each reads what the other
/// has just had copied, and has copied what takes its place. Results are those of one alone, bit for bit: every kernel sums in
/// one order.
#[test]
fn two_sessions_at_once() {
    let tiny = Tiny { n_embd: 512, n_ff: 2048, n_layer: 6, ..models().swap_remove(0) };
    let (dir, path) = in_scratch(&tiny);
    let source = Gguf::open(&path, OpenOptions { mmap: true, mlock: false }).unwrap();
    let small = dir.path().join("q4_k_m.gguf");
    let options = QuantizeOptions { preset: Preset::Q4_K_M, allow_requantize: false };
    quantize(&source, &small, options, &mut |_, _| {}).unwrap();
    let model = open(&small, "CUDA0");
    let schedule = schedule(&model);
    let session = |skips: bool| {
        let method: Arc<dyn Method> = if skips { schedule.clone().into() } else { Arc::new(Dense) };
        Session::new(model.clone(), SessionOptions { method, ..SessionOptions::default() }).unwrap()
    };
    let read = |session: &mut Session, prompts: &[Vec<u32>]| -> Vec<Vec<u32>> {
        let mut out = Vec::new();
        for prompt in prompts {
            session.clear();
            session.prefill(prompt, &mut |_| ControlFlow::Continue(())).unwrap();
            out.push(session.logits().iter().map(|x| x.to_bits()).collect());
            for token in [3, 1, 4, 1, 5] {
                session.decode(token).unwrap();
                out.push(session.logits().iter().map(|x| x.to_bits()).collect());
            }
        }
        out
    };
    // Of lengths that differ between the threads, so that they drift apart.
    let prompts = |first: usize| -> Vec<Vec<u32>> { (0..12).map(|i| tiny.prompt(first + 131 * (i % 5))).collect() };
    let (mine, others) = (prompts(600), prompts(1111));
    for (a, b) in [(false, false), (false, true), (true, true)] {
        let alone = [read(&mut session(a), &mine), read(&mut session(b), &others)];
        for round in 0..5 {
            let together = std::thread::scope(|s| {
                let threads = [s.spawn(|| read(&mut session(a), &mine)), s.spawn(|| read(&mut session(b), &others))];
                threads.map(|t| t.join().unwrap())
            });
            for (one, (got, expected)) in together.iter().zip(&alone).enumerate() {
                let wrong = got.iter().zip(expected).filter(|(g, e)| g != e).count();
                assert_eq!(wrong, 0, "session {one} of skipping {a} and {b}, round {round}: wrong results");
            }
        }
    }
}

/// One prompt after another gives the same bits every time, whatever was read in between: every kernel sums in one order, and none
/// begins before what it reads is there. Of a model in a file, named by `SPTS_STRESS_MODEL`, for as many rounds as
/// `SPTS_STRESS_ROUNDS` says; else of a tiny one.
#[test]
fn prompts_repeat_to_the_last_bit() {
    let tiny = Tiny { n_embd: 512, n_ff: 2048, n_layer: 6, n_ctx_train: 16384, ..models().swap_remove(0) };
    let (dir, path) = in_scratch(&tiny);
    let model = match std::env::var_os("SPTS_STRESS_MODEL") {
        Some(file) => open(Path::new(&file), "CUDA0"),
        None => {
            let source = Gguf::open(&path, OpenOptions { mmap: true, mlock: false }).unwrap();
            let small = dir.path().join("q4_k_m.gguf");
            let options = QuantizeOptions { preset: Preset::Q4_K_M, allow_requantize: false };
            quantize(&source, &small, options, &mut |_, _| {}).unwrap();
            open(&small, "CUDA0")
        }
    };
    let rounds = std::env::var("SPTS_STRESS_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(5);
    let n_vocab = model.shape().n_vocab as u32;
    let prompt =
        |n: u32| -> Vec<u32> { (0..n).map(|i| i.wrapping_mul(2_654_435_761).rotate_left(9) % n_vocab).collect() };
    let prompts = [7840, 300, 5001, 7840, 7168, 9000].map(prompt);
    let methods: [Arc<dyn Method>; 2] = [Arc::new(Dense), schedule(&model).into()];
    let mut session = Session::new(model.clone(), SessionOptions::default()).unwrap();
    let mut expected: Vec<Vec<u32>> = Vec::new();
    let mut wrong = Vec::new();
    for round in 0..rounds {
        let mut read = Vec::new();
        for prompt in &prompts {
            for method in &methods {
                session.set_method(method.clone()).unwrap();
                session.clear();
                session.prefill(prompt, &mut |_| ControlFlow::Continue(())).unwrap();
                read.push(session.logits().iter().map(|x| x.to_bits()).collect::<Vec<u32>>());
                for token in [3, 1, 4] {
                    session.decode(token).unwrap();
                }
                read.push(session.logits().iter().map(|x| x.to_bits()).collect());
            }
        }
        match round {
            0 => expected = read,
            _ => wrong.extend((0..read.len()).filter(|&i| read[i] != expected[i]).map(|i| (round, i))),
        }
    }
    assert!(wrong.is_empty(), "of {rounds} rounds, other logits in (round, step): {wrong:?}");
}

/// Where our own kernel computes attention, no causal mask takes memory, but for the one row of the last query.
#[test]
fn masks_are_made_only_where_a_kernel_reads_them() {
    let tiny = &models()[0];
    let heads =
        Heads { n_head: tiny.n_head, n_head_kv: tiny.n_head_kv, head_dim: tiny.head_dim, scale: 1.0, sinks: None };
    if !Kernels::of("CUDA0").causal_attention(N, &heads, [GgmlType::F16; 2]) {
        eprintln!("skipped: this GPU has no attention kernel of ours");
        return;
    }
    let (_dir, path) = in_scratch(tiny);
    let mut session = Session::new(open(&path, "CUDA0"), SessionOptions::default()).unwrap();
    let report = session.prefill(&tiny.prompt(N), &mut |_| ControlFlow::Continue(())).unwrap();
    let entry = 2 * 2 * tiny.n_head_kv * tiny.head_dim;
    // Room for an answer of 512 tokens, in steps of 256.
    let caches: usize = session.kv_lengths().iter().map(|n| (n + 512).next_multiple_of(256) * entry).sum();
    let masks = session.n_bytes() - report.scratch_bytes - caches;
    // A mask of 512 rows would have more than 1300 x 512 x 2 bytes.
    assert!(masks < 64 << 10, "masks of {masks} bytes");
}

/// What results that are no numbers leave in the caches does not reach the next prompt.
#[test]
fn recovery_from_results_that_are_no_numbers() {
    for tiny in models() {
        let bad = tiny.n_vocab() - 1;
        let mut file = tiny.build();
        let rows = &mut file.tensors.iter_mut().find(|t| t.name == "token_embd.weight").unwrap().data;
        let n_embd = rows.len() / tiny.n_vocab();
        rows[bad * n_embd..].fill(f32::INFINITY);
        if file.tensor("output.weight").is_none() {
            let rows = &file.tensor("token_embd.weight").unwrap().data;
            let data = rows.iter().map(|x| if x.is_finite() { *x } else { 0.0 }).collect();
            file.add("output.weight", &[n_embd, tiny.n_vocab()], data);
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        file.write(&path);
        let model = open(&path, "CUDA0");
        let session = || Session::new(model.clone(), SessionOptions::default()).unwrap();
        let good: Vec<u32> = tiny.prompt(N).into_iter().map(|t| t.min(bad as u32 - 1)).collect();
        let poison: Vec<u32> = (0..N).map(|i| if i % 3 == 0 { bad as u32 } else { good[i] }).collect();
        for n in [5, 300, 1000] {
            let read = |session: &mut Session| {
                session.prefill(&good[..n], &mut |_| ControlFlow::Continue(())).unwrap();
                let first = session.logits().to_vec();
                session.decode(3).unwrap();
                [first, session.logits().to_vec()]
            };
            let expected = read(&mut session());
            let mut used = session();
            used.prefill(&poison, &mut |_| ControlFlow::Continue(())).unwrap();
            assert!(used.logits().iter().any(|x| x.is_nan()), "{}: the prompt is harmless", tiny.name);
            used.clear();
            // Its caches are longer, which other cuts of the same sums go through.
            for (got, expected) in read(&mut used).iter().zip(&expected) {
                let e = nmse(got, expected);
                assert!(e <= 1e-6, "{}, {n} tokens: NMSE {e}", tiny.name);
            }
        }
    }
}
