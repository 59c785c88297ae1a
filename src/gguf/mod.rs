//! GGUF model files: reading with every bound checked, and writing.
//!
//! # Byte layout (versions 2 and 3, little-endian)
//!
//! 1. `GGUF`, four bytes.
//! 2. Version, u32.
//! 3. Number of tensors, u64.
//! 4. Number of metadata entries, u64.
//! 5. Each metadata entry:
//!    1. key, a string;
//!    2. type of the value, u32;
//!    3. the value; for an array: type of the elements (u32), their number (u64), the elements.
//! 6. Each tensor:
//!    1. name, a string of at most 63 bytes;
//!    2. number of dimensions, u32, 1 to 4;
//!    3. each dimension, u64, the fastest first;
//!    4. element type, u32, see [`GgmlType`];
//!    5. offset of its data from the start of the data section, u64, a multiple of the alignment.
//! 7. Zeros up to the next multiple of the alignment (`general.alignment`, 32 if absent).
//! 8. The data section. Tensors do not overlap; each may be followed by padding, and so may the last.
//!
//! A model may be split over several such files ([`Gguf::open`] of the first opens all): the first has the metadata, each the list
//! and the data of its own tensors.
//!
//! A string is its length in bytes (u64) and then UTF-8 without a terminator. A boolean is one byte, 0 or 1.
//!
//! # What is refused
//!
//! Big-endian files, version 1, arrays of arrays, tensors without elements, and everything that contradicts the list above. No
//! length is believed before it is compared with the bytes that are left, so no file can cause a large allocation, a panic or an
//! access outside of it.

mod cursor;
mod error;
mod map;
mod overrides;
mod reader;
mod split;
mod types;
mod value;
mod writer;

use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use error::GgufError;
pub use map::Map;
pub use overrides::MetadataOverride;
pub use split::is_split_key;
pub use types::{GgmlType, MAX_DIMS, MAX_TENSOR_NAME};
pub use value::{Array, Value};
pub(crate) use writer::no_source;
pub use writer::{GgufWriter, TensorDecl};

use split::PartFile;

/// Alignment of tensor data where `general.alignment` is absent, in bytes.
pub const DEFAULT_ALIGNMENT: u64 = 32;
/// Metadata key of the alignment.
pub const KEY_ALIGNMENT: &str = "general.alignment";

/// How to hold a file in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenOptions {
    /// Map the file; otherwise read all of it.
    pub mmap: bool,
    /// Keep it from being paged out. Failing to is an error.
    pub mlock: bool,
}

impl Default for OpenOptions {
    fn default() -> Self {
        OpenOptions { mmap: true, mlock: false }
    }
}

/// Where a tensor lies and what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name, unique in its model.
    pub name: String,
    /// Elements per dimension in ggml order (fastest first); 1 to 4 of them, none zero.
    pub shape: Vec<u64>,
    /// Element type.
    pub ty: GgmlType,
    /// Which of the files of a split model it lies in, from 0.
    pub part: usize,
    /// Bytes from the start of the data section of its file.
    pub offset: u64,
    /// Size of the data in bytes, without padding.
    pub nbytes: u64,
}

impl TensorInfo {
    /// Number of elements.
    pub fn n_elements(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Elements in dimension `i`, 1 for dimensions beyond the shape, as ggml has it.
    pub fn dim(&self, i: usize) -> u64 {
        self.shape.get(i).copied().unwrap_or(1)
    }
}

/// An opened GGUF file: its metadata parsed and checked, its tensor data as slices of the map.
///
/// Cloning is cheap for the data (shared) but copies the metadata; share it in an `Arc`.
#[derive(Clone)]
pub struct Gguf {
    path: PathBuf,
    file: String,
    /// Itself, and the further parts of a split model.
    files: Vec<PartFile>,
    version: u32,
    alignment: u64,
    metadata: Vec<(String, Value)>,
    key_index: HashMap<String, usize>,
    tensors: Vec<TensorInfo>,
    tensor_index: HashMap<String, usize>,
}

impl Gguf {
    /// Opens and checks the file at `path`. The first part of a split model opens the others as well, which lie beside it, and
    /// their tensors are seen as one file's.
    ///
    /// # Errors
    /// Whatever is wrong with the file; see [`GgufError`].
    pub fn open(path: &Path, options: OpenOptions) -> Result<Gguf, GgufError> {
        let unlocked = OpenOptions { mlock: false, ..options };
        let mut gguf = Self::open_one(path, unlocked)?;
        let count = split::count(&gguf)?;
        if count > 1 {
            split::join(&mut gguf, count, unlocked)?;
        }
        gguf.lock_if(options.mlock)?;
        Ok(gguf)
    }

