//! Calibration: the proxies against the FFNs they stand for, and `spts-cli calibrate` with all that finds its file.
#![cfg(feature = "cli")]

mod support;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use spts::graph::ir::Tap;
use spts::method::spts::capture::Capture;
use spts::method::spts::schedule::{Probe, ProxySize};
use spts::method::spts::sidecar::Sidecar;
use spts::proxies::calibrate::{CalibrateOptions, calibrate};
use spts::proxies::error::CalibrationError;
use spts::{Error, Model, ModelOptions, Session, SessionOptions};
use support::scene::{Scene, stderr};
use support::tiny::Tiny;

/// Everything the proxy's F16 factors and ggml's F16 activations may change in a norm.
const F16: f32 = 5e-3;

struct Tokens(Vec<u32>);

fn open(path: &Path) -> Arc<Model> {
    Model::open(path, ModelOptions { device: Some("CPU".into()), ..ModelOptions::default() }).unwrap()
}

fn tiny(name: &str, folder: &Path) -> (Arc<Model>, Tiny, Tokens) {
    let tiny = Tiny::named(name);
    let path = folder.join("tiny.gguf");
    tiny.build().write(&path);
    (open(&path), tiny.clone(), Tokens(tiny.prompt(700)))
}

fn made(model: &Arc<Model>, texts: &[Vec<u32>], size: ProxySize, folder: &Path) -> Arc<Sidecar> {
    let mut options = CalibrateOptions::new(size, "test");
    options.piece = 256;
    let path = folder.join("proxies.gguf");
    calibrate(model, texts, &options, &mut |_| ControlFlow::Continue(())).unwrap().write(&path).unwrap();
    Arc::new(Sidecar::open(&path).unwrap())
}

/// One value of every layer, `[n_feat, n]`, over a dense prefill.
fn captured(
    model: &Arc<Model>,
    sidecar: Option<&Arc<Sidecar>>,
    tokens: &[u32],
    layers: &[usize],
    tap: Tap,
) -> Vec<Vec<f32>> {
    let options = SessionOptions { sidecar: sidecar.cloned(), n_ubatch: Some(64), ..SessionOptions::default() };
    let mut session = Session::new(model.clone(), options).unwrap();
    let mut out = vec![Vec::new(); model.shape().n_layer];
    let capture = Capture { layers, taps: &[tap], probe: Probe::PAPER };
    let mut sink = |c: spts::session::executor::Captured<'_>| {
        assert_eq!(c.tap, tap);
        out[c.layer].extend_from_slice(c.values);
    };
    session.prefill_capturing(tokens, &capture, &mut |_| ControlFlow::Continue(()), &mut sink).unwrap();
    layers.iter().map(|&l| out[l].clone()).collect()
}

fn norms(x: &[f32], n_feat: usize) -> Vec<f32> {
    x.chunks_exact(n_feat).map(|r| r.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt() as f32).collect()
}

fn assert_close(found: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let mean = expected.iter().sum::<f32>() / expected.len() as f32;
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f - e).abs() <= tolerance * e.max(mean), "{what}, token {i}: {f}, expected {e}");
    }
}

#[test]
fn a_proxy_of_all_channels_and_full_rank_is_the_ffn() {
    for name in ["llama", "qwen2", "qwen3", "phi3"] {
        let dir = tempfile::tempdir().unwrap();
        let (model, tiny, Tokens(text)) = tiny(name, dir.path());
        let size = ProxySize { d_low: tiny.n_ff, rank: tiny.n_embd.min(tiny.n_ff) };
        let sidecar = made(&model, std::slice::from_ref(&text), size, dir.path());
        let layers: Vec<usize> = (0..tiny.n_layer).collect();
        assert_eq!((sidecar.layers(), sidecar.size()), (layers.as_slice(), size), "{name}");
        let c = captured(&model, Some(&sidecar), &text[..200], &layers, Tap::ProxyNorm);
        let y = captured(&model, None, &text[..200], &layers, Tap::FfnOutput);
        for l in 0..tiny.n_layer {
            assert_close(&c[l], &norms(&y[l], tiny.n_embd), F16, &format!("{name}, layer {l}"));
        }
    }
}

