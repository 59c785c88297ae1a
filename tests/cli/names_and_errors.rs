//! Names in what is shown: an error names its file, and no name steers the terminal.

use crate::support::chat::with_template;
use crate::support::scene::{Scene, changed, stderr};

#[test]
fn errors_of_a_model_name_its_file() {
    let broken = changed("llama", with_template("{% if %}"));
    let message = broken.bad(1, &["-m", "tiny.gguf", "-p", "x"]);
    assert!(message.contains("error: tiny.gguf: key `tokenizer.chat_template`: line 1: "), "{message}");
    assert!(message.trim_end().ends_with("(--no-cnv)"), "{message}");
    let nan = changed("llama", |file| {
        let norm = file.tensors.iter_mut().find(|t| t.name == "output_norm.weight").unwrap();
        norm.data.fill(f32::NAN);
    });
    let message = nan.bad(1, &["-m", "tiny.gguf", "-p", "x", "-n", "1"]);
    assert!(message.contains("error: tiny.gguf: the model's logit of token 0 is NaN"), "{message}");
}

/// What would steer a terminal: a control character other than a line's end, or a turn of the direction of writing.
fn steers(c: char) -> bool {
    (c.is_control() && c != '\n') || c == '\u{202e}'
}

const ODD: &str = "odd\x1b]0;\u{202e}.gguf";

/// Names from files and of files do not steer the terminal.
#[test]
fn names_are_shown_escaped() {
    let scene = changed("llama", |file| {
        file.metadata.retain(|(key, _)| key != "general.name");
        file.set("general.name", "tiny\x1b[31m\u{202e}");
    });
    let odd = ODD;
    std::fs::copy(scene.path("tiny.gguf"), scene.path(odd)).unwrap();
    let task = serde_json::json!({ "task": "t\x1b[2J\u{202e}|", "prompt": "p", "answers": ["x"], "metric": "all", "n_predict": 1 });
    scene.write("tasks.jsonl", format!("{task}\n"));
    let tasks = ["eval", "tasks", "-m", odd, "--data", "tasks.jsonl", "--config", "dense"];
    for args in [
        &["info", odd][..],
        &["info", odd, "--full"],
        &["info", odd, "--json"],
        &["plan", "-m", odd, "-n", "64"],
        &["bench", "-m", odd, "-p", "16", "-n", "1", "-r", "1", "--no-spts"],
        &[&tasks[..], &["--out", "r.jsonl", "--svg", "p.svg"]].concat(),
        &[&tasks[..], &["--format", "markdown"]].concat(),
        &[&tasks[..], &["--format", "json"]].concat(),
        &["eval", "tasks", "--report", "r.jsonl"],
        &["eval", "tasks", "--report", "r.jsonl", "--format", "markdown"],
        &["quantize", "-m", odd, "-o", "out\x1b.gguf", "--type", "f16"],
    ] {
        let output = scene.run(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", stderr(&output));
        let shown = String::from_utf8(output.stdout.clone()).unwrap() + &stderr(&output);
        assert!(!shown.contains(steers), "{args:?}: {shown:?}");
        if args.contains(&"json") || args.contains(&"--json") {
            serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap();
        }
    }
    let svg = std::fs::read_to_string(scene.path("p.svg")).unwrap();
    assert!(!svg.contains(['\u{202e}', '\x1b']), "{svg}");
}

/// The same where the file is the error's cause.
#[test]
fn names_in_errors_are_shown_escaped() {
    let scene = Scene::new();
    scene.write("text.txt", "the rain");
    let read = |odd: &str| {
        for args in [
            &["-m", odd, "-p", "x"][..],
            &["info", odd],
            &["plan", "-m", odd, "-n", "64"],
            &["bench", "-m", odd, "-p", "16"],
            &["tokenize", "-m", odd, "-p", "x"],
            &["eval", "kl", "-m", odd, "-f", "text.txt"],
            &["quantize", "-m", odd, "-o", "out.gguf", "--type", "f16"],
        ] {
            let message = scene.bad(1, args);
            assert!(message.contains("odd\\u{1b}]0;\\u{202e}.gguf: "), "{args:?}: {message:?}");
            assert!(!message.contains(steers), "{args:?}: {message:?}");
        }
    };
    scene.write(ODD, "this is no model at all");
    read(ODD);
    // Cut behind the header: an error from further inside.
    let whole = std::fs::read(scene.path("tiny.gguf")).unwrap();
    scene.write(ODD, &whole[..whole.len() / 2]);
    read(ODD);
    std::fs::remove_file(scene.path(ODD)).unwrap();
    read(ODD);
}
