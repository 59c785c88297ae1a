//! Prompts of which layers skip tokens, and rivals: the tokens that are chosen, and what comes of them.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use spts::SessionOptions;
use spts::method::rivals::Rival;
use spts::method::spts::schedule::{Join, Pool, Probe, ProxySize, Schedule, Selection};
use spts::method::spts::sidecar::Sidecar;
use spts::proxies::calibrate::{CalibrateOptions, calibrate};
use spts::session::sequence::CacheType;

use crate::compare::*;
use crate::support::tiny::Tiny;

/// Skipping where roundings add up. Scores of random models lie close together, so that rounding changes sets, and more in every
/// layer: on the CPU, too, with the same matrices rounded to TF32 (`rounded`) and this type of cache, against F32 throughout. A GPU
/// may change half more, and one in 100.
fn compare_in(cache: CacheType, what: &str, tiny: &Tiny, [path, rounded]: [&Path; 2], schedule: &Schedule) {
    let (what, prompt) = (format!("{} {what}", tiny.name), &tiny.prompt(N));
    let read = |path: &Path, device: &str, cache| run(path, device, prompt, &[3, 1, 4], skipping_in(cache, schedule));
    let (expected, chosen) = read(path, "CPU", CacheType::F32);
    let (cpu, on_cpu) = read(rounded, "CPU", cache);
    let (gpu, on_gpu) = read(path, "CUDA0", cache);
    let (on_cpu, on_gpu) = (overlap(&on_cpu, &chosen), overlap(&on_gpu, &chosen));
    let worst = |got: &[Vec<f32>]| got.iter().zip(&expected).map(|(got, exact)| nmse(got, exact)).fold(0.0, f64::max);
    let (cpu, gpu) = (worst(&cpu), worst(&gpu));
    println!(
        "{what}: sets overlap by {on_gpu:.4}, on the CPU {on_cpu:.4}; NMSE at most {gpu:.1e}, on the CPU {cpu:.1e}"
    );
    assert!(1.0 - on_gpu <= 1.5 * (1.0 - on_cpu) + 0.01, "{what}: sets overlap by {on_gpu}, on the CPU {on_cpu}");
    let is_near = gpu <= SKIPPING.max(1.25 * cpu);
    assert!(is_near || !says_something(tiny, on_gpu), "{what}: NMSE {gpu}, on the CPU {cpu}, bound {SKIPPING}");
}

fn skipping_in(cache: CacheType, schedule: &Schedule) -> SessionOptions {
    SessionOptions {
        method: schedule.clone().into(),
        record_selection: true,
        cache_type_k: cache,
        cache_type_v: cache,
        ..SessionOptions::default()
    }
}

#[test]
fn skipping_and_pruning() {
    for tiny in models() {
        let (_dir, path) = in_scratch(&tiny);
        let (rounded, schedule) = (in_tf32(&tiny, &path), schedule(&open(&path, "CPU")));
        compare_in(CacheType::F16, "skipping", &tiny, [&path, &rounded], &schedule);
    }
}

/// Sets that are the same on both, since a seed chooses them: what is computed of them is, too.
#[test]
fn sets_by_chance() {
    for tiny in models() {
        let (_dir, path) = in_scratch(&tiny);
        let schedule = Schedule { selection: Selection::Random { seed: 5 }, ..schedule(&open(&path, "CPU")) };
        let options = skipping_in(CacheType::F16, &schedule);
        let prompt = tiny.prompt(N);
        let rounding = Rounding::of(&tiny, &path, &prompt, &options);
        let [(expected, cpu), (got, gpu)] =
            ["CPU", "CUDA0"].map(|on| run(&path, on, &prompt, &[3, 1, 4], options.clone()));
        assert_eq!(overlap(&gpu, &cpu), 1.0, "{}", tiny.name);
        for (step, (got, expected)) in got.iter().zip(&expected).enumerate() {
            rounding.allows_error(
                &format!("{} by chance, step {step}", tiny.name),
                nmse(got, expected),
                dense_bound(&tiny),
            );
        }
    }
}

/// Carried and joined scores, chunks, tokens that stay, a stage that prunes nothing; with keys in F32 ggml's operations score.
#[test]
fn every_option_of_a_schedule() {
    for tiny in models() {
        let (_dir, path) = in_scratch(&tiny);
        let rounded = in_tf32(&tiny, &path);
        let base = schedule(&open(&path, "CPU"));
        let probe = Probe { carry: 0.7, ..base.probe };
        let mut late = Schedule { probe, sinks: 4, recent: 20, ..base.clone() };
        late.stages[0].cut = None;
        let best = Probe { join: Join::Max, ..probe };
        let chunks = Probe { pool: Pool::Chunks(4), ..probe };
        for (what, schedule, cache) in [
            ("carried", late, CacheType::F16),
            ("best of the queries", Schedule { probe: best, ..base.clone() }, CacheType::F16),
            ("best of the queries, F32", Schedule { probe: best, ..base.clone() }, CacheType::F32),
            ("chunks", Schedule { probe: chunks, ..base.clone() }, CacheType::F16),
        ] {
            compare_in(cache, what, &tiny, [&path, &rounded], &schedule);
        }
    }
}

