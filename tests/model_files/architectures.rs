//! What each architecture demands of a file besides its tensors' names: windows, norms, biases and factors.

use crate::runtime;
use crate::runtime::files::{logits, open, refusal, refuses_missing_and_misshapen, with, without};
use crate::support::gguf::{File, Value};
use crate::support::tiny::Tiny;

/// The layers that have a window.
fn windows(file: &File) -> Vec<bool> {
    let model = open(file).expect("a model");
    (0..model.shape().n_layer).map(|l| model.shape().window(l).is_some()).collect()
}

#[test]
fn a_window_for_each_layer() {
    let tiny = Tiny::named("gemma3");
    let (key, prompt) = ("attention.sliding_window_pattern", tiny.prompt(48));
    let with = |value: Value| with(&tiny, key, value);
    let every_sixth: Vec<bool> = (0..7).map(|l| l != 5).collect();
    let bools = |v: &[bool]| Value::Array(7, v.iter().map(|&b| Value::Bool(b)).collect());
    let expected = logits(&tiny.build(), &prompt);
    assert_eq!(logits(&with(bools(&every_sixth)), &prompt), expected);
    // Longer than the model is deep, as some writers make it.
    assert_eq!(logits(&with(bools(&[&every_sixth[..], &[true; 3]].concat())), &prompt), expected);
    let integers = every_sixth.iter().map(|&w| Value::U32(u32::from(w))).collect();
    assert_eq!(logits(&with(Value::Array(4, integers)), &prompt), expected);
    assert_eq!(logits(&with(Value::U32(6)), &prompt), expected);
    // Other layers: as every second layer by number, which is another model.
    let every_second: Vec<bool> = (0..7).map(|l| l % 2 == 0).collect();
    let other = logits(&with(bools(&every_second)), &prompt);
    assert_eq!(other, logits(&with(Value::U32(2)), &prompt));
    assert_ne!(other, expected);
    assert_eq!(windows(&with(bools(&every_second))), every_second);

    assert!(refusal(&with(bools(&[true; 6]))).contains("a list of 6, expected 7, one a layer"));
    let message = refusal(&with(Value::Array(8, vec![Value::Str("x".into()); 7])));
    assert!(message.contains("gemma3.attention.sliding_window_pattern"), "{message}");
}

#[test]
fn gpt_oss_that_cannot_be() {
    let tiny = Tiny::named("gpt-oss");
    for (key, value, expected) in [
        ("expert_count", 0, "'gpt-oss.expert_count' is 0, expected 1 to"),
        ("expert_used_count", 6, "'gpt-oss.expert_used_count' is 6, expected 1 to 5"),
        ("attention.sliding_window", 0, "'gpt-oss.attention.sliding_window' is 0, expected 1 to"),
        ("attention.head_count", 2, "tensor 'blk.0.attn_q.bias' has shape"),
    ] {
        let message = refusal(&with(&tiny, key, value));
        assert!(message.contains(expected), "{key} {value}: {message}");
    }
    let message = refusal(&without(&tiny, "attention.sliding_window"));
    assert!(message.contains("'gpt-oss.attention.sliding_window' is missing"), "{message}");
    let tensors = [
        "attn_output.bias",
        "attn_sinks.weight",
        "post_attention_norm.weight",
        "ffn_gate_inp.bias",
        "ffn_gate_exps.bias",
        "ffn_up_exps.bias",
        "ffn_down_exps.bias",
    ];
    refuses_missing_and_misshapen(&tiny, 3, &tensors);
}

/// Queries, keys and values of gpt-oss may lack biases, as in llama.cpp: that is a bias of zeros, and not the model with its own.
#[test]
fn biases_that_gpt_oss_may_lack() {
    let tiny = Tiny::named("gpt-oss");
    let (whole, prompt) = (tiny.build(), tiny.prompt(40));
    let usual = logits(&whole, &prompt);
    for bias in ["attn_q.bias", "attn_k.bias", "attn_v.bias"] {
        let (mut without, mut zeros) = (whole.clone(), whole.clone());
        without.tensors.retain(|t| !t.name.ends_with(bias));
        assert_eq!(without.tensors.len(), whole.tensors.len() - tiny.n_layer);
        zeros.tensors.iter_mut().filter(|t| t.name.ends_with(bias)).for_each(|t| t.data.fill(0.0));
        let found = logits(&without, &prompt);
        assert_eq!(found, logits(&zeros, &prompt), "{bias}");
        assert!(runtime::distance(&found, &usual) > 1e-3, "{bias}");
    }
}

