//! Reading one field after the other without ever leaving the file.

use std::fmt;

use super::GgufError;
use super::value::shorten;

/// What is being read, for messages; formatted only when something is wrong.
#[derive(Clone, Copy)]
pub(super) enum What<'a> {
    Header(&'static str),
    Key(u64),
    Value(&'a str),
    Element(&'a str, u64),
    Tensor(u64),
    TensorField(&'a str, &'static str),
}

impl fmt::Display for What<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            What::Header(field) => write!(f, "{field}"),
            What::Key(i) => write!(f, "the key of metadata entry {i}"),
            What::Value(key) => write!(f, "the value of {}", shorten(key)),
            What::Element(key, i) => write!(f, "element {i} of {}", shorten(key)),
            What::Tensor(i) => write!(f, "the name of tensor {i}"),
            What::TensorField(name, field) => write!(f, "the {field} of tensor {}", shorten(name)),
        }
    }
}

/// A position in the file that only moves forward over bytes that exist.
pub(super) struct Cursor<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) pos: usize,
    pub(super) file: &'a str,
}

impl<'a> Cursor<'a> {
    /// Bytes between the position and the end of the file.
    pub(super) fn remaining(&self) -> u64 {
        (self.bytes.len() - self.pos) as u64
    }

    /// The next `need` bytes.
    pub(super) fn take(&mut self, need: u64, what: What<'_>) -> Result<&'a [u8], GgufError> {
        let have = self.remaining();
        if need > have {
            return Err(GgufError::Truncated {
                file: self.file.into(),
                what: what.to_string(),
                offset: self.pos as u64,
                need,
                have,
            });
        }
        let start = self.pos;
        // No overflow and no truncation: `need` is at most what is left of a slice.
        self.pos += need as usize;
        Ok(&self.bytes[start..self.pos])
    }

    pub(super) fn array<const N: usize>(&mut self, what: What<'_>) -> Result<[u8; N], GgufError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64, what)?);
        Ok(out)
    }

    pub(super) fn u32(&mut self, what: What<'_>) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u64(&mut self, what: What<'_>) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A count of things that take at least `min_bytes` each and of which there are never more than `limit`.
    pub(super) fn count(&mut self, what: What<'_>, things: &str, min_bytes: u64, limit: u64) -> Result<u64, GgufError> {
        let count = self.u64(what)?;
        self.check_count(count, &format!("{things} of {what}"), min_bytes, limit)?;
        Ok(count)
    }

    /// Whether `count` things can be: no more than `limit` of them, for which there are bytes enough.
    pub(super) fn check_count(&self, count: u64, things: &str, min_bytes: u64, limit: u64) -> Result<(), GgufError> {
        let file = || self.file.to_owned();
        if count > limit {
            return Err(GgufError::TooLarge {
                file: file(),
                what: format!("the number of {things}"),
                found: count,
                limit,
            });
        }
        // No overflow: both factors are small.
        let (need, have) = (count * min_bytes, self.remaining());
        if need > have {
            let offset = self.pos as u64;
            return Err(GgufError::TruncatedList { file: file(), what: things.into(), count, offset, need, have });
        }
        Ok(())
    }

    /// A string of at most `limit` bytes.
    pub(super) fn string(&mut self, what: What<'_>, limit: u64) -> Result<&'a str, GgufError> {
        let len = self.u64(what)?;
        if len > limit {
            return Err(GgufError::TooLarge {
                file: self.file.into(),
                what: format!("the string length of {what}"),
                found: len,
                limit,
            });
        }
        let bytes = self.take(len, what)?;
        std::str::from_utf8(bytes).map_err(|e| GgufError::BadKey {
            file: self.file.into(),
            key: what.to_string(),
            problem: format!("invalid UTF-8 at byte {} of the string", e.valid_up_to()),
        })
    }
}
