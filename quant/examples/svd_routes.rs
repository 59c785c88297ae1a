//! Times the routes to a truncated SVD that a proxy could take, and their errors.
//!
//! `cargo run --release -p spts-quant --example svd_routes`
//!
//! The matrices have a decaying spectrum like that of trained weights. "excess" is how much the
//! Frobenius residue exceeds the best possible one (the tail of the singular values).

use std::time::Instant;

use faer::{Mat, Side};
use spts_quant::rank::random_scores;
use spts_quant::{LayerProxy, RestrictedFfn};

fn normal(n: usize, seed: u64) -> Vec<f32> {
    // Sum of twelve uniform numbers: near enough to a normal distribution here.
    random_scores(n * 12, seed).chunks_exact(12).map(|v| v.iter().sum::<f32>() - 6.0).collect()
}

/// `n_rows x n_cols` with columns of a random matrix mixed so that singular values decay slowly.
fn weights(n_rows: usize, n_cols: usize, seed: u64) -> Mat<f32> {
    let left = normal(n_rows * n_cols, seed);
    let left = Mat::from_fn(n_rows, n_cols, |i, j| left[j * n_rows + i] * 0.02 / (1.0 + j as f32 / 40.0).sqrt());
    let right = normal(n_cols * n_cols, seed + 1);
    let right = Mat::from_fn(n_cols, n_cols, |i, j| right[j * n_cols + i] / (n_cols as f32).sqrt());
    &left * &right
}

fn residue(a: &Mat<f32>, approx: &Mat<f32>) -> f64 {
    f64::from((a - approx).norm_l2()).powi(2)
}

/// Randomized subspace iteration with two power iterations and 32 extra directions.
fn randomized(a: &Mat<f32>, rank: usize) -> (Mat<f32>, Mat<f32>) {
    let width = (rank + 32).min(a.ncols());
    let omega = normal(a.ncols() * width, 77);
    let omega = Mat::from_fn(a.ncols(), width, |i, j| omega[j * a.ncols() + i]);
    let mut q = (a * &omega).qr().compute_thin_Q();
    for _ in 0..2 {
        let z = (a.transpose() * &q).qr().compute_thin_Q();
        q = (a * &z).qr().compute_thin_Q();
    }
    let b = q.transpose() * a;
    let svd = b.thin_svd().expect("svd of the projection");
    let u = &q * svd.U().subcols(0, rank);
    let sv = Mat::from_fn(a.ncols(), rank, |i, k| svd.V()[(i, k)] * svd.S()[k]);
    (u, sv)
}

fn main() {
    println!("{} rayon threads; each route on one", rayon::current_num_threads());
    for (n_embd, d_low, rank) in [(896, 512, 128), (4096, 512, 192), (1536, 1024, 256), (3584, 1024, 256)] {
        let a = weights(n_embd, d_low, 1);
        println!("{n_embd} x {d_low}, rank {rank}");

        let start = Instant::now();
        let svd = a.thin_svd().expect("thin svd");
        let seconds = start.elapsed().as_secs_f64();
        let tail: f64 = (rank..d_low).map(|k| f64::from(svd.S()[k]).powi(2)).sum();
        println!("  thin SVD, f32          {seconds:7.3} s");

        let start = Instant::now();
        let (u, sv) = randomized(&a, rank);
        let seconds = start.elapsed().as_secs_f64();
        let excess = residue(&a, &(&u * sv.transpose())) / tail - 1.0;
        println!("  randomized, 2 powers   {seconds:7.3} s  excess {excess:.1e}");

        let start = Instant::now();
        let wide = Mat::from_fn(n_embd, d_low, |i, j| f64::from(a[(i, j)]));
        let gram = wide.transpose() * &wide;
        let gram_seconds = start.elapsed().as_secs_f64();
        let eigen = gram.self_adjoint_eigen(Side::Lower).expect("eigen");
        let seconds = start.elapsed().as_secs_f64();
        std::hint::black_box(eigen.S()[0]);
        println!("  Gram + eigen, f64      {seconds:7.3} s  of which the Gram matrix {gram_seconds:.3} s");

        let values: Vec<f32> = (0..d_low).flat_map(|j| a.col(j).iter().copied().collect::<Vec<_>>()).collect();
        let down: Vec<f32> = (0..n_embd).flat_map(|i| a.row(i).iter().copied().collect::<Vec<_>>()).collect();
        let ffn = RestrictedFfn { n_embd, d_low, gate: &values, up: &values, down: &down };
        let start = Instant::now();
        let proxy = LayerProxy::build(&ffn, rank).expect("proxy");
        let seconds = start.elapsed().as_secs_f64();
        let u = Mat::from_fn(n_embd, rank, |i, k| proxy.u_gu[k * n_embd + i]);
        let sv = Mat::from_fn(d_low, rank, |c, k| proxy.v_gate[c * rank + k]);
        let excess = residue(&a, &(&u * sv.transpose())) / tail - 1.0;
        println!("  LayerProxy::build      {seconds:7.3} s  excess {excess:.1e}  (three matrices, all threads)");
    }
}
