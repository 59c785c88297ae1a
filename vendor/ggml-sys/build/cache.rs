//! The cache of compiled libraries, shared by all profiles, features and commands.
//!
//! A library's folder is named after a fingerprint of everything that goes into it: ggml's version, the
//! text of its sources, the compiler with its flags (and the instruction set that they mean here).
//! Objects are kept one by one, so an interrupted build goes on where it stopped; files are written
//! under a temporary name and renamed, and a lock makes a second build wait for the first.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::Result;
use crate::source::Source;

pub struct Cache {
    root: PathBuf,
    version: String,
}

impl Cache {
    /// `GGML_CACHE_DIR`, else `ggml-cache` in the target folder.
    pub fn open(source: &Source) -> Result<Self> {
        let root = match env::var_os("GGML_CACHE_DIR") {
            Some(dir) => PathBuf::from(dir),
            None => target_dir()?.join("ggml-cache"),
        };
        fs::create_dir_all(&root).map_err(|e| format!("cannot make the cache folder {}: {e}", root.display()))?;
        let root = root.canonicalize().map_err(|e| format!("{}: {e}", root.display()))?;
        Ok(Self { root, version: source.version.clone() })
    }

    /// The folder of the library `name` made of `fingerprint`, locked until the guard is dropped.
    pub fn entry(&self, name: &str, fingerprint: &Fingerprint) -> Result<Entry> {
        let dir = self.root.join(format!("{name}-{}-{:016x}", self.version, fingerprint.state));
        fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        let lock_path = dir.join("lock");
        let lock = File::create(&lock_path)
            .and_then(|file| file.lock().map(|()| file))
            .map_err(|e| format!("cannot lock {}: {e}", lock_path.display()))?;
        Ok(Entry { dir, _lock: lock })
    }
}

/// One folder of the cache, held by this process alone.
pub struct Entry {
    pub dir: PathBuf,
    _lock: File,
}

/// The target folder: Cargo marks it with CACHEDIR.TAG.
pub fn target_dir() -> Result<PathBuf> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let marked = out.ancestors().filter(|dir| dir.join("CACHEDIR.TAG").is_file()).last();
    // Without the mark: <target>/<profile>/build/<package>/out.
    let dir = marked.or_else(|| out.ancestors().nth(4)).ok_or("OUT_DIR is too short")?;
    Ok(dir.to_owned())
}

/// A stable 64-bit hash (FNV-1a over words of 8 bytes). Not for adversaries.
pub struct Fingerprint {
    state: u64,
}

impl Fingerprint {
    pub fn new() -> Self {
        Self { state: 0xcbf2_9ce4_8422_2325 }
    }

    pub fn add(&mut self, bytes: &[u8]) -> &mut Self {
        let mut mix = |word: u64| {
            self.state = (self.state ^ word).wrapping_mul(0x0000_0100_0000_01b3);
            self.state ^= self.state >> 29;
        };
        mix(bytes.len() as u64);
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            mix(u64::from_le_bytes(word));
        }
        self
    }

    /// Names and text of the source files in `dirs` (not their subfolders), wherever they lie.
    pub fn add_sources(&mut self, dirs: &[PathBuf]) -> Result<&mut Self> {
        for dir in dirs {
            for path in source_files(dir)? {
                let text = fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                self.add(name.as_bytes()).add(&text);
            }
        }
        Ok(self)
    }
}

/// C, C++ and CUDA files of a folder, in order.
pub fn source_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let extension = path.extension().unwrap_or_default();
            ["c", "cpp", "cu", "h", "cuh"].iter().any(|known| extension == *known)
        })
        .collect();
    files.sort();
    Ok(files)
}
