//! Attention on the CPU over a part of the blocks of keys: which are chosen, and what comes of them, against plain loops.
#![cfg(target_os = "linux")]

mod support;

use half::f16;
use spts::BlockShare;
use spts::ggml::arena::{Arena, TensorId, read_bytes};
use spts::ggml::backend::Backend;
use spts::ggml::block_lists::BlockRule;
use spts::ggml::cpu_attention::Visible;
use spts::ggml::ops::Ops;
use spts::gguf::GgmlType;
use support::blocks::{Scene, Share, scenes};
use support::prng::Prng;

/// The lists `[1 + n_blocks, n_tiles, n_head]`, and the attention over them `[d n_head, n_q]`.
fn computed(scene: &Scene, share: BlockShare, n_threads: usize) -> (Vec<i32>, Vec<f32>) {
    let Scene { n_head, n_head_kv, d, n_q, first, whole_from, .. } = *scene;
    let (width, n_kv) = (d * n_head_kv, first + n_q);
    let mut backend = Backend::start("CPU", n_threads).expect("a CPU");
    let mut arena = Arena::new(8);
    let mut place = |ty: GgmlType, ne: [usize; 2], bytes: Vec<u8>| -> TensorId {
        let id = arena.declare("", ty, &ne);
        arena.allocate(&[id], backend.buffer_type(), "a test").expect("memory");
        arena.set(id, 0, &bytes);
        id
    };
    let q = place(GgmlType::F32, [d * n_head, n_q], scene.q.iter().flat_map(|x| x.to_le_bytes()).collect());
    let [k, v] = [&scene.k, &scene.v].map(|values| {
        place(GgmlType::F16, [width, n_kv], values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect())
    });
    let ops = Ops::new(64);
    let heads = |t: TensorId| ops.view_3d(arena.get(t), [d, n_kv, n_head_kv], [2 * width, 2 * d], 0);
    let rows = ops.permute(ops.reshape(arena.get(q), [d, n_head, n_q]), [0, 2, 1, 3]);
    let rule = BlockRule { first, scale: scene.scale(), share, whole_from };
    let lists = ops.block_lists(backend.kernels(), [rows, heads(k)], rule);
    let visible = Visible { first, window: None, positions: None, lists: Some(lists) };
    let out = ops.cpu_attention([rows, heads(k), heads(v)], visible, scene.scale(), None);
    ops.output(lists);
    ops.output(out);
    ops.expand(out);
    backend.allocate(&ops).expect("memory");
    let read = |t, n: usize| read_bytes(t, 0, 4 * n).as_chunks().0.to_vec();
    // Twice: what the threads count work by is left as it was.
    let [first, second] = [0; 2].map(|_| {
        backend.compute(&ops).expect("a result");
        backend.synchronize();
        let lists: Vec<i32> = read(lists, lists.n_elements()).into_iter().map(i32::from_le_bytes).collect();
        let out: Vec<f32> = read(out, out.n_elements()).into_iter().map(f32::from_le_bytes).collect();
        (lists, out)
    });
    assert_eq!(first.1, second.1);
    first
}

#[test]
fn blocks_that_make_up_a_share_are_read() {
    let mut random = Prng::named(1, "sparse_attention");
    for scene in scenes(&mut random, &[64, 10]) {
        for (share, naive) in [
            (BlockShare::Mass(0.5), Share::Mass(0.5)),
            (BlockShare::Mass(0.9), Share::Mass(f64::from(0.9f32))),
            (BlockShare::Density(0.4), Share::Density(f64::from(0.4f32))),
        ] {
            let (lists, out) = computed(&scene, share, 2);
            let (n_read, n_all) = scene.check(&lists, naive, 1e-4);
            println!(
                "d {}, {} queries behind {}: {n_read} of {n_all} blocks at {naive:?}",
                scene.d, scene.n_q, scene.first
            );
            let expected = scene.attended(&lists);
            let worst = out.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
            assert!(worst < 1e-5, "{worst:e}");
        }
    }
}

/// A part is read, not nearly everything, where a part is enough.
#[test]
fn few_blocks_are_read_where_few_matter() {
    let mut random = Prng::named(2, "sparse_attention");
    let mut scene = Scene::random(&mut random, [2, 1, 64], 512, 3584, usize::MAX);
    // What every query looks for is in one block.
    for x in &mut scene.q {
        *x = 1.0;
    }
    scene.k[17 * 128 * 64..18 * 128 * 64].fill(1.0);
    let (lists, _) = computed(&scene, BlockShare::Mass(0.9), 2);
    for list in lists.chunks(1 + 32) {
        assert!(list[0] == 5 && list[1..=5].contains(&17), "{:?}", &list[..=list[0] as usize]);
    }
}
