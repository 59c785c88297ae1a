//! Documents at the command line: many questions, the prompt cache, and a conversation at a terminal.

mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::scene::{Scene, stderr};

/// Skips on prompts of any length.
const SKIPS: [&str; 4] = ["--schedule", "0.5,0.4,0.3,0.2", "--temp", "0"];

/// A scene with a document of some hundred tokens.
fn scene() -> Scene {
    let scene = Scene::new();
    scene.write("doc.txt", "the rain in Spain stays mainly in the plain, or so they say. ".repeat(12));
    scene
}

fn run<'a>(args: &[&'a str]) -> Vec<&'a str> {
    [&["-m", "tiny.gguf", "-f", "doc.txt", "-n", "6", "--ignore-eos"], &SKIPS[..], args].concat()
}

fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

#[test]
fn every_question_is_answered_as_a_run_of_its_own_would() {
    let scene = scene();
    scene.write("questions.txt", "who says so?\n\n  where does it rain?  \nwhy?");
    let lines = json_lines(&scene.good(&run(&["--questions", "questions.txt", "--json"])));
    let questions = ["who says so?", "where does it rain?", "why?"];
    assert_eq!(lines.len(), 3);
    for (line, question) in lines.iter().zip(questions) {
        assert_eq!(line["question"], question);
        let alone = scene.json(&run(&["-p", question, "--json"]));
        assert_eq!((&line["generated"], &line["text"]), (&alone["generated"], &alone["text"]), "{question}");
        assert_eq!((&line["stages"], &line["prompt_tokens"]), (&alone["stages"], &alone["prompt_tokens"]));
        let [reused, all] = ["reused_tokens", "prompt_tokens"].map(|key| line[key].as_u64().unwrap());
        assert!(reused > 100 && reused < all, "{reused} of {all}");
        assert_eq!((&alone["reused_tokens"], line["prefill_tps"].is_null()), (&0.into(), true));
    }
    // As text: each question above its answer, on standard error how much was read.
    let output = scene.run(&run(&["--questions", "questions.txt"]));
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let expected: Vec<String> = lines
        .iter()
        .map(|l| {
            format!("> {}\n{}\n\n", l["question"].as_str().unwrap(), l["text"].as_str().unwrap().trim_end_matches('\n'))
        })
        .collect();
    assert_eq!(text, expected.concat());
    assert_eq!(stderr(&output).matches("tokens read anew, first token after").count(), 3, "{}", stderr(&output));
}

#[test]
fn questions_come_through_a_pipe() {
    let scene = scene();
    let mut command = scene.command(&run(&["--questions", "-", "--json"]));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"who?\nwhere?\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(json_lines(&String::from_utf8_lossy(&output.stdout)).len(), 2);
    assert!(!stderr(&output).contains("nothing reads it"), "{}", stderr(&output));
}

#[test]
fn a_question_that_does_not_fit_is_told_and_the_others_are_answered() {
    let scene = scene();
    scene.write("questions.txt", format!("who?\n{}\nwhere?\n", "very long ".repeat(400)));
    let output = scene.run(&run(&["--questions", "questions.txt", "-c", "600", "--json"]));
    let (said, lines) = (stderr(&output), json_lines(&String::from_utf8_lossy(&output.stdout)));
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(lines.iter().map(|l| &l["question"]).collect::<Vec<_>>(), ["who?", "where?"]);
    assert!(said.contains("very long very long") && said.contains("the context holds 600"), "{said}");
    assert!(said.contains("1 of 3 questions were not answered"), "{said}");
}

