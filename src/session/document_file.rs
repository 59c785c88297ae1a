//! The file of a document: a GGUF with what the layers before the first one that skips have computed of it.
//!
//! Format, version 2. Metadata:
//! - `general.architecture` = `spts-document`
//! - `spts.version` (u32), `spts.fingerprint` (string): of the model that read it
//! - `spts.layers` (u32): so many first layers were computed for every token; all of the model's if the document is dense
//! - `spts.settings` (string): digest of these layers' graph, in which the settings of rotary embeddings are
//!
//! Tensors, in ggml order: `tokens` I32 `[n]`; for each of these layers N `blk.N.k` and `blk.N.v` `[n_embd_kv, n]`, in the types of
//! the caches (with a window of w tokens those from the last multiple of 256 on with w + 64 tokens behind it), or, if it is
//! recurrent, its state behind the last token, F32: `blk.N.channels` `[d_conv - 1, n_channels]` and `blk.N.matrices` `[head_dim,
//! head_dim * n_head_v]`; `residual` F32 `[n_embd, n]`, the residual stream that enters the next layer, unless these are all.
//!
//! It holds for any question, any budgets and any probe, as long as the schedule skips from no earlier layer.

use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::attributes::BlockShare;
use crate::Result;
use crate::attributes::entries_that_stay;
use crate::ggml::Tensor;
use crate::ggml::arena::read_bytes;
use crate::gguf::{GgmlType, Gguf, GgufError, GgufWriter, OpenOptions, no_source};
use crate::graph::Graph;
use crate::hash::fnv1a;
use crate::method::spts::sidecar::fingerprint;
use crate::model::file::ModelFile;
use crate::output_file::OutputFile;

use super::Session;
use super::document_error::DocumentError;
use super::residual::Residual;
use super::sequence::CacheType;

/// Version of the format that is written and read.
pub const VERSION: u32 = 3;
/// `general.architecture` of a document's file.
pub const ARCHITECTURE: &str = "spts-document";

/// Bytes that are copied from a device at a time.
const CHUNK: usize = 16 << 20;

/// Writes a document to its file.
///
/// # Errors
/// The file cannot be written.
pub(super) fn write(
    session: &Session,
    tokens: &[u32],
    n_layer: usize,
    residual: Option<&Residual>,
    out: OutputFile,
) -> Result<()> {
    let write = || -> Result<(), GgufError> {
        let n = tokens.len();
        let mut w = GgufWriter::new();
        w.set_str("general.architecture", ARCHITECTURE)?;
        w.set_u32("spts.version", VERSION)?;
        w.set_str("spts.fingerprint", &fingerprint(session.model.gguf()))?;
        w.set_u32("spts.layers", n_layer as u32)?;
        w.set_str("spts.settings", &settings(session.model.file(), session.n_ctx(), n_layer, session.options.method.blocks()))?;
        let ids: Vec<u8> = tokens.iter().flat_map(|t| t.to_le_bytes()).collect();
        w.add_tensor_bytes("tokens", &[n as u64], GgmlType::I32, ids)?;
        for layer in 0..n_layer {
            if session.model.shape().recurrence(layer).is_some() {
                let [channels, matrices] = session.sequence.recurrent(layer).kept().expect("a document has its states");
                let shapes = [[channels.ne(0), channels.ne(1)], [matrices.ne(0), matrices.ne(1) * matrices.ne(2)]];
                for ((name, t), shape) in [("channels", channels), ("matrices", matrices)].into_iter().zip(shapes) {
                    let n_bytes = t.n_elements() * size_of::<f32>();
                    let write = move |_: &_, out: &mut dyn Write| out.write_all(&read_bytes(t, 0, n_bytes));
                    w.add_tensor(&format!("blk.{layer}.{name}"), &shape.map(|d| d as u64), GgmlType::F32, write)?;
                }
                continue;
            }
            if !session.model.shape().has_cache(layer) {
                continue;
            }
            let cache = session.sequence.cache(layer);
            let (kept, first) = cache.of_document(n).expect("a document has its entries");
            let n_rows = cache.that_stay(n);
            for (name, rows) in [("k", kept.k()), ("v", kept.v())] {
                let shape = [rows.ne(0) as u64, n_rows as u64];
                let write = move |_: &_, out: &mut dyn Write| copy(rows, first..first + n_rows, out);
                w.add_tensor(&format!("blk.{layer}.{name}"), &shape, rows.ty(), write)?;
            }
        }
        if let Some(residual) = residual {
            let rows = residual.rows();
            let shape = [rows.ne(0) as u64, n as u64];
            w.add_tensor("residual", &shape, GgmlType::F32, move |_, out| copy(rows, 0..n, out))?;
        }
        w.write_into(out, no_source)
    };
    write().map_err(|e| DocumentError::from(e).into())
}

