//! Writing GGUF files, version 3: declare everything, then stream the tensors one at a time.
//!
//! Offsets follow from shapes, so the header is complete before the first weight exists, and no more than one
//! tensor has to be in memory. The file appears under its name only when it is whole.

use std::borrow::Cow;
use std::collections::HashSet;
use std::io::{self, Write};
use std::path::Path;

use super::reader::{MAX_ARRAY, MAX_KEY, MAX_STRING, alignment_problem};
use super::types::{checked_nbytes, name_problem};
use super::value::shorten;
use super::{Array, DEFAULT_ALIGNMENT, GgmlType, GgufError, KEY_ALIGNMENT, Value};
use crate::output_file::OutputFile;

/// A tensor that will be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorDecl {
    /// Name, unique in the file, 1 to 63 bytes.
    pub name: String,
    /// Elements per dimension in ggml order (fastest first).
    pub shape: Vec<u64>,
    /// Element type.
    pub ty: GgmlType,
    /// Bytes its source has to write.
    pub nbytes: u64,
}

type Source<'a> = Box<dyn FnMut(&TensorDecl, &mut dyn Write) -> io::Result<()> + 'a>;

/// Collects metadata and tensors, then writes them.
///
/// Mistakes in what is added (a duplicate name, a shape that does not fit its type) are reported by the call that
/// adds it; the messages say `new GGUF file`, for there is no path yet.
pub struct GgufWriter<'a> {
    metadata: Vec<(String, Value)>,
    tensors: Vec<(TensorDecl, Option<Source<'a>>)>,
    names: HashSet<String>,
    alignment: u64,
}

impl Default for GgufWriter<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'a> GgufWriter<'a> {
    /// An empty file with alignment 32.
    pub fn new() -> Self {
        GgufWriter { metadata: Vec::new(), tensors: Vec::new(), names: HashSet::new(), alignment: DEFAULT_ALIGNMENT }
    }

