//! The binary as its users meet it: exit codes, messages, what goes to which stream. Every test has a folder of its own.
#![cfg(feature = "cli")]

mod answers;
mod bench;
mod chat_templates;
mod info_and_plan;
mod names_and_errors;
mod notes;
mod overrides;
mod streams_and_signals;
#[path = "../support/mod.rs"]
mod support;
mod usage;

use serde_json::Value;
use support::scene::Scene;

/// An object's keys, in their order.
fn keys(json: &Value) -> Vec<&str> {
    json.as_object().unwrap().keys().map(String::as_str).collect()
}

/// A run that answers the same each time.
const RUN: [&str; 8] = ["-m", "tiny.gguf", "-p", "the rain in the inner tin", "-n", "8", "--temp", "0"];

fn run_with<'a>(more: &[&'a str]) -> Vec<&'a str> {
    RUN.iter().chain(more).copied().collect()
}

/// How many tokens the prompt of these flags has.
fn prompt_tokens(scene: &Scene, args: &[&str]) -> u64 {
    scene.json(&[&["-m", "tiny.gguf", "-n", "0", "--json"], args].concat())["prompt_tokens"].as_u64().unwrap()
}
