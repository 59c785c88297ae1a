//! Greedy continuations and log probabilities against llama.cpp's, on real models.
//!
//! The expected numbers were made with llama.cpp on a CPU, temperature 0 (tests/data/golden says which). A model that is not in the
//! folder `SPTS_MODELS` (default `models/`, filled by `make fetch`) is skipped with a message.
//!
//! Two kinds: the models as they are, quantized, where ggml quantizes activations too, so that only the same kernels give the
//! same numbers; and all their tensors dequantized to F32, where there is nothing but rounding of F32 sums.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use spts::ggml::quantize::dequantize;
use spts::gguf::{GgmlType, Gguf, GgufWriter, OpenOptions};
use spts::session::sampler::log_softmax_top;
use spts::session::sequence::CacheType;
use spts::{Model, ModelOptions, Session, SessionOptions};

fn model_path(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("SPTS_MODELS")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/models")), PathBuf::from);
    let path = folder.join(format!("{name}.gguf"));
    if path.exists() {
        return Some(path);
    }
    eprintln!("SKIPPED: {} is not there; get it with `make fetch`, or set SPTS_MODELS to its folder", path.display());
    None
}

/// The greedy runs of a committed file.
struct Golden {
    /// Rows of llama.cpp's tiles.
    n_ubatch: usize,
    cases: Vec<Case>,
}

