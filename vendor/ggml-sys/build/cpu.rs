//! ggml's core, its backend registry and its CPU backend, with the flags of upstream's release build.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::iter;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Result;
use crate::archive::{self, Job, Library};
use crate::cache::{Cache, Fingerprint};
use crate::source::Source;

const BASE: &[&str] = &[
    "ggml.c",
    "ggml.cpp",
    "ggml-alloc.c",
    "ggml-backend.cpp",
    "ggml-backend-meta.cpp",
    "ggml-opt.cpp",
    "ggml-threading.cpp",
    "ggml-quants.c",
    "gguf.cpp",
];

const REGISTRY: &[&str] = &["ggml-backend-dl.cpp", "ggml-backend-reg.cpp"];

/// Besides ggml-cpu.c: see [`cpu_files`].
const CPU: &[&str] = &[
    "ggml-cpu.cpp",
    "repack.cpp",
    "hbm.cpp",
    "quants.c",
    "traits.cpp",
    "amx/amx.cpp",
    "amx/mmq.cpp",
    "tiled/tiled.cpp",
    "tiled/tiled-kernel.cpp",
    "binary-ops.cpp",
    "unary-ops.cpp",
    "vec.cpp",
    "ops.cpp",
    "llamafile/sgemm.cpp",
];

/// ggml-cpu.c with a barrier that does not spin for ever, and an operation of ours, in the package's folder.
const OWN: &[&str] = &["src/cpu/pool.c", "src/cpu/wait.c", "src/cpu/attention.cpp", "src/cpu/block_lists.cpp"];

/// The definitions of every file of ggml, CUDA included.
pub const DEFINES: &[&str] = &["-DNDEBUG", "-DGGML_SCHED_MAX_COPIES=4", "-D_XOPEN_SOURCE=600", "-D_GNU_SOURCE"];

/// Tensors, graphs, allocation, scheduling, quantization: no vector instructions beyond the baseline,
/// as upstream has it.
pub fn base(source: &Source, cache: &Cache) -> Result<Library> {
    let files = BASE.iter().map(|file| source.src().join(file)).collect();
    let mut flags = openmp_flags();
    if use_openmp() {
        flags.push("-DGGML_USE_OPENMP".to_owned());
    }
    library("ggml-base", source, cache, files, &flags)
}

/// The list of the backends that this build holds.
pub fn registry(source: &Source, cache: &Cache, cuda: bool) -> Result<Library> {
    let files = REGISTRY.iter().map(|file| source.src().join(file)).collect();
    let mut flags = vec!["-DGGML_USE_CPU".to_owned()];
    if cuda {
        flags.push("-DGGML_USE_CUDA".to_owned());
    }
    library("ggml", source, cache, files, &flags)
}

/// The CPU backend for the instruction set of this machine (or the target's baseline when compiling for another).
pub fn backend(source: &Source, cache: &Cache) -> Result<Library> {
    library("ggml-cpu", source, cache, cpu_files(source)?, &cpu_flags(&native_flags()?))
}

/// Flags of the CPU backend's files, for the instruction set that `isa` names. Graphs are computed by ggml's own threads
/// (without `GGML_USE_OPENMP`); OpenMP is left with the conversion of weights for AMX.
pub fn cpu_flags(isa: &[String]) -> Vec<String> {
    let mut flags = openmp_flags();
    flags.extend(["-DGGML_USE_LLAMAFILE", "-DGGML_USE_CPU_REPACK"].map(str::to_owned));
    flags.extend_from_slice(isa);
    flags
}

