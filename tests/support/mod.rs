//! Helpers of the integration tests: a GGUF reader and writer of their own, and tiny random models.
//!
//! Nothing here uses the crate under test, so that a mistake there cannot hide itself.
#![allow(dead_code)] // every test binary includes this module and uses a part of it

pub mod blocks;
pub mod chat;
pub mod gemma4;
pub mod gguf;
pub mod prng;
#[cfg(feature = "cli")]
pub mod scene;
pub mod tiny;
pub mod vocab;

use std::path::PathBuf;

/// Folder of the committed tiny models and their expected logits.
pub fn tiny_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny")
}