/// By the definition: of each channel sort all |z|, average the largest fifth, take the channels with the largest averages.
fn salient(hidden: &[f32], n_ff: usize, d_low: usize) -> Vec<usize> {
    let n = hidden.len() / n_ff;
    let top = (n as f64 * 0.2).ceil() as usize;
    let score = |c: usize| {
        let mut z: Vec<f64> = (0..n).map(|t| f64::from(hidden[t * n_ff + c].abs())).collect();
        z.sort_by(|a, b| b.total_cmp(a));
        z[..top].iter().sum::<f64>()
    };
    let mut channels: Vec<usize> = (0..n_ff).collect();
    channels.sort_by(|&a, &b| score(b).total_cmp(&score(a)));
    channels.truncate(d_low);
    channels
}

#[test]
fn a_proxy_keeps_the_channels_with_the_largest_top_fifth() {
    const D_LOW: usize = 7;
    for name in ["llama", "phi3"] {
        let dir = tempfile::tempdir().unwrap();
        let (model, tiny, Tokens(text)) = tiny(name, dir.path());
        // At full rank a proxy is the restricted FFN. 700 tokens are three pieces, each a prompt of its own.
        let sidecar = made(&model, std::slice::from_ref(&text), ProxySize { d_low: D_LOW, rank: D_LOW }, dir.path());
        let layers: Vec<usize> = (0..tiny.n_layer).collect();
        let bos: Vec<u32> = model.tokenizer().bos().into_iter().filter(|_| model.tokenizer().add_bos()).collect();
        let mut hidden = vec![Vec::new(); tiny.n_layer];
        for piece in text.chunks(256 - bos.len()) {
            let piece = [bos.as_slice(), piece].concat();
            for (all, part) in hidden.iter_mut().zip(captured(&model, None, &piece, &layers, Tap::FfnHidden)) {
                all.extend(part);
            }
        }
        let c = captured(&model, Some(&sidecar), &text[..200], &layers, Tap::ProxyNorm);
        let z = captured(&model, None, &text[..200], &layers, Tap::FfnHidden);
        let file = tiny.build();
        for l in 0..tiny.n_layer {
            let channels = salient(&hidden[l], tiny.n_ff, D_LOW);
            let down = &file.tensor(&format!("blk.{l}.ffn_down.weight")).unwrap().data;
            let restricted: Vec<f32> = z[l]
                .chunks_exact(tiny.n_ff)
                .flat_map(|z| {
                    let channels = channels.clone();
                    down.chunks_exact(tiny.n_ff).map(move |row| channels.iter().map(|&c| row[c] * z[c]).sum::<f32>())
                })
                .collect();
            assert_close(&c[l], &norms(&restricted, tiny.n_embd), F16, &format!("{name}, layer {l}"));
        }
    }
}

#[test]
fn layers_with_a_window_get_no_proxy() {
    let dir = tempfile::tempdir().unwrap();
    let (model, _, Tokens(text)) = tiny("gemma3", dir.path());
    // Of seven layers the sixth alone attends to everything; sizes are cut down to the model's.
    let sidecar = made(&model, &[text], ProxySize { d_low: 1000, rank: 1000 }, dir.path());
    assert_eq!((sidecar.layers(), sidecar.size()), ([5].as_slice(), ProxySize { d_low: 28, rank: 20 }));
}

