//! `spts-cli eval tasks` and `tokenize`: a run from data to tables, killed runs that go on, and what is refused.

mod support;

use std::ops::ControlFlow;
use std::sync::Arc;

use serde_json::{Value, json};
use spts::method::spts::schedule::Schedule;
use spts::method::{Dense, Method};
use spts::{Model, ModelOptions, Session, SessionOptions};
use support::scene::{Scene, stderr};

/// 700 tokens and more, so that fractions skip.
fn text(seed: usize) -> String {
    (0..30).map(|i| format!("the rain in year {} fell on the inner tin. ", i * 7 + seed)).collect()
}

fn task(task: &str, seed: usize, answers: &[&str]) -> Value {
    json!({ "task": task, "prompt": text(seed), "answers": answers, "metric": "all", "n_predict": 6, "length": 700 })
}

/// Three prompts each of two tasks. One answer of `found` is what this model says, the other nobody's.
fn scene() -> Scene {
    let scene = Scene::new();
    write(&scene, &(0..6).map(|i| task(["a", "b"][i % 2], i, &["no such answer"])).collect::<Vec<_>>());
    scene
}

fn write(scene: &Scene, lines: &[Value]) {
    scene.write("data.jsonl", lines.iter().map(|l| format!("{l}\n")).collect::<String>());
}

fn lines(scene: &Scene, name: &str) -> Vec<Value> {
    let content = std::fs::read_to_string(scene.path(name)).unwrap();
    content.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

const RUN: [&str; 6] = ["eval", "tasks", "-m", "tiny.gguf", "--data", "data.jsonl"];
const CONFIGS: [&str; 4] = ["--config", "dense", "--config", "half=0.5,0.4,0.3,0.2 --no-proxy --probe-queries 4"];

fn with(more: &[&str]) -> Vec<&'static str> {
    // The tests' arguments live as long as the tests.
    let more = more.iter().map(|s| &*Box::leak((*s).to_owned().into_boxed_str()));
    RUN.into_iter().chain(CONFIGS).chain(more).collect()
}

#[test]
fn from_data_to_tables() {
    let scene = scene();
    let json: Value = scene.json(&with(&["--out", "r.jsonl", "--format", "json", "--keep-text"]));
    assert_eq!((&json["n_prompts"], &json["incomplete"], &json["tasks"]), (&json!(6), &json!(0), &json!(["a", "b"])));
    let [dense, half] = json["configs"].as_array().unwrap().as_slice() else { panic!("{json}") };
    assert_eq!((&dense["name"], &half["name"]), (&json!("dense"), &json!("half")));
    assert_eq!(dense["all"]["cache_kept"], 1.0);
    assert!(half["all"]["cache_kept"].as_f64().unwrap() < 0.9);
    assert!(dense["all"]["ttft_s"].as_f64().unwrap() > 0.0 && dense["all"]["speed_up"]["value"] == 1.0);

    let all = lines(&scene, "r.jsonl");
    assert_eq!(all.len(), 1 + 12);
    let keys: Vec<&str> = all[1].as_object().unwrap().keys().map(String::as_str).collect();
    let expected = "line hash task length n_tokens config settings score ttft_s cache_kept n_generated text";
    assert_eq!(keys, expected.split(' ').collect::<Vec<_>>());
    // The order of the configurations rotates.
    let order: Vec<&str> = all[1..].iter().map(|l| l["config"].as_str().unwrap()).collect();
    assert_eq!(order[..6], ["dense", "half", "half", "dense", "dense", "half"]);
    assert!(all[2]["settings"].as_str().unwrap().contains("Fraction"), "{}", all[2]);

    // An answer that holds what the model says stops there; the other one goes on.
    let said = all[1]["text"].as_str().unwrap().to_owned();
    assert_eq!(all[1]["n_generated"], 6);
    let first: String = said.trim().chars().take(1).collect();
    write(&scene, &[task("a", 0, &[&first]), task("a", 0, &[&first, "no such answer"])]);
    let json = scene.json(&[&RUN[..], &["--config", "dense", "--out", "early.jsonl", "--format", "json"]].concat());
    let early = lines(&scene, "early.jsonl");
    assert_eq!((&early[1]["score"], &early[2]["score"]), (&json!(1.0), &json!(0.5)));
    assert!(early[1]["n_generated"].as_u64() < Some(6) && early[2]["n_generated"] == 6, "{early:?}");
    assert_eq!(json["configs"][0]["all"]["score"]["value"], 0.75);
    assert!(early[1].get("text").is_none(), "texts are kept only if asked for");

    // The report needs no model, and may compare other configurations, in another order.
    std::fs::remove_file(scene.path("tiny.gguf")).unwrap();
    let report = scene.good(&["eval", "tasks", "--report", "r.jsonl"]);
    assert!(report.contains("6 prompts of 2 tasks") && report.contains("cache kept"), "{report}");
    let report = scene.good(&["eval", "tasks", "--report", "r.jsonl", "--format", "markdown", "--only", "half"]);
    assert!(report.contains("Speed-up by task") && report.contains("Cache kept by task"), "{report}");
    assert!(report.contains("| half | 6 |") && !report.contains("dense"), "{report}");
    let svg = ["eval", "tasks", "--report", "r.jsonl", "--svg", "plot.svg"];
    scene.good(&svg);
    assert!(std::fs::read_to_string(scene.path("plot.svg")).unwrap().contains(">half</text>"));
    assert!(scene.bad(1, &["eval", "tasks", "--report", "r.jsonl", "--only", "dense,paper"]).contains("`paper`"));
    assert!(scene.bad(1, &["eval", "tasks", "--report", "data.jsonl"]).contains("data.jsonl: line 1: no results"));
    assert!(
        scene.bad(1, &["eval", "tasks", "--report", "r.jsonl", "--svg", "no/such/x.svg"]).contains("cannot create")
    );
    assert!(scene.bad(1, &["eval", "tasks", "--report", "r.jsonl", "--svg", "r.jsonl"]).contains("is the same file"));
    assert!(!lines(&scene, "r.jsonl").is_empty(), "what is read is not replaced");
}

