//! Gemma 4: layers of two sizes, keys that layers share, features of tokens for each layer: what a file has to say, and what is refused
//! by name.

use crate::runtime::files::{logits, open, refusal, refuses_missing_and_misshapen, set, with, without};
use crate::support::gguf::Value;
use crate::support::tiny::Tiny;

fn ints(values: &[i32]) -> Value {
    values.to_vec().into()
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    let tiny = Tiny::named("gemma4-small");
    let numbers: [(&str, u32, &str); 9] = [
        ("attention.key_length", 0, "'gemma4.attention.key_length' is 0, expected 1 to 1024"),
        ("attention.value_length", 10, "'gemma4.attention.value_length' is 10, expected 12, the key length"),
        ("attention.value_length_swa", 6, "'gemma4.attention.value_length_swa' is 6, expected 8, the key length"),
        ("rope.dimension_count_swa", 7, "'gemma4.rope.dimension_count_swa' is 7, expected an even number"),
        ("rope.dimension_count_swa", 10, "'gemma4.rope.dimension_count_swa' is 10, expected 2 to 8"),
        ("attention.shared_kv_layers", 4, "'gemma4.attention.shared_kv_layers' is 4, expected so few that"),
        ("attention.shared_kv_layers", 8, "'gemma4.attention.shared_kv_layers' is 8, expected so few that"),
        ("attention.shared_kv_layers", 10, "'gemma4.attention.shared_kv_layers' is 10, expected 0 to 9"),
        ("attention.sliding_window", 0, "'gemma4.attention.sliding_window' is 0, expected 1 to"),
    ];
    for (key, value, expected) in numbers {
        let message = refusal(&with(&tiny, key, value));
        assert!(message.contains(expected), "{key} {value}: {message}");
    }
    for (key, list, expected) in [
        ("attention.head_count_kv", ints(&[1, 1, 1]), "is a list of 3, expected 9, one a layer"),
        ("attention.head_count_kv", ints(&[1, 1, 1, 1, 1, 1, 1, 1, 0]), "is 0, expected 1 to 2"),
        ("feed_forward_length", ints(&[14; 8]), "is a list of 8, expected 9, one a layer"),
        ("attention.sliding_window_pattern", Value::from(vec![true; 4]), "is a list of 4, expected 9, one a layer"),
    ] {
        let message = refusal(&with(&tiny, key, list));
        assert!(message.contains(&format!("'gemma4.{key}' {expected}")), "{message}");
    }
    let message = refusal(&with(&Tiny::named("gemma4"), "attention.head_count_kv", ints(&[2, 2, 3, 2, 2, 1])));
    assert!(
        message.contains("'gemma4.attention.head_count_kv' is 3, expected a divisor of the 4 query heads"),
        "{message}"
    );
    for cap in [-3.0f32, f32::NAN] {
        let message = refusal(&with(&tiny, "final_logit_softcapping", cap));
        assert!(message.contains("'gemma4.final_logit_softcapping' is") && message.contains("positive"), "{message}");
    }
    let message = refusal(&with(&tiny, "attn_logit_softcapping", 50.0f32));
    assert!(message.contains("'gemma4.attn_logit_softcapping' is set, expected no softcapping"), "{message}");
    for key in [
        "attention.key_length_swa",
        "attention.value_length_swa",
        "attention.sliding_window",
        "attention.head_count_kv",
        "feed_forward_length",
        "embedding_length_per_layer_input",
    ] {
        let message = refusal(&without(&tiny, key));
        assert!(message.contains(&format!("metadata key 'gemma4.{key}' is missing")), "{message}");
    }
}

#[test]
fn missing_and_misshapen_tensors_are_named() {
    let of_layer = [
        "attn_q.weight",
        "attn_k.weight",
        "attn_q_norm.weight",
        "attn_k_norm.weight",
        "post_attention_norm.weight",
        "post_ffw_norm.weight",
        "inp_gate.weight",
        "proj.weight",
        "post_norm.weight",
    ];
    refuses_missing_and_misshapen(&Tiny::named("gemma4-small"), 1, &of_layer);
    let of_experts = [
        "ffn_gate.weight",
        "ffn_gate_inp.weight",
        "ffn_gate_inp.scale",
        "ffn_down_exps.weight",
        "pre_ffw_norm_2.weight",
        "post_ffw_norm_1.weight",
        "post_ffw_norm_2.weight",
    ];
    refuses_missing_and_misshapen(&Tiny::named("gemma4-moe"), 1, &of_experts);
    for name in ["rope_freqs", "per_layer_token_embd", "per_layer_model_proj", "per_layer_proj_norm"] {
        let mut file = Tiny::named("gemma4-small").build();
        file.tensors.retain(|t| t.name != format!("{name}.weight"));
        assert!(refusal(&file).contains(&format!("tensor '{name}.weight' is missing")), "{name}");
    }
}

#[test]
fn sizes_of_layers_that_are_all_alike_may_be_one_number() {
    let tiny = Tiny::named("gemma4");
    let prompt = tiny.prompt(40);
    let expected = logits(&tiny.build(), &prompt);
    assert_eq!(logits(&with(&tiny, "feed_forward_length", 22u32), &prompt), expected);
    // What a large model says of what it lacks.
    let mut file = without(&tiny, "attention.shared_kv_layers");
    set(&mut file, "gemma4.embedding_length_per_layer_input", 0u32);
    assert_eq!(logits(&file, &prompt), expected);
}

/// Files made from checkpoints that carry keys for every layer.
#[test]
fn keys_of_layers_that_read_others_do_no_harm() {
    let tiny = Tiny::named("gemma4-small");
    let prompt = tiny.prompt(40);
    let mut file = tiny.build();
    file.add("blk.6.attn_k.weight", &[14, 8], vec![1.0; 14 * 8]);
    file.add("blk.6.attn_k_norm.weight", &[8], vec![1.0; 8]);
    assert_eq!(logits(&file, &prompt), logits(&tiny.build(), &prompt));
    let model = open(&file).expect("a model");
    assert_eq!(model.file().unused_tensors(), ["blk.6.attn_k.weight", "blk.6.attn_k_norm.weight"]);
}

#[test]
fn what_each_layer_is() {
    let model = open(&Tiny::named("gemma4-small").build()).expect("a model");
    let shape = model.shape();
    assert_eq!((0..9).map(|l| shape.kv_layer(l)).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5, 4, 4, 5]);
    assert_eq!((0..9).filter(|&l| shape.has_cache(l)).count(), 6);
    let of = |l: usize| (shape.sizes(l).n_head_kv, shape.sizes(l).head_dim, shape.sizes(l).n_ff);
    assert_eq!((of(0), of(1), of(8)), ((1, 8, 14), (1, 12, 14), (1, 12, 18)));
    let dense = open(&Tiny::named("gemma4").build()).expect("a model");
    assert_eq!((dense.shape().n_embd_kv(0), dense.shape().n_embd_kv(2)), (16, 12));
}
