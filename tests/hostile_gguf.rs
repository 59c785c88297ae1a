//! Hostile, broken and merely unusual GGUF files: each is read correctly or refused with one clear line.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use spts::gguf::{GgmlType, Gguf, GgufError, OpenOptions, Value};

/// Name of the files made here in messages.
const LABEL: &str = "test.gguf";

// Numbers of metadata types in the format.
const T_U8: u32 = 0;
const T_U32: u32 = 4;
const T_BOOL: u32 = 7;
const T_STRING: u32 = 8;
const T_ARRAY: u32 = 9;
const T_F64: u32 = 12;

// ---- Bytes -----------------------------------------------------------------------------------------------

fn header(version: u32, n_tensors: u64, n_entries: u64) -> Vec<u8> {
    [&b"GGUF"[..], &version.to_le_bytes(), &n_tensors.to_le_bytes(), &n_entries.to_le_bytes()].concat()
}

fn length_prefixed(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u64).to_le_bytes(), bytes].concat()
}

/// A metadata entry with the bytes of its value as they are.
fn entry(key: &str, ty: u32, value: &[u8]) -> Vec<u8> {
    [&length_prefixed(key.as_bytes()), &ty.to_le_bytes()[..], value].concat()
}

fn array(element: u32, n: u64, elements: &[u8]) -> Vec<u8> {
    [&element.to_le_bytes()[..], &n.to_le_bytes(), elements].concat()
}

fn tensor(name: &str, shape: &[u64], ty: u32, offset: u64) -> Vec<u8> {
    let mut out = length_prefixed(name.as_bytes());
    out.extend((shape.len() as u32).to_le_bytes());
    out.extend(shape.iter().flat_map(|d| d.to_le_bytes()));
    out.extend(ty.to_le_bytes());
    out.extend(offset.to_le_bytes());
    out
}

fn pad(mut bytes: Vec<u8>, alignment: usize) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(alignment), 0);
    bytes
}

/// A file of version 3 with these entries and tensors and `data_len` zero bytes of data.
fn file(entries: &[Vec<u8>], tensors: &[Vec<u8>], data_len: usize) -> Vec<u8> {
    let head = header(3, tensors.len() as u64, entries.len() as u64);
    let bytes = [head, entries.concat(), tensors.concat()].concat();
    let mut bytes = pad(bytes, 32);
    bytes.resize(bytes.len() + data_len, 0);
    bytes
}

fn with_entry(entry: Vec<u8>) -> Vec<u8> {
    // Room behind it, so that the fault in the entry is the only one.
    file(&[entry], &[], 256)
}

fn with_tensor(tensor: Vec<u8>) -> Vec<u8> {
    file(&[], &[tensor], 4096)
}

// ---- Assertions ------------------------------------------------------------------------------------------

#[track_caller]
fn assert_message(error: &GgufError, file: &str, text: &str) {
    let message = error.to_string();
    assert!(message.contains(text), "{message:?} lacks {text:?}");
    assert!(message.starts_with(file), "{message:?} does not name {file}");
    assert!(!message.chars().any(char::is_control), "{message:?}");
    assert!(message.len() < 400, "{message:?}");
}

#[track_caller]
fn assert_rejects(bytes: Vec<u8>, text: &str) {
    match Gguf::from_bytes(bytes, LABEL) {
        Ok(gguf) => panic!("accepted {gguf:?}, expected an error with {text:?}"),
        Err(error) => assert_message(&error, LABEL, text),
    }
}

#[track_caller]
fn accept(bytes: Vec<u8>) -> Gguf {
    Gguf::from_bytes(bytes, LABEL).unwrap_or_else(|e| panic!("{e}"))
}

// ---- The header ------------------------------------------------------------------------------------------

