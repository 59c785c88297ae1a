//! What a command refuses before it begins: flags that are none, files that cannot be read or written. And its help.

use std::path::Path;

use crate::run_with;
use crate::support::scene::Scene;

#[test]
fn wrong_usage() {
    let scene = Scene::new();
    for (args, expected) in [
        (vec![], "-m FILE (a model)"),
        (vec!["-m", "tiny.gguf"], "-p TEXT (a prompt) or -f FILE (a document)"),
        (run_with(&["-fa"]), "flash attention is always on"),
        (vec!["eval"], "tasks, needle, proxies or kl"),
        (run_with(&["-ngl", "many"]), "'-ngl <N>'"),
        (run_with(&["--no-such-flag"]), "--no-such-flag"),
        (run_with(&["--top-p", "2"]), "from 0 to 1"),
        (run_with(&["--attention", "sparse:1"]), "expected dense, sparse, sparse:MASS or sparse:density=X"),
        (run_with(&["--attention", "window"]), "expected dense, sparse, sparse:MASS or sparse:density=X"),
        (run_with(&["extra"]), "extra"),
        (vec!["plan", "--shape", "llama-3.1-8b"], "-n"),
        (vec!["bench"], "-m FILE (a model) or --synthetic SHAPE"),
        (vec!["bench", "--synthetic", "llama-9"], "llama-3.1-8b"),
        (vec!["bench", "-m", "tiny.gguf", "-p", "64,none"], "'-p <N,...>'"),
        (vec!["quantize", "-m", "tiny.gguf", "-o", "out.gguf"], "missing: --type TYPE"),
        (
            vec!["quantize", "-m", "tiny.gguf", "-o", "out.gguf", "--type", "q3_k_m"],
            "expected one of mxfp4_moe, q4_0, ",
        ),
    ] {
        let message = scene.bad(2, &args);
        assert!(message.contains(expected), "{message}");
    }
}

