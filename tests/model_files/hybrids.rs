//! Models of recurrent layers and layers with attention: what a file has to say, what is refused by name, and how the program shows
//! such a model.

use crate::runtime::files::{logits, open, refusal, refuses_missing_and_misshapen, set, with, without};
use crate::runtime::{self, Pair};
use crate::support::gguf::Value;
use crate::support::scene::Scene;
use crate::support::tiny::{Delta, DeltaLayers, Tiny};

#[test]
fn sizes_that_do_not_fit_are_refused() {
    let tiny = Tiny::named("qwen35");
    for (key, value, expected) in [
        ("ssm.group_count", 3, "'qwen35.ssm.time_step_rank' is 4, expected a multiple of the 3 key heads"),
        ("ssm.group_count", 0, "'qwen35.ssm.group_count' is 0, expected 1 to"),
        ("ssm.inner_size", 25, "'qwen35.ssm.inner_size' is 25, expected 4 value heads of 9 each: 36"),
        ("ssm.state_size", 0, "'qwen35.ssm.state_size' is 0, expected 1 to 1024"),
        ("ssm.state_size", 7, "'qwen35.ssm.inner_size' is 36, expected 4 value heads of 7 each: 28"),
        ("ssm.conv_kernel", 1, "'qwen35.ssm.conv_kernel' is 1, expected 2 to 64"),
        ("ssm.conv_kernel", 5, "tensor 'blk.0.ssm_conv1d.weight' has shape [4, 72], expected [5, 72]"),
        ("full_attention_interval", 0, "'qwen35.full_attention_interval' is 0, expected 1 to"),
        (
            "full_attention_interval",
            9,
            "'qwen35.full_attention_interval' is a model of 6 recurrent layers, expected at least one",
        ),
        // Layer 0 would attend.
        ("full_attention_interval", 1, "tensor 'blk.0.attn_q.weight' is missing"),
        ("nextn_predict_layers", 6, "'qwen35.nextn_predict_layers' is 6, expected fewer than the 6 layers"),
        ("nextn_predict_layers", 7, "'qwen35.nextn_predict_layers' is 7, expected 0 to 6"),
    ] {
        let message = refusal(&with(&tiny, key, value));
        assert!(message.contains(expected), "{key} {value}: {message}");
    }
    for key in ["ssm.conv_kernel", "ssm.state_size", "ssm.group_count", "ssm.time_step_rank", "ssm.inner_size"] {
        let message = refusal(&without(&tiny, key));
        assert!(message.contains(&format!("metadata key 'qwen35.{key}' is missing")), "{message}");
    }
    let message = refusal(&without(&tiny, "rope.dimension_sections"));
    assert!(message.contains("'qwen35.rope.dimension_sections' is missing"), "{message}");
    // Three pairs: the third would go by a position that texts do not have.
    let message = refusal(&with(&tiny, "rope.dimension_sections", vec![1, 1, 0, 1]));
    assert!(message.contains("three parts that share 3 pairs in turn"), "{message}");
}

#[test]
fn layers_are_recurrent_by_list_or_interval() {
    let tiny = Tiny::named("qwen35");
    let (prompt, expected) = (tiny.prompt(30), [true, false, true, false, true, false]);
    let booleans = |layers: &[bool]| Value::from(layers.to_vec());
    let integers = |layers: &[bool]| Value::from(layers.iter().map(|&x| i32::from(x)).collect::<Vec<i32>>());
    let dense = logits(&tiny.build(), &prompt);
    for list in [booleans(&expected), integers(&expected)] {
        let file = with(&tiny, "attention.recurrent_layers", list);
        let model = open(&file).expect("a model");
        let found: Vec<bool> = (0..6).map(|l| model.shape().recurrence(l).is_some()).collect();
        assert_eq!(found, expected);
        assert_eq!(logits(&file, &prompt), dense);
    }
    let refused = |list: Value| refusal(&with(&tiny, "attention.recurrent_layers", list));
    assert!(refused(booleans(&expected[..5])).contains("a list of 5, expected 6, one a layer"));
    assert!(refused(booleans(&[true; 6])).contains("at least one layer with attention"));
    assert!(refused(Value::Array(8, vec![Value::Str("x".into()); 6])).contains("recurrent_layers"));
    assert!(refused(Value::U32(1)).contains("a list of 6, one a layer"));
    // Without either every fourth layer attends: this model's second one has other tensors.
    let message = refusal(&without(&tiny, "full_attention_interval"));
    assert!(message.contains("tensor 'blk.1.attn_qkv.weight' is missing"), "{message}");
}

