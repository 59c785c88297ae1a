//! Compiles a list of files, several at a time, and archives the objects.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::Result;
use crate::cache::Entry;

/// One compiler call: `program args -o OBJECT source`.
pub struct Job {
    pub program: PathBuf,
    pub args: Vec<OsString>,
    pub source: PathBuf,
}

/// A static library ready to be linked.
pub struct Library {
    dir: PathBuf,
    name: String,
}

impl Library {
    pub fn link(&self) {
        println!("cargo::rustc-link-search=native={}", self.dir.display());
        println!("cargo::rustc-link-lib=static={}", self.name);
    }
}

/// How many compilers run at once: what Cargo was told with `-j`.
pub fn job_count() -> usize {
    env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1).max(1)
}

/// The library `name` in `entry`, made of `jobs` unless it is there already.
pub fn build(name: &str, entry: &Entry, jobs: &[Job], parallel: usize) -> Result<Library> {
    library(name, entry, || compile(&entry.dir.join("obj"), jobs, parallel))
}

/// The library `name` in `entry`, archived of the objects that `make` makes unless it is there already.
pub fn library(name: &str, entry: &Entry, make: impl FnOnce() -> Result<Vec<PathBuf>>) -> Result<Library> {
    let archive = entry.dir.join(format!("lib{name}.a"));
    if !archive.is_file() {
        archive_objects(&archive, &make()?)?;
        // The archive holds the objects now; what stays behind costs disk space only.
        for item in fs::read_dir(&entry.dir).into_iter().flatten().flatten() {
            if item.file_name().to_string_lossy().starts_with("obj") {
                let _ = fs::remove_dir_all(item.path());
            }
        }
    }
    Ok(Library { dir: entry.dir.clone(), name: name.to_owned() })
}

/// Compiles `jobs` into `dir`, skipping what an earlier, interrupted build has finished.
pub fn compile(dir: &Path, jobs: &[Job], parallel: usize) -> Result<Vec<PathBuf>> {
    fs::create_dir_all(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let objects: Vec<PathBuf> = jobs.iter().map(|job| dir.join(object_name(&job.source))).collect();
    let next = AtomicUsize::new(0);
    let failure = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..parallel.clamp(1, jobs.len().max(1)) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let (Some(job), Some(object)) = (jobs.get(index), objects.get(index)) else {
                        break;
                    };
                    if object.is_file() {
                        continue;
                    }
                    if let Err(message) = compile_one(job, object) {
                        next.store(jobs.len(), Ordering::Relaxed);
                        if let Ok(mut first) = failure.lock() {
                            first.get_or_insert(message);
                        }
                    }
                }
            });
        }
    });
    match failure.into_inner() {
        Ok(None) => Ok(objects),
        Ok(Some(message)) => Err(message),
        Err(_) => Err("a compile thread panicked".to_owned()),
    }
}

/// Two files of one library may have the same name in different folders.
fn object_name(source: &Path) -> String {
    let part = |p: Option<&Path>| p.and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
    format!("{}-{}.o", part(source.parent()), part(Some(source)))
}

fn compile_one(job: &Job, object: &Path) -> Result<()> {
    let partial = object.with_extension("partial.o");
    let mut command = Command::new(&job.program);
    command.args(&job.args).arg("-o").arg(&partial).arg(&job.source);
    run(&mut command).map_err(|e| format!("{}: {e}", job.source.display()))?;
    fs::rename(&partial, object).map_err(|e| format!("{}: {e}", object.display()))
}

fn archive_objects(archive: &Path, objects: &[PathBuf]) -> Result<()> {
    let partial = archive.with_extension("partial.a");
    let _ = fs::remove_file(&partial);
    let ar = env::var_os("AR").unwrap_or_else(|| "ar".into());
    run(Command::new(ar).arg("crs").arg(&partial).args(objects))?;
    fs::rename(&partial, archive).map_err(|e| format!("{}: {e}", archive.display()))
}

/// Runs a command; its own messages go to the build script's log, the last of them into the error.
pub fn run(command: &mut Command) -> Result<()> {
    println!("{command:?}");
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().map_err(|e| format!("cannot run {program}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    eprintln!("{text}");
    let reason = text.lines().find(|line| line.contains("error")).or(text.lines().last()).unwrap_or("");
    Err(format!("{program} failed ({}): {reason}", output.status))
}

/// What a command prints on stdout.
pub fn output_of(command: &mut Command) -> Option<Vec<u8>> {
    let output = command.stdin(Stdio::null()).output().ok()?;
    output.status.success().then_some(output.stdout)
}
