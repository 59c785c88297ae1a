//! From bytes to a [`Gguf`]: the layout in the module's documentation, step by step.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::cursor::{Cursor, What};
use super::types::{MAX_DIMS, checked_nbytes, name_problem};
use super::value::{shorten, type_id};
use super::{
    Array, DEFAULT_ALIGNMENT, GgmlType, Gguf, GgufError, KEY_ALIGNMENT, Map, PartFile, TensorInfo, Value,
};

// Bounds well above every real file. A count is also bounded by the bytes that are left.
const MAX_ENTRIES: u64 = 1 << 16;
const MAX_TENSORS: u64 = 1 << 20;
/// Of a key, in bytes; the format's own limit.
pub(super) const MAX_KEY: u64 = (1 << 16) - 1;
/// Of any string, in bytes.
pub(super) const MAX_STRING: u64 = 1 << 26;
/// Of an array, in elements.
pub(super) const MAX_ARRAY: u64 = 1 << 26;
/// Alignments in use are 32 and 64.
pub(super) const ALIGNMENTS: std::ops::RangeInclusive<u64> = 8..=1 << 20;

/// Bytes of the shortest metadata entry: length of the key, one letter, type, one byte.
const MIN_ENTRY: u64 = 8 + 1 + 4 + 1;
/// Bytes of the shortest tensor: length of the name, one letter, dimensions, one of them, type, offset.
const MIN_TENSOR: u64 = 8 + 1 + 4 + 8 + 4 + 8;
/// Bytes of the shortest string: its length.
const MIN_STRING: u64 = 8;

/// Parses and checks a whole file. `label` names it in messages.
pub(super) fn parse(path: PathBuf, label: String, map: Arc<Map>) -> Result<Gguf, GgufError> {
    let mut cursor = Cursor { bytes: &map, pos: 0, file: &label };
    let version = read_version(&mut cursor)?;
    let n_tensors = cursor.u64(What::Header("the number of tensors"))?;
    let n_entries = cursor.u64(What::Header("the number of metadata entries"))?;
    cursor.check_count(n_entries, "metadata entries", MIN_ENTRY, MAX_ENTRIES)?;
    cursor.check_count(n_tensors, "tensors", MIN_TENSOR, MAX_TENSORS)?;

    let (metadata, key_index) = read_metadata(&mut cursor, n_entries)?;
    let find = |key: &str| key_index.get(key).map(|&i| &metadata[i].1);
    let alignment = read_alignment(&label, find(KEY_ALIGNMENT))?;

    cursor.check_count(n_tensors, "tensors", MIN_TENSOR, MAX_TENSORS)?;
    let (tensors, tensor_index) = read_tensors(&mut cursor, n_tensors)?;

    let header_end = cursor.pos as u64;
    // Cannot overflow: the end is a length in memory, the alignment at most 1 MiB.
    let data_offset = header_end.next_multiple_of(alignment);
    check_places(&label, &tensors, alignment, data_offset, map.len() as u64)?;

    let files = vec![PartFile { path: path.clone(), map, data_offset }];
    Ok(Gguf { path, file: label, files, version, alignment, metadata, key_index, tensors, tensor_index })
}

fn read_version(cursor: &mut Cursor<'_>) -> Result<u32, GgufError> {
    let file = cursor.file;
    // A file too short for the magic that starts with other letters is no GGUF file, rather than a short one.
    let start = &cursor.bytes[..cursor.bytes.len().min(4)];
    if start == b"FUGG" {
        return Err(GgufError::BigEndian { file: file.into() });
    }
    if !b"GGUF".starts_with(start) {
        let mut found = [b' '; 4];
        found[..start.len()].copy_from_slice(start);
        return Err(GgufError::Magic { file: file.into(), found });
    }
    cursor.take(4, What::Header("the magic \"GGUF\""))?;
    match cursor.u32(What::Header("the version"))? {
        version @ (2 | 3) => Ok(version),
        version if matches!(version.swap_bytes(), 1..=3) => Err(GgufError::BigEndian { file: file.into() }),
        found => Err(GgufError::Version { file: file.into(), found }),
    }
}

type Metadata = (Vec<(String, Value)>, HashMap<String, usize>);

fn read_metadata(cursor: &mut Cursor<'_>, n: u64) -> Result<Metadata, GgufError> {
    let mut metadata = Vec::new();
    let mut index = HashMap::new();
    for i in 0..n {
        let key = cursor.string(What::Key(i), MAX_KEY)?;
        let bad = |problem: String| GgufError::BadKey { file: cursor.file.into(), key: shorten(key), problem };
        if key.is_empty() {
            return Err(bad(format!("the key of entry {i} is empty")));
        }
        if let Some(first) = index.insert(key.to_owned(), metadata.len()) {
            return Err(bad(format!("duplicate key, in entries {first} and {i}")));
        }
        let value = read_value(cursor, key)?;
        metadata.push((key.to_owned(), value));
    }
    Ok((metadata, index))
}

