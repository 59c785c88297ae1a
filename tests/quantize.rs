//! Quantizing whole files: what comes out is what ggml's conversions make of each weight, the rest is as before, and it runs.

mod support;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use spts::ggml::quantize::dequantize;
use spts::gguf::{GgmlType, Gguf, OpenOptions};
use spts::quantize::{QuantizeError, QuantizeOptions, QuantizeReport, quantize};
use spts::session::sampler::log_softmax_top;
use spts::{Model, ModelOptions, Session, SessionOptions};
use spts_quant::Preset;
use support::tiny::Tiny;

fn open(path: &Path) -> Gguf {
    Gguf::open(path, OpenOptions::default()).expect("a valid file")
}

fn run(from: &Path, to: &Path, preset: Preset, allow_requantize: bool) -> Result<QuantizeReport, QuantizeError> {
    quantize(&open(from), to, QuantizeOptions { preset, allow_requantize }, &mut |_, _| {})
}

/// A folder with a model whose rows are whole blocks of every type.
fn scene(name: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("f32.gguf");
    Tiny::wide(name, 4, 2, 64).build().write(&path);
    (dir, path)
}

fn floats(gguf: &Gguf, name: &str) -> Vec<f32> {
    let t = gguf.tensor(name).expect("a tensor of both files");
    dequantize(t.ty, gguf.tensor_data(t), t.n_elements() as usize)
}

/// Error over signal, in powers.
fn nmse(exact: &[f32], x: &[f32]) -> f64 {
    let power = |v: &mut dyn Iterator<Item = f32>| v.map(|x| f64::from(x).powi(2)).sum::<f64>();
    power(&mut exact.iter().zip(x).map(|(a, b)| a - b)) / power(&mut exact.iter().copied()).max(1e-30)
}

/// The most that a type loses on evenly spread weights: a step is at most this share of the range, its square over 12, with
/// room for coarse scales.
fn bound(ty: GgmlType) -> f64 {
    match ty {
        GgmlType::F32 => 0.0,
        GgmlType::F16 => 1e-6,
        GgmlType::Q8_0 => 5e-5,
        GgmlType::Q6_K => 1e-3,
        GgmlType::Q5_0 | GgmlType::Q5_1 | GgmlType::Q5_K => 4e-3,
        GgmlType::Q4_0 | GgmlType::Q4_K => 1.5e-2,
        other => panic!("no mix has {other}"),
    }
}

#[test]
fn every_mix_keeps_the_weights_within_its_types_error() {
    for model in ["llama", "qwen2", "gemma3", "gemma4-small", "qwen35"] {
        let (dir, from) = scene(model);
        for preset in Preset::ALL {
            let to = dir.path().join("out.gguf");
            let report = run(&from, &to, preset, false).expect("quantized");
            let (before, after) = (open(&from), open(&to));
            assert_eq!(report.bytes_after, after.tensors().map(|t| t.nbytes).sum::<u64>());
            assert_eq!(after.u32("general.file_type").expect("a number"), Some(preset.file_type()));
            for (old, new) in before.tensors().zip(after.tensors()) {
                let what = format!("{model} {} {}", preset.name(), old.name);
                assert_eq!((&old.name, &old.shape), (&new.name, &new.shape), "{what}");
                let error = nmse(&floats(&before, &old.name), &floats(&after, &new.name));
                assert!(error <= bound(new.ty), "{what}: error {error} in {}", new.ty);
                let is_weight =
                    old.shape.len() > 1 && !["ssm_conv1d", "per_layer_model_proj"].iter().any(|p| old.name.contains(p));
                assert!(new.ty.is_quantized() == (preset.base().block_size() > 1 && is_weight), "{what}");
            }
            let kept =
                |g: &Gguf| g.metadata().iter().filter(|(k, _)| !k.starts_with("general.")).cloned().collect::<Vec<_>>();
            assert_eq!(kept(&before), kept(&after));
        }
    }
}

/// Quantized weights move the answer by one thing, products of quantized activations with them by another.
#[test]
fn a_quantized_model_runs_and_says_nearly_the_same() {
    let (dir, from) = scene("llama");
    let (q8, rounded) = (dir.path().join("q8.gguf"), dir.path().join("rounded.gguf"));
    run(&from, &q8, Preset::Q8_0, false).expect("quantized");
    run(&q8, &rounded, Preset::F32, false).expect("the same weights as floats");
    let logprobs = |path: &Path| -> Vec<f32> {
        let model = Model::open(path, ModelOptions { device: Some("CPU".into()), ..ModelOptions::default() });
        let mut session = Session::new(model.expect("a model"), SessionOptions::default()).expect("a session");
        let prompt: Vec<u32> = (0..40).map(|i| i * 5 % 250).collect();
        session.prefill(&prompt, &mut |_| ControlFlow::Continue(())).expect("a prefill");
        let mut of_each = log_softmax_top(session.logits(), session.logits().len());
        of_each.sort_by_key(|(id, _)| *id);
        of_each.into_iter().map(|(_, logprob)| logprob).collect()
    };
    let [exact, rounded, quantized] = [&from, &rounded, &q8].map(|path| logprobs(path));
    let best = |of: &[f32]| (0..of.len()).max_by(|a, b| of[*a].total_cmp(&of[*b])).expect("a token");
    let moved = |a: &[f32], b: &[f32]| {
        let d: Vec<f32> = a.iter().zip(b).map(|(a, b)| (a - b).abs()).collect();
        ((d.iter().map(|d| d * d).sum::<f32>() / d.len() as f32).sqrt(), d.into_iter().fold(0.0, f32::max))
    };
    // Measured: 0.073 and at most 0.23 by the weights; 0.082 and at most 0.27 by the activations.
    for (what, (rms, most)) in [("weights", moved(&exact, &rounded)), ("activations", moved(&rounded, &quantized))] {
        assert!(rms < 0.12 && most < 0.4, "rounded {what} move log probabilities by {rms}, at most {most}");
    }
    assert_eq!(best(&quantized), best(&exact));
    let spread = exact[best(&exact)] - exact.iter().copied().fold(0.0, f32::min);
    assert!(spread > 5.0, "the model prefers no token: {spread}");
}

