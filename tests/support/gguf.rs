//! The smallest GGUF v3 reader and writer that the tests need: little endian, F32 and F16 tensors, alignment 32.
//!
//! For trusted files only: it panics on anything odd.

use std::path::Path;

const ALIGNMENT: usize = 32;
const TYPE_F32: u32 = 0;
const TYPE_F16: u32 = 1;

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    Str(String),
    Array(u32, Vec<Value>),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl From<u32> for Value {
    fn from(v: u32) -> Self {
        Value::U32(v)
    }
}
impl From<f32> for Value {
    fn from(v: f32) -> Self {
        Value::F32(v)
    }
}
impl From<bool> for Value {
    fn from(v: bool) -> Self {
        Value::Bool(v)
    }
}
impl From<&str> for Value {
    fn from(v: &str) -> Self {
        Value::Str(v.to_owned())
    }
}
impl From<Vec<String>> for Value {
    fn from(v: Vec<String>) -> Self {
        Value::Array(8, v.into_iter().map(Value::Str).collect())
    }
}
impl From<Vec<f32>> for Value {
    fn from(v: Vec<f32>) -> Self {
        Value::Array(6, v.into_iter().map(Value::F32).collect())
    }
}
impl From<Vec<i32>> for Value {
    fn from(v: Vec<i32>) -> Self {
        Value::Array(5, v.into_iter().map(Value::I32).collect())
    }
}

impl From<Vec<bool>> for Value {
    fn from(v: Vec<bool>) -> Self {
        Value::Array(7, v.into_iter().map(Value::Bool).collect())
    }
}

/// A tensor, widened to f32. `shape` is in ggml order: the fastest dimension first.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub name: String,
    pub shape: Vec<usize>,
    pub data: Vec<f32>,
}

/// A GGUF file in memory.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct File {
    pub metadata: Vec<(String, Value)>,
    pub tensors: Vec<Tensor>,
}

impl File {
    /// Appends a metadata pair.
    pub fn set(&mut self, key: impl Into<String>, value: impl Into<Value>) {
        self.metadata.push((key.into(), value.into()));
    }

    /// Appends a tensor.
    pub fn add(&mut self, name: impl Into<String>, shape: &[usize], data: Vec<f32>) {
        assert_eq!(shape.iter().product::<usize>(), data.len());
        self.tensors.push(Tensor { name: name.into(), shape: shape.to_vec(), data });
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.iter().find(|(k, _)| k == key).map(|(_, v)| v)
    }

    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.tensors.iter().find(|t| t.name == name)
    }

    pub fn uint(&self, key: &str) -> Option<usize> {
        self.get(key).map(|v| match v {
            Value::U32(v) => *v as usize,
            Value::U64(v) => *v as usize,
            Value::I32(v) => usize::try_from(*v).unwrap(),
            other => panic!("{key}: {other:?} is no count"),
        })
    }

    pub fn float(&self, key: &str) -> Option<f32> {
        self.get(key).map(|v| match v {
            Value::F32(v) => *v,
            other => panic!("{key}: {other:?} is no f32"),
        })
    }

    pub fn text(&self, key: &str) -> Option<&str> {
        self.get(key).map(|v| match v {
            Value::Str(v) => v.as_str(),
            other => panic!("{key}: {other:?} is no string"),
        })
    }

    /// Serializes all of it, tensors as F32.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(b"GGUF");
        out.extend_from_slice(&3u32.to_le_bytes());
        out.extend_from_slice(&(self.tensors.len() as u64).to_le_bytes());
        out.extend_from_slice(&(self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            put_str(&mut out, key);
            out.extend_from_slice(&type_of(value).to_le_bytes());
            put_value(&mut out, value);
        }
        let mut offset = 0usize;
        for t in &self.tensors {
            put_str(&mut out, &t.name);
            out.extend_from_slice(&(t.shape.len() as u32).to_le_bytes());
            for d in &t.shape {
                out.extend_from_slice(&(*d as u64).to_le_bytes());
            }
            out.extend_from_slice(&TYPE_F32.to_le_bytes());
            out.extend_from_slice(&(offset as u64).to_le_bytes());
            offset += (t.data.len() * 4).next_multiple_of(ALIGNMENT);
        }
        for t in &self.tensors {
            out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
            for v in &t.data {
                out.extend_from_slice(&v.to_le_bytes());
            }
        }
        out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
        out
    }

    /// Writes [`File::to_bytes`] to a path.
    pub fn write(&self, path: &Path) {
        std::fs::write(path, self.to_bytes()).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }

    /// Reads a file whole.
    pub fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Self::from_bytes(&bytes)
    }

    /// Parses a file's bytes.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut cur = Cursor { bytes, at: 0 };
        assert_eq!(cur.take(4), b"GGUF", "not a GGUF file");
        let version = cur.u32();
        assert!(version == 2 || version == 3, "GGUF version {version}");
        let n_tensors = cur.u64() as usize;
        let n_metadata = cur.u64() as usize;
        let mut file = File::default();
        for _ in 0..n_metadata {
            let key = cur.string();
            let ty = cur.u32();
            let value = cur.value(ty);
            file.metadata.push((key, value));
        }
        let mut infos = Vec::new();
        for _ in 0..n_tensors {
            let name = cur.string();
            let n_dims = cur.u32();
            let shape: Vec<usize> = (0..n_dims).map(|_| cur.u64() as usize).collect();
            infos.push((name, shape, cur.u32(), cur.u64() as usize));
        }
        let base = cur.at.next_multiple_of(file.uint("general.alignment").unwrap_or(ALIGNMENT));
        for (name, shape, ty, offset) in infos {
            let n: usize = shape.iter().product();
            let raw = &bytes[base + offset..];
            let data = match ty {
                TYPE_F32 => raw[..n * 4].chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
                TYPE_F16 => {
                    raw[..n * 2].chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
                }
                other => panic!("tensor {name}: type {other}, this reader knows F32 and F16"),
            };
            file.tensors.push(Tensor { name, shape, data });
        }
        file
    }
}

