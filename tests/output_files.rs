//! Files that commands write: whole or not at all, never one of the files that are read, and nothing left behind.

mod support;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use spts::gguf::{Gguf, OpenOptions};
use support::scene::{Scene, stderr};
use support::tiny::Tiny;

const DUMP: [&str; 10] =
    ["-m", "tiny.gguf", "-f", "text.txt", "--schedule", "0.5,0.4,0.3,0.2", "--no-proxy", "-n", "1", "--dump-selection"];

fn text() -> String {
    (0..40).map(|i| format!("the rain in year {i} fell on the inner tin. ")).collect()
}

fn scene() -> Scene {
    let scene = Scene::new();
    scene.write("text.txt", text());
    scene
}

fn with<'a>(args: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    args.iter().chain(more).copied().collect()
}

fn names(scene: &Scene) -> Vec<String> {
    let name = |e: std::io::Result<fs::DirEntry>| e.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<String> = fs::read_dir(scene.path(".")).unwrap().map(name).collect();
    names.sort();
    names
}

#[test]
fn no_output_replaces_an_input() {
    let scene = scene();
    scene.write("my.schedule", "not read before the output is");
    fs::create_dir(scene.path("folder")).unwrap();
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("tiny.gguf", scene.path("link.gguf")).unwrap();
        fs::hard_link(scene.path("tiny.gguf"), scene.path("hard.gguf")).unwrap();
        fs::hard_link(scene.path("text.txt"), scene.path("hard.txt")).unwrap();
    }
    scene.good(&["calibrate", "-m", "tiny.gguf", "-f", "text.txt"]);
    scene.write("own.jinja", "{{ messages[0].content }}");
    scene.write("found.jsonl", "{}\n");
    let task = |i: usize| {
        format!(
            "{{\"task\": \"t\", \"prompt\": {:?}, \"answers\": [\"x\"], \"metric\": \"all\", \"n_predict\": 1}}\n",
            text() + &i.to_string()
        )
    };
    scene.write("tasks.jsonl", (0..4).map(task).collect::<String>());
    let before = names(&scene);
    let contents = || before.iter().map(|n| fs::read(scene.path(n)).ok()).collect::<Vec<_>>();
    let (was, absolute) = (contents(), scene.path("tiny.gguf").to_str().unwrap().to_owned());
    let calibrate = ["calibrate", "-m", "tiny.gguf", "-f", "text.txt", "--force", "-o"];
    let quantize = ["quantize", "-m", "tiny.gguf", "--type", "f16", "-o"];
    let bench = ["bench", "--synthetic", "smollm2-135m", "-r", "0", "--write"];
    let own_schedule = ["-m", "tiny.gguf", "-f", "text.txt", "--schedule", "my.schedule", "--dump-selection"];
    let own_template = ["-m", "tiny.gguf", "-f", "text.txt", "--chat-template", "own.jinja", "--dump-selection"];
    let tasks = ["eval", "tasks", "-m", "tiny.gguf", "--data", "text.txt", "--out"];
    let tasks_plot = ["eval", "tasks", "-m", "tiny.gguf", "--data", "text.txt", "--out", "found.jsonl", "--svg"];
    let config =
        ["eval", "tasks", "-m", "tiny.gguf", "--data", "text.txt", "--config", "--schedule my.schedule", "--svg"];
    let needle = ["eval", "needle", "-m", "tiny.gguf", "-f", "text.txt", "--svg"];
    let tune = ["tune", "-m", "tiny.gguf", "--data", "tasks.jsonl", "--schedule", "0.5,0.4,0.3,0.2", "--out"];
    let own_sidecar = ["-m", "tiny.gguf", "-f", "text.txt", "--sidecar", "hard.txt", "--dump-selection"];
    for (args, output) in [
        (&DUMP[..], "tiny.gguf"),
        (&DUMP, "./folder/../tiny.gguf"),
        (&DUMP, &absolute),
        (&DUMP, "link.gguf"),
        (&DUMP, "hard.gguf"),
        (&DUMP, "text.txt"),
        (&DUMP, "hard.txt"),
        // Found beside the model without being named.
        (&DUMP, "tiny.spts.gguf"),
        (&own_schedule, "my.schedule"),
        (&own_sidecar, "hard.txt"),
        (&own_template, "own.jinja"),
        (&tasks, "text.txt"),
        (&tasks, "tiny.gguf"),
        (&tasks_plot, "text.txt"),
        (&tasks_plot, "found.jsonl"),
        (&tasks_plot, "tiny.spts.gguf"),
        (&config, "my.schedule"),
        (&needle, "text.txt"),
        (&tune, "tasks.jsonl"),
        // Its results would lie there.
        (&tune, "tasks"),
        (&quantize, "tiny.gguf"),
        (&quantize, "link.gguf"),
        (&quantize, "hard.gguf"),
        (&calibrate, "tiny.gguf"),
        (&calibrate, "link.gguf"),
        (&calibrate, "text.txt"),
        (&calibrate, "hard.txt"),
        (&with(&bench[..5], &["--schedule", "my.schedule", "--write"]), "my.schedule"),
        (&with(&bench[..5], &["--sidecar", "tiny.spts.gguf", "--write"]), "tiny.spts.gguf"),
        // Its proxies would lie there.
        (&with(&bench[..5], &["--sidecar", "tiny.spts.gguf", "--write"]), "tiny.gguf"),
    ] {
        let message = scene.bad(1, &with(args, &[output]));
        assert!(message.contains("is the same file as"), "{args:?} {output}: {message}");
        assert!(contents() == was, "{args:?} {output}");
        assert_eq!(names(&scene), before, "{args:?} {output}");
    }
}

