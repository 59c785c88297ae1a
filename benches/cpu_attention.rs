//! Attention of a prompt's last tile on the CPU: ours, and ggml's behind a mask, on the same keys.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::f16;
use spts::ggml::arena::{Arena, TensorId};
use spts::ggml::backend::Backend;
use spts::ggml::cpu_attention::Visible;
use spts::ggml::ops::{Ops, Precision};
use spts::gguf::GgmlType;
use spts::session::physical_cores;

/// Queries of a tile.
const N_Q: usize = 512;

/// Query heads, heads of keys, elements of a head.
const SHAPES: [(&str, [usize; 3]); 2] = [("qwen2.5-0.5b", [14, 2, 64]), ("llama-3.1-8b", [32, 8, 128])];

/// Values between -1 and 1, the same every time.
fn noise(n: usize) -> impl Iterator<Item = f32> {
    let mut state = 1u32;
    (0..n).map(move |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    })
}

fn attention(c: &mut Criterion) {
    let mut backend = Backend::start("CPU", physical_cores()).expect("a CPU");
    let mut group = c.benchmark_group("attention");
    group.sample_size(10);
    for (name, [n_head, n_head_kv, d]) in SHAPES {
        for n_kv in [2048, 16_384] {
            let (first, scale) = (n_kv - N_Q, (d as f32).sqrt().recip());
            let mut arena = Arena::new(8);
            let buft = backend.buffer_type();
            let mut place = |ty: GgmlType, ne: [usize; 2], bytes: Vec<u8>| -> TensorId {
                let id = arena.declare("", ty, &ne);
                arena.allocate(&[id], buft, "a benchmark").expect("memory");
                arena.set(id, 0, &bytes);
                id
            };
            let halves = |n: usize| noise(n).flat_map(|x| f16::from_f32(x).to_le_bytes()).collect();
            let q = noise(d * n_head * N_Q).flat_map(f32::to_le_bytes).collect();
            let q = place(GgmlType::F32, [d * n_head, N_Q], q);
            let width = d * n_head_kv;
            let [k, v] = [0; 2].map(|_| place(GgmlType::F16, [width, n_kv], halves(width * n_kv)));
            let sees = |i: usize, j: usize| if j <= first + i { 0.0 } else { f32::NEG_INFINITY };
            let mask = (0..N_Q).flat_map(|i| (0..n_kv).map(move |j| (i, j)));
            let mask = mask.flat_map(|(i, j)| f16::from_f32(sees(i, j)).to_le_bytes()).collect();
            let mask = place(GgmlType::F16, [n_kv, N_Q], mask);

            // Two products of every query with every key that it sees.
            let n_seen = N_Q * first + N_Q * (N_Q + 1) / 2;
            group.throughput(Throughput::Elements((4 * n_seen * d * n_head) as u64));
            for ours in [true, false] {
                let ops = Ops::new(64);
                let rows = ops.permute(ops.reshape(arena.get(q), [d, n_head, N_Q]), [0, 2, 1, 3]);
                let [k, v] = [k, v].map(|t| ops.view_3d(arena.get(t), [d, n_kv, n_head_kv], [2 * width, 2 * d], 0));
                let out = if ours {
                    ops.cpu_attention(
                        [rows, k, v],
                        Visible { first, window: None, positions: None, lists: None },
                        scale,
                        None,
                    )
                } else {
                    let out = ops.flash_attn([rows, k, v], arena.get(mask), scale, None);
                    ops.accumulate_in(out, Precision::F32);
                    out
                };
                ops.expand(out);
                backend.allocate(&ops).expect("memory");
                let whose = if ours { "ours" } else { "ggml's" };
                group.bench_function(BenchmarkId::new(format!("{name}, {whose}"), n_kv), |b| {
                    b.iter(|| backend.compute(&ops).expect("a result"));
                });
            }
        }
    }
    group.finish();
}

criterion_group!(benches, attention);
criterion_main!(benches);