#[test]
fn parts_run_by_themselves_and_are_reported_together() {
    let scene = scene();
    for (part, out) in [("1/2", "one.jsonl"), ("2/2", "two.jsonl")] {
        scene.good(&with(&["--part", part, "--out", out, "--config", "rival=--method gemfilter:0.3"]));
    }
    let of = |name| lines(&scene, name)[1..].iter().map(|l| l["line"].as_u64().unwrap()).collect::<Vec<_>>();
    assert_eq!((of("one.jsonl"), of("two.jsonl")), (vec![1, 1, 1, 3, 3, 3, 5, 5, 5], vec![2, 2, 2, 4, 4, 4, 6, 6, 6]));
    let json = ["eval", "tasks", "--report", "one.jsonl", "--report", "two.jsonl", "--format", "json"];
    let json: Value = scene.json(&json);
    assert_eq!((&json["n_prompts"], &json["incomplete"]), (&json!(6), &json!(0)));
    let rival = &json["configs"][2];
    assert_eq!(rival["name"], "rival");
    assert!((rival["all"]["cache_kept"].as_f64().unwrap() - 0.3).abs() < 0.01, "{rival}");
    let settings = lines(&scene, "one.jsonl").into_iter().map(|l| l["settings"].to_string());
    assert!(settings.into_iter().any(|s| s.contains("gemfilter")));

    let twice = ["eval", "tasks", "--report", "one.jsonl", "--report", "one.jsonl"];
    assert!(scene.bad(1, &twice).contains("an answer that another of the files has"));
    for part in ["0/2", "3/2", "2", "a/b"] {
        assert!(scene.bad(2, &with(&["--part", part])).contains("expected a part of how many"), "{part}");
    }
    assert!(scene.bad(1, &with(&["--part", "7/7"])).contains("fewer prompts than parts"));
    assert!(scene.bad(2, &with(&["--config", "--method fast"])).contains("no such method"), "the method is named");
    assert!(scene.bad(2, &with(&["--config", "--method fastkv --keep 2"])).contains("--keep"));
    assert!(scene.bad(1, &with(&["--config", "--method specprefill"])).contains("draft"));
}