#[test]
fn no_gguf_at_all() {
    assert_rejects(vec![], "the file is empty");
    assert_rejects(b"PK".to_vec(), "not a GGUF file: it starts with \"PK");
    assert_rejects(b"ggml\x01\0\0\0".to_vec(), "\"ggml\"");
    assert_rejects(b"<!DOCTYPE html>".to_vec(), "\"<!DO\"");
    assert_rejects(b"\x7f\n\0\x1bmore".to_vec(), r"\x7f\n\x00\x1b");
    assert_rejects(b"GG".to_vec(), "truncated: the magic");
}

#[test]
fn versions() {
    for version in [2, 3] {
        assert_eq!(accept(header(version, 0, 0)).version(), version);
    }
    assert_rejects(header(0, 0, 0), "version 0");
    assert_rejects(header(1, 0, 0), "convert the model again");
    assert_rejects(header(4, 0, 0), "newer release");
    assert_rejects(header(u32::MAX, 0, 0), "version 4294967295");
}

#[test]
fn big_endian() {
    assert_rejects(header(3u32.swap_bytes(), 0, 0), "big-endian");
    assert_rejects(header(2u32.swap_bytes(), 0, 0), "big-endian");
    assert_rejects(b"FUGG\0\0\0\x03".to_vec(), "big-endian");
}

#[test]
fn wild_counts() {
    for n in [1, 1 << 20, 1 << 62, u64::MAX] {
        assert_rejects(header(3, n, 0), "tensors");
        assert_rejects(header(3, 0, n), "metadata entries");
        assert_rejects(header(3, n, n), "metadata entries");
    }
    // Enough bytes, but no model has that many.
    let mut bytes = header(3, 0, 100_000);
    bytes.resize(2_000_000, 0);
    assert_rejects(bytes, "at most 65536");
    // The bytes that were left for the tensors are used up by metadata.
    let e = entry("k", T_STRING, &length_prefixed(&[b'x'; 100]));
    assert_rejects([header(3, 2, 1), e].concat(), "truncated: 2 tensors need at least 66 bytes");
}

// ---- Metadata --------------------------------------------------------------------------------------------

#[test]
fn bad_keys() {
    assert_rejects(with_entry(entry("", T_U8, &[1])), "empty");
    let one = entry("general.name", T_U8, &[1]);
    assert_rejects(file(&[one.clone(), one], &[], 0), "\"general.name\": duplicate key");
    let mut invalid = entry("abc", T_U8, &[1]);
    invalid[9] = 0xff;
    assert_rejects(with_entry(invalid), "invalid UTF-8 at byte 1");
    let long = "k".repeat(1 << 16);
    assert_rejects(with_entry(entry(&long, T_U8, &[1])), "string length");
    // Escaped and cut.
    let nasty = "line\nbreak\x1b[31m".repeat(100);
    assert_rejects(with_entry(entry(&nasty, 99, &[1])), "line\\nbreak");
}

#[test]
fn bad_string_lengths() {
    for len in [300u64, 1 << 25, 1 << 40, u64::MAX - 7, u64::MAX] {
        let expect = if len > 1 << 26 { "string length" } else { "truncated" };
        assert_rejects(
            with_entry(len.to_le_bytes().to_vec()),
            if len > 65_535 { "string length" } else { "truncated" },
        );
        assert_rejects(with_entry(entry("k", T_STRING, &len.to_le_bytes())), expect);
    }
    let invalid = length_prefixed(b"ab\xc3\x28");
    assert_rejects(with_entry(entry("k", T_STRING, &invalid)), "the value of \"k\": invalid UTF-8 at byte 2");
}

#[test]
fn bad_value_types() {
    for ty in [13, 14, 255, u32::MAX] {
        assert_rejects(with_entry(entry("k", ty, &[0; 16])), "the value type is");
        let a = array(ty, 1, &[0; 16]);
        assert_rejects(with_entry(entry("k", T_ARRAY, &a)), "the array element type is");
    }
}

#[test]
fn bad_booleans() {
    for byte in [2, 0xff] {
        assert_rejects(with_entry(entry("k", T_BOOL, &[byte])), "expected 0 or 1");
        let a = array(T_BOOL, 3, &[0, 1, byte]);
        assert_rejects(with_entry(entry("k", T_ARRAY, &a)), "expected 0 or 1");
    }
}