fn type_of(value: &Value) -> u32 {
    match value {
        Value::U8(_) => 0,
        Value::I8(_) => 1,
        Value::U16(_) => 2,
        Value::I16(_) => 3,
        Value::U32(_) => 4,
        Value::I32(_) => 5,
        Value::F32(_) => 6,
        Value::Bool(_) => 7,
        Value::Str(_) => 8,
        Value::Array(..) => 9,
        Value::U64(_) => 10,
        Value::I64(_) => 11,
        Value::F64(_) => 12,
    }
}

fn put_str(out: &mut Vec<u8>, s: &str) {
    out.extend_from_slice(&(s.len() as u64).to_le_bytes());
    out.extend_from_slice(s.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(v) => out.push(*v),
        Value::I8(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::U16(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::I16(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::U32(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::I32(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::F32(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::Bool(v) => out.push(u8::from(*v)),
        Value::Str(v) => put_str(out, v),
        Value::Array(ty, items) => {
            out.extend_from_slice(&ty.to_le_bytes());
            out.extend_from_slice(&(items.len() as u64).to_le_bytes());
            for item in items {
                assert_eq!(type_of(item), *ty);
                put_value(out, item);
            }
        }
        Value::U64(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::I64(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::F64(v) => out.extend_from_slice(&v.to_le_bytes()),
    }
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize) -> &'a [u8] {
        let slice = &self.bytes[self.at..self.at + n];
        self.at += n;
        slice
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        self.take(N).try_into().unwrap()
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    fn string(&mut self) -> String {
        let n = self.u64() as usize;
        String::from_utf8_lossy(self.take(n)).into_owned()
    }

    fn value(&mut self, ty: u32) -> Value {
        match ty {
            0 => Value::U8(self.take(1)[0]),
            1 => Value::I8(i8::from_le_bytes(self.array())),
            2 => Value::U16(u16::from_le_bytes(self.array())),
            3 => Value::I16(i16::from_le_bytes(self.array())),
            4 => Value::U32(self.u32()),
            5 => Value::I32(i32::from_le_bytes(self.array())),
            6 => Value::F32(f32::from_le_bytes(self.array())),
            7 => Value::Bool(self.take(1)[0] != 0),
            8 => Value::Str(self.string()),
            9 => {
                let item = self.u32();
                let n = self.u64();
                Value::Array(item, (0..n).map(|_| self.value(item)).collect())
            }
            10 => Value::U64(self.u64()),
            11 => Value::I64(i64::from_le_bytes(self.array())),
            12 => Value::F64(f64::from_le_bytes(self.array())),
            other => panic!("metadata type {other}"),
        }
    }
}
