//! Greedy continuations and log probabilities against llama.cpp's, on real models.
//!
//! The expected numbers were made with llama.cpp 0.7.0 on a CPU, temperature 0 (tests/data/golden). A model that is not in the
//! folder `SPTS_MODELS` (default `models/`, filled by `make fetch`) is skipped with a message.

use std::ops::ControlFlow;
use std::path::PathBuf;

use serde_json::Value;
use spts::session::kv_cache::CacheType;
use spts::session::sampler::log_softmax_top;
use spts::{Model, ModelOptions, Session, SessionOptions};

fn model_path(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("SPTS_MODELS")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/models")), PathBuf::from);
    let path = folder.join(format!("{name}.gguf"));
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: no {name}.gguf in the models folder (make fetch MODEL={name})");
    None
}

fn golden(name: &str) -> Value {
    let path = format!("{}/tests/data/golden/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(&path).expect("a committed fixture")).expect("valid JSON")
}

fn ids(v: &Value) -> Vec<u32> {
    v.as_array().expect("a list").iter().map(|x| x.as_u64().expect("an id") as u32).collect()
}

/// Log probabilities may differ from the reference's by this much.
struct Tolerance {
    /// The chosen token of the first step.
    first: f32,
    /// The five most likely of the first step.
    top5: f32,
    /// Greedy ids agree until the reference's best two are closer than this.
    tie: f64,
}

fn check(name: &str, golden_name: &str, options: SessionOptions, tolerance: &Tolerance) {
    let Some(path) = model_path(name) else { return };
    let model = Model::open(&path, ModelOptions::default()).expect("the model opens");
    for case in golden(golden_name)["greedy"].as_array().expect("cases") {
        let what = format!("{golden_name}/{}", case["name"].as_str().unwrap_or("?"));
        let mut session = Session::new(model.clone(), options.clone()).expect("a session");
        session.prefill(&ids(&case["prompt_ids"]), &mut |_| ControlFlow::Continue(())).expect("prefill");
        for (i, step) in case["steps"].as_array().expect("steps").iter().enumerate() {
            let top: Vec<(u32, f64)> = step["top"]
                .as_array()
                .expect("top")
                .iter()
                .map(|t| (t[0].as_u64().unwrap() as u32, t[1].as_f64().unwrap()))
                .collect();
            let all = log_softmax_top(session.logits(), session.logits().len());
            let ours = |id: u32| all.iter().find(|t| t.0 == id).map_or(f32::NEG_INFINITY, |t| t.1);
            if i == 0 {
                let d = (ours(top[0].0) - top[0].1 as f32).abs();
                println!("{what}: first token off by {d:.4}");
                assert!(d <= tolerance.first, "{what}: log probability of the first token off by {d}");
                for (id, lp) in &top[..5] {
                    let d = (ours(*id) - *lp as f32).abs();
                    assert!(d <= tolerance.top5, "{what}: log probability of token {id} off by {d}");
                }
            }
            let id = step["id"].as_u64().expect("an id") as u32;
            if all[0].0 != id {
                let gap = top[0].1 - top[1].1;
                assert!(
                    gap < tolerance.tie,
                    "{what}: step {i} chose {} where the reference chose {id} by {gap}",
                    all[0].0
                );
                break;
            }
            session.decode(id).expect("decode");
        }
    }
}

const QUANTIZED: Tolerance = Tolerance { first: 0.02, top5: 0.05, tie: 0.1 };

#[test]
fn smollm2_135m_continues_as_llama_cpp_does() {
    check("smollm2-135m", "smollm2-135m", SessionOptions::default(), &QUANTIZED);
}

#[test]
fn gemma_3_270m_continues_as_llama_cpp_does() {
    check("gemma-3-270m", "gemma-3-270m", SessionOptions::default(), &QUANTIZED);
}

#[test]
fn qwen2_5_coder_0_5b_continues_as_llama_cpp_does() {
    check("qwen2.5-coder-0.5b", "qwen2.5-coder-0.5b", SessionOptions::default(), &QUANTIZED);
}

#[test]
fn qwen2_5_coder_1_5b_continues_as_llama_cpp_does() {
    check("qwen2.5-coder-1.5b", "qwen2.5-coder-1.5b", SessionOptions::default(), &QUANTIZED);
}
