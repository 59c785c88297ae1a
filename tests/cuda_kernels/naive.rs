//! Random inputs, plain loops in f64, and how far a result may be from them.

use half::{bf16, f16};
use rayon::prelude::*;
use spts::ggml::arena::TensorId;
use spts::graph::ir::Activation;

use crate::gpu::Gpu;
use crate::support::prng::Prng;

pub fn rounded_to_bf16(x: f64) -> f32 {
    bf16::from_f64(x).to_f32()
}

/// Uniform in -size..size.
pub fn uniform(random: &mut Prng, n: usize, size: f32) -> Vec<f32> {
    (0..n).map(|_| size * random.signed()).collect()
}

/// The same, exact in F16.
pub fn halves(random: &mut Prng, n: usize, size: f32) -> Vec<f32> {
    (0..n).map(|_| f16::from_f32(size * random.signed()).to_f32()).collect()
}

/// `m` of `0..n` in random order.
pub fn distinct(random: &mut Prng, m: usize, n: usize) -> Vec<i32> {
    let mut all: Vec<i32> = (0..n as i32).collect();
    for i in 0..m {
        let other = i + random.below((n - i) as u32) as usize;
        all.swap(i, other);
    }
    all.truncate(m);
    all
}

/// Random rows `[f, n]` in BF16 values, as tensors of F32 that must be rounded for it and of BF16.
pub fn rows_to_round(gpu: &mut Gpu, random: &mut Prng, ne: [usize; 2]) -> ([TensorId; 2], Vec<f32>) {
    let x = uniform(random, ne[0] * ne[1], 1.0);
    let tensors = [gpu.f32(ne, &x), gpu.bf16(ne, &x)];
    (tensors, x.into_iter().map(|x| bf16::from_f32(x).to_f32()).collect())
}

pub fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// `w [n_in, n_out] x [n_in, n]`
pub fn product_of(w: &[f32], x: &[f32], n_in: usize) -> Vec<f64> {
    x.par_chunks(n_in).flat_map_iter(|x| w.chunks(n_in).map(|w| dot(w, x))).collect()
}

pub fn softmax(logits: &[f64]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exp: Vec<f64> = logits.iter().map(|x| (x - max).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.iter().map(|x| x / sum).collect()
}

/// act(gate) * up, rounded to BF16.
pub fn gated(act: Activation, gate: &[f32], up: &[f32]) -> Vec<f32> {
    let activated = |x: f64| match act {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::ClampedSwiglu => unreachable!("no kernel of ours has it"),
        Activation::Gelu => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        }
    };
    gate.iter().zip(up).map(|(g, u)| rounded_to_bf16(activated(f64::from(*g)) * f64::from(*u))).collect()
}

/// ||got - expected|| / ||expected||; NaN if anything is.
pub fn error(got: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let norm = |x: f64, y: f64| x + y * y;
    let difference = got.iter().zip(expected).map(|(g, e)| f64::from(*g) - e).fold(0.0, norm);
    (difference / expected.iter().copied().fold(0.0, norm)).sqrt()
}

pub fn check(what: &str, got: &[f32], expected: &[f64], bound: f64) {
    let e = error(got, expected);
    println!("{what}: error {e:.1e}");
    assert!(e <= bound, "{what}: error {e}, bound {bound}");
}