pub fn cpu_files(source: &Source) -> Result<Vec<PathBuf>> {
    let dir = source.src().join("ggml-cpu");
    let mut files: Vec<PathBuf> = CPU.iter().map(|file| dir.join(file)).collect();
    if target("OS")? == "linux" {
        println!("cargo::rerun-if-changed=src/cpu");
        let own = PathBuf::from(env::var("CARGO_MANIFEST_DIR").map_err(|e| e.to_string())?);
        files.extend(OWN.iter().map(|file| own.join(file)));
    } else {
        files.push(dir.join("ggml-cpu.c"));
    }
    let arch = match target("ARCH")?.as_str() {
        "x86_64" => "x86",
        "aarch64" => "arm",
        // Other processors get ggml's plain C kernels.
        _ => return Ok(files),
    };
    files.push(dir.join(format!("arch/{arch}/quants.c")));
    files.push(dir.join(format!("arch/{arch}/repack.cpp")));
    Ok(files)
}

/// `-march=native`, unless another machine's code is asked for.
fn native_flags() -> Result<Vec<String>> {
    let arch = target("ARCH")?;
    let cross = env::var("HOST").ok() != env::var("TARGET").ok();
    Ok(match arch.as_str() {
        "x86_64" | "aarch64" if cfg!(feature = "portable") => Vec::new(),
        "x86_64" | "aarch64" if cross => Vec::new(),
        "x86_64" => {
            let native = "-march=native".to_owned();
            // ggml would sum attention in F16 there: in steps of 128 values, so that a head of 64 falls out of the vector
            // loop (decode of such a model at a depth of 6K tokens, 8 times slower), and with three digits instead of seven.
            let f16 = defines(&native, "__AVX512FP16__")?.then(|| "-mno-avx512fp16".to_owned());
            iter::once(native).chain(f16).collect()
        }
        "aarch64" => vec!["-mcpu=native".to_owned()],
        _ => vec!["-DGGML_CPU_GENERIC".to_owned()],
    })
}

/// Whether the C compiler predefines `name` under `flag`.
fn defines(flag: &str, name: &str) -> Result<bool> {
    let mut probe = compiler(false)?.to_command();
    probe.args([flag, "-dM", "-E", "-x", "c", "/dev/null"]);
    let macros = archive::output_of(&mut probe).unwrap_or_default();
    Ok(String::from_utf8_lossy(&macros).lines().any(|line| line.split(' ').nth(1) == Some(name)))
}

/// Upstream's default where the compiler has OpenMP.
fn openmp_flags() -> Vec<String> {
    if use_openmp() { vec!["-fopenmp".to_owned()] } else { Vec::new() }
}

fn use_openmp() -> bool {
    let refused = env::var("GGML_NO_OPENMP").is_ok_and(|v| !v.is_empty() && v != "0");
    let linux = target("OS").is_ok_and(|os| os == "linux");
    !refused && linux && compiler(true).is_ok_and(|c| c.is_like_gnu())
}

/// `CARGO_CFG_TARGET_{what}`.
pub fn target(what: &str) -> Result<String> {
    let name = format!("CARGO_CFG_TARGET_{what}");
    env::var(&name).map_err(|e| format!("{name}: {e}"))
}

fn library(name: &str, source: &Source, cache: &Cache, files: Vec<PathBuf>, flags: &[String]) -> Result<Library> {
    let entry = cache.entry(name, &fingerprint(source, &files, flags)?)?;
    let jobs = jobs(source, &files, flags, &entry.dir)?;
    archive::build(name, &entry, &jobs, archive::job_count())
}