/// Writes some rows.
fn copy(rows: Tensor<'_>, range: Range<usize>, out: &mut dyn Write) -> io::Result<()> {
    let row = rows.nb(1);
    let at_once = (CHUNK / row).max(1);
    for first in range.clone().step_by(at_once) {
        let count = at_once.min(range.end - first);
        out.write_all(&read_bytes(rows, first * row, count * row))?;
    }
    Ok(())
}

/// Digest of what the first layers compute of a token, weights aside.
fn settings(model: &ModelFile, n_ctx: usize, n_layer: usize, blocks: Option<BlockShare>) -> String {
    let Graph { nodes, layers, .. } = model.graph(1, n_ctx);
    let end = layers[n_layer - 1].out;
    let blocks = blocks.map_or(String::new(), |share| format!(", sparse:{share}"));
    format!("{:016x}", fnv1a(format!("{:?}{blocks}", &nodes[..=end.index()]).as_bytes()))
}

/// The file of a document, opened and checked.
#[derive(Debug)]
pub struct DocumentFile {
    gguf: Gguf,
    fingerprint: String,
    settings: String,
    n_layer: usize,
    n_tokens: usize,
}

impl DocumentFile {
    /// Opens and checks a document's file.
    ///
    /// # Errors
    /// Not a document, another version, tensors missing or of shapes that do not fit each other.
    pub fn open(path: &Path) -> Result<DocumentFile, DocumentError> {
        Self::from_gguf(Gguf::open(path, OpenOptions { mmap: true, mlock: false })?)
    }

    /// Checks a file that is open.
    ///
    /// # Errors
    /// As [`DocumentFile::open`].
    pub fn from_gguf(gguf: Gguf) -> Result<DocumentFile, DocumentError> {
        let file = gguf.path().display().to_string();
        let missing = |key: &'static str| DocumentError::MissingKey { file: file.clone(), key };
        let found = gguf.str("general.architecture")?.unwrap_or_default();
        if found != ARCHITECTURE {
            let found = crate::printable::printable(found);
            return Err(DocumentError::NotADocument { file, found, expected: ARCHITECTURE });
        }
        let version = gguf.u32("spts.version")?.ok_or_else(|| missing("spts.version"))?;
        if version != VERSION {
            return Err(DocumentError::Version { file: file.clone(), found: version, expected: VERSION });
        }
        let string = |key: &'static str| Ok::<_, DocumentError>(gguf.str(key)?.ok_or_else(|| missing(key))?.to_owned());
        let (fingerprint, settings) = (string("spts.fingerprint")?, string("spts.settings")?);
        let n_layer = gguf.u32("spts.layers")?.ok_or_else(|| missing("spts.layers"))? as usize;
        let n_tokens = gguf.tensor("tokens").map_or(0, |t| t.shape.iter().product::<u64>()) as usize;
        let document = DocumentFile { gguf, fingerprint, settings, n_layer, n_tokens };
        document.check_tensor("tokens", &[GgmlType::I32], [None, Some(1)])?;
        if n_layer == 0 {
            return Err(document.unlike("blk.0.k", "missing".into(), "keys of a first layer".into()));
        }
        Ok(document)
    }

