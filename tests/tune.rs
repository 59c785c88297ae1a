//! `spts-cli tune`: from prompts to a schedule that runs take, searches that were stopped, bounds that nothing meets.
#![cfg(feature = "cli")]

mod support;

use std::fs;
use std::ops::ControlFlow;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use spts::eval::tasks::{TaskData, ask};
use spts::method::Dense;
use spts::method::spts::schedule::Schedule;
use spts::session::generate::{GenerateOptions, StopReason};
use spts::session::prefill::PrefillProgress;
use spts::session::sampler::{Sampler, SamplerParams};
use spts::tune::beside_dense::{beside, dense};
use spts::{Model, ModelOptions, Session, SessionOptions};
use support::scene::{Scene, stderr};
use support::tiny::Tiny;

/// A random model whose prefill costs enough for skipping to save time.
fn scene() -> Scene {
    let scene = Scene::new();
    let larger = Tiny {
        n_layer: 6,
        n_embd: 128,
        n_head: 4,
        n_head_kv: 4,
        head_dim: 32,
        n_rot: 32,
        n_ff: 512,
        ..Tiny::named("llama")
    };
    larger.build().write(&scene.path("tiny.gguf"));
    scene
}

/// 900 tokens and more.
fn text(seed: usize) -> String {
    (0..40).map(|i| format!("the rain in year {} fell on the inner tin. ", i * 7 + seed)).collect()
}

/// A prompt to be answered with exactly this; every other one of a task takes any answer.
fn task(seed: usize, answer: &str) -> Value {
    // What a random model says need be no text: a byte that is none is shown as U+FFFD.
    let any = ('!'..='~').chain(['\u{fffd}']).map(String::from).collect::<Vec<_>>();
    let (answers, metric) = if seed % 4 < 2 { (vec![answer.to_owned()], "exact") } else { (any, "any") };
    json!({ "task": (["a", "b"][seed % 2]), "prompt": text(seed), "answers": answers, "metric": metric, "n_predict": 4 })
}

/// Prompts of which one half takes any answer and the other none: no schedule loses any score.
fn prompts(scene: &Scene, n: usize) {
    write(scene, &(0..n).map(|i| task(i, "no such answer")).collect::<Vec<_>>());
}

fn write(scene: &Scene, lines: &[Value]) {
    scene.write("data.jsonl", lines.iter().map(|l| format!("{l}\n")).collect::<String>());
}

const TUNE: [&str; 9] =
    ["tune", "-m", "tiny.gguf", "--data", "data.jsonl", "--schedule", "0.5,0.4,0.3,0.2", "--candidates", "6"];

fn with<'a>(more: &[&'a str]) -> Vec<&'a str> {
    TUNE.into_iter().chain(more.iter().copied()).collect()
}

