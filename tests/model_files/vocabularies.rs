//! Vocabularies: special tokens, merges, scores and types that are odd, and still read as llama.cpp reads them.

use crate::runtime::files::{logits, open, refusal, set};
use crate::support::gguf::{File, Value};
use crate::support::scene::{Scene, stderr};
use crate::support::tiny::Tiny;

#[test]
fn special_ids_outside_the_vocabulary_are_ignored_with_a_warning() {
    for (id, key) in [
        (u32::MAX, "tokenizer.ggml.padding_token_id"),
        (264, "tokenizer.ggml.unknown_token_id"),
        (1 << 20, "tokenizer.ggml.eot_token_id"),
        (264, "tokenizer.ggml.eos_token_id"),
        (264, "tokenizer.ggml.bos_token_id"),
        (999, "tokenizer.ggml.fim_pad_token_id"),
    ] {
        let tiny = Tiny::named("llama");
        let mut file = tiny.build();
        set(&mut file, key, id);
        let model = open(&file).expect("a model");
        let [warning] = model.file().warnings() else { panic!("{:?}", model.file().warnings()) };
        assert!(warning.starts_with("model.gguf: ") && warning.contains(key), "{warning}");
        assert!(warning.contains(&format!("{id} is no token of the 264")) && !warning.contains('\n'), "{warning}");
        assert_eq!(logits(&file, &tiny.prompt(9)), logits(&tiny.build(), &tiny.prompt(9)));
        let t = model.tokenizer();
        assert!([t.bos(), t.eos(), t.eot(), t.pad(), t.unk()].into_iter().flatten().all(|id| id < 264));
    }
    let model = open(&Tiny::named("llama").build()).expect("a model");
    assert_eq!(model.file().warnings(), [""; 0]);
}

#[test]
fn the_command_line_shows_warnings_in_one_line() {
    let scene = Scene::new();
    let mut file = Tiny::named("llama").build();
    file.set("tokenizer.ggml.padding_token_id", u32::MAX);
    file.write(&scene.path("odd.gguf"));
    let args = ["-m", "odd.gguf", "-p", "the rain", "-n", "4", "--temp", "0"];
    let odd = scene.run(&args);
    assert_eq!(odd.status.code(), Some(0), "{}", stderr(&odd));
    let notes: Vec<String> =
        stderr(&odd).lines().filter(|l| l.contains("padding_token_id")).map(String::from).collect();
    let [note] = &notes[..] else { panic!("{notes:?}") };
    assert!(note.starts_with("spts-cli: odd.gguf: "), "{note}");
    assert_eq!(odd.stdout, scene.run(&["-m", "tiny.gguf", "-p", "the rain", "-n", "4", "--temp", "0"]).stdout);
}

#[test]
fn the_list_of_tokens_counts() {
    for vocab_size in [1, 262, 264, 300, u32::MAX] {
        let tiny = Tiny::named("llama");
        let mut file = tiny.build();
        set(&mut file, "llama.vocab_size", vocab_size);
        assert_eq!(open(&file).expect("a model").shape().n_vocab, 264);
        assert_eq!(logits(&file, &tiny.prompt(9)), logits(&tiny.build(), &tiny.prompt(9)));
    }
}

#[test]
fn merges_that_make_no_token_are_ignored() {
    let tiny = Tiny::named("llama");
    let (plain, mut file) = (tiny.build(), tiny.build());
    let Some(Value::Array(_, merges)) = plain.get("tokenizer.ggml.merges").cloned() else { panic!("merges") };
    let mut merges: Vec<String> =
        merges.iter().map(|m| if let Value::Str(s) = m { s.clone() } else { panic!() }).collect();
    // First in rank: a pair of tokens without a third, parts that are no tokens, no pair at all.
    merges.splice(0..0, ["he r", "xyz zzy", "alone", "", " "].map(String::from));
    set(&mut file, "tokenizer.ggml.merges", merges);
    let text = "the rain in here, another inner tin";
    let ids = |file: &File| open(file).expect("a model").tokenizer().encode(text, true, true);
    assert_eq!(ids(&file), ids(&plain));
}

#[test]
fn scores_and_types_may_be_longer_or_missing() {
    let tiny = Tiny::named("gemma3");
    let plain = tiny.build();
    let text = "the rain in here";
    let ids = |file: &File| open(file).expect("a model").tokenizer().encode(text, true, true);
    let mut longer = tiny.build();
    for key in ["tokenizer.ggml.scores", "tokenizer.ggml.token_type"] {
        let Some(Value::Array(ty, mut list)) = plain.get(key).cloned() else { panic!("{key}") };
        list.push(list[0].clone());
        set(&mut longer, key, Value::Array(ty, list));
    }
    assert_eq!(ids(&longer), ids(&plain));
    let mut integers = tiny.build();
    let Some(Value::Array(_, scores)) = plain.get("tokenizer.ggml.scores").cloned() else { panic!("scores") };
    let as_integer = |v: &Value| if let Value::F32(x) = v { *x as i32 } else { panic!() };
    set(&mut integers, "tokenizer.ggml.scores", scores.iter().map(as_integer).collect::<Vec<i32>>());
    assert_eq!(ids(&integers), ids(&plain));
    let mut without = tiny.build();
    without.metadata.retain(|(k, _)| k != "tokenizer.ggml.scores");
    open(&without).expect("a model");
    let mut shorter = tiny.build();
    set(&mut shorter, "tokenizer.ggml.scores", vec![0.0f32; 3]);
    assert!(refusal(&shorter).contains("3 entries"));
}