#[test]
fn a_place_that_cannot_be_written_is_found_before_the_work() {
    let scene = scene();
    scene.write("file", "no folder");
    fs::create_dir(scene.path("folder")).unwrap();
    let before = names(&scene);
    for command in [
        &DUMP[..],
        &["quantize", "-m", "tiny.gguf", "--type", "f16", "-o"],
        &["calibrate", "-m", "tiny.gguf", "-f", "text.txt", "-o"],
        // Would take minutes.
        &["bench", "--synthetic", "llama-3.1-8b", "--type", "f32", "-r", "0", "--write"],
    ] {
        for (output, expected) in [
            ("no/such/folder", "no/such/folder: there is no such folder"),
            ("file/x", "file/x: cannot create"),
            ("folder", "folder: is a directory"),
        ] {
            let message = scene.bad(1, &with(command, &[output]));
            assert!(message.contains(expected), "{command:?}: {message}");
        }
    }
    assert_eq!(names(&scene), before);
}

#[test]
fn what_was_there_is_replaced_only_by_a_whole_file() {
    let scene = scene();
    scene.write("out", "what was there");
    // The prompt does not fit: the run fails after the output was found to be writable.
    scene.bad(1, &with(&DUMP, &["out", "-c", "16"]));
    assert_eq!(fs::read(scene.path("out")).unwrap(), b"what was there");
    assert_eq!(names(&scene), ["out", "text.txt", "tiny.gguf"]);
    scene.good(&with(&DUMP, &["out"]));
    let json: serde_json::Value = serde_json::from_slice(&fs::read(scene.path("out")).unwrap()).unwrap();
    assert!(json["n_tokens"].as_u64().unwrap() > 100);
    assert_eq!(names(&scene), ["out", "text.txt", "tiny.gguf"]);
}

#[cfg(unix)]
#[test]
fn links_are_followed_and_devices_are_not_replaced() {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
    let scene = scene();
    fs::create_dir(scene.path("elsewhere")).unwrap();
    scene.write("elsewhere/real", "old");
    fs::set_permissions(scene.path("elsewhere/real"), fs::Permissions::from_mode(0o600)).unwrap();
    symlink("elsewhere/real", scene.path("link")).unwrap();
    scene.good(&with(&DUMP, &["link"]));
    assert!(fs::symlink_metadata(scene.path("link")).unwrap().file_type().is_symlink());
    let real = fs::metadata(scene.path("elsewhere/real")).unwrap();
    assert!(real.len() > 100 && real.permissions().mode() & 0o777 == 0o600, "{real:?}");

    scene.good(&with(&DUMP, &["/dev/null"]));
    assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
}

