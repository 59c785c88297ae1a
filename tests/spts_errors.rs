//! Sidecars and schedules that don't fit: each is refused, before anything is computed, by one line that says what is wrong
//! and what to do.

mod reference;
mod runtime;
mod support;

use std::sync::Arc;

use runtime::Pair;
use runtime::proxies::SidecarFile;
use spts::gguf::Gguf;
use spts::method::spts::Spts;
use spts::method::spts::schedule::{Budget, Pool, Probe, Reach, Schedule, Stage};
use spts::method::spts::schedule_file::parse_schedule_arg;
use spts::method::spts::sidecar::Sidecar;
use spts::model::shape::Shape;
use spts::session::prefill::PrefillReport;
use spts::{Error, Session, SessionOptions};
use support::tiny::Tiny;

fn pair() -> Pair {
    Pair::new(Tiny::named("llama"))
}

/// Layers 1 to 3 of 5 skip and score their FFNs by proxies.
fn schedule() -> Schedule {
    runtime::schedule(&[(2, 20, 2), (3, 12, 2)], Probe { queries: 2, ..Probe::PAPER })
}

fn sidecar(file: &SidecarFile) -> Result<Arc<Sidecar>, Error> {
    let gguf = Gguf::from_bytes(file.to_bytes(), "model.spts.gguf")?;
    Ok(Arc::new(Sidecar::from_gguf(gguf)?))
}

/// Opens the sidecar, a session with it, and reads a prompt.
fn use_sidecar(pair: &Pair, file: &SidecarFile, schedule: Schedule, reach: Reach) -> Result<PrefillReport, Error> {
    let options = SessionOptions {
        method: Arc::new(Spts { schedule, reach }),
        sidecar: Some(sidecar(file)?),
        ..runtime::exact(pair.n_ctx)
    };
    let mut session = Session::new(pair.model.clone(), options)?;
    let result = runtime::prefill(&mut session, &pair.tiny.prompt(40));
    assert_eq!(session.n_past(), if result.is_ok() { 40 } else { 0 });
    result
}

/// The message, which must be one line.
#[track_caller]
fn message<T>(result: Result<T, impl Into<Error>>) -> String {
    let Err(error) = result else { panic!("accepted") };
    let text = Into::<Error>::into(error).to_string();
    assert!(!text.contains('\n') && text.len() < 300, "{text:?}");
    text
}

#[test]
fn a_good_sidecar_is_accepted() {
    let pair = pair();
    let good = SidecarFile::for_model(&pair, 8, 4);
    let opened = sidecar(&good).unwrap();
    assert_eq!((opened.size().d_low, opened.size().rank, opened.layers()), (8, 4, &[0, 1, 2, 3, 4][..]));
    assert!(use_sidecar(&pair, &good, schedule(), Reach::AboveFirstBudget).unwrap().cache_kept < 1.0);
    // Only the layers that skip need a proxy.
    let mut few = good.clone();
    few.tensors.retain(|t| ["blk.1.", "blk.2.", "blk.3."].iter().any(|l| t.0.starts_with(l)));
    use_sidecar(&pair, &few, schedule(), Reach::AboveFirstBudget).unwrap();
}

#[test]
fn sidecars_that_are_none() {
    let good = SidecarFile::for_model(&pair(), 8, 4);
    let with = |change: &dyn Fn(&mut SidecarFile)| {
        let mut file = good.clone();
        change(&mut file);
        message(sidecar(&file))
    };
    let file = "model.spts.gguf";
    assert_eq!(
        with(&|f| f.architecture = "llama".into()),
        format!("{file}: not a sidecar: its architecture is 'llama', expected 'spts-proxies'")
    );
    assert_eq!(with(&|f| f.version = Some(2)), format!("{file}: sidecar of version 2, expected 1: make it again"));
    assert_eq!(with(&|f| f.version = None), format!("{file}: metadata key 'spts.version' is missing"));
    assert_eq!(with(&|f| f.fingerprint = None), format!("{file}: metadata key 'spts.fingerprint' is missing"));
    assert_eq!(with(&|f| f.d_low = None), format!("{file}: metadata key 'spts.d_low' is missing"));
    assert_eq!(with(&|f| f.rank = None), format!("{file}: metadata key 'spts.rank' is missing"));
    assert_eq!(
        with(&|f| f.tensors.retain(|t| t.0 != "blk.2.proxy_v_up")),
        format!("{file}: tensor 'blk.2.proxy_v_up' is missing, expected F16 [4, 8]")
    );
    assert_eq!(
        with(&|f| f.rank = Some(5)),
        format!("{file}: tensor 'blk.0.proxy_u_gu' is F16 [24, 8], expected F16 [24, 10]")
    );
    assert_eq!(
        with(&|f| f.d_low = Some(7)),
        format!("{file}: tensor 'blk.0.proxy_v_gate' is F16 [4, 8], expected F16 [4, 7]")
    );
    for (d_low, rank) in [(0, 0), (8, 0), (0, 4), (u32::MAX, u32::MAX)] {
        let text = with(&|f| (f.d_low, f.rank) = (Some(d_low), Some(rank)));
        assert!(text.starts_with(file), "{text}");
    }
    let swapped = with(&|f| {
        let one = f.tensors.iter().position(|t| t.0 == "blk.3.proxy_v_down").unwrap();
        f.tensors[one].1.swap(0, 1);
    });
    assert_eq!(swapped, format!("{file}: tensor 'blk.3.proxy_v_down' is F16 [4, 8], expected F16 [8, 4]"));
}

