//! Model files as people have them: what llama.cpp runs, runs here, and what it refuses is refused by name.

mod reference;
mod runtime;
mod support;

use std::sync::Arc;

use half::f16;
use runtime::proxies::SidecarFile;
use runtime::{Pair, schedule};
use spts::gguf::{GgmlType, Gguf, GgufWriter};
use spts::method::spts::schedule::Probe;
use spts::method::spts::sidecar::Sidecar;
use spts::quantize::{QuantizeOptions, quantize};
use spts::{Error, MetadataOverride, Model, ModelOverrides, RopeScaling, Session};
use spts_quant::Preset;
use support::gguf::{File, Value};
use support::scene::{Scene, stderr};
use support::tiny::{NAMES, Tiny};

fn gguf(file: &File) -> Gguf {
    Gguf::from_bytes(file.to_bytes(), "model.gguf").expect("a valid file")
}

fn open(file: &File) -> Result<Arc<Model>, Error> {
    Model::from_gguf(Arc::new(gguf(file)), runtime::on_cpu())
}

/// Logits after a prompt, dense.
fn logits(file: &File, tokens: &[u32]) -> Vec<f32> {
    let model = open(file).expect("a model");
    runtime::logits(Session::new(model, runtime::exact(512)).expect("a session"), tokens)
}

fn set(file: &mut File, key: &str, value: impl Into<Value>) {
    file.metadata.retain(|(k, _)| k != key);
    file.set(key, value);
}

#[track_caller]
fn refusal(file: &File) -> String {
    let message = match open(file) {
        Ok(_) => panic!("accepted"),
        Err(e) => e.to_string(),
    };
    assert!(message.starts_with("model.gguf: ") && !message.contains('\n'), "{message}");
    message
}

// ---- Tensors ---------------------------------------------------------------------------------------------

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
        let is_product = is_product && !t.name.contains("ssm_conv1d");
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

/// Writes `file` with the matrices of its layers in NVFP4 blocks of all ones (scale 1 for each 16, E4M3; code 2 is 1.0), and
/// a scale for each.
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

// ---- Metadata --------------------------------------------------------------------------------------------

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
fn a_window_for_each_layer() {
    let tiny = Tiny::named("gemma3");
    let (key, prompt) = ("gemma3.attention.sliding_window_pattern", tiny.prompt(48));
    let with = |value: Value| {
        let mut file = tiny.build();
        set(&mut file, key, value);
        file
    };
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
    let model = open(&with(bools(&every_second))).expect("a model");
    let windows: Vec<bool> = (0..7).map(|l| model.shape().window(l).is_some()).collect();
    assert_eq!(windows, every_second);

    assert!(refusal(&with(bools(&[true; 6]))).contains("a list of 6, expected 7, one a layer"));
    assert!(refusal(&with(Value::Array(8, vec![Value::Str("x".into()); 7]))).contains(key));
}

#[test]
fn experts_that_cannot_be() {
    let tiny = Tiny::named("qwen3moe");
    let with = |key: &str, value: u32| {
        let mut file = tiny.build();
        set(&mut file, &format!("qwen3moe.{key}"), value);
        file
    };
    for (key, value, expected) in [
        ("expert_count", 0, "'qwen3moe.expert_count' is 0, expected 1 to"),
        ("expert_used_count", 0, "'qwen3moe.expert_used_count' is 0, expected 1 to 6"),
        ("expert_used_count", 7, "'qwen3moe.expert_used_count' is 7, expected 1 to 6"),
        ("expert_count", 5, "tensor 'blk.0.ffn_gate_inp.weight' has shape"),
        ("expert_feed_forward_length", 11, "tensor 'blk.0.ffn_gate_exps.weight' has shape"),
    ] {
        let message = refusal(&with(key, value));
        assert!(message.contains(expected), "{key} {value}: {message}");
    }
    for tensor in ["ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"] {
        let mut file = tiny.build();
        file.tensors.retain(|t| t.name != format!("blk.2.{tensor}.weight"));
        assert!(refusal(&file).contains(&format!("tensor 'blk.2.{tensor}.weight' is missing")));
    }
    let mut file = tiny.build();
    set(&mut file, "qwen3moe.expert_weights_scale", 2.5f32);
    assert!(refusal(&file).contains("expert_weights_scale"));
    let mut other = Tiny::named("llama").build();
    set(&mut other, "llama.expert_count", 8u32);
    assert!(refusal(&other).contains("mixtures of experts are supported in qwen3moe, gpt-oss, "));
    // Without its width the file's own is divided among those that compute a token.
    let mut file = with("feed_forward_length", 20);
    file.metadata.retain(|(k, _)| k != "qwen3moe.expert_feed_forward_length");
    let prompt = tiny.prompt(20);
    assert_eq!(logits(&file, &prompt), logits(&tiny.build(), &prompt));
}