#[test]
fn nested_arrays() {
    // What a recursive reader would follow until its stack ends.
    let deep: Vec<u8> = (0..10_000).flat_map(|_| array(T_ARRAY, 1, &[])).collect();
    assert_rejects(with_entry(entry("k", T_ARRAY, &deep)), "array of arrays");
    assert_rejects(with_entry(entry("k", T_ARRAY, &array(T_ARRAY, 0, &[]))), "array of arrays");
}

#[test]
fn wild_array_lengths() {
    for n in [1 << 16, 1 << 30, 1 << 61, u64::MAX / 8 + 1, u64::MAX] {
        for ty in (0..=T_F64).filter(|&t| t != T_ARRAY) {
            let a = array(ty, n, &[0; 64]);
            assert_rejects(with_entry(entry("k", T_ARRAY, &a)), "elements of the value of \"k\"");
        }
    }
    // The count fits the bytes that are left, its strings do not.
    let strings = [length_prefixed(b"one"), u64::MAX.to_le_bytes().to_vec()].concat();
    assert_rejects(with_entry(entry("k", T_ARRAY, &array(T_STRING, 2, &strings))), "element 1 of \"k\"");
}

#[test]
fn empty_arrays_are_fine() {
    for ty in (0..=T_F64).filter(|&t| t != T_ARRAY) {
        let gguf = accept(with_entry(entry("k", T_ARRAY, &array(ty, 0, &[]))));
        assert!(matches!(gguf.get("k"), Some(Value::Array(a)) if a.is_empty()));
    }
}

#[test]
fn alignments() {
    let aligned = |a: u32| with_entry(entry("general.alignment", T_U32, &a.to_le_bytes()));
    for good in [8, 32, 64, 4096] {
        assert_eq!(accept(aligned(good)).alignment(), u64::from(good));
    }
    for bad in [0, 1, 3, 4, 33, 1 << 31, u32::MAX] {
        assert_rejects(aligned(bad), "expected a power of two");
    }
    let wide = entry("general.alignment", 10, &32u64.to_le_bytes());
    assert_rejects(with_entry(wide), "expected a u32");
    // Larger than all that follows: nothing to align if there are no tensors.
    assert_eq!(accept(aligned(1 << 20)).data_offset(), 1 << 20);
}

#[test]
fn split_models() {
    let split = |n: u16| with_entry(entry("split.count", 2, &n.to_le_bytes()));
    assert_rejects(split(3), "split into 3 files");
    accept(split(1));
    accept(split(0));
    let wrong = entry("split.count", T_STRING, &length_prefixed(b"3"));
    assert_rejects(with_entry(wrong), "expected an unsigned integer");

    let label = "model-00001-of-00004.gguf";
    let error = Gguf::from_bytes(header(3, 0, 0), label).unwrap_err();
    assert_message(&error, label, "split into 4 files");
    assert!(Gguf::from_bytes(header(3, 0, 0), "model-00001-of-00001.gguf").is_ok());
}