    /// Sets a metadata value; a key that is there already gets the new value in its old place.
    ///
    /// Setting `general.alignment` also changes how the tensors are laid out.
    ///
    /// # Errors
    /// [`GgufError::Unwritable`] for an empty or overlong key, an overlong string or array, a bad alignment.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) -> Result<(), GgufError> {
        let value = value.into();
        let refuse = |problem: String| Err(unwritable(&format!("metadata {}", shorten(key)), problem));
        if key.is_empty() || key.len() as u64 > MAX_KEY {
            return refuse(format!("a key has 1 to {MAX_KEY} bytes"));
        }
        if let Some(problem) = value_problem(&value) {
            return refuse(problem);
        }
        if key == KEY_ALIGNMENT {
            let Value::U32(alignment) = value else {
                return refuse(format!("is {}, expected u32", value.type_name()));
            };
            if let Some(problem) = alignment_problem(alignment.into()) {
                return refuse(problem);
            }
            self.alignment = alignment.into();
        }
        match self.metadata.iter_mut().find(|(k, _)| k == key) {
            Some((_, old)) => *old = value,
            None => self.metadata.push((key.to_owned(), value)),
        }
        Ok(())
    }

    /// [`set`](Self::set) for an unsigned number.
    pub fn set_u32(&mut self, key: &str, value: u32) -> Result<(), GgufError> {
        self.set(key, value)
    }

    /// [`set`](Self::set) for a 64-bit unsigned number.
    pub fn set_u64(&mut self, key: &str, value: u64) -> Result<(), GgufError> {
        self.set(key, value)
    }

    /// [`set`](Self::set) for a floating-point number.
    pub fn set_f32(&mut self, key: &str, value: f32) -> Result<(), GgufError> {
        self.set(key, value)
    }

    /// [`set`](Self::set) for a boolean.
    pub fn set_bool(&mut self, key: &str, value: bool) -> Result<(), GgufError> {
        self.set(key, value)
    }

    /// [`set`](Self::set) for a string.
    pub fn set_str(&mut self, key: &str, value: &str) -> Result<(), GgufError> {
        self.set(key, value)
    }

    /// [`set`](Self::set) for an array.
    pub fn set_array(&mut self, key: &str, value: Array) -> Result<(), GgufError> {
        self.set(key, value)
    }

    /// Declares a tensor whose data `source` will write when its turn comes.
    ///
    /// `shape` is in ggml order (fastest dimension first).
    ///
    /// # Errors
    /// [`GgufError::Unwritable`] for a bad or duplicate name, or a shape that does not fit `ty`.
    pub fn add_tensor(
        &mut self,
        name: &str,
        shape: &[u64],
        ty: GgmlType,
        source: impl FnMut(&TensorDecl, &mut dyn Write) -> io::Result<()> + 'a,
    ) -> Result<(), GgufError> {
        self.push_tensor(name, shape, ty, Some(Box::new(source)))
    }

    /// Declares a tensor whose data is at hand.
    ///
    /// # Errors
    /// As [`add_tensor`](Self::add_tensor), and [`GgufError::SourceSize`] for data of another size.
    pub fn add_tensor_bytes(
        &mut self,
        name: &str,
        shape: &[u64],
        ty: GgmlType,
        data: impl Into<Cow<'a, [u8]>>,
    ) -> Result<(), GgufError> {
        let data = data.into();
        if let Ok(expected) = checked_nbytes(shape, ty)
            && data.len() as u64 != expected
        {
            return Err(GgufError::SourceSize {
                file: NEW_FILE.into(),
                tensor: name.into(),
                found: data.len() as u64,
                expected,
            });
        }
        self.add_tensor(name, shape, ty, move |_, out| out.write_all(&data))
    }

    /// Declares a tensor without a source of its own: the callback of [`write_with`](Self::write_with) makes it.
    ///
    /// # Errors
    /// As [`add_tensor`](Self::add_tensor).
    pub fn declare_tensor(&mut self, name: &str, shape: &[u64], ty: GgmlType) -> Result<(), GgufError> {
        self.push_tensor(name, shape, ty, None)
    }

    fn push_tensor(
        &mut self,
        name: &str,
        shape: &[u64],
        ty: GgmlType,
        source: Option<Source<'a>>,
    ) -> Result<(), GgufError> {
        let refuse = |problem: String| unwritable(&format!("tensor {}", shorten(name)), problem);
        if let Some(problem) = name_problem(name) {
            return Err(refuse(problem));
        }
        if self.names.contains(name) {
            return Err(refuse("duplicate name".into()));
        }
        let decl = TensorDecl {
            name: name.to_owned(),
            shape: shape.to_vec(),
            ty,
            nbytes: checked_nbytes(shape, ty).map_err(refuse)?,
        };
        self.names.insert(name.to_owned());
        self.tensors.push((decl, source));
        Ok(())
    }

    /// Writes the file at `path`, replacing what is there only after all of it has been written.
    ///
    /// # Errors
    /// A source that fails or writes another number of bytes than declared, a full disk, a tensor without source.
    /// The file that was at `path` is then still there, and nothing else is left behind.
    pub fn write(self, path: &Path) -> Result<(), GgufError> {
        self.write_with(path, no_source)
    }

    /// [`write`](Self::write), with `source` for tensors that were declared without one.
    pub fn write_with(
        self,
        path: &Path,
        source: impl FnMut(&TensorDecl, &mut dyn Write) -> io::Result<()>,
    ) -> Result<(), GgufError> {
        self.write_into(OutputFile::create(path, &[])?, source)
    }

    /// [`write_with`](Self::write_with), where the file has been created already: before the work that makes its contents.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn write_into(
        self,
        mut out: OutputFile,
        source: impl FnMut(&TensorDecl, &mut dyn Write) -> io::Result<()>,
    ) -> Result<(), GgufError> {
        let label = out.path().display().to_string();
        self.write_to(&mut out, &label, source)?;
        Ok(out.finish()?)
    }

    /// Writes everything into `out`; `label` names it in messages. `out` is flushed.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn write_to(
        mut self,
        out: &mut dyn Write,
        label: &str,
        mut source: impl FnMut(&TensorDecl, &mut dyn Write) -> io::Result<()>,
    ) -> Result<(), GgufError> {
        let (header, total) = self.header(label)?;
        let failed = |source: io::Error| write_error(label, total, source);
        out.write_all(&header).map_err(failed)?;
        let padding = vec![0; self.alignment as usize];
        for (decl, own) in &mut self.tensors {
            let mut counted = Counted { out: &mut *out, left: decl.nbytes, excess: 0 };
            let written = match own {
                Some(own) => own(decl, &mut counted),
                None => source(decl, &mut counted),
            };
            let Counted { left, excess, .. } = counted;
            // First, because the error a source returns is then only a consequence.
            if excess > 0 {
                return Err(source_size(label, decl, decl.nbytes.saturating_add(excess)));
            }
            written.map_err(|source| match failed(source) {
                GgufError::Io { file, source, .. } => GgufError::Source { file, tensor: decl.name.clone(), source },
                other => other,
            })?;
            if left > 0 {
                return Err(source_size(label, decl, decl.nbytes - left));
            }
            let pad = padding_of(decl.nbytes, self.alignment) as usize;
            out.write_all(&padding[..pad]).map_err(failed)?;
        }
        out.flush().map_err(failed)
    }

    /// Everything before the data section, padded, and the size of the whole file.
    fn header(&self, label: &str) -> Result<(Vec<u8>, u64), GgufError> {
        let mut out = Vec::new();
        out.extend_from_slice(b"GGUF");
        put_u32(&mut out, 3);
        put_u64(&mut out, self.tensors.len() as u64);
        put_u64(&mut out, self.metadata.len() as u64);
        for (key, value) in &self.metadata {
            put_str(&mut out, key);
            put_u32(&mut out, value.type_id());
            put_value(&mut out, value);
        }
        let mut offset = 0u64;
        for (decl, _) in &self.tensors {
            put_str(&mut out, &decl.name);
            put_u32(&mut out, decl.shape.len() as u32);
            for &dim in &decl.shape {
                put_u64(&mut out, dim);
            }
            put_u32(&mut out, decl.ty.id());
            put_u64(&mut out, offset);
            offset = offset
                .checked_next_multiple_of(self.alignment)
                .and_then(|o| o.checked_add(decl.nbytes))
                .and_then(|o| o.checked_next_multiple_of(self.alignment))
                .filter(|&o| i64::try_from(o).is_ok())
                .ok_or_else(|| GgufError::Unwritable {
                    file: label.into(),
                    what: "the tensors".into(),
                    problem: "their size overflows 63 bits".into(),
                })?;
        }
        let pad = padding_of(out.len() as u64, self.alignment) as usize;
        out.resize(out.len() + pad, 0);
        let total = (out.len() as u64).saturating_add(offset);
        Ok((out, total))
    }
}