    /// Checks that the document was read by this model as a session with a context of `n_ctx`, such caches and such attention would
    /// read it.
    ///
    /// # Errors
    /// It was not.
    pub fn check(
        &self,
        model: &ModelFile,
        n_ctx: usize,
        types: (CacheType, CacheType),
        blocks: Option<BlockShare>,
    ) -> Result<(), DocumentError> {
        let file = self.file();
        let expected = fingerprint(model.gguf());
        if self.fingerprint != expected {
            let found = crate::printable::printable(&self.fingerprint);
            return Err(DocumentError::OtherModel { file, found, expected });
        }
        let (n_layer, n_embd) = (model.shape().n_layer, model.shape().n_embd);
        if self.n_layer > n_layer {
            let last = format!("blk.{}.k", self.n_layer - 1);
            return Err(self.unlike(&last, "claimed".into(), format!("{n_layer} layers")));
        }
        if self.settings != settings(model, n_ctx, self.n_layer, blocks) {
            return Err(DocumentError::OtherSettings { file });
        }
        let any = [GgmlType::F32, GgmlType::F16, GgmlType::Q8_0];
        let shape = |width: usize| [Some(width as u64), Some(self.n_tokens as u64)];
        for layer in 0..self.n_layer {
            if let Some(heads) = model.shape().recurrence(layer) {
                let channels = [heads.d_conv - 1, heads.n_channels()];
                let matrices = [heads.head_dim, heads.n_values()];
                for (name, shape) in [("channels", channels), ("matrices", matrices)] {
                    let shape = shape.map(|d| Some(d as u64));
                    self.check_tensor(&format!("blk.{layer}.{name}"), &[GgmlType::F32], shape)?;
                }
                continue;
            }
            if !model.shape().has_cache(layer) {
                continue;
            }
            for (name, ty) in [("k", types.0.ggml()), ("v", types.1.ggml())] {
                let name = format!("blk.{layer}.{name}");
                let n_rows = entries_that_stay(model.shape().window(layer), self.n_tokens) as u64;
                self.check_tensor(&name, &any, [Some(model.shape().n_embd_kv(layer) as u64), Some(n_rows)])?;
                if self.type_of(&name) != Some(ty) {
                    let [found_k, found_v] = ["k", "v"].map(|x| {
                        self.type_of(&format!("blk.{layer}.{x}")).map_or("missing", GgmlType::name)
                    });
                    let (k, v) = (types.0.ggml().name(), types.1.ggml().name());
                    return Err(DocumentError::OtherTypes { file, found_k, found_v, k, v });
                }
            }
        }
        match self.n_layer == n_layer {
            true => Ok(()),
            false => self.check_tensor("residual", &[GgmlType::F32], shape(n_embd)),
        }
    }

    /// The document's tokens.
    pub fn tokens(&self) -> Vec<u32> {
        self.bytes("tokens").chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    /// The number of the document's tokens.
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// Layers whose work is in it.
    pub fn n_layer(&self) -> usize {
        self.n_layer
    }

    /// The path it was opened by.
    pub fn path(&self) -> PathBuf {
        self.gguf.path().to_owned()
    }

    pub(super) fn keys(&self, layer: usize) -> &[u8] {
        self.bytes(&format!("blk.{layer}.k"))
    }

    pub(super) fn values(&self, layer: usize) -> &[u8] {
        self.bytes(&format!("blk.{layer}.v"))
    }

    pub(super) fn channels(&self, layer: usize) -> &[u8] {
        self.bytes(&format!("blk.{layer}.channels"))
    }

    pub(super) fn matrices(&self, layer: usize) -> &[u8] {
        self.bytes(&format!("blk.{layer}.matrices"))
    }

    pub(super) fn residual(&self) -> Option<&[u8]> {
        self.gguf.tensor("residual").map(|t| self.gguf.tensor_data(t))
    }

    fn bytes(&self, name: &str) -> &[u8] {
        self.gguf.tensor(name).map_or(&[], |t| self.gguf.tensor_data(t))
    }

    fn type_of(&self, name: &str) -> Option<GgmlType> {
        self.gguf.tensor(name).map(|t| t.ty)
    }

    fn file(&self) -> String {
        self.gguf.path().display().to_string()
    }

    fn unlike(&self, tensor: &str, found: String, expected: String) -> DocumentError {
        DocumentError::Tensor { file: self.file(), tensor: tensor.into(), found, expected }
    }

    /// Checks a tensor's type and, where it is given, its extent in the first two dimensions.
    fn check_tensor(&self, name: &str, types: &[GgmlType], shape: [Option<u64>; 2]) -> Result<(), DocumentError> {
        let expected = || {
            let types: Vec<&str> = types.iter().map(|t| t.name()).collect();
            let shape = shape.map(|d| d.map_or("n".to_owned(), |d| d.to_string()));
            format!("{} [{}]", types.join(" or "), shape.join(", "))
        };
        let info = self.gguf.tensor(name).ok_or_else(|| self.unlike(name, "missing".into(), expected()))?;
        let dim = |i: usize| info.shape.get(i).copied().unwrap_or(1);
        let fits = shape.iter().enumerate().all(|(i, d)| d.is_none_or(|d| d == dim(i)));
        if !types.contains(&info.ty) || !fits || info.shape.iter().skip(2).any(|&d| d != 1) {
            return Err(self.unlike(name, format!("{} {:?}", info.ty.name(), info.shape), expected()));
        }
        Ok(())
    }
}
