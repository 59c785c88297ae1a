//! What moves rows, adds to them, normalises, rotates and converts them.

use half::{bf16, f16};
use spts::gguf::GgmlType;
use spts::graph::ir::{Rope, RopeLayout};

use crate::gpu::*;
use crate::naive::*;
use crate::support::prng::Prng;

#[test]
fn gather() {
    let (mut gpu, mut random) = (Gpu::start(), Prng::named(1, "gather"));
    let (n_from, n) = (50, 37);
    for ty in [GgmlType::F32, GgmlType::F16, GgmlType::I32] {
        for width in [1, 3, 8, 4096] {
            gpu.clear();
            let row = width * ty.type_size();
            let source: Vec<u8> = (0..n_from * row).map(|_| random.below(256) as u8).collect();
            let idx: Vec<i32> = (0..n).map(|_| random.below(n_from as u32) as i32).collect();
            let expected: Vec<&[u8]> = idx.iter().map(|i| &source[*i as usize * row..][..row]).collect();
            let (from, idx) = (gpu.tensor(ty, [width, n_from], &source), gpu.i32(&idx));
            let got = gpu.fresh(|ops, a| ops.gather(a.get(from), a.get(idx), None));
            assert!(got == expected.concat(), "{} {width}", ty.name());

            // Into neighbouring rows of a larger tensor, and into the second half of its rows.
            for (ne, stride, offset) in [([width, n + 10], row, 5 * row), ([2 * width, n], 2 * row, row)] {
                let all = gpu.poison(ty, ne);
                let got = gpu.within(all, |ops, a| {
                    let to = ops.view_2d(a.get(all), [width, n], stride, offset);
                    ops.gather(a.get(from), a.get(idx), Some(to))
                });
                let mut whole = vec![POISON; ne[0] * ne[1] * ty.type_size()];
                for (i, row) in expected.iter().enumerate() {
                    whole[offset + i * stride..][..row.len()].copy_from_slice(row);
                }
                assert!(got == whole, "{} {width} in {ne:?}", ty.name());
            }
        }
    }
}

#[test]
fn scatter_add() {
    let (mut gpu, mut random) = (Gpu::start(), Prng::named(1, "scatter_add"));
    let (n_all, n) = (50, 37);
    for (ty, width) in [GgmlType::F32, GgmlType::BF16].into_iter().flat_map(|ty| [64, 4104].map(|width| (ty, width))) {
        gpu.clear();
        let mut sums = uniform(&mut random, width * n_all, 1.0);
        let h = gpu.f32([width, n_all], &sums);
        let mut x = uniform(&mut random, width * n, 1.0);
        let idx = distinct(&mut random, n, n_all);
        let (rows, at) = if ty == GgmlType::F32 {
            (gpu.f32([width, n], &x), gpu.i32(&idx))
        } else {
            x.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
            (gpu.bf16([width, n], &x), gpu.i32(&idx))
        };
        let got = f32s(&gpu.within(h, |ops, a| ops.scatter_add(a.get(h), a.get(rows), a.get(at))));
        for (i, x) in idx.iter().zip(x.chunks(width)) {
            sums[*i as usize * width..][..width].iter_mut().zip(x).for_each(|(s, x)| *s += x);
        }
        assert!(got == sums, "{} {width}", ty.name()); // one addition in F32 is exact on both sides
    }
}

