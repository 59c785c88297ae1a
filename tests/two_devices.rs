//! Layers on two devices, and experts that lie on another one than their layers. Both devices are the CPU here: the way is the same,
//! and not a bit may differ.

mod reference;
mod runtime;
mod support;

use std::sync::Arc;

use runtime::{Pair, prefill, schedule};
use spts::method::spts::schedule::{Pool, Probe, Schedule};
use spts::model::placement::Placement;
use spts::{Model, ModelFile, Session, SessionOptions};
use support::scene::{Scene, stderr};
use support::tiny::Tiny;

const NAMES: [&str; 3] = ["qwen3moe", "gpt-oss", "gemma4-moe"];

/// The model with its last `on_device` layers on a second device, but for the experts of the first `n_cpu_moe`.
fn split(pair: &Pair, on_device: usize, n_cpu_moe: usize) -> Arc<Model> {
    placed(pair, on_device, n_cpu_moe).expect("a model")
}

fn placed(pair: &Pair, on_device: usize, n_cpu_moe: usize) -> Result<Arc<Model>, spts::Error> {
    let file = ModelFile::from_gguf(pair.model.file().gguf().clone()).expect("a model");
    let placement = Placement::split("CPU".into(), pair.tiny.n_layer, on_device, n_cpu_moe);
    Model::place_as(file, placement, runtime::on_cpu())
}

/// Logits behind prompts of several lengths, and two tokens more behind each; then behind a document.
fn answers(model: &Arc<Model>, options: SessionOptions, tokens: &[u32]) -> Vec<Vec<f32>> {
    let mut session = Session::new(model.clone(), options).expect("a session");
    let mut out = Vec::new();
    for n in [tokens.len(), 20, tokens.len()] {
        session.clear();
        prefill(&mut session, &tokens[..n]).expect("a prompt");
        out.push(session.logits().to_vec());
        for token in [3, 1] {
            session.decode(token).expect("room");
            out.push(session.logits().to_vec());
        }
    }
    session.forget_document();
    session.read(&tokens[..90], &mut |_| std::ops::ControlFlow::Continue(())).expect("a document");
    for n in [100, tokens.len()] {
        session.clear();
        prefill(&mut session, &tokens[..n]).expect("a question");
        out.push(session.logits().to_vec());
    }
    out
}

fn skipping(tiny: &Tiny) -> Schedule {
    let probe = Probe { queries: 4, pool: Pool::Max(3), carry: 0.5, ..Probe::PAPER };
    Schedule { use_proxy: false, ..schedule(&[(tiny.n_layer - 2, 80, 20)], probe) }
}

#[test]
fn answers_are_the_same_to_the_last_bit() {
    for name in NAMES {
        let pair = Pair::new(Tiny::named(name));
        let tokens = pair.tiny.prompt(150);
        let n_layer = pair.tiny.n_layer;
        for n_ubatch in [40, 512] {
            for method in [None, Some(skipping(&pair.tiny))] {
                let options = || {
                    let method = method.clone().map_or_else(|| Arc::new(spts::Dense) as _, Into::into);
                    SessionOptions { n_ubatch: Some(n_ubatch), method, ..runtime::exact(512) }
                };
                let expected = answers(&pair.model, options(), &tokens);
                for (on_device, n_cpu_moe) in
                    [(n_layer, 1), (n_layer, 3), (n_layer, usize::MAX), (3, n_layer - 1), (2, 1)]
                {
                    let model = split(&pair, on_device, n_cpu_moe);
                    let got = answers(&model, options(), &tokens);
                    let skips = method.is_some();
                    assert!(
                        got == expected,
                        "{name}: {on_device} layers, {n_cpu_moe}, tiles of {n_ubatch}, skips: {skips}"
                    );
                }
            }
        }
    }
}

