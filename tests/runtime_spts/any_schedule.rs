//! Shapes, prompts and schedules at random.

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use spts::method::spts::schedule::{Join, Pool, Selection};

use crate::reference::{self, Layout};
use crate::runtime::proxies::SidecarFile;
use crate::runtime::skipping::{Run, run, two_globals};
use crate::runtime::{Pair, assert_close, logits, prefill};
use crate::support::tiny::{NAMES, Tiny};

/// First layer that skips, stages, probing queries and switches of a model of so many layers, at random.
fn any_layout(n_layer: usize) -> impl Strategy<Value = Layout> {
    let stages = (0..n_layer).prop_flat_map(move |skip_from| {
        let ends = prop::collection::btree_set(skip_from..n_layer, 1..4);
        (Just(skip_from), ends, prop::collection::vec((1usize..70, 0usize..70), 4))
    });
    (stages, 1usize..9, 1u8..8).prop_map(|((skip_from, ends, numbers), queries, switches)| {
        let mut budgets: Vec<usize> = numbers.iter().map(|n| n.0).collect();
        budgets.sort_unstable_by(|a, b| b.cmp(a));
        let stage = |((end, budget), (_, cut)): ((usize, usize), &(usize, usize))| (end, budget, cut % budget);
        let stages: Vec<_> = ends.into_iter().zip(budgets).zip(&numbers).map(stage).collect();
        Layout {
            queries,
            skip_attn: switches & 1 != 0,
            skip_ffn: switches & 2 != 0,
            prune: switches & 4 != 0,
            ..run(skip_from, &stages).layout
        }
    })
}

fn any_selection() -> impl Strategy<Value = Selection> {
    prop_oneof![4 => Just(Selection::Probe), 1 => any::<u64>().prop_map(|seed| Selection::Random { seed })]
}

/// Channels and rank of the proxies, if there are any.
fn any_proxy(tiny: &Tiny) -> impl Strategy<Value = Option<(usize, usize)>> + use<> {
    let n_embd = tiny.n_embd;
    prop::option::of((1..=tiny.n_ff).prop_flat_map(move |d_low| (Just(d_low), 1..=d_low.min(n_embd))))
}

/// A shape, a prompt length, stages and how they are probed, at random.
fn any_run() -> impl Strategy<Value = (Tiny, usize, Run, Option<(usize, usize)>)> {
    let names = vec!["llama", "qwen2", "qwen3", "gemma3", "phi3", "olmo2", "glm4", "gpt-oss", "qwen35"];
    let arch = prop::sample::select(names);
    let shape = (arch, 2usize..9, 3usize..40, 1usize..5, 1usize..4, 1usize..10, 2usize..45, any::<u16>());
    let tiny = shape.prop_map(|(arch, n_layer, n_embd, n_head_kv, group, half_head, n_ff, seed)| {
        let named = Tiny::named(arch);
        Tiny {
            n_layer,
            n_embd: n_embd.max(n_head_kv * group),
            n_head: n_head_kv * group,
            n_head_kv,
            head_dim: 2 * half_head,
            // Of GLM 4's heads and Qwen 3.5's a part is rotated.
            n_rot: if named.n_rot < named.head_dim { 2 * half_head.div_ceil(2) } else { 2 * half_head },
            n_ff,
            window: named.window.map(|_| 1 + u32::from(seed) % 40),
            seed: seed.into(),
            ..named
        }
    });
    tiny.prop_flat_map(|tiny| {
        let pool = prop_oneof![
            Just(Pool::None),
            (0usize..8).prop_map(|r| Pool::Max(2 * r + 1)),
            (0usize..8).prop_map(|r| Pool::Avg(2 * r + 1)),
        ];
        let run = (any_layout(tiny.n_layer), pool, any::<bool>(), any_selection(), 1usize..90).prop_map(
            |(layout, pool, use_proxy, selection, n_ubatch)| Run {
                layout,
                pool,
                use_proxy,
                selection,
                n_ubatch,
                ..run(0, &[])
            },
        );
        let proxy = any_proxy(&tiny);
        (Just(tiny), 1usize..80, run, proxy)
    })
}

