//! Character classes of the pre-tokenizers (`\p{L}`, `\p{N}`, `\s` ...) as one table look-up per
//! character.
//!
//! The general categories come from the tables of the `regex-syntax` crate (the Unicode version is
//! the crate's), so no data file of our own can go stale.

use std::sync::OnceLock;

/// `\p{L}`
pub(super) const LETTER: u8 = 1;
/// `\p{N}`
pub(super) const NUMBER: u8 = 2;
/// `\s` (White_Space)
pub(super) const SPACE: u8 = 4;
/// `\p{P}`
pub(super) const PUNCT: u8 = 8;
/// `\p{S}`
pub(super) const SYMBOL: u8 = 16;
/// `\p{M}`
pub(super) const MARK: u8 = 32;

/// One class byte per code point.
pub(super) struct Classes(Box<[u8]>);

impl Classes {
    /// The table of this process, built on first use (about a millisecond).
    pub(super) fn get() -> &'static Classes {
        static TABLE: OnceLock<Classes> = OnceLock::new();
        TABLE.get_or_init(Classes::build)
    }

    fn build() -> Classes {
        let mut table = vec![0u8; char::MAX as usize + 1].into_boxed_slice();
        let wanted = [
            (r"\p{L}", LETTER),
            (r"\p{N}", NUMBER),
            (r"\s", SPACE),
            (r"\p{P}", PUNCT),
            (r"\p{S}", SYMBOL),
            (r"\p{M}", MARK),
        ];
        for (pattern, bit) in wanted {
            // A class that failed to parse would stay empty; the unit test below proves that
            // none does.
            let Ok(hir) = regex_syntax::parse(pattern) else {
                continue;
            };
            if let regex_syntax::hir::HirKind::Class(regex_syntax::hir::Class::Unicode(class)) = hir.kind() {
                for range in class.ranges() {
                    for c in &mut table[range.start() as usize..=range.end() as usize] {
                        *c |= bit;
                    }
                }
            }
        }
        Classes(table)
    }

    /// Classes of `c`; 0 for characters in none of the six (controls, unassigned ...).
    #[inline]
    pub(super) fn of(&self, c: char) -> u8 {
        self.0[c as usize]
    }
}

/// The printable character by which a byte-level BPE vocabulary spells `byte` (GPT-2's table):
/// printable Latin-1 stands for itself, the other 68 bytes follow each other from U+0100.
pub(crate) fn byte_to_char(byte: u8) -> char {
    let shifted = match byte {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => return byte as char,
        0..=0x20 => u32::from(byte),
        0x7f..=0xa0 => u32::from(byte) - 0x7f + 33,
        0xad => 67,
    };
    char::from_u32(256 + shifted).unwrap_or('\u{fffd}')
}

/// Inverse of [`byte_to_char`]; `None` for characters that spell no byte.
pub(super) fn char_to_byte(c: char) -> Option<u8> {
    match c as u32 {
        n @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => u8::try_from(n).ok(),
        n @ 0x100..=0x120 => u8::try_from(n - 0x100).ok(),
        n @ 0x121..=0x142 => u8::try_from(n - 0x121 + 0x7f).ok(),
        0x143 => Some(0xad),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_of_known_characters() {
        let t = Classes::get();
        for (c, want) in [
            ('a', LETTER),
            ('語', LETTER),
            ('7', NUMBER),
            ('²', NUMBER),
            (' ', SPACE),
            ('\u{3000}', SPACE),
            ('\u{85}', SPACE),
            ('!', PUNCT),
            ('+', SYMBOL),
            ('😀', SYMBOL),
            ('\u{301}', MARK),
            ('\u{200b}', 0),
            ('\u{1c}', 0),
        ] {
            assert_eq!(t.of(c), want, "{c:?}");
        }
    }

    #[test]
    fn byte_spelling_is_a_bijection() {
        let mut seen = std::collections::HashSet::new();
        for b in 0..=255u8 {
            let c = byte_to_char(b);
            assert_eq!(char_to_byte(c), Some(b));
            assert!(seen.insert(c));
        }
        assert_eq!(byte_to_char(b' '), 'Ġ');
        assert_eq!(byte_to_char(b'\n'), 'Ċ');
        assert_eq!(char_to_byte('▁'), None);
    }
}
