//! The plan reproduces published and measured counts.

use super::*;
use crate::method::Dense;
use crate::method::spts::schedule::{Probe, ProxySize, Stage};

fn plan(shape: &str, n: usize, edit: impl Fn(&mut Schedule), forced: bool) -> Plan {
    let reach = if forced { Reach::EveryLayer } else { Reach::AboveFirstBudget };
    let shape = Shape::named(shape).unwrap();
    let mut schedule = Schedule::paper_for(&shape).unwrap();
    edit(&mut schedule);
    Plan::new(&shape, &schedule, n, &PlanOptions { reach, ..PlanOptions::default() }).unwrap()
}

/// Every figure of the counted floor, as printed: dense linear and attention, SPTS linear, attention and probes, ratio, cache.
#[test]
fn llama_8b_floor() {
    for (n, expected) in [
        (8, "114 + 18, 81 + 11 + 0.4, 1.44, 70 %"),
        (16, "229 + 70, 118 + 28 + 0.6, 2.04, 52 %"),
        (32, "457 + 281, 190 + 94 + 0.8, 2.59, 41 %"),
        (64, "915 + 1126, 334 + 358 + 1.3, 2.94, 36 %"),
        (128, "1830 + 4504, 622 + 1413 + 2.3, 3.11, 34 %"),
    ] {
        // 8K is below the first budget: its stages are counted only when forced. Above it that makes no difference.
        let p = plan("llama-3.1-8b", n * 1024, |_| (), true);
        let (d, s) = (p.dense, p.spts);
        let [dl, da, sl, sa, sp] = [d.linear, d.attention, s.linear, s.attention, s.probes].map(|x| x / 1e12);
        let (ratio, kept) = (p.predicted_speedup, 100. * p.cache_kept);
        assert_eq!(format!("{dl:.0} + {da:.0}, {sl:.0} + {sa:.0} + {sp:.1}, {ratio:.2}, {kept:.0} %"), expected);
        if n > 9 {
            let unforced = plan("llama-3.1-8b", n * 1024, |_| (), false);
            assert_eq!((unforced.flops_spts, unforced.layers), (p.flops_spts, p.layers));
        }
    }
}

/// The speed-ups that the measured table of the method states for qwen2.5-coder-1.5b at 32K.
#[test]
fn qwen_1_5b_measured_table() {
    let k = |n| Budget::Tokens(n * 1024);
    let stages = |ends: [usize; 4], [a, b, c, d]: [usize; 4], cut| {
        let stage = |(last_layer, m)| Stage { last_layer, budget: k(m), cut: Some(k(cut)) };
        ends.into_iter().zip([a, b, c, d]).map(stage).collect::<Vec<_>>()
    };
    let wide = [13, 10, 7, 4];
    let p9 = |s: &mut Schedule| (s.skip_from, s.stages) = (9, stages([12, 16, 20, 24], wide, 2));
    let one_shot = |layer: usize| {
        move |s: &mut Schedule| {
            s.skip_from = layer;
            s.stages = vec![Stage { last_layer: layer, budget: Budget::Fraction(0.2), cut: Some(Budget::Tokens(0)) }];
            (s.skip_attn, s.skip_ffn) = (false, false);
        }
    };
    let speedup = |edit: &dyn Fn(&mut Schedule)| {
        // The table was counted with the paper's proxies for its own Qwen.
        let edit = |s: &mut Schedule| {
            s.proxy = ProxySize { d_low: 1024, rank: 256 };
            edit(s);
        };
        format!("{:.2}", plan("qwen2.5-1.5b", 32 * 1024, edit, false).predicted_speedup)
    };
    assert_eq!(speedup(&p9), "2.34");
    assert_eq!(speedup(&|s| (s.skip_from, s.stages) = (12, stages([14, 18, 21, 25], wide, 2))), "1.93");
    assert_eq!(speedup(&|s| (s.skip_from, s.stages) = (14, stages([16, 19, 22, 25], wide, 2))), "1.73");
    assert_eq!(
        speedup(&|s| {
            p9(s);
            (s.skip_attn, s.skip_ffn) = (false, false);
        }),
        "1.87"
    );
    assert_eq!(speedup(&one_shot(14)), "1.69");
    assert_eq!(speedup(&one_shot(12)), "1.90");
}

