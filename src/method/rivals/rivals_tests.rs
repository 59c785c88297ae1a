use super::*;
use crate::method::spts::schedule::{Budget, Probe, Reach, Schedule, Stage};
use crate::method::spts::{Spts, attention_probe::ProbeSettings};
use crate::method::{Entry, MethodError};

fn llama() -> Shape {
    Shape::named("llama-3.1-8b").unwrap()
}

fn parsed(text: &str) -> Arc<dyn Method> {
    Rival::parse(text).unwrap().method()
}

#[test]
fn a_rival_is_a_name_a_share_and_a_layer() {
    assert_eq!(Rival::parse("fastkv").unwrap(), Rival { name: "fastkv", share: 0.2, layer: None });
    assert_eq!(Rival::parse("fastkv:0.1@12").unwrap(), Rival { name: "fastkv", share: 0.1, layer: Some(12) });
    for name in RIVAL_NAMES {
        assert_eq!(parsed(&format!("{name}:1")).name(), name);
    }
    for (text, expected) in [
        ("fast", "method 'fast': no such method; expected one of fastkv, gemfilter"),
        ("fastkv:", "share ''; expected a number above 0"),
        ("fastkv:0", "share '0'"),
        ("fastkv:1.5", "share '1.5'"),
        ("fastkv:NaN", "share 'NaN'"),
        ("fastkv:0.5@x", "layer 'x'; expected a number"),
        ("last:0.5@3", "method 'last' does not choose at a layer of its own; leave @3 out"),
    ] {
        let message = Rival::parse(text).unwrap_err().to_string();
        assert!(message.contains(expected), "{text}: {message}");
    }
}

#[test]
fn what_does_not_fit_the_model_is_refused() {
    let budgets = |text: &str, shape: &Shape, n| parsed(text).budgets(shape, Prompt::of(n)).unwrap_err();
    for name in ["fastkv", "gemfilter"] {
        let e = budgets(&format!("{name}:0.5@31"), &llama(), 100);
        assert_eq!(e, MethodError::Rival(RivalError::LayerOutOfRange { method: name, layer: 31, n_layer: 32 }));
    }
    let windows = Shape { swa: Shape::named("gemma-3-270m").unwrap().swa, ..llama() };
    assert!(windows.swa.is_some());
    for name in RIVAL_NAMES {
        assert_eq!(budgets(name, &windows, 100), MethodError::Rival(RivalError::Windows { method: name }));
        assert_eq!(budgets(name, &llama(), 0), MethodError::Rival(RivalError::EmptyPrompt { method: name }));
    }
}

