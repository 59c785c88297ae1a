//! Attention on the CPU without masks, against plain loops in f64 that share nothing with it.
//!
//! Inputs are random and always the same. Rows of K and V that no query sees are NaN, and so is the result before it is written.
#![cfg(target_os = "linux")]

mod support;

use half::f16;
use spts::ggml::arena::{Arena, TensorId, read_bytes};
use spts::ggml::backend::Backend;
use spts::ggml::cpu_attention::Visible;
use spts::ggml::ops::Ops;
use spts::ggml::quantize::{dequantize, quantize, row_size};
use spts::gguf::GgmlType;
use support::prng::Prng;

/// Query heads, heads of keys, elements of a head, queries, and the row of the first query's key.
#[derive(Clone, Copy, Debug)]
struct Shape {
    n_head: usize,
    n_head_kv: usize,
    d: usize,
    n_q: usize,
    first: usize,
}

/// `q [d n_head, n_q]`, `k` and `v [d n_head_kv, n_kv]`, as F32.
struct Input {
    shape: Shape,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    /// `[n_head]`, or empty.
    sinks: Vec<f32>,
}

impl Input {
    fn random(shape: Shape, random: &mut Prng) -> Input {
        let width = shape.d * shape.n_head_kv;
        let mut values = |n: usize, size: f32| -> Vec<f32> { (0..n).map(|_| size * random.signed()).collect() };
        let q = values(shape.d * shape.n_head * shape.n_q, 4.0);
        let [mut k, mut v] = [0; 2].map(|_| values(width * (shape.first + shape.n_q), 1.0));
        for x in k.iter_mut().chain(&mut v) {
            *x = f16::from_f32(*x).to_f32();
        }
        Input { shape, q, k, v, sinks: vec![] }
    }

    /// The naive result `[d n_head, n_q]`; `sees` says whether query i sees key j.
    fn attended(&self, sees: impl Fn(usize, usize) -> bool) -> Vec<f64> {
        let Shape { n_head, n_head_kv, d, .. } = self.shape;
        let mut out = Vec::new();
        for (index, q) in self.q.chunks(d).enumerate() {
            let (query, head) = (index / n_head, index % n_head);
            let row = |j: usize| (j * n_head_kv + head * n_head_kv / n_head) * d;
            let keys: Vec<usize> = (0..self.k.len() / d / n_head_kv).filter(|&j| sees(query, j)).collect();
            let score = |j: usize| -> f64 {
                let dot: f64 = q.iter().zip(&self.k[row(j)..]).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                dot * f64::from(scale(d))
            };
            let scores: Vec<f64> = keys.iter().map(|&j| score(j)).collect();
            let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
            let sink = self.sinks.get(head).map_or(0.0, |s| (f64::from(*s) - most).exp());
            let sum: f64 = weights.iter().sum::<f64>() + sink;
            let mix =
                |x: usize| keys.iter().zip(&weights).map(|(&j, w)| w * f64::from(self.v[row(j) + x])).sum::<f64>();
            out.extend((0..d).map(|x| mix(x) / sum));
        }
        out
    }
}

fn scale(d: usize) -> f32 {
    (d as f32).sqrt().recip()
}

