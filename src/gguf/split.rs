//! Models that lie in several files: the first part is opened, and brings the others.
//!
//! `split.count` is the number of parts, `split.no` a part's own number from 0, and `split.tensors.count` the number of tensors in
//! all of them. The first part holds the model's metadata, each part the list and the data of its own tensors.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::value::shorten;
use super::{Gguf, GgufError, KEY_ALIGNMENT, Map, OpenOptions, Value};
use crate::split_name::{SplitName, file_name};

/// What all keys of this module begin with.
const PREFIX: &str = "split.";
/// Metadata key of the number of files a model is split into.
const KEY_COUNT: &str = "split.count";
/// Metadata key of a part's number, from 0.
const KEY_NO: &str = "split.no";
/// Metadata key of the number of tensors in all parts.
const KEY_TENSORS: &str = "split.tensors.count";

/// The type that the keys of a split file must have, as messages name it.
const NUMBER: &str = "an unsigned integer";

/// One of the files that a model lies in.
#[derive(Clone)]
pub(super) struct PartFile {
    pub path: PathBuf,
    pub map: Arc<Map>,
    /// Where its data section starts.
    pub data_offset: u64,
}

/// Whether a metadata key tells how a model is split, and so means nothing in a file that holds all of it.
pub fn is_split_key(key: &str) -> bool {
    key.starts_with(PREFIX)
}

/// Number of files that the model of `gguf` lies in, at least 1. A name like that of a part is a second witness.
pub(super) fn count(gguf: &Gguf) -> Result<u64, GgufError> {
    let count = gguf.typed(KEY_COUNT, NUMBER, Value::to_integer::<u64>)?;
    Ok(count.unwrap_or_else(|| SplitName::of(&gguf.path).map_or(1, |name| name.count)).max(1))
}

/// Opens the parts behind `first`, which was opened by its path and says that there are `count`, and joins them to it.
pub(super) fn join(first: &mut Gguf, count: u64, options: OpenOptions) -> Result<(), GgufError> {
    let path = first.path.clone();
    let bad = |problem: String| GgufError::SplitPart { file: first.file.clone(), problem };
    let name = SplitName::of(&path);
    let number = first.require(KEY_NO, NUMBER, first.u64(KEY_NO)?)?;
    if number != 0 {
        let name = name.filter(|name| name.count == count);
        let remedy = match name {
            Some(name) => format!("give the first one, {}", file_name(&name.beside(&path, 1))),
            None => "give the first one".to_owned(),
        };
        return Err(bad(format!("is part {} of {count} of a split model; {remedy}", number.saturating_add(1))));
    }
    let Some(name) = name.filter(|name| (name.part, name.count) == (1, count)) else {
        return Err(bad(format!(
            "is the first part of a model split into {count} files, and the others are found by its name: \
             expected NAME-00001-of-{count:05}.gguf"
        )));
    };
    let n_tensors = first.require(KEY_TENSORS, NUMBER, first.u64(KEY_TENSORS)?)?;
    for number in 1..count {
        let part = open_part(first, &name.beside(&path, number + 1), number, options)?;
        check_part(first, &part, number)?;
        add(first, part)?;
    }
    let found = first.tensors.len() as u64;
    if found != n_tensors {
        let problem = format!("its {count} parts hold {found} tensors, expected {n_tensors} ({KEY_TENSORS})");
        return Err(GgufError::SplitPart { file: first.file.clone(), problem });
    }
    Ok(())
}

fn open_part(first: &Gguf, path: &Path, number: u64, options: OpenOptions) -> Result<Gguf, GgufError> {
    Gguf::open_one(path, options).map_err(|e| match e {
        GgufError::Io { file, source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            let problem = format!("is missing: it is part {} of the model that begins in {}", number + 1, first.file);
            GgufError::SplitPart { file, problem }
        }
        e => e,
    })
}

/// Whether `part` is the part `number` of the model that `first` begins.
fn check_part(first: &Gguf, part: &Gguf, number: u64) -> Result<(), GgufError> {
    let begins = file_name(&first.path);
    let bad = |problem| Err(GgufError::SplitPart { file: part.file.clone(), problem });
    for (key, expected) in [(KEY_COUNT, first.u64(KEY_COUNT)?), (KEY_NO, Some(number))] {
        let found = part.require(key, NUMBER, part.u64(key)?)?;
        if expected.is_some_and(|expected| expected != found) {
            let expected = expected.unwrap_or_default();
            return bad(format!("is not part {} of {begins}: {key} is {found}, expected {expected}", number + 1));
        }
    }
    // What a part repeats of the metadata tells whose it is.
    for (key, value) in &part.metadata {
        let repeats = *key != KEY_ALIGNMENT && (!is_split_key(key) || key == KEY_TENSORS);
        if let Some(expected) = first.get(key).filter(|expected| repeats && *expected != value) {
            let key = shorten(key);
            return bad(format!("is a part of another model than {begins}: {key} is {value}, there {expected}"));
        }
    }
    Ok(())
}

/// Joins what `part` holds to `first`.
fn add(first: &mut Gguf, part: Gguf) -> Result<(), GgufError> {
    let number = first.files.len();
    for mut tensor in part.tensors {
        if let Some(&other) = first.tensor_index.get(&tensor.name) {
            let there = file_name(&first.files[first.tensors[other].part].path);
            let problem = format!("duplicate name, also in {there}");
            return Err(GgufError::BadTensor { file: part.file, tensor: shorten(&tensor.name), problem });
        }
        tensor.part = number;
        first.tensor_index.insert(tensor.name.clone(), first.tensors.len());
        first.tensors.push(tensor);
    }
    first.files.extend(part.files);
    Ok(())
}