fn journal(scene: &Scene) -> Vec<Value> {
    let content = fs::read_to_string(scene.path("tiny.schedule.jsonl")).unwrap();
    content.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[test]
fn from_prompts_to_a_schedule_that_runs_take() {
    let scene = scene();
    prompts(&scene, 16);
    let output = scene.run(&TUNE);
    let (said, report) = (stderr(&output), String::from_utf8(output.stdout).unwrap());
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("6 schedules on 8 prompts, 8 more to report"), "{said}");
    assert!(said.contains("6 schedules after 4 prompts: 3 go on"), "{said}");
    // All that were tried, and what was found on the prompts that had no part in it.
    for expected in ["base", "keep 0.7", "max 7", "Found: ", "8 prompts of 2 tasks", "Written to tiny.schedule: "] {
        assert!(report.contains(expected), "{expected}: {report}");
    }
    let written = fs::read_to_string(scene.path("tiny.schedule")).unwrap();
    let found = report.lines().find_map(|l| l.strip_prefix("Found: ")).unwrap().split(". On").next().unwrap();
    assert!(written.starts_with("# Found by spts-cli tune ") && written.contains("name = tuned"), "{written}");
    assert!(written.contains(&format!("# {found} of 6 schedules around 0.5,0.4,0.3,0.2")), "{written}");
    assert!(written.contains("# On the other 8: score "), "{written}");

    // No prompt is in both halves, and each candidate saw more prompts the longer it stayed.
    let lines = journal(&scene);
    let of = |config: &str| lines[1..].iter().filter(|l| l["config"] == config).collect::<Vec<_>>();
    assert_eq!(of("dense").len(), 16, "every prompt once");
    let (searched, reported): (Vec<&Value>, Vec<&Value>) =
        of(found).into_iter().partition(|l| l["beside_dense"]["kl"].is_number());
    assert_eq!((searched.len(), reported.len()), (8, 8));
    assert!(searched.iter().all(|l| reported.iter().all(|r| r["line"] != l["line"])));
    assert_eq!(of("base").len() % 4, 0);
    // Times are compared with those of dense in the same turn.
    let with_dense = |l: &&Value| l["beside_dense"]["dense_ttft_s"].as_f64() > Some(0.0);
    assert!(lines[1..].iter().filter(|l| l["config"] != "dense").all(|l| with_dense(&l)));
    // The results are such as `eval tasks` writes.
    let only = format!("dense,{found}");
    assert!(scene.good(&["eval", "tasks", "--report", "tiny.schedule.jsonl", "--only", &only]).contains("16 prompts"));

    // Runs take it from beside the model, unless told otherwise.
    scene.write("doc.txt", text(3));
    let run = |more: &[&str]| {
        let base = ["-m", "tiny.gguf", "-f", "doc.txt", "-n", "1", "--json"];
        let output = scene.run(&[&base[..], more].concat());
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        (json["schedule"].as_str().unwrap().to_owned(), stderr(&output).contains("schedule of tiny.schedule"))
    };
    assert_eq!(run(&[]), ("tuned".into(), true));
    assert_eq!(run(&["--keep", "0.9"]), ("tuned".into(), true));
    assert_eq!(run(&["--schedule", "default"]), ("dense".into(), false), "a short prompt");
    assert_eq!(run(&["--no-spts"]), ("dense".into(), false));
    let plan = scene.good(&["plan", "-m", "tiny.gguf", "-n", "900"]);
    assert!(plan.contains("schedule tuned"), "{plan}");
    let bench = scene.json(&["bench", "-m", "tiny.gguf", "-p", "64", "-n", "0", "-r", "1", "--json"]);
    assert_eq!(bench["schedule"], "tuned");
    // Another model has none, and a broken one is named.
    fs::copy(scene.path("tiny.gguf"), scene.path("tiny.b.gguf")).unwrap();
    assert!(!scene.good(&["plan", "-m", "tiny.b.gguf", "-n", "900"]).contains("tuned"));
    scene.write("tiny.schedule", "skip_from = 99\nstage = 99 0.5 0.1\n");
    for args in [&["plan", "-m", "tiny.gguf", "-n", "900"][..], &["-m", "tiny.gguf", "-p", "x"]] {
        assert!(scene.bad(1, args).contains("tiny.schedule: "), "{args:?}");
    }
    // Nothing that a run reads is written over: neither by it, nor, as it is not of tune's making, by another search.
    let dump = scene.bad(1, &["-m", "tiny.gguf", "-f", "doc.txt", "--dump-selection", "tiny.schedule"]);
    assert!(dump.contains("is the same file as tiny.schedule"), "{dump}");
    assert!(scene.bad(1, &TUNE).contains("tiny.schedule: exists, and was not written by tune"));
}

