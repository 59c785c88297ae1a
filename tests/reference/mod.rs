//! A naive forward pass in plain loops: what the runtime is tested against.
//!
//! Written from the model definitions and from the method's pseudo-code (arXiv 2601.13155), independent of the crate and of
//! ggml: f32 values, f64 sums, one token after the other. `reference_llama_cpp.rs` holds it to logits of llama.cpp.
//!
//! ```text
//! let model = reference::Model::from_gguf(path);
//! let dense = model.forward(&tokens, None);
//! let mut sparse = model.forward(&tokens, Some(&plan));
//! let logits = model.decode(&mut sparse.state, next_token);
//! ```
//!
//! A test that includes this module also includes `support`.
#![allow(dead_code)] // every test binary includes this module and uses a part of it

mod delta;
mod forward;
mod gemma4;
mod model;
mod rope;
mod spts;

#[allow(unused_imports)]
pub use delta::DeltaNet;
#[allow(unused_imports)]
pub use forward::{LayerCache, LayerTrace, Output, State};
#[allow(unused_imports)]
pub use gemma4::{Beside, Features};
#[allow(unused_imports)]
pub use model::{Gelu, Layer, Linear, Matrix, Model};
#[allow(unused_imports)]
pub use spts::{Chosen, Follow, Kind, LayerBudget, Layout, Pool, Proxy, SptsPlan, pool_scores, settle, top};
