//! Tensors of a file: those that no model has, those that scale others, and several in one.

use std::sync::Arc;

use spts::gguf::{GgmlType, Gguf, GgufWriter};
use spts::method::spts::schedule::Probe;
use spts::quantize::{QuantizeOptions, quantize};
use spts::{Model, Session};
use spts_quant::Preset;

use crate::runtime::files::{gguf, logits, open, refusal};
use crate::runtime::{self, schedule};
use crate::support::gguf::File;
use crate::support::tiny::{NAMES, Tiny};

#[test]
fn unknown_tensors_are_refused_by_name() {
    for (model, tensor, shape) in [
        ("llama", "blk.2.attn_sinks.weight", 3),
        ("llama", "blk.0.post_ffw_norm.weight", 24),
        ("llama", "blk.0.post_attention_norm.weight", 24),
        ("llama", "blk.5.attn_norm.weight", 24),
        ("llama", "rope_factors_long.weight", 4),
        ("llama", "output.bias", 264),
        ("llama", "made_up", 1),
        ("qwen2", "rope_freqs.weight", 4),
        ("qwen2", "blk.1.ffn_down.bias", 32),
        ("qwen2", "output.scale", 1),
        ("qwen3", "blk.3.attn_output.bias", 24),
        ("gemma3", "rope_freqs.weight", 8),
        ("gemma3", "per_layer_token_embd.weight", 1),
        ("phi3", "rope_freqs.weight", 4),
    ] {
        let mut file = Tiny::named(model).build();
        file.add(tensor, &[shape], vec![1.0; shape]);
        let message = refusal(&file);
        let expected = format!("architecture '{}' has no tensor '{tensor}'", Tiny::named(model).arch.name());
        assert!(message.contains(&expected), "{message}");
        // Quantizing it would make a file that nothing runs.
        let dir = tempfile::tempdir().unwrap();
        let (to, options) = (dir.path().join("out"), QuantizeOptions { preset: Preset::F16, allow_requantize: true });
        let message = quantize(&gguf(&file), &to, options, &mut |_, _| {}).expect_err("refused").to_string();
        assert!(message.contains(&expected) && !to.exists(), "{message}");
    }
    let mut file = Tiny::named("llama").build();
    (0..3).for_each(|l| file.add(format!("blk.{l}.attn_sinks.weight"), &[3], vec![1.0; 3]));
    assert!(refusal(&file).contains("'blk.0.attn_sinks.weight' (nor 2 more of the file's)"));
}

#[test]
fn tensors_that_are_known_and_not_used_do_no_harm() {
    for (model, tensor, shape) in [
        ("qwen3", "cls.output.weight", [24, 1]),
        ("gemma3", "dense_2.weight", [20, 4]),
        ("gemma3", "dense_3.weight", [4, 20]),
    ] {
        let tiny = Tiny::named(model);
        let (plain, mut file) = (tiny.build(), tiny.build());
        file.add(tensor, &shape, vec![1.0; shape[0] * shape[1]]);
        assert_eq!(open(&file).expect("a model").file().unused_tensors(), [tensor]);
        assert_eq!(logits(&file, &tiny.prompt(20)), logits(&plain, &tiny.prompt(20)));
    }
}

/// The file with weights divided by a power of two, and scales that make up for it: the same numbers exactly.
fn scaled(tiny: &Tiny) -> File {
    let mut file = tiny.build();
    let mut scales = Vec::new();
    for (i, t) in file.tensors.iter_mut().enumerate() {
        let is_product = t.shape.len() == 2 && t.name != "token_embd.weight" && !t.name.contains("ffn_gate_inp");
        let is_product = is_product && !t.name.contains("ssm_conv1d") && !t.name.starts_with("per_layer_");
        let Some(base) = t.name.strip_suffix(".weight").filter(|_| is_product) else {
            continue;
        };
        let scale = [8.0f32, 0.25, 2.0][i % 3];
        t.data.iter_mut().for_each(|x| *x /= scale);
        scales.push((format!("{base}.scale"), scale));
        // For kernels that round inputs as well.
        scales.push((format!("{base}.input_scale"), 0.37));
    }
    scales.into_iter().for_each(|(name, scale)| file.add(name, &[1], vec![scale]));
    file
}

#[test]
fn scales_multiply_the_products() {
    for name in NAMES {
        let tiny = Tiny::named(name);
        let prompt = tiny.prompt(40);
        assert_eq!(logits(&scaled(&tiny), &prompt), logits(&tiny.build(), &prompt), "{name}");
    }
}