#[test]
fn missing_and_misshapen_tensors_are_named() {
    let delta = [
        "attn_qkv.weight",
        "attn_gate.weight",
        "ssm_conv1d.weight",
        "ssm_dt.bias",
        "ssm_a",
        "ssm_beta.weight",
        "ssm_alpha.weight",
        "ssm_norm.weight",
        "ssm_out.weight",
        "post_attention_norm.weight",
    ];
    let attention = ["attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_output.weight", "attn_q_norm.weight"];
    let shared = ["ffn_gate_inp_shexp.weight", "ffn_gate_shexp.weight", "ffn_up_shexp.weight", "ffn_down_shexp.weight"];
    let [dense, moe] = ["qwen35", "qwen35moe"].map(Tiny::named);
    refuses_missing_and_misshapen(&dense, 2, &delta);
    refuses_missing_and_misshapen(&dense, 3, &attention);
    refuses_missing_and_misshapen(&moe, 1, &shared);
    refuses_missing_and_misshapen(&moe, 3, &["ffn_down_exps.weight"]);
}

/// Without the tensor of both, a file is one of two tensors that are not there.
#[test]
fn gate_and_up_of_experts_missing_and_misshapen() {
    let tiny = Tiny::named("qwen35moe");
    let fused = "blk.3.ffn_gate_up_exps.weight";
    let mut missing = tiny.build();
    let at = missing.tensors.iter().position(|t| t.name == fused).expect("the tensor");
    let [n_in, n_both, n_expert] = missing.tensors.remove(at).shape[..] else { panic!("no three dimensions") };
    let half = [n_in, n_both / 2, n_expert];
    for part in ["ffn_gate_exps", "ffn_up_exps"] {
        let message = refusal(&missing);
        assert!(message.contains(&format!("tensor 'blk.3.{part}.weight' is missing")), "{message}");
        missing.add(format!("blk.3.{part}.weight"), &half, vec![0.0; half.iter().product()]);
    }
    open(&missing).expect("a model of two tensors");
    for shape in [[n_in + 1, n_both, n_expert], [n_in, n_both + 2, n_expert], [n_in, n_both, n_expert + 1], half] {
        let mut wrong = tiny.build();
        wrong.tensors.remove(at);
        wrong.add(fused, &shape, vec![0.0; shape.iter().product()]);
        let message = refusal(&wrong);
        let expected = format!("tensor '{fused}' has shape {shape:?}, expected [{n_in}, {n_both}, {n_expert}]");
        assert!(message.contains(&expected), "{message}");
    }
}

/// Gate and up of the experts in two tensors say the same as in one.
#[test]
fn experts_in_one_tensor_or_two() {
    let tiny = Tiny::named("qwen35moe");
    let mut file = tiny.build();
    let fused: Vec<_> = file.tensors.extract_if(.., |t| t.name.ends_with("ffn_gate_up_exps.weight")).collect();
    assert_eq!(fused.len(), tiny.n_layer);
    for t in fused {
        let [n_in, n_both, n_expert] = t.shape[..] else { panic!("{:?}", t.shape) };
        for (i, part) in ["ffn_gate_exps", "ffn_up_exps"].iter().enumerate() {
            let half = n_in * n_both / 2;
            let data = t.data.chunks(half).skip(i).step_by(2).flatten().copied().collect();
            file.add(t.name.replace("ffn_gate_up_exps", part), &[n_in, n_both / 2, n_expert], data);
        }
    }
    let prompt = tiny.prompt(40);
    let (one, two) = (logits(&tiny.build(), &prompt), logits(&file, &prompt));
    runtime::assert_close(&two, &one, 1e-6, "two tensors");
}

#[test]
fn layers_that_predict_further_tokens_are_left_out() {
    let tiny = Tiny::named("qwen35");
    let prompt = tiny.prompt(40);
    let mut file = with(&tiny, "nextn_predict_layers", 1);
    set(&mut file, "qwen35.block_count", 7u32);
    for name in ["attn_norm.weight", "nextn.eh_proj.weight", "nextn.enorm.weight"] {
        file.add(format!("blk.6.{name}"), &[tiny.n_embd], vec![1.0; tiny.n_embd]);
    }
    let model = open(&file).expect("a model");
    assert_eq!((model.shape().n_layer, model.file().unused_tensors().len()), (6, 3));
    assert_eq!(logits(&file, &prompt), logits(&tiny.build(), &prompt));
    // No other layer's tensors are ignored.
    file.add("blk.7.attn_norm.weight", &[tiny.n_embd], vec![1.0; tiny.n_embd]);
    assert!(refusal(&file).contains("no tensor 'blk.7.attn_norm.weight'"));
}