#[test]
fn a_stopped_search_goes_on() {
    let scene = scene();
    prompts(&scene, 8);
    let report = scene.good(&TUNE);
    let whole = fs::read_to_string(scene.path("tiny.schedule.jsonl")).unwrap();
    let schedule = fs::read_to_string(scene.path("tiny.schedule")).unwrap();
    // A second time there is nothing to measure, and the same comes out, but for the date.
    assert_eq!(scene.good(&TUNE), report);
    assert_eq!(fs::read_to_string(scene.path("tiny.schedule.jsonl")).unwrap(), whole);
    let body = |s: &str| s.lines().skip(1).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(body(&fs::read_to_string(scene.path("tiny.schedule")).unwrap()), body(&schedule));
    // Killed within a result: what was there stays.
    let cut = whole.match_indices('\n').nth(6).unwrap().0 + 30;
    scene.write("tiny.schedule.jsonl", &whole[..cut]);
    scene.good(&TUNE);
    let again = fs::read_to_string(scene.path("tiny.schedule.jsonl")).unwrap();
    let kept = whole[..cut].rfind('\n').unwrap() + 1;
    assert_eq!(again[..kept], whole[..kept]);
    let mut keys: Vec<String> = again
        .lines()
        .skip(1)
        .map(|l| {
            let line: Value = serde_json::from_str(l).unwrap();
            format!("{} {}", line["line"], line["config"])
        })
        .collect();
    let n = keys.len();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), n, "nothing is measured twice");

    // Results of other data, another base or another model are refused and stay.
    let other = [&["tune", "-m", "tiny.gguf", "--data", "data.jsonl"][..], &["--schedule", "0.6,0.4,0.3,0.2"]].concat();
    assert!(scene.bad(1, &other).contains("another configuration called `"));
    prompts(&scene, 6);
    assert!(scene.bad(1, &TUNE).contains("another data file"));
    prompts(&scene, 8);
    Tiny { n_layer: 6, ..Tiny::named("qwen2") }.build().write(&scene.path("tiny.gguf"));
    assert!(scene.bad(1, &TUNE).contains("another model"));
    assert_eq!(fs::read_to_string(scene.path("tiny.schedule.jsonl")).unwrap(), again);
}

