//! A file that takes its final name only when it is complete.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// A file that vanishes unless it is renamed.
pub(super) struct Temporary {
    path: PathBuf,
    keep: bool,
}

impl Temporary {
    /// A new file in the folder of `path`: only within one file system is a rename atomic.
    pub(super) fn beside(path: &Path) -> io::Result<(File, Temporary)> {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        loop {
            let mut temporary = OsString::from(".");
            temporary.push(name);
            let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
            temporary.push(format!(".{}-{serial}.tmp", std::process::id()));
            let candidate = path.with_file_name(temporary);
            match OpenOptions::new().write(true).create_new(true).open(&candidate) {
                Ok(file) => {
                    let path = candidate;
                    return Ok((file, Temporary { path, keep: false }));
                }
                // Left behind by a killed process that had our number.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(e),
            }
        }
    }

    /// Puts the file, closed by now, in the place of `path`.
    pub(super) fn rename_to(mut self, path: &Path) -> io::Result<()> {
        fs::rename(&self.path, path)?;
        self.keep = true;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.keep {
            // Nothing sensible can be done about a failure; the error that led here is already on its way.
            let _ = fs::remove_file(&self.path);
        }
    }
}
