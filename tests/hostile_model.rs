//! The tiny models, mutated in process: each file is refused in one line or runs; none panics, none aborts.
//!
//! An abort ends the process without a word: the seed that it was at is in `hostile_model.seed` in Cargo's folder for tests
//! (`target/tmp`). More seeds: `SPTS_SEEDS=100000 cargo test --test hostile_model`.

mod hostile;
mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};

use hostile::exercise::{Reached, exercise};
use hostile::mutate::{Choices, mutate};
use support::gguf::File;
use support::prng::Prng;
use support::tiny::NAMES;

#[test]
fn mutated_models_are_refused_or_run() {
    let n: u64 = std::env::var("SPTS_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(3000);
    let first: u64 = std::env::var("SPTS_FIRST_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(0);
    let files = NAMES.map(|name| File::read(&support::tiny_dir().join(format!("{name}.gguf"))));
    let note = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("hostile_model.seed");
    let mut reached = [0; 3];
    let mut panics = Vec::new();
    for seed in first..first + n {
        std::fs::write(&note, seed.to_string()).unwrap();
        let mut random = Prng::named(seed, "hostile");
        let bytes = mutate(&files[seed as usize % files.len()], &mut Choices(&mut || random.next_u64()));
        match catch_unwind(AssertUnwindSafe(|| exercise(bytes, seed % 2 == 0))) {
            Ok(how_far) => reached[how_far as usize] += 1,
            Err(_) => panics.push(seed),
        }
    }
    assert!(panics.is_empty(), "seeds {panics:?} panicked");
    let [refused, _, decoded] = reached;
    // The mutations are neither all fatal nor all harmless.
    assert!(
        refused > n / 4 && decoded > n / 20,
        "{:?} {reached:?}",
        [Reached::Refused, Reached::Opened, Reached::Decoded]
    );
}

#[test]
fn the_models_themselves_run() {
    for name in NAMES {
        let bytes = std::fs::read(support::tiny_dir().join(format!("{name}.gguf"))).unwrap();
        for skips in [false, true] {
            assert_eq!(exercise(bytes.clone(), skips), Reached::Decoded, "{name}");
        }
    }
}