const NEW_FILE: &str = "new GGUF file";

fn unwritable(what: &str, problem: String) -> GgufError {
    GgufError::Unwritable { file: NEW_FILE.into(), what: what.into(), problem }
}

fn source_size(file: &str, decl: &TensorDecl, found: u64) -> GgufError {
    GgufError::SourceSize { file: file.into(), tensor: decl.name.clone(), found, expected: decl.nbytes }
}

fn write_error(file: &str, needed: u64, source: io::Error) -> GgufError {
    let file = file.to_owned();
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => GgufError::DiskFull { file, needed },
        _ => GgufError::Io { file, action: "write", source },
    }
}

/// For files whose tensors all have a source of their own.
pub(crate) fn no_source(decl: &TensorDecl, _: &mut dyn Write) -> io::Result<()> {
    Err(io::Error::other(format!("tensor {:?} was declared without a source", decl.name)))
}

/// What is wrong with a value, in words: the reader's limits, so that what is written can be read.
fn value_problem(value: &Value) -> Option<String> {
    let too_long = |s: &String| s.len() as u64 > MAX_STRING;
    let long_string = match value {
        Value::String(s) => too_long(s),
        Value::Array(Array::String(v)) => v.iter().any(too_long),
        _ => false,
    };
    let long_array = matches!(value, Value::Array(a) if a.len() as u64 > MAX_ARRAY);
    if long_string {
        Some(format!("a string has at most {MAX_STRING} bytes"))
    } else if long_array {
        Some(format!("an array has at most {MAX_ARRAY} elements"))
    } else {
        None
    }
}

fn padding_of(len: u64, alignment: u64) -> u64 {
    (alignment - len % alignment) % alignment
}

fn put_u32(out: &mut Vec<u8>, x: u32) {
    out.extend_from_slice(&x.to_le_bytes());
}

fn put_u64(out: &mut Vec<u8>, x: u64) {
    out.extend_from_slice(&x.to_le_bytes());
}

fn put_str(out: &mut Vec<u8>, s: &str) {
    put_u64(out, s.len() as u64);
    out.extend_from_slice(s.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::I8(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::U16(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::I16(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::U32(x) => put_u32(out, *x),
        Value::I32(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::F32(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::Bool(x) => out.push(u8::from(*x)),
        Value::String(s) => put_str(out, s),
        Value::U64(x) => put_u64(out, *x),
        Value::I64(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::F64(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::Array(a) => put_array(out, a),
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    put_u32(out, array.element_type_id());
    put_u64(out, array.len() as u64);
    macro_rules! numbers {
        ($v:expr) => {
            out.extend($v.iter().flat_map(|x| x.to_le_bytes()))
        };
    }
    match array {
        Array::U8(v) => numbers!(v),
        Array::I8(v) => numbers!(v),
        Array::U16(v) => numbers!(v),
        Array::I16(v) => numbers!(v),
        Array::U32(v) => numbers!(v),
        Array::I32(v) => numbers!(v),
        Array::F32(v) => numbers!(v),
        Array::U64(v) => numbers!(v),
        Array::I64(v) => numbers!(v),
        Array::F64(v) => numbers!(v),
        Array::Bool(v) => out.extend(v.iter().map(|&b| u8::from(b))),
        Array::String(v) => v.iter().for_each(|s| put_str(out, s)),
    }
}

/// Passes on at most `left` bytes, so that a source cannot write into the next tensor.
struct Counted<'w> {
    out: &'w mut dyn Write,
    left: u64,
    excess: u64,
}

impl Write for Counted<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if buf.len() as u64 > self.left {
            self.excess = buf.len() as u64 - self.left;
            return Err(io::Error::other("more bytes than the tensor has"));
        }
        let n = self.out.write(buf)?;
        self.left -= n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
#[path = "writer_tests.rs"]
mod tests;
