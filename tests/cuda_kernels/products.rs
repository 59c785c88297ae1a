//! Products of many rows, the gated FFN, the norm of its proxy.

use half::bf16;
use spts::ggml::Tensor;
use spts::ggml::arena::{Arena, TensorId};
use spts::ggml::kernels::Target;
use spts::ggml::ops::Ops;
use spts::ggml::quantize::{dequantize, quantize};
use spts::gguf::GgmlType;
use spts::graph::ir::Activation;

use crate::gpu::{Gpu, f32s, floats};
use crate::naive::*;
use crate::support::prng::Prng;

/// A weight `[n_in, n_out]` of this type, and what it is in BF16.
fn weight(gpu: &mut Gpu, random: &mut Prng, ty: GgmlType, [n_in, n_out]: [usize; 2]) -> (TensorId, Vec<f32>) {
    let bytes = quantize(ty, &uniform(random, n_in * n_out, 0.25), n_in);
    let values = dequantize(ty, &bytes, n_in * n_out);
    (gpu.tensor(ty, [n_in, n_out], &bytes), values.into_iter().map(|x| bf16::from_f32(x).to_f32()).collect())
}

/// Checks what is written to each kind of target, by the bounds for sums in F32 and rounded ones.
fn check_targets(
    gpu: &mut Gpu,
    what: &str,
    expected: &[f64],
    ne: [usize; 2],
    [wide, narrow]: [f64; 2],
    build: impl for<'a> Fn(&'a Ops, &'a Arena, Target<'a>) -> Tensor<'a>,
) {
    let got = gpu.fresh(|ops, a| build(ops, a, Target::F32));
    check(&format!("{what}, F32"), &f32s(&got), expected, wide);
    let got = gpu.fresh(|ops, a| build(ops, a, Target::Bf16));
    check(&format!("{what}, BF16"), &floats(GgmlType::BF16, &got), expected, narrow);
    let before = uniform(&mut Prng::named(1, "before"), expected.len(), 1.0);
    let h = gpu.f32(ne, &before);
    let got = gpu.within(h, |ops, a| build(ops, a, Target::Added(a.get(h))));
    let sums: Vec<f64> = before.iter().zip(expected).map(|(b, e)| f64::from(*b) + e).collect();
    check(&format!("{what}, added"), &f32s(&got), &sums, wide);
}

#[test]
fn product() {
    let (mut gpu, mut random) = (Gpu::start(), Prng::named(1, "product"));
    let (n_out, rows) = (136, 300);
    for ty in [GgmlType::Q4_K, GgmlType::Q6_K, GgmlType::Q5_0, GgmlType::Q8_0, GgmlType::BF16] {
        for n_in in [256, 4096] {
            gpu.clear();
            let (w, w_values) = weight(&mut gpu, &mut random, ty, [n_in, n_out]);
            let (inputs, x_values) = rows_to_round(&mut gpu, &mut random, [n_in, rows]);
            let (factors, scaled) = feature_factors(&mut gpu, &x_values, n_in);
            let [expected, expected_scaled] = [&x_values, &scaled].map(|x| product_of(&w_values, x, n_in));
            for (x, from) in inputs.into_iter().zip(["F32", "BF16"]) {
                for (expected, factors) in [(&expected, None), (&expected_scaled, Some(factors))] {
                    // Tensor cores cut sums off where F32 would round: up to 1e-5 after 4096 terms.
                    let (what, bounds) = (format!("{} {n_in} x {from}", ty.name()), [2e-5, 4e-3]);
                    check_targets(&mut gpu, &what, expected, [n_out, rows], bounds, |ops, a, to| {
                        ops.product(a.get(w), a.get(x), factors.map(|f| a.get(f)), to)
                    });
                }
            }
        }
    }
}

