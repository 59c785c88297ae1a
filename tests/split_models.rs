//! Models that lie in several files: opened by the first part, they are the model that one file holds, and what does not belong
//! together is refused in one line.

mod support;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use spts::gguf::{GgmlType, Gguf, OpenOptions};
use spts::method::spts::sidecar::fingerprint;
use support::gguf::{File, Value};
use support::scene::Scene;
use support::tiny::Tiny;

const MODES: [OpenOptions; 2] = [OpenOptions { mmap: true, mlock: false }, OpenOptions { mmap: false, mlock: false }];

fn name(part: usize, count: usize) -> String {
    format!("model-{part:05}-of-{count:05}.gguf")
}

/// The parts of a model as gguf-split makes them: `n_tensors` of them in each, none in the first if `empty_first`.
fn parts(whole: &File, n_tensors: usize, empty_first: bool) -> Vec<File> {
    let mut lists: Vec<&[_]> = whole.tensors.chunks(n_tensors).collect();
    if empty_first {
        lists.insert(0, &[]);
    }
    let count = lists.len();
    let part = |(no, tensors): (usize, &&[_])| {
        let mut part = File { tensors: tensors.to_vec(), ..File::default() };
        if no == 0 {
            part.metadata = whole.metadata.clone();
        }
        part.set("split.no", Value::U16(no as u16));
        part.set("split.count", Value::U16(count as u16));
        part.set("split.tensors.count", Value::I32(whole.tensors.len() as i32));
        part
    };
    lists.iter().enumerate().map(part).collect()
}

/// A folder with the tiny Llama as `tiny.gguf`, and its parts beside it.
struct Split {
    scene: Scene,
    parts: Vec<File>,
}

impl Split {
    fn new() -> Split {
        let parts = parts(&Tiny::named("llama").build(), 20, false);
        assert!(parts.len() >= 3);
        let split = Split { scene: Scene::new(), parts };
        (1..=split.count()).for_each(|part| split.write(part));
        split
    }

    fn count(&self) -> usize {
        self.parts.len()
    }

    fn path(&self, part: usize) -> PathBuf {
        self.scene.path(&name(part, self.count()))
    }

    fn write(&self, part: usize) {
        self.parts[part - 1].write(&self.path(part));
    }

    /// Writes a part with something changed, and says what is wrong with the whole then.
    #[track_caller]
    fn refusal(&self, part: usize, change: impl Fn(&mut File)) -> String {
        let mut changed = self.parts[part - 1].clone();
        change(&mut changed);
        changed.write(&self.path(part));
        let message = self.error(1);
        self.write(part);
        message
    }

    /// What is said if it is opened by this part. The command line says the same, in one line.
    #[track_caller]
    fn error(&self, part: usize) -> String {
        let messages = MODES.map(|mode| match Gguf::open(&self.path(part), mode) {
            Ok(gguf) => panic!("accepted {gguf:?}"),
            Err(e) => e.to_string(),
        });
        assert_eq!(messages[0], messages[1]);
        let said = self.scene.bad(1, &["info", self.path(part).to_str().unwrap()]);
        assert_eq!(said.trim_end(), format!("spts-cli: error: {}", messages[0]));
        messages[0].clone()
    }
}

fn set(file: &mut File, key: &str, value: impl Into<Value>) {
    file.metadata.retain(|(k, _)| k != key);
    file.set(key, value);
}

