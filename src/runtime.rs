//! What holds for the whole process rather than for a model or a session: ggml has one log, one set of limits, and one way to
//! launch kernels. A program sets these before it opens its first model; a library that embeds this one leaves them alone.
//!
//! In builds without CUDA only the log and [`attend_by_ggml`] have an effect.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::attributes::RopeLayout;
use crate::ggml::{backend, cpu_attention};

pub use crate::ggml::log::{Level, set_level as set_log_level};

/// Whether a program has asked for overlapping launches.
static OVERLAPS: AtomicBool = AtomicBool::new(false);

/// Sets, for all GPUs, up to how many rows products of quantized weights use integer kernels; more rows go to cuBLAS with
/// 16-bit copies of the weights. Each device has a default of its own (vendor/ggml-sys/src/product_choice.cu). Products from then
/// on follow it.
pub fn set_integer_rows(rows: usize) {
    backend::set_integer_rows(rows);
}

/// Lets GPU kernels begin before those in front of them end, if the first model opened has interleaved rope (Llama). Only for
/// programs that open no other kind: in captured graphs with ggml's other rope kernel tokens came out wrong
/// (vendor/ggml-sys/src/cuda_libraries.cpp). Decode on Hopper is 7 % faster with it. ggml looks when it launches a kernel of a
/// kind for the first time; a user's GGML_CUDA_PDL goes before this.
pub fn overlap_launches() {
    OVERLAPS.store(true, Ordering::Relaxed);
}

/// Whether CPUs compute the attention of prompts by ggml's kernel, as llama.cpp does, instead of this library's, which is 1.5 to
/// 2.5 times as fast (docs/performance.md). It is there to compare the two, and holds for sessions made from then on.
pub fn attend_by_ggml(is_ggmls: bool) {
    cpu_attention::leave_to_ggml(is_ggmls);
}

/// A model is about to be opened: from the first one that rotates halves on, launches are in turn.
pub(crate) fn opens_model(layout: RopeLayout) {
    if layout == RopeLayout::HalfSplit {
        OVERLAPS.store(false, Ordering::Relaxed);
    }
    backend::overlap_launches(OVERLAPS.load(Ordering::Relaxed));
}