#[test]
fn short_texts_and_impatient_callers() {
    let dir = tempfile::tempdir().unwrap();
    let (model, _, Tokens(text)) = tiny("llama", dir.path());
    let options = CalibrateOptions::new(ProxySize { d_low: 8, rank: 8 }, "test");
    let error = calibrate(&model, &[text[..100].to_vec()], &options, &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(matches!(error, Error::Calibration(CalibrationError::TooShort { found: 100..=101, .. })), "{error}");
    let mut calls = 0;
    let stopped = calibrate(&model, &[text], &options, &mut |_| {
        calls += 1;
        if calls < 3 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    assert!(matches!(stopped.unwrap_err(), Error::Interrupted));
    assert_eq!(calls, 3);
}

fn text() -> String {
    (0..40).map(|i| format!("the rain in year {i} fell on the inner tin. ")).collect()
}

fn scene() -> Scene {
    let scene = Scene::new();
    scene.write("text.txt", text());
    scene
}

const CALIBRATE: [&str; 5] = ["calibrate", "-m", "tiny.gguf", "-f", "text.txt"];
const SKIP: [&str; 13] = [
    "-m",
    "tiny.gguf",
    "-f",
    "text.txt",
    "-n",
    "6",
    "--temp",
    "0",
    "--json",
    "--no-cnv",
    "--schedule",
    "0.5,0.4,0.3,0.2",
    "--proxy",
];

fn with<'a>(args: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    args.iter().chain(more).copied().collect()
}

#[test]
fn a_sidecar_beside_the_model_is_found() {
    let scene = scene();
    let output = scene.run(&CALIBRATE);
    let said = stderr(&output);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(0), 0), "{said}");
    assert!(said.contains("tiny.spts.gguf: proxies of 5 layers (40 channels, rank 24)"), "{said}");
    let info = scene.json(&["info", "tiny.spts.gguf", "--json"]);
    assert_eq!(info["metadata"]["general.architecture"], "spts-proxies");
    assert_eq!(info["tensors"].as_array().unwrap().len(), 5 * 4);

    let output = scene.run(&SKIP);
    assert_eq!(stderr(&output), "", "the sidecar is there");
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(found["cache_kept"].as_f64().unwrap() < 0.9);
    // A named one is meant to be used.
    let named = scene.json(&with(&SKIP[..12], &["--sidecar", "tiny.spts.gguf"]));
    assert_eq!(found["generated"], named["generated"]);
    assert!(!scene.path("cache").exists());
    // Proxies decide: the chosen tokens are others than those of attention alone.
    scene.good(&with(&SKIP, &["--dump-selection", "proxy.json"]));
    scene.good(&with(&SKIP[..12], &["--dump-selection", "alone.json"]));
    assert_ne!(std::fs::read(scene.path("proxy.json")).unwrap(), std::fs::read(scene.path("alone.json")).unwrap());
    // Once more: it is this model's, so it may be replaced.
    scene.good(&with(&CALIBRATE, &["--d-low", "9", "--rank", "5"]));
    assert_eq!(scene.json(&["info", "tiny.spts.gguf", "--json"])["metadata"]["spts.rank"], 5);
}

#[test]
fn files_that_are_not_overwritten() {
    let scene = scene();
    scene.write("precious.txt", "precious");
    let message = scene.bad(1, &with(&CALIBRATE, &["-o", "precious.txt"]));
    assert!(message.contains("precious.txt: exists, and is no sidecar") && message.contains("--force"), "{message}");
    assert_eq!(std::fs::read(scene.path("precious.txt")).unwrap(), b"precious");
    scene.good(&with(&CALIBRATE, &["-o", "precious.txt", "--force"]));
    assert!(Sidecar::open(&scene.path("precious.txt")).is_ok());
    let message = scene.bad(1, &with(&CALIBRATE, &["-o", "tiny.gguf", "--force"]));
    assert!(message.contains("tiny.gguf: is the same file as tiny.gguf, which is read"), "{message}");

    // Another model's: neither overwritten nor used.
    Tiny { seed: 99, ..Tiny::named("llama") }.build().write(&scene.path("tiny.gguf"));
    let message = scene.bad(1, &with(&CALIBRATE, &["-o", "precious.txt"]));
    assert!(message.contains("another model") && message.contains("--force"), "{message}");
    let message = scene.bad(1, &with(&SKIP, &["--sidecar", "precious.txt"]));
    assert!(message.contains("precious.txt: sidecar of another model"), "{message}");
}