fn golden(name: &str) -> Golden {
    let path = format!("{}/tests/data/golden/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let json: Value =
        serde_json::from_str(&std::fs::read_to_string(&path).expect("a committed file")).expect("valid JSON");
    let cases: Vec<Case> = json["greedy"].as_array().expect("cases").iter().map(Case::new).collect();
    assert!(!cases.is_empty() && cases.iter().all(|c| !c.steps.is_empty()), "{name} has an empty case or none");
    Golden { n_ubatch: json["n_ubatch"].as_u64().unwrap_or(512) as usize, cases }
}

/// A prompt and its continuation.
struct Case {
    name: String,
    prompt: Vec<u32>,
    steps: Vec<Step>,
}

/// The chosen token, and the most likely ones with their log probabilities.
struct Step {
    id: u32,
    top: Vec<(u32, f32)>,
}

impl Case {
    fn new(json: &Value) -> Case {
        let field = |v: &Value, key: &str| v[key].clone();
        let steps = json["steps"].as_array().expect("steps").iter().map(|s| Step {
            id: serde_json::from_value(field(s, "id")).expect("an id"),
            top: serde_json::from_value(field(s, "top")).expect("ids and log probabilities"),
        });
        Case {
            name: serde_json::from_value(field(json, "name")).expect("a name"),
            prompt: serde_json::from_value(field(json, "prompt_ids")).expect("ids"),
            steps: steps.collect(),
        }
    }
}

/// Log probabilities may differ from the reference's by this much.
#[derive(Clone, Copy, Debug, Default)]
struct Distance {
    /// The chosen token of the first step.
    first: f32,
    /// The five most likely of the first step.
    top5: f32,
    /// All ten of every step.
    all: f32,
    /// The lead of the reference's choice where ours was another.
    tie: f32,
}

/// Where the kernels are the reference's, the same sums are rounded the same way. Measured, all ten of every step: 0.00001 with
/// AVX-512 VNNI and weights as the file has them, 0.0009 with AVX2 and repacked weights (another compiler made that reference);
/// also behind 900 and 2600 tokens, where both take the same kernels for every row ([`same_tiles`]). Attention is ggml's there
/// ([`GgmlsAttention`]): this runtime's own kernel is held to [`EXACT`] in F32 by smollm2 and qwen2.5-coder-0.5b, and by
/// [`EXACT_BUT_FOR_GELU`] by gemma-3; qwen2.5-coder-1.5b has it within its [`spread`] alone.
const SAME_KERNELS: Distance = Distance { first: 0.02, top5: 0.05, all: 0.05, tie: 0.1 };

/// GELU is looked up in a table of F16 here and there, and an input near the middle of two entries takes either: llama.cpp
/// with and without flash attention is this far from itself.
const EXACT_BUT_FOR_GELU: Distance = Distance { first: 0.001, top5: 0.017, all: 0.017, tie: 0.017 };

/// F32 sums of two correct implementations.
const EXACT: Distance = Distance { first: 0.001, top5: 0.001, all: 0.001, tie: 0.002 };

/// How far llama.cpp is from itself. Activations are quantized to 8 bits, and one near the middle of two steps falls on either
/// side for the smallest difference in the order of sums. Measured with llama.cpp of llama-cpp-python 0.3.36 against the AVX2
/// and the AVX-512 reference, prompts "short", "list" and "code", the worst of: flash attention on and off, use_extra_bufts on
/// and off, n_ubatch 1 and 512, KV in F16 and F32, compiled for AVX2 and for AVX-512 VNNI:
///
/// | model | first | top 5 | tie |
/// |---|---|---|---|
/// | smollm2-135m | 0.173, 0.091 | 0.51, 0.47 | 0.36, 0.26 |
/// | gemma-3-270m | 0.132, 0.138 | 0.49, 0.59 | 0.62, 0.04 |
/// | qwen2.5-coder-0.5b | 0.010, 0.011 | 0.33, 0.27 | 0.09, 0.09 |
/// | qwen2.5-coder-1.5b | 0.100, 0.105 | 0.23, 0.23 | 0.15, 0.02 |
///
/// (AVX2 column of qwen2.5-coder-1.5b: two settings ran "short" alone.) A right implementation on other kernels is in this range:
/// it finds a wrong token, while wrong arithmetic is what the sharper runs find.
mod spread {
    use super::Distance;

    pub const SMOLLM2: Distance = Distance { first: 0.18, top5: 0.51, all: f32::INFINITY, tie: 0.37 };
    pub const GEMMA_3: Distance = Distance { first: 0.14, top5: 0.6, all: f32::INFINITY, tie: 0.62 };
    pub const QWEN2_5_0_5B: Distance = Distance { first: 0.012, top5: 0.34, all: f32::INFINITY, tie: 0.1 };
    pub const QWEN2_5_1_5B: Distance = Distance { first: 0.11, top5: 0.24, all: f32::INFINITY, tie: 0.16 };
}

/// Long prompts take minutes on two cores: those with more tokens than this run only if `SPTS_LONG_TESTS` is set.
#[derive(Clone, Copy, PartialEq)]
enum Longest {
    /// Where others test the same.
    Sentence,
    /// Beyond a tile and Gemma's window.
    Pages,
    /// A sentence, however much time there is: the bound holds for no more.
    SentenceAlone,
}

impl Longest {
    fn takes(self, n_tokens: usize) -> bool {
        let has_time = std::env::var_os("SPTS_LONG_TESTS").is_some();
        match self {
            Longest::Sentence => has_time || n_tokens <= 100,
            Longest::Pages => has_time || n_tokens <= 1000,
            Longest::SentenceAlone => n_tokens <= 100,
        }
    }
}

fn check(model: &Arc<Model>, file: &str, options: &SessionOptions, longest: Longest, allowed: &Distance) {
    check_cases(model, file, golden(file).cases, options, longest, allowed);
}

fn check_cases(
    model: &Arc<Model>,
    file: &str,
    cases: Vec<Case>,
    options: &SessionOptions,
    longest: Longest,
    allowed: &Distance,
) {
    let mut beyond = Vec::new();
    for case in cases {
        if !longest.takes(case.prompt.len()) {
            let why =
                if longest == Longest::SentenceAlone { "not held there" } else { "set SPTS_LONG_TESTS to run it" };
            eprintln!("SKIPPED: {file}/{} of {} tokens; {why}", case.name, case.prompt.len());
            continue;
        }
        let d = distance(model, &case, options);
        println!("{file}/{}: {d:?}", case.name);
        if d.first > allowed.first || d.top5 > allowed.top5 || d.all > allowed.all || d.tie > allowed.tie {
            beyond.push((case.name, d));
        }
    }
    assert!(beyond.is_empty(), "{file}: further from the reference than {allowed:?}: {beyond:?}");
}

/// Feeds the reference's tokens and compares what comes next, up to the first step that chooses another token.
fn distance(model: &Arc<Model>, case: &Case, options: &SessionOptions) -> Distance {
    let mut session = Session::new(model.clone(), options.clone()).expect("a session");
    session.prefill(&case.prompt, &mut |_| ControlFlow::Continue(())).expect("prefill");
    let mut d = Distance::default();
    for (i, step) in case.steps.iter().enumerate() {
        assert!(session.logits().iter().all(|x| x.is_finite()), "{}, step {i}: logits that are no numbers", case.name);
        let ours = log_softmax_top(session.logits(), session.logits().len());
        for (rank, (id, expected)) in step.top.iter().enumerate() {
            let got = ours.iter().find(|t| t.0 == *id).map_or(f32::NEG_INFINITY, |t| t.1);
            let one = (got - expected).abs();
            if i == 0 && rank == 0 {
                d.first = one;
            }
            if i == 0 && rank < 5 {
                d.top5 = d.top5.max(one);
            }
            d.all = d.all.max(one);
        }
        if ours[0].0 != step.id {
            d.tie = step.top[0].1 - step.top[1].1;
            break;
        }
        session.decode(step.id).expect("decode");
    }
    d
}

/// One model at a time: its products take all cores.
static CORES: Mutex<()> = Mutex::new(());

fn all_cores() -> MutexGuard<'static, ()> {
    CORES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Attention by the reference's kernel while it lives. Taken with [`all_cores`], since it holds for the whole process.
struct GgmlsAttention;

impl GgmlsAttention {
    fn new() -> Self {
        spts::runtime::attend_by_ggml(true);
        GgmlsAttention
    }
}

impl Drop for GgmlsAttention {
    fn drop(&mut self) {
        spts::runtime::attend_by_ggml(false);
    }
}

/// Instruction sets that a reference was made with.
#[derive(Clone, Copy, PartialEq)]
enum CpuKernels {
    /// `NAME.json`: llama.cpp 0.7.0. Compiled for AVX2 with flash attention, 0.3.36's library gives the same numbers.
    /// `GGML_CPU_VARIANT=haswell cargo test --features portable --test golden` takes these kernels on newer processors.
    Avx2,
    /// `NAME-avx512vnni.json`: llama.cpp of llama-cpp-python 0.3.36 with flash attention; `NAME-avx512vnni-ubatchN.json`: that
    /// with ggml 0.26.0, made by scripts/golden-reference.py with tiles of N rows.
    Avx512Vnni,
    Other,
}

/// What ggml was compiled for.
fn cpu_kernels() -> CpuKernels {
    // SAFETY: these read what the library was compiled for and touch nothing else.
    let [avx2, avx_vnni, avx512, avx512_vnni] = unsafe {
        [
            ggml_sys::ggml_cpu_has_avx2(),
            ggml_sys::ggml_cpu_has_avx_vnni(),
            ggml_sys::ggml_cpu_has_avx512(),
            ggml_sys::ggml_cpu_has_avx512_vnni(),
        ]
    }
    .map(|has| has != 0);
    match (avx512_vnni, avx2 && !avx512 && !avx_vnni) {
        (true, _) => CpuKernels::Avx512Vnni,
        (_, true) => CpuKernels::Avx2,
        _ => CpuKernels::Other,
    }
}

/// The reference for these kernels, or else the first.
fn nearest_reference(name: &str) -> String {
    if cpu_kernels() == CpuKernels::Avx512Vnni { format!("{name}-avx512vnni") } else { name.to_owned() }
}

fn open_on_cpu(path: &Path, repack: bool) -> Arc<Model> {
    let options = ModelOptions { repack, device: Some("CPU".into()), ..ModelOptions::default() };
    Model::open(path, options).expect("the model opens")
}

/// The default settings, within what moves llama.cpp itself.
fn quantized(name: &str, longest: Longest, spread: &Distance) {
    let Some(path) = model_path(name) else { return };
    let _cores = all_cores();
    check(&open_on_cpu(&path, true), &nearest_reference(name), &SessionOptions::default(), longest, spread);
}

/// From so many rows on ggml's attention is another one on the CPU (in F32, in tiles), and this runtime multiplies by Q4_1
/// weights in F32, which is faster, where llama.cpp quantizes the activations.
const MANY_ROWS: usize = 64;

/// Whether both give a prompt's rows to the same attention kernels: llama.cpp leaves the last rows to a tile of their own,
/// this runtime makes tiles of about one size.
fn same_tiles(n_tokens: usize, n_ubatch: usize) -> bool {
    let rest = n_tokens % n_ubatch;
    n_tokens.min(n_ubatch) < MANY_ROWS || rest == 0 || rest >= MANY_ROWS
}

/// Rows whose products are the reference's.
#[derive(Clone, Copy, PartialEq)]
enum EqualFor {
    AnyRows,
    /// The model has weights in Q4_1.
    FewRows,
}

/// The arrangement of weights that the reference had, on the kernels that it had, where the tiles are the same too.
fn same_kernels(name: &str, rows: EqualFor, longest: Longest) {
    let repack = match cpu_kernels() {
        CpuKernels::Avx512Vnni => false,
        CpuKernels::Avx2 => true,
        CpuKernels::Other => {
            eprintln!("SKIPPED: {name} on equal kernels; there is no reference for this processor's");
            return;
        }
    };
    same_arrangement(name, &nearest_reference(name), repack, rows, longest);
}

/// Prompts of some pages in tiles that both have, with a reference for AVX-512 alone.
fn same_kernels_and_tiles(name: &str, n_ubatch: usize, longest: Longest) {
    if cpu_kernels() != CpuKernels::Avx512Vnni {
        eprintln!("SKIPPED: {name} on equal kernels in tiles of {n_ubatch}; the reference needs AVX-512 VNNI");
        return;
    }
    let file = format!("{name}-avx512vnni-ubatch{n_ubatch}");
    same_arrangement(name, &file, false, EqualFor::AnyRows, longest);
}

fn same_arrangement(name: &str, file: &str, repack: bool, rows: EqualFor, longest: Longest) {
    let Some(path) = model_path(name) else { return };
    let _cores = all_cores();
    let _attention = GgmlsAttention::new();
    let model = open_on_cpu(&path, repack);
    let Golden { n_ubatch, mut cases } = golden(file);
    cases.retain(|c| {
        let n = c.prompt.len();
        same_tiles(n, n_ubatch) && (rows == EqualFor::AnyRows || n.min(n_ubatch) < MANY_ROWS)
    });
    assert!(!cases.is_empty(), "{file} has no case in equal tiles");
    // Decode adds its threads' sums up: two, as the reference had.
    let options = SessionOptions { n_ubatch: Some(n_ubatch), n_threads: Some(2), ..SessionOptions::default() };
    check_cases(&model, file, cases, &options, longest, &SAME_KERNELS);
}

#[test]
fn smollm2_135m_on_equal_kernels_agrees_to_a_fiftieth() {
    same_kernels("smollm2-135m", EqualFor::FewRows, Longest::Sentence);
}

#[test]
fn smollm2_135m_in_equal_tiles_agrees_to_a_fiftieth() {
    same_kernels_and_tiles("smollm2-135m", 32, Longest::Pages);
}

/// Behind the needles, too, the first and the top 5 agree to 0.00001, but one step's tail of the top 10 does not (0.54, 0.51): not
/// held.
/// The reference for AVX2 is an older ggml's, and its GELU alone, quantized after, is further from this one (top 5 of "short"
/// 0.15, within [`spread::GEMMA_3`]).
#[test]
fn gemma_3_270m_on_equal_kernels_agrees_to_a_fiftieth() {
    if cpu_kernels() == CpuKernels::Avx2 {
        eprintln!("SKIPPED: gemma-3-270m on equal kernels; the reference for AVX2 has another GELU");
        return;
    }
    same_kernels("gemma-3-270m", EqualFor::AnyRows, Longest::SentenceAlone);
}

#[test]
fn qwen2_5_coder_0_5b_on_equal_kernels_agrees_to_a_fiftieth() {
    same_kernels("qwen2.5-coder-0.5b", EqualFor::AnyRows, Longest::Pages);
}

#[test]
fn qwen2_5_coder_0_5b_in_equal_tiles_agrees_to_a_fiftieth() {
    same_kernels_and_tiles("qwen2.5-coder-0.5b", 448, Longest::Sentence);
}

#[test]
fn qwen2_5_coder_1_5b_on_equal_kernels_agrees_to_a_fiftieth() {
    same_kernels("qwen2.5-coder-1.5b", EqualFor::AnyRows, Longest::Sentence);
}

#[test]
fn qwen2_5_coder_1_5b_in_equal_tiles_agrees_to_a_fiftieth() {
    same_kernels_and_tiles("qwen2.5-coder-1.5b", 448, Longest::Sentence);
}

#[test]
fn smollm2_135m_continues_as_llama_cpp_does() {
    quantized("smollm2-135m", Longest::Pages, &spread::SMOLLM2);
}

#[test]
fn gemma_3_270m_continues_as_llama_cpp_does() {
    quantized("gemma-3-270m", Longest::Sentence, &spread::GEMMA_3);
}

#[test]
fn qwen2_5_coder_0_5b_continues_as_llama_cpp_does() {
    quantized("qwen2.5-coder-0.5b", Longest::Sentence, &spread::QWEN2_5_0_5B);
}

/// The spread was measured on short prompts. Behind needle_3k the top 5 are off by 0.29 in this arrangement; in equal tiles
/// they are within the sharp bounds.
#[test]
fn qwen2_5_coder_1_5b_continues_as_llama_cpp_does() {
    quantized("qwen2.5-coder-1.5b", Longest::SentenceAlone, &spread::QWEN2_5_1_5B);
}

/// Writes the model with every tensor in F32.
fn dequantize_file(from: &Path, to: &Path) {
    const CHUNK_ROWS: usize = 256;
    let gguf = Gguf::open(from, OpenOptions::default()).expect("a valid file");
    let mut writer = GgufWriter::new();
    for (key, value) in gguf.metadata() {
        writer.set(key, value.clone()).expect("metadata that was read can be written");
    }
    for tensor in gguf.tensors() {
        let (data, n_in) = (gguf.tensor_data(tensor), tensor.shape[0] as usize);
        let row = data.len() / (tensor.n_elements() as usize / n_in);
        let source = move |_: &_, out: &mut dyn Write| {
            for rows in data.chunks(row * CHUNK_ROWS) {
                let floats = dequantize(tensor.ty, rows, rows.len() / row * n_in);
                let bytes: Vec<u8> = floats.iter().flat_map(|x| x.to_le_bytes()).collect();
                out.write_all(&bytes)?;
            }
            Ok(())
        };
        writer.add_tensor(&tensor.name, &tensor.shape, GgmlType::F32, source).expect("a tensor that was read");
    }
    writer.write(to).expect("room for the model in F32");
}

fn dequantized(name: &str, longest: Longest, allowed: &Distance) {
    let Some(path) = model_path(name) else { return };
    let _cores = all_cores();
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let file = folder.path().join(format!("{name}-f32.gguf"));
    dequantize_file(&path, &file);
    let options =
        SessionOptions { cache_type_k: CacheType::F32, cache_type_v: CacheType::F32, ..SessionOptions::default() };
    check(&open_on_cpu(&file, true), &format!("{name}-f32"), &options, longest, allowed);
}

#[test]
fn smollm2_135m_in_f32_agrees_to_a_thousandth() {
    dequantized("smollm2-135m", Longest::Pages, &EXACT);
}

#[test]
fn qwen2_5_coder_0_5b_in_f32_agrees_to_a_thousandth() {
    dequantized("qwen2.5-coder-0.5b", Longest::Sentence, &EXACT);
}

#[test]
fn gemma_3_270m_in_f32_agrees_as_far_as_gelu_does() {
    dequantized("gemma-3-270m", Longest::Pages, &EXACT_BUT_FOR_GELU);
}
