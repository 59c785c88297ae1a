//! Why a document's file cannot be used.

use crate::gguf::GgufError;

/// Why a document's file can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the fields are what the messages name
pub enum DocumentError {
    /// The file is no GGUF, or cannot be read.
    #[error("{0} (a document's file can be deleted: the text is then read again)")]
    Gguf(#[from] GgufError),
    /// The GGUF is no document.
    #[error("{file}: not a document: its architecture is '{found}', expected '{expected}'")]
    NotADocument { file: String, found: String, expected: &'static str },
    /// A version this program does not read.
    #[error("{file}: a document of version {found}, expected {expected}: read the text again")]
    Version { file: String, found: u32, expected: u32 },
    /// The document was read by other weights.
    #[error("{file}: read by another model (fingerprint {found}, this model's is {expected}): take another file, or delete it")]
    OtherModel { file: String, found: String, expected: String },
    /// The document was read with other settings of the same model.
    #[error("{file}: read with other settings of this model, such as another length of its rotary embeddings or another attention: take another file, or delete it")]
    OtherSettings { file: String },
    /// The document has caches of another type.
    #[error("{file}: its keys and values are {found_k} and {found_v}, the session's caches {k} and {v}: take the file's types")]
    OtherTypes { file: String, found_k: &'static str, found_v: &'static str, k: &'static str, v: &'static str },
    /// A key that has to be there.
    #[error("{file}: metadata key '{key}' is missing")]
    MissingKey { file: String, key: &'static str },
    /// A tensor that is missing or of the wrong shape or type.
    #[error("{file}: tensor '{tensor}' is {found}, expected {expected}")]
    Tensor { file: String, tensor: String, found: String, expected: String },
}
