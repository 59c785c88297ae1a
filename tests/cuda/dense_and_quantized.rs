//! Dense prompts in every type of weights and caches, of every width.

use std::path::PathBuf;

use spts::gguf::{Gguf, OpenOptions};
use spts::quantize::{QuantizeOptions, quantize};
use spts::session::sequence::CacheType;
use spts::{Error, Model, ModelOptions, SessionOptions};
use spts_quant::Preset;

use crate::compare::*;
use crate::support::tiny::Tiny;

#[test]
fn dense() {
    for tiny in models() {
        let (_dir, path) = in_scratch(&tiny);
        let whole = SessionOptions::default();
        let tiles = SessionOptions { n_ubatch: Some(100), ..SessionOptions::default() };
        for (n, options) in [(7, &whole), (300, &whole), (N, &whole), (N, &tiles)] {
            let prompt = tiny.prompt(n);
            let bound = F32_WEIGHTS.max(1.25 * Rounding::of(&tiny, &path, &prompt, options).error);
            let what = format!("{} {n}, tiles of {:?}", tiny.name, options.n_ubatch);
            compare(&what, &path, &prompt, &[3, 1, 4], options, bound);
        }
    }
}

/// Against the same weights in F32 on the CPU, whose products of quantized weights round activations in their own way.
#[test]
fn quantized() {
    let tiny = &models()[0];
    let (dir, path) = in_scratch(tiny);
    let source = Gguf::open(&path, OpenOptions { mmap: true, mlock: false }).unwrap();
    for preset in [Preset::Q4_K_M, Preset::Q4_0, Preset::Q8_0, Preset::F16] {
        let small = dir.path().join(format!("{}.gguf", preset.name()));
        quantize(&source, &small, QuantizeOptions { preset, allow_requantize: false }, &mut |_, _| {}).unwrap();
        let exact = in_f32(&small);
        for n in [7, 300, N] {
            let prompt = tiny.prompt(n);
            let (expected, _) = run(&exact, "CPU", &prompt, &[3, 1, 4], SessionOptions::default());
            let (got, _) = run(&small, "CUDA0", &prompt, &[3, 1, 4], SessionOptions::default());
            for (step, (got, expected)) in got.iter().zip(&expected).enumerate() {
                let e = nmse(got, expected);
                println!("{} {n}, step {step}: NMSE {e:.1e}", preset.name());
                assert!(e <= QUANTIZED_WEIGHTS, "{} {n}, step {step}: NMSE {e}", preset.name());
            }
        }
    }
}

#[test]
fn quantized_cache() {
    let tiny = &models()[0];
    let (_dir, path) = in_scratch(tiny);
    let options =
        SessionOptions { cache_type_k: CacheType::Q8_0, cache_type_v: CacheType::Q8_0, ..SessionOptions::default() };
    compare("q8_0 cache", &path, &tiny.prompt(N), &[3, 1, 4], &options, 1e-3);
}

/// Widths that no vector of eight values divides.
#[test]
fn odd_widths() {
    for tiny in [
        Tiny { n_ff: 1003, ..models().swap_remove(0) },
        Tiny { n_ff: 514, ..models().swap_remove(3) },
        Tiny { n_embd: 250, n_ff: 509, ..models().swap_remove(0) },
    ] {
        let (_dir, path) = in_scratch(&tiny);
        let [small, exact] = in_bf16(&path);
        for n in [301, N] {
            let prompt = tiny.prompt(n);
            let (expected, _) = run(&exact, "CPU", &prompt, &[3, 1, 4], SessionOptions::default());
            let (got, _) = run(&small, "CUDA0", &prompt, &[3, 1, 4], SessionOptions::default());
            for (step, (got, expected)) in got.iter().zip(&expected).enumerate() {
                let e = nmse(got, expected);
                assert!(e <= QUANTIZED_WEIGHTS, "{} {n}, n_ff {}, step {step}: NMSE {e}", tiny.name, tiny.n_ff);
            }
        }
    }
}

/// Text, and more of it: out-of-place control tokens would multiply any difference, between two arrangements of the CPU, too.
#[test]
fn smollm2() {
    let folder = std::env::var_os("SPTS_MODELS")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/models")), PathBuf::from);
    let path = folder.join("smollm2-135m.gguf");
    if !path.exists() {
        eprintln!("skipped: {} is not there (scripts/fetch.sh smollm2-135m)", path.display());
        return;
    }
    let text = "It was the best of times, it was the worst of times, it was the age of wisdom. ".repeat(100);
    let model = open(&path, "CPU");
    let tokens = model.tokenizer().encode(&text, true, true);
    let (prompt, more) = tokens.split_at(tokens.len() - 12);
    compare("smollm2", &path, prompt, more, &SessionOptions::default(), QUANTIZED_WEIGHTS);
}

#[test]
fn no_such_device() {
    let (_dir, path) = in_scratch(&models()[0]);
    let options = ModelOptions { device: Some("CUDA99".into()), ..ModelOptions::default() };
    let message = Model::open(&path, options).err().map(|e: Error| e.to_string()).unwrap_or_default();
    assert!(message.contains("CUDA99") && message.contains("CPU"), "{message}");
}