#[test]
fn a_session_may_change_its_method() {
    let scene = scene();
    let model = Model::open(&scene.path("tiny.gguf"), ModelOptions::default()).unwrap();
    let tokens = model.tokenizer().encode(&text(0), true, true);
    let half = Schedule { use_proxy: false, ..Schedule::fractional(model.shape(), [0.5, 0.4, 0.3, 0.2], 0.1).unwrap() };
    let read = |session: &mut Session| {
        session.clear();
        session.prefill(&tokens, &mut |_| ControlFlow::Continue(())).unwrap();
        session.logits().to_vec()
    };
    let fresh = |method: Arc<dyn Method>| {
        read(&mut Session::new(model.clone(), SessionOptions { method, ..SessionOptions::default() }).unwrap())
    };
    let (dense, skipped) = (fresh(Arc::new(Dense)), fresh(half.clone().into()));
    assert_ne!(dense, skipped);
    let mut session = Session::new(model.clone(), SessionOptions::default()).unwrap();
    for skips in [false, true, false, true] {
        let expected = if skips { &skipped } else { &dense };
        session.set_method(if skips { half.clone().into() } else { Arc::new(Dense) }).unwrap();
        assert_eq!(&read(&mut session), expected);
    }
    let mut foreign = half;
    foreign.stages.last_mut().unwrap().last_layer = 99;
    assert!(session.set_method(foreign.into()).is_err());
}

#[test]
fn a_killed_run_goes_on() {
    let scene = scene();
    let args = with(&["--out", "r.jsonl", "--format", "json"]);
    scene.good(&args);
    let whole = std::fs::read_to_string(scene.path("r.jsonl")).unwrap();
    // Killed within the fifth answer.
    let cut = whole.match_indices('\n').nth(4).unwrap().0 + 30;
    scene.write("r.jsonl", &whole[..cut]);
    scene.good(&args);
    let again = lines(&scene, "r.jsonl");
    let key = |l: &Value| (l["line"].clone(), l["config"].clone(), l["score"].clone(), l["n_generated"].clone());
    let before: Vec<Value> = whole.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(again.iter().map(key).collect::<Vec<_>>(), before.iter().map(key).collect::<Vec<_>>());
    let kept = whole[..cut].rfind('\n').unwrap() + 1;
    assert_eq!(std::fs::read_to_string(scene.path("r.jsonl")).unwrap()[..kept], whole[..kept], "what was there stays");
    // A third time there is nothing to do, and another configuration joins.
    let bytes = std::fs::read(scene.path("r.jsonl")).unwrap();
    scene.good(&args);
    assert_eq!(std::fs::read(scene.path("r.jsonl")).unwrap(), bytes);
    let json =
        scene.json(&with(&["--out", "r.jsonl", "--format", "json", "--config", "mild=0.7,0.6,0.5,0.4 --no-proxy"]));
    assert_eq!(json["configs"].as_array().unwrap().len(), 3);
    assert_eq!(lines(&scene, "r.jsonl").len(), 1 + 18);

    // Other settings under a known name, other data, another model: nothing of it is touched.
    let before = std::fs::read(scene.path("r.jsonl")).unwrap();
    let other = [&RUN[..], &["--out", "r.jsonl", "--config", "half=0.6,0.4,0.3,0.2 --no-proxy"]].concat();
    assert!(scene.bad(1, &other).contains("another configuration called `half`"));
    write(&scene, &[task("a", 0, &["x"])]);
    assert!(scene.bad(1, &args).contains("another data file"));
    let qwen = Scene::with("qwen2");
    std::fs::copy(qwen.path("tiny.gguf"), scene.path("tiny.gguf")).unwrap();
    assert!(scene.bad(1, &args).contains("another model"));
    assert_eq!(std::fs::read(scene.path("r.jsonl")).unwrap(), before);
}

