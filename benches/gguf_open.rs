//! Opening a model file: parsing and checking its header, and making its tokenizer.

use std::path::PathBuf;

use criterion::{Criterion, criterion_group, criterion_main};
use spts::gguf::{Gguf, OpenOptions};
use spts::tokenizer::Tokenizer;

fn open(c: &mut Criterion) {
    let models = std::env::var_os("SPTS_MODELS")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/models")), PathBuf::from);
    let mut group = c.benchmark_group("open");
    group.sample_size(10);
    for name in ["smollm2-135m", "gemma-3-270m"] {
        let path = models.join(format!("{name}.gguf"));
        let Ok(gguf) = Gguf::open(&path, OpenOptions::default()) else {
            eprintln!("skipped: no {name}.gguf in the models folder (scripts/fetch.sh {name})");
            continue;
        };
        group.bench_function(format!("{name}/header"), |b| b.iter(|| Gguf::open(&path, OpenOptions::default())));
        group.bench_function(format!("{name}/tokenizer"), |b| b.iter(|| Tokenizer::from_gguf(&gguf)));
    }
    group.finish();
}

criterion_group!(benches, open);
criterion_main!(benches);
