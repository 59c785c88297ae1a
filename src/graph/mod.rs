//! The graph: what a model computes, before anything says how.
//!
//! [`ir`] defines it, [`build`] makes it, [`rewrite`] edits it, [`verify`] checks it, [`print`](mod@print) shows it, [`last_row`] is the one
//! rewrite that every model gets, [`fuse_ffn`] and [`keep_normalized`] are two for devices with operations for them, [`phases`]
//! cuts it into phases of tiles, and [`lower`] turns one tile of a phase into a ggml graph.

pub mod build;
pub mod fuse_ffn;
pub mod ir;
pub mod keep_normalized;
pub mod last_row;
pub mod lower;
pub mod phases;
pub mod print;
pub mod rewrite;
pub mod verify;

pub use ir::{Graph, NodeId, Op};
