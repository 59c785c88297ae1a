//! The report of a benchmark, and the models it makes up.

use crate::keys;
use crate::support::scene::Scene;

const BENCH: [&str; 13] = [
    "bench",
    "-m",
    "tiny.gguf",
    "-p",
    "120,80",
    "-n",
    "3",
    "-r",
    "2",
    "--schedule",
    "0.5,0.4,0.3,0.2",
    "--no-proxy",
    "--json",
];

#[test]
fn json_of_a_bench() {
    let json = Scene::new().json(&BENCH);
    assert_eq!(
        keys(&json),
        [
            "version",
            "commit",
            "ggml",
            "date",
            "model",
            "devices",
            "threads",
            "cache_type_k",
            "cache_type_v",
            "repacked_bytes",
            "schedule",
            "proxies",
            "repetitions",
            "n_decode",
            "rest_s",
            "seed",
            "load_s",
            "ubatch",
            "decode_empty_tps",
            "prompts",
            "peak_rss_bytes"
        ]
    );
    assert_eq!(
        keys(&json["model"]),
        ["name", "file", "synthetic", "arch", "n_layer", "n_params", "bytes", "main_type"]
    );
    assert_eq!((&json["devices"][0]["name"], &json["schedule"]), (&"CPU".into(), &"fractions".into()));
    let date = json["date"].as_str().unwrap();
    assert!(date.len() == 20 && date.starts_with("20") && date.ends_with('Z'), "{date}");
    let prompts = json["prompts"].as_array().unwrap();
    assert_eq!(prompts.iter().map(|p| p["n_prompt"].as_u64()).collect::<Vec<_>>(), [Some(120), Some(80)]);
    for p in prompts {
        assert_eq!(keys(p), ["n_prompt", "dense", "spts", "ratios", "questions"]);
        assert!(p["questions"].is_null());
        for mode in ["dense", "spts"] {
            assert_eq!(
                keys(&p[mode]),
                [
                    "ttft_s",
                    "prefill_tps",
                    "decode_tps",
                    "skips",
                    "cache_kept",
                    "session_bytes",
                    "peak_device_bytes",
                    "ops"
                ]
            );
            assert!(p[mode]["ops"].is_null());
            assert_eq!(p[mode]["skips"], mode == "spts");
            let ttft = &p[mode]["ttft_s"];
            assert_eq!(keys(ttft), ["median", "min", "max", "samples"]);
            assert_eq!(ttft["samples"].as_array().unwrap().len(), 2);
            let [min, median, max] = ["min", "median", "max"].map(|k| ttft[k].as_f64().unwrap());
            assert!(0.0 < min && min <= median && median <= max);
        }
        assert_eq!(keys(&p["ratios"]), ["ttft", "decode"]);
    }
}

#[test]
fn bench_without_spts_and_without_decoding() {
    let scene = Scene::new();
    let json = scene.json(&["bench", "-m", "tiny.gguf", "-p", "30", "-n", "0", "-r", "1", "--no-spts", "--json"]);
    let p = &json["prompts"][0];
    assert!(p["spts"].is_null() && p["ratios"].is_null() && json["schedule"].is_null());
    assert!(p["dense"]["decode_tps"].is_null() && json["decode_empty_tps"].is_null());
}

#[test]
fn the_table_of_a_bench() {
    let scene = Scene::new();
    let table = scene.good(&BENCH[..12]);
    let rows: Vec<&str> = table.lines().filter(|l| l.starts_with('|')).collect();
    let head = ["| prompt | |", "|---:|", "| none | dense |"];
    let each = ["| dense |", "| SPTS |", "| speed-up |"];
    assert_eq!(rows.len(), head.len() + 2 * each.len(), "{table}");
    assert!(rows.iter().zip(head.iter().chain(&each).chain(&each)).all(|(row, part)| row.contains(part)), "{table}");
    let columns = |row: &str| row.matches('|').count();
    assert!(rows.iter().all(|row| columns(row) == columns(rows[0])), "{table}");
    let asked = scene.good(&["bench", "-m", "tiny.gguf", "-p", "60,90", "-n", "0", "-r", "1", "--questions", "5"]);
    assert_eq!(
        asked.lines().filter(|l| l.starts_with("| 60 | 5 |") || l.starts_with("| 90 | 5 |")).count(),
        2,
        "{asked}"
    );
    // The default budgets are far above this prompt.
    let dense = scene.good(&["bench", "-m", "tiny.gguf", "-p", "30", "-n", "0", "-r", "1"]);
    assert!(dense.contains("SPTS (stays dense)"), "{dense}");
}

#[test]
fn a_made_up_model_is_kept() {
    let scene = Scene::new();
    let args = ["bench", "--synthetic", "smollm2-135m", "--type", "q4_0", "--write", "made.gguf", "-r", "0", "--proxy"];
    assert_eq!(scene.good(&args), "");
    let info = scene.json(&["info", "made.gguf", "--json"]);
    assert_eq!(info["metadata"]["general.name"], "synthetic smollm2-135m");
    assert_eq!(info["metadata"]["tokenizer.ggml.tokens"]["length"], 49_152);
    assert_eq!(scene.json(&["info", "made.spts.gguf", "--json"])["metadata"]["general.architecture"], "spts-proxies");
    let message = scene.bad(1, &[&args[..6], &["no/such/folder/made.gguf", "-r", "0"]].concat());
    assert!(message.contains("no/such/folder/made.gguf: there is no such folder"), "{message}");
}
