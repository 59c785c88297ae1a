//! Compiles ggml into static libraries and tells Cargo how to link them.
//!
//! The libraries live in a cache of their own (build/cache.rs), so that neither a change of profile nor
//! `cargo clippy` nor another feature compiles them again. README.md lists the switches.

#[path = "build/archive.rs"]
mod archive;
#[cfg(feature = "bindgen")]
#[path = "build/bindings.rs"]
mod bindings;
#[path = "build/cache.rs"]
mod cache;
#[path = "build/cpu.rs"]
mod cpu;
#[path = "build/cuda.rs"]
mod cuda;
#[path = "build/portable.rs"]
mod portable;
#[path = "build/source.rs"]
mod source;

use std::env;
use std::process::ExitCode;

/// What a build step reports when it cannot go on: one line, for people.
type Result<T> = std::result::Result<T, String>;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            // `cargo::error` shows the line itself, without the build script's whole output.
            println!("cargo::error=ggml: {}", message.replace('\n', " "));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    for name in ["GGML_SOURCE_DIR", "GGML_CACHE_DIR", "GGML_CHECK_ONLY", "GGML_NO_OPENMP", "CC", "CXX", "AR"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    println!("cargo::rustc-check-cfg=cfg(ggml_dispatch)");
    let source = source::Source::locate()?;
    println!("cargo::rustc-env=GGML_SYS_VERSION={}", source.version);
    // For dependent build scripts: DEP_GGML_VERSION, DEP_GGML_INCLUDE.
    println!("cargo::metadata=version={}", source.version);
    println!("cargo::metadata=include={}", source.include().display());

    #[cfg(feature = "bindgen")]
    bindings::generate(&source)?;

    let dispatch = cfg!(feature = "portable") && portable::supported();
    if dispatch {
        println!("cargo::rustc-cfg=ggml_dispatch");
    }
    // `cargo check`, `clippy` and `doc` read Rust alone.
    if env::var("GGML_CHECK_ONLY").is_ok_and(|v| !v.is_empty() && v != "0") {
        return Ok(());
    }

    let cache = cache::Cache::open(&source)?;
    // A library stands before those that it takes symbols from.
    let use_cuda = cfg!(feature = "cuda");
    cpu::registry(&source, &cache, use_cuda)?.link();
    if use_cuda {
        cuda::backend(&source, &cache)?;
    }
    if dispatch {
        portable::backend(&source, &cache)?.link();
    } else {
        cpu::backend(&source, &cache)?.link();
    }
    cpu::base(&source, &cache)?.link();
    cpu::link_system_libraries()
}
