//! Stamps the commit and ggml's version for `--version`.

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Set by the build script of ggml-sys.
    println!(
        "cargo::rustc-env=SPTS_GGML_VERSION={}",
        std::env::var("DEP_GGML_VERSION").unwrap_or_else(|_| "unknown".into())
    );
    println!("cargo::rustc-env=SPTS_COMMIT={}", commit().unwrap_or_else(|| "no commit".into()));
}

/// The commit that is checked out, if this folder is the root of a repository: a copy inside another one must not show that
/// one's commit.
fn commit() -> Option<String> {
    let root = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR")?);
    let top = PathBuf::from(git(&root, &["rev-parse", "--show-toplevel"])?);
    if top.canonicalize().ok()? != root.canonicalize().ok()? {
        return None;
    }
    // HEAD changes with a checkout, its log with a commit, too; branches may be packed.
    for name in ["HEAD", "logs/HEAD", "packed-refs"] {
        let path = root.join(git(&root, &["rev-parse", "--git-path", name])?);
        if path.exists() {
            println!("cargo::rerun-if-changed={}", path.display());
        }
    }
    git(&root, &["rev-parse", "--short=12", "HEAD"])
}

fn git(root: &Path, args: &[&str]) -> Option<String> {
    let output = Command::new("git").current_dir(root).args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}
