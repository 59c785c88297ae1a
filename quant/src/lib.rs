//! What SPTS needs offline, and nothing of ggml or GGUF:
//!
//! - [`saliency`]: which FFN channels matter (LTP step 2 of the paper);
//! - [`proxy`]: truncated SVD of a layer's restricted FFN matrices (LTP step 3), and [`sizes`]
//!   for how many channels and which rank;
//! - [`rank`]: how well a proxy's scores order tokens, against the truth and against chance;
//! - [`types_policy`]: the tensor type that each weight gets when a model is quantized;
//! - [`rows`]: quantizing a tensor's rows in parallel, in order, in bounded memory.
//!
//! Shapes are written in ggml order, fastest dimension first: a matrix `[n_in, n_out]` is stored
//! as `n_out` rows of `n_in` contiguous values.
//!
//! The paper is Wu et al., "Probe and Skip: Self-Predictive Token Skipping for Efficient
//! Long-Context LLM Inference", arXiv 2601.13155.

#![deny(unsafe_code, missing_docs)]

pub mod activation;
pub mod proxy;
pub mod rank;
pub mod rows;
pub mod saliency;
pub mod sizes;
pub mod types_policy;

pub use activation::Activation;
pub use proxy::{LayerProxy, LayerProxyF16, ProxyError, RestrictedFfn};
pub use saliency::{ChannelSaliency, SaliencyError};
pub use sizes::ProxySize;
pub use types_policy::{Choice, ModelShape, Preset, TensorType, choose_type};
