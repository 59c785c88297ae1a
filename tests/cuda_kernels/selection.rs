//! Scores of probing queries, the best of them, membership.

use rayon::prelude::*;
use spts::gguf::GgmlType;
use spts::graph::ir::{Heads, Join};

use crate::gpu::{Gpu, f32s, i32s};
use crate::naive::*;
use crate::support::prng::Prng;

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
            for (first, last) in [(0, 0), (0, 1), (0, 32), (4, 1), (40, 32)].into_iter().filter(|(f, l)| f + l <= n) {
                let best = ranking(&scores[first..n - last]);
                let mut sizes = vec![1, first + last, n / 4, n - 1, n];
                sizes.retain(|m| *m >= (first + last).max(1));
                sizes.sort_unstable();
                sizes.dedup();
                for m in sizes {
                    gpu.clear();
                    let (from, all) = (gpu.f32([n, 1], &scores), gpu.poison(GgmlType::I32, [1, m + 2]));
                    let got = gpu.within(all, |ops, a| {
                        ops.top_k(a.get(from), m, [first, last], Some(ops.rows(a.get(all), 1, m)))
                    });
                    let mut expected: Vec<i32> = best[..m - first - last].iter().map(|i| i + first as i32).collect();
                    expected.extend((0..first as i32).chain((n - last) as i32..n as i32));
                    expected.sort_unstable();
                    expected.insert(0, -1);
                    expected.push(-1);
                    assert!(i32s(&got) == expected, "{kind}: {m} of {n}, {first} and {last} forced");
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
fn joined_attention(q: &[f32], k: &[f32], heads: &Heads, join: Join) -> Vec<f64> {
    let (d, group) = (heads.head_dim, heads.n_head / heads.n_head_kv);
    let (n, n_probe) = (k.len() / (d * heads.n_head_kv), q.len() / (d * heads.n_head));
    let by_query: Vec<Vec<f64>> = (0..n_probe)
        .into_par_iter()
        .map(|column| {
            let mut sums = vec![0.0; n];
            for head in 0..heads.n_head {
                let query = &q[(column * heads.n_head + head) * d..][..d];
                let key = |j: usize| &k[(j * heads.n_head_kv + head / group) * d..][..d];
                let logit = |j| f64::from(heads.scale) * dot(query, key(j));
                let weights = softmax(&(0..n - n_probe + column + 1).map(logit).collect::<Vec<_>>());
                sums.iter_mut().zip(weights).for_each(|(s, w)| *s += w / heads.n_head as f64);
            }
            sums
        })
        .collect();
    let joined = |i: usize| {
        let scores = by_query.iter().map(|s| s[i]);
        match join {
            Join::Mean => scores.sum::<f64>() / n_probe as f64,
            Join::Max => scores.fold(0.0, f64::max),
            other => panic!("no reference joins queries by their {other}"),
        }
    };
    (0..n).map(joined).collect()
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
    let cases = cases.into_iter().flat_map(|case| [Join::Mean, Join::Max].map(|join| (case, join)));
    for ((n_head, n_head_kv, head_dim, (n, n_probe)), join) in cases {
        let what = format!("{join} over {n_head}/{n_head_kv} heads of {head_dim}, {n_probe} of {n} candidates");
        let heads = Heads { n_head, n_head_kv, head_dim, scale: (head_dim as f32).sqrt().recip(), sinks: None };
        let q = halves(&mut random, head_dim * n_head * n_probe, 8.0);
        let mut k = halves(&mut random, head_dim * n_head_kv * n, 1.0);
        let expected = joined_attention(&q, &k, &heads, join);
        k.resize(head_dim * n_head_kv * (n + 5), f32::NAN);
        gpu.clear();
        let q = gpu.f32([head_dim * n_head, n_probe], &q);
        let (k, all) = (gpu.f16([head_dim * n_head_kv, n + 5], &k), gpu.poison(GgmlType::F32, [1, n + 2]));
        let got = f32s(&gpu.within(all, |ops, a| {
            ops.probe_scores(a.get(q), ops.rows(a.get(k), 0, n), &heads, join, Some(ops.rows(a.get(all), 1, n)))
        }));
        assert!(got[0].is_nan() && got[n + 1].is_nan(), "{what}: written outside");
        let sum: f64 = got[1..=n].iter().map(|x| f64::from(*x)).sum();
        assert!(join == Join::Max || (sum - 1.0).abs() <= 1e-5, "{what}: the sum is {sum}");
        for (i, (got, expected)) in got[1..=n].iter().zip(&expected).enumerate() {
            let e = (f64::from(*got) / expected - 1.0).abs();
            assert!(e <= 1e-4, "{what}: score {i} is {got}, expected {expected}");
        }
    }
}