/// Computes with a backend of so many threads; `unused` rows of NaN follow the keys.
fn computed(
    input: &Input,
    ty: GgmlType,
    window: Option<usize>,
    positions: Option<&[i32]>,
    n_threads: usize,
) -> Vec<f32> {
    let Shape { n_head, n_head_kv, d, n_q, first } = input.shape;
    let (width, unused) = (d * n_head_kv, 5);
    let n_kv = first + n_q + unused;
    let mut backend = Backend::start("CPU", n_threads).expect("a CPU");
    let mut arena = Arena::new(8);
    let mut place = |ty: GgmlType, ne: [usize; 2], bytes: Vec<u8>| -> TensorId {
        let id = arena.declare("", ty, &ne);
        arena.allocate(&[id], backend.buffer_type(), "a test").expect("memory");
        arena.set(id, 0, &bytes);
        id
    };
    let f32s = |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|x| x.to_le_bytes()).collect() };
    let q = place(GgmlType::F32, [d * n_head, n_q], f32s(&input.q));
    let [k, v] = [&input.k, &input.v].map(|values| {
        let mut bytes = match ty {
            GgmlType::F16 => values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
            GgmlType::F32 => f32s(values),
            _ => quantize(ty, values, width),
        };
        // No number in any of the types.
        bytes.resize(row_size(ty, width) * n_kv, 0xff);
        place(ty, [width, n_kv], bytes)
    });
    let positions = positions.map(|p| {
        let bytes: Vec<u8> = p.iter().flat_map(|x| x.to_le_bytes()).collect();
        place(GgmlType::I32, [p.len(), 1], bytes)
    });
    let sinks = (!input.sinks.is_empty()).then(|| place(GgmlType::F32, [n_head, 1], f32s(&input.sinks)));
    let ops = Ops::new(64);
    let strides = [row_size(ty, width), row_size(ty, d)];
    let heads = |t: TensorId| ops.view_3d(arena.get(t), [d, n_kv, n_head_kv], strides, 0);
    let rows = ops.permute(ops.reshape(arena.get(q), [d, n_head, n_q]), [0, 2, 1, 3]);
    let visible = Visible { first, window, positions: positions.map(|p| arena.get(p)), lists: None };
    let out = ops.cpu_attention([rows, heads(k), heads(v)], visible, scale(d), sinks.map(|s| arena.get(s)));
    ops.output(out);
    ops.expand(out);
    backend.allocate(&ops).expect("memory");
    // Twice: what the threads count work by is left as it was.
    let [first, second] = [0; 2].map(|_| {
        backend.write(out, &vec![0xff; d * n_head * n_q * 4]);
        backend.compute(&ops).expect("a result");
        backend.synchronize();
        let bytes = read_bytes(out, 0, d * n_head * n_q * 4);
        bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect::<Vec<f32>>()
    });
    assert!(first.iter().zip(&second).all(|(a, b)| a.to_bits() == b.to_bits()), "{:?} computed twice", input.shape);
    first
}

#[track_caller]
fn check(what: &str, got: &[f32], expected: &[f64]) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let worst = got.iter().zip(expected).map(|(a, b)| (f64::from(*a) - b).abs());
    let worst = worst.fold(0.0, |a: f64, b| if b.is_nan() { f64::INFINITY } else { a.max(b) });
    assert!(worst < 2e-6, "{what}: {worst:e}");
}

const SHAPES: [Shape; 9] = [
    Shape { n_head: 14, n_head_kv: 2, d: 64, n_q: 100, first: 77 },
    Shape { n_head: 32, n_head_kv: 8, d: 128, n_q: 33, first: 0 },
    Shape { n_head: 4, n_head_kv: 1, d: 256, n_q: 65, first: 191 },
    Shape { n_head: 4, n_head_kv: 2, d: 512, n_q: 20, first: 100 },
    // One head of keys for each; odd sizes; fewer elements than a vector has; one query; more heads of a group than lanes.
    Shape { n_head: 3, n_head_kv: 3, d: 80, n_q: 130, first: 1 },
    Shape { n_head: 6, n_head_kv: 2, d: 10, n_q: 37, first: 300 },
    Shape { n_head: 2, n_head_kv: 1, d: 2, n_q: 64, first: 64 },
    Shape { n_head: 8, n_head_kv: 2, d: 96, n_q: 1, first: 200 },
    Shape { n_head: 70, n_head_kv: 1, d: 16, n_q: 5, first: 62 },
];

#[test]
fn every_key_up_to_the_querys_own() {
    let mut random = Prng::named(1, "cpu_attention");
    for shape in SHAPES {
        let input = Input::random(shape, &mut random);
        let expected = input.attended(|i, j| j <= shape.first + i);
        for (ty, n_threads) in [(GgmlType::F16, 1), (GgmlType::F32, 3)] {
            let what = format!("{shape:?}, {}", ty.name());
            check(&what, &computed(&input, ty, None, None, n_threads), &expected);
        }
    }
}