#[test]
fn what_cannot_be_asked() {
    let scene = scene();
    scene.write("nothing.txt", "\n  \n");
    let message = scene.bad(1, &run(&["--questions", "nothing.txt"]));
    assert_eq!(message, "spts-cli: error: nothing.txt: no question; there is one in each line\n");
    assert!(scene.bad(1, &run(&["--questions", "no-such.txt"])).contains("no-such.txt: cannot read the document"));
    let args = ["-m", "tiny.gguf", "-f", "-", "--questions", "-"];
    assert!(scene.bad(1, &args).contains("standard input is read once"));
    assert!(scene.bad(2, &["-m", "tiny.gguf", "-p", "x", "--questions", "q.txt"]).contains("--questions"));
    assert!(scene.bad(2, &["-m", "tiny.gguf", "--questions", "q.txt"]).contains("-f FILE"));
    assert!(scene.bad(2, &["-m", "tiny.gguf", "-f", "doc.txt", "--prompt-cache-ro"]).contains("--prompt-cache"));
}

#[test]
fn another_process_begins_with_the_cache() {
    let scene = scene();
    let ask = |args: &[&str]| {
        let output = scene.run(&run(&[&["--json", "--prompt-cache", "doc.cache"], args].concat()));
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        (json, stderr(&output))
    };
    let alone = |question: &str| scene.json(&run(&["-p", question, "--json"]));
    let (first, said) = ask(&["-p", "who says so?"]);
    assert!(said.contains("--prompt-cache: writing "), "{said}");
    let written = std::fs::metadata(scene.path("doc.cache")).unwrap().modified().unwrap();
    let (second, said) = ask(&["-p", "where?"]);
    assert_eq!(said, "", "nothing to write");
    assert_eq!(std::fs::metadata(scene.path("doc.cache")).unwrap().modified().unwrap(), written);
    assert_eq!(second["generated"], alone("where?")["generated"]);
    assert_eq!(first["generated"], alone("who says so?")["generated"]);
    let [reused, all] = ["reused_tokens", "prompt_tokens"].map(|key| second[key].as_u64().unwrap());
    assert!(reused > 100 && reused < all);

    // A text that has changed: read from there on, and the file follows, unless it may not.
    let text = std::fs::read_to_string(scene.path("doc.txt")).unwrap();
    let changed = format!("{} and more", text.replacen("or so they say. the rain", "or so we say. the rain", 5));
    scene.write("doc.txt", changed);
    let before = std::fs::read(scene.path("doc.cache")).unwrap();
    let (third, said) = ask(&["-p", "where?", "--prompt-cache-ro"]);
    assert!(said.contains("parts from this prompt behind"), "{said}");
    assert_eq!(std::fs::read(scene.path("doc.cache")).unwrap(), before);
    assert_eq!(third["generated"], alone("where?")["generated"]);
    let (_, said) = ask(&["-p", "where?"]);
    assert!(said.contains("writing"), "{said}");
    assert_ne!(std::fs::read(scene.path("doc.cache")).unwrap(), before);
    let (_, said) = ask(&["-p", "where?"]);
    assert_eq!(said, "");
    // It is a file like others.
    let info = scene.good(&["info", "doc.cache"]);
    assert!(
        info.contains("a document of ") && info.contains(" tokens, and what 2 layers have computed of it"),
        "{info}"
    );
    assert!(info.contains("spts-document") && info.contains("residual"), "{info}");
}

