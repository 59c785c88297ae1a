//! The names of the files that a split model lies in: `NAME-00001-of-00003.gguf` and so on, counted from 1.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// What comes behind the numbers.
const SUFFIX: &str = ".gguf";
/// Between the part's number and how many there are.
const OF: &str = "-of-";
/// Digits of each number.
const DIGITS: usize = 5;

/// A part's name, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SplitName {
    /// The path up to the dash before the part's number.
    prefix: String,
    /// Number of the part, from 1.
    pub part: u64,
    /// Number of parts.
    pub count: u64,
}

impl SplitName {
    /// `None` if `path` is not named like a part.
    pub fn of(path: &Path) -> Option<SplitName> {
        let name = path.file_name()?.to_str()?.strip_suffix(SUFFIX)?;
        let (rest, count) = name.rsplit_once(OF)?;
        let (prefix, part) = rest.rsplit_once('-')?;
        let number = |s: &str| {
            let is_number = s.len() == DIGITS && s.bytes().all(|b| b.is_ascii_digit());
            is_number.then(|| s.parse().ok()).flatten()
        };
        Some(SplitName { prefix: prefix.to_owned(), part: number(part)?, count: number(count)? })
    }

    /// The path of a part, from 1, beside `path`, which is that of another one.
    pub fn beside(&self, path: &Path, part: u64) -> PathBuf {
        let SplitName { prefix, count, .. } = self;
        path.with_file_name(format!("{prefix}-{part:0DIGITS$}{OF}{count:0DIGITS$}{SUFFIX}"))
    }
}

/// All the files that a model lies in if `path` is one of them; `path` alone if it is not named like a part.
pub(crate) fn all_parts(path: &Path) -> Vec<PathBuf> {
    match SplitName::of(path) {
        Some(name) => (1..=name.count).map(|part| name.beside(path, part)).collect(),
        None => vec![path.to_owned()],
    }
}

/// A path's last part, for messages.
pub(crate) fn file_name(path: &Path) -> String {
    path.file_name().map(OsStr::to_string_lossy).unwrap_or_default().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_parts() {
        let of = |name: &str| SplitName::of(Path::new(name)).map(|n| (n.part, n.count));
        assert_eq!(of("dir/m-00002-of-00003.gguf"), Some((2, 3)));
        assert_eq!(of("m-00001-of-00001.gguf"), Some((1, 1)));
        for other in ["m-of-00003.gguf", "m-1-of-3.gguf", "m-0000x-of-00003.gguf", "m-00001-of-00003.bin", "", "x"] {
            assert_eq!(of(other), None, "{other}");
        }
        // A file that belongs to a part is none.
        assert_eq!(of("m-00001-of-00003.spts.gguf"), None);
    }

    #[test]
    fn parts_stand_beside_each_other() {
        let all = all_parts(Path::new("dir/a-b-00002-of-00003.gguf"));
        let expected = ["dir/a-b-00001-of-00003.gguf", "dir/a-b-00002-of-00003.gguf", "dir/a-b-00003-of-00003.gguf"];
        assert_eq!(all, expected.map(PathBuf::from));
        assert_eq!(all_parts(Path::new("dir/m.gguf")), [PathBuf::from("dir/m.gguf")]);
        assert_eq!(file_name(&all[0]), "a-b-00001-of-00003.gguf");
    }
}
