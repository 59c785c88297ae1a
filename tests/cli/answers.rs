//! What a run answers: its text, its JSON, where it ends, what it was asked, and what it skipped.

use std::process::Stdio;

use serde_json::Value;

use crate::support::scene::{Scene, changed, stderr};
use crate::{RUN, keys, run_with};

#[test]
fn the_answer_is_all_there_is_on_standard_output() {
    let scene = Scene::new();
    let output = scene.run(&RUN);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let json = scene.json(&run_with(&["--json"]));
    let text = json["text"].as_str().unwrap();
    let expected = if text.is_empty() || text.ends_with('\n') { text.to_owned() } else { format!("{text}\n") };
    assert_eq!(String::from_utf8(output.stdout.clone()).unwrap(), expected);
    let report = stderr(&output);
    for line in ["load ", "prefill ", "decode ", "cache ", "memory "] {
        assert!(report.contains(&format!("\n{line}")), "{report}");
    }
    assert!(!report.contains('\r') && !report.contains('\x1b'), "progress belongs on terminals: {report:?}");
}

#[test]
fn json_of_a_run() {
    let scene = Scene::new();
    let json = scene.json(&run_with(&["--json", "--logprobs", "3", "--ignore-eos"]));
    assert_eq!(
        keys(&json),
        [
            "prompt_tokens",
            "reused_tokens",
            "generated",
            "text",
            "logprobs",
            "stop",
            "load_s",
            "ttft_s",
            "prefill_tps",
            "decode_tps",
            "cache_kept",
            "schedule",
            "stages",
            "peak_rss_bytes",
            "peak_device_bytes"
        ]
    );
    assert_eq!((json["generated"].as_array().unwrap().len(), json["logprobs"].as_array().unwrap().len()), (8, 8));
    let first = json["logprobs"][0].as_array().unwrap();
    assert_eq!((first.len(), &first[0][0]), (3, &json["generated"][0]));
    assert!(first.windows(2).all(|w| w[0][1].as_f64() >= w[1][1].as_f64()) && first[0][1].as_f64().unwrap() < 0.0);
    assert_eq!(
        (json["stop"].as_str(), json["schedule"].as_str(), json["cache_kept"].as_f64()),
        (Some("length"), Some("dense"), Some(1.0))
    );
    assert_eq!(keys(&json["stages"][0]), ["first_layer", "last_layer", "candidates", "active_attn", "active_ffn"]);
    assert_eq!((json["stages"].as_array().unwrap().len(), json["stages"][0]["last_layer"].as_u64()), (1, Some(4)));
    assert!(
        json["load_s"].as_f64().unwrap() >= 0.0
            && json["ttft_s"].as_f64().unwrap() > 0.0
            && json["prefill_tps"].as_f64().unwrap() > 0.0
    );
    assert!(scene.json(&run_with(&["--json"])).get("logprobs").is_none());
}

#[test]
fn runs_repeat() {
    let scene = Scene::new();
    let args = ["-m", "tiny.gguf", "-p", "the rain", "-n", "12", "--temp", "1.5", "--json", "--ignore-eos", "-s"];
    let ids = |seed: &str| scene.json(&[args.as_slice(), &[seed]].concat())["generated"].clone();
    assert_eq!(ids("3"), ids("3"));
    assert_ne!(ids("3"), ids("4"));
}

