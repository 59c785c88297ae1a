//! The binary in a scratch folder.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

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

/// What a run said.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
