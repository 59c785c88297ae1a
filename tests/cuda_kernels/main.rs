//! The operations of spts_ops.h on a GPU, one by one, against plain loops in f64 that share nothing with them.
//! `cargo test --release --features cuda --test cuda_kernels`, or `make test-cuda` with the whole models.
//!
//! Inputs are random and always the same. Results are written over NaN (-1 in integers), so what an operation leaves out shows.
#![cfg(feature = "cuda")]

mod attention;
mod gpu;
mod naive;
mod products;
mod rows;
mod selection;
#[path = "../support/mod.rs"]
mod support;
