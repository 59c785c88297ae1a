//! The operations of spts_ops.h on a GPU, one by one, against plain loops in f64 that share nothing with them.
//! `cargo test --release --features cuda --test cuda_kernels`, or `make test-cuda` with the whole models.
//!
//! Inputs are random and always the same. Results are written over NaN (-1 in integers), so what an operation leaves out shows.
#![cfg(feature = "cuda")]

mod support;

use half::{bf16, f16};
use rayon::prelude::*;
use spts::ggml::Tensor;
use spts::ggml::arena::{Arena, TensorId, read_bytes};
use spts::ggml::backend::Backend;
use spts::ggml::kernels::Target;
use spts::ggml::ops::Ops;
use spts::ggml::quantize::{dequantize, quantize};
use spts::gguf::GgmlType;
use spts::graph::ir::{Activation, Heads, Rope, RopeLayout};
use support::prng::Prng;

/// Bytes of what is not written yet: NaN in every float type, -1 in I32.
const POISON: u8 = 0xff;

/// A device, and the tensors of one case.
struct Gpu {
    backend: Backend,
    arena: Arena,
}

impl Gpu {
    fn start() -> Self {
        Self { backend: Backend::start("CUDA0", 1).unwrap(), arena: Arena::new(0) }
    }

    /// Frees the tensors of the case before.
    fn clear(&mut self) {
        self.arena = Arena::new(16);
    }

    fn tensor(&mut self, ty: GgmlType, ne: [usize; 2], bytes: &[u8]) -> TensorId {
        let id = self.arena.declare("", ty, &ne);
        self.arena.allocate(&[id], self.backend.buffer_type(), "a test").unwrap();
        self.arena.set(id, 0, bytes);
        id
    }

    fn f32(&mut self, ne: [usize; 2], values: &[f32]) -> TensorId {
        self.tensor(GgmlType::F32, ne, &bytes_of(values, f32::to_le_bytes))
    }

    fn f16(&mut self, ne: [usize; 2], values: &[f32]) -> TensorId {
        self.tensor(GgmlType::F16, ne, &bytes_of(values, |x| f16::from_f32(x).to_le_bytes()))
    }

    fn bf16(&mut self, ne: [usize; 2], values: &[f32]) -> TensorId {
        self.tensor(GgmlType::BF16, ne, &bytes_of(values, |x| bf16::from_f32(x).to_le_bytes()))
    }

    fn i32(&mut self, values: &[i32]) -> TensorId {
        self.tensor(GgmlType::I32, [values.len(), 1], &bytes_of(values, i32::to_le_bytes))
    }

    fn poison(&mut self, ty: GgmlType, ne: [usize; 2]) -> TensorId {
        self.tensor(ty, ne, &vec![POISON; ne[0] * ne[1] * ty.type_size()])
    }

    /// What an operation writes in memory of its own.
    fn fresh(&mut self, build: impl for<'a> FnOnce(&'a Ops, &'a Arena) -> Tensor<'a>) -> Vec<u8> {
        let ops = Ops::new(64);
        let out = build(&ops, &self.arena);
        let len = n_bytes(out);
        ops.output(out);
        ops.expand(out);
        self.backend.allocate(&ops).unwrap();
        self.backend.write(out, &vec![POISON; len]);
        self.backend.compute(&ops).unwrap();
        self.backend.synchronize();
        read_bytes(out, 0, len)
    }

    /// The whole of a tensor, after an operation wrote somewhere in it.
    fn within(&mut self, whole: TensorId, build: impl for<'a> FnOnce(&'a Ops, &'a Arena) -> Tensor<'a>) -> Vec<u8> {
        let ops = Ops::new(64);
        ops.expand(build(&ops, &self.arena));
        self.backend.allocate(&ops).unwrap();
        self.backend.compute(&ops).unwrap();
        self.backend.synchronize();
        self.arena.read(whole, 0, n_bytes(self.arena.get(whole)))
    }
}

/// Of a type without blocks.
fn n_bytes(t: Tensor<'_>) -> usize {
    t.n_elements() * t.ty().type_size()
}

fn bytes_of<T: Copy, const N: usize>(values: &[T], bytes: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|x| bytes(*x)).collect()
}

fn values_of<T, const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> T) -> Vec<T> {
    let (values, rest) = bytes.as_chunks();
    assert!(rest.is_empty());
    values.iter().map(|b| value(*b)).collect()
}

fn f32s(bytes: &[u8]) -> Vec<f32> {
    values_of(bytes, f32::from_le_bytes)
}

fn i32s(bytes: &[u8]) -> Vec<i32> {
    values_of(bytes, i32::from_le_bytes)
}