#[cfg(unix)]
#[test]
fn ctrl_c_keeps_what_was_measured() {
    let scene = scene();
    prompts(&scene, 40);
    let mut child = scene.command(&TUNE).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let lines = || fs::read_to_string(scene.path("tiny.schedule.jsonl")).map_or(0, |s| s.lines().count());
    let start = Instant::now();
    while lines() < 4 {
        assert_eq!(child.try_wait().unwrap(), None, "it ended before it was stopped");
        assert!(start.elapsed() < Duration::from_secs(120), "it measures nothing");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("is kept in tiny.schedule.jsonl: the same command goes on"),
        "{}",
        stderr(&output)
    );
    assert!(lines() >= 4);
    let names = fs::read_dir(scene.path(".")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    assert!(names.into_iter().all(|n| n != "tiny.schedule" && !n.ends_with(".tmp")));
}

#[test]
fn a_bound_that_nothing_meets() {
    let scene = scene();
    // The right answers are dense's own, which the others do not give.
    let ask = |lines: &[Value]| {
        write(&scene, lines);
        let args = ["eval", "tasks", "-m", "tiny.gguf", "--data", "data.jsonl", "--config", "dense"];
        scene.good(&[&args[..], &["--keep-text", "--out", "dense.jsonl"]].concat());
        let content = fs::read_to_string(scene.path("dense.jsonl")).unwrap();
        fs::remove_file(scene.path("dense.jsonl")).unwrap();
        let mut answers: Vec<Value> = content.lines().skip(1).map(|l| serde_json::from_str(l).unwrap()).collect();
        answers.sort_by_key(|a| a["line"].as_u64());
        answers.iter().map(|a| a["text"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let answers = ask(&(0..8).map(|i| task(i, "?")).collect::<Vec<_>>());
    assert!(answers.iter().all(|a| !a.trim().is_empty()), "{answers:?}");
    write(&scene, &answers.iter().enumerate().map(|(i, a)| task(i, a)).collect::<Vec<_>>());
    let before = journal_or_none(&scene);
    let output = scene.run(&with(&["--max-loss", "0.5"]));
    let said = stderr(&output);
    assert_eq!((output.status.code(), output.stdout.is_empty(), before), (Some(1), true, None), "{said}");
    let error = said.lines().last().unwrap();
    assert!(
        error.starts_with(
            "spts-cli: error: no schedule of 6 is faster than dense and within --max-loss 0.5; the nearest, "
        ),
        "{said}"
    );
    assert!(said.contains("tokens unlike dense's"), "what was tried is shown: {said}");
    assert!(error.contains(" loses ") && error.contains("tiny.schedule.jsonl"), "{said}");
    assert!(!scene.path("tiny.schedule").exists());
    let dense = journal(&scene).into_iter().filter(|l| l["config"] == "dense");
    assert!(dense.into_iter().all(|l| l["score"] == 1.0), "the answers are dense's own");
    // With half of the score to lose the same results lead to a schedule.
    let first = journal(&scene).len();
    let report = scene.good(&with(&["--max-loss", "75"]));
    assert!(report.contains("Found: ") && journal(&scene).len() > first, "{report}");
    assert!(scene.path("tiny.schedule").exists());
    // Where dense has nothing to lose, no loss is seen: that is no reason to skip.
    fs::remove_file(scene.path("tiny.schedule.jsonl")).unwrap();
    write(&scene, &[0, 1, 4, 5, 8, 9, 12, 13].map(|i| task(i, "no such answer")));
    let output = scene.run(&TUNE);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("dense itself scores 0.0 of 100"), "{said}");
}

fn journal_or_none(scene: &Scene) -> Option<String> {
    fs::read_to_string(scene.path("tiny.schedule.jsonl")).ok()
}

#[test]
fn a_text_makes_prompts() {
    let scene = scene();
    scene.write("long.txt", text(0).repeat(4));
    let tune = ["tune", "-m", "tiny.gguf", "--text", "long.txt", "--schedule", "0.5,0.4,0.3,0.2", "--candidates", "3"];
    // A random model finds none, and so says that there is nothing to lose.
    let output = scene.run(&[&tune[..], &["-n", "900", "--samples", "2", "-o", "other.schedule"]].concat());
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("long.txt: dense itself scores 0.0 of 100"), "{said}");
    let lines = fs::read_to_string(scene.path("other.schedule.jsonl")).unwrap();
    for name in ["1 number", "4 numbers"] {
        assert!(lines.contains(&format!(r#""task":"{name}","length":900,"n_tokens":900"#)), "{lines}");
    }
    let message = scene.bad(1, &[&tune[..], &["-n", "3000"]].concat());
    assert!(message.contains("-n 3000: ") && message.contains("the context holds 2,048"), "{message}");
}

#[test]
fn what_cannot_be_searched() {
    let scene = scene();
    prompts(&scene, 8);
    let run = |args: &[&str]| scene.bad(1, args);
    // The default's budgets leave prompts of this length dense.
    let message = run(&["tune", "-m", "tiny.gguf", "--data", "data.jsonl"]);
    assert!(message.contains("no variant of schedule early leaves anything out of it"), "{message}");
    assert!(message.contains("its first budget is 20,480") && message.contains("0.5,0.4,0.3,0.2"), "{message}");
    assert!(run(&with(&["--out", "no/such/x"])).contains("no/such/x: there is no such folder"));
    assert!(run(&with(&["--out", "data.jsonl"])).contains("is the same file as data.jsonl"));
    assert!(run(&with(&["--out", "tiny.gguf"])).contains("is the same file as tiny.gguf"));
    assert!(run(&with(&["--tasks", "c"])).contains("no task is called `c`"));
    scene.write("notes.txt", "mine");
    assert!(run(&with(&["--out", "notes.txt"])).contains("notes.txt: exists, and was not written by tune"));
    scene.write("x.jsonl", "mine");
    assert!(run(&with(&["--out", "x"])).contains("x.jsonl: line 1: no results"));
    assert_eq!(fs::read_to_string(scene.path("x.jsonl")).unwrap(), "mine");
    prompts(&scene, 1);
    assert!(run(&TUNE).contains("found a single prompt, expected two at least"));
    assert!(!scene.path("tiny.schedule").exists() && !scene.path("tiny.schedule.jsonl").exists());
    let usage = |args: &[&str]| scene.bad(2, args);
    assert!(usage(&["tune", "-m", "tiny.gguf"]).contains("--data FILE (prompts with answers) or --text FILE"));
    assert!(usage(&with(&["--text", "x"])).contains("cannot be used with"));
    assert!(usage(&with(&["--max-loss", "-1"])).contains("expected a number from 0 to 100"));
}

#[test]
fn measured_beside_dense_is_what_is_answered() {
    compare_answers(&scene());
}

/// Where an answer cannot be forgotten token by token, the prompt is read again.
#[test]
fn measured_beside_dense_in_a_hybrid() {
    let scene = Scene::new();
    Tiny { n_embd: 64, n_ff: 128, ..Tiny::named("qwen35") }.build().write(&scene.path("tiny.gguf"));
    compare_answers(&scene);
}

fn compare_answers(scene: &Scene) {
    prompts(scene, 3);
    let model = Model::open(&scene.path("tiny.gguf"), ModelOptions::default()).unwrap();
    let data = TaskData::parse(&fs::read_to_string(scene.path("data.jsonl")).unwrap(), "data").unwrap();
    let mut session = Session::new(model.clone(), SessionOptions::default()).unwrap();
    let go_on = &mut |_: PrefillProgress| ControlFlow::Continue(());
    let mut parted = 0;
    for task in &data.tasks {
        let prompt = task.text.encode(model.tokenizer(), model.chat_template()).unwrap();
        session.set_method(Arc::new(Dense)).unwrap();
        let of_dense = dense(&mut session, task, &prompt, go_on).unwrap();
        let asked = ask(&mut session, task, &prompt, go_on).unwrap();
        assert_eq!((&of_dense.answer.text, of_dense.answer.n_generated), (&asked.text, asked.n_generated));
        // Dense stays with itself.
        let (answer, same) = beside(&mut session, task, &prompt, &of_dense, go_on).unwrap();
        assert_eq!((answer.text, same.agreement, same.kl), (asked.text, 1.0, 0.0));
        for budgets in [[0.9; 4], [0.5, 0.4, 0.3, 0.2], [0.1, 0.08, 0.06, 0.04]] {
            let schedule = Schedule::fractional(model.shape(), budgets, 0.01).unwrap();
            session.set_method(schedule.into()).unwrap();
            let (answer, near) = beside(&mut session, task, &prompt, &of_dense, go_on).unwrap();
            let asked = ask(&mut session, task, &prompt, go_on).unwrap();
            assert_eq!(
                (answer.text, answer.score, answer.n_generated, answer.cache_kept),
                (asked.text, asked.score, asked.n_generated, asked.cache_kept)
            );
            assert!((0.0..1.0).contains(&near.agreement) || near.agreement == 1.0);
            assert!(near.kl > 0.0);
            parted += usize::from(near.agreement < 1.0);
        }
    }
    assert!(parted > 0, "no answer departs from dense's: nothing is tested");
}

#[test]
fn an_answer_that_was_cut_off_is_none() {
    let scene = scene();
    let model = Model::open(&scene.path("tiny.gguf"), ModelOptions::default()).unwrap();
    let prompt = model.tokenizer().encode("the rain in year 7", true, true);
    let mut session = Session::new(model, SessionOptions::default()).unwrap();
    let stop = session.interrupt_flag();
    let mut generate = |cut: bool| {
        session.clear();
        let options = GenerateOptions { n_predict: 5, stop_at_eog: false, ..GenerateOptions::default() };
        let mut sampler = Sampler::new(SamplerParams::greedy()).unwrap();
        let go_on = &mut |_: PrefillProgress| ControlFlow::Continue(());
        let said = session.generate(&prompt, &mut sampler, options, go_on, &mut |_| {
            stop.store(cut, Ordering::Relaxed);
            ControlFlow::Continue(())
        });
        said.unwrap()
    };
    let whole = generate(false);
    assert_eq!((whole.stop, whole.unless_cut().unwrap().tokens.len()), (StopReason::Length, 5));
    let cut = generate(true);
    assert_eq!((cut.stop, cut.tokens.len()), (StopReason::Interrupted, 1));
    assert!(matches!(cut.unless_cut(), Err(spts::Error::Interrupted)));
}
