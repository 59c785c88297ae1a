//! The reference forward pass against logits of llama.cpp, for every architecture.

mod reference;
mod support;

use reference::{Gelu, Model};
use support::gguf::File;

/// Largest absolute difference of two logits, and the largest logit, at the positions that count.
fn compare(model: &str, fixture: &str, gelu: Gelu, counts: impl Fn(usize) -> bool) -> (f32, f32) {
    let path = support::tiny_dir().join(format!("{fixture}.json"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let ints = |key: &str| json[key].as_array().unwrap().iter().map(|v| v.as_u64().unwrap()).collect::<Vec<u64>>();
    let tokens: Vec<u32> = ints("tokens").into_iter().map(|t| t as u32).collect();
    let n_ctx = json["n_ctx"].as_u64().unwrap() as usize;

    let file = File::read(&support::tiny_dir().join(format!("{model}.gguf")));
    let mut model = Model::from_file(&file, Some(n_ctx));
    model.gelu = gelu;
    let out = model.forward(&tokens, None);

    let mut worst = (0f32, 0f32);
    let positions = ints("positions").into_iter().zip(json["logits"].as_array().unwrap());
    for (position, expected) in positions.filter(|(position, _)| counts(*position as usize)) {
        let got = model.head(&out.hidden[position as usize]);
        let expected = expected.as_array().unwrap();
        assert_eq!(got.len(), expected.len());
        for (got, expected) in got.iter().zip(expected) {
            let expected = expected.as_f64().unwrap() as f32;
            worst.0 = worst.0.max((got - expected).abs());
            worst.1 = worst.1.max(expected.abs());
        }
    }
    println!("{fixture}: largest difference {:.2e}, largest logit {:.2}", worst.0, worst.1);
    worst
}

fn check(model: &str, fixture: &str, gelu: Gelu, tolerance: f32) {
    let (difference, largest) = compare(model, fixture, gelu, |_| true);
    assert!(largest > 2.0, "{fixture}: logits this flat test nothing");
    assert!(difference < tolerance, "{fixture}: logits differ by {difference}");
}

#[test]
fn llama() {
    check("llama", "llama", Gelu::Exact, 5e-5);
}

#[test]
fn granite() {
    check("granite", "granite", Gelu::Exact, 5e-5);
}

#[test]
fn qwen3moe() {
    check("qwen3moe", "qwen3moe", Gelu::Exact, 5e-5);
}

/// Behind the first tokens, inputs of GELU fall on the other side of a step of the table here and there.
#[test]
fn gemma4() {
    for (name, tolerance) in [("gemma4", 1e-3), ("gemma4-small", 2e-3), ("gemma4-moe", 1e-3)] {
        check(name, name, Gelu::F16Table, tolerance);
        let (difference, _) = compare(name, name, Gelu::F16Table, |position| position < 2);
        assert!(difference < 5e-5, "{name}: logits of the first tokens differ by {difference}");
    }
}

#[test]
fn gpt_oss() {
    check("gpt-oss", "gpt-oss", Gelu::Exact, 5e-5);
}

#[test]
fn olmo2_and_olmo3() {
    check("olmo2", "olmo2", Gelu::Exact, 5e-5);
    check("olmo3", "olmo3", Gelu::Exact, 5e-5);
}

#[test]
fn glm4() {
    check("glm4", "glm4", Gelu::Exact, 5e-5);
}

#[test]
fn qwen35() {
    check("qwen35", "qwen35", Gelu::Exact, 5e-5);
}

#[test]
fn qwen35moe() {
    check("qwen35moe", "qwen35moe", Gelu::Exact, 5e-5);
}

#[test]
fn qwen3next() {
    check("qwen3next", "qwen3next", Gelu::Exact, 5e-5);
}

#[test]
fn mistral3() {
    check("mistral3", "mistral3", Gelu::Exact, 5e-5);
}

#[test]
fn llama_with_frequency_divisors() {
    check("llama-rope-freqs", "llama-rope-freqs", Gelu::Exact, 5e-5);
}

#[test]
fn llama_with_linear_scaling() {
    check("llama-linear", "llama-linear", Gelu::Exact, 5e-5);
}

#[test]
fn llama_with_yarn() {
    check("llama-yarn", "llama-yarn", Gelu::Exact, 5e-5);
}

#[test]
fn qwen2() {
    check("qwen2", "qwen2", Gelu::Exact, 5e-5);
}

#[test]
fn qwen3() {
    check("qwen3", "qwen3", Gelu::Exact, 5e-5);
}

/// ggml's CPU backend rounds GELU to f16. With the same rounding a value near the middle of two f16 numbers can still fall
/// on the other side.
#[test]
fn gemma3() {
    check("gemma3", "gemma3", Gelu::F16Table, 1e-3);
    check("gemma3", "gemma3", Gelu::Exact, 1e-2);
}

#[test]
fn phi3() {
    check("phi3", "phi3", Gelu::Exact, 5e-5);
}

#[test]
fn phi3_with_short_and_long_factors() {
    check("phi3-longrope", "phi3-longrope", Gelu::Exact, 5e-5);
    check("phi3-longrope", "phi3-longrope-long", Gelu::Exact, 5e-5);
}
