//! ggml's CUDA backend: the files and flags of upstream's default build, and our own operations.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Result;
use crate::archive::{self, Job, Library};
use crate::cache::{Cache, Fingerprint, source_files, target_dir};
use crate::cpu;
use crate::source::Source;

/// Compiled for when no GPU is there and GGML_CUDA_ARCHS is not set: upstream's list, and Hopper's own code, which our
/// attention kernel is made of.
const DEFAULT_ARCHS: &str = "75-virtual 80-virtual 86-real 89-real 90-virtual 90a-real 120a-real 121a-real";

/// Types of K and V that have a flash attention vector kernel of their own, and upstream's default pairs.
const FA_TYPES: &[&str] = &["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "bf16", "f16"];
const FA_PAIRS: &[(&str, &str)] = &[("f16", "f16"), ("q4_0", "q4_0"), ("q8_0", "q8_0"), ("bf16", "bf16")];

/// Our own files, in `src`.
const OWN: &[&str] = &[
    "attention.cu",
    "block_lists.cu",
    "dequantize.cu",
    "hopper_attention.cu",
    "product_choice.cu",
    "product_tiles.cu",
    "products.cu",
    "rope.cu",
    "rows.cu",
    "selection.cu",
    "spts_ops.cu",
    "wide_weights.cu",
    "cuda_libraries.cpp",
    "graph_uid.cpp",
];

/// The function of ggml that our files stand in for, and the file that defines it: compiled under another name
/// (`..._upstream`). It computes an operation that our graphs do not hold, and so becomes the door to ours (spts_ops.h).
const REPLACED: (&str, &str) = ("tsembd.cu", "ggml_cuda_op_timestep_embedding");

/// Memory that one nvcc takes for the largest files, in KiB.
const KIB_PER_JOB: u64 = 3 << 20;

/// An installed or unpacked CUDA toolkit.
struct Toolkit {
    nvcc: PathBuf,
    lib: PathBuf,
    /// As nvcc names it, such as (13, 0).
    version: (u32, u32),
}

/// Compiles and links the CUDA backend.
pub fn backend(source: &Source, cache: &Cache) -> Result<()> {
    for name in ["CUDA_PATH", "CUDA_HOME", "GGML_CUDA_ARCHS", "NVCC_CCBIN"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let toolkit = Toolkit::locate()?;
    let flags = flags(source, &toolkit, &architectures(&toolkit))?;
    // Ours apart from ggml's: a change of one does not compile the other again.
    let mut own_flags = flags.clone();
    own_flags.push(format!("-DSPTS_CUDA_LIBRARY_DIR=\"{}\"", toolkit.lib.display()));
    own_flags.push("-Xcompiler=-fvisibility=hidden".to_owned());
    library("ggml-cuda-own", source, cache, &toolkit, &own_files()?, &own_flags)?.link();
    library("ggml-cuda", source, cache, &toolkit, &files(source)?, &flags)?.link();

    println!("cargo::rustc-link-search=native={}", toolkit.lib.display());
    println!("cargo::rustc-link-lib=static=cudart_static");
    println!("cargo::rustc-link-lib=dylib=rt");
    println!("cargo::metadata=cuda_lib={}", toolkit.lib.display());
    Ok(())
}

fn library(
    name: &str,
    source: &Source,
    cache: &Cache,
    toolkit: &Toolkit,
    files: &[PathBuf],
    flags: &[String],
) -> Result<Library> {
    let entry = cache.entry(name, &fingerprint(source, toolkit, files, flags)?)?;
    let jobs: Vec<Job> = files.iter().map(|file| job(toolkit, file, flags)).collect();
    archive::build(name, &entry, &jobs, parallel_jobs())
}

/// What we add to ggml's backend.
fn own_files() -> Result<Vec<PathBuf>> {
    let dir = own_dir()?;
    println!("cargo::rerun-if-changed={}", dir.display());
    Ok(OWN.iter().map(|file| dir.join(file)).collect())
}

fn own_dir() -> Result<PathBuf> {
    Ok(PathBuf::from(env::var("CARGO_MANIFEST_DIR").map_err(|e| e.to_string())?).join("src"))
}

impl Toolkit {
    /// CUDA_PATH or CUDA_HOME, the PATH, what `make cuda` made, the usual place.
    fn locate() -> Result<Self> {
        let named = ["CUDA_PATH", "CUDA_HOME"].iter().filter_map(env::var_os).map(PathBuf::from);
        let path = env::var_os("PATH").unwrap_or_default();
        let on_path = env::split_paths(&path).filter_map(|bin| Some(bin.parent()?.to_owned()));
        let made = target_dir()?.join("cuda-toolkit");
        let mut roots = named.chain(on_path).chain([made, PathBuf::from("/usr/local/cuda")]);
        let root = roots.find(|root| root.join("bin/nvcc").is_file()).ok_or(
            "the feature `cuda` needs nvcc: install a CUDA toolkit and set CUDA_PATH, or run `make cuda`, \
             which fetches NVIDIA's compiler",
        )?;
        // nvcc may be a link into the toolkit.
        let nvcc = root.join("bin/nvcc").canonicalize().map_err(|e| format!("nvcc: {e}"))?;
        let root = nvcc.ancestors().nth(2).ok_or("nvcc lies in no folder")?.to_owned();
        let lib = ["lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"]
            .iter()
            .map(|dir| root.join(dir))
            .find(|dir| dir.join("libcudart_static.a").is_file())
            .ok_or_else(|| format!("the CUDA toolkit in {} has no libcudart_static.a", root.display()))?;
        let version = version(&nvcc)?;
        Ok(Self { nvcc, lib, version })
    }
}

fn version(nvcc: &Path) -> Result<(u32, u32)> {
    let text = archive::output_of(Command::new(nvcc).arg("--version"))
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .ok_or_else(|| format!("{} --version failed", nvcc.display()))?;
    let numbers = text.split("release ").nth(1).and_then(|rest| rest.split(',').next());
    let parsed = numbers.and_then(|n| n.split_once('.')).and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    parsed.ok_or_else(|| format!("{} --version names no release", nvcc.display()))
}

/// The code to generate, in CMake's notation: `90a-real`, `80-virtual`, `86`.
fn architectures(toolkit: &Toolkit) -> String {
    if let Ok(listed) = env::var("GGML_CUDA_ARCHS") {
        return listed;
    }
    let mut query = Command::new("nvidia-smi");
    query.args(["--query-gpu=compute_cap", "--format=csv,noheader"]);
    let present = archive::output_of(&mut query).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let mut found: Vec<String> = present
        .iter()
        .flat_map(|text| text.lines())
        .map(|line| line.trim().replace('.', ""))
        .filter(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
        // Hopper's matrix instructions need the architecture-specific code.
        .map(|digits| if digits == "90" { "90a-real".to_owned() } else { format!("{digits}-real") })
        .collect();
    found.sort();
    found.dedup();
    if !found.is_empty() {
        return found.join(" ");
    }
    let old = if toolkit.version < (13, 0) { "61-virtual 70-virtual " } else { "" };
    let known = |arch: &&str| {
        let needs = match arch.split('-').next() {
            Some("121a") => (12, 9),
            Some("120a") => (12, 8),
            Some("89" | "90" | "90a") => (11, 8),
            _ => (0, 0),
        };
        toolkit.version >= needs
    };
    let new: Vec<&str> = DEFAULT_ARCHS.split(' ').filter(known).collect();
    format!("{old}{}", new.join(" "))
}

/// `-gencode` arguments for a list such as `80-virtual 90a-real`.
fn gencode(archs: &str) -> Result<Vec<String>> {
    let names = archs.split([' ', ',', ';']).filter(|name| !name.is_empty());
    let mut flags = Vec::new();
    for name in names {
        let (number, kind) = name.split_once('-').unwrap_or((name, ""));
        let digits = number.trim_end_matches(['a', 'f']);
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(format!("GGML_CUDA_ARCHS: '{name}' is not an architecture; expected such as 90a-real"));
        }
        // FP4 on consumer Blackwell needs the architecture-specific code, as upstream has it.
        let number = if digits == number && number.len() == 3 && number.starts_with("12") {
            format!("{number}a")
        } else {
            number.to_owned()
        };
        let code = match kind {
            "real" => format!("sm_{number}"),
            "virtual" => format!("compute_{number}"),
            "" => format!("[compute_{number},sm_{number}]"),
            other => {
                return Err(format!("GGML_CUDA_ARCHS: '-{other}' in '{name}' is neither -real nor -virtual"));
            }
        };
        flags.push(format!("--generate-code=arch=compute_{number},code={code}"));
    }
    if flags.is_empty() { Err("GGML_CUDA_ARCHS names no architecture".to_owned()) } else { Ok(flags) }
}

/// All kernels but the flash attention vector kernels of unusual pairs of types.
fn files(source: &Source) -> Result<Vec<PathBuf>> {
    let dir = source.src().join("ggml-cuda");
    let is_cuda = |path: &PathBuf| path.extension().is_some_and(|e| e == "cu");
    let wanted = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let pair = |(k, v): &(&str, &str)| name == format!("fattn-vec-instance-{k}-{v}.cu");
        !name.starts_with("fattn-vec-instance-") || FA_PAIRS.iter().any(pair)
    };
    let mut files = source_files(&dir)?;
    files.extend(source_files(&dir.join("template-instances"))?);
    files.retain(|path| is_cuda(path) && wanted(path));
    Ok(files)
}

fn flags(source: &Source, toolkit: &Toolkit, archs: &str) -> Result<Vec<String>> {
    let mut flags: Vec<String> = ["-O3", "-std=c++17", "-use_fast_math", "-extended-lambda", "-w"]
        .iter()
        .chain(cpu::DEFINES)
        .chain(&["-DGGML_CUDA_USE_GRAPHS"])
        .map(|flag| (*flag).to_owned())
        .collect();
    if toolkit.version >= (12, 8) {
        flags.push("-compress-mode=size".to_owned());
    }
    let pairs: Vec<String> = FA_PAIRS.iter().map(|(k, v)| format!("{k}-{v}")).collect();
    flags.push(format!("-DGGML_CUDA_FA_QUANTS=\"{}\"", pairs.join(",")));
    for v in FA_TYPES {
        for k in FA_TYPES {
            let compiled = u8::from(FA_PAIRS.contains(&(*k, *v)));
            flags.push(format!("-DGGML_CUDA_FA_{}_{}={compiled}", k.to_uppercase(), v.to_uppercase()));
        }
    }
    flags.extend(gencode(archs)?);
    flags.push(format!("-Xcompiler=-fPIC,-w,-ffile-prefix-map={}=ggml", source.root.display()));
    for include in [source.include(), source.src(), source.src().join("ggml-cuda")] {
        flags.push(format!("-I{}", include.display()));
    }
    Ok(flags)
}

fn job(toolkit: &Toolkit, file: &Path, flags: &[String]) -> Job {
    let mut args: Vec<OsString> = flags.iter().map(OsString::from).collect();
    let (replaced, function) = REPLACED;
    if file.ends_with(replaced) {
        args.push(format!("-D{function}={function}_upstream").into());
    }
    args.push("-c".into());
    Job { program: toolkit.nvcc.clone(), args, source: file.to_owned() }
}

/// All that decides what the compiled `files` are.
fn fingerprint(source: &Source, toolkit: &Toolkit, files: &[PathBuf], flags: &[String]) -> Result<Fingerprint> {
    let mut fingerprint = Fingerprint::new();
    fingerprint.add(env::var("TARGET").unwrap_or_default().as_bytes());
    let host = env::var_os("NVCC_CCBIN").unwrap_or_else(|| "g++".into());
    for (program, arg) in [(toolkit.nvcc.as_os_str(), "--version"), (&host, "-dumpfullversion")] {
        fingerprint.add(&archive::output_of(Command::new(program).arg(arg)).unwrap_or_default());
    }
    fingerprint.add(REPLACED.0.as_bytes()).add(REPLACED.1.as_bytes());
    // Folders say where the text is, not what it is.
    for flag in flags.iter().filter(|flag| !flag.starts_with("-I") && !flag.contains("-prefix-map")) {
        fingerprint.add(flag.as_bytes());
    }
    let cuda = source.src().join("ggml-cuda");
    let dirs = [cuda.join("template-instances"), cuda.join("vendors"), cuda, source.include(), source.src()];
    fingerprint.add_sources(&dirs)?;
    if files.iter().any(|file| !file.starts_with(&source.root)) {
        // Ours, with their headers.
        fingerprint.add_sources(&[own_dir()?])?;
    }
    Ok(fingerprint)
}

/// As many compilers as Cargo allows and memory holds.
fn parallel_jobs() -> usize {
    let available = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("MemAvailable:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    });
    let by_memory = available.map_or(usize::MAX, |kib| usize::try_from(kib / KIB_PER_JOB).unwrap_or(usize::MAX));
    archive::job_count().min(by_memory).max(1)
}
