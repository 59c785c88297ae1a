//! Models with layers or experts on either device, and documents that are read once.

use std::ops::ControlFlow;
use std::sync::Arc;

use spts::method::{Dense, Method};
use spts::session::document::DocumentMemory;
use spts::{Model, ModelOptions, Session, SessionOptions};

use crate::compare::*;

/// Some layers on each, or experts on the CPU: prompts, answers, prompts behind answers; dense and skipping, with stages on either
/// side of the border.
#[test]
fn layers_on_both() {
    for tiny in models() {
        let (_dir, path) = in_scratch(&tiny);
        let prompt = tiny.prompt(N);
        let schedule = schedule(&open(&path, "CPU"));
        let split = |(n_gpu_layers, n_cpu_moe)| {
            let device = Some("CUDA0".into());
            let options = ModelOptions { device, n_gpu_layers, n_cpu_moe, ..ModelOptions::default() };
            Model::open(&path, options).unwrap()
        };
        let mut splits: Vec<_> =
            (0..=tiny.n_layer).filter(|&n| may_have_on_gpu(&tiny, n)).map(|n| (Some(n), 0)).collect();
        if tiny.experts.is_some() {
            splits.extend([(None, 1), (None, usize::MAX), (Some(2), tiny.n_layer - 1)]);
        }
        let methods: [(Arc<dyn Method>, f64); 2] = [(Arc::new(Dense), dense_bound(&tiny)), (schedule.into(), SKIPPING)];
        for (method, bound) in methods {
            let options = SessionOptions { method, record_selection: true, ..SessionOptions::default() };
            let read = |model: Arc<Model>| {
                let mut session = Session::new(model, options.clone()).unwrap();
                let report = session.prefill(&prompt, &mut |_| ControlFlow::Continue(())).unwrap();
                let mut logits = vec![session.logits().to_vec()];
                for token in [3, 1, 4] {
                    session.decode(token).unwrap();
                    logits.push(session.logits().to_vec());
                }
                session.prefill(&prompt[..70], &mut |_| ControlFlow::Continue(())).unwrap();
                logits.push(session.logits().to_vec());
                session.decode(5).unwrap();
                logits.push(session.logits().to_vec());
                (logits, report.selection, lengths(&session))
            };
            let (cpu, chosen, cpu_lengths) = read(open(&path, "CPU"));
            let rounding = Rounding::of(&tiny, &path, &prompt, &options);
            for &(n_gpu_layers, n_cpu_moe) in &splits {
                let (both, selection, both_lengths) = read(split((n_gpu_layers, n_cpu_moe)));
                let what = format!("{}, {n_gpu_layers:?} layers on the GPU, {n_cpu_moe} without experts", tiny.name);
                assert_eq!(both_lengths, cpu_lengths, "{what}");
                let common = if chosen.is_empty() { 1.0 } else { overlap(&selection, &chosen) };
                rounding.allows_sets(&what, common);
                for (step, (got, expected)) in
                    both.iter().zip(&cpu).enumerate().filter(|_| says_something(&tiny, common))
                {
                    rounding.allows_error(&format!("{what}, step {step}"), nmse(got, expected), bound);
                }
            }
        }
    }
}

/// A document read once, and questions behind it: as prompts read from the start on the same devices, with layers on either, the
/// residual stream on the device and in host memory, and from a file. A few rows are multiplied by other kernels than many.
#[test]
fn documents() {
    for tiny in models() {
        let (dir, path) = in_scratch(&tiny);
        let text = tiny.prompt(N + 60);
        let questions = [&text[..N + 7], &text[..N + 60], &[&text[..N], &text[3..40]].concat()];
        let schedule: Arc<dyn Method> = schedule(&open(&path, "CPU")).into();
        let methods: [(Arc<dyn Method>, f64); 2] = [(Arc::new(Dense), dense_bound(&tiny)), (schedule, SKIPPING)];
        for (method, bound) in methods {
            let options =
                SessionOptions { method: method.clone(), record_selection: true, ..SessionOptions::default() };
            let rounding = Rounding::of(&tiny, &path, questions[0], &options);
            let may = |n: &Option<usize>| n.is_none_or(|n| may_have_on_gpu(&tiny, n));
            for n_gpu_layers in [None, Some(1), Some(tiny.n_layer - 1)].into_iter().filter(may) {
                let options = ModelOptions { device: Some("CUDA0".into()), n_gpu_layers, ..ModelOptions::default() };
                let model = Model::open(&path, options).unwrap();
                let session = |document_memory| {
                    let method = method.clone();
                    let options =
                        SessionOptions { method, record_selection: true, document_memory, ..SessionOptions::default() };
                    Session::new(model.clone(), options).unwrap()
                };
                let ask = |session: &mut Session, prompt: &[u32]| {
                    session.clear();
                    let report = session.prefill(prompt, &mut |_| ControlFlow::Continue(())).unwrap();
                    let mut logits = vec![session.logits().to_vec()];
                    for token in [3, 1, 4] {
                        session.decode(token).unwrap();
                        logits.push(session.logits().to_vec());
                    }
                    (logits, report)
                };
                let mut answers = Vec::new();
                for memory in [DocumentMemory::Device, DocumentMemory::Host] {
                    let (mut behind, mut fresh) = (session(memory), session(memory));
                    behind.read(&text[..N], &mut |_| ControlFlow::Continue(())).unwrap();
                    for question in questions {
                        let ((got, report), (expected, whole)) =
                            (ask(&mut behind, question), ask(&mut fresh, question));
                        let what = format!("{}, {n_gpu_layers:?} layers on the GPU, {memory:?}", tiny.name);
                        assert!(
                            report.n_reused >= N && whole.n_reused == 0,
                            "{what}: {} not read anew",
                            report.n_reused
                        );
                        assert_eq!(lengths(&behind), lengths(&fresh), "{what}");
                        let common =
                            if whole.layers.is_empty() { 1.0 } else { overlap(&report.selection, &whole.selection) };
                        rounding.allows_sets(&what, common);
                        let steps = got.iter().zip(&expected).enumerate();
                        for (step, (got, expected)) in steps.filter(|_| says_something(&tiny, common)) {
                            rounding.allows_error(&format!("{what}, step {step}"), nmse(got, expected), bound);
                        }
                        answers.push(got);
                    }
                    let file = dir.path().join("document");
                    behind.document().unwrap().save(&file).unwrap();
                    let mut opened = session(memory);
                    opened.open_document(&file).unwrap();
                    // Not a bit is lost on the way, nor by where the rows lie.
                    assert_eq!(ask(&mut opened, questions[0]).0, answers[0], "{}", tiny.name);
                }
                let (device, host) = answers.split_at(questions.len());
                assert!(device == host, "{}: host memory changes answers", tiny.name);
            }
        }
    }
}
