//! Text to tokens, in bytes per second: byte-level BPE (smollm2-135m) and SentencePiece (gemma-3-270m) on Hamlet.

use std::hint::black_box;
use std::path::PathBuf;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use spts::gguf::{Gguf, OpenOptions};
use spts::tokenizer::Tokenizer;

fn models() -> PathBuf {
    std::env::var_os("SPTS_MODELS")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/models")), PathBuf::from)
}

fn encode(c: &mut Criterion) {
    let Ok(text) = std::fs::read_to_string(models().join("hamlet.md")) else {
        eprintln!("skipped: no hamlet.md in the models folder (scripts/fetch.sh hamlet)");
        return;
    };
    let mut group = c.benchmark_group("tokenize");
    group.throughput(Throughput::Bytes(text.len() as u64)).sample_size(10);
    for name in ["smollm2-135m", "gemma-3-270m"] {
        let path = models().join(format!("{name}.gguf"));
        let Ok(gguf) = Gguf::open(&path, OpenOptions::default()) else {
            eprintln!("skipped: no {name}.gguf in the models folder (scripts/fetch.sh {name})");
            continue;
        };
        let tokenizer = Tokenizer::from_gguf(&gguf).expect("a tokenizer");
        group.bench_function(name, |b| b.iter(|| tokenizer.encode(black_box(&text), true, false)));
    }
    group.finish();
}

criterion_group!(benches, encode);
criterion_main!(benches);
