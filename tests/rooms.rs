//! The library's rooms import downwards only: a file's reader knows nothing of models, ggml's kernels nothing of graphs, and so on.
//! `error` is left out: it holds every room's error, and many return it. It is no circle as long as the files that define these
//! errors know nothing of it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// From the bottom to the top. A room imports from those before it.
const ROOMS: [&str; 22] = [
    "hash",
    "random",
    "printable",
    "split_name",
    "output_file",
    "attributes",
    "gguf",
    "tokenizer",
    "ggml",
    "graph",
    "runtime",
    "model",
    "method",
    "plan",
    "compile",
    "session",
    "proxies",
    "quantize",
    "bench",
    "eval",
    "tune",
    "error",
];

fn sources(path: &Path, found: &mut Vec<PathBuf>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).expect("a folder of sources") {
            sources(&entry.expect("an entry").path(), found);
        }
    } else if path.extension().is_some_and(|e| e == "rs") {
        found.push(path.to_owned());
    }
}

/// The names that follow `crate::`, those in braces one by one. Comments are skipped: a link is no import.
fn names_of_the_crate(code: &str) -> Vec<String> {
    let code: Vec<&str> = code.lines().map(|line| line.split("//").next().unwrap_or_default()).collect();
    let code = code.join("\n");
    let mut names = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let list = match rest.strip_prefix('{') {
            Some(list) => list.split('}').next().unwrap_or_default(),
            None => rest,
        };
        let first_only = if rest.starts_with('{') { usize::MAX } else { 1 };
        for name in list.split(',').take(first_only) {
            let name: String = name.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            names.push(name);
        }
    }
    names
}

/// The room of each name that the crate shows at its root.
fn rooms_of_names(lib: &str) -> BTreeMap<String, String> {
    let mut rooms = BTreeMap::new();
    for statement in lib.split(';') {
        let Some((_, path)) = statement.rsplit_once("pub use ") else { continue };
        let room = path.split("::").next().unwrap_or_default();
        let names = path.rsplit("::").next().unwrap_or_default();
        for name in names.trim_matches(['{', '}']).split(',').map(str::trim).filter(|n| !n.is_empty()) {
            rooms.insert(name.to_owned(), room.to_owned());
        }
    }
    rooms
}

#[test]
fn rooms_import_downwards_only() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let lib = fs::read_to_string(src.join("lib.rs")).expect("the crate's root");
    let shown = rooms_of_names(&lib);
    assert_eq!(shown.get("Session").map(String::as_str), Some("session"));
    let height = |room: &str| ROOMS.iter().position(|r| *r == room);
    let (mut upwards, mut n_imports) = (Vec::new(), 0);
    for room in ROOMS.iter().filter(|room| **room != "error") {
        let mut files = Vec::new();
        for place in [src.join(room), src.join(format!("{room}.rs")), src.join(format!("{room}_tests.rs"))] {
            if place.exists() {
                sources(&place, &mut files);
            }
        }
        assert!(!files.is_empty(), "{room} has no source");
        for file in files {
            let code = fs::read_to_string(&file).expect("a source");
            for name in names_of_the_crate(&code) {
                let other = shown.get(&name).unwrap_or(&name);
                n_imports += 1;
                match height(other) {
                    _ if other == "error" => {}
                    Some(other) if Some(other) <= height(room) => {}
                    _ => upwards.push(format!("{}: crate::{name}", file.display())),
                }
            }
        }
    }
    assert!(n_imports > 100, "only {n_imports} imports were found");
    assert!(upwards.is_empty(), "imports that go upwards:\n{}", upwards.join("\n"));
}

/// The files that `error` imports from, by the paths of its `#[from]` fields.
#[test]
fn files_that_define_errors_know_nothing_of_the_sum() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let code = fs::read_to_string(src.join("error.rs")).expect("the sum");
    let mut n_files = 0;
    for (at, _) in code.match_indices("#[from] crate::") {
        let path: &str = code[at + "#[from] crate::".len()..].split(')').next().expect("a path");
        let modules = path.rsplit_once("::").expect("a type in a room").0.replace("::", "/");
        let file = [format!("{modules}.rs"), format!("{modules}/error.rs"), format!("{modules}/mod.rs")];
        let file = file.iter().map(|f| src.join(f)).find(|f| f.exists()).expect("a file");
        let code = fs::read_to_string(&file).expect("a source");
        let known = names_of_the_crate(&code).into_iter().find(|n| matches!(n.as_str(), "error" | "Error" | "Result"));
        assert_eq!(known, None, "{}", file.display());
        n_files += 1;
    }
    assert!(n_files >= 12, "only {n_files} errors were found");
}