/// Skips from layer 7 on, prunes nothing before the middle, then down to a tenth at once.
#[test]
fn early_skipping_and_late_pruning() {
    let t = Budget::Tokens;
    let edit = |s: &mut Schedule| {
        s.skip_from = 7;
        s.stages = vec![
            Stage { last_layer: 10, budget: t(16_384), cut: None },
            Stage { last_layer: 13, budget: t(13_312), cut: Some(t(10_036)) },
        ];
        s.use_proxy = false;
    };
    let p = plan("qwen2.5-1.5b", 32 * 1024, edit, false);
    let counts = |l: usize| (p.layers[l].candidates, p.layers[l].active_attn);
    assert_eq!((counts(6), counts(7), counts(10)), ((32_768, 32_768), (32_768, 16_384), (32_768, 16_384)));
    assert_eq!((counts(11), counts(13), counts(14)), ((32_768, 13_312), (32_768, 13_312), (3276, 3276)));
    let entries = 7 * 32_768 + 4 * 16_384 + 3 * 13_312 + 14 * 3276;
    assert_eq!(p.cache_kept, f64::from(entries) / (28. * 32_768.));
    let text = p.to_string();
    assert_eq!(text.matches("then prune to").count(), 1, "{text}");
    let rows: Vec<String> = text.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    for row in ["7-10 32,768 16,384 16,384 16,384", "11-13 32,768 13,312 13,312 13,312 then prune to 3,276"] {
        assert!(rows.iter().any(|r| r == row), "{row}\n{text}");
    }
}

#[test]
fn a_dense_prompt_gains_and_costs_nothing() {
    let p = plan("llama-3.1-8b", 9 * 1024, |_| (), false);
    assert_eq!((p.predicted_speedup, p.cache_kept, p.spts), (1.0, 1.0, p.dense));
    assert_eq!(p.memory.kv, p.memory.kv_dense);
}

#[test]
fn the_papers_cache_and_the_cliff() {
    let p = plan("llama-3.1-8b", 32 * 1024, |_| (), false);
    // F16, 32K: 4 GiB for one prompt. (The paper says 16 GB, four times that; its ratio is the same.)
    assert_eq!(p.memory.kv_dense, f64::from(4u32) * f64::from(1 << 30));
    assert_eq!(p.memory.kv / p.memory.kv_dense, p.cache_kept);
    let cliff = p.cliff.unwrap();
    assert_eq!(cliff.first_budget, 9216);
    assert!((0.6..0.7).contains(&cliff.cache_kept_above) && cliff.speedup_above > 1.3);
    // Fractions move with the prompt: no step.
    let shape = Shape::named("qwen2.5-0.5b").unwrap();
    let fractions = Schedule::fractional(&shape, [0.28, 0.22, 0.125, 0.0625], 0.03).unwrap();
    assert_eq!(Plan::new(&shape, &fractions, 2048, &PlanOptions::default()).unwrap().cliff, None);
}

#[test]
fn a_ramp_takes_the_cliff_away() {
    let p = plan("llama-3.1-8b", 12 * 1024, |s| s.ramp = 2.0, false);
    let cliff = p.cliff.unwrap();
    assert_eq!((cliff.first_budget, cliff.in_full_from), (9216, 18_432));
    assert!(cliff.cache_kept_above > 0.999 && cliff.speedup_above < 1.01, "{cliff:?}");
    let text = p.to_string();
    let said = "at 9,217 100.0 % of the cache are kept (1.00x), and the schedule acts in full from 18,432 on";
    assert!(text.contains(said), "{text}");
    // A third of the way: budgets of 9, 7, 4 and 2K.
    assert_eq!([10, 14, 19, 24].map(|l| p.layers[l].active_attn), [9216, 8533, 7509, 6826]);
}

#[test]
fn json_keys_are_the_interface() {
    let p = plan("llama-3.1-8b", 32 * 1024, |_| (), false);
    let json = serde_json::to_value(&p).unwrap();
    let keys = |v: &serde_json::Value| v.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(
        keys(&json),
        ["n_tokens", "predicted_speedup", "cache_kept", "flops_dense", "flops_spts", "memory_bytes", "document_bytes", "cpu_expert_bytes", "layers"]
    );
    assert_eq!(keys(&json["layers"][10]), ["il", "candidates", "active_attn", "active_ffn", "kv"]);
    assert_eq!(
        json["layers"][10].to_string(),
        r#"{"il":10,"candidates":32768,"active_attn":9216,"active_ffn":9216,"kv":9216}"#
    );
    assert!(json["flops_dense"].is_u64() && json["memory_bytes"].is_u64());
}

#[test]
fn the_table_shows_stages_and_the_cliff() {
    let text = plan("llama-3.1-8b", 32 * 1024, |_| (), false).to_string();
    println!("{text}");
    let rows: Vec<String> = text.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    for row in [
        "0-9 32,768 32,768 32,768 32,768 dense",
        "10-13 32,768 9,216 9,216 9,216 then prune to 8,192",
        "24-28 3,072 2,048 2,048 2,048 then prune to 1,024",
        "29-31 1,024 1,024 1,024 1,024 dense",
        "predicted speed-up (ceiling) 2.59x, cache kept 41.4 %",
    ] {
        assert!(rows.iter().any(|r| r == row), "{row}\n{text}");
    }
    assert!(text.contains("up to 9,216 tokens the prompt stays dense; at 9,217"));
}

