//! Metadata that is read as it was told on the command line, not as the file says.

use serde_json::Value;

use crate::prompt_tokens;
use crate::support::scene::Scene;

const BASE: [&str; 9] =
    ["-m", "tiny.gguf", "-p", "the rain in the inner tin", "-n", "4", "--temp", "0", "--ignore-eos"];

/// One layer more than the model has.
const SIX_LAYERS: [&str; 2] = ["--override-kv", "llama.block_count=int:6"];
const NO_SIXTH: &str = "tensor 'blk.5.attn_norm.weight' is missing";

/// The likely tokens of each place in an answer.
fn likely(scene: &Scene, args: &[&str]) -> Value {
    scene.json(&[&BASE[..], &["--json", "--logprobs", "2"], args].concat())["logprobs"].clone()
}

#[test]
fn the_base_frequency_of_rotary_embeddings() {
    let scene = Scene::new();
    let base_frequency = likely(&scene, &["--rope-freq-base", "300"]);
    assert_ne!(base_frequency, likely(&scene, &[]));
    assert_eq!(base_frequency, likely(&scene, &["--override-kv", "llama.rope.freq_base=float:300"]));
    // Without scaling there is nothing that a scale could change.
    let unscaled = ["--rope-freq-base", "300", "--rope-scaling", "none", "--rope-scale", "8"];
    assert_eq!(base_frequency, likely(&scene, &unscaled));
}

#[test]
fn the_scaling_of_rotary_embeddings() {
    let scene = Scene::new();
    let (plain, scaled) = (likely(&scene, &[]), likely(&scene, &["--rope-scale", "4"]));
    assert_ne!(scaled, plain);
    assert_eq!(scaled, likely(&scene, &["--rope-freq-scale", "0.25"]));
    let yarn = likely(&scene, &["--rope-scaling", "yarn", "--rope-scale", "4", "--yarn-orig-ctx", "16"]);
    assert!(yarn != scaled && yarn != plain);
}

#[test]
fn metadata_is_overridden() {
    let scene = Scene::new();
    assert!(prompt_tokens(&scene, &["-p", "qqqq"]) > 5);
    let template = ["-p", "qqqq", "--override-kv", "tokenizer.chat_template=str:"];
    assert_eq!(prompt_tokens(&scene, &template), 5);
    let bos = ["--override-kv", "tokenizer.ggml.add_bos_token=bool:false"];
    assert_eq!(prompt_tokens(&scene, &[&template[..], &bos].concat()), 4);
}

/// What was read of a document belongs to how it was read.
#[test]
fn a_documents_file_is_refused_under_other_settings() {
    let scene = Scene::new();
    scene.write("doc.txt", "the rain in the inner tin");
    let document = ["-m", "tiny.gguf", "-f", "doc.txt", "-p", "rain", "-n", "1", "--prompt-cache", "doc.cache"];
    scene.good(&document);
    let again = [&document[..], &["--prompt-cache-ro"]].concat();
    let json = scene.json(&[&again[..], &["--json"]].concat());
    assert!(json["reused_tokens"].as_u64().unwrap() > 0, "{json}");
    for other in [["--rope-freq-base", "300"], ["--rope-scale", "4"]] {
        let message = scene.bad(1, &[&again[..], &other].concat());
        assert!(message.contains("error: doc.cache: read with other settings of this model"), "{other:?}: {message}");
    }
}

#[test]
fn plans_are_made_under_overrides() {
    let scene = Scene::new();
    let plan = ["plan", "-m", "tiny.gguf", "-n", "9"];
    scene.good(&plan);
    let refused = scene.bad(1, &[&plan[..], &SIX_LAYERS].concat());
    assert!(refused.contains(NO_SIXTH), "{refused}");
    let graph = |args: &[&str]| scene.good(&[&plan[..], &["--graph"], args].concat());
    assert!(graph(&["--rope-freq-base", "300"]).contains("base=300") && !graph(&[]).contains("base=300"));
    // A shape's name is no file.
    let message = scene.bad(2, &["plan", "--shape", "llama-3.1-8b", "-n", "9", "--rope-scale", "2"]);
    assert!(message.contains("--rope-scale"), "{message}");
}

#[test]
fn models_are_measured_under_overrides() {
    let scene = Scene::new();
    scene.write("long.txt", "the rain in the inner tin ".repeat(30));
    scene.write("tasks.jsonl", r#"{"task": "t", "prompt": "the", "answers": ["a"], "metric": "any", "n_predict": 2}"#);
    let bench = ["bench", "-m", "tiny.gguf", "-p", "20", "-n", "0", "-r", "1", "--no-spts"];
    scene.good(&[&bench[..], &["--override-kv", "llama.rope.freq_base=float:300"]].concat());
    for command in [
        &bench[..],
        &["eval", "kl", "-m", "tiny.gguf", "-f", "long.txt", "-n", "60"],
        &["eval", "tasks", "-m", "tiny.gguf", "--data", "tasks.jsonl"],
        &["tune", "-m", "tiny.gguf", "--data", "tasks.jsonl"],
        &["calibrate", "-m", "tiny.gguf", "-f", "long.txt"],
    ] {
        let refused = scene.bad(1, &[command, &SIX_LAYERS].concat());
        assert!(refused.contains(NO_SIXTH), "{command:?}: {refused}");
    }
}

#[test]
fn overrides_that_are_none() {
    let scene = Scene::new();
    let bad = |code, args: &[&str]| scene.bad(code, &[&BASE[..], args].concat());
    for (text, what) in [
        ("llama.rope.freq_base", "expected KEY=TYPE:VALUE"),
        ("llama.rope.freq_base=double:1", "the type is int, float, bool or str"),
        ("llama.block_count=int:five", "a whole number"),
    ] {
        assert!(bad(2, &["--override-kv", text]).contains(what), "{text}");
    }
    assert!(bad(1, &["--override-kv", "llama.block_count=float:5"]).contains("does not replace it"));
    assert!(bad(2, &["--rope-freq-base", "0"]).contains("a number above 0"));
    assert!(bad(2, &["--rope-scaling", "longrope"]).contains("--rope-scaling"));
    assert!(bad(2, &["--rope-scale", "2", "--rope-freq-scale", "0.5"]).contains("cannot be used with"));
}