/// A shape for which cuBLAS' first choice on Hopper are tiles that are passed over.
#[test]
fn product_in_other_tiles() {
    let (mut gpu, mut random) = (Gpu::start(), Prng::named(1, "product_in_other_tiles"));
    let (n_in, n_out, rows) = (1536, 8960, 2048);
    gpu.clear();
    let (w, w_values) = weight(&mut gpu, &mut random, GgmlType::Q4_K, [n_in, n_out]);
    let ([_, x], x_values) = rows_to_round(&mut gpu, &mut random, [n_in, rows]);
    let expected = product_of(&w_values, &x_values, n_in);
    check_targets(&mut gpu, "many rows", &expected, [n_out, rows], [2e-5, 4e-3], |ops, a, to| {
        ops.product(a.get(w), a.get(x), None, to)
    });
}

/// Widened weights are kept by weight and factors: neither stands in for the other. The factors are no powers of two, so that
/// rounding once and rounding twice differ.
#[test]
fn product_of_one_weight_by_several_factors() {
    let (mut gpu, mut random) = (Gpu::start(), Prng::named(1, "product_of_one_weight_by_several_factors"));
    let (n_in, n_out, rows) = (512, 136, 300);
    for ty in [GgmlType::Q4_K, GgmlType::Q6_K, GgmlType::Q8_0, GgmlType::BF16] {
        gpu.clear();
        let (w, w_values) = weight(&mut gpu, &mut random, ty, [n_in, n_out]);
        gpu.arena.mark_as_weights();
        let ([_, x], x_values) = rows_to_round(&mut gpu, &mut random, [n_in, rows]);
        let factors = [(); 2].map(|()| uniform(&mut random, n_in, 2.0));
        let there = factors.each_ref().map(|f| gpu.f32([n_in, 1], f));
        for i in [None, Some(0), Some(1), None, Some(0)] {
            let by = |k: usize| i.map_or(1.0, |i| factors[i][k % n_in]);
            let scaled: Vec<f32> = w_values.iter().enumerate().map(|(k, w)| w * by(k)).collect();
            let expected = product_of(&scaled, &x_values, n_in);
            let got = gpu.fresh(|ops, a| ops.product(a.get(w), a.get(x), i.map(|i| a.get(there[i])), Target::F32));
            check(&format!("{}, factors {i:?}", ty.name()), &f32s(&got), &expected, 4e-3);
        }
    }
}

/// Factors on the features of rows of n_in, powers of two so that rounding stays as it is, and the rows multiplied by them.
fn feature_factors(gpu: &mut Gpu, x: &[f32], n_in: usize) -> (TensorId, Vec<f32>) {
    let factors: Vec<f32> = (0..n_in).map(|i| [1.0, 0.5, 2.0, 0.0, 4.0][i % 5]).collect();
    let scaled = x.chunks(n_in).flat_map(|x| x.iter().zip(&factors).map(|(x, f)| x * f)).collect();
    (gpu.f32([n_in, 1], &factors), scaled)
}

fn rounded_product(w: &[f32], x: &[f32], n_in: usize) -> Vec<f32> {
    product_of(w, x, n_in).into_iter().map(rounded_to_bf16).collect()
}

