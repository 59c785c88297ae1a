//! Mutated tiny models, opened and run: refused in one line or run, never a panic or an abort. The input's bytes choose the
//! model and the mutations, which tests/hostile_model.rs chooses by random numbers.

#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/support"]
mod support {
    #[allow(dead_code)]
    pub mod gguf;
}
#[path = "../../tests/hostile/mod.rs"]
mod hostile;

use hostile::exercise::exercise;
use hostile::mutate::{Choices, mutate};
use support::gguf::File;

/// Every tiny model, by name.
fn models() -> Vec<File> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/tiny");
    let entries = std::fs::read_dir(folder).expect("the tiny models").map(|entry| entry.expect("an entry").path());
    let mut paths: Vec<_> = entries.filter(|path| path.extension().is_some_and(|e| e == "gguf")).collect();
    paths.sort();
    paths.iter().map(|path| File::read(path)).collect()
}

fuzz_target!(|data: &[u8]| {
    static FILES: OnceLock<Vec<File>> = OnceLock::new();
    let files = FILES.get_or_init(models);
    // The first byte says which model, the lowest bit of the second whether it skips.
    let &[model, skips, ref rest @ ..] = data else { return };
    // Two bytes a choice; zeros when they are used up.
    let mut pairs = rest.chunks(2).map(|b| u64::from(b[0]) | u64::from(*b.get(1).unwrap_or(&0)) << 8);
    let bytes = mutate(&files[usize::from(model) % files.len()], &mut Choices(&mut || pairs.next().unwrap_or(0)));
    exercise(bytes, skips & 1 == 1);
});