#[test]
fn olmo2_and_glm4_that_cannot_be() {
    for (name, tensors) in [
        ("olmo2", &["attn_q_norm.weight", "attn_k_norm.weight"][..]),
        ("olmo3", &["post_attention_norm.weight", "post_ffw_norm.weight"]),
        ("glm4", &["post_attention_norm.weight", "post_ffw_norm.weight", "ffn_norm.weight", "ffn_up.weight"]),
    ] {
        refuses_missing_and_misshapen(&Tiny::named(name), 1, tensors);
    }
    // A norm that these have not would be missing from every answer.
    let mut file = Tiny::named("olmo2").build();
    file.add("blk.0.attn_norm.weight", &[24], vec![1.0; 24]);
    assert!(refusal(&file).contains("architecture 'olmo2' has no tensor 'blk.0.attn_norm.weight'"));
    let glm4 = Tiny::named("glm4");
    let message = refusal(&with(&glm4, "nextn_predict_layers", 1u32));
    assert!(message.contains("'glm4.nextn_predict_layers' is 1, expected 0"), "{message}");
    let sections = Value::Array(4, [2, 1, 0, 0].map(Value::U32).to_vec());
    let message = refusal(&with(&glm4, "rope.dimension_sections", sections));
    assert!(message.contains("'glm4.rope.dimension_sections' is set, expected no sections"), "{message}");
}

#[test]
fn windows_of_gpt_oss_and_olmo3() {
    // Windows in turns, unless the file says otherwise.
    let gpt_oss = Tiny::named("gpt-oss");
    assert_eq!(windows(&gpt_oss.build()), [true, false, true, false, true, false]);
    let every_third = with(&gpt_oss, "attention.sliding_window_pattern", 3);
    assert_eq!(windows(&every_third), [true, true, false, true, true, false]);
    // A window of 0, or none, is full attention; other layers have it by pattern.
    let olmo3 = Tiny::named("olmo3");
    assert_eq!(windows(&olmo3.build()), [true, true, true, false, true, true, true, false]);
    assert_eq!(windows(&with(&olmo3, "attention.sliding_window", 0u32)), [false; 8]);
    assert_eq!(windows(&without(&olmo3, "attention.sliding_window")), [false; 8]);
}

#[test]
fn factors_of_granite_and_mistral3() {
    let granite = Tiny::named("granite");
    let prompt = granite.prompt(40);
    let usual = logits(&granite.build(), &prompt);
    // Each number changes what is answered, and 0 is a factor that is not there.
    for key in ["embedding_scale", "residual_scale", "attention.scale", "logit_scale"] {
        assert!(runtime::distance(&logits(&with(&granite, key, 0.5f32), &prompt), &usual) > 1e-3, "{key}");
        if key == "logit_scale" {
            continue;
        }
        let (zero, absent) = (with(&granite, key, 0.0f32), without(&granite, key));
        assert_eq!(logits(&zero, &prompt), logits(&absent, &prompt), "{key}");
    }
    let message = refusal(&with(&granite, "logit_scale", 0.0f32));
    assert!(message.contains("'granite.logit_scale' is 0, expected a positive number"), "{message}");
    assert!(refusal(&without(&granite, "logit_scale")).contains("'granite.logit_scale' is missing"));
    let message = refusal(&with(&granite, "rope.scaling.finetuned", false));
    assert!(message.contains("models without rotary embeddings are not supported"), "{message}");
    for bad in [f32::NAN, -1.0, f32::INFINITY] {
        let message = refusal(&with(&granite, "residual_scale", bad));
        assert!(message.contains("'granite.residual_scale'"), "{bad}: {message}");
    }

    let mistral = Tiny::named("mistral3");
    let prompt = mistral.prompt(40);
    let flat = without(&mistral, "attention.temperature_scale");
    // Up to the original context of 16 tokens queries do not grow.
    assert_eq!(logits(&flat, &prompt[..16]), logits(&mistral.build(), &prompt[..16]));
    assert!(runtime::distance(&logits(&flat, &prompt), &logits(&mistral.build(), &prompt)) > 1e-4);
    for key in ["attention.temperature_scale", "rope.scaling.yarn_log_multiplier"] {
        for bad in [f32::NAN, -0.1] {
            assert!(refusal(&with(&mistral, key, bad)).contains(key), "{key} {bad}");
        }
    }
}
