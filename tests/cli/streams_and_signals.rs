//! Readers that leave, full disks, and Ctrl-C.

use std::io::Read;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::scene::{Scene, stderr};
use crate::{RUN, run_with};

#[test]
fn a_reader_that_leaves_is_no_error() {
    let scene = Scene::new();
    for args in
        [vec!["-m", "tiny.gguf", "-p", "the", "-n", "500", "--ignore-eos"], vec!["info", "tiny.gguf"], vec!["--help"]]
    {
        let mut child = scene.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", stderr(&output));
        assert_eq!(stderr(&output), "", "{args:?}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error() {
    let scene = Scene::new();
    for args in [RUN.to_vec(), run_with(&["--json"]), vec!["info", "tiny.gguf"], vec!["--version"]] {
        let full = std::fs::File::create("/dev/full").unwrap();
        let output = scene.command(&args).stdout(full).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(stderr(&output).starts_with("spts-cli: error: standard output: "), "{args:?}: {}", stderr(&output));
    }
}

#[cfg(unix)]
#[test]
fn ctrl_c() {
    let scene = Scene::new();
    let args = ["-m", "tiny.gguf", "-p", "the", "--ignore-eos", "-c", "1000000"];
    let mut child = scene.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It has begun to answer: it will not stop by itself for a long time.
    let mut byte = [0];
    child.stdout.as_mut().unwrap().read_exact(&mut byte).unwrap();
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    assert!(!stderr(&output).contains("error"), "{}", stderr(&output));
}

#[cfg(unix)]
#[test]
fn ctrl_c_with_json() {
    let scene = Scene::new();
    let args = ["-m", "tiny.gguf", "-p", "the", "--ignore-eos", "-c", "1000000", "--json"];
    let child = scene.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Long enough to be in the midst of the answer, which has no end for a long time.
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["stop"], "interrupted");
    assert!(!json["generated"].as_array().unwrap().is_empty() && !json["text"].as_str().unwrap().is_empty());
}