#[test]
fn an_answer_ends_before_a_stop_string() {
    let scene = Scene::new();
    const BASE: [&str; 9] = ["-m", "tiny.gguf", "-p", "the rain", "-n", "40", "--temp", "0", "--ignore-eos"];
    let json_of = |args: &[&str]| scene.json(&[&BASE[..], &["--json"], args].concat());
    let whole = json_of(&[]);
    let text = whole["text"].as_str().unwrap();
    let chars: Vec<char> = text.chars().collect();
    // Two letters that are characters of their own, well inside the answer.
    let inside = chars[4..].windows(2).map(|w| w.iter().collect::<String>()).find(|s| !s.contains('\u{fffd}')).unwrap();
    let before = &text[..text.find(&inside).unwrap()];
    for args in [
        &["-r", &inside][..],
        &["--reverse-prompt", &inside, "-r", "-never said"],
        &["-r", "never said", "-r", &inside],
    ] {
        let json = json_of(args);
        assert_eq!((json["text"].as_str(), json["stop"].as_str()), (Some(before), Some("stop_string")), "{args:?}");
        let n = json["generated"].as_array().unwrap().len();
        assert!(n < 40 && json["generated"].as_array().unwrap()[..] == whole["generated"].as_array().unwrap()[..n]);
        let shown = scene.good(&[&BASE[..], args].concat());
        assert_eq!(shown.strip_suffix('\n').unwrap_or(&shown), before.strip_suffix('\n').unwrap_or(before));
    }
    // What only begins like a stop string is printed.
    let unfinished = format!("{}never said", chars.last().unwrap());
    let json = json_of(&["-r", &unfinished]);
    assert_eq!((json["text"].as_str(), json["stop"].as_str()), (Some(text), Some("length")));
    assert!(scene.bad(2, &[&BASE[..], &["-r", ""]].concat()).contains("-r"));
}

#[test]
fn a_prompt_without_an_answer() {
    let json = Scene::new().json(&["-m", "tiny.gguf", "-p", "the", "-n", "0", "--json"]);
    assert_eq!((json["generated"].as_array().map(Vec::len), json["text"].as_str()), (Some(0), Some("")));
    assert!(json["ttft_s"].is_null() && json["decode_tps"].is_null());
}

#[test]
fn the_question_follows_the_document() {
    let scene = Scene::new();
    scene.write("doc.txt", "the rain\n");
    let count = |args: &[&str]| {
        scene.json(&[&["-m", "tiny.gguf", "-n", "0", "--json"], args].concat())["prompt_tokens"].as_u64().unwrap()
    };
    let both = count(&["-f", "doc.txt", "-p", "in here"]);
    assert_eq!(both, count(&["-p", "the rain\n\nin here"]));
    assert!(count(&["-p", "the rain\n\nin here", "--no-cnv"]) < both, "the chat template adds tokens");
    assert!(count(&["-p", "the rain\n\nin here", "-sys", "be brief"]) > both);

    let mut child = scene.command(&["-m", "tiny.gguf", "-n", "0", "--json", "-f", "-", "-p", "in here"]);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"the rain").unwrap();
    let json: Value = serde_json::from_slice(&child.wait_with_output().unwrap().stdout).unwrap();
    assert_eq!(json["prompt_tokens"], both);
}

#[test]
fn documents_that_cannot_be_read() {
    let scene = Scene::new();
    scene.write("latin1.txt", b"caf\xe9 au lait");
    scene.write("empty.txt", "");
    std::fs::create_dir(scene.path("folder")).unwrap();
    let ask = |file: &str| scene.bad(1, &["-m", "tiny.gguf", "-f", file]);
    assert!(ask("no-such.txt").contains("no-such.txt: cannot read the document: "));
    assert!(ask("folder").contains("folder: cannot read the document: "));
    assert!(ask("latin1.txt").contains("latin1.txt: not UTF-8 text: byte 3 is 0xe9"));
    for (name, bytes) in
        [("empty.txt", ""), ("blanks.txt", "  \n\t\n"), ("bom.txt", "\u{feff}"), ("boms.txt", "\u{feff}\u{feff}\n")]
    {
        scene.write(name, bytes);
        assert_eq!(ask(name), format!("spts-cli: error: {name}: the document has no text\n"));
        // A question beside it is not answered from nothing.
        let message = scene.bad(1, &["-m", "tiny.gguf", "-f", name, "-p", "who?"]);
        assert_eq!(message, format!("spts-cli: error: {name}: the document has no text\n"));
    }
    assert!(scene.bad(1, &["-m", "tiny.gguf", "-p", " \n"]).contains("the prompt is empty"));
}

/// A model that says one token wherever the first feature of the final state is positive: that feature alone makes
/// logits, and no other token's is above 0.
fn saying(token: usize) -> Scene {
    changed("llama", |file| {
        let n_embd = 24;
        let norm = file.tensors.iter_mut().find(|t| t.name == "output_norm.weight").unwrap();
        norm.data = vec![0.0; n_embd];
        norm.data[0] = 1.0;
        let out = file.tensors.iter_mut().find(|t| t.name == "output.weight").unwrap();
        for (id, row) in out.data.chunks_mut(n_embd).enumerate() {
            row[0] = if id == token { 1.0 } else { 0.0 };
        }
    })
}

