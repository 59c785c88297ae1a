//! The committed bindings are those that bindgen makes of the pinned headers.
//!
//! To renew them: `cargo test -p ggml-sys --features bindgen` with UPDATE_BINDINGS=1 in the environment.

#[test]
fn committed_bindings_are_current() {
    let committed = concat!(env!("CARGO_MANIFEST_DIR"), "/src/bindings.rs");
    let generated = std::fs::read_to_string(env!("GGML_SYS_BINDINGS")).expect("generated bindings");
    if std::env::var_os("UPDATE_BINDINGS").is_some() {
        std::fs::write(committed, &generated).expect("write src/bindings.rs");
    }
    let committed = std::fs::read_to_string(committed).expect("src/bindings.rs");
    let differs = committed.lines().zip(generated.lines()).position(|(a, b)| a != b);
    assert!(
        committed == generated,
        "src/bindings.rs is out of date (first difference in line {:?}); run with UPDATE_BINDINGS=1",
        differs.map(|line| line + 1)
    );
}
