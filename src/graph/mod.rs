//! The graph: what a model computes, before anything says how.
//!
//! [`ir`] defines it, [`build`] makes it, [`rewrite`] edits it, [`verify`] checks it and returns the proof, [`print`](mod@print)
//! shows it.

pub mod build;
pub mod ir;
pub mod print;
pub mod rewrite;
pub mod verify;

pub use ir::{Graph, NodeId, Op};