#[test]
fn the_parts_are_one_model() {
    let whole = Tiny::named("llama").build();
    let dir = tempfile::tempdir().unwrap();
    whole.write(&dir.path().join("whole.gguf"));
    let one = Gguf::open(&dir.path().join("whole.gguf"), OpenOptions::default()).unwrap();
    for (n_tensors, empty_first) in [(1, false), (7, false), (7, true), (1000, true)] {
        let parts = parts(&whole, n_tensors, empty_first);
        let path = |part: usize| dir.path().join(name(part, parts.len()));
        parts.iter().enumerate().for_each(|(i, part)| part.write(&path(i + 1)));
        for mode in MODES {
            let gguf = Gguf::open(&path(1), mode).unwrap();
            assert_eq!(gguf.paths().collect::<Vec<_>>(), (1..=parts.len()).map(path).collect::<Vec<_>>());
            assert_eq!(gguf.n_bytes(), gguf.paths().map(|p| fs::metadata(p).unwrap().len()).sum::<u64>());
            assert_eq!(gguf.is_mapped(), mode.mmap);
            gguf.prefetch();
            assert_eq!(gguf.tensors().len(), one.tensors().len());
            for (a, b) in gguf.tensors().zip(one.tensors()) {
                assert_eq!((&a.name, &a.shape, a.ty), (&b.name, &b.shape, b.ty));
                assert_eq!(gguf.tensor_data(a), one.tensor_data(b), "{}", a.name);
                assert_eq!(gguf.tensor(&a.name), Some(a));
                gguf.release(a, 0..a.nbytes as usize);
                assert_eq!(gguf.tensor_data(a), one.tensor_data(b), "{} once more", a.name);
            }
            assert_eq!(gguf.str("general.architecture").unwrap(), Some("llama"));
            assert_eq!(fingerprint(&gguf), fingerprint(&one));
        }
    }
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    let split = Split::new();
    let n = split.count();
    let (first, second) = (split.path(1).display().to_string(), split.path(2).display().to_string());
    let second_is = |message: &str, what: &str| {
        assert!(message.starts_with(&format!("{second}: ")) && message.contains(what), "{message}");
    };
    // Opened by another part.
    let message = split.error(2);
    second_is(&message, &format!("is part 2 of {n} of a split model; give the first one, {}", name(1, n)));
    // Missing.
    fs::remove_file(split.path(2)).unwrap();
    second_is(&split.error(1), "is missing: it is part 2 of the model that begins in");
    split.write(2);
    // Another model's, or another split of this one.
    let message = split.refusal(2, |part| set(part, "split.count", Value::U16(9)));
    second_is(&message, &format!("is not part 2 of {}: split.count is 9, expected {n}", name(1, n)));
    let message = split.refusal(2, |part| set(part, "split.no", Value::U16(2)));
    second_is(&message, "split.no is 2, expected 1");
    let message = split.refusal(2, |part| set(part, "general.architecture", "qwen2"));
    second_is(&message, "is a part of another model than");
    let message = split.refusal(2, |part| set(part, "split.tensors.count", Value::I32(5)));
    second_is(&message, "\"split.tensors.count\" is 5, there 48");
    let message = split.refusal(2, |part| part.metadata.clear());
    second_is(&message, "metadata \"split.count\" is missing");
    // Tensors too many, too few.
    let message = split.refusal(2, |part| part.tensors.push(split.parts[0].tensors[3].clone()));
    second_is(&message, &format!("duplicate name, also in {}", name(1, n)));
    let total = split.parts.iter().map(|p| p.tensors.len()).sum::<usize>();
    let message = split.refusal(2, |part| drop(part.tensors.pop()));
    assert!(message.starts_with(&format!("{first}: its {n} parts hold {} tensors, expected {total}", total - 1)));
    // A part that is broken, or no file at all.
    fs::write(split.path(2), b"GGUF").unwrap();
    second_is(&split.error(1), "truncated");
    fs::remove_file(split.path(2)).unwrap();
    fs::create_dir(split.path(2)).unwrap();
    second_is(&split.error(1), "is a directory");
}

#[test]
fn the_first_part_has_to_say_where_the_others_are() {
    let split = Split::new();
    let n = split.count();
    for (wrong, what) in [
        ("model.gguf".to_owned(), format!("expected NAME-00001-of-{n:05}.gguf")),
        (name(1, n + 1), format!("expected NAME-00001-of-{n:05}.gguf")),
        (name(2, n), format!("expected NAME-00001-of-{n:05}.gguf")),
    ] {
        let path = split.scene.path(&wrong);
        fs::copy(split.path(1), &path).unwrap();
        let message = Gguf::open(&path, MODES[0]).unwrap_err().to_string();
        assert!(message.contains(&what) && message.contains(&wrong), "{message}");
        split.write(2);
    }
    // Without a path there is nothing beside it.
    let bytes = split.parts[0].to_bytes();
    let message = Gguf::from_bytes(bytes, "bytes").unwrap_err().to_string();
    assert!(message.contains(&format!("split into {n} files; open the first of them by its path")), "{message}");
    let file = fs::File::open(split.path(1)).unwrap();
    let message = Gguf::from_file(file, &name(1, n), MODES[0]).unwrap_err().to_string();
    assert!(message.starts_with(&name(1, n)), "{message}");
    assert!(message.contains(&format!("split into {n} files; open the first of them by its path")), "{message}");
    // A name alone is not enough.
    let message = split.refusal(1, |part| part.metadata.retain(|(k, _)| !k.starts_with("split.")));
    assert!(message.contains("metadata \"split.no\" is missing"), "{message}");
}

