//! Files that are written: each takes its name only when it is complete, and is never one of the files that are read.
//!
//! An [`OutputFile`] is written beside its place under a temporary name and renamed when it is finished, so that a failure
//! leaves what was there before. It is created before the work whose result it takes: a place that cannot be written is found
//! at once. A process that is interrupted calls [`remove_unfinished`] before it ends. What a killed one has left is removed when
//! the next file is written in the same folder: a file is locked as long as somebody writes it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::split_name::all_parts;

/// Bytes gathered before a write to the disk.
const BUFFER: usize = 1 << 20;

/// Why a file cannot be written where it should be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutputError {
    /// A file that the same command reads, perhaps by another path or a link.
    #[error("{file}: is the same file as {input}, which is read: choose another name")]
    IsInput {
        /// The file to be written.
        file: String,
        /// The file that is read.
        input: String,
    },
    /// A folder has this name.
    #[error("{file}: is a directory, expected the name of a file")]
    IsDirectory {
        /// The file to be written.
        file: String,
    },
    /// The folder that it should be in is missing.
    #[error("{file}: there is no such folder; cannot create the file")]
    NoFolder {
        /// The file to be written.
        file: String,
    },
    /// The operating system refused to create or to open it.
    #[error("{file}: cannot create: {source}")]
    Create {
        /// The file to be written.
        file: String,
        /// Its reason.
        source: io::Error,
    },
    /// The operating system refused to write it, or to put it in its place.
    #[error("{file}: cannot {action}: {source}")]
    Write {
        /// The file to be written.
        file: String,
        /// What was tried.
        action: &'static str,
        /// Its reason.
        source: io::Error,
    },
}

/// A file that is being written. Dropped before [`finish`](OutputFile::finish), it vanishes, and what was in its place stays.
///
/// A device or a pipe (`/dev/stdout`) is written as it is: there is nothing to be kept, and nothing to be renamed.
#[derive(Debug)]
pub struct OutputFile {
    /// As the caller calls it.
    path: PathBuf,
    out: BufWriter<File>,
    /// `None` for a device or a pipe.
    temporary: Option<Temporary>,
}

impl OutputFile {
    /// Creates the file that will be called `path`; a link there is followed. `inputs` are the files that the caller reads; a part
    /// of a split model stands for all of its parts.
    ///
    /// # Errors
    /// `path` is one of `inputs` (the same file, whatever the paths), a directory, or in a place that cannot be written.
    pub fn create(path: &Path, inputs: &[&Path]) -> Result<OutputFile, OutputError> {
        refuse_inputs(path, inputs)?;
        let file = || path.display().to_string();
        let failed = |source| OutputError::Create { file: file(), source };
        let existing = match fs::metadata(path) {
            Ok(existing) if existing.is_dir() => return Err(OutputError::IsDirectory { file: file() }),
            Ok(existing) if !existing.is_file() => {
                let device = OpenOptions::new().write(true).open(path).map_err(failed)?;
                let out = BufWriter::with_capacity(BUFFER, device);
                return Ok(OutputFile { path: path.to_owned(), out, temporary: None });
            }
            Ok(existing) => Some(existing),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(failed(e)),
        };
        let target = if existing.is_some() { path.canonicalize().map_err(failed)? } else { path.to_owned() };
        let (unnamed, temporary) = Temporary::beside(target).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => OutputError::NoFolder { file: file() },
            _ => failed(e),
        })?;
        if let Some(existing) = existing {
            unnamed.set_permissions(existing.permissions()).map_err(failed)?;
        }
        let out = BufWriter::with_capacity(BUFFER, unnamed);
        Ok(OutputFile { path: path.to_owned(), out, temporary: Some(temporary) })
    }

    /// The name that the file will have.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes what is left and puts the file in its place; a file that is there is replaced.
    ///
    /// # Errors
    /// The disk is full, the place has become unwritable, or the process is ending.
    pub fn finish(self) -> Result<(), OutputError> {
        let OutputFile { path, mut out, temporary } = self;
        let failed = |action| {
            let file = path.display().to_string();
            move |source| OutputError::Write { file, action, source }
        };
        out.flush().map_err(failed("write"))?;
        let file = out.into_inner().map_err(|e| failed("write")(e.into_error()))?;
        temporary.map_or(Ok(()), |temporary| temporary.take_name(file).map_err(failed("replace")))
    }
}

