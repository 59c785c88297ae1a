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

const MODELS: [&[u8]; 9] = [
    include_bytes!("../../tests/data/tiny/llama.gguf"),
    include_bytes!("../../tests/data/tiny/llama-rope-freqs.gguf"),
    include_bytes!("../../tests/data/tiny/llama-linear.gguf"),
    include_bytes!("../../tests/data/tiny/llama-yarn.gguf"),
    include_bytes!("../../tests/data/tiny/qwen2.gguf"),
    include_bytes!("../../tests/data/tiny/qwen3.gguf"),
    include_bytes!("../../tests/data/tiny/gemma3.gguf"),
    include_bytes!("../../tests/data/tiny/phi3.gguf"),
    include_bytes!("../../tests/data/tiny/phi3-longrope.gguf"),
];

fuzz_target!(|data: &[u8]| {
    static FILES: OnceLock<[File; 9]> = OnceLock::new();
    let files = FILES.get_or_init(|| MODELS.map(File::from_bytes));
    let Some((&first, rest)) = data.split_first() else { return };
    // Two bytes a choice; zeros when they are used up.
    let mut pairs = rest.chunks(2).map(|b| u64::from(b[0]) | u64::from(*b.get(1).unwrap_or(&0)) << 8);
    let bytes = mutate(&files[usize::from(first >> 1) % files.len()], &mut Choices(&mut || pairs.next().unwrap_or(0)));
    exercise(bytes, first & 1 == 1);
});
