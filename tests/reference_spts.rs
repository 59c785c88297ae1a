//! The reference's own invariants: what SPTS must and must not change, whatever the weights are.

mod reference;
mod support;

use reference::{
    Chosen, Follow, Kind, LayerBudget, Layout, Matrix, Model, Pool, Proxy, SptsPlan, pool_scores, settle, top,
};
use support::tiny::{NAMES, Tiny};

const N: usize = 40;

fn model(name: &str) -> (Model, Vec<u32>) {
    let tiny = Tiny::named(name);
    (Model::from_file(&tiny.build(), None), tiny.prompt(N))
}

/// Layer 0 dense, layer 1 skips, layer 2 (the next one with attention) skips harder and prunes, dense after that.
fn staged(model: &Model) -> SptsPlan {
    let recurrent = model.layers[2].delta.is_some();
    let mut layers = vec![
        LayerBudget::dense(N),
        LayerBudget { candidates: N, active_attn: 20, active_ffn: 18, prune_to: None },
        LayerBudget { candidates: N, active_attn: 16, active_ffn: 12, prune_to: Some(10) },
    ];
    if recurrent {
        layers.insert(2, LayerBudget { candidates: N, active_attn: N, active_ffn: 15, prune_to: None });
    }
    layers.resize(model.layers.len(), LayerBudget::dense(10));
    SptsPlan::new(layers)
}