#[test]
fn commands_read_a_split_model_as_one() {
    let Split { scene, parts } = Split::new();
    let first = name(1, parts.len());
    let run = |model: &str, flags: &[&str]| {
        let base = ["-m", model, "-p", "the rain in", "-n", "8", "--ignore-eos", "--device", "none"];
        scene.good(&[&base, flags].concat())
    };
    for flags in [&[][..], &["--no-mmap"], &["--no-repack"]] {
        assert_eq!(run(&first, flags), run("tiny.gguf", flags), "{flags:?}");
    }
    let (split, whole) = (scene.json(&["info", &first, "--json"]), scene.json(&["info", "tiny.gguf", "--json"]));
    assert_eq!(split["parts"].as_array().unwrap().len(), parts.len());
    assert_eq!(split["tensors"][30]["name"], whole["tensors"][30]["name"]);
    assert_eq!((&split["tensors"][30]["part"], &whole["tensors"][30]["part"]), (&1.into(), &0.into()));
    assert_eq!(split["types"], whole["types"]);
    assert!(scene.good(&["info", &first]).contains(&format!(" in {} files\n", parts.len())));
    let plan = |model: &str| scene.json(&["plan", "-m", model, "-n", "500", "--json"]);
    assert_eq!(plan(&first)["layers"], plan("tiny.gguf")["layers"]);
    let tokens = |model: &str| scene.good(&["tokenize", "-m", model, "-p", "the rain", "--ids"]);
    assert_eq!(tokens(&first), tokens("tiny.gguf"));

    // One file comes of it, which needs no others.
    let quantize = |model: &str, to: &str| scene.good(&["quantize", "-m", model, "-o", to, "--type", "f16"]);
    quantize(&first, "a.gguf");
    quantize("tiny.gguf", "b.gguf");
    let read = |name: &str| fs::read(scene.path(name)).unwrap();
    assert_eq!(read("a.gguf"), read("b.gguf"));
    // No part is written over.
    let second = name(2, parts.len());
    let message = scene.bad(1, &["quantize", "-m", &first, "-o", &second, "--type", "f16"]);
    assert!(message.contains("is the same file as"), "{message}");
    let dump = ["-m", &first, "-p", "the", "-n", "1", "--dump-selection", &second];
    assert!(scene.bad(1, &dump).contains("is the same file as"));
    assert_eq!(File::read(&scene.path(&second)), parts[1]);
}

#[test]
fn a_part_may_be_larger_than_32_bits_tell() {
    const LARGE: u64 = 5 << 30;
    let put = |s: &str| [&(s.len() as u64).to_le_bytes()[..], s.as_bytes()].concat();
    let entry = |key: &str, value: u64| [put(key), 10u32.to_le_bytes().to_vec(), value.to_le_bytes().to_vec()].concat();
    let tensor = |name: &str, n: u64, offset: u64| {
        let ty = GgmlType::I8.id();
        [
            put(name),
            1u32.to_le_bytes().to_vec(),
            n.to_le_bytes().to_vec(),
            ty.to_le_bytes().to_vec(),
            offset.to_le_bytes().to_vec(),
        ]
        .concat()
    };
    let dir = tempfile::tempdir().unwrap();
    for no in 0..2 {
        let keys = [entry("split.no", no), entry("split.count", 2), entry("split.tensors.count", 4)].concat();
        let tensors = [tensor(&format!("large.{no}"), LARGE, 0), tensor(&format!("small.{no}"), 3, LARGE)].concat();
        let head = [&b"GGUF"[..], &3u32.to_le_bytes(), &2u64.to_le_bytes(), &3u64.to_le_bytes(), &keys, &tensors];
        let head = head.concat();
        let data = (head.len() as u64).next_multiple_of(32);
        // Sparse: the disk holds its ends alone.
        let file = fs::File::create(dir.path().join(name(no as usize + 1, 2))).unwrap();
        file.write_all_at(&head, 0).unwrap();
        file.write_all_at(&[9], data + LARGE - 1).unwrap();
        file.write_all_at(&[1, 2, no as u8], data + LARGE).unwrap();
    }
    let gguf = Gguf::open(&dir.path().join(name(1, 2)), OpenOptions::default()).unwrap();
    assert!(gguf.n_bytes() > 2 * LARGE);
    for no in 0..2u8 {
        let large = gguf.tensor_data(gguf.tensor(&format!("large.{no}")).unwrap());
        assert_eq!((large.len() as u64, large[large.len() - 1]), (LARGE, 9));
        assert_eq!(gguf.tensor_data(gguf.tensor(&format!("small.{no}")).unwrap()), [1, 2, no]);
    }
}
