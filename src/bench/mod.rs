//! Measuring: how long prompts of given lengths take, dense and with SPTS, side by side in one run.
//!
//! [`measure`] is the protocol (with what [`protocol`] names), [`questions`] that of questions about a document that was read once.
//! Speed depends on a model's shape and types, not on what it has learnt, so models that cannot be had are made up: [`synthetic`]
//! writes a GGUF of a known shape with random weights, of the tensors that `tensors.rs` lists, which `blocks.rs` makes.

mod blocks;
pub mod measure;
pub mod protocol;
pub mod questions;
pub mod synthetic;
mod tensors;