#[test]
fn texts_that_will_not_do() {
    let scene = scene();
    scene.write("short.txt", "too short");
    let message = scene.bad(1, &["calibrate", "-m", "tiny.gguf", "-f", "short.txt"]);
    assert!(message.contains("at least 256 tokens") && message.contains("found "), "{message}");
    let message = scene.bad(1, &with(&CALIBRATE, &["--tokens", "100"]));
    assert!(message.contains("found 100"), "{message}");
    assert!(scene.bad(1, &["calibrate", "-m", "tiny.gguf", "-f", "none.txt"]).contains("none.txt: cannot read"));
    assert!(scene.bad(1, &["calibrate", "-m", "none.gguf", "-f", "text.txt"]).contains("none.gguf"));
    assert!(scene.bad(2, &["calibrate", "-m", "tiny.gguf"]).contains("missing: -f FILE"));
    assert!(
        scene
            .bad(1, &with(&CALIBRATE, &["-o", "no/proxies.gguf"]))
            .contains("no/proxies.gguf: there is no such folder")
    );
    assert!(!scene.path("tiny.spts.gguf").exists());
    // Several together are long enough.
    scene.write("other.txt", text());
    scene.good(&["calibrate", "-m", "tiny.gguf", "-f", "short.txt", "other.txt", "--tokens", "400"]);
    assert_eq!(scene.json(&["info", "tiny.spts.gguf", "--json"])["metadata"]["spts.calibration_tokens"], 400);
}

#[test]
fn a_first_run_makes_its_proxies() {
    let scene = scene();
    let first = scene.run(&SKIP);
    let said = stderr(&first);
    assert_eq!(first.status.code(), Some(0), "{said}");
    assert!(said.contains("first run of this model") && said.lines().count() == 1, "{said}");
    let kept: Vec<PathBuf> =
        std::fs::read_dir(scene.path("cache/spts")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert!(kept[0].to_string_lossy().ends_with(".spts.gguf"));
    let second = scene.run(&SKIP);
    assert_eq!(stderr(&second), "", "the second run finds them");
    let generated =
        |o: &std::process::Output| serde_json::from_slice::<serde_json::Value>(&o.stdout).unwrap()["generated"].clone();
    assert_eq!(generated(&first), generated(&second));

    // A damaged one is made again.
    std::fs::write(&kept[0], "GGUF, but not for long").unwrap();
    let said = stderr(&scene.run(&SKIP));
    assert!(said.contains("making them again") && said.contains("first run"), "{said}");
    assert_eq!(stderr(&scene.run(&SKIP)), "");
}

#[test]
fn without_proxies_attention_alone_chooses() {
    let scene = scene();
    let alone = scene.json(&SKIP[..12]);
    assert!(!scene.path("cache").exists(), "attention alone needs none");
    scene.write("file", "no folder");
    let run = |cache: Option<&Path>, home: Option<&Path>, args: &[&str]| {
        let mut command = scene.command(args);
        command.env_remove("XDG_CACHE_HOME").env_remove("HOME");
        command.envs(cache.map(|c| ("XDG_CACHE_HOME", c))).envs(home.map(|h| ("HOME", h)));
        let output = command.output().unwrap();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(0), "{said}");
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        (said, json["generated"].clone())
    };
    let file = scene.path("file");
    for (cache, home) in
        [(Some(file.as_path()), None), (None, None), (Some(Path::new("relative")), None), (None, Some(file.as_path()))]
    {
        let (said, generated) = run(cache, home, &SKIP);
        assert!(said.contains("chosen by attention alone") && said.lines().count() == 1, "{said}");
        assert_eq!(generated, alone["generated"]);
    }
    // The home folder's cache is used where there is no other.
    run(None, Some(&scene.path("home")), &SKIP);
    assert!(scene.path("home/.cache/spts").exists());
    // A prompt can be too short to calibrate on.
    scene.write("text.txt", "the rain in the inner tin ".repeat(4));
    let (said, _) = run(Some(&scene.path("other")), None, &with(&SKIP, &["--probe-queries", "4"]));
    assert!(said.contains("chosen by attention alone") && said.contains("at least 256 tokens"), "{said}");
}