fn furthest(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn decoding_continues_a_dense_prefill() {
    for name in NAMES {
        let (model, tokens) = model(name);
        let whole = model.forward(&tokens, None);
        let mut part = model.forward(&tokens[..N - 5], None);
        for (i, token) in tokens.iter().enumerate().skip(N - 5) {
            let logits = model.decode(&mut part.state, *token);
            assert_eq!(logits, model.head(&whole.hidden[i]), "{name}, token {i}");
        }
        assert_eq!(part.kv_lengths(), whole.kv_lengths());
    }
}

#[test]
fn a_plan_that_skips_nothing_is_dense() {
    for name in NAMES {
        let (model, tokens) = model(name);
        let dense = model.forward(&tokens, None);
        let planned = model.forward(&tokens, Some(&SptsPlan::new(vec![LayerBudget::dense(N); model.layers.len()])));
        assert_eq!(planned.logits, dense.logits, "{name}");
        assert_eq!(planned.layers, dense.layers, "{name}");
    }
}

#[test]
fn sets_follow_the_budgets() {
    for name in NAMES {
        let (model, tokens) = model(name);
        let mut plan = staged(&model);
        (plan.probe_queries, plan.pool) = (4, Pool::Max(3));
        let out = model.forward(&tokens, Some(&plan));
        for (il, (trace, budget)) in out.layers.iter().zip(&plan.layers).enumerate() {
            let local = model.layers[il].kind() == Kind::Local;
            let expect = |m: usize| if local { trace.candidates.len() } else { m.min(trace.candidates.len()) };
            assert_eq!(trace.candidates.len(), budget.candidates, "{name} {il}");
            assert_eq!(trace.active_attn.len(), expect(budget.active_attn), "{name} {il}");
            assert_eq!(trace.active_ffn.len(), expect(budget.active_ffn), "{name} {il}");
            for set in [&trace.active_attn, &trace.active_ffn, &trace.kept] {
                assert!(set.is_sorted_by(|a, b| a < b), "{name} {il}");
                assert!(set.iter().all(|t| trace.candidates.contains(t)), "{name} {il}");
                assert!(set.ends_with(&[N - 4, N - 3, N - 2, N - 1]), "{name} {il}");
            }
            // Not every layer has a cache.
            let cached = if model.layers[il].has_cache(il) { trace.active_attn.as_slice() } else { &[] };
            assert_eq!(out.state.cache[il].positions, cached, "{name} {il}");
        }
        assert_eq!(out.positions.len(), 10);
        let dense = model.forward(&tokens, None);
        let difference = furthest(&out.logits, &dense.logits);
        assert!(difference > 1e-3, "{name}: the plan changed nothing ({difference})");
    }
}

#[test]
fn a_skipped_token_is_left_alone() {
    let (model, tokens) = model("llama");
    let last = model.layers.len() - 1;
    let mut layers = vec![LayerBudget::dense(N); last];
    layers.push(LayerBudget { candidates: N, active_attn: 7, active_ffn: 9, prune_to: None });
    let out = model.forward(&tokens, Some(&SptsPlan::new(layers)));
    let mut shallow = model.clone();
    shallow.layers.truncate(last);
    let before = shallow.forward(&tokens, None);
    let trace = &out.layers[last];
    for t in 0..N {
        let active = trace.active_attn.contains(&t) || trace.active_ffn.contains(&t);
        assert_eq!(out.hidden[t] != before.hidden[t], active, "token {t}");
    }
}

#[test]
fn scores_of_one_query_are_a_distribution() {
    let (model, tokens) = model("qwen2");
    let out = model.forward(&tokens, Some(&staged(&model)));
    let scores = out.layers[1].scores.as_ref().unwrap();
    assert!((scores.iter().sum::<f32>() - 1.0).abs() < 1e-5);
    let spread = scores.iter().copied().fold(0.0, f32::max) * N as f32;
    assert!(spread > 2.0, "scores are nearly flat: the largest is {spread} times the mean");
}

#[test]
fn decoding_sees_uneven_caches() {
    let (model, tokens) = model("llama");
    let mut out = model.forward(&tokens, Some(&staged(&model)));
    assert_eq!(out.kv_lengths(), [40, 20, 16, 10, 10]);
    let first = model.decode(&mut out.state, 7);
    assert_eq!(out.kv_lengths(), [41, 21, 17, 11, 11]);
    assert_eq!(out.state.cache[3].positions.last(), Some(&N));
    let mut dense = model.forward(&tokens, None);
    assert!(furthest(&first, &model.decode(&mut dense.state, 7)) > 1e-3);
}

#[test]
fn a_proxy_of_full_rank_is_the_ffn() {
    let (model, tokens) = model("llama");
    let layer = &model.layers[1];
    let (d, f) = (model.n_embd, layer.ffns[0].0.weight.n_out);
    let mut identities = Matrix { n_in: d, n_out: 2 * d, data: vec![0.0; 2 * d * d] };
    (0..2 * d).for_each(|i| identities.data[i * d + i % d] = 1.0);
    let proxy = Proxy {
        u_gu: identities,
        v_gate: layer.ffns[0].0.weight.clone(),
        v_up: layer.ffns[0].1.weight.clone(),
        v_down: layer.ffns[0].2.weight.clone(),
        f16_inputs: false,
    };
    assert_eq!(proxy.v_down.n_in, f);
    let mut plan = staged(&model);
    let mut proxies = vec![None; model.layers.len()];
    proxies[1] = Some(proxy);
    plan.proxies = Some(proxies);
    let out = model.forward(&tokens, Some(&plan));
    let trace = &out.layers[1];
    let (c, s) = (trace.proxy_norms.as_ref().unwrap(), trace.scores.as_ref().unwrap());
    let product: Vec<f32> = c.iter().zip(s).map(|(c, s)| c * s).collect();
    assert_eq!(trace.ffn_scores.as_ref().unwrap(), &product);
    assert_eq!(trace.active_ffn, top(&product, 18, 1));

    // The FFN of a token active in both modules, as the difference it made to the residual stream.
    let mut attention_only = model.clone();
    attention_only.layers.truncate(2);
    attention_only.layers[1].ffns[0].2.weight.data.fill(0.0);
    let mut with_ffn = model.clone();
    with_ffn.layers.truncate(2);
    plan.layers.truncate(2);
    let before = attention_only.forward(&tokens, Some(&SptsPlan { proxies: None, ..plan.clone() }));
    let after = with_ffn.forward(&tokens, Some(&plan));
    for t in &trace.active_ffn {
        let y: Vec<f32> = after.hidden[*t].iter().zip(&before.hidden[*t]).map(|(a, b)| a - b).collect();
        let norm = y.iter().map(|y| y * y).sum::<f32>().sqrt();
        assert!((norm - c[*t]).abs() < 1e-4 * norm.max(1.0), "token {t}: {norm} and {}", c[*t]);
    }
}

#[test]
fn selection_breaks_ties_by_index_and_keeps_the_last() {
    assert_eq!(top(&[1.0, 3.0, 2.0, 3.0, 0.0], 3, 1), [1, 3, 4]);
    assert_eq!(top(&[1.0, 1.0, 1.0, 1.0], 2, 1), [0, 3]);
    assert_eq!(top(&[1.0, 5.0, 0.0, 9.0], 2, 1), [1, 3]);
    assert_eq!(top(&[4.0, 5.0, 0.0, 0.0], 3, 2), [1, 2, 3]);
    assert_eq!(top(&[4.0, 5.0, 0.0], 2, 3), [1, 2]);
    assert_eq!(top(&[4.0, 5.0], 7, 1), [0, 1]);
}

/// The paper's table: LLaMA at 32K keeps 41.4 % of the cache, as its authors report (16 to 6.63 GB).
#[test]
fn a_layout_gives_the_papers_budgets() {
    let k = 1024;
    let stages = vec![(13, 9 * k, k), (18, 7 * k, k), (23, 4 * k, k), (28, 2 * k, k)];
    let keeping = vec![];
    let layout = Layout {
        skip_from: 10,
        stages,
        ramp: 1.0,
        keeping,
        queries: 1,
        sinks: 0,
        recent: 0,
        skip_attn: true,
        skip_ffn: true,
        prune: true,
    };
    let layers = layout.budgets(32, 32 * k, |_| Kind::Full);
    let entries: usize = layers.iter().map(|l| l.active_attn).sum();
    assert_eq!(entries, (10 * 32 + 4 * 9 + 5 * 7 + 5 * 4 + 5 * 2 + 3) * k);
    assert_eq!(layers[13].prune_to, Some(8 * k));
    assert_eq!(layers[31], LayerBudget::dense(k));
    let late = Layout { keeping: vec![0, 1], ..layout.clone() }.budgets(32, 32 * k, |_| Kind::Full);
    assert_eq!((late[13].prune_to, late[18].prune_to, late[23].prune_to), (None, None, Some(3 * k)));
    assert_eq!((late[22].candidates, late[22].active_attn), (32 * k, 4 * k));
    // Layers with a window keep all candidates, and prune in the layer before.
    let local = Layout { skip_from: 1, stages: vec![(3, 8, 2)], ..layout }
        .budgets(5, 20, |l| if l == 3 { Kind::Local } else { Kind::Full });
    assert_eq!(local[2], LayerBudget { candidates: 20, active_attn: 8, active_ffn: 8, prune_to: Some(6) });
    assert_eq!(local[3], LayerBudget::dense(6));
}

#[test]
fn another_choice_is_followed_where_scores_are_tied() {
    let scores = [4.0, 1.0, 1.000001, 0.5, 0.1];
    assert_eq!(settle("", &scores, 3, 1, &[0, 2, 4], 1e-5), [0, 2, 4]);
    assert_eq!(settle("", &scores, 3, 1, &[0, 1, 4], 1e-5), [0, 1, 4]);
    for wrong in [&[0, 1, 4][..], &[0, 3, 4], &[1, 2, 4], &[0, 2], &[0, 2, 3], &[2, 0, 4]] {
        let tie = if wrong == [0, 1, 4] { 1e-7 } else { 1e-5 };
        assert!(std::panic::catch_unwind(|| settle("", &scores, 3, 1, wrong, tie)).is_err(), "{wrong:?}");
    }
    let (model, tokens) = model("llama");
    let mut plan = staged(&model);
    let free = model.forward(&tokens, Some(&plan));
    let chosen = |l: &reference::LayerTrace| Chosen {
        candidates: l.candidates.clone(),
        active_attn: l.active_attn.clone(),
        active_ffn: l.active_ffn.clone(),
    };
    plan.follow = Some(Follow { layers: free.layers.iter().map(chosen).collect(), tie: 0.0 });
    assert_eq!(model.forward(&tokens, Some(&plan)).logits, free.logits);
}

#[test]
fn pooling_at_the_ends_counts_what_is_there() {
    let scores = [4.0, 1.0, 0.0, 2.0];
    assert_eq!(pool_scores(&scores, Pool::None), scores);
    assert_eq!(pool_scores(&scores, Pool::Max(3)), [4.0, 4.0, 2.0, 2.0]);
    assert_eq!(pool_scores(&scores, Pool::Avg(3)), [2.5, 5.0 / 3.0, 1.0, 1.0]);
    assert_eq!(pool_scores(&scores, Pool::Avg(9)), [1.75; 4]);
    assert_eq!(pool_scores(&scores, Pool::Chunks(3)), [4.0, 4.0, 4.0, 2.0]);
    assert_eq!(pool_scores(&scores, Pool::Chunks(5)), [4.0; 4]);
}

/// The fixtures test a feature only if the logits depend on it.
#[test]
fn every_feature_of_the_tiny_models_matters() {
    let changed = |name: &str, change: &dyn Fn(&mut Model)| {
        let (model, tokens) = model(name);
        let mut other = model.clone();
        change(&mut other);
        let difference = furthest(&model.forward(&tokens, None).logits, &other.forward(&tokens, None).logits);
        assert!(difference > 0.02, "{name}: {difference}");
    };
    let each = |change: fn(&mut reference::Layer)| move |m: &mut Model| m.layers.iter_mut().for_each(change);
    changed("llama-rope-freqs", &each(|l| l.rope.factors = None));
    changed("llama-linear", &each(|l| l.rope.freq_scale = 1.0));
    changed("llama-yarn", &each(|l| l.rope.ext_factor = 0.0));
    changed("llama-yarn", &each(|l| l.rope.attn_factor *= 1.1));
    changed("llama", &each(|l| l.rope.interleaved = false));
    changed("qwen2", &each(|l| l.q.bias = None));
    changed("qwen2", &each(|l| l.v.bias = None));
    changed("qwen3", &each(|l| l.q_norm = None));
    changed("qwen3", &each(|l| l.k_norm = None));
    changed("gemma3", &each(|l| l.window = None));
    changed("gemma3", &each(|l| l.rope.base = 10000.0));
    changed("gemma3", &each(|l| l.attn_post_norm = None));
    changed("gemma3", &each(|l| l.ffn_post_norm = None));
    changed("gemma3", &|m: &mut Model| m.embd_scale = 1.0);
    changed("gemma3", &|m: &mut Model| m.gelu_gate = false);
    changed("qwen35", &each(|l| l.gate = None));
    let delta = |change: fn(&mut reference::DeltaNet)| {
        move |m: &mut Model| m.layers.iter_mut().filter_map(|l| l.delta.as_mut()).for_each(change)
    };
    changed("qwen35", &delta(|d| d.dt.fill(0.0)));
    changed("qwen35", &delta(|d| d.a.fill(0.0)));
    changed("qwen35", &delta(|d| d.beta.weight.data.fill(0.0)));
    changed("qwen35", &delta(|d| d.norm.fill(1.0)));
    // Kernels of the token's own channel alone.
    changed(
        "qwen35",
        &delta(|d| d.conv.data.iter_mut().enumerate().filter(|(i, _)| i % 4 < 3).for_each(|(_, w)| *w = 0.0)),
    );
    changed("qwen35", &delta(|d| d.alpha.weight.data.fill(0.0)));
    changed("qwen35", &delta(|d| d.z.weight.data.fill(0.0)));
    changed("qwen35", &each(|l| l.q_norm = None));
    changed("qwen35", &each(|l| l.k_norm = None));
    changed("qwen35", &each(|l| l.rope.n_rot = 4));
    changed("qwen35moe", &each(|l| l.shared = None));
    changed("qwen35moe", &each(|l| l.ffns.iter_mut().for_each(|(gate, up, _)| std::mem::swap(gate, up))));
    changed("qwen3next", &delta(|d| d.grouped = false));
    changed("phi3-longrope", &each(|l| l.rope.factors = None));
    changed("phi3-longrope", &each(|l| l.rope.n_rot = 4));
    let router = |change: fn(&mut (reference::Linear, usize))| {
        move |m: &mut Model| m.layers.iter_mut().filter_map(|l| l.router.as_mut()).for_each(change)
    };
    changed("qwen3moe", &router(|(_, n_used)| *n_used = 1));
    changed("qwen3moe", &router(|(weights, _)| weights.weight.data.fill(0.0)));
    changed("gpt-oss", &router(|(weights, _)| weights.bias = None));
    changed("gpt-oss", &each(|l| l.sinks = None));
    changed("gpt-oss", &each(|l| l.window = None));
    changed("gpt-oss", &each(|l| l.attn_output.bias = None));
    changed("gpt-oss", &each(|l| l.ffns.iter_mut().for_each(|(gate, ..)| gate.bias = None)));
    changed("gpt-oss", &each(|l| l.ffns.iter_mut().for_each(|(_, up, _)| up.bias = None)));
    changed("gpt-oss", &each(|l| l.ffns.iter_mut().for_each(|(.., down)| down.bias = None)));
    changed("gpt-oss", &each(|l| l.rope.ext_factor = 0.0));
    changed("gpt-oss", &|m: &mut Model| m.gate_limit = Some(f32::INFINITY));
    changed("gpt-oss", &|m: &mut Model| m.gate_limit = None);
    changed("olmo2", &each(|l| l.q_norm = None));
    changed("olmo2", &each(|l| l.k_norm = None));
    changed("olmo2", &each(|l| l.attn_post_norm = None));
    changed("olmo2", &each(|l| l.ffn_post_norm = None));
    changed("olmo3", &each(|l| l.window = None));
    // Frequencies of windows are not stretched.
    changed("olmo3", &each(|l| (l.rope.freq_scale, l.rope.ext_factor) = (0.25, 1.0)));
    changed("glm4", &each(|l| l.rope.interleaved = false));
    changed("glm4", &each(|l| l.rope.n_rot = 12));
    changed("glm4", &each(|l| l.attn_post_norm = None));
    changed("glm4", &each(|l| l.ffn_post_norm = None));
    changed("glm4", &each(|l| l.q.bias = None));
    changed("gemma4", &each(|l| l.v_norm = false));
    changed("gemma4", &each(|l| l.out_scale = 1.0));
    changed("gemma4", &each(|l| l.window = None));
    changed("gemma4", &each(|l| l.rope.factors = None));
    changed("gemma4", &each(|l| l.rope.base = 10000.0));
    changed("gemma4", &|m: &mut Model| m.final_softcap = None);
    changed("gemma4", &|m: &mut Model| m.attn_scale = 0.3);
    changed("gemma4-small", &each(|l| l.features = None));
    changed("gemma4-small", &each(|l| l.features.iter_mut().for_each(|f| f.rows.data.fill(0.0))));
    changed("gemma4-small", &each(|l| l.features.iter_mut().for_each(|f| f.from_embd.weight.data.fill(0.0))));
    // Of the layer before.
    changed("gemma4-small", &|m: &mut Model| m.layers[8].cache = 3);
    changed("gemma4-small", &|m: &mut Model| m.layers[7].cache = 2);
    changed("gemma4-moe", &each(|l| l.expert_scales = None));
    let beside = |change: fn(&mut reference::Beside)| {
        move |m: &mut Model| m.layers.iter_mut().filter_map(|l| l.beside.as_mut()).for_each(change)
    };
    changed("gemma4-moe", &beside(|b| b.router_norm.fill(1.0)));
    changed("gemma4-moe", &beside(|b| b.post_norm.fill(0.5)));
    changed("gemma4-moe", &beside(|b| b.experts_norm.fill(1.0)));
    changed("gemma4-moe", &beside(|b| b.experts_post_norm.fill(0.5)));
}