#[test]
fn scales_hold_where_tokens_are_skipped() {
    let tiny = Tiny::named("llama");
    let probe = Probe { queries: 2, ..Probe::PAPER };
    let run = |file: &File| {
        let mut options = runtime::exact(512);
        let mut s = schedule(&[(2, 20, 2), (3, 12, 2)], probe);
        s.use_proxy = false;
        options.method = s.into();
        runtime::logits(Session::new(open(file).expect("a model"), options).expect("a session"), &tiny.prompt(40))
    };
    assert_eq!(run(&scaled(&tiny)), run(&tiny.build()));
    // Calibration sees the weights as products have them.
    let model = open(&scaled(&tiny)).expect("a model");
    for base in ["ffn_gate", "ffn_up", "ffn_down"] {
        let weight = model.file().weight_named(&format!("blk.1.{base}.weight")).expect("an FFN");
        let scale = model.gguf().tensor(&format!("blk.1.{base}.scale")).expect("a scale");
        let bytes = model.gguf().tensor_data(scale).try_into().expect("one number");
        assert_eq!(model.file().weight_scale(weight), f32::from_le_bytes(bytes), "{base}");
    }
    let graph = model.graph(4, 512);
    let text = spts::graph::print::print(&graph, |w| model.weight(w).name.clone());
    assert!(text.contains("blk.0.attn_q.weight, scale=blk.0.attn_q.scale"), "{text}");
}

#[test]
fn a_scale_of_another_shape_is_refused() {
    let mut file = Tiny::named("llama").build();
    file.add("blk.0.attn_q.scale", &[24], vec![1.0; 24]);
    assert!(refusal(&file).contains("'blk.0.attn_q.scale' has shape [24], expected [1]"));
}

/// Matrices of NVFP4 blocks of all ones (scale 1 for each 16, E4M3; code 2 is 1.0), each with a scale, are floats of that scale.
#[test]
fn nvfp4_weights_take_their_scale() {
    let tiny = Tiny { n_embd: 64, n_head: 4, head_dim: 16, n_rot: 16, n_ff: 64, ..Tiny::named("llama") };
    let file = tiny.build();
    let mut w = GgufWriter::new();
    let original = gguf(&file);
    for (key, value) in original.metadata() {
        w.set(key, value.clone()).unwrap();
    }
    let scale = 1.0f32 / 64.0;
    let mut floats = tiny.build();
    for (t, info) in file.tensors.iter().zip(original.tensors()) {
        let is_matrix = t.shape.len() == 2 && t.name.starts_with("blk.");
        if !is_matrix {
            w.add_tensor_bytes(&t.name, &info.shape, GgmlType::F32, original.tensor_data(info).to_vec()).unwrap();
            continue;
        }
        let blocks = t.data.len() / 64;
        let block: Vec<u8> = [0x38u8; 4].into_iter().chain([0x22; 32]).collect();
        w.add_tensor_bytes(&t.name, &info.shape, GgmlType::NVFP4, block.repeat(blocks)).unwrap();
        let name = t.name.replace(".weight", ".scale");
        w.add_tensor_bytes(&name, &[1], GgmlType::F32, scale.to_le_bytes().to_vec()).unwrap();
        let one = spts::ggml::quantize::dequantize(GgmlType::NVFP4, &block, 64)[0];
        assert!(one > 0.0);
        let same = floats.tensors.iter_mut().find(|f| f.name == t.name).unwrap();
        same.data.fill(one * scale);
    }
    let mut bytes = Vec::new();
    w.write_to(&mut bytes, "model.gguf", |_, _| Ok(())).unwrap();
    let model = Model::from_gguf(Arc::new(Gguf::from_bytes(bytes, "model.gguf").unwrap()), runtime::on_cpu()).unwrap();
    let prompt = tiny.prompt(20);
    let got = runtime::logits(Session::new(model, runtime::exact(512)).unwrap(), &prompt);
    // Inputs are rounded to 8 bits for the product with 4-bit weights.
    runtime::assert_close(&got, &logits(&floats, &prompt), 2e-2, "NVFP4");
}

/// The file with `attn_q`, `attn_k` and `attn_v` (and their biases) as one tensor each.
fn fused(tiny: &Tiny) -> File {
    let mut file = tiny.build();
    for layer in 0..tiny.n_layer {
        for suffix in ["weight", "bias"] {
            let names = ["q", "k", "v"].map(|part| format!("blk.{layer}.attn_{part}.{suffix}"));
            let parts: Vec<_> = names.iter().filter_map(|n| file.tensor(n).cloned()).collect();
            if parts.is_empty() {
                continue;
            }
            let data: Vec<f32> = parts.iter().flat_map(|p| p.data.clone()).collect();
            let rows = parts.iter().map(|p| *p.shape.last().unwrap()).sum();
            let shape = if suffix == "bias" { vec![rows] } else { vec![tiny.n_embd, rows] };
            file.tensors.retain(|t| !names.contains(&t.name));
            file.add(format!("blk.{layer}.attn_qkv.{suffix}"), &shape, data);
        }
    }
    file
}

#[test]
fn queries_keys_and_values_may_be_one_matrix() {
    for name in ["llama", "qwen2", "qwen3", "gemma3"] {
        let tiny = Tiny::named(name);
        let prompt = tiny.prompt(30);
        assert_eq!(logits(&fused(&tiny), &prompt), logits(&tiny.build(), &prompt), "{name}");
    }
}
