//! The writer on its own, and read back.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use super::super::{Array, GgmlType, Gguf, GgufError, GgufWriter, OpenOptions, TensorDecl, Value};

/// Name of the files made here in messages.
const LABEL: &str = "test.gguf";

const MAPPED: OpenOptions = OpenOptions { mmap: true, mlock: false };
const READ: OpenOptions = OpenOptions { mmap: false, mlock: false };

#[track_caller]
fn assert_message(error: &GgufError, file: &str, text: &str) {
    let message = error.to_string();
    assert!(message.contains(text), "{message:?} lacks {text:?}");
    assert!(message.starts_with(file), "{message:?} does not name {file}");
    assert!(!message.contains('\n'), "{message:?}");
}

#[track_caller]
fn accept(bytes: Vec<u8>) -> Gguf {
    Gguf::from_bytes(bytes, LABEL).unwrap_or_else(|e| panic!("{e}"))
}

/// Metadata of every type and tensors of three.
fn sample() -> GgufWriter<'static> {
    let mut w = GgufWriter::new();
    let values: Vec<(&str, Value)> = vec![
        ("u8", 1u8.into()),
        ("i8", (-1i8).into()),
        ("u16", 2u16.into()),
        ("i16", (-2i16).into()),
        ("u32", 3u32.into()),
        ("i32", (-3i32).into()),
        ("u64", u64::MAX.into()),
        ("i64", i64::MIN.into()),
        ("f32", 0.1f32.into()),
        ("f64", 0.1f64.into()),
        ("bool", true.into()),
        ("text", "naïve \u{1F980}\n".into()),
        ("empty", "".into()),
        ("u8s", vec![1u8, 2].into()),
        ("i8s", vec![-1i8, 2].into()),
        ("u16s", vec![1u16, 2].into()),
        ("i16s", vec![-1i16, 2].into()),
        ("u32s", vec![1u32, 2].into()),
        ("i32s", vec![-1i32, 2].into()),
        ("u64s", vec![1u64, 2].into()),
        ("i64s", vec![-1i64, 2].into()),
        ("f32s", vec![1.5f32, f32::MIN].into()),
        ("f64s", vec![1.5f64].into()),
        ("bools", vec![true, false].into()),
        ("texts", vec!["a".to_owned(), String::new()].into()),
        ("nothing", Vec::<String>::new().into()),
    ];
    for (key, value) in values {
        w.set(key, value).unwrap();
    }
    w.add_tensor_bytes("a", &[3], GgmlType::F32, (0..12).collect::<Vec<u8>>()).unwrap();
    w.add_tensor_bytes("b", &[32, 2], GgmlType::Q8_0, vec![7; 68]).unwrap();
    w.add_tensor_bytes("c", &[1, 2, 3, 4], GgmlType::I8, vec![9; 24]).unwrap();
    w
}

fn unused(_: &TensorDecl, _: &mut dyn Write) -> io::Result<()> {
    Err(io::Error::other("unused"))
}

fn sample_bytes() -> Vec<u8> {
    let mut bytes = Vec::new();
    sample().write_to(&mut bytes, LABEL, unused).unwrap();
    bytes
}

#[test]
fn metadata_round_trips() {
    let gguf = accept(sample_bytes());
    assert_eq!(gguf.metadata().len(), 26);
    assert_eq!(gguf.metadata()[0].0, "u8");
    assert_eq!(gguf.get("i64"), Some(&Value::I64(i64::MIN)));
    assert_eq!(gguf.get("f64"), Some(&Value::F64(0.1)));
    assert_eq!(gguf.str("text").unwrap(), Some("naïve \u{1F980}\n"));
    assert_eq!(gguf.f32_array("f32s").unwrap(), Some(&[1.5, f32::MIN][..]));
    assert_eq!(gguf.get("bools"), Some(&Value::Array(Array::Bool(vec![true, false]))));
    assert_eq!(gguf.str_array("texts").unwrap().unwrap().len(), 2);

    // Written again from what was read: the same bytes.
    let mut again = GgufWriter::new();
    for (key, value) in gguf.metadata() {
        again.set(key, value.clone()).unwrap();
    }
    for t in gguf.tensors() {
        again.add_tensor_bytes(&t.name, &t.shape, t.ty, gguf.tensor_data(t)).unwrap();
    }
    let mut bytes = Vec::new();
    again.write_to(&mut bytes, LABEL, unused).unwrap();
    assert_eq!(bytes, sample_bytes());
}

#[test]
fn every_type_round_trips() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("types.gguf");
    for alignment in [32u32, 8, 4096] {
        let mut w = GgufWriter::new();
        w.set_u32("general.alignment", alignment).unwrap();
        for &ty in GgmlType::ALL {
            let shape = [ty.block_size() as u64 * 3, 5, 2];
            w.declare_tensor(ty.name(), &shape, ty).unwrap();
        }
        // In pieces of an odd size, different for each tensor.
        w.write_with(&path, |decl, out| {
            let bytes = pattern(decl.ty, decl.nbytes);
            bytes.chunks(7).try_for_each(|c| out.write_all(c))
        })
        .unwrap();
        for options in [MAPPED, READ] {
            let gguf = Gguf::open(&path, options).unwrap();
            gguf.prefetch();
            assert_eq!(gguf.alignment(), u64::from(alignment));
            assert_eq!(gguf.tensors().len(), GgmlType::ALL.len());
            assert_eq!(gguf.is_mapped(), options.mmap);
            for &ty in GgmlType::ALL {
                let t = gguf.tensor(ty.name()).unwrap();
                assert_eq!((t.ty, t.n_elements()), (ty, ty.block_size() as u64 * 30));
                assert_eq!(t.nbytes, ty.type_size() as u64 * 30);
                assert_eq!((t.dim(1), t.dim(3)), (5, 1));
                assert_eq!(gguf.tensor_data(t), pattern(ty, t.nbytes));
                let address = gguf.tensor_data(t).as_ptr() as usize;
                assert_eq!(address % alignment as usize, 0);
            }
        }
    }
    assert_eq!(names_in(dir.path()), ["types.gguf"]);
}