/// A device that is missing ends a command when it places weights: whatever is said before was found without them.
/// Each command comes that far without what is wrong in it.
#[test]
fn what_is_wrong_is_found_before_weights_are_placed() {
    let scene = Scene::new();
    scene.write("text.txt", "the rain in the inner tin ".repeat(40));
    scene.write("data.jsonl", r#"{"task":"t","prompt":"the rain","answers":["x"],"metric":"exact","n_predict":2}"#);
    scene.good(&["calibrate", "-m", "tiny.gguf", "-f", "text.txt"]);
    let eval = |what: &'static str| vec!["eval", what, "-m", "tiny.gguf", "-f", "text.txt", "-n", "300"];
    let tasks = vec!["eval", "tasks", "-m", "tiny.gguf", "--data", "data.jsonl"];
    let tune = vec!["tune", "-m", "tiny.gguf", "--data", "data.jsonl"];
    let run = vec!["-m", "tiny.gguf", "-p", "the rain"];
    let bench = vec!["bench", "-m", "tiny.gguf", "-p", "60"];
    for (command, wrong, expected) in [
        (run, ["--sidecar", "no-such.gguf"], "no-such.gguf"),
        (eval("kl"), ["--config", "--schedule no-such"], "no-such"),
        (eval("kl"), ["--next", "60000"], "60300 are needed"),
        (eval("needle"), ["--config", "--schedule no-such"], "no-such"),
        (eval("proxies"), ["--sidecar", "no-such.gguf"], "no-such.gguf"),
        (tasks.clone(), ["--config", "--schedule no-such"], "no-such"),
        (tasks, ["--config", "--proxy --sidecar no-such.gguf"], "no-such.gguf"),
        (tune, ["--schedule", "no-such"], "no-such"),
        (bench, ["--schedule", "no-such"], "no-such"),
    ] {
        let no_device = |more: &[&str]| scene.bad(1, &[&command[..], more, &["--device", "none-such"]].concat());
        let message = no_device(&wrong);
        assert!(message.contains(expected) && !message.contains("none-such"), "{command:?} {wrong:?}: {message}");
        let message = no_device(&[]);
        assert!(message.contains("none-such"), "{command:?}: {message}");
    }
}

#[test]
fn help_and_version() {
    let scene = Scene::new();
    for args in
        [["--help"].as_slice(), &["-h"], &["plan", "--help"], &["info", "-h"], &["bench", "-h"], &["quantize", "-h"]]
    {
        assert!(scene.good(args).contains("Usage: "), "{args:?}");
    }
    let version = scene.good(&["--version"]);
    assert!(
        version.starts_with(concat!("spts-cli ", env!("CARGO_PKG_VERSION"), " (")) && version.contains("ggml 0."),
        "{version}"
    );
    assert!(scene.good(&["--list-devices"]).contains("CPU"));
}

#[test]
fn models_that_cannot_be_read() {
    let scene = Scene::new();
    scene.write("text.gguf", "this is no model at all");
    let whole = std::fs::read(scene.path("tiny.gguf")).unwrap();
    scene.write("half.gguf", &whole[..whole.len() / 2]);
    scene.write("empty.gguf", "");
    for file in ["no-such.gguf", "text.gguf", "half.gguf", "empty.gguf", "."] {
        for args in [
            vec!["-m", file, "-p", "x"],
            vec!["info", file],
            vec!["plan", "-m", file, "-n", "9"],
            vec!["bench", "-m", file, "-p", "9"],
            vec!["quantize", "-m", file, "-o", "out.gguf", "--type", "q8_0"],
        ] {
            let message = scene.bad(1, &args);
            assert!(message.contains(file), "{message}");
        }
    }
}

#[test]
fn prompts_beyond_the_context() {
    let scene = Scene::new();
    let message = scene.bad(1, &["-m", "tiny.gguf", "-p", &"q".repeat(3000)]);
    assert!(message.contains("2048") && message.contains("-c") && message.contains("30"), "{message}");
    let message = scene.bad(1, &["-m", "tiny.gguf", "-p", &"q".repeat(100), "-c", "64"]);
    assert!(message.contains("64") && message.contains("-c"), "{message}");
    // The answer stops where the context is full.
    let json = scene.json(&["-m", "tiny.gguf", "-p", "qqqq", "--no-cnv", "-c", "16", "--ignore-eos", "--json"]);
    assert_eq!(json["stop"], "context");
    assert_eq!(json["prompt_tokens"].as_u64().unwrap() + json["generated"].as_array().unwrap().len() as u64, 17);
}

#[test]
fn a_selection_that_cannot_be_written() {
    let message = Scene::new().bad(1, &run_with(&["--dump-selection", "no/such/folder.json"]));
    assert!(message.contains("no/such/folder.json: there is no such folder"), "{message}");
}

#[test]
fn quantize() {
    let scene = Scene::new();
    let text = scene.good(&["quantize", "-m", "tiny.gguf", "-o", "small.gguf", "--type", "f16"]);
    assert!(text.starts_with("small.gguf: F16, weights ") && text.contains("tensors  F32 to F16"), "{text}");
    assert_eq!(scene.json(&["info", "small.gguf", "--json"])["metadata"]["general.file_type"], 1);
    scene.good(&["-m", "small.gguf", "-p", "the rain", "-n", "2"]);
    let message = scene.bad(1, &["quantize", "-m", "tiny.gguf", "-o", "tiny.gguf", "--type", "f16"]);
    assert!(message.contains("is the same file as tiny.gguf, which is read"), "{message}");
    let message = scene.bad(1, &["quantize", "-m", "tiny.gguf", "-o", "no/such/out.gguf", "--type", "f16"]);
    assert!(message.contains("no/such/out.gguf: there is no such folder"), "{message}");
}

#[test]
fn the_help_names_every_subcommand_that_works() {
    let scene = Scene::new();
    let help = scene.good(&["--help"]);
    let commands = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    for line in commands.lines() {
        let name = line.split_whitespace().next().unwrap();
        assert!(scene.good(&[name, "--help"]).contains(&format!("spts-cli {name}")), "{name}");
    }
    assert!(Path::new(env!("CARGO_BIN_EXE_spts-cli")).exists());
}