    /// Opens one file, be it a part or all of a model. It is not locked.
    fn open_one(path: &Path, options: OpenOptions) -> Result<Gguf, GgufError> {
        let label = path.display().to_string();
        let io = |action: &'static str| {
            let file = label.clone();
            move |source| GgufError::Io { file, action, source }
        };
        // Looked at before opening: opening a pipe would wait for a writer.
        let kind = fs::metadata(path).map_err(io("open"))?;
        if !kind.is_file() {
            return Err(GgufError::NotAFile {
                file: label.clone(),
                found: if kind.is_dir() { "a directory" } else { "a pipe or a device" },
            });
        }
        let file = File::open(path).map_err(io("open"))?;
        Self::of_file(file, path.to_owned(), label, options)
    }

    /// Checks a file that is already open, and may have lost its name. `label` takes the place of the path in messages.
    ///
    /// # Errors
    /// As for [`Gguf::open`].
    pub fn from_file(file: File, label: &str, options: OpenOptions) -> Result<Gguf, GgufError> {
        let gguf = Self::of_file(file, PathBuf::from(label), label.into(), options)?;
        gguf.refuse_part()?;
        gguf.lock_if(options.mlock)?;
        Ok(gguf)
    }

    /// Refuses what is only a part of a model, and was not opened by a path that tells where the others are.
    fn refuse_part(&self) -> Result<(), GgufError> {
        match split::count(self)? {
            1 => Ok(()),
            count => Err(GgufError::Split { file: self.file.clone(), count }),
        }
    }

    /// Keeps it in memory if that is asked for, once it is known to be good: locking reads all of it.
    fn lock_if(&self, mlock: bool) -> Result<(), GgufError> {
        for file in self.files.iter().filter(|_| mlock) {
            file.map.lock().map_err(|source| GgufError::Lock {
                file: file.path.display().to_string(),
                bytes: file.map.len() as u64,
                source,
            })?;
        }
        Ok(())
    }

