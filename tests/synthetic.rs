//! Made-up models run like real ones: every architecture that has a named shape, every mix of types, and the benchmark's protocol.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use spts::bench::measure::{BenchOptions, Mode, Progress, measure};
use spts::bench::synthetic::{self, Synthetic};
use spts::gguf::{Gguf, OpenOptions};
use spts::method::spts::schedule::Schedule;
use spts::method::spts::sidecar::Sidecar;
use spts::model::named_shapes::SHAPE_NAMES;
use spts::model::shape::{Experts, LayerSizes, Shape, SlidingWindow};
use spts::{Model, ModelFile, ModelOptions, Session, SessionOptions};
use spts_quant::Preset;

/// A named shape, shrunk until a test can run it. Rows stay whole blocks of every type.
fn small(name: &str) -> Shape {
    let named = Shape::named(name).expect("a named shape");
    let experts = named.experts.map(|experts| Experts { n_expert: 16, ..experts });
    // Of layers that differ, those with and without a window in turns; the last two read the keys of the two before.
    let by_layer = named.by_layer.as_ref().map(|_| {
        let first = |is_swa: bool| (0..named.n_layer).find(|&l| named.is_swa(l) == is_swa).expect("one of each kind");
        (0..4).map(|l| LayerSizes { n_ff: 512, ..named.sizes(first(l % 2 == 0)) }).collect()
    });
    let swa = match (&named.swa, &by_layer) {
        (Some(swa), Some(_)) => Some(SlidingWindow { layers: vec![true, false, true, false], ..swa.clone() }),
        (swa, _) => swa.clone(),
    };
    let n_shared_kv = named.n_shared_kv.min(2);
    Shape { n_layer: 4, n_embd: 256, n_ff: 512, n_vocab: 300, experts, by_layer, swa, n_shared_kv, ..named }
}

fn synthetic(name: &str, preset: Preset) -> Synthetic {
    Synthetic { shape: small(name), preset, seed: 3 }
}

fn model(made: &Synthetic) -> Arc<Model> {
    let gguf = made.open(|_, _| {}).expect("a temporary file");
    Model::from_gguf(Arc::new(gguf), ModelOptions::default()).expect("a valid model")
}

fn prompt(n: u32) -> Vec<u32> {
    (0..n).map(|i| (i * 7919) % 300).collect()
}

#[test]
fn activations_are_those_of_a_model_and_not_of_zeros() {
    for name in SHAPE_NAMES {
        for preset in Preset::ALL {
            let model = model(&synthetic(name, preset));
            assert_eq!(model.file().unused_tensors(), [""; 0], "{name}");
            let mut session = Session::new(model, SessionOptions::default()).expect("a session");
            session.prefill(&prompt(40), &mut |_| ControlFlow::Continue(())).expect("a prefill");
            let logits = session.logits();
            // From the mean size, which a few large logits (a tied head knows the last token again) do not move.
            let size = logits.iter().map(|x| x.abs()).sum::<f32>() / logits.len() as f32;
            let spread = size * (std::f32::consts::PI / 2.0).sqrt();
            // A normalised state times weights of variance 1 / n_in.
            assert!((0.7..1.4).contains(&spread), "{name} {}: logits spread by {spread}", preset.name());
        }
    }
}

#[test]
fn a_file_has_the_shape_that_it_was_made_of() {
    for name in SHAPE_NAMES {
        let made = synthetic(name, Preset::Q4_K_M);
        let model = model(&made);
        let (shape, given) = (model.shape(), &made.shape);
        for layer in 0..given.n_layer {
            assert_eq!(shape.window(layer), given.window(layer), "{name}, layer {layer}");
            assert_eq!(shape.recurrence(layer), given.recurrence(layer), "{name}, layer {layer}");
        }
        assert_eq!(shape.window(given.n_layer), None);
        assert!(shape.weight_bytes.is_some());
        let expected = Shape {
            name: format!("synthetic {name}"),
            weight_bytes: shape.weight_bytes,
            swa: shape.swa.clone(),
            recurrent: shape.recurrent.clone(),
            ..given.clone()
        };
        assert_eq!(*shape, expected);
    }
}

#[test]
fn the_same_seed_makes_the_same_file() {
    let dir = tempfile::tempdir().expect("a folder");
    let write = |file: &str, seed| {
        let path = dir.path().join(file);
        Synthetic { seed, ..synthetic("llama-3.1-8b", Preset::Q4_K_M) }.write(&path, |_, _| {}).expect("written");
        std::fs::read(&path).expect("read")
    };
    let (a, b, c) = (write("a", 1), write("b", 1), write("c", 2));
    assert!(a == b, "the same seed");
    assert!(a.len() == c.len() && a != c, "another seed");
}