#[test]
fn getters_tell_absent_from_wrong() {
    let gguf = accept(file(
        &[
            entry("u8", T_U8, &[7]),
            entry("i32", 5, &(-7i32).to_le_bytes()),
            entry("text", T_STRING, &length_prefixed(b"a\nb")),
            entry("list", T_ARRAY, &array(5, 2, &[1, 0, 0, 0, 2, 0, 0, 0])),
        ],
        &[],
        0,
    ));
    assert_eq!(gguf.u32("none").unwrap(), None);
    assert_eq!(gguf.str_array("none").unwrap(), None);
    assert_eq!(gguf.u32("u8").unwrap(), Some(7));
    assert_eq!(gguf.str("text").unwrap(), Some("a\nb"));
    assert_eq!(gguf.i32_array("list").unwrap(), Some(&[1, 2][..]));
    assert_eq!(gguf.u32_array_or_scalar("list").unwrap(), Some(vec![1, 2]));
    assert_eq!(gguf.u32_array_or_scalar("u8").unwrap(), Some(vec![7]));
    let wrong = [
        gguf.u32("i32").unwrap_err(),
        gguf.u64("text").unwrap_err(),
        gguf.f32("u8").unwrap_err(),
        gguf.bool("u8").unwrap_err(),
        gguf.str("list").unwrap_err(),
        gguf.str_array("list").unwrap_err(),
        gguf.f32_array("list").unwrap_err(),
        gguf.i32_array("text").unwrap_err(),
        gguf.u32_array_or_scalar("text").unwrap_err(),
    ];
    for error in &wrong {
        assert!(matches!(error, GgufError::WrongType { .. }));
        assert_message(error, LABEL, "expected");
    }
    let missing = gguf.require("none", "a string", gguf.str("none").unwrap());
    assert_message(&missing.unwrap_err(), LABEL, "\"none\" is missing, expected a string");
}

// ---- Tensors ---------------------------------------------------------------------------------------------

#[test]
fn bad_names() {
    accept(with_tensor(tensor(&"n".repeat(63), &[1], 0, 0)));
    assert_rejects(with_tensor(tensor(&"n".repeat(64), &[1], 0, 0)), "64 bytes");
    assert_rejects(with_tensor(tensor("", &[1], 0, 0)), "the name is empty");
    assert_rejects(with_tensor(tensor("a\0b", &[1], 0, 0)), "zero byte");
    let mut invalid = tensor("abc", &[1], 0, 0);
    invalid[8] = 0x80;
    assert_rejects(with_tensor(invalid), "the name of tensor 0: invalid UTF-8");
    let twice = [tensor("w", &[1], 0, 0), tensor("w", &[1], 0, 32)];
    assert_rejects(file(&[], &twice, 64), "\"w\": duplicate name");
}

#[test]
fn bad_shapes() {
    assert_rejects(with_tensor(tensor("w", &[], 0, 0)), "0 dimensions");
    assert_rejects(with_tensor(tensor("w", &[1; 5], 0, 0)), "5 dimensions");
    let mut wild = tensor("w", &[1], 0, 0);
    wild[9..13].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_rejects(with_tensor(wild), "4294967295 dimensions");

    for shape in [&[0][..], &[4, 0], &[0, 0, 0, 0]] {
        assert_rejects(with_tensor(tensor("w", shape, 0, 0)), "is zero");
    }
    for shape in [
        &[u64::MAX][..],
        &[1 << 63],
        &[1 << 62, 2],
        &[1 << 32, 1 << 32],
        &[1 << 16, 1 << 16, 1 << 16, 1 << 16],
        // Wraps to 0, and to a small number.
        &[1 << 32, 1 << 16, 1 << 16, 1],
        &[(1 << 63) + 1, 2],
    ] {
        assert_rejects(with_tensor(tensor("w", shape, 0, 0)), "overflows");
    }
    // Elements fit, bytes do not.
    assert_rejects(with_tensor(tensor("w", &[1 << 61], 28, 0)), "overflows");
}

#[test]
fn rows_hold_whole_blocks() {
    for &ty in GgmlType::ALL.iter().filter(|t| t.is_quantized()) {
        let block = ty.block_size() as u64;
        accept(with_tensor(tensor("w", &[block, 2], ty.id(), 0)));
        for n in [1, block - 1, block + 1] {
            let bad = tensor("w", &[n, block], ty.id(), 0);
            assert_rejects(with_tensor(bad), "not a multiple of the block");
        }
    }
}

#[test]
fn unknown_types() {
    for id in (0..64).chain([255, 1 << 31, u32::MAX]) {
        if GgmlType::from_id(id).is_none() {
            let bytes = with_tensor(tensor("w", &[256], id, 0));
            assert_rejects(bytes, &format!("tensor \"w\" has type {id}"));
        }
    }
    assert_rejects(with_tensor(tensor("w", &[256], 31, 0)), "31 (Q4_0_4_4)");
}