#[test]
fn gpt_oss_that_cannot_be() {
    let tiny = Tiny::named("gpt-oss");
    let with = |key: &str, value: u32| {
        let mut file = tiny.build();
        set(&mut file, &format!("gpt-oss.{key}"), value);
        file
    };
    for (key, value, expected) in [
        ("expert_count", 0, "'gpt-oss.expert_count' is 0, expected 1 to"),
        ("expert_used_count", 6, "'gpt-oss.expert_used_count' is 6, expected 1 to 5"),
        ("attention.sliding_window", 0, "'gpt-oss.attention.sliding_window' is 0, expected 1 to"),
        ("attention.head_count", 2, "tensor 'blk.0.attn_q.bias' has shape"),
    ] {
        let message = refusal(&with(key, value));
        assert!(message.contains(expected), "{key} {value}: {message}");
    }
    let mut file = tiny.build();
    file.metadata.retain(|(k, _)| k != "gpt-oss.attention.sliding_window");
    assert!(refusal(&file).contains("'gpt-oss.attention.sliding_window' is missing"));
    for tensor in [
        "attn_output.bias",
        "attn_sinks.weight",
        "post_attention_norm.weight",
        "ffn_gate_inp.bias",
        "ffn_gate_exps.bias",
        "ffn_up_exps.bias",
        "ffn_down_exps.bias",
    ] {
        let (mut missing, mut wrong) = (tiny.build(), tiny.build());
        missing.tensors.retain(|t| t.name != format!("blk.3.{tensor}"));
        assert!(refusal(&missing).contains(&format!("tensor 'blk.3.{tensor}' is missing")));
        let t = wrong.tensors.iter_mut().find(|t| t.name == format!("blk.3.{tensor}")).expect("a tensor");
        t.shape[0] += 1;
        t.data = vec![0.0; t.shape.iter().product()];
        assert!(refusal(&wrong).contains(&format!("tensor 'blk.3.{tensor}' has shape")), "{tensor}");
    }
    // Windows in turns, unless the file says otherwise; queries, keys and values may lack biases, as in llama.cpp.
    let windows = |file: &File| {
        let model = open(file).expect("a model");
        (0..tiny.n_layer).map(|l| model.shape().window(l).is_some()).collect::<Vec<bool>>()
    };
    assert_eq!(windows(&tiny.build()), [true, false, true, false, true, false]);
    assert_eq!(windows(&with("attention.sliding_window_pattern", 3)), [true, true, false, true, true, false]);
    let mut file = tiny.build();
    file.tensors.retain(|t| !t.name.contains("attn_k.bias"));
    assert_eq!(windows(&file).len(), tiny.n_layer);
}