#[test]
fn scatter_add_normalized() {
    let (mut gpu, mut random) = (Gpu::start(), Prng::named(1, "scatter_add_normalized"));
    let (n_all, n, eps) = (50, 37, 1e-5);
    for (width, rounds) in [64, 4096, 8192 + 64].into_iter().flat_map(|width| [(width, false), (width, true)]) {
        gpu.clear();
        let mut sums = uniform(&mut random, width * n_all, 1.0);
        let h = gpu.f32([width, n_all], &sums);
        let idx = distinct(&mut random, n, n_all);
        let at = gpu.i32(&idx);
        let ([in_f32, in_bf16], rounded) = rows_to_round(&mut gpu, &mut random, [width, n]);
        let exact = f32s(&gpu.arena.read(in_f32, 0, 4 * width * n));
        let (rows, x) = if rounds { (in_bf16, rounded) } else { (in_f32, exact) };
        let normalized = gpu.poison(GgmlType::BF16, [width, n_all]);
        let got = gpu.within(normalized, |ops, a| {
            ops.scatter_add_normalized(a.get(h), a.get(rows), a.get(at), a.get(normalized), eps)
        });
        for (i, x) in idx.iter().zip(x.chunks(width)) {
            sums[*i as usize * width..][..width].iter_mut().zip(x).for_each(|(s, x)| *s += x);
        }
        assert!(f32s(&gpu.arena.read(h, 0, 4 * width * n_all)) == sums, "{width}");
        let got = values_of(&got, bf16::from_le_bytes);
        for (row, (got, sums)) in got.chunks(width).zip(sums.chunks(width)).enumerate() {
            if idx.contains(&(row as i32)) {
                check_normalized(&format!("{width}, row {row}"), got, sums, None, eps);
            } else {
                assert!(got.iter().all(|x| x.is_nan()), "{width}: row {row} was written");
            }
        }
    }
}

/// Checks a row against `x` over its root mean square, times a weight if there is one.
fn check_normalized(what: &str, got: &[bf16], x: &[f32], weight: Option<&[f32]>, eps: f32) {
    assert_eq!(got.len(), x.len());
    let rms = (dot(x, x) / x.len() as f64 + f64::from(eps)).sqrt();
    for (i, got) in got.iter().enumerate() {
        let expected = f64::from(x[i]) / rms * weight.map_or(1.0, |w| f64::from(w[i]));
        assert!(bf16_steps(*got, bf16::from_f64(expected)) <= 1, "{what}, {i}: {got} for {expected}");
    }
}

/// Steps of BF16 between two of its values.
fn bf16_steps(a: bf16, b: bf16) -> i32 {
    let place = |x: bf16| {
        let magnitude = i32::from(x.to_bits() & 0x7fff);
        if x.is_sign_negative() { -magnitude } else { magnitude }
    };
    (place(a) - place(b)).abs()
}

#[test]
fn rms_norm_16() {
    let (mut gpu, mut random) = (Gpu::start(), Prng::named(1, "rms_norm_16"));
    let (n, eps) = (5, 1e-5f32);
    for width in [64, 4096, 8192 + 64] {
        gpu.clear();
        let (x, w) = (uniform(&mut random, width * n, 3.0), uniform(&mut random, width, 2.0));
        let (rows, weight) = (gpu.f32([width, n], &x), gpu.f32([width, 1], &w));
        for by in [None, Some(weight)] {
            let got = gpu.fresh(|ops, a| ops.rms_norm_16(a.get(rows), by.map(|w| a.get(w)), eps, None));
            let got = values_of(&got, bf16::from_le_bytes);
            assert_eq!(got.len(), x.len());
            for (row, (got, x)) in got.chunks(width).zip(x.chunks(width)).enumerate() {
                check_normalized(&format!("{width}, row {row}"), got, x, by.map(|_| &w[..]), eps);
            }
        }
    }
}

/// One row, head by head.
fn rotated(row: &[f32], position: i32, factors: Option<&[f32]>, head_dim: usize, rope: &Rope) -> Vec<f64> {
    let mut out: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
    for head in out.chunks_mut(head_dim) {
        for i in 0..rope.n_rot / 2 {
            let frequency = f64::from(rope.freq_base).powf(-2.0 * i as f64 / rope.n_rot as f64);
            let divisor = factors.map_or(1.0, |f| f64::from(f[i]));
            let (sin, cos) = (f64::from(position) * frequency * f64::from(rope.freq_scale) / divisor).sin_cos();
            let (first, second) = match rope.layout {
                RopeLayout::Interleaved => (2 * i, 2 * i + 1),
                RopeLayout::HalfSplit => (i, i + rope.n_rot / 2),
            };
            let (a, b, factor) = (head[first], head[second], f64::from(rope.attn_factor));
            head[first] = factor * (a * cos - b * sin);
            head[second] = factor * (a * sin + b * cos);
        }
    }
    out
}