#[test]
fn in_hybrids_layers_that_attend_choose() {
    // Layers 3, 7, 11 and so on attend.
    let hybrid = Shape::named("qwen3.6-27b").unwrap();
    let pruned = |text: &str| -> Vec<usize> {
        let budgets = parsed(text).budgets(&hybrid, Prompt::of(32_768)).unwrap();
        budgets.layers.iter().enumerate().filter(|(_, b)| b.prune_to.is_some()).map(|(l, _)| l).collect()
    };
    assert_eq!(pruned("fastkv"), [27]);
    assert_eq!(pruned("fastkv:0.2@31"), [31]);
    assert_eq!(pruned("sliminfer"), [19, 39, 59]);
    assert_eq!(pruned("uniprefill"), (3..63).step_by(4).collect::<Vec<usize>>());
    for name in ["fastkv", "gemfilter"] {
        let e = parsed(&format!("{name}:0.5@30")).budgets(&hybrid, Prompt::of(100)).unwrap_err();
        assert_eq!(e, MethodError::Rival(RivalError::Recurrent { method: name, layer: 30, other: 27 }));
        assert!(e.to_string().contains("layer 30 is recurrent and scores no tokens"), "{e}");
    }
    match parsed("gemfilter").entry(&hybrid, Prompt::of(100)).unwrap() {
        Entry::Best(search) => assert_eq!(search.reader, crate::method::entry::Reader::Layer(23)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_rival_leaves_its_share_of_prompts_of_any_length() {
    for name in RIVAL_NAMES {
        for share in [0.01, 0.1, 0.5, 1.0] {
            for n in [1, 2, 63, 129, 1000, 32_768] {
                let budgets = parsed(&format!("{name}:{share}")).budgets(&llama(), Prompt::of(n)).unwrap();
                let last = budgets.layers[31];
                let least = ["uniprefill", "random", "sliminfer", "fastkv", "specprefill", "last"].contains(&name);
                let expected = ((share * n as f64) as usize).max(1);
                let most = if least { expected.max(256).min(n) } else { expected };
                assert!((expected..=most).contains(&last.candidates), "{name}:{share} of {n}: {last:?}");
                assert!(budgets.layers.windows(2).all(|w| w[1].candidates <= w[0].candidates));
                assert!(budgets.layers.iter().all(|l| l.active_attn == l.candidates && l.active_ffn == l.candidates));
            }
        }
    }
}

#[test]
fn steps_are_where_the_papers_have_them() {
    let pruned = |text: &str| -> Vec<(usize, usize)> {
        let budgets = parsed(text).budgets(&llama(), Prompt::of(32_768)).unwrap();
        budgets.layers.iter().enumerate().filter_map(|(l, b)| Some((l, b.prune_to?))).collect()
    };
    assert_eq!(pruned("fastkv"), [(15, 6553)]);
    assert_eq!(pruned("fastkv:0.1@9"), [(9, 3276)]);
    assert_eq!(pruned("sliminfer"), [(10, 13_004), (20, 5161), (30, 2048)]);
    let layers: Vec<usize> = pruned("uniprefill").iter().map(|(l, _)| *l).collect();
    assert_eq!(layers, [3, 7, 11, 15, 19, 23, 27]);
}

#[test]
fn the_same_budgets_and_probe_as_a_schedule_that_prunes_once() {
    use crate::graph::ir::Pool;
    let shape = llama();
    let schedule = Schedule {
        skip_from: 15,
        stages: vec![Stage { last_layer: 15, budget: Budget::Fraction(1.0), cut: Some(Budget::Fraction(0.8)) }],
        skip_attn: false,
        skip_ffn: false,
        ramp: 1.0,
        probe: Probe { queries: 8, pool: Pool::Avg(7), ..Probe::PAPER },
        ..Schedule::default_for(&shape).unwrap()
    };
    let spts = Spts { schedule: schedule.clone(), reach: Reach::AnyLength };
    let budgets = spts.budgets(&shape, Prompt::of(1000)).unwrap();
    assert_eq!(parsed("fastkv").budgets(&shape, Prompt::of(1000)).unwrap(), budgets);
    let settings = ProbeSettings::of(&schedule, &budgets);
    assert_eq!((settings.queries, settings.pool, settings.carry), (8, Pool::Avg(7), 0.0));
}

#[test]
fn controls_keep_the_end_and_choose_blindly() {
    let entry = |text: &str, n| match parsed(text).entry(&llama(), Prompt::of(n)).unwrap() {
        Entry::At(rows) => rows,
        other => panic!("{other:?}"),
    };
    assert_eq!(entry("last:0.1", 100), [0, 1, 2, 3, 94, 95, 96, 97, 98, 99]);
    assert_eq!(entry("last:0.01", 3), [0, 1, 2]);
    assert_eq!(entry("last", 1), [0]);
    let random = entry("random:0.5", 1000);
    assert_eq!(random.len(), 500);
    assert!(random.windows(2).all(|w| w[0] < w[1]) && random.ends_with(&(936..1000).collect::<Vec<_>>()));
    // Every part of the prompt gets its share: 436 of 936 are drawn.
    let in_first_half = random.iter().filter(|&&row| row < 468).count();
    assert!((190..250).contains(&in_first_half), "{in_first_half}");
    assert_eq!(entry("random:0.1", 5), [0, 1, 2, 3, 4]);
    assert_eq!(random, entry("random:0.5", 1000));
}
