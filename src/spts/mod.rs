//! SPTS, self-predictive token skipping (arXiv 2601.13155), as rewrites of the graph.
//!
//! [`schedule`] says how many tokens each layer works on (MSDP), [`preset`] which schedule a model gets, [`schedule_file`] how one is
//! written, [`plan`] what it costs. The passes, in their order ([`passes`]): [`attention_probe`] (PAP), [`ffn_proxy`] (LTP), [`prune`].
//! [`sidecar`] holds the low-rank proxies, [`calibrate`] makes them from text; [`capture`] is the rewrite that it runs on.
//!
//! Three words are kept apart: a token that is not active in a module is *skipped* there and may be active later; a
//! *pruned* token is gone for good; a *gather* is the graph operation that picks rows.

pub mod attention_probe;
pub mod calibrate;
pub mod capture;
pub mod ffn_proxy;
pub mod passes;
pub mod plan;
pub mod preset;
pub mod prune;
pub mod schedule;
pub mod schedule_file;
pub mod shape;
pub mod sidecar;