/// All that decides what the compiled `files` are.
pub fn fingerprint(source: &Source, files: &[PathBuf], flags: &[String]) -> Result<Fingerprint> {
    let mut fingerprint = Fingerprint::new();
    fingerprint.add(env::var("TARGET").unwrap_or_default().as_bytes());
    for cpp in [false, true] {
        let tool = compiler(cpp)?;
        for arg in common_flags(cpp).into_iter().chain(flags.iter().map(String::as_str)) {
            fingerprint.add(arg.as_bytes());
        }
        // Its predefined macros tell the compiler's version and what "native" is on this machine.
        let mut probe = tool.to_command();
        probe.args(flags).args(["-dM", "-E", "-x", "c", "/dev/null"]);
        fingerprint.add(&archive::output_of(&mut probe).unwrap_or_default());
    }
    // Which files, besides what is in their folders.
    for name in files.iter().filter_map(|f| f.file_name()) {
        fingerprint.add(name.as_encoded_bytes());
    }
    let mut dirs: Vec<PathBuf> = files.iter().filter_map(|f| f.parent()).map(Path::to_owned).collect();
    dirs.extend([source.include(), source.src()]);
    dirs.sort();
    dirs.dedup();
    fingerprint.add_sources(&dirs)?;
    Ok(fingerprint)
}

/// One compiler call per file. `dir` receives the header with the version that ggml's build generates.
pub fn jobs(source: &Source, files: &[PathBuf], flags: &[String], dir: &Path) -> Result<Vec<Job>> {
    let header =
        format!("#pragma once\n#define GGML_VERSION \"{}\"\n#define GGML_COMMIT \"unknown\"\n", source.version);
    fs::write(dir.join("ggml-version.h"), header).map_err(|e| format!("{}: {e}", dir.display()))?;
    let tools = [compiler(false)?, compiler(true)?];
    let job = |file: &PathBuf| {
        let cpp = file.extension().is_some_and(|e| e == "cpp");
        let tool = &tools[usize::from(cpp)];
        let mut args: Vec<OsString> = tool.args().to_vec();
        args.extend(common_flags(cpp).into_iter().map(OsString::from));
        args.extend(flags.iter().map(OsString::from));
        for include in [source.include(), source.src(), source.src().join("ggml-cpu"), dir.to_owned()] {
            args.push("-I".into());
            args.push(include.into());
        }
        // ggml puts file names into its assertions: not those of the machine that compiled it.
        args.push(format!("-ffile-prefix-map={}=ggml", source.root.display()).into());
        args.push("-c".into());
        Job { program: tool.path().to_owned(), args, source: file.clone() }
    };
    Ok(files.iter().map(job).collect())
}

fn common_flags(cpp: bool) -> Vec<&'static str> {
    let mut flags = vec!["-O3", "-fPIC", "-w", if cpp { "-std=gnu++17" } else { "-std=gnu11" }];
    flags.extend(DEFINES);
    flags
}

/// The compiler alone: cc's default flags follow Cargo's profile, and ggml is always optimized.
fn compiler(cpp: bool) -> Result<cc::Tool> {
    cc::Build::new()
        .cpp(cpp)
        .cargo_metadata(false)
        .no_default_flags(true)
        .warnings(false)
        .try_get_compiler()
        .map_err(|e| format!("no C{} compiler: {e}", if cpp { "++" } else { "" }))
}

/// What the static libraries need at link time.
pub fn link_system_libraries() -> Result<()> {
    if target("OS")? == "macos" {
        println!("cargo::rustc-link-lib=c++");
        println!("cargo::rustc-link-lib=framework=Accelerate");
        return Ok(());
    }
    println!("cargo::rustc-link-lib=stdc++");
    if use_openmp() {
        // The compiler knows where its OpenMP library is; the linker of another compiler may not.
        let tool = compiler(true)?;
        let name = if tool.is_like_clang() { "omp" } else { "gomp" };
        let file = archive::output_of(Command::new(tool.path()).arg(format!("-print-file-name=lib{name}.so")));
        let path = file.and_then(|f| String::from_utf8(f).ok()).map(|f| PathBuf::from(f.trim()));
        if let Some(dir) = path.as_deref().filter(|p| p.is_absolute()).and_then(Path::parent) {
            println!("cargo::rustc-link-search=native={}", dir.display());
        }
        println!("cargo::rustc-link-lib={name}");
    }
    for name in ["pthread", "dl", "m"] {
        println!("cargo::rustc-link-lib={name}");
    }
    Ok(())
}