#[test]
fn gated_ffn() {
    let (mut gpu, mut random) = (Gpu::start(), Prng::named(1, "gated_ffn"));
    let (n_embd, n_ff, rows) = (256, 768, 300);
    for types in [[GgmlType::Q4_K, GgmlType::Q4_K, GgmlType::Q6_K], [GgmlType::BF16; 3]] {
        for act in [Activation::Silu, Activation::Gelu] {
            gpu.clear();
            let (w_gate, gate) = weight(&mut gpu, &mut random, types[0], [n_embd, n_ff]);
            let (w_up, up) = weight(&mut gpu, &mut random, types[1], [n_embd, n_ff]);
            let (w_down, down) = weight(&mut gpu, &mut random, types[2], [n_ff, n_embd]);
            let (inputs, x) = rows_to_round(&mut gpu, &mut random, [n_embd, rows]);
            let output = |x: &[f32]| {
                let hidden = gated(act, &rounded_product(&gate, x, n_embd), &rounded_product(&up, x, n_embd));
                product_of(&down, &hidden, n_ff)
            };
            let (factors, x_scaled) = feature_factors(&mut gpu, &x, n_embd);
            let row_factors: Vec<f32> = (0..rows).map(|i| [1.0, 0.0, 0.5][i % 3]).collect();
            let by_rows = gpu.f32([1, rows], &row_factors);
            let (plain, of_scaled) = (output(&x), output(&x_scaled));
            let in_rows = |y: &[f64]| -> Vec<f64> {
                let rows = y.chunks(n_embd).zip(&row_factors);
                rows.flat_map(|(y, f)| y.iter().map(|y| y * f64::from(*f))).collect()
            };
            let cases = [
                (in_rows(&plain), None, Some(by_rows)),
                (in_rows(&of_scaled), Some(factors), Some(by_rows)),
                (plain, None, None),
                (of_scaled, Some(factors), None),
            ];
            for (x, from) in inputs.into_iter().zip(["F32", "BF16"]) {
                for (case, (expected, factors, row_factors)) in cases.iter().enumerate() {
                    let what = format!("{act:?}, {} x {from}, case {case}", types[0].name());
                    check_targets(&mut gpu, &what, expected, [n_embd, rows], [1e-2; 2], |ops, a, to| {
                        let [factors, row_factors] = [factors, row_factors].map(|f| f.map(|f| a.get(f)));
                        let weights = [w_gate, w_up, w_down].map(|w| a.get(w));
                        ops.gated_ffn(act, weights, a.get(x), factors, row_factors, to)
                    });
                }
            }
        }
    }
}

/// Widths and rows of which eight values at a time are no even share: of a row, or of all rows.
#[test]
fn gated_ffn_of_odd_widths() {
    let (mut gpu, mut random) = (Gpu::start(), Prng::named(1, "gated_ffn_of_odd_widths"));
    for (n_embd, n_ff, rows) in [(256, 772, 301), (256, 763, 300), (256, 36, 302), (100, 2052, 299), (2048, 2050, 257)]
    {
        for act in [Activation::Silu, Activation::Gelu] {
            gpu.clear();
            let ty = GgmlType::BF16;
            let (w_gate, gate) = weight(&mut gpu, &mut random, ty, [n_embd, n_ff]);
            let (w_up, up) = weight(&mut gpu, &mut random, ty, [n_embd, n_ff]);
            let (w_down, down) = weight(&mut gpu, &mut random, ty, [n_ff, n_embd]);
            let (inputs, x) = rows_to_round(&mut gpu, &mut random, [n_embd, rows]);
            let hidden = gated(act, &rounded_product(&gate, &x, n_embd), &rounded_product(&up, &x, n_embd));
            let plain = product_of(&down, &hidden, n_ff);
            let row_factors: Vec<f32> = (0..rows).map(|i| [1.0, 0.0, 0.5][i % 3]).collect();
            let by_rows = gpu.f32([1, rows], &row_factors);
            let of_rows = plain.chunks(n_embd).zip(&row_factors);
            let scaled: Vec<f64> = of_rows.flat_map(|(y, f)| y.iter().map(|y| y * f64::from(*f))).collect();
            for x in inputs {
                for (expected, factors) in [(&plain, None), (&scaled, Some(by_rows))] {
                    let what = format!("{act:?}, {n_embd} {n_ff} {rows}, factors: {}", factors.is_some());
                    check_targets(&mut gpu, &what, expected, [n_embd, rows], [1e-2; 2], |ops, a, to| {
                        let weights = [w_gate, w_up, w_down].map(|w| a.get(w));
                        ops.gated_ffn(act, weights, a.get(x), None, factors.map(|f| a.get(f)), to)
                    });
                }
            }
        }
    }
}

