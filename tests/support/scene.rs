//! The binary in a scratch folder.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use super::gguf::File;
use super::tiny::Tiny;

/// A folder with a tiny model in it.
pub struct Scene {
    dir: tempfile::TempDir,
}

impl Scene {
    /// With the tiny Llama.
    pub fn new() -> Scene {
        Scene::with("llama")
    }

    /// With this tiny model, as `tiny.gguf`.
    pub fn with(model: &str) -> Scene {
        let scene = Scene { dir: tempfile::tempdir().unwrap() };
        Tiny::named(model).build().write(&scene.path("tiny.gguf"));
        scene
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), bytes).unwrap();
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spts-cli"));
        command.current_dir(self.dir.path()).args(args).stdin(Stdio::null());
        // Proxies made by one test must not be found by another, nor by the user.
        command.env("XDG_CACHE_HOME", self.path("cache"));
        command
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// The standard output of a run that has to succeed.
    pub fn good(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.good(args)).unwrap()
    }

    /// The message of a run that has to fail with this code and say one line.
    pub fn bad(&self, code: i32, args: &[&str]) -> String {
        let output = self.run(args);
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {message}");
        assert!(output.stdout.is_empty(), "{args:?}: {:?}", output.stdout);
        assert!(message.starts_with("spts-cli: error: "), "{args:?}: {message}");
        assert_eq!(message.lines().count(), 1, "{args:?}: {message}");
        message
    }
}

/// A short answer that is the same each time, as JSON.
pub const SHORT_RUN: [&str; 8] = ["-p", "the rain in Spain", "-n", "5", "--temp", "0", "--json", "--ignore-eos"];
/// A schedule that skips in a prompt of any length.
pub const SKIPPING: [&str; 2] = ["--schedule", "0.5,0.4,0.3,0.2"];

/// What every architecture does at the command line: its plan promises more than this speed-up, its graph has these
/// operations, it answers, and so it does once it is quantized. Gives the plan.
pub fn plans_and_answers(scene: &Scene, speedup: f64, operations: &[&str]) -> Value {
    let plan = scene.json(&[&["plan", "-m", "tiny.gguf", "-n", "512", "--json"][..], &SKIPPING].concat());
    assert!(plan["predicted_speedup"].as_f64().is_some_and(|x| x > speedup), "{plan}");
    let graph = scene.good(&["plan", "-m", "tiny.gguf", "-n", "64", "--graph"]);
    assert!(operations.iter().all(|operation| graph.contains(operation)), "{operations:?}: {graph}");
    scene.good(&["quantize", "-m", "tiny.gguf", "-o", "small.gguf", "--type", "q8_0"]);
    for model in ["tiny.gguf", "small.gguf"] {
        let answer = scene.json(&[&["-m", model][..], &SHORT_RUN].concat());
        assert_eq!(answer["generated"].as_array().map(Vec::len), Some(5), "{model}");
    }
    plan
}

/// A scene whose model was changed before it was written.
pub fn changed(model: &str, change: impl FnOnce(&mut File)) -> Scene {
    let scene = Scene::new();
    let mut file = Tiny::named(model).build();
    change(&mut file);
    file.write(&scene.path("tiny.gguf"));
    scene
}

/// What a run said.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The notes among what a run said.
pub fn notes(stderr: &str) -> String {
    stderr.lines().filter(|l| l.starts_with("spts-cli: ")).map(|l| format!("{l}\n")).collect()
}