    fn of_file(mut file: File, path: PathBuf, label: String, options: OpenOptions) -> Result<Gguf, GgufError> {
        let io = |action: &'static str| {
            let file = label.clone();
            move |source| GgufError::Io { file, action, source }
        };
        let len = file.metadata().map_err(io("read"))?.len();
        if len == 0 {
            return Err(GgufError::Empty { file: label.clone() });
        }
        let map = if options.mmap {
            Map::of_file(&file).map_err(io("map"))?
        } else {
            let len = usize::try_from(len).map_err(|_| GgufError::TooLarge {
                file: label.clone(),
                what: "the file's size".into(),
                found: len,
                limit: usize::MAX as u64,
            })?;
            Map::read_file(&mut file, len).map_err(io("read"))?
        };
        reader::parse(path, label, Arc::new(map))
    }

    /// Checks a file that is already in memory. `label` takes the place of the path in messages.
    ///
    /// # Errors
    /// As for [`Gguf::open`].
    pub fn from_bytes(bytes: Vec<u8>, label: &str) -> Result<Gguf, GgufError> {
        if bytes.is_empty() {
            return Err(GgufError::Empty { file: label.into() });
        }
        let map = Map::copy_of(&bytes).map_err(|source| GgufError::Io {
            file: label.into(),
            action: "copy into memory",
            source,
        })?;
        let gguf = reader::parse(PathBuf::from(label), label.into(), Arc::new(map))?;
        gguf.refuse_part()?;
        Ok(gguf)
    }

    /// The path it was opened with, or the label of the bytes.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The paths of all files that the model lies in, the first of them [`Gguf::path`].
    pub fn paths(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.files.iter().map(|file| file.path.as_path())
    }

    /// Version of the format, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Alignment of tensor data in bytes, a power of two.
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// Where the data section starts, in bytes from the start of the (first) file.
    pub fn data_offset(&self) -> u64 {
        self.files[0].data_offset
    }

    /// Size of the file in bytes; of a split model that of all its files.
    pub fn n_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.map.len() as u64).sum()
    }

    /// The bytes of the file, or of each file of a split model in the order of [`TensorInfo::part`]: for those who keep tensors
    /// beyond the life of this value.
    pub fn maps(&self) -> impl ExactSizeIterator<Item = &Arc<Map>> {
        self.files.iter().map(|file| &file.map)
    }

    /// Whether these bytes are the pages of files, not a copy in memory.
    pub fn is_mapped(&self) -> bool {
        self.maps().all(|map| map.is_file())
    }

    /// Asks the system to read the file ahead; returns at once.
    pub fn prefetch(&self) {
        self.maps().for_each(|map| map.prefetch());
    }

    /// Lets go of the pages of a range of a tensor's bytes that will not be read again soon. Only a hint.
    pub fn release(&self, tensor: &TensorInfo, bytes: std::ops::Range<usize>) {
        let start = self.tensor_offset(tensor) as usize;
        self.files[tensor.part].map.release(start + bytes.start..start + bytes.end);
    }

    /// All metadata in the file's order.
    pub fn metadata(&self) -> &[(String, Value)] {
        &self.metadata
    }

    /// All tensors in the file's order.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &TensorInfo> {
        self.tensors.iter()
    }

    /// The tensor called `name`.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensor_index.get(name).map(|&i| &self.tensors[i])
    }

    /// The bytes of a tensor, `tensor.nbytes` of them.
    ///
    /// # Panics
    /// If `tensor` is not one of this file.
    pub fn tensor_data(&self, tensor: &TensorInfo) -> &[u8] {
        let start = self.tensor_offset(tensor) as usize;
        &self.files[tensor.part].map[start..start + tensor.nbytes as usize]
    }

    /// Where a tensor's data starts, in bytes from the start of its file.
    pub fn tensor_offset(&self, tensor: &TensorInfo) -> u64 {
        self.files[tensor.part].data_offset + tensor.offset
    }

    /// The metadata value of `key`, of whatever type.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.key_index.get(key).map(|&i| &self.metadata[i].1)
    }

    /// `key` as an unsigned number. Any integer type is taken if the value fits.
    ///
    /// # Errors
    /// Here and in all typed getters: absence is `Ok(None)`, a value of another type is
    /// [`GgufError::WrongType`].
    pub fn u32(&self, key: &str) -> Result<Option<u32>, GgufError> {
        self.typed(key, "an unsigned 32-bit integer", Value::to_integer)
    }

    /// `key` as an unsigned 64-bit number.
    pub fn u64(&self, key: &str) -> Result<Option<u64>, GgufError> {
        self.typed(key, "an unsigned 64-bit integer", Value::to_integer)
    }

    /// `key` as a floating-point number; no integers.
    pub fn f32(&self, key: &str) -> Result<Option<f32>, GgufError> {
        self.typed(key, "a floating-point number", Value::to_f32)
    }

    /// `key` as a boolean.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.typed(key, "a boolean", Value::to_bool)
    }

    /// `key` as a string.
    pub fn str(&self, key: &str) -> Result<Option<&str>, GgufError> {
        self.typed(key, "a string", Value::as_str)
    }

    /// `key` as an array of strings.
    pub fn str_array(&self, key: &str) -> Result<Option<&[String]>, GgufError> {
        self.typed(key, "an array of strings", |value| match value {
            Value::Array(Array::String(v)) => Some(v.as_slice()),
            _ => None,
        })
    }

    /// `key` as an array of 32-bit integers; exactly this type, so that nothing is copied.
    pub fn i32_array(&self, key: &str) -> Result<Option<&[i32]>, GgufError> {
        self.typed(key, "an array of i32", |value| match value {
            Value::Array(Array::I32(v)) => Some(v.as_slice()),
            _ => None,
        })
    }

    /// `key` as an array of single-precision numbers.
    pub fn f32_array(&self, key: &str) -> Result<Option<&[f32]>, GgufError> {
        self.typed(key, "an array of f32", |value| match value {
            Value::Array(Array::F32(v)) => Some(v.as_slice()),
            _ => None,
        })
    }

    /// `key` as one unsigned number (a vector of one) or an array of them: hyperparameters that some
    /// models give once and others per layer.
    pub fn u32_array_or_scalar(&self, key: &str) -> Result<Option<Vec<u32>>, GgufError> {
        self.typed(key, "an unsigned 32-bit integer or an array of them", |value| match value {
            Value::Array(a) => a.to_integers(),
            scalar => scalar.to_integer().map(|x| vec![x]),
        })
    }

    /// Turns the absence of a key that is needed into an error:
    /// `gguf.require("x", "a string", gguf.str("x")?)`.
    pub fn require<T>(&self, key: &str, expected: &'static str, found: Option<T>) -> Result<T, GgufError> {
        found.ok_or_else(|| GgufError::MissingKey { file: self.file.clone(), key: key.into(), expected })
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, GgufError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match convert(value) {
            Some(x) => Ok(Some(x)),
            None => Err(GgufError::WrongType {
                file: self.file.clone(),
                key: key.into(),
                expected,
                found: format!("{} {value}", value.type_name()),
            }),
        }
    }
}

/// Without the metadata and the bytes, which would fill screens.
impl fmt::Debug for Gguf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gguf")
            .field("path", &self.path)
            .field("version", &self.version)
            .field("metadata", &self.metadata.len())
            .field("tensors", &self.tensors.len())
            .field("bytes", &self.n_bytes())
            .finish_non_exhaustive()
    }
}
