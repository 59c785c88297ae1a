//! What can be wrong with a GGUF file. Every message is one line and starts with the file's name.

use std::io;

/// Error of reading or writing a GGUF file.
///
/// Names that come from the file are printed escaped, so that a hostile one cannot break the line.
// The fields are the words of the messages: `file`, what was found and what was expected.
#[allow(missing_docs)]
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {
    /// The operating system refused.
    #[error("{file}: cannot {action}: {source}")]
    Io { file: String, action: &'static str, source: io::Error },

    /// A directory, a pipe or a device.
    #[error("{file}: is {found}, expected a GGUF file")]
    NotAFile { file: String, found: &'static str },

    /// The file has no byte.
    #[error("{file}: the file is empty, expected a GGUF file; was the download interrupted?")]
    Empty { file: String },

    /// The first four bytes are not `GGUF`.
    #[error("{file}: not a GGUF file: it starts with \"{}\", expected \"GGUF\"", found.escape_ascii())]
    Magic { file: String, found: [u8; 4] },

    /// Magic or version are stored with the most significant byte first.
    #[error("{file}: this is a big-endian GGUF file, expected little-endian; convert it with gguf_convert_endian.py")]
    BigEndian { file: String },

    /// A version that is not read.
    #[error("{file}: GGUF version {found} is not supported, expected 2 or 3; {}", version_remedy(*.found))]
    Version { file: String, found: u32 },

    /// The file ends inside something.
    #[error(
        "{file}: truncated: {what} needs {need} bytes at offset {offset}, {have} are left; download the file again"
    )]
    Truncated { file: String, what: String, offset: u64, need: u64, have: u64 },

    /// The file ends before a list does whose length is known.
    #[error(
        "{file}: truncated: {count} {what} need at least {need} bytes at offset {offset}, {have} are left; download the file again"
    )]
    TruncatedList { file: String, what: String, count: u64, offset: u64, need: u64, have: u64 },

    /// The file ends before its tensors do.
    #[error(
        "{file}: truncated: the file has {have} bytes, expected {expected}: the data of tensor {tensor} is cut off; download the file again"
    )]
    TruncatedData { file: String, tensor: String, have: u64, expected: u64 },

    /// A count or a length above what any real file has.
    #[error("{file}: corrupt: {what} is {found}, at most {limit} is possible here")]
    TooLarge { file: String, what: String, found: u64, limit: u64 },

    /// A metadata entry breaks the format.
    #[error("{file}: corrupt metadata: {key}: {problem}")]
    BadKey { file: String, key: String, problem: String },

    /// A tensor breaks the format.
    #[error("{file}: corrupt tensor: {tensor}: {problem}")]
    BadTensor { file: String, tensor: String, problem: String },

    /// An element type this version of ggml does not have.
    #[error("{file}: tensor {tensor:?} has type {}, which ggml 0.26 does not know; {}", type_name(*.id), type_remedy(*.id))]
    UnknownType { file: String, tensor: String, id: u32 },

    /// One part of a model that is spread over several files, opened without the path that leads to the others.
    #[error("{file}: is one part of a model split into {count} files; open the first of them by its path")]
    Split { file: String, count: u64 },

    /// A model that is spread over several files: one is missing, or they do not belong together.
    #[error("{file}: {problem}")]
    SplitPart { file: String, problem: String },

    /// A metadata value exists but is not what the reader of the key needs.
    #[error("{file}: metadata {key:?} is {found}, expected {expected}")]
    WrongType { file: String, key: String, expected: &'static str, found: String },

    /// A metadata key that is needed is absent.
    #[error("{file}: metadata {key:?} is missing, expected {expected}")]
    MissingKey { file: String, key: String, expected: &'static str },

    /// A text cannot be read as an override of metadata.
    #[error("{problem}")]
    OverrideSyntax { problem: String },

    /// An override's value is of another kind than the file's.
    #[error("{file}: metadata {key:?} is {found} in the file, and {given} does not replace it")]
    OverrideKind { file: String, key: String, found: String, given: &'static str },

    /// `mlock` failed.
    #[error("{file}: cannot lock {bytes} bytes in memory: {source}; raise the limit (ulimit -l), or do not lock")]
    Lock { file: String, bytes: u64, source: io::Error },

    /// The place of a new file cannot be written.
    #[error(transparent)]
    Output(#[from] crate::output_file::OutputError),

    /// The writer was asked for something the format cannot hold.
    #[error("{file}: cannot write {what}: {problem}")]
    Unwritable { file: String, what: String, problem: String },

    /// A tensor's source gave more or fewer bytes than shape and type say.
    #[error("{file}: tensor {tensor:?}: its source wrote {found} bytes, expected {expected}")]
    SourceSize { file: String, tensor: String, found: u64, expected: u64 },

    /// A tensor's source failed, or writing what it gave.
    #[error("{file}: cannot write tensor {tensor:?}: {source}")]
    Source { file: String, tensor: String, source: io::Error },

    /// No room on the device.
    #[error("{file}: the disk is full: {needed} bytes are needed; free some space or choose another folder")]
    DiskFull { file: String, needed: u64 },
}

fn version_remedy(found: u32) -> &'static str {
    match found {
        0 => "the file is corrupt",
        1 => "convert the model again, version 1 is from before August 2023",
        _ => "a newer release of this program may read it",
    }
}

fn type_name(id: u32) -> String {
    match super::GgmlType::removed_name(id) {
        Some(name) => format!("{id} ({name})"),
        None => id.to_string(),
    }
}

fn type_remedy(id: u32) -> &'static str {
    match super::GgmlType::removed_name(id) {
        Some(_) => "it was removed from ggml: quantize the model again",
        None => "the file is corrupt, or newer than this program",
    }
}