#[test]
fn olmo2_and_glm4_that_cannot_be() {
    for (name, tensor) in [
        ("olmo2", "attn_q_norm.weight"),
        ("olmo2", "attn_k_norm.weight"),
        ("olmo3", "post_attention_norm.weight"),
        ("olmo3", "post_ffw_norm.weight"),
        ("glm4", "post_attention_norm.weight"),
        ("glm4", "post_ffw_norm.weight"),
        ("glm4", "ffn_norm.weight"),
        ("glm4", "ffn_up.weight"),
    ] {
        let (mut missing, mut wrong) = (Tiny::named(name).build(), Tiny::named(name).build());
        missing.tensors.retain(|t| t.name != format!("blk.1.{tensor}"));
        assert!(refusal(&missing).contains(&format!("tensor 'blk.1.{tensor}' is missing")), "{name}");
        let t = wrong.tensors.iter_mut().find(|t| t.name == format!("blk.1.{tensor}")).expect("a tensor");
        t.shape[0] += 2;
        t.data = vec![0.0; t.shape.iter().product()];
        assert!(refusal(&wrong).contains(&format!("tensor 'blk.1.{tensor}' has shape")), "{name}: {tensor}");
    }
    // A norm that these have not would be missing from every answer.
    let mut file = Tiny::named("olmo2").build();
    file.add("blk.0.attn_norm.weight", &[24], vec![1.0; 24]);
    assert!(refusal(&file).contains("architecture 'olmo2' has no tensor 'blk.0.attn_norm.weight'"));
    let mut file = Tiny::named("glm4").build();
    set(&mut file, "glm4.nextn_predict_layers", 1u32);
    assert!(refusal(&file).contains("'glm4.nextn_predict_layers' is 1, expected 0"));
    let mut file = Tiny::named("glm4").build();
    set(&mut file, "glm4.rope.dimension_sections", Value::Array(4, [2, 1, 0, 0].map(Value::U32).to_vec()));
    assert!(refusal(&file).contains("'glm4.rope.dimension_sections' is set, expected no sections"));
    // A window of 0, or none, is full attention; other layers have it by pattern.
    let windows = |file: &File| {
        let model = open(file).expect("a model");
        (0..8).map(|l| model.shape().window(l).is_some()).collect::<Vec<bool>>()
    };
    let olmo3 = Tiny::named("olmo3");
    assert_eq!(windows(&olmo3.build()), [true, true, true, false, true, true, true, false]);
    let mut file = olmo3.build();
    set(&mut file, "olmo2.attention.sliding_window", 0u32);
    assert_eq!(windows(&file), [false; 8]);
}

/// A file in MXFP4, made and read here, answers as its floats do.
#[test]
fn experts_in_mxfp4() {
    let scene = Scene::new();
    let tiny = Tiny { n_embd: 64, n_ff: 96, ..Tiny::named("gpt-oss") };
    tiny.build().write(&scene.path("big.gguf"));
    scene.good(&["quantize", "-m", "big.gguf", "-o", "small.gguf", "--type", "mxfp4_moe"]);
    scene.good(&["quantize", "-m", "small.gguf", "-o", "floats.gguf", "--type", "f32"]);
    let small = Gguf::open(&scene.path("small.gguf"), spts::OpenOptions::default()).expect("a file");
    let types: Vec<(&str, &str)> = small.tensors().map(|t| (t.name.as_str(), t.ty.name())).collect();
    for (name, ty) in [
        ("blk.1.ffn_gate_exps.weight", "MXFP4"),
        ("blk.1.ffn_down_exps.weight", "MXFP4"),
        ("blk.1.ffn_down_exps.bias", "F32"),
        ("blk.1.ffn_gate_inp.weight", "F32"),
        ("blk.1.attn_q.weight", "Q8_0"),
        ("token_embd.weight", "Q8_0"),
        ("output.weight", "Q8_0"),
    ] {
        assert!(types.contains(&(name, ty)), "{name}: {types:?}");
    }
    assert_eq!(small.u32("general.file_type").expect("a number"), Some(38));
    let prompt = tiny.prompt(50);
    let answer = |file: &str| {
        let model = Model::open(&scene.path(file), runtime::on_cpu()).expect("a model");
        runtime::logits(Session::new(model, runtime::exact(512)).expect("a session"), &prompt)
    };
    // Kernels round the rows to 8 bits, too.
    runtime::assert_close(&answer("small.gguf"), &answer("floats.gguf"), 5e-2, "MXFP4");
}

