//! Mixtures of experts: what a file has to say of them, in 4 bits too, and how the program shows them.

use spts::gguf::Gguf;
use spts::{Model, Session};

use crate::runtime;
use crate::runtime::files::{logits, refusal, refuses_missing_and_misshapen, set, with, without};
use crate::support::scene::{Scene, stderr};
use crate::support::tiny::Tiny;

#[test]
fn experts_that_cannot_be() {
    let tiny = Tiny::named("qwen3moe");
    for (key, value, expected) in [
        ("expert_count", 0, "'qwen3moe.expert_count' is 0, expected 1 to"),
        ("expert_used_count", 0, "'qwen3moe.expert_used_count' is 0, expected 1 to 6"),
        ("expert_used_count", 7, "'qwen3moe.expert_used_count' is 7, expected 1 to 6"),
        ("expert_count", 5, "tensor 'blk.0.ffn_gate_inp.weight' has shape"),
        ("expert_feed_forward_length", 11, "tensor 'blk.0.ffn_gate_exps.weight' has shape"),
    ] {
        let message = refusal(&with(&tiny, key, value));
        assert!(message.contains(expected), "{key} {value}: {message}");
    }
    let tensors = ["ffn_gate_inp.weight", "ffn_gate_exps.weight", "ffn_up_exps.weight", "ffn_down_exps.weight"];
    refuses_missing_and_misshapen(&tiny, 2, &tensors);
    assert!(refusal(&with(&tiny, "expert_weights_scale", 2.5f32)).contains("expert_weights_scale"));
    let message = refusal(&with(&Tiny::named("llama"), "expert_count", 8u32));
    assert!(message.contains("mixtures of experts are supported in gemma4, qwen3moe, gpt-oss, "), "{message}");
    // Without its width the file's own is divided among those that compute a token.
    let mut file = without(&tiny, "expert_feed_forward_length");
    set(&mut file, "qwen3moe.feed_forward_length", 20u32);
    let prompt = tiny.prompt(20);
    assert_eq!(logits(&file, &prompt), logits(&tiny.build(), &prompt));
}

/// A file in MXFP4, made and read here, answers as its floats do.
#[test]
fn experts_in_mxfp4() {
    let scene = Scene::new();
    let tiny = Tiny { n_embd: 64, n_ff: 96, ..Tiny::named("gpt-oss") };
    tiny.build().write(&scene.path("big.gguf"));
    scene.good(&["quantize", "-m", "big.gguf", "-o", "small.gguf", "--type", "mxfp4_moe"]);
    scene.good(&["quantize", "-m", "small.gguf", "-o", "floats.gguf", "--type", "f32"]);
    let small = Gguf::open(&scene.path("small.gguf"), spts::OpenOptions::default()).expect("a file");
    let types: Vec<(&str, &str)> = small.tensors().map(|t| (t.name.as_str(), t.ty.name())).collect();
    for (name, ty) in [
        ("blk.1.ffn_gate_exps.weight", "MXFP4"),
        ("blk.1.ffn_down_exps.weight", "MXFP4"),
        ("blk.1.ffn_down_exps.bias", "F32"),
        ("blk.1.ffn_gate_inp.weight", "F32"),
        ("blk.1.attn_q.weight", "Q8_0"),
        ("token_embd.weight", "Q8_0"),
        ("output.weight", "Q8_0"),
    ] {
        assert!(types.contains(&(name, ty)), "{name}: {types:?}");
    }
    assert_eq!(small.u32("general.file_type").expect("a number"), Some(38));
    let prompt = tiny.prompt(50);
    let answer = |file: &str| {
        let model = Model::open(&scene.path(file), runtime::on_cpu()).expect("a model");
        runtime::logits(Session::new(model, runtime::exact(512)).expect("a session"), &prompt)
    };
    // Kernels round the rows to 8 bits, too.
    runtime::assert_close(&answer("small.gguf"), &answer("floats.gguf"), 5e-2, "MXFP4");
}

#[test]
fn experts_at_the_command_line() {
    let scene = Scene::with("qwen3moe");
    let plan = scene.json(&["plan", "-m", "tiny.gguf", "-n", "512", "--schedule", "0.5,0.4,0.3,0.2", "--json"]);
    assert!(plan["predicted_speedup"].as_f64().is_some_and(|x| x > 1.1), "{plan}");
    let graph = scene.good(&["plan", "-m", "tiny.gguf", "-n", "64", "--graph"]);
    assert!(graph.contains("experts(") && graph.contains("2 of 6"), "{graph}");
    let run = ["-m", "tiny.gguf", "-p", "the rain in Spain", "-n", "5", "--temp", "0", "--json", "--ignore-eos"];
    assert_eq!(scene.json(&run)["generated"].as_array().map(Vec::len), Some(5));
    // Schedules that would score FFNs by proxies do without, and say so.
    scene.write("text.txt", "the rain in Spain stays mainly in the plain. ".repeat(40));
    let output = scene.run(&[&run[..], &["-f", "text.txt", "--schedule", "0.5,0.4,0.3,0.2", "--proxy"]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stderr(&output).contains("mixtures of experts, for which there are no proxies"), "{}", stderr(&output));
    let message = scene.bad(1, &["calibrate", "-m", "tiny.gguf", "-f", "text.txt"]);
    assert!(message.contains("there are no proxies"), "{message}");
    scene.good(&["quantize", "-m", "tiny.gguf", "-o", "small.gguf", "--type", "q8_0"]);
    let run = ["-m", "small.gguf", "-p", "the rain in Spain", "-n", "5", "--temp", "0", "--json", "--ignore-eos"];
    assert_eq!(scene.json(&run)["generated"].as_array().map(Vec::len), Some(5));
}