#[test]
fn windows_over_rows_and_over_positions() {
    let mut random = Prng::named(2, "cpu_attention");
    for shape in SHAPES {
        let input = Input::random(shape, &mut random);
        let n = shape.first + shape.n_q;
        // Every third token and some in a row.
        let positions: Vec<i32> = (0..n as i32).map(|i| if i < 40 { 3 * i } else { 80 + i }).collect();
        for window in [1, 2, 63, 64, 65, 1000] {
            let what = format!("{shape:?}, window {window} over rows");
            let of_rows = input.attended(|i, j| j <= shape.first + i && shape.first + i < j + window);
            check(&what, &computed(&input, GgmlType::F16, Some(window), None, 2), &of_rows);
            let what = format!("{shape:?}, window {window} over positions");
            let is_near = |i: usize, j: usize| positions[shape.first + i] - positions[j] < window as i32;
            let of_positions = input.attended(|i, j| j <= shape.first + i && is_near(i, j));
            check(&what, &computed(&input, GgmlType::F16, Some(window), Some(&positions), 2), &of_positions);
        }
    }
}

#[test]
fn sinks_take_weight_and_give_nothing() {
    let mut random = Prng::named(5, "cpu_attention");
    for shape in SHAPES {
        let mut input = Input::random(shape, &mut random);
        // Far below and above the scores, too.
        input.sinks = (0..shape.n_head).map(|i| [0.5, -3.0, 4.0, -200.0, 200.0][i % 5]).collect();
        for window in [None, Some(20)] {
            let what = format!("{shape:?}, window {window:?}");
            let is_near = |i: usize, j: usize| window.is_none_or(|w| shape.first + i < j + w);
            let expected = input.attended(|i, j| j <= shape.first + i && is_near(i, j));
            check(&what, &computed(&input, GgmlType::F16, window, None, 2), &expected);
        }
    }
}

#[test]
fn quantized_keys_and_values() {
    let mut random = Prng::named(6, "cpu_attention");
    for shape in SHAPES.into_iter().filter(|s| s.d.is_multiple_of(32)) {
        let mut input = Input::random(shape, &mut random);
        let width = shape.d * shape.n_head_kv;
        for values in [&mut input.k, &mut input.v] {
            *values = dequantize(GgmlType::Q8_0, &quantize(GgmlType::Q8_0, values, width), values.len());
        }
        let expected = input.attended(|i, j| j <= shape.first + i);
        check(&format!("{shape:?}"), &computed(&input, GgmlType::Q8_0, None, None, 2), &expected);
    }
}

/// Documents count on it: what follows a document is computed as it would have been from the start.
#[test]
fn a_query_is_computed_the_same_beside_any_others() {
    let mut random = Prng::named(3, "cpu_attention");
    for shape in SHAPES {
        let input = Input::random(shape, &mut random);
        let whole = computed(&input, GgmlType::F16, None, None, 2);
        let width = shape.d * shape.n_head;
        for start in [shape.n_q / 3, shape.n_q - 1] {
            let shape = Shape { n_q: shape.n_q - start, first: shape.first + start, ..shape };
            let rest = Input {
                shape,
                q: input.q[start * width..].to_vec(),
                k: input.k.clone(),
                v: input.v.clone(),
                sinks: vec![],
            };
            assert_eq!(
                computed(&rest, GgmlType::F16, None, None, 1),
                whole[start * width..],
                "{shape:?} from {start} on"
            );
        }
    }
}

/// A number that is none is not hidden: whoever sees such a key has no result.
#[test]
fn what_is_no_number_shows() {
    let shape = SHAPES[0];
    let mut input = Input::random(shape, &mut Prng::named(4, "cpu_attention"));
    let bad = shape.first + 40;
    input.k[bad * shape.d * shape.n_head_kv] = f32::NAN;
    let got = computed(&input, GgmlType::F32, None, None, 2);
    for (index, row) in got.chunks(shape.d).enumerate() {
        let (query, head) = (index / shape.n_head, index % shape.n_head);
        let sees = shape.first + query >= bad && head < shape.n_head / shape.n_head_kv;
        assert!(!sees || row.iter().all(|x| x.is_nan()), "query {query}, head {head}");
        // Of a head that reads other keys, and of queries a tile before.
        let is_far = head >= shape.n_head / shape.n_head_kv || shape.first + query < bad / 64 * 64;
        assert!(!is_far || row.iter().all(|x| x.is_finite()), "query {query}, head {head}");
    }
}
