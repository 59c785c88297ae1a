//! The runtime's prefill with SPTS against the method's pseudo-code in the naive reference: the same tokens in every layer,
//! the same logits, the same caches, and decoding behind it.

mod any_schedule;
mod budgets;
#[path = "../reference/mod.rs"]
mod reference;
#[path = "../runtime/mod.rs"]
mod runtime;
mod scores;
mod sessions;
#[path = "../support/mod.rs"]
mod support;
