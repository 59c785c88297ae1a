//! What is in a file, and what is in this machine.

use std::fmt::Write;
use std::path::PathBuf;

use clap::Args;
use serde_json::{Map, Value as Json, json};
use spts::ggml::backend;
use spts::gguf::{Array, Gguf, OpenOptions, Value};
use spts::printable::{printable, printable_within};
use spts::session::document_file::ARCHITECTURE;

use super::failure::Failure;
use crate::report::{grouped, mib};

/// What `info` shows of a file.
#[derive(Args, Clone, Debug)]
pub struct InfoArgs {
    /// GGUF file
    #[arg(value_name = "FILE", required_unless_present = "model")]
    pub file: Option<PathBuf>,
    /// The same, as a flag
    #[arg(short, long, value_name = "FILE", conflicts_with = "file")]
    pub model: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Print long lists in full
    #[arg(long)]
    pub full: bool,
}

impl InfoArgs {
    /// The file, however it was given.
    pub fn path(&self) -> PathBuf {
        self.file.clone().or_else(|| self.model.clone()).unwrap_or_default()
    }
}

/// Elements of an array that JSON shows without `--full`: more is a vocabulary.
const SHORT_ARRAY: usize = 64;

/// The text of `--list-devices`.
pub fn devices() -> String {
    let mut out = String::new();
    for d in backend::devices() {
        // What the CPU has is the machine's memory, and the system's business.
        let memory =
            if d.is_gpu { format!(", {} of {} free", mib(d.free as u64), mib(d.total as u64)) } else { String::new() };
        let _ = writeln!(out, "{}: {}{memory}", d.name, d.description);
    }
    out
}

/// The text that `info` prints.
pub fn info(args: &InfoArgs) -> Result<String, Failure> {
    let gguf = Gguf::open(&args.path(), OpenOptions { mmap: true, mlock: false }).map_err(spts::Error::from)?;
    if args.json {
        let json =
            serde_json::to_string(&as_json(&gguf, args.full)).map_err(|e| Failure::Failed(format!("JSON: {e}")))?;
        return Ok(json + "\n");
    }
    Ok(as_text(&gguf, args.full))
}

/// Per type, in order of appearance: its name, tensors, bytes.
fn types(gguf: &Gguf) -> Vec<(&'static str, usize, u64)> {
    let mut out: Vec<(&'static str, usize, u64)> = Vec::new();
    for t in gguf.tensors() {
        match out.iter_mut().find(|(name, ..)| *name == t.ty.name()) {
            Some((_, n, bytes)) => (*n, *bytes) = (*n + 1, *bytes + t.nbytes),
            None => out.push((t.ty.name(), 1, t.nbytes)),
        }
    }
    out
}

fn as_text(gguf: &Gguf, full: bool) -> String {
    let mut out = String::new();
    let files = match gguf.paths().len() {
        1 => String::new(),
        n => format!(" in {n} files"),
    };
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "{}: GGUF version {}, alignment {}, {}{files}\n",
        printable_within(&gguf.path().display().to_string(), 4096),
        gguf.version(),
        gguf.alignment(),
        mib(gguf.n_bytes())
    );
    if let Some(document) = document(gguf) {
        let _ = writeln!(out, "{document}\n");
    }
    let _ = writeln!(out, "{} metadata entries", gguf.metadata().len());
    let width = gguf.metadata().iter().map(|(key, _)| key.len()).max().unwrap_or(0).min(48);
    for (key, value) in gguf.metadata() {
        let shown = if full { in_full(value) } else { value.to_string() };
        let _ = writeln!(out, "  {:width$}  {shown}", printable(key));
    }
    let _ = writeln!(out, "\n{} tensors", gguf.tensors().len());
    for (name, n, bytes) in types(gguf) {
        let _ = writeln!(out, "  {name:8} {n:>6}  {}", mib(bytes));
    }
    let _ = writeln!(out);
    let width = gguf.tensors().map(|t| t.name.len()).max().unwrap_or(0);
    for t in gguf.tensors() {
        let shape = t.shape.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
        let _ = writeln!(out, "  {:width$}  {:8} [{shape}]", printable(&t.name), t.ty.name());
    }
    out
}

/// What a file of `--prompt-cache` holds.
fn document(gguf: &Gguf) -> Option<String> {
    if gguf.str("general.architecture").ok()?? != ARCHITECTURE {
        return None;
    }
    let n_tokens = gguf.tensor("tokens")?.n_elements();
    let layers = gguf.u32("spts.layers").ok()??;
    Some(format!("a document of {} tokens, and what {layers} layers have computed of it", grouped(n_tokens as usize)))
}

fn as_json(gguf: &Gguf, full: bool) -> Json {
    let metadata: Map<String, Json> = gguf.metadata().iter().map(|(k, v)| (k.clone(), value(v, full))).collect();
    let types: Map<String, Json> = types(gguf)
        .into_iter()
        .map(|(name, n, bytes)| (name.into(), json!({ "tensors": n, "bytes": bytes })))
        .collect();
    let tensors: Vec<Json> = gguf
        .tensors()
        .map(
            |t| json!({ "name": t.name, "type": t.ty.name(), "shape": t.shape, "bytes": t.nbytes, "part": t.part, "offset": t.offset }),
        )
        .collect();
    json!({
        "file": gguf.path().display().to_string(),
        "parts": gguf.paths().map(|path| path.display().to_string()).collect::<Vec<_>>(),
        "bytes": gguf.n_bytes(),
        "version": gguf.version(),
        "alignment": gguf.alignment(),
        "metadata": metadata,
        "types": types,
        "tensors": tensors,
    })
}

/// Long arrays become `{"type", "length"}`. Numbers that JSON lacks (NaN) become null.
fn value(v: &Value, full: bool) -> Json {
    match v {
        Value::U8(x) => json!(x),
        Value::I8(x) => json!(x),
        Value::U16(x) => json!(x),
        Value::I16(x) => json!(x),
        Value::U32(x) => json!(x),
        Value::I32(x) => json!(x),
        Value::F32(x) => json!(x),
        Value::Bool(x) => json!(x),
        Value::String(x) => json!(x),
        Value::U64(x) => json!(x),
        Value::I64(x) => json!(x),
        Value::F64(x) => json!(x),
        Value::Array(a) if !full && a.len() > SHORT_ARRAY => json!({ "type": a.element_type(), "length": a.len() }),
        Value::Array(a) => array(a),
    }
}

fn array(a: &Array) -> Json {
    match a {
        Array::U8(v) => json!(v),
        Array::I8(v) => json!(v),
        Array::U16(v) => json!(v),
        Array::I16(v) => json!(v),
        Array::U32(v) => json!(v),
        Array::I32(v) => json!(v),
        Array::F32(v) => json!(v),
        Array::Bool(v) => json!(v),
        Array::String(v) => json!(v),
        Array::U64(v) => json!(v),
        Array::I64(v) => json!(v),
        Array::F64(v) => json!(v),
    }
}

/// A value with nothing left out, in one line. Strings are escaped: a file must not steer the terminal.
fn in_full(v: &Value) -> String {
    match v {
        Value::String(s) => format!("{s:?}"),
        Value::Array(a) => array(a).to_string(),
        other => other.to_string(),
    }
}
