//! The CPU backend for several x86-64 instruction sets in one program (feature `portable`).
//!
//! ggml builds such a program out of shared libraries. Here each variant is compiled and linked into one
//! relocatable object in which every symbol is local, but for the functions of ggml-cpu.h and ours, which get the
//! variant's name appended. Functions under the plain names jump to the best variant that the processor
//! runs; ggml's own scores, taken when the program starts, decide. Local symbols matter twice: the
//! variants do not collide, and no inline function compiled for AVX-512 serves the others.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Result;
use crate::archive::{self, Library};
use crate::cache::Cache;
use crate::cpu;
use crate::source::Source;

struct Variant {
    name: &'static str,
    /// A feature that the operating system must support too (its registers), as the compiler names it.
    needs: Option<&'static str>,
    /// What the compiler may use: `-m` and these.
    flags: &'static [&'static [&'static str]],
    /// The same for the scores of ggml's cpu-feats.cpp: `-DGGML_` and these.
    scores: &'static [&'static [&'static str]],
}

/// The sets of upstream's variants of the same names; of equal scores the later wins.
const VARIANTS: &[Variant] = &[
    Variant { name: "x64", needs: None, flags: &[], scores: &[] },
    Variant { name: "haswell", needs: Some("avx2"), flags: &[AVX2], scores: &[AVX2_SCORES] },
    Variant {
        name: "alderlake",
        needs: Some("avx2"),
        flags: &[AVX2, &["avxvnni"]],
        scores: &[AVX2_SCORES, &["AVX_VNNI"]],
    },
    Variant { name: "skylakex", needs: Some("avx512f"), flags: &[AVX2, AVX512], scores: &[AVX2_SCORES, &["AVX512"]] },
    Variant {
        name: "zen4",
        needs: Some("avx512f"),
        flags: &[AVX2, AVX512, &["avx512vbmi", "avx512vnni", "avx512bf16"]],
        scores: &[AVX2_SCORES, &["AVX512", "AVX512_VBMI", "AVX512_VNNI", "AVX512_BF16"]],
    },
];

const AVX2: &[&str] = &["sse4.2", "avx", "f16c", "fma", "avx2", "bmi2"];
const AVX2_SCORES: &[&str] = &["SSE42", "AVX", "F16C", "FMA", "AVX2", "BMI2"];
const AVX512: &[&str] = &["avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw"];

/// Whether variants exist for the target; elsewhere a portable build is one baseline build.
pub fn supported() -> bool {
    cpu::target("ARCH").is_ok_and(|arch| arch == "x86_64") && cpu::target("OS").is_ok_and(|os| os == "linux")
}

pub fn backend(source: &Source, cache: &Cache) -> Result<Library> {
    let name = "ggml-cpu-portable";
    let files = cpu::cpu_files(source)?;
    let mut fingerprint = cpu::fingerprint(source, &files, &cpu::cpu_flags(&[]))?;
    for variant in VARIANTS {
        fingerprint.add(variant.name.as_bytes());
        for flag in variant_flags(variant) {
            fingerprint.add(flag.as_bytes());
        }
    }
    fingerprint.add(include_bytes!("portable.rs")).add(include_bytes!("../src/cpu_dispatch.c"));
    let entry = cache.entry(name, &fingerprint)?;
    archive::library(name, &entry, || {
        let api = api(source)?;
        let (mut objects, mut exported) = (Vec::new(), BTreeSet::new());
        for variant in VARIANTS {
            let (object, names) = variant_object(source, &entry.dir, &files, variant, &api)?;
            objects.push(object);
            objects.extend(score_object(source, &entry.dir, variant)?);
            exported = names;
        }
        let header = entry.dir.join("variants.h");
        fs::write(&header, lists(&exported)).map_err(|e| format!("{}: {e}", header.display()))?;
        let jobs = cpu::jobs(source, &[PathBuf::from("src/cpu_dispatch.c")], &[], &entry.dir)?;
        objects.extend(archive::compile(&entry.dir.join("obj-dispatch"), &jobs, 1)?);
        Ok(objects)
    })
}

/// ggml's answer to how well the processor serves a variant: 0 if not at all. Compiled for the baseline.
fn score_object(source: &Source, dir: &Path, variant: &Variant) -> Result<Vec<PathBuf>> {
    let file = source.src().join("ggml-cpu/arch/x86/cpu-feats.cpp");
    let mut flags = vec!["-DGGML_BACKEND_DL".to_owned(), format!("-Dggml_backend_score=ggml_score_{}", variant.name)];
    flags.extend(variant.scores.concat().iter().map(|feature| format!("-DGGML_{feature}")));
    let jobs = cpu::jobs(source, &[file], &flags, dir)?;
    archive::compile(&dir.join(format!("obj-score-{}", variant.name)), &jobs, 1)
}

fn variant_flags(variant: &Variant) -> Vec<String> {
    let mut isa: Vec<String> = variant.flags.concat().iter().map(|flag| format!("-m{flag}")).collect();
    // Unique symbols would stay shared between the variants.
    isa.push("-fno-gnu-unique".to_owned());
    cpu::cpu_flags(&isa)
}

/// Compiles a variant into one object, and lists the functions that it exports.
fn variant_object(
    source: &Source,
    dir: &Path,
    files: &[PathBuf],
    variant: &Variant,
    api: &BTreeSet<String>,
) -> Result<(PathBuf, BTreeSet<String>)> {
    let jobs = cpu::jobs(source, files, &variant_flags(variant), dir)?;
    let dir = dir.join(format!("obj-{}", variant.name));
    let objects = archive::compile(&dir, &jobs, archive::job_count())?;
    let [whole, local, named] = ["whole", "local", "named"].map(|step| dir.join(step).with_extension("o"));
    // Groups of inline functions become plain sections, which need no other file's copy.
    let relocatable = ["-r", "--force-group-allocation", "-o"];
    archive::run(Command::new("ld").args(relocatable).arg(&whole).args(&objects))?;
    // Constructors of all variants would run on every processor.
    let sections = archive::output_of(Command::new("objdump").arg("-h").arg(&whole)).ok_or("objdump failed")?;
    if String::from_utf8_lossy(&sections).contains(".init_array") {
        return Err(format!("the CPU variant {} has constructors; it cannot be dispatched safely", variant.name));
    }

    let mut nm = Command::new("nm");
    nm.args(["--defined-only", "--extern-only", "--format=posix"]).arg(&whole);
    let symbols = archive::output_of(&mut nm).ok_or("nm failed")?;
    let exported: BTreeSet<String> = String::from_utf8_lossy(&symbols)
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(name, kind)| kind.starts_with('T') && api.contains(*name))
        .map(|(name, _)| name.to_owned())
        .collect();
    let write = |file: &str, line: &dyn Fn(&str) -> String| {
        let path = dir.join(file);
        let text: String = exported.iter().map(|name| line(name)).collect();
        fs::write(&path, text).map(|()| path).map_err(|e| format!("{file}: {e}"))
    };
    let keep = write("keep.txt", &|name| format!("{name}\n"))?;
    let rename = write("rename.txt", &|name| format!("{name} {name}__{}\n", variant.name))?;
    let steps = [("--keep-global-symbols", keep, &whole, &local), ("--redefine-syms", rename, &local, &named)];
    for (option, list, from, to) in steps {
        archive::run(Command::new("objcopy").arg(option).arg(list).args([from, to]))?;
    }
    // The archive names its members after their files.
    let object = dir.join(format!("ggml-cpu-{}.o", variant.name));
    fs::rename(&named, &object).map_err(|e| format!("{}: {e}", object.display()))?;
    Ok((object, exported))
}

/// The names that ggml-cpu.h and our own operations' headers declare.
fn api(source: &Source) -> Result<BTreeSet<String>> {
    let path = source.include().join("ggml-cpu.h");
    let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let word = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
    let own = [include_str!("../src/cpu/attention.h"), include_str!("../src/cpu/block_lists.h")];
    let names = text.split(word).chain(own.into_iter().flat_map(|header| header.split(word)));
    Ok(names.filter(|name| name.starts_with("ggml_") || name.starts_with("spts_")).map(str::to_owned).collect())
}

/// The lists that src/cpu_dispatch.c expands.
fn lists(exported: &BTreeSet<String>) -> String {
    let variant = |v: &Variant| {
        let supported = v.needs.map_or("1".to_owned(), |f| format!("__builtin_cpu_supports(\"{f}\")"));
        format!(" V({}, {supported})", v.name)
    };
    let variants: String = VARIANTS.iter().map(variant).collect();
    let function = |(slot, name): (usize, &String)| format!(" F(v, {name}, {slot})");
    let functions: String = exported.iter().enumerate().map(function).collect();
    format!("#define VARIANTS(V){variants}\n#define FUNCTIONS(F, v){functions}\n")
}