/// One of the named models, and a schedule that uses whatever there is, at random.
fn any_options() -> impl Strategy<Value = (Tiny, usize, Run, Option<(usize, usize)>)> {
    let tiny = prop_oneof![5 => prop::sample::select(NAMES.to_vec()).prop_map(Tiny::named), 1 => Just(two_globals())];
    tiny.prop_flat_map(|tiny| {
        let ramp = prop_oneof![2 => Just(1.0), 1 => 1.0..4.0f64];
        let held = prop_oneof![2 => Just((0, 0)), 1 => (0usize..6, 0usize..14)];
        let layout = (any_layout(tiny.n_layer), any::<[bool; 3]>(), ramp, held);
        let layout = layout.prop_map(|(layout, keeping, ramp, (sinks, recent))| Layout {
            keeping: (0..layout.stages.len()).filter(|&number| keeping[number]).collect(),
            ramp,
            sinks,
            recent,
            ..layout
        });
        let pool = prop_oneof![
            1 => Just(Pool::None),
            2 => (0usize..8).prop_map(|r| Pool::Max(2 * r + 1)),
            1 => (0usize..8).prop_map(|r| Pool::Avg(2 * r + 1)),
            2 => (1usize..100).prop_map(Pool::Chunks),
        ];
        let carry = prop_oneof![2 => Just(0.0), 1 => Just(1.0), 2 => 0.0..1.0f32];
        let join = prop::sample::select(vec![Join::Mean, Join::Max]);
        let probe = (join, pool, carry, any::<bool>(), any_selection());
        let run =
            (layout, probe, 1usize..90).prop_map(|(layout, (join, pool, carry, use_proxy, selection), n_ubatch)| Run {
                layout,
                join,
                pool,
                carry,
                use_proxy,
                selection,
                n_ubatch,
                ..run(0, &[])
            });
        let proxy = any_proxy(&tiny);
        (Just(tiny), 1usize..80, run, proxy)
    })
}

fn seed() -> RngSeed {
    RngSeed::Fixed(std::env::var("PROPTEST_RNG_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(20261125))
}

/// What the reference computes, or the dense model where nothing is to be skipped.
fn check(tiny: Tiny, n: usize, mut run: Run, proxy: Option<(usize, usize)>) {
    let pair = Pair::new(tiny);
    let tokens = pair.tiny.prompt(n);
    run.use_proxy &= proxy.is_some();
    let proxies = proxy.map(|(d_low, rank)| SidecarFile::for_model(&pair, d_low, rank).open());
    let plan = run.plan(&pair, n, None);
    let layout = &run.layout;
    let first_budget = layout.stages[0].1.max(layout.sinks + layout.queries.max(layout.recent));
    let dense = plan.layers.iter().all(|l| *l == reference::LayerBudget::dense(n));
    if n <= first_budget || dense {
        let mut session = pair.session(|o| run.apply(o, proxies.as_ref()));
        prefill(&mut session, &tokens).expect("a prefill");
        let d = logits(pair.session(|o| o.n_ubatch = Some(run.n_ubatch)), &tokens);
        assert_eq!(session.logits(), &d[..]);
        let expected = pair.reference.forward(&tokens, None).logits;
        assert_close(session.logits(), &expected, pair.tolerance_of_rounding(&tokens), "dense");
    } else {
        run.compare_with_decoding(&pair, &tokens, proxies.as_ref());
    }
}

proptest! {
    // The same shapes every time: what fails for one person has to fail for all. PROPTEST_RNG_SEED tries others.
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, rng_seed: seed(), ..ProptestConfig::default() })]

    /// Whatever the shape and the stages.
    #[test]
    fn any_shape_and_schedule((tiny, n, run, proxy) in any_run()) {
        check(tiny, n, run, proxy);
    }

    /// Whatever else a schedule says.
    #[test]
    fn any_options_of_a_schedule((tiny, n, run, proxy) in any_options()) {
        check(tiny, n, run, proxy);
    }
}
