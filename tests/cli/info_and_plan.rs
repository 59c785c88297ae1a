//! What a file holds, and what a prompt would cost.

use crate::keys;
use crate::support::scene::Scene;

#[test]
fn info() {
    let scene = Scene::with("qwen2");
    let text = scene.good(&["info", "tiny.gguf"]);
    for expected in ["tiny.gguf: GGUF version 3", "general.architecture", "\"qwen2\"", "blk.3.ffn_down.weight", "F32"] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    let json = scene.json(&["info", "-m", "tiny.gguf", "--json"]);
    assert_eq!(keys(&json), ["file", "parts", "bytes", "version", "alignment", "metadata", "types", "tensors"]);
    assert_eq!(
        (&json["metadata"]["general.architecture"], &json["metadata"]["qwen2.block_count"]),
        (&"qwen2".into(), &4.into())
    );
    assert_eq!(json["metadata"]["tokenizer.ggml.tokens"]["length"], 264);
    assert_eq!(keys(&json["tensors"][0]), ["name", "type", "shape", "bytes", "part", "offset"]);
    assert_eq!(json["types"]["F32"]["tensors"].as_u64(), Some(json["tensors"].as_array().unwrap().len() as u64));
    let full = scene.json(&["info", "tiny.gguf", "--json", "--full"]);
    assert_eq!(full["metadata"]["tokenizer.ggml.tokens"].as_array().unwrap().len(), 264);
}

#[test]
fn plan() {
    let scene = Scene::new();
    let json = scene.json(&["plan", "--shape", "llama-3.1-8b", "-n", "32768", "--json"]);
    assert_eq!(
        keys(&json),
        [
            "n_tokens",
            "predicted_speedup",
            "cache_kept",
            "flops_dense",
            "flops_spts",
            "memory_bytes",
            "document_bytes",
            "cpu_expert_bytes",
            "layers"
        ]
    );
    assert_eq!(keys(&json["layers"][0]), ["il", "candidates", "active_attn", "active_ffn", "kv"]);
    assert_eq!(json["layers"].as_array().unwrap().len(), 32);
    // The paper: the cache falls from 16 to 6.63 GB.
    assert!((json["cache_kept"].as_f64().unwrap() - 0.414).abs() < 0.001);
    assert!(scene.good(&["plan", "--shape", "llama-3.1-8b", "-n", "32768"]).contains("llama-3.1-8b"));
    let dense = scene.json(&["plan", "--shape", "llama-3.1-8b", "-n", "32768", "--json", "--no-spts"]);
    assert_eq!((dense["cache_kept"].as_f64(), dense["predicted_speedup"].as_f64()), (Some(1.0), Some(1.0)));
    // A file's own shape.
    assert_eq!(scene.json(&["plan", "-m", "tiny.gguf", "-n", "100", "--json"])["layers"].as_array().unwrap().len(), 5);
    let graph = |args: &[&str]| scene.good(&[&["plan", "-m", "tiny.gguf", "-n", "100", "--graph"], args].concat());
    let dense = graph(&["--no-spts"]);
    assert!(dense.contains("layer 4:") && dense.contains("blk.0.attn_q.weight"), "{dense}");
    assert_ne!(graph(&["--schedule", "0.5,0.4,0.3,0.2", "--no-proxy"]), dense);
    // Which layers read a part of the keys: the third and the fourth, since of the last one query is left.
    let sparse =
        scene.good(&["plan", "-m", "tiny.gguf", "-n", "2000", "--graph", "--no-spts", "--attention", "sparse:0.8"]);
    assert_eq!(sparse.matches("sparse:0.8").count(), 2, "{sparse}");
    assert_eq!(graph(&["--no-spts", "--attention", "sparse:0.8"]), dense, "short prompts read all");
}
