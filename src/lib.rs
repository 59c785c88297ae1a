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
//! dense [`graph`] of a prompt; a [`method`] says what of it is left out and rewrites it; [`compile`] makes the result a program of
//! phases for the devices at hand; a [`session`] runs it, tile by tile, on [`ggml`]'s kernels. [`proxies`] finds and makes what a
//! method has to know of a model beforehand, [`plan`] counts what a prompt will cost, [`mod@bench`] and [`eval`] measure what comes out,
//! [`tune`] searches the schedule that suits a model and its prompts.
//! What holds for the whole process is in [`runtime`]; files are written by [`output_file`] alone.
#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod bench;
pub mod compile;
pub mod error;
pub mod eval;
#[allow(unsafe_code)]
pub mod ggml;
pub mod gguf;
pub mod graph;
pub mod method;
pub mod model;
pub mod output_file;
pub mod plan;
pub mod proxies;
pub mod quantize;
mod random;
pub mod runtime;
pub mod session;
pub mod tokenizer;
pub mod tune;

pub use error::{Error, Result};
pub use model::file::ModelFile;
pub use model::weights::{Model, ModelOptions};
pub use session::{Session, SessionOptions};

/// The Rust in the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