/// Rows of weights and of results that begin anywhere.
#[test]
fn product_of_odd_widths() {
    let (mut gpu, mut random) = (Gpu::start(), Prng::named(1, "product_of_odd_widths"));
    for (n_in, n_out, rows) in [(100, 136, 300), (99, 137, 301), (256, 2051, 300), (1030, 2050, 2048)] {
        gpu.clear();
        let (w, w_values) = weight(&mut gpu, &mut random, GgmlType::BF16, [n_in, n_out]);
        let (inputs, x_values) = rows_to_round(&mut gpu, &mut random, [n_in, rows]);
        let expected = product_of(&w_values, &x_values, n_in);
        for x in inputs {
            let what = format!("{n_in} {n_out} {rows}");
            check_targets(&mut gpu, &what, &expected, [n_out, rows], [2e-5, 4e-3], |ops, a, to| {
                ops.product(a.get(w), a.get(x), None, to)
            });
        }
    }
}

#[test]
fn proxy_norm() {
    let (mut gpu, mut random) = (Gpu::start(), Prng::named(1, "proxy_norm"));
    let (n_embd, rank, d_low, rows) = (256, 40, 200, 300);
    for act in [Activation::Silu, Activation::Gelu] {
        gpu.clear();
        let mut factor = |ne| weight(&mut gpu, &mut random, GgmlType::BF16, ne);
        let (u, u_values) = factor([n_embd, 2 * rank]);
        let (v_gu, gate_and_up) = factor([rank, 2 * d_low]);
        let (gate, up) = gate_and_up.split_at(rank * d_low);
        let (v_down, down) = factor([d_low, rank]);
        let (inputs, x) = rows_to_round(&mut gpu, &mut random, [n_embd, rows]);
        let norms = |x: &[f32]| -> Vec<f64> {
            let low = rounded_product(&u_values, x, n_embd);
            let half =
                |first: usize| low.chunks(2 * rank).flat_map(|y| y[first..][..rank].to_vec()).collect::<Vec<_>>();
            let hidden = gated(act, &rounded_product(gate, &half(0), rank), &rounded_product(up, &half(rank), rank));
            let out = product_of(&down, &hidden, d_low);
            out.chunks(rank).map(|y| y.iter().map(|y| y * y).sum::<f64>().sqrt()).collect()
        };
        let (factors, x_scaled) = feature_factors(&mut gpu, &x, n_embd);
        let scores = uniform(&mut random, rows, 1.0);
        let scores_there = gpu.f32([1, rows], &scores);
        let all = gpu.poison(GgmlType::F32, [1, rows + 2]);
        for x_there in inputs {
            for (x, factors) in [(&x, None), (&x_scaled, Some(factors))] {
                let (what, expected) = (format!("{act:?}, factors: {}", factors.is_some()), norms(x));
                let proxy = [u, v_gu, v_down];
                let got = gpu.fresh(|ops, a| {
                    let (proxy, factors) = (proxy.map(|w| a.get(w)), factors.map(|f| a.get(f)));
                    ops.proxy_norm(act, proxy, a.get(x_there), factors, None, None)
                });
                check(&what, &f32s(&got), &expected, 1e-2);
                let got = gpu.within(all, |ops, a| {
                    let (proxy, factors) = (proxy.map(|w| a.get(w)), factors.map(|f| a.get(f)));
                    let to = ops.rows(a.get(all), 1, rows);
                    ops.proxy_norm(act, proxy, a.get(x_there), factors, Some(a.get(scores_there)), Some(to))
                });
                let (got, times) = (f32s(&got), expected.iter().zip(&scores).map(|(c, s)| c * f64::from(*s)));
                assert!(got[0].is_nan() && got[rows + 1].is_nan(), "{what}: written beside");
                check(&format!("{what}, times scores"), &got[1..=rows], &times.collect::<Vec<_>>(), 1e-2);
            }
        }
    }
}
