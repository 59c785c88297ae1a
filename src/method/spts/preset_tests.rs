//! Presets and the rule reproduce the paper's tables.

use super::*;

fn llama() -> Shape {
    Shape::named("llama-3.1-8b").unwrap()
}

fn qwen() -> Shape {
    Shape::named("qwen2.5-7b").unwrap()
}

fn coder() -> Shape {
    Shape::named("qwen2.5-1.5b").unwrap()
}

fn lasts(s: &Schedule) -> Vec<usize> {
    s.stages.iter().map(|s| s.last_layer).collect()
}

#[test]
fn the_papers_models_are_recognised() {
    assert_eq!(preset_for(&llama()), Some("llama-3.1-8b"));
    assert_eq!(preset_for(&qwen()), Some("qwen2.5-7b"));
    assert_eq!(preset_for(&Shape { arch: "pangu-embedded".into(), n_layer: 26, ..coder() }), Some("openpangu-1b"));
    assert_eq!(preset_for(&coder()), None);
    let s = Schedule::default_for(&qwen()).unwrap();
    assert_eq!((s.skip_from, lasts(&s), s.proxy), (9, vec![12, 16, 20, 24], ProxySize { d_low: 1024, rank: 256 }));
    assert_eq!(s.stages[0].budget, Budget::Tokens(13 * 1024));
    assert_eq!(s.stages[3].cut, Some(Budget::Tokens(2048)));
}

#[test]
fn the_rule_gives_llamas_table() {
    let preset = Schedule::default_for(&llama()).unwrap();
    let rule = Schedule::rule_for(&llama()).unwrap();
    assert_eq!(lasts(&rule), [13, 18, 23, 28]);
    assert_eq!(Schedule { name: preset.name.clone(), ..rule }, preset);
}

#[test]
fn paper_differs_from_its_table_or_the_rule_in_probe_proxies_and_ramp_alone() {
    for (shape, name) in [(coder(), "rule"), (llama(), "llama-3.1-8b")] {
        let paper = Schedule::preset("paper", &shape).unwrap().unwrap();
        let other = Schedule::preset(name, &shape).unwrap().unwrap();
        assert_eq!((paper.probe, other.probe), (Probe::PAPER, Probe::SPANS));
        assert_eq!((paper.use_proxy, other.use_proxy), (true, false));
        assert_eq!(Schedule { name: name.into(), probe: Probe::SPANS, use_proxy: false, ramp: RAMP, ..paper }, other);
    }
}

/// The presets are those that docs/quality.md reports on.
#[test]
fn early_is_what_was_measured() {
    let k = |n: usize| Budget::Tokens(n * 1024);
    let stages = |s: &Schedule| s.stages.iter().map(|s| (s.last_layer, s.budget, s.cut)).collect::<Vec<_>>();
    let early = Schedule::early_for(&coder()).unwrap();
    assert_eq!((early.skip_from, early.probe, early.ramp, early.use_proxy), (4, Probe::SPANS, 1.5, false));
    let late =
        [(12, k(10), Some(k(2))), (16, k(8), Some(k(2))), (20, k(5), Some(k(2))), (24, k(3), Some(k(1)))].to_vec();
    assert_eq!(stages(&early), [vec![(8, k(20), None)], late.clone()].concat());
    let fast = Schedule::fast_for(&coder()).unwrap();
    assert_eq!((fast.skip_from, stages(&fast)), (6, late));
    let small = Schedule::early_for(&Shape::named("qwen2.5-0.5b").unwrap()).unwrap();
    assert_eq!((small.skip_from, lasts(&small)), (3, vec![7, 10, 13, 17, 21]));
}

#[test]
fn the_default_goes_by_table_and_width() {
    let default = |shape: &Shape| Schedule::default_for(shape).unwrap();
    let expected = Schedule::early_for(&coder()).unwrap().scaled(1.1).unwrap();
    assert_eq!(default(&coder()), Schedule { name: "default".into(), ..expected });
    let other = Shape { arch: "other".into(), ..llama() };
    assert_eq!(default(&other), Schedule::rule_for(&other).unwrap());
    for name in ["qwen2.5-0.5b", "smollm2-135m", "gemma-3-270m"] {
        let shape = Shape::named(name).unwrap();
        assert_eq!(Schedule::left_dense(&shape), Some(LeftDense::Narrow));
        let schedule = default(&shape);
        for n in [1, 1000, 1 << 17, 1 << 24] {
            let layers = shape.n_layer;
            let budgets = schedule.resolve(layers, n, &|l| shape.layer_kind(l), Default::default()).unwrap();
            assert!(budgets.is_dense(), "{name}: {n} tokens");
        }
    }
    for shape in [coder(), llama(), qwen(), other] {
        assert_eq!(Schedule::left_dense(&shape), None);
    }
    // Nobody has measured what these lose.
    for name in ["qwen3-30b-a3b", "gpt-oss-20b", "qwen3.6-27b", "qwen3.6-35b-a3b"] {
        let shape = Shape::named(name).unwrap();
        assert_eq!(Schedule::left_dense(&shape), Some(LeftDense::Unmeasured), "{name}");
        assert_eq!(default(&shape).name, "dense", "{name}");
    }
}

#[test]
fn every_model_size_has_a_valid_rule() {
    for n_layer in 1..200 {
        for (n_embd, n_ff) in [(8, 16), (576, 1536), (896, 4864), (2048, 8192), (4096, 14336), (8192, 28672)] {
            let shape = Shape { arch: "x".into(), n_layer, n_embd, n_ff, ..llama() };
            for schedule in [Schedule::rule_for, Schedule::early_for, Schedule::fast_for, Schedule::default_for] {
                schedule(&shape).unwrap().validate_for(n_layer).unwrap();
            }
            Schedule::fractional(&shape, FRACTIONS.0, FRACTIONS.1).unwrap().validate_for(n_layer).unwrap();
        }
    }
    assert_eq!(Schedule::rule_for(&Shape { n_layer: 0, ..coder() }), Err(ScheduleError::NoLayers("rule".into())));
}

#[test]
fn every_name_is_known() {
    for name in PRESET_NAMES {
        Schedule::preset(name, &llama()).unwrap().unwrap().validate().unwrap();
    }
    assert_eq!(Schedule::preset("llama", &llama()), Ok(None));
}

#[test]
fn bad_fractions_are_refused() {
    for (budgets, cut) in [
        ([1.5, 0.2, 0.1, 0.05], 0.03),
        ([0.1, 0.2, 0.1, 0.05], 0.03),
        ([0.4, 0.2, 0.1, 0.05], 0.05),
        ([f64::NAN; 4], 0.0),
    ] {
        Schedule::fractional(&coder(), budgets, cut).unwrap_err();
    }
}