fn read_value(cursor: &mut Cursor<'_>, key: &str) -> Result<Value, GgufError> {
    let what = What::Value(key);
    Ok(match cursor.u32(what)? {
        type_id::U8 => Value::U8(u8::from_le_bytes(cursor.array(what)?)),
        type_id::I8 => Value::I8(i8::from_le_bytes(cursor.array(what)?)),
        type_id::U16 => Value::U16(u16::from_le_bytes(cursor.array(what)?)),
        type_id::I16 => Value::I16(i16::from_le_bytes(cursor.array(what)?)),
        type_id::U32 => Value::U32(cursor.u32(what)?),
        type_id::I32 => Value::I32(i32::from_le_bytes(cursor.array(what)?)),
        type_id::F32 => Value::F32(f32::from_le_bytes(cursor.array(what)?)),
        type_id::U64 => Value::U64(cursor.u64(what)?),
        type_id::I64 => Value::I64(i64::from_le_bytes(cursor.array(what)?)),
        type_id::F64 => Value::F64(f64::from_le_bytes(cursor.array(what)?)),
        type_id::BOOL => {
            let byte = cursor.take(1, what)?[0];
            Value::Bool(read_bool(cursor, key, byte)?)
        }
        type_id::STRING => Value::String(cursor.string(what, MAX_STRING)?.to_owned()),
        type_id::ARRAY => Value::Array(read_array(cursor, key)?),
        other => return Err(unknown_value_type(cursor, key, "value", other)),
    })
}

fn read_array(cursor: &mut Cursor<'_>, key: &str) -> Result<Array, GgufError> {
    /// Elements of fixed size, all at once.
    macro_rules! numbers {
        ($t:ty, $variant:ident) => {{
            const SIZE: usize = size_of::<$t>();
            let n = cursor.count(What::Value(key), "elements", SIZE as u64, MAX_ARRAY)?;
            // No overflow: `count` has made sure that this many bytes are left.
            let bytes = cursor.take(n * SIZE as u64, What::Value(key))?;
            let read = |chunk: &[u8]| {
                let mut le = [0; SIZE];
                le.copy_from_slice(chunk);
                <$t>::from_le_bytes(le)
            };
            Array::$variant(bytes.chunks_exact(SIZE).map(read).collect())
        }};
    }
    Ok(match cursor.u32(What::Value(key))? {
        type_id::U8 => numbers!(u8, U8),
        type_id::I8 => numbers!(i8, I8),
        type_id::U16 => numbers!(u16, U16),
        type_id::I16 => numbers!(i16, I16),
        type_id::U32 => numbers!(u32, U32),
        type_id::I32 => numbers!(i32, I32),
        type_id::F32 => numbers!(f32, F32),
        type_id::U64 => numbers!(u64, U64),
        type_id::I64 => numbers!(i64, I64),
        type_id::F64 => numbers!(f64, F64),
        type_id::BOOL => {
            let n = cursor.count(What::Value(key), "elements", 1, MAX_ARRAY)?;
            let bytes = cursor.take(n, What::Value(key))?;
            let bools = bytes.iter().map(|&b| read_bool(cursor, key, b));
            Array::Bool(bools.collect::<Result<_, _>>()?)
        }
        type_id::STRING => {
            let n = cursor.count(What::Value(key), "elements", MIN_STRING, MAX_ARRAY)?;
            let strings = (0..n).map(|i| {
                let s = cursor.string(What::Element(key, i), MAX_STRING)?;
                Ok(s.to_owned())
            });
            Array::String(strings.collect::<Result<_, GgufError>>()?)
        }
        type_id::ARRAY => {
            return Err(GgufError::BadKey {
                file: cursor.file.into(),
                key: shorten(key),
                problem: "an array of arrays, which is not supported".into(),
            });
        }
        other => return Err(unknown_value_type(cursor, key, "array element", other)),
    })
}

fn read_bool(cursor: &Cursor<'_>, key: &str, byte: u8) -> Result<bool, GgufError> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(GgufError::BadKey {
            file: cursor.file.into(),
            key: shorten(key),
            problem: format!("a boolean is {other}, expected 0 or 1"),
        }),
    }
}

fn unknown_value_type(cursor: &Cursor<'_>, key: &str, of: &str, id: u32) -> GgufError {
    GgufError::BadKey {
        file: cursor.file.into(),
        key: shorten(key),
        problem: format!("the {of} type is {id}, expected 0 to {}", type_id::F64),
    }
}