#[test]
fn a_sidecar_cut_short_anywhere() {
    let bytes = SidecarFile::for_model(&pair(), 8, 4).to_bytes();
    let header = bytes.len() - 5 * 2 * (24 * 8 + 3 * 4 * 8);
    for len in (0..header).step_by(7).chain((header..bytes.len()).step_by(101)).chain([bytes.len() - 1]) {
        let result = Gguf::from_bytes(bytes[..len].to_vec(), "model.spts.gguf");
        let text = message(result.map_err(Error::from).and_then(|g| Ok(Sidecar::from_gguf(g)?)));
        assert!(text.contains("model.spts.gguf"), "{len} bytes: {text}");
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("absent.spts.gguf");
    assert!(message(Sidecar::open(&path)).contains("absent.spts.gguf"));
}

#[test]
fn a_sidecar_of_another_model() {
    let pair = pair();
    // The same shape, other weights.
    let twin = Pair::new(Tiny { seed: 2, ..Tiny::named("llama") });
    let other = SidecarFile::for_model(&twin, 8, 4);
    let own = SidecarFile::for_model(&pair, 8, 4).fingerprint.unwrap();
    let text = message(use_sidecar(&pair, &other, schedule(), Reach::AboveFirstBudget));
    assert_eq!(
        text,
        format!(
            "model.spts.gguf: sidecar of another model (fingerprint {}, this model's is {own}): make one for this model",
            other.fingerprint.clone().unwrap()
        )
    );

    // The right fingerprint over tensors that can't be this model's: wider, and of layers that it lacks.
    let wide = Pair::new(Tiny { n_embd: 30, ..Tiny::named("llama") });
    let forged = SidecarFile { fingerprint: Some(own), ..SidecarFile::for_model(&wide, 8, 4) };
    let text = message(use_sidecar(&pair, &forged, schedule(), Reach::AboveFirstBudget));
    assert_eq!(text, "model.spts.gguf: tensor 'blk.0.proxy_u_gu' is F16 [30, 8], expected F16 [24, 8]");
    for layer in ["5", "4000000000", "18446744073709551614"] {
        let mut forged = SidecarFile::for_model(&pair, 8, 4);
        for t in &mut forged.tensors {
            t.0 = t.0.replace("blk.4.", &format!("blk.{layer}."));
        }
        let text = message(use_sidecar(&pair, &forged, schedule(), Reach::AboveFirstBudget));
        assert!(text.contains(&format!("blk.{layer}.proxy_u_gu")), "{text}");
    }
}

#[test]
fn a_layer_without_its_proxy() {
    let pair = pair();
    let without = |layers: &[usize]| {
        let mut file = SidecarFile::for_model(&pair, 8, 4);
        file.tensors.retain(|t| !layers.iter().any(|l| t.0.starts_with(&format!("blk.{l}."))));
        file
    };
    for missing in [1, 2, 3] {
        assert_eq!(
            message(use_sidecar(&pair, &without(&[missing]), schedule(), Reach::AboveFirstBudget)),
            format!(
                "model.spts.gguf: no proxy for layer {missing}, where the schedule skips: calibrate again with this schedule"
            )
        );
    }
    assert!(
        message(use_sidecar(&pair, &without(&[0, 1, 2, 3, 4]), schedule(), Reach::AboveFirstBudget))
            .contains("layer 1")
    );
    // Without skipping in the FFN, or without proxies asked for, none is missed.
    let none = without(&[0, 1, 2, 3, 4]);
    use_sidecar(&pair, &none, Schedule { skip_ffn: false, ..schedule() }, Reach::AboveFirstBudget).unwrap();
    use_sidecar(&pair, &none, Schedule { use_proxy: false, ..schedule() }, Reach::AboveFirstBudget).unwrap();
    // Forced probes score every FFN of a stage.
    let forced = use_sidecar(&pair, &none, Schedule { skip_ffn: false, ..schedule() }, Reach::EveryLayer);
    assert!(message(forced).contains("no proxy for layer 1"));
}

#[test]
fn proxies_asked_for_and_not_there() {
    let pair = pair();
    let wants = |schedule: Schedule, reach: Reach| {
        let options = SessionOptions { method: Arc::new(Spts { schedule, reach }), ..runtime::exact(pair.n_ctx) };
        runtime::prefill(&mut Session::new(pair.model.clone(), options).unwrap(), &pair.tiny.prompt(40))
    };
    let text = message(wants(schedule(), Reach::AboveFirstBudget));
    assert!(text.contains("none are loaded") && text.contains("or score without them"), "{text}");
    assert!(matches!(wants(Schedule { skip_ffn: false, ..schedule() }, Reach::EveryLayer), Err(Error::ProxiesMissing)));
    wants(Schedule { skip_ffn: false, ..schedule() }, Reach::AboveFirstBudget).unwrap();
    wants(Schedule { use_proxy: false, ..schedule() }, Reach::AboveFirstBudget).unwrap();
}

#[test]
fn schedules_that_don_t_fit() {
    let pair = pair();
    let stage =
        |last_layer, budget, cut| Stage { last_layer, budget: Budget::Tokens(budget), cut: Some(Budget::Tokens(cut)) };
    let refused = |change: &dyn Fn(&mut Schedule)| {
        let mut s = schedule();
        change(&mut s);
        let options = SessionOptions { method: s.into(), ..runtime::exact(pair.n_ctx) };
        message(Session::new(pair.model.clone(), options).map(|_| ()))
    };
    assert_eq!(
        refused(&|s| s.stages = vec![stage(2, 20, 2), stage(5, 12, 2)]),
        "schedule 'test': the end of stage 1 is layer 5, but the model has layers 0 to 4; use a schedule made for this model"
    );
    assert_eq!(
        refused(&|s| (s.skip_from, s.stages) = (5, vec![stage(5, 20, 2)])),
        "schedule 'test': skip_from is layer 5, but the model has layers 0 to 4; use a schedule made for this model"
    );
    assert_eq!(
        refused(&|s| s.stages = vec![stage(2, 12, 2), stage(3, 20, 2)]),
        "schedule 'test': the budget of stage 1 grows from 12 to 20; budgets must not grow"
    );
    assert_eq!(
        refused(&|s| s.stages = vec![stage(3, 20, 2), stage(2, 12, 2)]),
        "schedule 'test': stage 1 ends at layer 2; expected layer 4 or a later one"
    );
    assert_eq!(
        refused(&|s| s.stages = vec![stage(0, 20, 2)]),
        "schedule 'test': stage 0 ends at layer 0; expected layer 1 or a later one"
    );
    assert_eq!(
        refused(&|s| s.stages = vec![stage(2, 20, 20)]),
        "schedule 'test': the cut of stage 0 is 20, not below its budget of 20; nothing would be left"
    );
    type Edit = fn(&mut Schedule);
    let others: [(Edit, &str); 9] = [
        (|s| s.stages.clear(), "no stages"),
        (|s| s.stages[0].budget = Budget::Tokens(0), "expected at least 1 token"),
        (|s| s.stages[0].budget = Budget::Fraction(0.5), "mixes token counts and fractions"),
        (|s| s.probe.queries = 0, "probe_queries is 0"),
        (|s| s.probe.pool = Pool::Max(4), "pool width 4"),
        (|s| s.probe.pool = Pool::Chunks(0), "chunks of 0 candidates; expected at least 1"),
        (|s| s.probe.carry = 1.5, "carry is 1.5; expected a number from 0 to 1"),
        (|s| s.ramp = 0.5, "ramp is 0.5; expected a finite number, at least 1"),
        (
            |s| (s.ramp, s.stages) = (2.0, vec![Stage { last_layer: 2, budget: Budget::Fraction(0.5), cut: None }]),
            "ramp is 2, but its budgets are fractions",
        ),
    ];
    for (change, part) in others {
        let text = refused(&change);
        assert!(text.contains(part), "{text:?} does not say {part:?}");
    }
}

/// The same mistakes in a file: the message also says which file.
#[test]
fn schedule_files_that_don_t_fit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mine.schedule");
    let shape = Shape { n_layer: 5, ..Shape::named("llama-3.1-8b").unwrap() };
    let refused = |text: &str| {
        std::fs::write(&path, text).unwrap();
        let Err(error) = parse_schedule_arg(path.to_str().unwrap(), &shape) else { panic!("accepted: {text}") };
        let message = error.to_string();
        assert!(!message.contains('\n') && message.contains("mine.schedule"), "{message:?}");
        message
    };
    for (text, part) in [
        (
            "skip_from = 1\nstage = 2 20 2\nstage = 5 12 2",
            "the end of stage 1 is layer 5, but the model has layers 0 to 4",
        ),
        ("skip_from = 9\nstage = 9 20 2", "skip_from is layer 9"),
        ("skip_from = 1\nstage = 2 12 2\nstage = 3 20 2", "the budget of stage 1 grows from 12 to 20"),
        ("skip_from = 1\nstage = 3 20 2\nstage = 2 12 2", "stage 1 ends at layer 2; expected layer 4"),
        ("skip_from = 1\nstage = 2 20", ":2: "),
        ("skip_from = 1\nstage = 2 lots 1", ":2: "),
        ("skip_from = 1\nstages = 2 20 2", ":2: "),
        ("stage = 2 20 2", "no `skip_from`"),
        ("skip_from = 1", "no `stage`"),
        ("", "no `skip_from`"),
    ] {
        let message = refused(text);
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
    std::fs::write(&path, "skip_from = 1\nstage = 2 20 2 # fine").unwrap();
    assert_eq!(parse_schedule_arg(path.to_str().unwrap(), &shape).unwrap().skip_from, 1);
}