/// Heads of the sizes that real models have: 256 of which 64 elements are rotated, and 128 in the delta nets, three to a key head.
#[test]
fn heads_as_large_as_real_ones_give_the_reference() {
    let base = Tiny::named("qwen35");
    let delta = base.delta.clone().map(|delta| Delta { n_head_k: 1, n_head_v: 3, head_dim: 128, ..delta });
    let large = Tiny { n_layer: 4, n_embd: 64, n_head: 6, n_head_kv: 1, head_dim: 256, n_rot: 64, delta, ..base };
    let pair = Pair::new(large);
    let tokens = pair.tiny.prompt(90);
    let expected = pair.reference.forward(&tokens, None);
    let mut session = pair.session(|o| o.n_ubatch = Some(33));
    runtime::prefill(&mut session, &tokens).expect("a prefill");
    runtime::assert_close(session.logits(), &expected.logits, pair.tolerance(), "large heads");
}

/// Shapes that no fixture has: one key head for all, kernels of other lengths, a recurrent last layer, one layer with attention.
#[test]
fn odd_shapes_give_the_reference() {
    let base = Tiny::named("qwen35");
    let delta = base.delta.clone().expect("a hybrid");
    for (n_layer, delta) in [
        (3, Delta { layers: DeltaLayers::ButEvery(2), n_head_k: 1, n_head_v: 5, head_dim: 3, d_conv: 2 }),
        (4, Delta { n_head_k: 4, n_head_v: 4, head_dim: 17, d_conv: 7, ..delta.clone() }),
        (4, Delta { layers: DeltaLayers::List(vec![true, true, false, true]), head_dim: 1, ..delta }),
    ] {
        let pair = Pair::new(Tiny { n_layer, delta: Some(delta), ..base.clone() });
        let tokens = pair.tiny.prompt(150);
        let (prompt, answer) = tokens.split_at(140);
        let [expected, behind] = [prompt, &tokens].map(|tokens| pair.reference.forward(tokens, None).logits);
        for n_ubatch in [1, 37, 512] {
            let what = format!("tiles of {n_ubatch}, {:?}", pair.tiny);
            let mut session = pair.session(|o| o.n_ubatch = Some(n_ubatch));
            runtime::prefill(&mut session, prompt).expect("a prefill");
            runtime::assert_close(session.logits(), &expected, pair.tolerance(), &what);
            for token in answer {
                session.decode(*token).expect("a token");
            }
            runtime::assert_close(session.logits(), &behind, pair.tolerance(), &format!("decoding, {what}"));
        }
    }
}

#[test]
fn hybrids_at_the_command_line() {
    for (name, experts) in [("qwen35", ""), ("qwen35moe", "experts(")] {
        let scene = Scene::with(name);
        let budgets = ["--schedule", "0.5,0.4,0.3,0.2"];
        let plan = scene.json(&[&["plan", "-m", "tiny.gguf", "-n", "512", "--json"][..], &budgets].concat());
        assert!(plan["predicted_speedup"].as_f64().is_some_and(|x| x > 1.02), "{plan}");
        let layers = plan["layers"].as_array().expect("layers");
        let kv = |l: usize| layers[l]["kv"].as_u64().expect("a count");
        assert_eq!((kv(0), kv(1)), (0, 512), "a recurrent layer, and one that attends");
        let text = scene.good(&[&["plan", "-m", "tiny.gguf", "-n", "512"][..], &budgets].concat());
        assert!(text.contains("recurrent states") && text.contains("layers attend"), "{text}");
        let graph = scene.good(&["plan", "-m", "tiny.gguf", "-n", "64", "--graph"]);
        assert!(graph.contains("delta_net(") && graph.contains(experts), "{graph}");
        let run = ["-p", "the rain in Spain", "-n", "5", "--temp", "0", "--json", "--ignore-eos"];
        let answer = scene.json(&[&["-m", "tiny.gguf"][..], &run].concat());
        assert_eq!(answer["generated"].as_array().map(Vec::len), Some(5));
        scene.good(&["quantize", "-m", "tiny.gguf", "-o", "small.gguf", "--type", "q8_0"]);
        let answer = scene.json(&[&["-m", "small.gguf"][..], &run].concat());
        assert_eq!(answer["generated"].as_array().map(Vec::len), Some(5));
        // A document's file, which another run begins with.
        scene.write("text.txt", "the rain in Spain stays mainly in the plain. ".repeat(10));
        let ask = ["-m", "tiny.gguf", "-f", "text.txt", "--prompt-cache", "text.cache", "--no-cnv"];
        let (first, second) = (scene.json(&[&ask[..], &run].concat()), scene.json(&[&ask[..], &run].concat()));
        assert_eq!(first["generated"], second["generated"]);
        let reused = |run: &serde_json::Value| run["reused_tokens"].as_u64().expect("a count");
        assert_eq!(reused(&first), 0);
        assert!(reused(&second) > 0, "the file went unused");
        let message = scene.bad(1, &["-m", "tiny.gguf", "-p", "the rain", "-n", "1", "--method", "gemfilter:0.5@0"]);
        assert!(message.contains("layer 0 is recurrent and scores no tokens"), "{message}");
    }
}