#[test]
fn experts_at_the_command_line() {
    let scene = Scene::with("qwen3moe");
    let plan = scene.json(&["plan", "-m", "tiny.gguf", "-n", "512", "--schedule", "0.5,0.4,0.3,0.2", "--json"]);
    assert!(plan["predicted_speedup"].as_f64().is_some_and(|x| x > 1.1), "{plan}");
    let graph = scene.good(&["plan", "-m", "tiny.gguf", "-n", "64", "--graph"]);
    assert!(graph.contains("experts(") && graph.contains("2 of 6"), "{graph}");
    let run = ["-m", "tiny.gguf", "-p", "the rain in Spain", "-n", "5", "--temp", "0", "--json", "--ignore-eos"];
    assert_eq!(scene.json(&run)["generated"].as_array().map(Vec::len), Some(5));
    // Schedules that would score FFNs by proxies do without, and say so.
    scene.write("text.txt", "the rain in Spain stays mainly in the plain. ".repeat(40));
    let output = scene.run(&[&run[..], &["-f", "text.txt", "--schedule", "0.5,0.4,0.3,0.2", "--proxy"]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stderr(&output).contains("mixtures of experts, for which there are no proxies"), "{}", stderr(&output));
    let message = scene.bad(1, &["calibrate", "-m", "tiny.gguf", "-f", "text.txt"]);
    assert!(message.contains("there are no proxies"), "{message}");
    scene.good(&["quantize", "-m", "tiny.gguf", "-o", "small.gguf", "--type", "q8_0"]);
    let run = ["-m", "small.gguf", "-p", "the rain in Spain", "-n", "5", "--temp", "0", "--json", "--ignore-eos"];
    assert_eq!(scene.json(&run)["generated"].as_array().map(Vec::len), Some(5));
}

#[test]
fn factors_of_granite_and_mistral3() {
    let granite = Tiny::named("granite");
    let prompt = granite.prompt(40);
    let usual = logits(&granite.build(), &prompt);
    // Each number changes what is answered, and 0 is a factor that is not there.
    for key in ["embedding_scale", "residual_scale", "attention.scale", "logit_scale"] {
        let mut file = granite.build();
        set(&mut file, &format!("granite.{key}"), 0.5f32);
        assert!(runtime::distance(&logits(&file, &prompt), &usual) > 1e-3, "{key}");
        if key == "logit_scale" {
            continue;
        }
        let (mut zero, mut absent) = (granite.build(), granite.build());
        set(&mut zero, &format!("granite.{key}"), 0.0f32);
        absent.metadata.retain(|(k, _)| *k != format!("granite.{key}"));
        assert_eq!(logits(&zero, &prompt), logits(&absent, &prompt), "{key}");
    }
    let mut file = granite.build();
    set(&mut file, "granite.logit_scale", 0.0f32);
    assert!(refusal(&file).contains("'granite.logit_scale' is 0, expected a positive number"));
    file.metadata.retain(|(k, _)| k != "granite.logit_scale");
    assert!(refusal(&file).contains("'granite.logit_scale' is missing"));
    let mut file = granite.build();
    set(&mut file, "granite.rope.scaling.finetuned", Value::Bool(false));
    assert!(refusal(&file).contains("models without rotary embeddings are not supported"));
    for bad in [f32::NAN, -1.0, f32::INFINITY] {
        let mut file = granite.build();
        set(&mut file, "granite.residual_scale", bad);
        assert!(refusal(&file).contains("'granite.residual_scale'"), "{bad}");
    }

    let mistral = Tiny::named("mistral3");
    let prompt = mistral.prompt(40);
    let mut flat = mistral.build();
    flat.metadata.retain(|(k, _)| k != "mistral3.attention.temperature_scale");
    // Up to the original context of 16 tokens queries do not grow.
    assert_eq!(logits(&flat, &prompt[..16]), logits(&mistral.build(), &prompt[..16]));
    assert!(runtime::distance(&logits(&flat, &prompt), &logits(&mistral.build(), &prompt)) > 1e-4);
    for key in ["attention.temperature_scale", "rope.scaling.yarn_log_multiplier"] {
        for bad in [f32::NAN, -0.1] {
            let mut file = mistral.build();
            set(&mut file, &format!("mistral3.{key}"), bad);
            assert!(refusal(&file).contains(key), "{key} {bad}");
        }
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

#[test]
fn errors_name_the_file() {
    let change = |change: fn(&mut File)| {
        let mut file = Tiny::named("llama").build();
        change(&mut file);
        refusal(&file)
    };
    assert!(change(|f| set(f, "tokenizer.ggml.model", "bert")).contains("tokenizer `bert` is not supported"));
    assert!(change(|f| set(f, "tokenizer.ggml.pre", "unheard-of")).contains("`unheard-of` is not supported"));
    assert!(change(|f| f.metadata.retain(|(k, _)| k != "tokenizer.ggml.merges")).contains("tokenizer.ggml.merges"));
    assert!(change(|f| set(f, "tokenizer.chat_template", 1u32)).contains("tokenizer.chat_template"));
    assert!(change(|f| set(f, "llama.block_count", "five")).contains("llama.block_count"));
}

#[test]
fn a_file_cut_anywhere_is_called_truncated() {
    let bytes = Tiny::named("llama").build().to_bytes();
    let whole = gguf(&Tiny::named("llama").build());
    let data = whole.data_offset() as usize;
    let last = whole.tensors().map(|t| whole.tensor_offset(t) + t.nbytes).max().unwrap() as usize;
    // Every place in the header, and some in the data.
    for len in (1..data).chain((data..last).step_by(997)) {
        let Err(e) = Gguf::from_bytes(bytes[..len].to_vec(), "cut.gguf") else { panic!("{len} bytes accepted") };
        let message = e.to_string();
        assert!(message.starts_with("cut.gguf: truncated: "), "{len} bytes: {message}");
        assert!(message.ends_with("download the file again"), "{len} bytes: {message}");
        if len >= data {
            let both = format!("the file has {len} bytes, expected {last}");
            assert!(message.contains(&both), "{len} bytes: {message}");
        }
    }
}

// ---- Sidecars --------------------------------------------------------------------------------------------

#[test]
fn proxies_that_are_no_numbers_are_refused() {
    let pair = Pair::new(Tiny::named("llama"));
    let good = SidecarFile::for_model(&pair, 8, 4);
    for (layer, tensor, element, value, shown) in [
        (3, "proxy_v_down", 5, f16::NAN, "NaN"),
        (0, "proxy_u_gu", 0, f16::INFINITY, "inf"),
        (4, "proxy_v_gate", 31, f16::NEG_INFINITY, "-inf"),
        (2, "proxy_v_up", 1, f16::NAN, "NaN"),
    ] {
        let (mut bad, name) = (good.clone(), format!("blk.{layer}.{tensor}"));
        bad.tensors.iter_mut().find(|t| t.0 == name).unwrap().2[element] = value;
        let gguf = Gguf::from_bytes(bad.to_bytes(), "bad.spts.gguf").unwrap();
        let message = Sidecar::from_gguf(gguf).expect_err("refused").to_string();
        let expected = format!("tensor '{name}', a proxy of layer {layer}: element {element} is {shown}");
        assert!(message.starts_with("bad.spts.gguf: ") && message.contains(&expected), "{message}");
    }
}