/// F16 or BF16, or F32.
fn floats(ty: GgmlType, bytes: &[u8]) -> Vec<f32> {
    match ty {
        GgmlType::F16 => values_of(bytes, |b| f16::from_le_bytes(b).to_f32()),
        GgmlType::BF16 => values_of(bytes, |b| bf16::from_le_bytes(b).to_f32()),
        _ => f32s(bytes),
    }
}

fn rounded_to_bf16(x: f64) -> f32 {
    bf16::from_f64(x).to_f32()
}

/// Uniform in -size..size.
fn uniform(random: &mut Prng, n: usize, size: f32) -> Vec<f32> {
    (0..n).map(|_| size * random.signed()).collect()
}

/// The same, exact in F16.
fn halves(random: &mut Prng, n: usize, size: f32) -> Vec<f32> {
    (0..n).map(|_| f16::from_f32(size * random.signed()).to_f32()).collect()
}

/// `m` of `0..n` in random order.
fn distinct(random: &mut Prng, m: usize, n: usize) -> Vec<i32> {
    let mut all: Vec<i32> = (0..n as i32).collect();
    for i in 0..m {
        let other = i + random.below((n - i) as u32) as usize;
        all.swap(i, other);
    }
    all.truncate(m);
    all
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// `w [n_in, n_out] x [n_in, n]`
fn product_of(w: &[f32], x: &[f32], n_in: usize) -> Vec<f64> {
    x.par_chunks(n_in).flat_map_iter(|x| w.chunks(n_in).map(|w| dot(w, x))).collect()
}

fn softmax(logits: &[f64]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exp: Vec<f64> = logits.iter().map(|x| (x - max).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.iter().map(|x| x / sum).collect()
}

/// act(gate) * up, rounded to BF16.
fn gated(act: Activation, gate: &[f32], up: &[f32]) -> Vec<f32> {
    let activated = |x: f64| match act {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        }
    };
    gate.iter().zip(up).map(|(g, u)| rounded_to_bf16(activated(f64::from(*g)) * f64::from(*u))).collect()
}

/// ||got - expected|| / ||expected||; NaN if anything is.
fn error(got: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let norm = |x: f64, y: f64| x + y * y;
    let difference = got.iter().zip(expected).map(|(g, e)| f64::from(*g) - e).fold(0.0, norm);
    (difference / expected.iter().copied().fold(0.0, norm)).sqrt()
}

fn check(what: &str, got: &[f32], expected: &[f64], bound: f64) {
    let e = error(got, expected);
    println!("{what}: error {e:.1e}");
    assert!(e <= bound, "{what}: error {e}, bound {bound}");
}

/// A weight `[n_in, n_out]` of this type, and what it is in BF16.
fn weight(gpu: &mut Gpu, random: &mut Prng, ty: GgmlType, [n_in, n_out]: [usize; 2]) -> (TensorId, Vec<f32>) {
    let bytes = quantize(ty, &uniform(random, n_in * n_out, 0.25), n_in);
    let values = dequantize(ty, &bytes, n_in * n_out);
    (gpu.tensor(ty, [n_in, n_out], &bytes), values.into_iter().map(|x| bf16::from_f32(x).to_f32()).collect())
}

/// Random rows `[f, n]` in BF16 values, as tensors of F32 that must be rounded for it and of BF16.
fn rows_to_round(gpu: &mut Gpu, random: &mut Prng, ne: [usize; 2]) -> ([TensorId; 2], Vec<f32>) {
    let x = uniform(random, ne[0] * ne[1], 1.0);
    let tensors = [gpu.f32(ne, &x), gpu.bf16(ne, &x)];
    (tensors, x.into_iter().map(|x| bf16::from_f32(x).to_f32()).collect())
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

/// Scores of every kind that can trouble a selection.
fn kinds_of_scores(random: &mut Prng, n: usize) -> Vec<(&'static str, Vec<f32>)> {
    let mut draw = |score: fn(&mut Prng) -> f32| -> Vec<f32> { (0..n).map(|_| score(random)).collect() };
    vec![
        ("few values", draw(|r| r.below(5) as f32 / 4.0)),
        ("all equal", vec![0.25; n]),
        ("NaN", draw(|r| [f32::NAN, -f32::NAN, r.signed(), r.signed(), -1.0][r.below(5) as usize])),
        ("all NaN", vec![f32::NAN; n]),
        ("negative", draw(|r| -1.0 - r.signed())),
        ("zeros", draw(|r| [0.0, -0.0, f32::MIN_POSITIVE, -f32::MIN_POSITIVE][r.below(4) as usize])),
        ("infinite", draw(|r| [f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, r.signed()][r.below(5) as usize])),
        ("decades", draw(|r| 10f32.powf(-20.0 - 20.0 * r.signed()))),
    ]
}

/// Indices from the best score to the worst.
fn ranking(scores: &[f32]) -> Vec<i32> {
    let mut order: Vec<i32> = (0..scores.len() as i32).collect();
    order.sort_by(|a, b| {
        let (a, b) = (scores[*a as usize], scores[*b as usize]);
        a.is_nan().cmp(&b.is_nan()).then(b.partial_cmp(&a).unwrap_or(std::cmp::Ordering::Equal))
    });
    order
}

#[test]
fn top_k() {
    let (mut gpu, mut random) = (Gpu::start(), Prng::named(1, "top_k"));
    for n in [1, 2, 31, 33, 1000, 1024, 4097, 32768, 60000, 131_072] {
        for (kind, scores) in kinds_of_scores(&mut random, n) {
            for forced in [0, 1, 32].into_iter().filter(|forced| *forced <= n) {
                let best = ranking(&scores[..n - forced]);
                let mut sizes = vec![1, forced, n / 4, n - 1, n];
                sizes.retain(|m| *m >= forced.max(1));
                sizes.sort_unstable();
                sizes.dedup();
                for m in sizes {
                    gpu.clear();
                    let (from, all) = (gpu.f32([n, 1], &scores), gpu.poison(GgmlType::I32, [1, m + 2]));
                    let got =
                        gpu.within(all, |ops, a| ops.top_k(a.get(from), m, forced, Some(ops.rows(a.get(all), 1, m))));
                    let mut expected = best[..m - forced].to_vec();
                    expected.extend((n - forced) as i32..n as i32);
                    expected.sort_unstable();
                    expected.insert(0, -1);
                    expected.push(-1);
                    assert!(i32s(&got) == expected, "{kind}: {m} of {n}, {forced} forced");
                }
            }
        }
    }
}

#[test]
fn is_member() {
    let (mut gpu, mut random) = (Gpu::start(), Prng::named(1, "is_member"));
    for n in [1, 300, 33_000] {
        for [m, k] in [[1, 1], [n, n], [n, 1], [1, n], [n / 2, n / 3], [n / 3, n / 2]].map(|s| s.map(|s| s.max(1))) {
            gpu.clear();
            let [rows, members] = [m, k].map(|m| {
                let mut list = distinct(&mut random, m, n);
                list.sort_unstable();
                list
            });
            let [rows_there, members_there] = [&rows, &members].map(|list| gpu.i32(list));
            let all = gpu.poison(GgmlType::F32, [1, m + 2]);
            let got = gpu.within(all, |ops, a| {
                ops.is_member(a.get(rows_there), a.get(members_there), Some(ops.rows(a.get(all), 1, m)))
            });
            let got = f32s(&got);
            assert!(got[0].is_nan() && got[m + 1].is_nan(), "{m} of {n} among {k}: written beside");
            let mut expected = vec![0.0; n];
            members.iter().for_each(|i| expected[*i as usize] = 1.0);
            for (row, found) in rows.iter().zip(&got[1..]) {
                assert_eq!(*found, expected[*row as usize], "{row} of {m} among {k} of {n}");
            }
        }
    }
}

/// Equation 4 of arXiv 2601.13155: `q [d n_head, n_probe]`, `k [d n_head_kv, n]`.
fn mean_attention(q: &[f32], k: &[f32], heads: &Heads) -> Vec<f64> {
    let (d, group) = (heads.head_dim, heads.n_head / heads.n_head_kv);
    let (n, n_probe) = (k.len() / (d * heads.n_head_kv), q.len() / (d * heads.n_head));
    let add = |mut sums: Vec<f64>, terms: Vec<f64>| {
        sums.iter_mut().zip(terms).for_each(|(s, t)| *s += t);
        sums
    };
    let all = (0..n_probe * heads.n_head).into_par_iter().map(|i| {
        let (column, head) = (i / heads.n_head, i % heads.n_head);
        let key = |j: usize| &k[(j * heads.n_head_kv + head / group) * d..][..d];
        let logit = |j| f64::from(heads.scale) * dot(&q[i * d..][..d], key(j));
        softmax(&(0..n - n_probe + column + 1).map(logit).collect::<Vec<_>>())
    });
    let sums = all.fold(|| vec![0.0; n], add).reduce(|| vec![0.0; n], add);
    sums.iter().map(|s| s / (n_probe * heads.n_head) as f64).collect()
}

#[test]
fn probe_scores() {
    let (mut gpu, mut random) = (Gpu::start(), Prng::named(1, "probe_scores"));
    let mut cases = Vec::new();
    for (n_head, n_head_kv) in [(8, 8), (8, 2), (14, 2)] {
        for head_dim in [64, 128] {
            cases.extend([(1, 1), (32, 32), (257, 1), (999, 32), (1000, 32)].map(|n| (n_head, n_head_kv, head_dim, n)));
        }
    }
    cases.push((28, 4, 64, (40_001, 32))); // the logits of all queries are more than are kept at a time
    for (n_head, n_head_kv, head_dim, (n, n_probe)) in cases {
        let what = format!("{n_head}/{n_head_kv} heads of {head_dim}, {n_probe} of {n} candidates");
        let heads = Heads { n_head, n_head_kv, head_dim, scale: (head_dim as f32).sqrt().recip() };
        let q = halves(&mut random, head_dim * n_head * n_probe, 8.0);
        let mut k = halves(&mut random, head_dim * n_head_kv * n, 1.0);
        let expected = mean_attention(&q, &k, &heads);
        k.resize(head_dim * n_head_kv * (n + 5), f32::NAN);
        gpu.clear();
        let q = gpu.f32([head_dim * n_head, n_probe], &q);
        let (k, all) = (gpu.f16([head_dim * n_head_kv, n + 5], &k), gpu.poison(GgmlType::F32, [1, n + 2]));
        let got = f32s(&gpu.within(all, |ops, a| {
            ops.probe_scores(a.get(q), ops.rows(a.get(k), 0, n), &heads, Some(ops.rows(a.get(all), 1, n)))
        }));
        assert!(got[0].is_nan() && got[n + 1].is_nan(), "{what}: written outside");
        let sum: f64 = got[1..=n].iter().map(|x| f64::from(*x)).sum();
        assert!((sum - 1.0).abs() <= 1e-5, "{what}: the sum is {sum}");
        for (i, (got, expected)) in got[1..=n].iter().zip(&expected).enumerate() {
            let e = (f64::from(*got) / expected - 1.0).abs();
            assert!(e <= 1e-4, "{what}: score {i} is {got}, expected {expected}");
        }
    }
}

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

/// `q [d n_head, n_q]`, `k` and `v [d n_head_kv, n_kv]` -> `[d n_head, n_q]`; query i sees the keys up to `first + i`.
fn attended(q: &[f32], k: &[f32], v: &[f32], first: usize, heads: &Heads) -> Vec<f64> {
    let (d, group) = (heads.head_dim, heads.n_head / heads.n_head_kv);
    let of_head = |q: (usize, &[f32])| {
        let (query, head) = (q.0 / heads.n_head, q.0 % heads.n_head);
        let row = |j: usize| (j * heads.n_head_kv + head / group) * d;
        let logit = |j| f64::from(heads.scale) * dot(q.1, &k[row(j)..][..d]);
        let mut out = vec![0.0; d];
        for (j, p) in softmax(&(0..=first + query).map(logit).collect::<Vec<_>>()).into_iter().enumerate() {
            out.iter_mut().zip(&v[row(j)..][..d]).for_each(|(o, v)| *o += p * f64::from(*v));
        }
        out
    };
    q.par_chunks(d).enumerate().flat_map_iter(of_head).collect()
}

#[test]
fn causal_attention() {
    let (mut gpu, mut random) = (Gpu::start(), Prng::named(1, "causal_attention"));
    let (n_q, first, n_head, n_head_kv, unused) = (301, 77, 32, 8, 11);
    for head_dim in [128, 64] {
        let heads = Heads { n_head, n_head_kv, head_dim, scale: (head_dim as f32).sqrt().recip() };
        if !gpu.backend.kernels().causal_attention(n_q, &heads) {
            eprintln!("skipped: this device leaves attention over heads of {head_dim} to ggml");
            continue;
        }
        gpu.clear();
        let width = head_dim * n_head_kv;
        let q = uniform(&mut random, head_dim * n_head * n_q, 4.0);
        let [mut k, mut v] = [0; 2].map(|_| halves(&mut random, width * (first + n_q), 1.0));
        let expected = attended(&q, &k, &v, first, &heads);
        // Rows of the cache that no query sees may be anything.
        let n_kv = first + n_q + unused;
        let [k, v] = [&mut k, &mut v].map(|t| {
            t.resize(width * n_kv, f32::NAN);
            gpu.f16([width, n_kv], t)
        });
        let q = gpu.f32([head_dim * n_head, n_q], &q);
        for (ty, bound) in [(GgmlType::F32, 1e-3), (GgmlType::BF16, 4e-3)] {
            let got = gpu.fresh(|ops, a| {
                let q = ops.permute(ops.reshape(a.get(q), [head_dim, n_head, n_q]), [0, 2, 1, 3]);
                let [k, v] = [k, v].map(|t| {
                    let strides = [width, head_dim].map(|n| n * size_of::<f16>());
                    ops.view_3d(a.get(t), [head_dim, n_kv, n_head_kv], strides, 0)
                });
                ops.causal_attention([q, k, v], first, heads.scale, ty == GgmlType::BF16)
            });
            check(&format!("heads of {head_dim}, {}", ty.name()), &floats(ty, &got), &expected, bound);
        }
    }
}
