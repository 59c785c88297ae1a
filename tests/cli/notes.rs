//! What a command notes beside its work, and the remedies it names.

use crate::prompt_tokens;
use crate::support::chat::{with_template, without_template};
use crate::support::scene::{Scene, changed, notes, stderr};
use crate::support::tiny::Tiny;

/// A model that is too narrow for its answers to bear skipping reads a long prompt whole, and the program says so once.
#[test]
fn a_narrow_model_notes_that_it_skips_nothing() {
    let scene = Scene::new();
    let words = |n: usize| "rain ".repeat(n);
    scene.write("short.txt", words(200));
    scene.write("long.txt", words(11_000));
    // The note comes before any weight is placed: a device that is missing ends the run in time.
    let notes = |more: &[&str]| {
        let args =
            [&["-m", "tiny.gguf", "-p", "?", "-c", "100000", "--no-cnv", "--device", "none-such"], more].concat();
        stderr(&scene.run(&args)).matches("nothing is skipped: answers of models narrower than 1536").count()
    };
    assert_eq!(notes(&["-f", "long.txt"]), 1);
    assert_eq!(notes(&["-f", "short.txt"]), 0, "a short prompt");
    // Whoever chooses knows.
    assert_eq!(notes(&["-f", "long.txt", "--schedule", "early", "--no-proxy"]), 0);
    assert_eq!(notes(&["-f", "long.txt", "--no-spts"]), 0);
}

/// The notes of a run that has to succeed, with `input` on a standard input whose other end stays open, as that of a program
/// that has more to say later.
fn notes_with_input(scene: &Scene, args: &[&str], input: &[u8]) -> String {
    let (reader, mut writer) = std::io::pipe().unwrap();
    std::io::Write::write_all(&mut writer, input).unwrap();
    let output = scene.command(args).stdin(reader).output().unwrap();
    drop(writer);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    notes(&stderr(&output))
}

#[test]
fn text_on_standard_input_that_nobody_reads() {
    let scene = Scene::new();
    let args = ["-m", "tiny.gguf", "-p", "the", "-n", "1"];
    let note = notes_with_input(&scene, &args, b"the rain");
    assert_eq!(
        note,
        "spts-cli: there is text on standard input, and nothing reads it; -f - takes it as the document\n"
    );
    assert_eq!(
        notes_with_input(&scene, &args, b""),
        "",
        "an open pipe without text says nothing, and is not waited for"
    );
    scene.write("doc.txt", "the rain");
    let from_file = scene.command(&args).stdin(std::fs::File::open(scene.path("doc.txt")).unwrap()).output().unwrap();
    assert_eq!(notes(&stderr(&from_file)), note);
}

#[test]
fn notes_on_prompts() {
    let note = |scene: &Scene, args: &[&str]| {
        let output = scene.run(&[&["-m", "tiny.gguf", "-n", "1", "--temp", "0"], args].concat());
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        notes(&stderr(&output))
    };
    let none = changed("llama", without_template);
    let empty = changed("llama", with_template(""));
    for scene in [&none, &empty] {
        assert!(note(scene, &["-p", "qqqq"]).starts_with("spts-cli: the model has no chat template: "));
        assert_eq!(note(scene, &["-p", "qqqq", "--no-cnv"]), "");
        assert_eq!(prompt_tokens(scene, &["-p", "qqqq"]), 5);
        // One BOS and one control token, or its twelve characters.
        assert_eq!(prompt_tokens(scene, &["-p", "<|im_start|>", "--no-cnv"]), 2);
        assert_eq!(prompt_tokens(scene, &["-p", "<|im_start|>"]), 13);
    }
    let plain = Scene::new();
    assert_eq!(note(&plain, &["-p", "qqqq"]), "");
    let doubled = "spts-cli: the prompt begins with two <|endoftext|>: the text brings one that is not needed\n";
    assert_eq!(note(&plain, &["-p", "<|endoftext|>qqqq", "--no-cnv"]), doubled);
    let bos = changed("llama", with_template("{{ bos_token }}{{ messages[0].content }}"));
    assert_eq!(note(&bos, &["-p", "qqqq"]), "");
    assert_eq!(prompt_tokens(&bos, &["-p", "qqqq"]), 5, "the template's BOS is the only one");
    let twice = changed("llama", with_template("{{ bos_token }}{{ bos_token }}{{ messages[0].content }}"));
    assert!(note(&twice, &["-p", "qqqq"]).contains("the model's chat template brings one"));

    let full = plain.run(&["-m", "tiny.gguf", "-p", "qqqq", "--no-cnv", "-c", "16", "--ignore-eos"]);
    assert!(notes(&stderr(&full)).contains("the context of 16 tokens is full; -c "), "{}", stderr(&full));
    let json = plain.run(&["-m", "tiny.gguf", "-p", "qqqq", "--no-cnv", "-c", "16", "--ignore-eos", "--json"]);
    assert_eq!(notes(&stderr(&json)), notes(&stderr(&full)));
    for args in [
        &["plan", "-m", "tiny.gguf", "-n", "2049"][..],
        &["bench", "-m", "tiny.gguf", "-p", "64,2049", "-n", "0", "-r", "1", "--no-spts"],
    ] {
        let output = plain.run(args);
        assert!(
            notes(&stderr(&output)).contains(" 2049: the model was trained with 2048 tokens"),
            "{}",
            stderr(&output)
        );
    }
    assert_eq!(notes(&stderr(&plain.run(&["plan", "-m", "tiny.gguf", "-n", "2048"]))), "");
}

