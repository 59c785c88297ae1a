//! Generates the Rust declarations of ggml's functions and types (feature `bindgen`).

use std::env;
use std::path::PathBuf;

use crate::Result;
use crate::source::Source;

/// Writes `bindings.rs` to OUT_DIR; tests/bindings.rs compares it to the committed file.
pub fn generate(source: &Source) -> Result<()> {
    println!("cargo::rerun-if-changed=wrapper.h");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?).join("bindings.rs");
    bindgen::Builder::default()
        .header("wrapper.h")
        .clang_arg(format!("-I{}", source.include().display()))
        .allowlist_item("(ggml|GGML)_.*")
        // FILE differs from one C library to the next, and nothing here takes one.
        .blocklist_function("ggml_fopen")
        .blocklist_type("FILE|_IO_.*|__off.*")
        .default_enum_style(bindgen::EnumVariation::Consts)
        .prepend_enum_name(false)
        .generate_comments(false)
        .layout_tests(false)
        .derive_default(false)
        .merge_extern_blocks(true)
        .use_core()
        .rust_edition(bindgen::RustEdition::Edition2024)
        .formatter(bindgen::Formatter::Rustfmt)
        .generate()
        .map_err(|e| format!("bindgen: {e}"))?
        .write_to_file(&out)
        .map_err(|e| format!("{}: {e}", out.display()))?;
    println!("cargo::rustc-env=GGML_SYS_BINDINGS={}", out.display());
    Ok(())
}