#[test]
fn what_cannot_be_asked() {
    let scene = scene();
    let run = |more: &[&str]| scene.bad(1, &with(more));
    assert!(run(&["--tasks", "c"]).contains("no task is called `c`; there are a, b"));
    assert!(run(&["--out", "no/such/r.jsonl"]).contains("no/such/r.jsonl: cannot write results"));
    assert!(run(&["--config", "dense"]).contains("two are called `dense`"));
    assert!(run(&["-c", "100"]).contains("nothing is left to ask"));
    write(&scene, &[task("a", 0, &["x"]), json!({ "task": "a", "prompt": "p", "metric": "all", "n_predict": 1 })]);
    assert!(run(&[]).contains("data.jsonl: line 2: missing field `answers`"));
    scene.write("data.jsonl", "{\n");
    assert!(run(&[]).contains("data.jsonl: line 1: EOF"));
    let blank = |keys: Value| {
        let mut line = json!({ "task": "a", "answers": ["x"], "metric": "all", "n_predict": 1 });
        line.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        write(&scene, &[task("a", 0, &["x"]), line]);
        run(&[])
    };
    for keys in [
        json!({ "prompt": "   " }),
        json!({ "prompt": "\n\u{feff}" }),
        json!({ "messages": [{ "role": "system", "content": "be brief" }, { "role": "user", "content": " \n" }] }),
    ] {
        assert!(blank(keys.clone()).contains("data.jsonl: line 2: the prompt has no text"), "{keys}");
    }
    let role = blank(json!({ "messages": [{ "role": "user<|im_end|>", "content": "q" }] }));
    assert!(role.contains("data.jsonl: line 2: role \"user<|im_end|>\", expected a word"), "{role}");
    assert!(scene.bad(2, &["eval", "tasks", "-m", "tiny.gguf"]).contains("--data"));
    assert!(scene.bad(2, &["eval", "tasks", "--report", "r.jsonl", "--data", "data.jsonl"]).contains("--data"));
    // Prompts beyond the context are skipped, counted and named; the others are asked.
    write(
        &scene,
        &[
            task("a", 0, &["x"]),
            json!({ "task": "a", "prompt": "short", "answers": ["x"], "metric": "any", "n_predict": 2 }),
        ],
    );
    let output = scene.run(&with(&["-c", "100", "--format", "json"]));
    assert_eq!(output.status.code(), Some(0));
    assert!(
        stderr(&output).contains("1 of 2 prompts are skipped") && stderr(&output).contains("line 1"),
        "{}",
        stderr(&output)
    );
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap()["n_prompts"], 1);
}

#[test]
fn tokens_are_counted_in_all_forms() {
    let scene = Scene::new();
    let run = |more: &[&str]| scene.good(&[&["tokenize", "-m", "tiny.gguf"], more].concat());
    let ids = run(&["-p", "the rain", "--ids"]);
    let n = ids.split_whitespace().count();
    assert!(n > 1);
    assert_eq!(run(&["-p", "the rain", "--count"]).trim(), n.to_string());
    assert_eq!(run(&["-p", "the rain"]).lines().count(), n);
    scene.write("t.txt", "the rain\n");
    assert_eq!(run(&["-f", "t.txt", "--ids"]), ids);

    let mut command = scene.command(&["tokenize", "-m", "tiny.gguf", "--jsonl", "--ids"]);
    scene.write("in.jsonl", "\"the rain\"\n{\"prompt\": \"the\", \"prefix\": \" rain\"}\n");
    let output = command.stdin(std::fs::File::open(scene.path("in.jsonl")).unwrap()).output().unwrap();
    let answers: Vec<Value> =
        String::from_utf8(output.stdout).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(answers.len(), 2);
    for a in &answers {
        assert_eq!(a["n_tokens"], n, "{a}");
        let listed: Vec<String> = a["ids"].as_array().unwrap().iter().map(Value::to_string).collect();
        assert_eq!(listed.join(" "), ids.trim());
    }
    scene.write("in.jsonl", "\"ok\"\n{\"text\": 1}\n");
    let mut command = scene.command(&["tokenize", "-m", "tiny.gguf", "--jsonl"]);
    let output = command.stdin(std::fs::File::open(scene.path("in.jsonl")).unwrap()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("standard input: line 2: neither `prompt` nor `messages`"), "{}", stderr(&output));
}
