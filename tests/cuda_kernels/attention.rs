//! Causal attention without a mask.

use half::f16;
use rayon::prelude::*;
use spts::BlockShare;
use spts::ggml::block_lists::BlockRule;
use spts::gguf::GgmlType;
use spts::graph::ir::Heads;

use crate::gpu::*;
use crate::naive::*;
use crate::support::blocks::{Share, scenes};
use crate::support::prng::Prng;

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
        let heads = Heads { n_head, n_head_kv, head_dim, scale: (head_dim as f32).sqrt().recip(), sinks: None };
        if !gpu.backend.kernels().causal_attention(n_q, &heads, [GgmlType::F16; 2]) {
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
                ops.causal_attention([q, k, v], first, heads.scale, None, ty == GgmlType::BF16)
            });
            check(&format!("heads of {head_dim}, {}", ty.name()), &floats(ty, &got), &expected, bound);
        }
    }
}

/// Which blocks of keys are read, and attention over these.
#[test]
fn blocks_of_keys() {
    let (mut gpu, mut random) = (Gpu::start(), Prng::named(1, "blocks_of_keys"));
    let kernels = gpu.backend.kernels();
    for scene in scenes(&mut random, &[128, 64]) {
        let (head_dim, n_q, first) = (scene.d, scene.n_q, scene.first);
        let heads = Heads { n_head: 512, n_head_kv: 512, head_dim, scale: scene.scale(), sinks: None };
        if !kernels.causal_attention(n_q.max(128), &heads, [GgmlType::F16; 2]) {
            eprintln!("skipped: this device leaves attention over heads of {head_dim} to ggml");
            continue;
        }
        for (share, naive) in [
            (BlockShare::Mass(0.5), Share::Mass(0.5)),
            (BlockShare::Mass(0.9), Share::Mass(f64::from(0.9f32))),
            (BlockShare::Density(0.4), Share::Density(f64::from(0.4f32))),
        ] {
            gpu.clear();
            let (width, unused) = (head_dim * scene.n_head_kv, 11);
            let n_kv = first + n_q + unused;
            let [k, v] = [&scene.k, &scene.v].map(|t| {
                let mut t = t.clone();
                t.resize(width * n_kv, f32::NAN);
                gpu.f16([width, n_kv], &t)
            });
            let q = gpu.f32([head_dim * scene.n_head, n_q], &scene.q);
            let rule = BlockRule { first, scale: heads.scale, share, whole_from: scene.whole_from };
            let mut made = [true, false].map(|is_lists| {
                gpu.fresh(|ops, a| {
                    let q = ops.permute(ops.reshape(a.get(q), [head_dim, scene.n_head, n_q]), [0, 2, 1, 3]);
                    let [k, v] = [k, v].map(|t| {
                        let strides = [width, head_dim].map(|n| n * size_of::<f16>());
                        ops.view_3d(a.get(t), [head_dim, n_kv, scene.n_head_kv], strides, 0)
                    });
                    let lists = ops.block_lists(kernels, [q, k], rule);
                    if is_lists {
                        lists
                    } else {
                        ops.causal_attention([q, k, v], first, heads.scale, Some(lists), false)
                    }
                })
            });
            let out = floats(GgmlType::F32, &std::mem::take(&mut made[1]));
            let lists = i32s(&made[0]);
            let what = format!("heads of {head_dim}, {n_q} queries behind {first}, {naive:?}");
            let (n_read, n_all) = scene.check(&lists, naive, 2e-2);
            println!("{what}: {n_read} of {n_all} blocks");
            check(&what, &out, &scene.attended(&lists), 1e-3);
        }
    }
}
