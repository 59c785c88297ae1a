//! An embedded runtime for long prompts: GGUF models on ggml's kernels, with self-predictive token skipping (SPTS).
//!
//! ```no_run
//! use spts::{Model, ModelOptions, Session, SessionOptions};
//! use spts::session::generate::GenerateOptions;
//! use spts::session::sampler::{Sampler, SamplerParams};
//! use std::ops::ControlFlow;
//!
//! let model = Model::open("model.gguf".as_ref(), ModelOptions::default())?;
//! let mut session = Session::new(model.clone(), SessionOptions::default())?;
//! let prompt = model.tokenizer().encode("The capital of France is", true, true);
//! let mut sampler = Sampler::new(SamplerParams::greedy())?;
//! let answer = session.generate(&prompt, &mut sampler, GenerateOptions::default(), &mut |_| ControlFlow::Continue(()), &mut |_| ControlFlow::Continue(()))?;
//! println!("{}", model.tokenizer().decode(&answer.tokens));
//! # Ok::<(), spts::Error>(())
//! ```
//!
//! # How it is built
//!
//! Data flows one way: a file ([`gguf`]) becomes a [`model`] (hyperparameters, weights, [`tokenizer`]); an architecture builds the
//! dense [`graph`] of a prompt; the passes of [`spts`] rewrite it to skip and prune tokens; a [`session`] cuts it into phases, lowers
//! each tile of a phase to [`ggml`], and runs it. [`eval`] measures what comes out.
#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod bench;
pub mod error;
pub mod eval;
#[allow(unsafe_code)]
pub mod ggml;
pub mod gguf;
pub mod graph;
pub mod model;
pub mod quantize;
mod random;
pub mod session;
pub mod spts;
pub mod tokenizer;

pub use error::{Error, Result};
pub use model::loaded::{Model, ModelOptions};
pub use session::{Session, SessionOptions};

/// The Rust in the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
