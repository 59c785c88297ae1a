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
fn paper_differs_from_default_in_probe_proxies_and_ramp_alone() {
    let paper = Schedule::preset("paper", &coder()).unwrap().unwrap();
    let default = Schedule::preset("default", &coder()).unwrap().unwrap();
    assert_eq!((paper.probe, default.probe), (Probe::PAPER, Probe::SPANS));
    assert_eq!((paper.use_proxy, default.use_proxy), (true, false));
    assert_eq!(Schedule { name: "rule".into(), probe: Probe::SPANS, use_proxy: false, ramp: RAMP, ..paper }, default);
}

#[test]
fn every_model_size_has_a_valid_rule() {
    for n_layer in 1..200 {
        for (n_embd, n_ff) in [(8, 16), (576, 1536), (896, 4864), (4096, 14336), (8192, 28672)] {
            let shape = Shape { arch: "x".into(), n_layer, n_embd, n_ff, ..llama() };
            Schedule::rule_for(&shape).unwrap().validate_for(n_layer).unwrap();
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
