//! `spts-cli eval`: the prompts it makes, the numbers it prints, and what it refuses.
#![cfg(feature = "cli")]

mod support;

use spts::eval::error::EvalError;
use spts::eval::needle::NeedleTask;
use spts::{Model, ModelOptions};
use support::scene::Scene;

fn text() -> String {
    (0..400).map(|i| format!("the rain in year {i} fell on the inner tin. ")).collect()
}

fn scene() -> Scene {
    let scene = Scene::new();
    scene.write("text.txt", text());
    scene
}

fn keys(json: &serde_json::Value) -> Vec<&str> {
    json.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn needles_lie_where_they_should() {
    let scene = scene();
    let model = Model::open(&scene.path("tiny.gguf"), ModelOptions::default()).unwrap();
    let tokenizer = model.tokenizer();
    let text = tokenizer.encode(&text(), false, false);
    for n_keys in [1, 4] {
        let task = NeedleTask { n_tokens: 1500, n_keys, n_samples: 5 };
        let prompts = task.prompts(tokenizer, &text).unwrap();
        assert_eq!(task.prompts(tokenizer, &text).unwrap(), prompts, "the same task gives the same prompts");
        assert_eq!(prompts.len(), 5);
        for (i, p) in prompts.iter().enumerate() {
            assert_eq!((p.tokens.len(), p.expected.len()), (1500, 7));
            assert!((p.depth - (i as f64 + 0.5) / 5.0).abs() < 1e-9);
            let prompt = tokenizer.decode(&p.tokens);
            assert_eq!(
                prompt.matches("The special number of the ").count(),
                n_keys + 1,
                "needles and the answer's beginning"
            );
            let needle = prompt.find(&format!(" is {}.", p.expected)).expect("the number is there");
            assert_eq!(prompt.matches(&p.expected).count(), 1);
            assert!((needle as f64 / prompt.len() as f64 - p.depth).abs() < 0.15, "depth {}", p.depth);
            // The question names the key of this number.
            let key = prompt[..needle].rsplit(' ').next().unwrap();
            assert!(prompt.ends_with(&format!("Answer: The special number of the {key} is")), "{key}");
            // Needles stand between sentences.
            let before = prompt[..needle].rfind(" The special").unwrap();
            assert!(prompt[..before].ends_with('.'), "{}", &prompt[before - 20..before]);
        }
    }
    let task = NeedleTask { n_tokens: 100_000, n_keys: 1, n_samples: 1 };
    assert!(matches!(task.prompts(tokenizer, &text), Err(EvalError::TextTooShort { .. })));
    let task = NeedleTask { n_tokens: 40, ..task };
    assert!(matches!(task.prompts(tokenizer, &text), Err(EvalError::PromptTooShort { found: 40, .. })));
    assert_eq!(
        NeedleTask { n_keys: 99, ..task }.prompts(tokenizer, &text),
        Err(EvalError::Keys { found: 99, most: 16 })
    );
}

const NEEDLE: [&str; 10] = ["eval", "needle", "-m", "tiny.gguf", "-f", "text.txt", "-n", "700,900", "--samples", "2"];

#[test]
fn needle_configurations() {
    let scene = scene();
    let configs = ["--config", "dense", "--config", "half=0.5,0.4,0.3,0.2 --no-proxy --probe-queries 4"];
    let args = [NEEDLE.as_slice(), &configs].concat();
    let json = scene.json(&[args.as_slice(), &["--json"]].concat());
    let results = json["results"].as_array().unwrap();
    assert_eq!(keys(&results[0]), ["n_tokens", "keys", "config", "answered", "samples", "cache_kept", "items"]);
    assert_eq!(keys(&results[0]["items"][0]), ["depth", "expected", "text", "correct"]);
    let of = |i: usize| (results[i]["n_tokens"].as_u64().unwrap(), results[i]["config"].as_str().unwrap());
    assert_eq!(
        (0..results.len()).map(of).collect::<Vec<_>>(),
        [(700, "dense"), (700, "half"), (900, "dense"), (900, "half")]
    );
    assert_eq!(results[0]["cache_kept"], 1.0);
    assert!(results[1]["cache_kept"].as_f64().unwrap() < 0.9);
    // Weights of a random model find nothing.
    assert!(results.iter().all(|r| r["answered"] == 0 && r["samples"] == 2));
    let table = scene.good(&args);
    assert!(table.contains("0 of 2") && table.contains("half"), "{table}");
    scene.good(&[args.as_slice(), &["--svg", "map.svg"]].concat());
    let svg = std::fs::read_to_string(scene.path("map.svg")).unwrap();
    assert_eq!(svg.matches("fill=\"#").count(), 2 * 2 * 2, "configurations, lengths, samples");
    for text in ["dense", "half", "700", "900", "25 %", "75 %", "depth", "tokens"] {
        assert!(svg.contains(&format!(">{text}</text>")), "{text}: {svg}");
    }
    // What cannot be written is found before anything is read, and what is read is not replaced.
    let refused = |svg: &str| scene.bad(1, &[args.as_slice(), &["--svg", svg]].concat());
    assert!(refused("no/such/map.svg").contains("cannot create"));
    assert!(refused("text.txt").contains("is the same file as text.txt"));
    // A run that fails leaves the older map as it was.
    let bad = ["eval", "needle", "-m", "tiny.gguf", "-f", "text.txt", "-n", "9", "--svg", "map.svg"];
    scene.bad(1, &bad);
    assert_eq!(std::fs::read_to_string(scene.path("map.svg")).unwrap(), svg);
    assert!(scene.bad(2, &[NEEDLE.as_slice(), &["--config", "paper --no-such"]].concat()).contains("--no-such"));
    assert!(scene.bad(1, &[NEEDLE.as_slice(), &["--config", "nothing-known"]].concat()).contains("nothing-known"));
    assert!(scene.bad(1, &["eval", "needle", "-m", "tiny.gguf", "-f", "text.txt", "-n", "9"]).contains("no room"));
    assert!(scene.bad(1, &["eval", "needle", "-m", "tiny.gguf", "-f", "text.txt", "-n", "900000"]).contains("longer"));
}

#[test]
fn divergence_from_dense() {
    let scene = scene();
    let args =
        ["eval", "kl", "-m", "tiny.gguf", "-f", "text.txt", "-n", "600", "--next", "5", "--samples", "2", "--json"];
    let configs =
        ["--config", "dense", "--config", "0.2,0.15,0.1,0.05 --no-proxy --probe-queries 2", "--config", "default"];
    let json = scene.json(&[args.as_slice(), &configs].concat());
    let of = |i: usize| (json["results"][i]["kl"].as_f64().unwrap(), json["results"][i]["same_top"].as_f64().unwrap());
    assert_eq!(of(0), (0.0, 1.0), "dense is dense");
    assert!(of(1).0 > 1e-4 && of(1).0.is_finite(), "{:?}", of(1));
    assert_eq!(of(2), (0.0, 1.0), "600 tokens are below the default's first budget");
    // By position, with intervals over the two samples.
    let skipping = &json["results"][1];
    let ranges: Vec<(u64, u64)> = skipping["by_position"]
        .as_array()
        .unwrap()
        .iter()
        .map(|b| (b["first"].as_u64().unwrap(), b["last"].as_u64().unwrap()))
        .collect();
    assert_eq!(ranges, [(1, 1), (2, 5)]);
    let kl = |b: &serde_json::Value| b["kl"]["value"].as_f64().unwrap();
    let (first, rest) = (kl(&skipping["by_position"][0]), kl(&skipping["by_position"][1]));
    assert!(((first + 4.0 * rest) / 5.0 - of(1).0).abs() < 1e-9, "{skipping}");
    assert!(skipping["all"]["kl"]["interval"].is_array(), "{skipping}");
    assert_eq!(json["results"][0]["all"]["perplexity_ratio"]["value"], 1.0);
    let table = scene.good(&["eval", "text", "-m", "tiny.gguf", "-f", "text.txt", "-n", "300", "--next", "9"]);
    assert!(table.contains("2 to 8") && table.contains("perplexity ratio"), "{table}");
}

#[test]
fn proxies_are_measured_where_the_schedule_skips() {
    let scene = scene();
    let args = ["eval", "proxies", "-m", "tiny.gguf", "-f", "text.txt", "-n", "500", "--schedule", "rule", "--json"];
    assert!(scene.bad(1, &args).contains("tiny.spts.gguf"));
    // All channels at full rank: the proxy is the FFN, up to F16.
    scene.good(&["calibrate", "-m", "tiny.gguf", "-f", "text.txt", "--tokens", "600"]);
    let json = scene.json(&args);
    let layers = json["layers"].as_array().unwrap();
    assert_eq!(layers.iter().map(|l| l["il"].as_u64().unwrap()).collect::<Vec<_>>(), [2, 3, 4]);
    for l in layers {
        assert!(l["rank_correlation"].as_f64().unwrap() > 0.999, "{l}");
        assert!(l["norm_by_c"].as_f64().unwrap() > 0.97 && l["product_by_cs"].as_f64().unwrap() > 0.97, "{l}");
        assert!(l["norm_by_s"].as_f64().unwrap() < 0.9, "{l}");
    }
    // Two channels of rank one are worse.
    scene.good(&["calibrate", "-m", "tiny.gguf", "-f", "text.txt", "--tokens", "600", "--d-low", "2", "--rank", "1"]);
    let poor = scene.json(&args);
    for (poor, good) in poor["layers"].as_array().unwrap().iter().zip(layers) {
        assert!(poor["norm_by_c"].as_f64() < good["norm_by_c"].as_f64());
    }
    assert!(scene.bad(2, &[args.as_slice(), &["--share", "1.5"]].concat()).contains("between 0 and 1"));
    assert!(
        scene
            .bad(1, &["eval", "proxies", "-m", "tiny.gguf", "-f", "text.txt", "-n", "500", "--no-spts"])
            .contains("--no-spts")
    );
}

/// Results that are no numbers are compared with nothing.
#[test]
fn divergence_of_no_numbers() {
    let scene = scene();
    let mut file = support::tiny::Tiny::named("llama").build();
    file.tensors.iter_mut().find(|t| t.name == "output.weight").unwrap().data[7] = f32::NAN;
    file.write(&scene.path("nan.gguf"));
    for json in [&[][..], &["--json"]] {
        let args = ["eval", "kl", "-m", "nan.gguf", "-f", "text.txt", "-n", "600", "--next", "5", "--samples", "1"];
        let message = scene.bad(1, &[&args, json].concat());
        assert!(message.contains("the model's logit of token 0 is NaN"), "{message}");
    }
    scene.good(&["calibrate", "-m", "nan.gguf", "-f", "text.txt", "--tokens", "600"]);
    let message = scene.bad(1, &["eval", "proxies", "-m", "nan.gguf", "-f", "text.txt", "-n", "500"]);
    assert!(message.contains("the model's logit of token 0 is NaN"), "{message}");
}