fn pattern(ty: GgmlType, n: u64) -> Vec<u8> {
    (0..n).map(|i| (i as u8).wrapping_mul(31) ^ ty.id() as u8).collect()
}

fn names_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn locked_or_a_clear_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    sample().write(&path).unwrap();
    let options = OpenOptions { mmap: true, mlock: true };
    // Whether a page may be locked depends on the limits of the system.
    if let Err(error) = Gguf::open(&path, options) {
        assert_message(&error, path.to_str().unwrap(), "--mlock");
    }
}

#[test]
fn a_failed_write_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    fs::write(&path, b"what was there").unwrap();
    type Source = fn(&TensorDecl, &mut dyn Write) -> io::Result<()>;
    let cases: [(Source, &str); 6] = [
        (|_, out| out.write_all(&[0; 3]), "wrote 3 bytes, expected 4"),
        (|_, out| out.write_all(&[0; 9]), "wrote 9 bytes, expected 4"),
        (|_, _| Ok(()), "wrote 0 bytes, expected 4"),
        // Too much, and the error swallowed.
        (
            |_, out| {
                out.write_all(&[0; 4])?;
                let _ = out.write_all(&[0; 4]);
                Ok(())
            },
            "wrote 8 bytes, expected 4",
        ),
        (|_, _| Err(io::Error::other("no weights")), "tensor \"w\": no weights"),
        (|_, _| Err(io::ErrorKind::StorageFull.into()), "the disk is full: 96 bytes are needed"),
    ];
    for (source, text) in cases {
        let mut w = GgufWriter::new();
        w.declare_tensor("w", &[1], GgmlType::F32).unwrap();
        let error = w.write_with(&path, source).unwrap_err();
        assert_message(&error, path.to_str().unwrap(), text);
        assert_eq!(fs::read(&path).unwrap(), b"what was there");
        assert_eq!(names_in(dir.path()), ["m.gguf"]);
    }
    let mut w = GgufWriter::new();
    w.declare_tensor("w", &[1], GgmlType::F32).unwrap();
    let error = w.write(&path).unwrap_err();
    assert_message(&error, path.to_str().unwrap(), "without a source");

    let error = GgufWriter::new().write(dir.path()).unwrap_err();
    assert_message(&error, dir.path().to_str().unwrap(), "is a directory");
    let nowhere = dir.path().join("no/such/folder.gguf");
    let error = GgufWriter::new().write(&nowhere).unwrap_err();
    assert_message(&error, nowhere.to_str().unwrap(), "cannot create");
}

#[cfg(target_os = "linux")]
#[test]
fn full_disk() {
    // A device that is always full.
    let mut full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let error = sample().write_to(&mut full, "/dev/full", unused).unwrap_err();
    assert_message(&error, "/dev/full", "the disk is full");
}

#[test]
fn the_writer_refuses_what_the_reader_would() {
    let mut w = GgufWriter::new();
    let unwritable = [
        w.set_u32("", 1).unwrap_err(),
        w.set_u32(&"k".repeat(1 << 16), 1).unwrap_err(),
        w.set_u32("general.alignment", 33).unwrap_err(),
        w.set_u64("general.alignment", 32).unwrap_err(),
        w.declare_tensor("", &[1], GgmlType::F32).unwrap_err(),
        w.declare_tensor(&"n".repeat(64), &[1], GgmlType::F32).unwrap_err(),
        w.declare_tensor("w", &[], GgmlType::F32).unwrap_err(),
        w.declare_tensor("w", &[0], GgmlType::F32).unwrap_err(),
        w.declare_tensor("w", &[31], GgmlType::Q4_0).unwrap_err(),
        w.declare_tensor("w", &[1 << 62], GgmlType::F32).unwrap_err(),
    ];
    for error in &unwritable {
        assert!(matches!(error, GgufError::Unwritable { .. }), "{error}");
        assert_message(error, "new GGUF file", "cannot write");
    }
    w.declare_tensor("w", &[1], GgmlType::F32).unwrap();
    let twice = w.declare_tensor("w", &[1], GgmlType::F32).unwrap_err();
    assert_message(&twice, "new GGUF file", "duplicate name");
    let short = w.add_tensor_bytes("v", &[2], GgmlType::F32, vec![0; 4]);
    assert_message(&short.unwrap_err(), "new GGUF file", "wrote 4 bytes, expected 8");

    // A key set twice has its last value, in its first place.
    w.set_u32("a", 1).unwrap();
    w.set_bool("b", true).unwrap();
    w.set_str("a", "x").unwrap();
    let mut bytes = Vec::new();
    w.write_to(&mut bytes, LABEL, |_, out| out.write_all(&[0; 4])).unwrap();
    let gguf = accept(bytes);
    assert_eq!(gguf.metadata()[0], ("a".to_owned(), Value::from("x")));
}

#[test]
fn replacing_a_file_leaves_its_map_intact() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    sample().write(&path).unwrap();
    let old = Gguf::open(&path, MAPPED).unwrap();
    GgufWriter::new().write(&path).unwrap();
    assert_eq!(old.tensor_data(old.tensor("c").unwrap()), [9; 24]);
    assert_eq!(Gguf::open(&path, MAPPED).unwrap().tensors().len(), 0);
}