fn read_alignment(file: &str, value: Option<&Value>) -> Result<u64, GgufError> {
    let alignment = match value {
        None => return Ok(DEFAULT_ALIGNMENT),
        Some(&Value::U32(x)) => u64::from(x),
        Some(other) => {
            return Err(GgufError::WrongType {
                file: file.into(),
                key: KEY_ALIGNMENT.into(),
                expected: "a u32",
                found: format!("{} {other}", other.type_name()),
            });
        }
    };
    match alignment_problem(alignment) {
        None => Ok(alignment),
        Some(problem) => Err(GgufError::BadKey { file: file.into(), key: KEY_ALIGNMENT.into(), problem }),
    }
}

/// What is wrong with an alignment, in words.
pub(super) fn alignment_problem(alignment: u64) -> Option<String> {
    let fine = alignment.is_power_of_two() && ALIGNMENTS.contains(&alignment);
    (!fine).then(|| {
        let (min, max) = ALIGNMENTS.into_inner();
        format!("alignment {alignment}, expected a power of two from {min} to {max}")
    })
}

type Tensors = (Vec<TensorInfo>, HashMap<String, usize>);

fn read_tensors(cursor: &mut Cursor<'_>, n: u64) -> Result<Tensors, GgufError> {
    let file = cursor.file;
    let mut tensors = Vec::new();
    let mut index = HashMap::new();
    for i in 0..n {
        let name = cursor.string(What::Tensor(i), MAX_KEY)?;
        let bad = |problem: String| GgufError::BadTensor { file: file.into(), tensor: shorten(name), problem };
        if let Some(problem) = name_problem(name) {
            return Err(bad(problem));
        }
        if let Some(first) = index.insert(name.to_owned(), tensors.len()) {
            return Err(bad(format!("duplicate name, of tensors {first} and {i}")));
        }
        let n_dims = cursor.u32(What::TensorField(name, "number of dimensions"))?;
        if n_dims == 0 || n_dims as usize > MAX_DIMS {
            return Err(bad(format!("{n_dims} dimensions, expected 1 to {MAX_DIMS}")));
        }
        let shape = (0..n_dims).map(|_| cursor.u64(What::TensorField(name, "shape"))).collect::<Result<Vec<_>, _>>()?;
        let id = cursor.u32(What::TensorField(name, "type"))?;
        let ty = GgmlType::from_id(id).ok_or_else(|| GgufError::UnknownType {
            file: file.into(),
            tensor: name.into(),
            id,
        })?;
        let nbytes = checked_nbytes(&shape, ty).map_err(bad)?;
        let offset = cursor.u64(What::TensorField(name, "offset"))?;
        tensors.push(TensorInfo { name: name.to_owned(), shape, ty, part: 0, offset, nbytes });
    }
    Ok((tensors, index))
}

/// Every tensor inside the file, aligned, and none over another.
fn check_places(
    file: &str,
    tensors: &[TensorInfo],
    alignment: u64,
    data_offset: u64,
    file_len: u64,
) -> Result<(), GgufError> {
    let bad = |tensor: &TensorInfo, problem: String| GgufError::BadTensor {
        file: file.into(),
        tensor: shorten(&tensor.name),
        problem,
    };
    let mut ends = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        if !tensor.offset.is_multiple_of(alignment) {
            let problem = format!("offset {} is not a multiple of the alignment {alignment}", tensor.offset);
            return Err(bad(tensor, problem));
        }
        let start = data_offset.checked_add(tensor.offset);
        let end = start.and_then(|start| start.checked_add(tensor.nbytes));
        let Some(end) = end else {
            let problem = format!("offset {} overflows 64 bits", tensor.offset);
            return Err(bad(tensor, problem));
        };
        ends.push((end, tensor));
    }
    // The one that ends last says how long the file was.
    if let Some(&(expected, _)) = ends.iter().max_by_key(|(end, _)| end)
        && let Some((_, first)) = ends.iter().find(|(end, _)| *end > file_len)
    {
        return Err(GgufError::TruncatedData {
            file: file.into(),
            tensor: shorten(&first.name),
            have: file_len,
            expected,
        });
    }
    let mut by_offset: Vec<&TensorInfo> = tensors.iter().collect();
    by_offset.sort_by_key(|t| t.offset);
    for pair in by_offset.windows(2) {
        let (a, b) = (pair[0], pair[1]);
        // No overflow: both ends were compared with the file's length.
        if a.offset + a.nbytes > b.offset {
            let problem = format!(
                "its data at offset {} overlaps tensor {} at {} with {} bytes",
                b.offset,
                shorten(&a.name),
                a.offset,
                a.nbytes
            );
            return Err(bad(b, problem));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alignments() {
        for good in [8, 32, 64, 4096, 1 << 20] {
            assert_eq!(alignment_problem(good), None);
        }
        for bad in [0, 1, 4, 24, 33, 1 << 21, u64::from(u32::MAX)] {
            assert!(alignment_problem(bad).is_some(), "{bad}");
        }
    }
}