fn smollm2() -> Option<PathBuf> {
    let folder = std::env::var_os("SPTS_MODELS")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/models")), PathBuf::from);
    let path = folder.join("smollm2-135m.gguf");
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: no smollm2-135m.gguf in the models folder (make fetch)");
    None
}

/// Prose that repeats itself, but never literally.
fn prose() -> String {
    let who = ["The miller", "Her brother", "A traveller", "The old judge", "Nobody"];
    let did =
        ["crossed the river", "forgot the letter", "sold the last horse", "counted the windows", "asked for bread"];
    let when = ["before dawn", "in the second winter", "while the bells rang", "after the harvest"];
    let sentence = |i: usize| format!("{} {} {}, {} times. ", who[i * 7 % 5], did[i * 3 % 5], when[i % 4], i + 2);
    (0..200).map(sentence).collect()
}

#[test]
fn on_a_real_model_of_4_bits() {
    let Some(path) = smollm2() else { return };
    let model = open(&path);
    let dir = tempfile::tempdir().unwrap();
    let text = model.tokenizer().encode(&prose(), false, false);
    let shape = model.shape();
    let full = ProxySize { d_low: shape.n_ff, rank: shape.n_embd };
    let sidecar = made(&model, &[text[..256].to_vec()], full, dir.path());
    let layers = [0, 10, 29];
    let c = captured(&model, Some(&sidecar), &text[300..400], &layers, Tap::ProxyNorm);
    let y = captured(&model, None, &text[300..400], &layers, Tap::FfnOutput);
    for (i, layer) in layers.iter().enumerate() {
        // Against weights of 4 bits ggml multiplies activations of 8 bits; the proxy's are F16.
        assert_close(&c[i], &norms(&y[i], shape.n_embd), 0.05, &format!("layer {layer}"));
    }
}

/// Phi-3's long rope factors come with the context of the run, however short the pieces are that a calibration reads.
#[test]
fn a_calibration_rotates_as_the_run_will() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = Tiny::named("phi3-longrope");
    let made = |file: &support::gguf::File, n_ctx: Option<usize>| {
        let path = folder.path().join("model.gguf");
        file.write(&path);
        let mut options = CalibrateOptions::new(ProxySize { d_low: 16, rank: 8 }, "test");
        // Pieces shorter than the 256 tokens that the short factors are for.
        (options.piece, options.n_ctx) = (100, n_ctx);
        let text = [tiny.prompt(700)];
        calibrate(&open(&path), &text, &options, &mut |_| ControlFlow::Continue(())).unwrap().layers
    };
    let with_one_kind = |kind: &str| {
        let mut file = tiny.build();
        let factors = file.tensor(&format!("rope_factors_{kind}.weight")).unwrap().data.clone();
        for t in file.tensors.iter_mut().filter(|t| t.name.starts_with("rope_factors_")) {
            t.data.clone_from(&factors);
        }
        file
    };
    let (short, long) = (made(&with_one_kind("short"), None), made(&with_one_kind("long"), None));
    assert!(short != long, "the factors do not matter");
    assert!(made(&tiny.build(), None) == long, "a run in the model's own context");
    assert!(made(&tiny.build(), Some(2000)) == long, "a run in a long context");
    assert!(made(&tiny.build(), Some(256)) == short, "a run in a short context");
}