/// Of nine layers the last five read the keys of the first two of them.
#[test]
fn layers_that_share_keys_go_to_one_device() {
    let pair = Pair::new(Tiny::named("gemma4-small"));
    let tokens = pair.tiny.prompt(150);
    for method in [None, Some(skipping(&pair.tiny))] {
        let options = || {
            let method = method.clone().map_or_else(|| Arc::new(spts::Dense) as _, Into::into);
            SessionOptions { n_ubatch: Some(40), method, ..runtime::exact(512) }
        };
        let expected = answers(&pair.model, options(), &tokens);
        for on_device in [5, 7, 9] {
            assert!(answers(&split(&pair, on_device, 0), options(), &tokens) == expected, "{on_device} layers");
        }
    }
    for on_device in 1..5 {
        let message = placed(&pair, on_device, 0).expect_err("keys on two devices").to_string();
        let expected = "the layers 4 to 8 read the same keys and values, so they go to one device";
        assert!(message.contains(expected) && message.ends_with("at least 5 layers"), "{message}");
    }
}

#[test]
fn placements_of_experts() {
    let pair = Pair::new(Tiny::named("gpt-oss"));
    let model = split(&pair, pair.tiny.n_layer, 2);
    let placement = model.placement();
    assert_eq!(placement.layer, [1; 6]);
    assert_eq!(placement.experts, [0, 0, 1, 1, 1, 1]);
    assert_eq!((placement.input, placement.output), (1, 1));
    // All of them on the CPU anyway: nothing to choose.
    let all = Placement::split("CUDA0".into(), 4, 0, 3);
    assert_eq!((all.devices, all.experts), (vec!["CPU".to_owned()], vec![0; 4]));
    // Models without experts stay as they are.
    let dense = Pair::new(Tiny::named("llama"));
    let options = spts::ModelOptions { n_cpu_moe: usize::MAX, ..runtime::on_cpu() };
    assert_eq!(
        Model::from_gguf(dense.model.file().gguf().clone(), options).expect("a model").placement(),
        dense.model.placement()
    );
}

#[test]
fn at_the_command_line() {
    let scene = Scene::with("gpt-oss");
    let run = |flags: &[&str]| {
        let all =
            ["-m", "tiny.gguf", "-p", "the rain in Spain", "-n", "5", "--temp", "0", "--json", "--ignore-eos", "-v"];
        let output = scene.run(&[&all, flags].concat());
        assert_eq!(output.status.code(), Some(0), "{flags:?}: {}", stderr(&output));
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        (json["generated"].clone(), stderr(&output))
    };
    let (plain, messages) = run(&["-dev", "CPU"]);
    assert!(messages.contains("no operation of a layer runs elsewhere"), "{messages}");
    // On the CPU alone the flags change nothing.
    for flags in [&["-ncmoe", "2"][..], &["--n-cpu-moe", "99"], &["-cmoe"], &["--cpu-moe"]] {
        let (same, messages) = run(&[&["-dev", "CPU"], flags].concat());
        assert_eq!(same, plain, "{flags:?}");
        assert!(messages.contains("no operation of a layer runs elsewhere"), "{messages}");
    }
    let message = scene.bad(2, &["-m", "tiny.gguf", "-p", "x", "-ncmoe", "2", "-cmoe"]);
    assert!(message.contains("-cmoe") && message.contains("-ncmoe"), "{message}");

    // Floats of three matrices of 5 experts of 16 by 8.
    let plan = |flags: &[&str]| scene.json(&[&["plan", "-m", "tiny.gguf", "-n", "512", "--json"], flags].concat());
    let of_a_layer = 4 * 3 * 5 * 16 * 8;
    assert_eq!(plan(&["-ncmoe", "2"])["cpu_expert_bytes"], 2 * of_a_layer);
    assert_eq!(plan(&["-cmoe"])["cpu_expert_bytes"], 6 * of_a_layer);
    assert_eq!(plan(&[])["cpu_expert_bytes"], 0);
    let bytes = |flags: &[&str]| plan(flags)["memory_bytes"].as_u64().unwrap();
    assert_eq!(bytes(&["-cmoe"]), bytes(&[]) + of_a_layer);
    let text = scene.good(&["plan", "--shape", "gpt-oss-20b", "-n", "32768", "-cmoe"]);
    assert!(text.contains("GiB are experts on the CPU; on the GPU "), "{text}");
    let text = scene.good(&["plan", "--shape", "llama-3.1-8b", "-n", "32768", "-cmoe"]);
    assert!(!text.contains("experts"), "{text}");
}