#[test]
fn a_control_token_may_be_a_stop_string() {
    let scene = saying(262);
    let run = |prompt: &str, stop: &str| {
        let json = scene.json(&["-m", "tiny.gguf", "-p", prompt, "-n", "3", "--json", "--temp", "0", "-r", stop]);
        (
            json["stop"].clone(),
            json["generated"].as_array().unwrap().len(),
            json["generated"][0].clone(),
            json["text"].clone(),
        )
    };
    let says = |prompt: &&str| run(prompt, "never said").2 == 262;
    let prompt = ["q", "w", "e", "r", "t", "z", "u", "i"].into_iter().find(says).expect("a prompt with that answer");
    assert_eq!(run(prompt, "<|im_start|>"), ("stop_string".into(), 1, 262.into(), "".into()));
    assert_eq!(run(prompt, "<|im_start").0, "length");
}

#[test]
fn an_ignored_end_is_never_drawn() {
    // It would end at once.
    let scene = saying(263);
    let ids = |args: &[&str]| -> Vec<u64> {
        let args = [&["-m", "tiny.gguf", "-n", "40", "--json", "--temp", "0"], args].concat();
        serde_json::from_value(scene.json(&args)["generated"].clone()).unwrap()
    };
    let ends = |prompt| ids(&["-p", prompt]).last().is_some_and(|id| [261, 263].contains(id));
    assert!(
        ["q", "w", "e", "r", "t", "z", "u", "i"].into_iter().any(ends),
        "none of the prompts is answered by the end"
    );
    for prompt in ["q", "w", "e", "r", "t", "z", "u", "i"] {
        let generated = ids(&["-p", prompt, "--ignore-eos"]);
        assert_eq!(generated.len(), 40);
        assert!(generated.iter().all(|id| ![261, 263].contains(id)), "{generated:?}");
    }
}

#[test]
fn tokens_are_skipped() {
    let scene = Scene::new();
    let text = "the rain in the inner tin ".repeat(20);
    let base = ["-m", "tiny.gguf", "-p", &text, "-n", "4", "--temp", "0", "--json", "--probe-queries", "4"];
    let skipping =
        [base.as_slice(), &["--schedule", "0.5,0.4,0.3,0.2", "--no-proxy", "--dump-selection", "chosen.json"]].concat();
    let json = scene.json(&skipping);
    let kept = json["cache_kept"].as_f64().unwrap();
    assert!((0.3..0.9).contains(&kept), "{kept}");
    assert_eq!(json["schedule"], "fractions");
    assert!(json["stages"].as_array().unwrap().len() > 2);
    let chosen: Value = serde_json::from_slice(&std::fs::read(scene.path("chosen.json")).unwrap()).unwrap();
    let n = json["prompt_tokens"].as_u64().unwrap();
    assert_eq!(chosen["n_tokens"], n);
    let layers = chosen["layers"].as_array().unwrap();
    assert_eq!((layers.len(), keys(&layers[0])), (5, vec!["il", "candidates", "active_attn", "active_ffn"]));
    for layer in layers {
        // The last token is never left out.
        assert_eq!(layer["active_attn"].as_array().unwrap().last().unwrap().as_u64(), Some(n - 1));
    }
    let dense = scene.json(&["-m", "tiny.gguf", "-p", &text, "-n", "4", "--temp", "0", "--json", "--no-spts"]);
    assert_eq!((dense["cache_kept"].as_f64(), dense["schedule"].as_str()), (Some(1.0), Some("dense")));
    let message = scene.bad(1, &["-m", "tiny.gguf", "-p", "x", "--schedule", "no-such"]);
    assert!(message.contains("--schedule") && message.contains("no-such"), "{message}");
    scene.write("not-a-sidecar.gguf", "x");
    let by_proxies = [base.as_slice(), &["--schedule", "0.5,0.4,0.3,0.2", "--sidecar", "not-a-sidecar.gguf"]].concat();
    let message = scene.bad(1, &by_proxies);
    assert!(message.contains("not-a-sidecar.gguf"), "{message}");
}
