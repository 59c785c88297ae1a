//! Model files as people have them: what llama.cpp runs, runs here, and what it refuses is refused by name.

mod architectures;
mod broken_files;
mod experts;
mod gemma4;
mod hybrids;
mod metadata_overrides;
#[path = "../reference/mod.rs"]
mod reference;
#[path = "../runtime/mod.rs"]
mod runtime;
#[path = "../support/mod.rs"]
mod support;
mod tensors;
mod vocabularies;
