//! A CUDA build against its own CPU backend: the same models, prompts and schedules on both. `make test-cuda`.
//!
//! The bounds are normalised mean squared errors (NMSE) of logits less their mean: a shift of all alike changes no probability,
//! and is most of what two arrangements of the CPU differ by (smollm2 behind 2400 tokens, tiles of 512 against tiles of 32, 61
//! tokens: up to 0.020 with the shift, 0.0025 without). Products of F32 weights run in TF32 on a GPU, products of quantized
//! weights in bf16, while the CPU's kernels quantize the activations to 8 bits.
#![cfg(feature = "cuda")]

mod compare;
mod dense_and_quantized;
mod sessions;
mod skipping;
mod split_and_documents;
#[path = "../support/mod.rs"]
mod support;