/// Lengths beyond those that a model was trained with, wherever they are given.
#[test]
fn lengths_beyond_training_are_noted() {
    let scene = Scene::new();
    scene.write(
        "tasks.jsonl",
        "{\"task\": \"t\", \"prompt\": \"p\", \"answers\": [\"x\"], \"metric\": \"all\", \"n_predict\": 1}\n",
    );
    let said = |args: &[&str]| notes(&stderr(&scene.run(args)));
    let tasks = ["eval", "tasks", "-m", "tiny.gguf", "--data", "tasks.jsonl", "--config", "dense", "-c"];
    let tune = ["tune", "-m", "tiny.gguf", "--data", "tasks.jsonl", "--schedule", "0.5,0.4,0.3,0.2", "-c"];
    let bench = ["bench", "-m", "tiny.gguf", "--no-spts", "-r", "1"];
    for (args, expected) in [
        (
            &["plan", "--shape", "llama-3.1-8b", "-n", "500000"][..],
            "-n 500000: the model was trained with 131072 tokens",
        ),
        (&["plan", "--shape", "smollm2-135m", "-n", "8193"], "-n 8193: the model was trained with 8192 tokens"),
        (&["plan", "-m", "tiny.gguf", "-n", "2049", "--graph"], "-n 2049: the model was trained with 2048 tokens"),
        (
            &[&bench[..], &["-p", "2040", "-n", "100"]].concat(),
            "-p 2040 with -n 100, together 2140: the model was trained",
        ),
        (&[&tasks[..], &["4096"]].concat(), "-c 4096: the model was trained with 2048 tokens"),
        (&[&tune[..], &["4096"]].concat(), "-c 4096: the model was trained with 2048 tokens"),
    ] {
        assert!(said(args).contains(expected), "{args:?}: {}", said(args));
    }
    for args in [
        &["plan", "--shape", "llama-3.1-8b", "-n", "131072"][..],
        &[&bench[..], &["-p", "2000", "-n", "48"]].concat(),
        &[&tasks[..], &["2048"]].concat(),
        &[&tasks[..], &["0"]].concat(),
    ] {
        assert!(!said(args).contains("was trained with"), "{args:?}: {}", said(args));
    }
}

/// These commands have no flag for the context's size, and do not speak of one.
#[test]
fn remedies_are_flags_that_are_there() {
    let scene = Scene::new();
    scene.write("long.txt", "the rain in year 7 fell on the inner tin. ".repeat(300));
    for args in [
        &["eval", "needle", "-m", "tiny.gguf", "-f", "long.txt", "-n", "3000", "--config", "dense"][..],
        &["eval", "kl", "-m", "tiny.gguf", "-f", "long.txt", "-n", "3000", "--config", "dense"],
    ] {
        let message = scene.bad(1, args);
        assert!(message.contains("but the context holds 2048") && !message.contains("(-c)"), "{args:?}: {message}");
    }
    let message = scene.bad(1, &["-m", "tiny.gguf", "-f", "long.txt", "-p", "x"]);
    assert!(message.trim_end().ends_with("(-c)"), "{message}");
}

/// What mends a sidecar that was made for other weights is another command.
#[test]
fn another_models_sidecar_is_made_again() {
    let scene = Scene::new();
    Tiny { seed: 2, ..Tiny::named("llama") }.build().write(&scene.path("twin.gguf"));
    scene.write("long.txt", "the rain in year 7 fell on the inner tin. ".repeat(40));
    scene.good(&["calibrate", "-m", "twin.gguf", "-f", "long.txt"]);
    let run = ["-m", "tiny.gguf", "-f", "long.txt", "-n", "1", "--schedule", "0.5,0.4,0.3,0.2", "--sidecar"];
    let message = scene.bad(1, &[&run[..], &["twin.spts.gguf"]].concat());
    assert!(message.contains("error: twin.spts.gguf: sidecar of another model"), "{message}");
    assert!(message.trim_end().ends_with("(spts-cli calibrate)"), "{message}");
}