#[test]
fn nothing_is_quantized_twice_unless_allowed() {
    let (dir, from) = scene("llama");
    let (q8, q4, f32) = (dir.path().join("q8.gguf"), dir.path().join("q4.gguf"), dir.path().join("again.gguf"));
    run(&from, &q8, Preset::Q8_0, false).expect("quantized");
    let e = run(&q8, &q4, Preset::Q4_K_M, false).expect_err("refused");
    let message = e.to_string();
    assert!(message.contains("q8.gguf") && message.contains("or allow it") && message.contains("Q8_0"), "{message}");
    assert!(!q4.exists());
    run(&q8, &q4, Preset::Q4_K_M, true).expect("allowed");
    assert_eq!(open(&q4).tensor("blk.0.ffn_up.weight").map(|t| t.ty), Some(GgmlType::Q4_K));
    // Floats hold everything: no loss, so no permission.
    run(&q8, &f32, Preset::F32, false).expect("dequantized");
    for t in open(&q8).tensors() {
        assert_eq!(floats(&open(&q8), &t.name), floats(&open(&f32), &t.name), "{}", t.name);
    }
}

#[test]
fn rows_that_are_no_whole_blocks_fall_back() {
    let dir = tempfile::tempdir().expect("a folder");
    let (from, to) = (dir.path().join("f32.gguf"), dir.path().join("out.gguf"));
    // Rows of 96: a multiple of 32, not of 256.
    Tiny { n_embd: 96, n_head: 3, n_head_kv: 1, head_dim: 32, n_rot: 32, ..Tiny::named("llama") }.build().write(&from);
    let report = run(&from, &to, Preset::Q4_K_M, false).expect("quantized");
    let q = report.tensors.iter().find(|t| t.name == "blk.1.attn_q.weight").expect("a query projection");
    assert_eq!((q.to, q.instead_of), (GgmlType::Q5_0, Some(GgmlType::Q4_K)));
    Model::open(&to, ModelOptions::default()).expect("a model");
}

#[test]
fn failures_leave_nothing_behind() {
    let (dir, from) = scene("llama");
    // A weight that is no number.
    let mut file = support::gguf::File::read(&from);
    let at = file.tensors.iter().position(|t| t.name == "blk.1.ffn_up.weight").expect("an FFN");
    file.tensors[at].data[300] = f32::NAN;
    let bad = dir.path().join("nan.gguf");
    file.write(&bad);
    let to = dir.path().join("out.gguf");
    std::fs::write(&to, "what was there").expect("written");
    let message = run(&bad, &to, Preset::Q4_0, false).expect_err("no number").to_string();
    assert!(
        message.contains("nan.gguf") && message.contains("blk.1.ffn_up.weight") && message.contains("row 1 "),
        "{message}"
    );
    assert_eq!(std::fs::read(&to).expect("still there"), b"what was there");
    assert_eq!(std::fs::read_dir(dir.path()).expect("a folder").count(), 3, "no temporary file is left");

    let message = run(&from, &from, Preset::Q4_0, false).expect_err("the same file").to_string();
    assert!(message.contains("choose another name"), "{message}");
    open(&from);
    let nowhere = dir.path().join("no/such/folder/out.gguf");
    assert!(matches!(run(&from, &nowhere, Preset::Q4_0, false), Err(QuantizeError::Output(_))));
}

#[test]
fn smollm2_135m_from_its_own_floats() {
    let models = std::env::var_os("SPTS_MODELS")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/models")), PathBuf::from);
    let from = models.join("smollm2-135m.gguf");
    if !from.exists() {
        eprintln!("skipped: no smollm2-135m.gguf in the models folder (make fetch)");
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let (f32, q8) = (dir.path().join("f32.gguf"), dir.path().join("q8.gguf"));
    run(&from, &f32, Preset::F32, false).expect("dequantized");
    run(&f32, &q8, Preset::Q8_0, false).expect("quantized");
    let first = |path: &Path| {
        let model = Model::open(path, ModelOptions::default()).expect("a model");
        let ids = model.tokenizer().encode("The capital of France is", true, true);
        let mut session = Session::new(model.clone(), SessionOptions::default()).expect("a session");
        session.prefill(&ids, &mut |_| ControlFlow::Continue(())).expect("a prefill");
        let best = log_softmax_top(session.logits(), 1)[0].0;
        model.tokenizer().decode(&[best])
    };
    assert_eq!([first(&from), first(&f32), first(&q8)], [" Paris", " Paris", " Paris"].map(String::from));
}