#[test]
fn a_cache_that_cannot_be_used_is_left_alone() {
    let scene = scene();
    let bad = |args: &[&str]| scene.bad(1, &run(args));
    scene.write("text.cache", "my diary");
    assert!(bad(&["-p", "who?", "--prompt-cache", "text.cache"]).contains("text.cache"));
    assert_eq!(std::fs::read(scene.path("text.cache")).unwrap(), b"my diary");
    assert!(bad(&["-p", "who?", "--prompt-cache", "tiny.gguf"]).contains("not a document"));
    assert!(bad(&["-p", "who?", "--prompt-cache", "doc.txt"]).contains("doc.txt"));
    assert!(bad(&["-p", "who?", "--prompt-cache", "none.cache", "--prompt-cache-ro"]).contains("no such file"));
    assert!(bad(&["-p", "who?", "--prompt-cache", "no/such/folder.cache"]).contains("there is no such folder"));
    scene.good(&run(&["-p", "who?", "--prompt-cache", "doc.cache"]));
    let whole = std::fs::read(scene.path("doc.cache")).unwrap();
    assert!(bad(&["-p", "who?", "--prompt-cache", "doc.cache", "-ctk", "f32"]).contains("take the file's types"));
    scene.write("cut.cache", &whole[..whole.len() - 100]);
    assert!(bad(&["-p", "who?", "--prompt-cache", "cut.cache"]).contains("cut.cache"));
    support::tiny::Tiny { seed: 5, ..support::tiny::Tiny::named("llama") }.build().write(&scene.path("tiny.gguf"));
    assert!(bad(&["-p", "who?", "--prompt-cache", "doc.cache"]).contains("read by another model"));
    assert_eq!(std::fs::read(scene.path("doc.cache")).unwrap(), whole);
    // Methods that choose what enters keep nothing.
    let rival =
        ["-m", "tiny.gguf", "-f", "doc.txt", "-p", "who?", "-n", "1", "--method", "last", "--prompt-cache", "x"];
    assert!(scene.bad(1, &rival).contains("reads every prompt anew"));
    scene.write("questions.txt", "who?\nwhere?");
    let rival = ["-m", "tiny.gguf", "-f", "doc.txt", "--questions", "questions.txt", "-n", "1", "--method", "last"];
    let output = scene.run(&rival);
    assert_eq!(output.status.code(), Some(0));
    assert!(stderr(&output).contains("reads every prompt anew"), "{}", stderr(&output));
}

#[test]
fn another_first_layer_that_skips_is_said() {
    let scene = scene();
    let ask = |skip_from: &str| {
        scene.write("own.schedule", format!("skip_from = {skip_from}\nstage = 3 50% 10%\n"));
        let args = ["-m", "tiny.gguf", "-f", "doc.txt", "-p", "who?", "-n", "3", "--temp", "0", "--json"];
        let output = scene.run(&[&args[..], &["--schedule", "own.schedule", "--prompt-cache", "doc.cache"]].concat());
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        (json["reused_tokens"].as_u64().unwrap(), stderr(&output))
    };
    assert!(ask("2").1.contains("writing"));
    let (reused, said) = ask("3");
    assert!(reused > 100 && said.is_empty(), "a later one begins with it: {said}");
    let (_, said) = ask("1");
    assert!(
        said.contains("has what 2 layers computed, and this prompt begins to skip in layer 1: read anew"),
        "{said}"
    );
    assert!(said.contains("writing"), "{said}");
}

#[test]
fn two_processes_write_the_same_file() {
    let scene = scene();
    let args = run(&["-p", "who?", "--json", "--prompt-cache", "doc.cache"]);
    let start = || scene.command(&args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let outputs: Vec<_> = [start(), start(), start()].into_iter().map(|c| c.wait_with_output().unwrap()).collect();
    let alone = scene.json(&run(&["-p", "who?", "--json"]));
    for output in outputs {
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(json["generated"], alone["generated"]);
    }
    let json = scene.json(&args);
    assert!(json["reused_tokens"].as_u64() > Some(100) && json["generated"] == alone["generated"]);
}

#[test]
fn a_full_disk_costs_the_file_and_not_the_answer() {
    let scene = scene();
    let alone = scene.good(&run(&["-p", "who?"]));
    let mut command = scene.command(&run(&["-p", "who?", "--prompt-cache", "doc.cache"]));
    // Files above 4 KiB cannot be written, as if there were no more room.
    // SAFETY: setrlimit and signal may be called between fork and exec.
    unsafe {
        command.pre_exec(|| {
            let most = libc::rlimit { rlim_cur: 4096, rlim_max: 4096 };
            libc::setrlimit(libc::RLIMIT_FSIZE, &most);
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            Ok(())
        });
    }
    let output = command.output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stdout)), (Some(1), alone.into()));
    let said = stderr(&output);
    assert!(said.contains("spts-cli: error: doc.cache: cannot write"), "{said}");
    let left: Vec<_> = std::fs::read_dir(scene.path(".")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("doc.cache")), "{left:?}");
}

