//! The bytes of a model file: mapped, or read into memory. The only unsafe code of this module.

#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read};
use std::ops::Deref;

use memmap2::{Mmap, MmapMut};

/// Read-only bytes that start on a page boundary, so that a tensor at an aligned offset is aligned in memory.
///
/// Both kinds are memory maps: the copy in memory is an anonymous one, because a `Vec<u8>` would promise
/// no alignment at all.
pub struct Map {
    bytes: Mmap,
    is_file: bool,
}

impl Map {
    /// Maps `file` as it is on disk. Costs no memory until it is read.
    pub fn of_file(file: &File) -> io::Result<Map> {
        // SAFETY: `file` is open for reading, and the map stays valid after it is closed. What remains is the
        // usual condition of file maps, which no API can check: nobody may change or truncate the file
        // while the model is loaded. The writer of this crate replaces files by rename, which leaves the mapped
        // one intact. Everything that is parsed (counts, lengths, names) is copied out once, then checked, so a
        // later change can alter weights, but never a bound.
        let bytes = unsafe { Mmap::map(file)? };
        Ok(Map { bytes, is_file: true })
    }

    /// Reads `len` bytes of `file` into memory.
    pub fn read_file(file: &mut File, len: usize) -> io::Result<Map> {
        let mut bytes = MmapMut::map_anon(len)?;
        // Only a hint.
        #[cfg(target_os = "linux")]
        let _ = bytes.advise(memmap2::Advice::HugePage);
        file.read_exact(&mut bytes)?;
        Ok(Map { bytes: bytes.make_read_only()?, is_file: false })
    }

    /// Copies `source` (not empty) into memory of its own.
    pub fn copy_of(source: &[u8]) -> io::Result<Map> {
        let mut bytes = MmapMut::map_anon(source.len())?;
        bytes.copy_from_slice(source);
        Ok(Map { bytes: bytes.make_read_only()?, is_file: false })
    }

    /// Whether these bytes are a file's pages, not a copy.
    pub fn is_file(&self) -> bool {
        self.is_file
    }

    /// Keeps all pages in memory (`mlock`).
    pub fn lock(&self) -> io::Result<()> {
        #[cfg(unix)]
        return self.bytes.lock();
        #[cfg(not(unix))]
        return Err(io::ErrorKind::Unsupported.into());
    }

    /// Lets go of the pages of a range whose contents have been copied elsewhere; they are read again if they are needed after
    /// all. Only a hint. Whole pages within the range; a copy in memory is left alone.
    pub fn release(&self, range: std::ops::Range<usize>) {
        #[cfg(unix)]
        if self.is_file {
            const PAGE: usize = 4096;
            let start = range.start.next_multiple_of(PAGE);
            let end = range.end / PAGE * PAGE;
            if start < end && end <= self.bytes.len() {
                // SAFETY: the map is a read-only view of a file: a dropped page comes back with the same contents.
                let _ = unsafe {
                    self.bytes.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start)
                };
            }
        }
    }

    /// Asks the kernel to start reading the file. Only a hint: a refusal changes nothing but speed.
    pub fn prefetch(&self) {
        #[cfg(unix)]
        if self.is_file {
            let _ = self.bytes.advise(memmap2::Advice::WillNeed);
        }
    }
}

impl AsRef<[u8]> for Map {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}