#[test]
fn rope_rows() {
    let (mut gpu, mut random) = (Gpu::start(), Prng::named(1, "rope_rows"));
    let positions = [0, 1, 77, 4095, 100_003, 131_071];
    let (n, n_head) = (positions.len(), 3);
    for (head_dim, n_rot) in [(64, 64), (128, 128), (128, 64), (96, 32)] {
        let width = head_dim * n_head;
        let x = uniform(&mut random, width * n, 1.0);
        let divisors: Vec<f32> = (0..n_rot / 2).map(|_| 4.5 + 3.5 * random.signed()).collect();
        for layout in [RopeLayout::Interleaved, RopeLayout::HalfSplit] {
            for (freq_base, freq_scale, attn_factor) in [(1e4, 1.0, 1.0), (5e5, 0.25, 1.25)] {
                let rope = Rope {
                    layout,
                    n_rot,
                    n_ctx_orig: 4096,
                    freq_base,
                    freq_scale,
                    ext_factor: 0.0,
                    attn_factor,
                    beta_fast: 32.0,
                    beta_slow: 1.0,
                    factors: None,
                };
                for divisors in [None, Some(divisors.as_slice())] {
                    gpu.clear();
                    let (rows, at) = (gpu.f32([width, n], &x), gpu.i32(&positions));
                    let factors = divisors.map(|f| gpu.f32([f.len(), 1], f));
                    let place = |gpu: &mut Gpu, ty| {
                        let all = gpu.poison(ty, [width, n + 3]);
                        let got = gpu.within(all, |ops, a| {
                            let (factors, to) = (factors.map(|f| a.get(f)), ops.rows(a.get(all), 2, n));
                            ops.rope_rows(a.get(rows), a.get(at), factors, head_dim, &rope, Some(to))
                        });
                        let got = floats(ty, &got);
                        let (before, after) = (&got[..2 * width], &got[(n + 2) * width..]);
                        assert!(before.iter().chain(after).all(|x| x.is_nan()), "written outside");
                        got[2 * width..(n + 2) * width].to_vec()
                    };
                    let own = f32s(&gpu.fresh(|ops, a| {
                        let factors = factors.map(|f| a.get(f));
                        ops.rope_rows(a.get(rows), a.get(at), factors, head_dim, &rope, None)
                    }));
                    let (in_f32, in_f16) = (place(&mut gpu, GgmlType::F32), place(&mut gpu, GgmlType::F16));
                    let over_x = f32s(&gpu.within(rows, |ops, a| {
                        let (x, factors) = (a.get(rows), factors.map(|f| a.get(f)));
                        ops.rope_rows(x, a.get(at), factors, head_dim, &rope, Some(x))
                    }));
                    for (got, bound) in [(own, 1e-5), (in_f32, 1e-5), (in_f16, 5e-4), (over_x, 1e-5)] {
                        for (i, got) in got.chunks(width).enumerate() {
                            let expected = rotated(&x[i * width..][..width], positions[i], divisors, head_dim, &rope);
                            let e = error(got, &expected);
                            let with = divisors.is_some();
                            assert!(e <= bound, "{rope:?}, factors {with}, position {}: error {e}", positions[i]);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn store_f16() {
    let (mut gpu, mut random) = (Gpu::start(), Prng::named(1, "store_f16"));
    for (width, n) in [(8, 1), (64, 3), (4104, 7)] {
        gpu.clear();
        // From below the least of F16 to above its largest.
        let mut x: Vec<f32> =
            (0..width * n).map(|_| random.signed() * 2f32.powf(23.0 * random.signed() - 6.0)).collect();
        x[..8].copy_from_slice(&[0.0, -0.0, 65504.0, 65519.0, 65520.0, 1.0 + 1.0 / 2048.0, f32::INFINITY, 1e-40]);
        let (from, all) = (gpu.f32([width, n], &x), gpu.poison(GgmlType::F16, [width, n + 2]));
        let got = gpu.within(all, |ops, a| ops.store_f16(ops.rows(a.get(all), 1, n), a.get(from)));
        let around = vec![POISON; width * size_of::<f16>()];
        let expected = bytes_of(&x, |x| f16::from_f32(x).to_le_bytes());
        assert!(got == [&around[..], &expected, &around].concat(), "{width} {n}");
    }
}