impl Write for OutputFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Sees to it that a file to be written is none of those that are read; a part of a split model stands for all of its parts.
///
/// # Errors
/// `path` is one of `inputs`, whatever the paths.
pub fn refuse_inputs(path: &Path, inputs: &[&Path]) -> Result<(), OutputError> {
    match inputs.iter().flat_map(|input| all_parts(input)).find(|input| is_same_file(path, input)) {
        Some(input) => {
            Err(OutputError::IsInput { file: path.display().to_string(), input: input.display().to_string() })
        }
        None => Ok(()),
    }
}

/// Whether two paths lead to the same file. A path that leads nowhere is the same as none.
fn is_same_file(a: &Path, b: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let identity = |path: &Path| fs::metadata(path).map(|m| (m.dev(), m.ino()));
        matches!((identity(a), identity(b)), (Ok(a), Ok(b)) if a == b)
    }
    #[cfg(not(unix))]
    {
        matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
    }
}

/// The temporary names in use; `None` once the process is ending.
static UNFINISHED: Mutex<Option<Vec<PathBuf>>> = Mutex::new(Some(Vec::new()));

fn unfinished() -> MutexGuard<'static, Option<Vec<PathBuf>>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes every file that is not finished, and lets none be created or finished from now on. For a process that is about to
/// end without returning from what it does, as on Ctrl-C.
pub fn remove_unfinished() {
    for path in unfinished().take().unwrap_or_default() {
        // Nothing sensible can be done about a failure.
        let _ = fs::remove_file(path);
    }
}

/// What a temporary name begins and ends with.
const PREFIX: &str = ".spts-";
const SUFFIX: &str = ".tmp";

/// Removes the files in the folder of `target` that nobody writes any more.
fn remove_abandoned(target: &Path) {
    let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let is_ours = name.to_str().is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX));
        // The lock is kept until the file is gone.
        if is_ours
            && let Ok(file) = OpenOptions::new().write(true).open(entry.path())
            && file.try_lock().is_ok()
        {
            // Nothing sensible can be done about a failure.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// A file under a temporary name, which vanishes unless it takes its own.
#[derive(Debug)]
struct Temporary {
    path: PathBuf,
    target: PathBuf,
}

impl Temporary {
    /// A new file in the folder of `target`: only within one file system is a rename atomic.
    fn beside(target: PathBuf) -> io::Result<(File, Temporary)> {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        if target.file_name().is_none() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        remove_abandoned(&target);
        let mut unfinished = unfinished();
        let names = unfinished.as_mut().ok_or(io::ErrorKind::Interrupted)?;
        loop {
            let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
            let path = target.with_file_name(format!("{PREFIX}{}-{serial}{SUFFIX}", std::process::id()));
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => {
                    // Whoever has it already takes it for abandoned.
                    if let Err(TryLockError::WouldBlock) = file.try_lock() {
                        continue;
                    }
                    names.push(path.clone());
                    return Ok((file, Temporary { path, target }));
                }
                // Left behind by a killed process that had our number.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(e),
            }
        }
    }

    /// Puts the file in its place.
    fn take_name(self, file: File) -> io::Result<()> {
        // Open, and so locked, until it has its name; but some systems insist that it be closed.
        let _open = cfg!(unix).then_some(file);
        // Held while renaming, so that whoever removes unfinished files finds this one either way.
        let mut unfinished = unfinished();
        let names = unfinished.as_mut().ok_or(io::ErrorKind::Interrupted)?;
        fs::rename(&self.path, &self.target)?;
        names.retain(|name| *name != self.path);
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let mut unfinished = unfinished();
        let Some(names) = unfinished.as_mut() else { return };
        // A file that has its name is not on the list any more.
        if let Some(at) = names.iter().position(|name| *name == self.path) {
            names.swap_remove(at);
            // Nothing sensible can be done about a failure; the error that led here is already on its way.
            let _ = fs::remove_file(&self.path);
        }
    }
}