#[test]
fn a_killed_writer_leaves_the_old_file() {
    let scene = scene();
    scene.good(&run(&["-p", "who?", "--prompt-cache", "doc.cache"]));
    let old = std::fs::read(scene.path("doc.cache")).unwrap();
    scene.write("doc.txt", "quite another text, ".repeat(60));
    for wait in [0, 5, 10, 20, 40] {
        let args = run(&["-p", "who?", "--prompt-cache", "doc.cache"]);
        let mut child = scene.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(wait));
        child.kill().unwrap();
        child.wait().unwrap();
        let now = std::fs::read(scene.path("doc.cache")).unwrap();
        // Old, or all of the new one.
        assert!(now == old || scene.run(&args).status.success());
        if now != old {
            return;
        }
    }
}

/// A program at a terminal of its own.
struct Terminal {
    screen: File,
    child: Child,
    seen: String,
}

impl Terminal {
    fn new(scene: &Scene, args: &[&str]) -> Terminal {
        let mut command = scene.command(args);
        command.env("TERM", "xterm");
        // SAFETY: plain system calls on descriptors that are checked; the child makes the terminal its own before it runs.
        let (screen, line) = unsafe {
            let (mut master, mut slave) = (0, 0);
            let none = std::ptr::null_mut();
            let size = libc::winsize { ws_row: 24, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
            let rc = libc::openpty(&mut master, &mut slave, none, std::ptr::null(), &size);
            assert_eq!(rc, 0, "a terminal");
            (OwnedFd::from_raw_fd(master), OwnedFd::from_raw_fd(slave))
        };
        // SAFETY: setsid and ioctl may be called between fork and exec.
        unsafe {
            command.pre_exec(|| {
                libc::setsid();
                libc::ioctl(0, libc::TIOCSCTTY, 0);
                Ok(())
            });
        }
        command.stdin(line.try_clone().unwrap()).stdout(line.try_clone().unwrap()).stderr(line);
        let child = command.spawn().unwrap();
        drop(command);
        Terminal { screen: File::from(screen), child, seen: String::new() }
    }

    /// Reads until the screen shows `text` behind what was looked for before, and returns what came before it.
    #[track_caller]
    fn until(&mut self, text: &str) -> String {
        let start = Instant::now();
        let mut bytes = [0; 4096];
        while !self.seen.contains(text) {
            assert!(start.elapsed() < Duration::from_secs(60), "no {text:?} in {:?}", self.seen);
            if !self.has_more() {
                continue;
            }
            match self.screen.read(&mut bytes) {
                Ok(0) | Err(_) => panic!("the program ended: {:?}", self.seen),
                Ok(n) => self.seen += &String::from_utf8_lossy(&bytes[..n]),
            }
        }
        let at = self.seen.find(text).unwrap() + text.len();
        let before = self.seen[..at].to_owned();
        self.seen.drain(..at);
        before
    }

    /// Waits a moment for something to be read.
    fn has_more(&self) -> bool {
        let mut poll = libc::pollfd { fd: self.screen.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one descriptor, which is open.
        unsafe { libc::poll(&mut poll, 1, 200) > 0 }
    }

    fn type_line(&mut self, line: &str) {
        self.screen.write_all(format!("{line}\r").as_bytes()).unwrap();
    }

    fn ends(mut self) -> Option<i32> {
        let start = Instant::now();
        let mut rest = [0; 4096];
        while start.elapsed() < Duration::from_secs(60) {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            if self.has_more() {
                let _ = self.screen.read(&mut rest);
            }
        }
        panic!("the program does not end");
    }
}

#[test]
fn a_conversation_at_a_terminal() {
    let scene = scene();
    let mut terminal = Terminal::new(&scene, &run(&[]));
    terminal.until("/help says what can be typed");
    terminal.until("> ");
    terminal.type_line("who says so?");
    let answer = terminal.until("tokens read anew");
    let alone = scene.json(&run(&["-p", "who says so?", "--json"]));
    assert!(alone["text"].as_str().is_some_and(|text| answer.contains(text.trim().lines().next().unwrap_or(""))));
    terminal.until("> ");
    // The next one sees the turns before: its prompt is longer than the document and the question.
    terminal.type_line("and where?");
    let said = terminal.until(" tokens read anew");
    let total = |said: &str| -> usize {
        let counts = said.rsplit("of ").next().unwrap();
        counts.split(' ').next().unwrap().replace(',', "").parse().unwrap()
    };
    let second = total(&said);
    assert!(second > alone["prompt_tokens"].as_u64().unwrap() as usize + 6, "{said}");
    terminal.until("> ");
    terminal.type_line("/new");
    terminal.until("> ");
    terminal.type_line("who says so?");
    let said = terminal.until(" tokens read anew");
    assert_eq!(total(&said), alone["prompt_tokens"].as_u64().unwrap() as usize);
    terminal.until("> ");
    terminal.type_line("/nonsense");
    terminal.until("/nonsense: no such command");
    terminal.until("> ");
    terminal.type_line("/save talk.cache");
    terminal.until("talk.cache: ");
    terminal.until("begins with it");
    terminal.until("> ");
    terminal.type_line("/save doc.txt");
    terminal.until("holds no document: choose another name");
    terminal.until("> ");
    assert!(std::fs::read_to_string(scene.path("doc.txt")).unwrap().starts_with("the rain"));
    // Lines that are pasted, or typed ahead, wait for their turn.
    terminal.screen.write_all(b"who?\rwhere?\r").unwrap();
    for _ in 0..2 {
        terminal.until("tokens read anew");
    }
    terminal.until("> ");
    terminal.type_line("/quit");
    assert_eq!(terminal.ends(), Some(0));
    let cached = scene.json(&run(&["-p", "who says so?", "--json", "--prompt-cache", "talk.cache"]));
    assert_eq!(cached["generated"], alone["generated"]);
    assert!(cached["reused_tokens"].as_u64() > Some(100));
}

#[test]
fn control_c_stops_an_answer_and_not_the_program() {
    let scene = scene();
    let args: Vec<&str> = run(&[]).into_iter().map(|a| if a == "6" { "-1" } else { a }).collect();
    let mut terminal = Terminal::new(&scene, &args);
    terminal.until("> ");
    // An answer without an end: the tiny model has a context of some hundred tokens more.
    terminal.type_line("who?");
    terminal.until("\n");
    terminal.screen.write_all(b"\x03").unwrap();
    terminal.until("> ");
    // At the prompt it takes the line away.
    terminal.screen.write_all(b"half a question\x03").unwrap();
    terminal.until("/quit or Ctrl-D leaves");
    terminal.until("> ");
    terminal.screen.write_all(b"\x04").unwrap();
    assert_eq!(terminal.ends(), Some(0));
}

#[test]
fn a_full_context_in_a_conversation_keeps_what_was_said() {
    let scene = scene();
    let n = scene.json(&run(&["-p", "who?", "--json"]))["prompt_tokens"].as_u64().unwrap();
    let context = (n + 30).to_string();
    let mut terminal = Terminal::new(&scene, &run(&["-c", &context]));
    terminal.until("> ");
    terminal.type_line("who?");
    terminal.until("tokens read anew");
    terminal.until("> ");
    terminal.type_line(&"where does it rain, and why? ".repeat(6));
    terminal.until("the turns before are still there");
    terminal.until("> ");
    terminal.type_line("/new");
    terminal.until("> ");
    terminal.type_line("who?");
    terminal.until("tokens read anew");
    terminal.until("> ");
    terminal.screen.write_all(b"\x04").unwrap();
    assert_eq!(terminal.ends(), Some(0));
}

#[test]
fn without_a_terminal_a_document_alone_is_a_prompt() {
    let scene = scene();
    let json = scene.json(&run(&["--json"]));
    assert_eq!(json["reused_tokens"], 0);
    assert!(!scene.good(&run(&[])).contains("> "));
}
