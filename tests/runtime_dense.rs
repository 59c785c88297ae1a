//! Dense prefill and decode of the runtime, against llama.cpp's logits and the naive reference, on tiny models of every
//! architecture.

mod reference;
mod runtime;
mod support;

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;

use runtime::{Pair, assert_close, assert_lengths, distance, logits, prefill};
use spts::session::sequence::CacheType;
use spts::{Error, Session};
use support::tiny::{NAMES, Scaling, Tiny};

/// Expected logits of llama.cpp, with F32 caches and without flash attention.
struct Fixture {
    n_ctx: usize,
    tokens: Vec<u32>,
    /// Position and logits.
    expected: Vec<(usize, Vec<f32>)>,
}

fn fixture(name: &str) -> Fixture {
    let path = support::tiny_dir().join(format!("{name}.json"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let positions: Vec<usize> = serde_json::from_value(json["positions"].clone()).unwrap();
    let logits: Vec<Vec<f32>> = serde_json::from_value(json["logits"].clone()).unwrap();
    Fixture {
        n_ctx: serde_json::from_value(json["n_ctx"].clone()).unwrap(),
        tokens: serde_json::from_value(json["tokens"].clone()).unwrap(),
        expected: positions.into_iter().zip(logits).collect(),
    }
}

/// Names of the fixtures with their models.
fn fixtures() -> impl Iterator<Item = (&'static str, String)> {
    let long = ("phi3-longrope", "phi3-longrope-long".to_owned());
    NAMES.into_iter().map(|n| (n, n.to_owned())).chain([long])
}

fn f16_cache(o: &mut spts::SessionOptions) {
    (o.cache_type_k, o.cache_type_v) = (CacheType::F16, CacheType::F16);
}

#[test]
fn logits_are_those_of_llama_cpp() {
    for (name, file) in fixtures() {
        let f = fixture(&file);
        let pair = Pair::with_context(Tiny::named(name), f.n_ctx);
        for (position, expected) in &f.expected {
            let prompt = &f.tokens[..=*position];
            let what = format!("{file}, position {position}");
            assert_close(&logits(pair.session(|_| ()), prompt), expected, pair.tolerance(), &what);
            let rounded = logits(pair.session(f16_cache), prompt);
            assert_close(&rounded, expected, runtime::F16_CACHE, &format!("{what}, F16 cache"));
        }
    }
}

#[test]
fn every_tile_size_gives_the_reference() {
    // Longer than the padding of the keys (256) and the height of a mask (512).
    const N: usize = 600;
    for name in NAMES {
        let pair = Pair::new(Tiny::named(name));
        let tokens = pair.tiny.prompt(N);
        let expected = pair.reference.forward(&tokens, None);
        for n_ubatch in [1, 3, 16, 255, 512, 2048] {
            let mut session = pair.session(|o| o.n_ubatch = Some(n_ubatch));
            let report = prefill(&mut session, &tokens).unwrap();
            let what = format!("{name}, tiles of {n_ubatch}");
            assert_close(session.logits(), &expected.logits, pair.tolerance(), &what);
            assert_lengths(&session, &expected.kv_lengths(), &what);
            assert_eq!((session.n_past(), report.n_tokens, report.cache_kept), (N, N, 1.0), "{what}");
            assert!(report.layers.is_empty(), "{what}: a dense prefill has no budgets");
        }
    }
}

/// Attention over more rows than a mask has is cut into parts.
#[test]
fn tiles_above_the_mask_s_height_give_the_same() {
    for name in ["qwen2", "gemma3", "gemma4-small", "gpt-oss", "qwen35moe"] {
        let pair = Pair::new(Tiny::named(name));
        let tokens = pair.tiny.prompt(1300);
        let small = logits(pair.session(|o| o.n_ubatch = Some(64)), &tokens);
        let large = logits(pair.session(|o| o.n_ubatch = Some(1300)), &tokens);
        assert_close(&large, &small, pair.tolerance(), name);
    }
}

#[test]
fn more_threads_give_the_same() {
    for name in ["llama", "gemma3", "gemma4-small", "qwen35"] {
        let pair = Pair::new(Tiny::named(name));
        let tokens = pair.tiny.prompt(100);
        let one = logits(pair.session(|_| ()), &tokens);
        assert_close(&logits(pair.session(|o| o.n_threads = Some(3)), &tokens), &one, pair.tolerance(), name);
    }
}

/// ggml splits a single query's attention over 512 keys and more among threads: a sink counts once.
#[test]
fn a_tokens_attention_among_threads() {
    const N: usize = 700;
    for name in ["llama", "gpt-oss"] {
        let pair = Pair::new(Tiny::named(name));
        let tokens = pair.tiny.prompt(N + 3);
        let mut state = pair.reference.forward(&tokens[..N], None).state;
        for n_threads in [1, 3] {
            let mut state = state.clone();
            let mut session = pair.session(|o| o.n_threads = Some(n_threads));
            prefill(&mut session, &tokens[..N]).unwrap();
            for token in &tokens[N..] {
                session.decode(*token).unwrap();
                let expected = pair.reference.decode(&mut state, *token);
                assert_close(session.logits(), &expected, pair.tolerance(), &format!("{name}, {n_threads} threads"));
            }
        }
        // Behind it, with values of 16 bits.
        let mut session = pair.session(f16_cache);
        prefill(&mut session, &tokens[..N]).unwrap();
        session.decode(tokens[N]).unwrap();
        let expected = pair.reference.decode(&mut state, tokens[N]);
        assert_close(session.logits(), &expected, runtime::F16_CACHE, name);
    }
}

#[test]
fn a_prompt_in_two_calls_is_the_prompt_in_one() {
    const N: usize = 330;
    for name in NAMES {
        let pair = Pair::new(Tiny::named(name));
        let tokens = pair.tiny.prompt(N);
        let expected = pair.reference.forward(&tokens, None).logits;
        // With and without the multiples of 8 that the shared mask needs; behind and before the padding of the keys.
        for (first, n_ubatch) in [(1, 512), (8, 512), (13, 16), (255, 7), (256, 512), (300, 512), (329, 512)] {
            let mut session = pair.session(|o| o.n_ubatch = Some(n_ubatch));
            prefill(&mut session, &tokens[..first]).unwrap();
            prefill(&mut session, &tokens[first..]).unwrap();
            assert_close(session.logits(), &expected, pair.tolerance(), &format!("{name}, cut at {first}"));
            assert_eq!(session.n_past(), N);
        }
    }
}

#[test]
fn decode_continues_a_prefill() {
    const N: usize = 270;
    for name in NAMES {
        let pair = Pair::new(Tiny::named(name));
        let tokens = pair.tiny.prompt(N);
        let whole = pair.reference.forward(&tokens, None);
        // Across the padding of the keys.
        let mut session = pair.session(|_| ());
        prefill(&mut session, &tokens[..250]).unwrap();
        for (i, token) in tokens.iter().enumerate().skip(250) {
            session.decode(*token).unwrap();
            let expected = pair.reference.head(&whole.hidden[i]);
            assert_close(session.logits(), &expected, pair.tolerance(), &format!("{name}, token {i}"));
        }
        assert_eq!(session.kv_lengths(), whole.kv_lengths());
    }
}

/// The cache has room for some hundred tokens behind the prompt; then it moves.
#[test]
fn decode_outgrows_its_cache() {
    const N: usize = 800;
    for name in ["llama", "gemma3", "gemma4-small", "qwen35"] {
        let pair = Pair::new(Tiny::named(name));
        let tokens = pair.tiny.prompt(N);
        let mut session = pair.session(|_| ());
        prefill(&mut session, &tokens[..3]).unwrap();
        for token in &tokens[3..] {
            session.decode(*token).unwrap();
        }
        let expected = logits(pair.session(|_| ()), &tokens);
        assert_close(session.logits(), &expected, pair.tolerance(), name);
    }
}

#[test]
fn a_quantized_cache_is_near_the_exact_one() {
    let q8 = |o: &mut spts::SessionOptions| (o.cache_type_k, o.cache_type_v) = (CacheType::Q8_0, CacheType::Q8_0);
    // Of two layers: what rounding does grows from layer to layer.
    for tiny in [Tiny::named("llama"), Tiny { n_layer: 2, ..Tiny::named("gpt-oss") }] {
        let name = tiny.name;
        let pair = Pair::new(Tiny { head_dim: 32, n_rot: 32, ..tiny });
        let tokens = pair.tiny.prompt(60);
        let mut session = pair.session(q8);
        prefill(&mut session, &tokens[..59]).unwrap();
        session.decode(tokens[59]).unwrap();
        let d = distance(session.logits(), &pair.reference.forward(&tokens, None).logits);
        assert!((1e-5..runtime::Q8_0_CACHE).contains(&d), "{name}: {d}");
    }

    let odd = Pair::new(Tiny::named("llama"));
    let mut options = runtime::exact(64);
    q8(&mut options);
    match Session::new(odd.model.clone(), options) {
        Err(e @ Error::CacheType { head_dim: 8 }) => assert!(!e.to_string().contains('\n'), "{e}"),
        Err(e) => panic!("{e}"),
        Ok(_) => panic!("a q8_0 cache over heads of 8"),
    }
}

/// What a failed call must leave alone.
fn state(s: &Session) -> (usize, Vec<usize>, Vec<f32>) {
    (s.n_past(), s.kv_lengths(), s.logits().to_vec())
}

#[test]
fn a_call_that_can_t_be_served_changes_nothing() {
    let pair = Pair::with_context(Tiny::named("qwen2"), 40);
    let tokens = pair.tiny.prompt(41);
    let mut session = pair.session(|_| ());
    assert!(matches!(session.decode(1), Err(Error::NothingPrefilled)));
    assert!(matches!(prefill(&mut session, &[]), Err(Error::EmptyPrompt)));
    match prefill(&mut session, &tokens) {
        Err(e @ Error::ContextFull { n_tokens: 41, n_ctx: 40, n_ctx_train: 2048 }) => {
            assert_eq!(
                e.to_string(),
                "the prompt has 41 tokens, but the context holds 40: shorten it, or make the context larger (this model was trained with 2048)"
            );
        }
        other => panic!("{other:?}"),
    }
    let n_vocab = pair.tiny.n_vocab();
    for bad in [n_vocab as u32, u32::MAX] {
        let found = prefill(&mut session, &[1, bad]);
        assert!(matches!(found, Err(Error::BadToken { id, n_vocab: n }) if id == bad && n == n_vocab), "{found:?}");
    }
    assert_eq!(state(&session), (0, vec![0; pair.tiny.n_layer], vec![]));

    // Full to the last token.
    prefill(&mut session, &tokens[..40]).unwrap();
    let full = state(&session);
    assert!(matches!(session.decode(1), Err(Error::ContextFull { n_tokens: 41, n_ctx: 40, .. })));
    assert!(matches!(prefill(&mut session, &[1]), Err(Error::ContextFull { .. })));
    assert_eq!(state(&session), full);
    assert_close(session.logits(), &pair.reference.forward(&tokens[..40], None).logits, 1e-5, "full");

    session.clear();
    assert_eq!(state(&session), (0, vec![0; pair.tiny.n_layer], vec![]));
    prefill(&mut session, &tokens[..40]).unwrap();
    assert_eq!(state(&session), full, "after clearing");
}

/// Interrupts at every place where a prefill looks for it, by the callback and by the flag.
#[test]
fn an_interrupt_leaves_the_session_as_it_was() {
    for name in ["llama", "gemma3", "gemma4-small", "qwen35"] {
        let pair = Pair::new(Tiny::named(name));
        let tokens = pair.tiny.prompt(90);
        let options = |o: &mut spts::SessionOptions| o.n_ubatch = Some(32);
        let mut undisturbed = pair.session(options);
        prefill(&mut undisturbed, &tokens[..30]).unwrap();
        let mut looks = 0;
        undisturbed
            .prefill(&tokens[30..], &mut |_| {
                looks += 1;
                ControlFlow::Continue(())
            })
            .unwrap();
        assert!(looks >= pair.model.shape().n_layer_kv(), "{looks}");

        let mut session = pair.session(options);
        prefill(&mut session, &tokens[..30]).unwrap();
        let before = state(&session);
        let flag = session.interrupt_flag();
        for stop_at in 0..looks {
            let mut seen = 0;
            let result = session.prefill(&tokens[30..], &mut |_| {
                seen += 1;
                if seen > stop_at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            assert!(matches!(result, Err(Error::Interrupted)), "{name}: {result:?}");
            assert_eq!(state(&session), before, "{name}, broken off at look {stop_at}");

            let mut seen = 0;
            let result = session.prefill(&tokens[30..], &mut |_| {
                seen += 1;
                flag.store(seen > stop_at, Ordering::Relaxed);
                ControlFlow::Continue(())
            });
            assert!(matches!(result, Err(Error::Interrupted)), "{name}: {result:?}");
            assert!(matches!(session.decode(1), Err(Error::Interrupted)), "{name}: the flag is still up");
            assert_eq!(state(&session), before, "{name}, flag at look {stop_at}");
            flag.store(false, Ordering::Relaxed);
        }
        prefill(&mut session, &tokens[30..]).unwrap();
        assert_eq!(state(&session), state(&undisturbed), "{name}");
    }
}

/// A flag that goes up while ggml computes, from another thread.
#[test]
fn an_interrupt_from_another_thread_stops_a_long_prefill() {
    let pair = Pair::with_context(Tiny::named("llama"), 40_000);
    let tokens = pair.tiny.prompt(30_000);
    let mut session = pair.session(|_| ());
    prefill(&mut session, &tokens[..5]).unwrap();
    let before = state(&session);
    let flag = session.interrupt_flag();
    let mut handle = None;
    let result = session.prefill(&tokens, &mut |_| {
        let flag = flag.clone();
        handle.get_or_insert_with(|| {
            std::thread::spawn(move || {
                std::thread::sleep(std::time::Duration::from_millis(100));
                flag.store(true, Ordering::Relaxed);
            })
        });
        ControlFlow::Continue(())
    });
    handle.expect("a thread").join().unwrap();
    assert!(matches!(result, Err(Error::Interrupted)), "{result:?}");
    assert_eq!(state(&session), before);
    flag.store(false, Ordering::Relaxed);
    prefill(&mut session, &tokens[5..60]).unwrap();
    assert_close(session.logits(), &pair.reference.forward(&tokens[..60], None).logits, 1e-5, "afterwards");
}

/// Shapes that no fixture has: heads of odd width, a single head, many KV heads, widths that are no multiple of a vector.
#[test]
fn odd_shapes_give_the_reference() {
    let llama = Tiny::named("llama");
    for tiny in [
        Tiny { n_embd: 7, n_head: 1, head_dim: 2, n_rot: 2, n_ff: 3, n_layer: 1, ..llama.clone() },
        Tiny { n_embd: 33, n_head: 6, n_head_kv: 3, head_dim: 5, n_rot: 4, n_ff: 17, ..llama.clone() },
        Tiny { n_embd: 65, n_head: 8, n_head_kv: 8, head_dim: 14, n_rot: 6, n_ff: 129, ..llama.clone() },
        Tiny { n_head: 5, n_head_kv: 1, head_dim: 34, n_rot: 34, n_ff: 1, ..Tiny::named("qwen3") },
        Tiny { n_embd: 11, n_head: 3, n_head_kv: 1, scaling: Scaling::Yarn(8.0, 16), ..Tiny::named("qwen2") },
        Tiny { window: Some(1), n_layer: 6, ..Tiny::named("gemma3") },
        Tiny { window: Some(300), n_layer: 13, ..Tiny::named("gemma3") },
        Tiny { n_embd: 33, n_head: 9, n_head_kv: 3, n_ff: 7, experts: Some((7, 1)), ..Tiny::named("gpt-oss") },
        Tiny { window: Some(1), n_layer: 3, head_dim: 34, n_rot: 34, ..Tiny::named("gpt-oss") },
        Tiny { n_embd: 33, n_head: 3, n_head_kv: 1, head_dim: 11, n_rot: 10, n_ff: 7, ..Tiny::named("olmo2") },
        Tiny { window: Some(300), n_layer: 5, ..Tiny::named("olmo3") },
        Tiny { n_embd: 35, n_head: 5, n_head_kv: 1, head_dim: 14, n_rot: 2, n_ff: 9, ..Tiny::named("glm4") },
        Tiny { window: Some(300), n_head: 3, n_head_kv: 1, experts: Some((2, 2)), ..Tiny::named("gpt-oss") },
    ] {
        let pair = Pair::new(tiny);
        let tokens = pair.tiny.prompt(330);
        let expected = pair.reference.forward(&tokens, None).logits;
        for n_ubatch in [100, 512] {
            let got = logits(pair.session(|o| o.n_ubatch = Some(n_ubatch)), &tokens);
            assert_close(&got, &expected, pair.tolerance(), &format!("{:?}", pair.tiny));
        }
    }
}

/// A token whose embedding is infinite makes everything behind it no number. What it leaves in the caches must not reach the next
/// prompt, whose attention reads (masked) rows behind its own.
#[test]
fn a_session_recovers_from_results_that_are_no_numbers() {
    for name in ["llama", "gemma3", "gemma4-small", "qwen35"] {
        let tiny = Tiny::named(name);
        let n_vocab = tiny.n_vocab();
        let bad = n_vocab as u32 - 1;
        let mut file = tiny.build();
        let rows = &mut file.tensors.iter_mut().find(|t| t.name == "token_embd.weight").unwrap().data;
        let n_embd = rows.len() / n_vocab;
        rows[bad as usize * n_embd..].fill(f32::INFINITY);
        // The logits of others are finite all the same: the output has a matrix of its own.
        if file.tensor("output.weight").is_none() {
            let rows = &file.tensor("token_embd.weight").unwrap().data;
            let data = rows.iter().map(|x| if x.is_finite() { *x } else { 0.0 }).collect();
            file.add("output.weight", &[n_embd, n_vocab], data);
        }
        let gguf = spts::gguf::Gguf::from_bytes(file.to_bytes(), "bad").unwrap();
        let model = spts::Model::from_gguf(std::sync::Arc::new(gguf), runtime::on_cpu()).unwrap();
        let session = |change: &dyn Fn(&mut spts::SessionOptions)| {
            let mut options = runtime::exact(2048);
            change(&mut options);
            Session::new(model.clone(), options).unwrap()
        };
        let good: Vec<u32> = tiny.prompt(700).into_iter().map(|t| t.min(bad - 1)).collect();
        let poison: Vec<u32> = (0..700).map(|i| if i % 3 == 0 { bad } else { good[i] }).collect();
        for change in [&(|_: &mut spts::SessionOptions| ()) as &dyn Fn(&mut spts::SessionOptions), &f16_cache] {
            for (n, n_ubatch) in [(1, 512), (5, 512), (300, 512), (300, 90), (600, 200)] {
                let what = format!("{name}, {n} tokens in tiles of {n_ubatch}");
                let with_tiles = |o: &mut spts::SessionOptions| {
                    change(o);
                    o.n_ubatch = Some(n_ubatch);
                };
                let answer = |s: &mut Session| {
                    let mut out = Vec::new();
                    prefill(s, &good[..n]).unwrap();
                    out.push(s.logits().to_vec());
                    for token in [3, 1] {
                        s.decode(token).unwrap();
                        out.push(s.logits().to_vec());
                    }
                    out
                };
                let expected = answer(&mut session(&with_tiles));
                assert!(expected.iter().flatten().all(|x| x.is_finite()), "{what}");
                let mut used = session(&with_tiles);
                prefill(&mut used, &poison).unwrap();
                assert!(used.logits().iter().any(|x| x.is_nan()), "{what}: the prompt is harmless");
                used.clear();
                assert_eq!(answer(&mut used), expected, "{what}");
                // A token of the answer, too.
                used.decode(bad).unwrap();
                used.clear();
                assert_eq!(answer(&mut used), expected, "{what}, behind a decoded one");
            }
        }
    }
}

/// How the weights are held changes nothing: mapped, read, locked, as they lie in the file.
#[test]
fn weights_held_in_any_way_give_the_same() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["llama", "gemma3"] {
        let tiny = Tiny { n_embd: 64, n_ff: 96, ..Tiny::named(name) };
        let exact = folder.path().join(format!("{name}.gguf"));
        tiny.build().write(&exact);
        let source = spts::gguf::Gguf::open(&exact, spts::gguf::OpenOptions { mmap: true, mlock: false }).unwrap();
        let small = folder.path().join(format!("{name}-q4_0.gguf"));
        let options = spts::quantize::QuantizeOptions { preset: spts_quant::Preset::Q4_0, allow_requantize: false };
        spts::quantize::quantize(&source, &small, options, &mut |_, _| {}).unwrap();
        for path in [&exact, &small] {
            let run = |mmap, mlock, repack| {
                let options = spts::ModelOptions { mmap, mlock, repack, ..runtime::on_cpu() };
                let model = spts::Model::open(path, options).unwrap();
                let mut session = Session::new(model, runtime::exact(2048)).unwrap();
                prefill(&mut session, &tiny.prompt(100)).unwrap();
                let mut out = session.logits().to_vec();
                session.decode(5).unwrap();
                out.extend_from_slice(session.logits());
                out
            };
            let what = |how: &str| format!("{}, {how}", path.display());
            for repack in [true, false] {
                let expected = run(true, false, repack);
                assert_eq!(run(false, false, repack), expected, "{}", what("read into memory"));
                assert_eq!(run(true, true, repack), expected, "{}", what("locked"));
            }
            // Repacked kernels take sums of rows of 8 bits in another order; F32 is not repacked. Measured: 7e-3.
            let tolerance = if path == &exact { 0.0 } else { 2e-2 };
            assert_close(&run(true, false, false), &run(true, false, true), tolerance, &what("as it lies in the file"));
        }
    }
}