#[test]
fn bad_offsets() {
    for offset in [1, 16, 31, 33] {
        let bytes = with_tensor(tensor("w", &[1], 0, offset));
        assert_rejects(bytes, "not a multiple of the alignment 32");
    }
    let beyond = with_tensor(tensor("w", &[1], 0, 4096));
    assert_rejects(beyond, "the data of tensor \"w\" is cut off");
    accept(with_tensor(tensor("w", &[8], 0, 4064)));
    assert_rejects(with_tensor(tensor("w", &[9], 0, 4064)), "the file has 4160 bytes, expected 4164");
    for offset in [u64::MAX - 31, u64::MAX - 95] {
        assert_rejects(with_tensor(tensor("w", &[64], 0, offset)), "overflows");
    }
    assert_rejects(with_tensor(tensor("w", &[8], 0, 1 << 63)), "truncated");
    assert_rejects(with_tensor(tensor("w", &[1 << 40], 0, 0)), "truncated");
}

#[test]
fn overlaps() {
    let pair = |a: u64, b: u64| {
        let tensors = [tensor("a", &[16], 0, a), tensor("b", &[16], 0, b)];
        file(&[], &tensors, 512)
    };
    accept(pair(0, 64));
    accept(pair(64, 0));
    // A gap is no harm.
    accept(pair(0, 256));
    assert_rejects(pair(0, 0), "overlaps tensor");
    assert_rejects(pair(0, 32), "\"b\": its data at offset 32 overlaps tensor \"a\"");
    assert_rejects(pair(32, 0), "\"a\": its data at offset 32 overlaps tensor \"b\"");
}

#[test]
fn padding_at_the_end_is_optional() {
    let one = || file(&[], &[tensor("w", &[1], 0, 0)], 0);
    let exact = [one(), vec![1, 2, 3, 4]].concat();
    for extra in [0, 1, 28, 100_000] {
        let mut bytes = exact.clone();
        bytes.resize(bytes.len() + extra, 0xee);
        let gguf = accept(bytes);
        let w = gguf.tensor("w").unwrap();
        assert_eq!(gguf.tensor_data(w), [1, 2, 3, 4]);
    }
}

// ---- Files -----------------------------------------------------------------------------------------------

const MAPPED: OpenOptions = OpenOptions { mmap: true, mlock: false };
const READ: OpenOptions = OpenOptions { mmap: false, mlock: false };

#[test]
fn not_files() {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().join("empty.gguf");
    fs::write(&empty, b"").unwrap();
    let absent = dir.path().join("absent.gguf");
    for options in [MAPPED, READ] {
        let cases: [(&Path, &str); 3] =
            [(dir.path(), "is a directory"), (&empty, "the file is empty"), (&absent, "cannot open")];
        for (path, text) in cases {
            let error = Gguf::open(path, options).unwrap_err();
            assert_message(&error, path.to_str().unwrap(), text);
        }
    }
    #[cfg(unix)]
    {
        let error = Gguf::open(Path::new("/dev/null"), MAPPED).unwrap_err();
        assert_message(&error, "/dev/null", "a pipe or a device");
    }
}