#[test]
fn llama_31_has_its_rotary_scaling_and_the_mix_its_types() {
    let gguf = synthetic("llama-3.1-8b", Preset::Q4_K_M).open(|_, _| {}).expect("a temporary file");
    let ty = |name: &str| gguf.tensor(name).map(|t| t.ty.name());
    assert_eq!(ty("output.weight"), Some("Q6_K"));
    assert_eq!(ty("blk.0.attn_q.weight"), Some("Q4_K"));
    assert_eq!(ty("blk.0.attn_norm.weight"), Some("F32"));
    assert_eq!(ty("rope_freqs.weight"), Some("F32"));
    assert_eq!(gguf.f32("llama.rope.freq_base").expect("a float"), Some(5e5));
    assert_eq!(gguf.u32("general.file_type").expect("a number"), Some(15));
}

#[test]
fn proxies_beside_a_made_up_model() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("m.gguf");
    let made = synthetic("llama-3.1-8b", Preset::Q8_0);
    made.write(&path, |_, _| {}).expect("written");
    let gguf = Gguf::open(&path, OpenOptions::default()).expect("opened");
    let schedule = Schedule::default_for(&made.shape).expect("a schedule");
    let beside = Sidecar::path_beside(&path);
    synthetic::write_sidecar(&gguf, &made.shape, &schedule, &beside).expect("written");
    let sidecar = Sidecar::open(&beside).expect("a sidecar");
    assert_eq!(sidecar.size(), schedule.proxy);
    sidecar.check(&ModelFile::open(&path, OpenOptions::default()).expect("a model")).expect("made for this model");
    sidecar.check_layers(schedule.skip_from..4).expect("a proxy for each layer that skips");
}

#[derive(Default)]
struct Log {
    sessions: usize,
    runs: Vec<(usize, Mode, Option<usize>)>,
}

impl Progress for Log {
    fn session(&mut self, _: &Arc<AtomicBool>) {
        self.sessions += 1;
    }

    fn run(&mut self, n_prompt: usize, mode: Mode, repetition: Option<usize>) {
        self.runs.push((n_prompt, mode, repetition));
    }
}

#[test]
fn dense_and_spts_take_turns() {
    let made = synthetic("llama-3.1-8b", Preset::Q4_0);
    let model = model(&made);
    let schedule = Schedule::fractional(&made.shape, [0.5, 0.4, 0.3, 0.2], 0.05).expect("a schedule");
    let sidecar = synthetic::open_sidecar(model.gguf(), &made.shape, &schedule).expect("proxies");
    let sidecar = Sidecar::from_gguf(sidecar).expect("a sidecar");
    let options = BenchOptions {
        n_question: Some(3),
        rest: std::time::Duration::ZERO,
        prompts: vec![200, 64],
        n_decode: 3,
        op_times: true,
        repetitions: 3,
        seed: 1,
        method: Some(schedule.into()),
        session: SessionOptions { n_threads: Some(1), sidecar: Some(Arc::new(sidecar)), ..SessionOptions::default() },
    };
    let mut log = Log::default();
    let out = measure(&model, &options, 0, &mut log).expect("measured");
    assert_eq!(log.sessions, 7);
    let of_200: Vec<_> = log.runs.iter().filter(|r| r.0 == 200).map(|r| (r.1, r.2)).collect();
    let (d, s) = (Mode::Dense, Mode::Spts);
    assert_eq!(
        of_200,
        [(d, None), (s, None), (d, Some(0)), (s, Some(0)), (s, Some(1)), (d, Some(1)), (d, Some(2)), (s, Some(2))]
    );
    assert_eq!(out.prompts.iter().map(|p| p.n_prompt).collect::<Vec<_>>(), [200, 64]);
    assert_eq!(out.decode_empty_tps.map(|s| s.samples.len()), Some(3));
    for p in &out.prompts {
        let spts = p.spts.as_ref().expect("a schedule");
        assert!(!p.dense.skips && spts.skips && p.dense.cache_kept == 1.0 && spts.cache_kept < 0.9);
        let ratios = p.ratios.as_ref().expect("both modes");
        for i in 0..3 {
            let pair = p.dense.ttft_s.samples[i] / spts.ttft_s.samples[i];
            assert_eq!(ratios.ttft.samples[i], pair, "each run against the one beside it");
        }
        assert_eq!(p.dense.decode_tps.as_ref().map(|s| s.samples.len()), Some(3));
        assert!(p.dense.session_bytes > 0 && p.dense.ttft_s.min > 0.0);
        let q = p.questions.as_ref().expect("questions about each prompt");
        assert_eq!((q.n_question, q.question_s.samples.len(), q.opened_s.samples.len()), (3, 3, 3));
        assert_eq!(q.speedup.samples[1], q.fresh_s.samples[1] / q.question_s.samples[1]);
        assert!(q.document_bytes > 0 && q.document_bytes < q.file_bytes);
    }
}