/// Waits until a command has begun to write a file.
#[cfg(unix)]
fn wait_for_unfinished(scene: &Scene, child: &mut Child) {
    let start = Instant::now();
    while !names(scene).into_iter().any(|n| n.ends_with(".tmp")) {
        assert_eq!(child.try_wait().unwrap(), None, "it ended before its file was seen");
        assert!(start.elapsed() < Duration::from_secs(120), "it has made no file");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Starts a command, waits for its unfinished file, and sends it a signal.
#[cfg(unix)]
fn interrupted(scene: &Scene, args: &[&str], signal: &str) -> (Option<i32>, String) {
    let mut child = scene.command(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_unfinished(scene, &mut child);
    assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    (output.status.code(), stderr(&output))
}

#[cfg(unix)]
#[test]
fn an_interrupted_command_leaves_nothing_behind() {
    let scene = Scene::new();
    let large =
        Tiny { n_embd: 512, n_head: 8, n_head_kv: 8, head_dim: 64, n_rot: 64, n_ff: 4096, ..Tiny::named("llama") };
    large.build().write(&scene.path("large.gguf"));
    scene.write("text.txt", text().repeat(20));
    scene.write("out.gguf", "what was there");
    let before = names(&scene);
    for args in [
        &["quantize", "-m", "large.gguf", "--type", "q4_k_m", "-t", "1", "-o", "out.gguf"][..],
        &["bench", "--synthetic", "llama-3.2-1b", "--type", "q8_0", "-r", "0", "--write", "out.gguf"],
        &["calibrate", "-m", "large.gguf", "-f", "text.txt", "--force", "-o", "out.gguf"],
        &[
            "-m",
            "large.gguf",
            "-f",
            "text.txt",
            "--no-cnv",
            "--schedule",
            "0.5,0.4,0.3,0.2",
            "--no-proxy",
            "-c",
            "100000",
            "--ignore-eos",
            "--dump-selection",
            "out.gguf",
        ],
    ] {
        for signal in ["-INT", "-TERM"] {
            let (code, said) = interrupted(&scene, args, signal);
            assert_eq!(code, Some(130), "{args:?} {signal}: {said}");
            assert!(!said.contains("error"), "{args:?} {signal}: {said}");
            assert_eq!(names(&scene), before, "{args:?} {signal}");
            assert_eq!(fs::read(scene.path("out.gguf")).unwrap(), b"what was there", "{args:?} {signal}");
        }
    }
}

/// Whether this process ignores a signal, as far as the system tells.
#[cfg(unix)]
fn signal_is_ignored(number: u32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|l| l.strip_prefix("SigIgn:"));
    mask.is_some_and(|m| u64::from_str_radix(m.trim(), 16).is_ok_and(|m| m >> (number - 1) & 1 == 1))
}

/// `nohup` starts a program with SIGHUP ignored, and it goes on when the terminal is closed.
#[cfg(unix)]
#[test]
fn a_hangup_ends_a_command_unless_it_is_ignored() {
    let scene = Scene::new();
    let args = ["bench", "--synthetic", "llama-3.2-1b", "--type", "q8_0", "-r", "0", "--write", "out.gguf"];
    if signal_is_ignored(1) {
        eprintln!("SKIPPED: a hangup that is heard; these tests run with hangups ignored, and so does what they start");
    } else {
        let (code, said) = interrupted(&scene, &args, "-HUP");
        assert_eq!((code, names(&scene)), (Some(130), vec!["tiny.gguf".to_owned()]), "{said}");
    }

    let shell = format!("trap '' HUP; exec '{}' \"$@\"", env!("CARGO_BIN_EXE_spts-cli"));
    let mut child = Command::new("sh")
        .args(["-c", &shell, "sh"])
        .args(args)
        .current_dir(scene.path("."))
        .env("XDG_CACHE_HOME", scene.path("cache"))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for_unfinished(&scene, &mut child);
    let send = |signal: &str| Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success();
    assert!(send("-HUP"));
    // Had it been heard, the file would be gone by then.
    std::thread::sleep(Duration::from_millis(300));
    assert!(names(&scene).len() > 1, "ended by a hangup that was to be ignored");
    assert!(send("-TERM"));
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(names(&scene), ["tiny.gguf"]);
}

/// What a killed command left is removed by the next that writes there, and what a living one writes is not.
#[cfg(unix)]
#[test]
fn a_killed_commands_file_goes_with_the_next() {
    let scene = Scene::new();
    // Without skipping it writes no proxies: one file.
    let args =
        ["bench", "--synthetic", "llama-3.2-1b", "--type", "q8_0", "-r", "0", "--no-spts", "--write", "out.gguf"];
    let start = || {
        let mut child = scene.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_for_unfinished(&scene, &mut child);
        child
    };
    let unfinished = || names(&scene).into_iter().filter(|n| n.ends_with(".tmp")).count();
    let quantize = || scene.good(&["quantize", "-m", "tiny.gguf", "--type", "f16", "-o", "small.gguf"]);
    let mut child = start();
    assert_eq!(unfinished(), 1);
    quantize();
    assert_eq!(unfinished(), 1, "a living command's file is gone");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(unfinished(), 1);
    quantize();
    assert_eq!(names(&scene), ["small.gguf", "tiny.gguf"]);
}

#[test]
fn a_failed_conversion_leaves_nothing_behind() {
    let scene = Scene::new();
    let mut file = support::gguf::File::read(&scene.path("tiny.gguf"));
    let at = file.tensors.iter().position(|t| t.name == "blk.4.ffn_up.weight").unwrap();
    file.tensors[at].data[7] = f32::NAN;
    file.write(&scene.path("bad.gguf"));
    scene.write("out.gguf", "what was there");
    let before = names(&scene);
    let message = scene.bad(1, &["quantize", "-m", "bad.gguf", "--type", "f16", "-o", "out.gguf"]);
    assert!(message.contains("bad.gguf") && message.contains("blk.4.ffn_up.weight"), "{message}");
    assert_eq!(names(&scene), before);
    assert_eq!(fs::read(scene.path("out.gguf")).unwrap(), b"what was there");
}

#[test]
fn sidecars_of_models_whose_names_differ_behind_a_dot() {
    let scene = scene();
    let models = ["m-1.5b", "m-1.7b", "m.q4.gguf", "m.q8.gguf", "m.bin"];
    for (i, name) in models.iter().enumerate() {
        Tiny { seed: 10 + i as u64, ..Tiny::named("llama") }.build().write(&scene.path(name));
        scene.good(&["calibrate", "-m", name, "-f", "text.txt"]);
    }
    let sidecars = ["m-1.5b.spts.gguf", "m-1.7b.spts.gguf", "m.q4.spts.gguf", "m.q8.spts.gguf", "m.bin.spts.gguf"];
    for (model, sidecar) in models.iter().zip(sidecars) {
        let gguf = Gguf::open(&scene.path(model), OpenOptions::default()).unwrap();
        let made_for = Gguf::open(&scene.path(sidecar), OpenOptions::default()).unwrap();
        let fingerprint = spts::method::spts::sidecar::fingerprint(&gguf);
        assert_eq!(made_for.str("spts.fingerprint").unwrap(), Some(fingerprint.as_str()), "{model}");
        // Each is found again.
        let run = ["-m", model, "-f", "text.txt", "--schedule", "0.5,0.4,0.3,0.2", "-n", "1"];
        let output = scene.run(&run);
        assert_eq!(output.status.code(), Some(0), "{model}: {}", stderr(&output));
        assert!(!stderr(&output).contains("first run"), "{model}: {}", stderr(&output));
    }
    assert!(!Path::new(&scene.path("cache")).exists());
}