/// Products of 16-bit rows: normalised rows are kept, scores of FFNs and factors on rows fused. In one tile, in several (the last
/// of fewer rows than such products take), and in tiles too small for them. Scores of random models lie close together, so that
/// rounding the rows changes sets. On the CPU it does, against rows in F32; a GPU may change a quarter more, and one in 200.
#[test]
fn skipping_on_16_bit_rows() {
    for tiny in models() {
        let (dir, path) = in_scratch(&tiny);
        let [small, exact] = in_bf16(&path);
        let options = |path: &Path, n_ubatch| {
            let model = open(path, "CPU");
            let mut calibration = CalibrateOptions::new(ProxySize { d_low: 64, rank: 32 }, "test");
            (calibration.n_tokens, calibration.piece) = (1024, 256);
            let proxies = dir.path().join("proxies.gguf");
            let done = calibrate(&model, &[tiny.prompt(N)], &calibration, &mut |_| ControlFlow::Continue(()));
            done.unwrap().write(&proxies).unwrap();
            let sidecar = Some(Arc::new(Sidecar::open(&proxies).unwrap()));
            let method = Schedule { use_proxy: true, ..schedule(&model) }.into();
            SessionOptions { method, sidecar, n_ubatch, record_selection: true, ..SessionOptions::default() }
        };
        let prompt = tiny.prompt(N);
        let (expected, chosen) = run(&exact, "CPU", &prompt, &[3, 1, 4], options(&exact, None));
        let worst = |got: &[Vec<f32>]| got.iter().zip(&expected).map(|(a, b)| nmse(a, b)).fold(0.0, f64::max);
        let (by_rounding, rounded) = run(&small, "CPU", &prompt, &[3, 1, 4], options(&small, None));
        let (by_rounding, on_cpu) = (worst(&by_rounding), overlap(&rounded, &chosen));
        for n_ubatch in [None, Some(300), Some(100)] {
            let (logits, selection) = run(&small, "CUDA0", &prompt, &[3, 1, 4], options(&small, n_ubatch));
            let on_gpu = overlap(&selection, &chosen);
            let errors = worst(&logits);
            let what = format!("{} in BF16, tiles of {n_ubatch:?}", tiny.name);
            println!(
                "{what}: sets overlap by {on_gpu:.4}, on the CPU {on_cpu:.4}; NMSE at most {errors:.1e}, on the CPU {by_rounding:.1e}"
            );
            assert!(1.0 - on_gpu <= 1.25 * (1.0 - on_cpu) + 0.005, "{what}: sets overlap by {on_gpu}");
            let is_near = errors <= SKIPPING.max(1.25 * by_rounding);
            assert!(is_near || !says_something(&tiny, on_gpu), "{what}: NMSE {errors}, on the CPU {by_rounding}");
        }
    }
}

/// The first layer skips, too: what scores its candidates sees all of them. And a pool wider than any prompt.
#[test]
fn skipping_from_the_first_layer_on() {
    let tiny = &models()[0];
    let (_dir, path) = in_scratch(tiny);
    let rounded = in_tf32(tiny, &path);
    let usual = schedule(&open(&path, "CPU"));
    for (cache, pool) in [
        (CacheType::F16, Pool::Max(3)),
        (CacheType::F16, Pool::Max(16_777_217)),
        (CacheType::F32, Pool::Max(3)),
        (CacheType::F32, Pool::Avg(16_777_217)),
    ] {
        let mut schedule = Schedule { skip_from: 0, ..usual.clone() };
        schedule.probe.pool = pool;
        compare_in(cache, &format!("from layer 0, {cache:?}, {pool:?}"), tiny, [&path, &rounded], &schedule);
    }
}

/// Methods that read a part of the prompt: the same tokens, and the logits of these; where a program scores them first, rounding
/// may change one in twenty (random models' scores lie close together).
#[test]
fn rivals() {
    for tiny in models().iter().filter(|tiny| ["llama", "llama-yarn", "qwen2"].contains(&tiny.name)) {
        let (_dir, path) = in_scratch(tiny);
        let (_draft_dir, draft) = in_scratch(&Tiny { seed: 2, ..tiny.clone() });
        let on = |device: &str, method: &str| {
            let options = SessionOptions {
                method: Rival::parse(method).unwrap().method(),
                draft: Some(open(&draft, device)),
                record_selection: true,
                ..SessionOptions::default()
            };
            run(&path, device, &tiny.prompt(N), &[3, 1, 4], options)
        };
        for method in ["last:0.5", "random:0.5", "gemfilter:0.3@1", "specprefill:0.3"] {
            let what = format!("{} {method}", tiny.name);
            let ((expected, cpu), (got, gpu)) = (on("CPU", method), on("CUDA0", method));
            let overlap = overlap(&gpu, &cpu);
            println!("{what}: sets overlap by {overlap:.4}");
            let chosen_by_scores = !method.contains(":0.5");
            assert!(overlap >= if chosen_by_scores { 0.95 } else { 1.0 }, "{what}: sets overlap by {overlap}");
            if overlap == 1.0 {
                for (got, expected) in got.iter().zip(&expected) {
                    let error = nmse(got, expected);
                    assert!(error <= F32_WEIGHTS, "{what}: NMSE {error}");
                }
            }
        }
    }
}