/// A valid file with metadata of every type and three tensors.
fn sample_bytes() -> Vec<u8> {
    // Cut to any width it is a number, and its bytes are booleans too.
    let value = [1u8, 0, 0, 0, 1, 0, 0, 0];
    let widths = [1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8];
    let mut entries = Vec::new();
    for (ty, width) in (0..).zip(widths).filter(|&(_, width)| width > 0) {
        entries.push(entry(&format!("scalar.{ty}"), ty, &value[..width]));
        let two = array(ty, 2, &[value, value].concat()[..2 * width]);
        entries.push(entry(&format!("array.{ty}"), T_ARRAY, &two));
    }
    let text = length_prefixed("naïve \u{1F980}\n".as_bytes());
    entries.push(entry("text", T_STRING, &text));
    let texts = array(T_STRING, 2, &[text, length_prefixed(b"")].concat());
    entries.push(entry("texts", T_ARRAY, &texts));
    entries.push(entry("general.alignment", T_U32, &32u32.to_le_bytes()));
    let tensors = [
        tensor("a", &[3], GgmlType::F32.id(), 0),
        tensor("b", &[32, 2], GgmlType::Q8_0.id(), 32),
        tensor("c", &[1, 2, 3, 4], GgmlType::I8.id(), 128),
    ];
    file(&entries, &tensors, 160)
}

#[test]
fn truncated_at_every_byte() {
    let bytes = sample_bytes();
    let end = {
        let gguf = accept(bytes.clone());
        let last = gguf.tensor("c").unwrap();
        (gguf.tensor_offset(last) + last.nbytes) as usize
    };
    for len in 1..end {
        let error = Gguf::from_bytes(bytes[..len].to_vec(), LABEL).unwrap_err();
        let kind = matches!(
            error,
            GgufError::Truncated { .. } | GgufError::TruncatedList { .. } | GgufError::TruncatedData { .. }
        );
        assert!(kind, "{len} of {end} bytes: {error}");
        assert_message(&error, LABEL, "");
    }
    accept(bytes[..end].to_vec());
}

#[test]
fn truncated_files_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("short.gguf");
    let bytes = sample_bytes();
    // Around the page size too, where a map ends.
    for len in [1, 4, 100, bytes.len() / 2, bytes.len() - 40] {
        fs::write(&path, &bytes[..len]).unwrap();
        for options in [MAPPED, READ] {
            let error = Gguf::open(&path, options).unwrap_err();
            assert_message(&error, path.to_str().unwrap(), "");
        }
    }
}

#[test]
fn every_single_byte_changed() {
    let bytes = sample_bytes();
    for i in 0..bytes.len() {
        for value in [0, 1, 0x7f, 0x80, 0xff, bytes[i] ^ 1] {
            let mut changed = bytes.clone();
            changed[i] = value;
            touch(changed);
        }
    }
}

/// Reads all of a file that may be anything: an error is one line, and what is accepted is consistent.
fn touch(bytes: Vec<u8>) {
    let len = bytes.len();
    match Gguf::from_bytes(bytes, LABEL) {
        Err(error) => assert_message(&error, LABEL, ""),
        Ok(gguf) => {
            for (key, value) in gguf.metadata() {
                assert_eq!(gguf.get(key).map(|v| v.type_name()), Some(value.type_name()));
                assert!(!value.to_string().contains('\n'));
            }
            let mut total = 0;
            for t in gguf.tensors() {
                assert_eq!(gguf.tensor(&t.name), Some(t));
                let data = gguf.tensor_data(t);
                assert_eq!(data.len() as u64, t.nbytes);
                assert_eq!(data.as_ptr() as usize % 8, 0);
                total += data.len();
            }
            assert!(total <= len);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn mutated_files_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = sample_bytes();
        for (at, value) in changes {
            let i = at.index(bytes.len());
            bytes[i] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        touch(bytes);
    }

    #[test]
    fn wild_words_never_panic(
        at in any::<prop::sample::Index>(),
        word in prop_oneof![any::<u64>(), (0u32..64).prop_map(|s| 1 << s), Just(u64::MAX)],
    ) {
        let mut bytes = sample_bytes();
        let i = at.index(bytes.len() - 8);
        bytes[i..i + 8].copy_from_slice(&word.to_le_bytes());
        touch(bytes);
    }

    #[test]
    fn noise_never_panics(noise in prop::collection::vec(any::<u8>(), 0..400), counts in any::<[u8; 2]>()) {
        touch(noise.clone());
        touch([header(3, counts[0].into(), counts[1].into()), noise].concat());
    }
}
