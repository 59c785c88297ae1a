//! An embedded runtime for long prompts: GGUF models on ggml's kernels, with self-predictive token skipping (SPTS).
//!
//! ```no_run
//! use spts::{GenerateOptions, Model, ModelOptions, Sampler, SamplerParams, Session, SessionOptions, StreamDecoder};
//!
//! let model = Model::open("model.gguf".as_ref(), ModelOptions::default())?;
//! let mut session = Session::new(model.clone(), SessionOptions::default())?;
//! let prompt = model.tokenizer().encode("The capital of France is", true, true);
//! let mut sampler = Sampler::new(SamplerParams::greedy())?;
//! let mut decoder = StreamDecoder::new(model.tokenizer());
//! for token in session.answer(&prompt, &mut sampler, GenerateOptions::default())? {
//!     print!("{}", decoder.push(token?));
//! }
//! println!("{}", decoder.flush());
//! # Ok::<(), spts::Error>(())
//! ```
//!
//! A [`Model`] is opened once and shared; a [`Session`] reads a prompt and answers; a [`Schedule`] (or any [`Method`]) says what
//! of a prompt is left out; a [`Plan`] counts beforehand what that will cost. What holds for the whole process is in [`runtime`].
//!
//! Errors, reasons and reports may have more variants and fields in a later version: match those that you know, and give `_` the
//! rest.
//!
//! # How it is built
//!
//! Data flows one way: a file (`gguf`) becomes a `model` (hyperparameters, weights, `tokenizer`); an architecture builds the dense
//! `graph` of a prompt; a `method` says what of it is left out and rewrites it; `compile` makes the result a program of phases for
//! the devices at hand; a `session` runs it, tile by tile, on `ggml`'s kernels. `proxies` finds and makes what a method has to know
//! of a model beforehand, `plan` counts what a prompt will cost, `bench` and `eval` measure what comes out, `tune` searches
//! the schedule that suits a model and its prompts. Files are written by `output_file` alone. These rooms are open with the
//! feature `internals`, which the crate's own program, tests and benchmarks use; they are no part of the interface.
#![deny(unsafe_code)]
#![warn(missing_docs)]
// Seen from the interface alone, what only the crate's own program calls is dead.
#![cfg_attr(not(feature = "internals"), allow(dead_code, unused_imports))]

/// The rooms of the house. Their doors stand open for the crate's own program, tests and benchmarks alone (feature `internals`).
macro_rules! rooms {
    ($($(#[$attribute:meta])* $room:ident),* $(,)?) => {
        $(
            $(#[$attribute])*
            #[cfg(feature = "internals")]
            pub mod $room;
            $(#[$attribute])*
            #[cfg(not(feature = "internals"))]
            mod $room;
        )*
    };
}

rooms! {
    bench, compile, error, eval,
    #[allow(unsafe_code)]
    ggml,
    gguf, graph, hash, method, model, output_file, plan, printable, proxies, quantize, session, tokenizer, tune,
}
mod attributes;
mod random;
pub mod runtime;
mod split_name;

pub use attributes::{BlockShare, DeltaHeads};
pub use error::{Error, Result};
pub use ggml::GgmlError;
pub use gguf::OpenOptions;
pub use gguf::{GgufError, MetadataOverride};
pub use method::rivals::{Rival, RivalError};
pub use method::spts::Spts;
pub use method::spts::schedule::{
    Budget, Join, Pool, Probe, ProxySize, Reach, Schedule, ScheduleError, Selection, Stage,
};
pub use method::spts::schedule_file::{ScheduleFileError, parse_schedule_arg};
pub use method::spts::sidecar::{Sidecar, SidecarError};
pub use method::{BlockSparse, Budgets, Dense, Held, LayerBudget, Method, MethodError, Prompt};
pub use model::ModelError;
pub use model::file::ModelFile;
pub use model::overrides::{ModelOverrides, RopeScaling};
pub use model::shape::{Experts, LayerKind, LayerSizes, Recurrent, Shape, SlidingWindow};
pub use model::weights::{LoadProgress, Model, ModelOptions};
pub use plan::{CpuExperts, Plan, PlanOptions};
pub use session::document::{Document, DocumentMemory, ReadReport};
pub use session::document_error::DocumentError;
pub use session::document_file::DocumentFile;
pub use session::generate::{Answer, GenerateOptions, Generation, StopReason};
pub use session::prefill::{LayerSelection, PrefillOptions, PrefillProgress, PrefillReport};
pub use session::sampler::{Sampler, SamplerError, SamplerParams};
pub use session::sequence::CacheType;
pub use session::{Session, SessionOptions};
pub use tokenizer::{
    ChatPrompt, ChatTemplate, Message, StopFilter, StopStrings, StreamDecoder, TemplateVariables, Tokenizer,
    TokenizerError,
};

/// The Rust in the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// All the reasons of today are not all there may be.
///
/// ```compile_fail,E0004
/// use spts::StopReason;
///
/// fn is_whole(reason: StopReason) -> bool {
///     match reason {
///         StopReason::Eog | StopReason::Caller => true,
///         StopReason::Length | StopReason::ContextFull | StopReason::Interrupted | StopReason::Failed => false,
///     }
/// }
/// ```
#[cfg(doctest)]
struct ReasonsAreOpen;
