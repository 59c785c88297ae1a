//! Metadata that is changed when a model is opened.

use std::sync::Arc;

use spts::{MetadataOverride, Model, ModelOverrides, RopeScaling, Session};

use crate::runtime;
use crate::runtime::files::{gguf, logits, open, set};
use crate::support::gguf::{File, Value};
use crate::support::tiny::Tiny;

/// Logits of a model whose metadata is changed when it is opened.
fn logits_with(file: &File, overrides: &ModelOverrides, tokens: &[u32]) -> Vec<f32> {
    let mut gguf = gguf(file);
    overrides.apply(&mut gguf).expect("overrides that fit");
    let model = Model::from_gguf(Arc::new(gguf), runtime::on_cpu()).expect("a model");
    runtime::logits(Session::new(model, runtime::exact(512)).expect("a session"), tokens)
}

#[test]
fn overrides_make_the_model_that_a_file_with_these_values_is() {
    for name in ["llama", "llama-yarn", "qwen2", "gemma3"] {
        let tiny = Tiny::named(name);
        let (plain, arch, tokens) = (tiny.build(), tiny.arch.name(), tiny.prompt(40));
        let key = |suffix: &str| format!("{arch}.rope.{suffix}");
        let none = ModelOverrides::default();
        assert_eq!(logits_with(&plain, &none, &tokens), logits(&plain, &tokens));
        let scaled = |scaling: RopeScaling, x: f32| ModelOverrides {
            rope_scaling: Some(scaling),
            rope_scale: Some(x),
            ..ModelOverrides::default()
        };
        let cases: [(ModelOverrides, Vec<(String, Value)>); 5] = [
            (
                ModelOverrides { rope_freq_base: Some(2345.0), ..ModelOverrides::default() },
                vec![(key("freq_base"), 2345.0f32.into())],
            ),
            (
                scaled(RopeScaling::Linear, 3.0),
                vec![(key("scaling.type"), "linear".into()), (key("scaling.factor"), 3.0f32.into())],
            ),
            (
                ModelOverrides { rope_original_context: Some(16), ..scaled(RopeScaling::Yarn, 5.0) },
                vec![
                    (key("scaling.type"), "yarn".into()),
                    (key("scaling.factor"), 5.0f32.into()),
                    (key("scaling.original_context_length"), 16u32.into()),
                ],
            ),
            (scaled(RopeScaling::None, 3.0), vec![(key("scaling.type"), "none".into())]),
            (
                ModelOverrides {
                    metadata: vec![MetadataOverride::parse(&format!("{arch}.rope.freq_base=float:99")).expect("valid")],
                    ..ModelOverrides::default()
                },
                vec![(key("freq_base"), 99.0f32.into())],
            ),
        ];
        for (overrides, values) in cases {
            let mut changed = tiny.build();
            values.iter().for_each(|(key, value)| set(&mut changed, key, value.clone()));
            let found = logits_with(&plain, &overrides, &tokens);
            assert_eq!(found, logits(&changed, &tokens), "{name}: {overrides:?}");
            if overrides.rope_scaling != Some(RopeScaling::None) {
                assert_ne!(found, logits(&plain, &tokens), "{name}: {overrides:?}");
            }
        }
    }
}

#[test]
fn overrides_are_checked_as_a_files_values_are() {
    let file = Tiny::named("llama").build();
    let open_with = |text: &str| {
        let mut gguf = gguf(&file);
        let metadata = vec![MetadataOverride::parse(text).expect("valid")];
        ModelOverrides { metadata, ..ModelOverrides::default() }.apply(&mut gguf)?;
        Model::from_gguf(Arc::new(gguf), runtime::on_cpu())
    };
    for (text, what) in [
        ("llama.block_count=int:-1", "llama.block_count"),
        ("llama.block_count=int:9", "blk.5."),
        ("llama.block_count=str:5", "is u32 in the file, and str does not replace it"),
        ("llama.rope.freq_base=float:-1", "a positive number"),
        ("general.architecture=str:mamba", "mamba"),
        ("tokenizer.ggml.tokens=str:x", "array of string"),
    ] {
        let message = match open_with(text) {
            Ok(_) => panic!("accepted {text}"),
            Err(e) => e.to_string(),
        };
        assert!(message.starts_with("model.gguf: ") && message.contains(what), "{text}: {message}");
    }
    let bos = |model: &Model| model.tokenizer().encode("the", true, true)[0] == model.tokenizer().bos().unwrap();
    assert!(bos(&open(&file).expect("a model")));
    assert!(!bos(&open_with("tokenizer.ggml.add_bos_token=bool:false").expect("a model")));
}
