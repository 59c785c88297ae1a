//! Where ggml's source is, and which version.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Result;

/// The package that carries ggml; Cargo.toml pins the same version.
const PACKAGE: &str = "llama-cpp-sys-2";
const PACKAGE_VERSION: &str = "0.1.161";
/// ggml's folder inside that package.
const INSIDE: &str = "llama.cpp/ggml";

/// A ggml source tree: the folder that holds `include` and `src`.
pub struct Source {
    pub root: PathBuf,
    /// ggml's own version, such as `0.26.0`.
    pub version: String,
}

impl Source {
    /// Finds the tree: `GGML_SOURCE_DIR`, else the package that Cargo has locked.
    pub fn locate() -> Result<Self> {
        if let Some(dir) = env::var_os("GGML_SOURCE_DIR") {
            let root = PathBuf::from(dir);
            // A checkout of somebody's own changes; the pinned package does not.
            println!("cargo::rerun-if-changed={}", root.join("src").display());
            println!("cargo::rerun-if-changed={}", root.join("include").display());
            return Self::at(root.clone()).ok_or_else(|| {
                format!("GGML_SOURCE_DIR={}: no ggml source there (CMakeLists.txt, include/ggml.h)", root.display())
            });
        }
        let own = PathBuf::from(env::var("CARGO_MANIFEST_DIR").map_err(|e| e.to_string())?).join("Cargo.toml");
        let mut manifests = vec![own.clone()];
        manifests.extend(dependent_manifest());
        // Without the network first: it is there already in nearly all builds.
        manifests
            .iter()
            .find_map(|manifest| Self::at(package_from_metadata(manifest, true)?))
            .or_else(|| registry_copies().into_iter().find_map(Self::at))
            .or_else(|| Self::at(package_from_metadata(&own, false)?))
            .ok_or_else(|| {
                format!(
                    "the source package {PACKAGE} {PACKAGE_VERSION} was not found by `cargo metadata`; \
                     run `cargo fetch`, or set GGML_SOURCE_DIR to a ggml source tree"
                )
            })
    }

    /// The tree in `root`, if it is one.
    fn at(root: PathBuf) -> Option<Self> {
        if !root.join("include/ggml.h").is_file() {
            return None;
        }
        let cmake = std::fs::read_to_string(root.join("CMakeLists.txt")).ok()?;
        let part = |name: &str| {
            let after = cmake.split(&format!("set(GGML_VERSION_{name} ")).nth(1)?;
            Some(after.split(')').next()?.trim().to_owned())
        };
        let version = format!("{}.{}.{}", part("MAJOR")?, part("MINOR")?, part("PATCH")?);
        Some(Self { root, version })
    }

    pub fn include(&self) -> PathBuf {
        self.root.join("include")
    }

    pub fn src(&self) -> PathBuf {
        self.root.join("src")
    }
}

/// Asks Cargo where the package lies, as seen from `manifest`.
fn package_from_metadata(manifest: &Path, offline: bool) -> Option<PathBuf> {
    let mut command = Command::new(env::var_os("CARGO")?);
    command.args(["metadata", "--format-version", "1", "--manifest-path"]).arg(manifest);
    if offline {
        command.args(["--offline", "--locked"]);
    }
    let output = command.output().ok().filter(|o| o.status.success())?;
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    let package =
        metadata["packages"].as_array()?.iter().find(|p| p["name"] == PACKAGE && p["version"] == PACKAGE_VERSION)?;
    Some(Path::new(package["manifest_path"].as_str()?).parent()?.join(INSIDE))
}

/// The crate that is being built when this one is a dependency outside its own workspace: its
/// Cargo.lock lies above the build folder.
fn dependent_manifest() -> Option<PathBuf> {
    let out = PathBuf::from(env::var_os("OUT_DIR")?);
    let dir = out.ancestors().find(|dir| dir.join("Cargo.lock").is_file())?;
    Some(dir.join("Cargo.toml")).filter(|manifest| manifest.is_file())
}

/// The package as Cargo unpacks it for every project of a user.
fn registry_copies() -> Vec<PathBuf> {
    let home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    let Some(registries) = home.and_then(|home| std::fs::read_dir(home.join("registry/src")).ok()) else {
        return Vec::new();
    };
    registries.flatten().map(|entry| entry.path().join(format!("{PACKAGE}-{PACKAGE_VERSION}")).join(INSIDE)).collect()
}