#[test]
fn sliding_windows_cost_less_and_are_not_skipped() {
    let p = plan("gemma-3-270m", 32 * 1024, |s| s.probe = Probe::SPANS, false);
    let shape = Shape::named("gemma-3-270m").unwrap();
    for (l, budget) in p.budgets.layers.iter().enumerate() {
        assert!(!shape.is_swa(l) || !budget.probe);
    }
    let mut full = shape.clone();
    full.swa = None;
    let full = Plan::new(&full, &Schedule::paper_for(&full).unwrap(), 32 * 1024, &PlanOptions::default()).unwrap();
    assert!(p.dense.attention < 0.3 * full.dense.attention);
    assert!(p.predicted_speedup > 1.0);
}

/// Fifty of sixty layers see 1,024 tokens; a prompt's keys and values lie in memory that they share while it is read.
#[test]
fn layers_with_a_window_keep_what_they_see() {
    let shape = Shape::named("gemma-4-31b").unwrap();
    let kv = |n| Plan::of_method(&shape, &Dense, n, &PlanOptions::default()).unwrap().memory.kv as usize;
    let (full, windowed) = (4 * 512 * 2 * 2, 16 * 256 * 2 * 2);
    let n = 131_072;
    assert_eq!(kv(n), 10 * n * full + 50 * (1024 + 512) * windowed + n * windowed);
    // Within a tile layers need their keys together.
    assert_eq!(kv(1_000), 1_000 * (10 * full + 50 * windowed));
}

#[test]
fn every_named_shape_has_a_plan_at_every_length() {
    for name in crate::model::named_shapes::SHAPE_NAMES {
        for n in [1, 1000, 9216, 13_312, 13_313, 1 << 20, usize::MAX] {
            let p = plan(name, n, |_| (), false);
            assert!(p.predicted_speedup >= 1.0 && p.cache_kept <= 1.0, "{name} {n}");
            let _ = p.to_string();
        }
    }
}

/// Every fourth layer of the 27B attends: 3, 7, 11 and so on.
#[test]
fn hybrids_count_recurrent_layers_by_their_own_rules() {
    let p = plan("qwen3.6-27b", 32 * 1024, |s| s.probe = Probe::SPANS, false);
    let shape = Shape::named("qwen3.6-27b").unwrap();
    // 27 billion weights, of which the embedding and the output have 2.5.
    assert!((26.5e9..27.5e9).contains(&shape.n_params()), "{}", shape.n_params());
    for (l, layer) in p.layers.iter().enumerate() {
        let recurrent = l % 4 != 3;
        assert_eq!(shape.recurrence(l).is_some(), recurrent);
        assert_eq!(layer.kv, if recurrent { 0 } else { layer.active_attn });
        assert!(!recurrent || (layer.active_attn == layer.candidates && !p.budgets.layers[l].probe));
    }
    // 16 layers of 4 heads of 256, keys and values of 2 bytes each.
    assert_eq!(p.memory.kv_dense, 2. * f64::from(32 * 1024 * 16 * 2 * 4 * 256));
    // 48 layers: 48 matrices of 128 x 128 and three rows of 10,240 channels, F32, twice.
    assert_eq!(p.memory.states, 2. * f64::from(48 * 4 * (48 * 128 * 128 + 3 * 10_240)));
    // What docs and papers say of such models: attention is little of the work at 32K, and a third at 128K.
    let share = |n: usize| {
        let p = plan("qwen3.6-27b", n, |_| (), false);
        let attention: f64 = 16. * 2. * (n as f64).powi(2) * 256. * 24.;
        attention / p.dense.total()
    };
    assert!((0.10..0.14).contains(&share(32 * 1024)), "{}", share(32 * 1024));
    assert!((0.30..0.38).contains(&share(128 * 1024)), "{}", share(128 * 1024));
    // Stages end where layers attend, and recurrent layers behind them have fewer tokens to go over.
    let pruning: Vec<usize> = (0..64).filter(|&l| p.budgets.layers[l].prune_to.is_some()).collect();
    assert!(!pruning.is_empty() && pruning.iter().all(|l| l % 4 == 3), "{pruning:?}");
    assert!(p.predicted_speedup > 1.5, "{}", p.predicted_speedup);
    let text = p.to_string();
    assert!(text.contains("16 of 64 layers attend") && text.contains("recurrent states 0.29"), "{text}");
}
