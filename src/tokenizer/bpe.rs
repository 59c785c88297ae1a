//! BPE with ranked merges (Sennrich et al. 2016; byte level as in GPT-2).

use super::TokenizerError;
use super::merge::{Joints, Merge, Merger, NO_TOKEN, Symbol, WordCache};
use super::pretokenize::PreTokenizer;
use super::unicode::byte_to_char;
use super::vocab::{KEY_MERGES, Vocab};
use crate::gguf::Gguf;

/// Merge rules, and how words are cut and spelled.
pub(super) struct Bpe {
    pre: PreTokenizer,
    merges: Merges,
    /// Byte-level only: the token of each byte. A vocabulary may lack some; as in llama.cpp, such
    /// bytes give no token.
    bytes: [u32; 256],
    raw: Option<Raw>,
}

/// What raw UTF-8 BPE (Gemma 4) needs instead of the byte alphabet.
struct Raw {
    byte_tokens: [Option<u32>; 256],
    joints: Joints,
}

impl Bpe {
    /// Reads `tokenizer.ggml.merges`.
    ///
    /// # Errors
    /// No merges. Those that are not two tokens that make a third are left out.
    pub(super) fn from_gguf(gguf: &Gguf, pre: PreTokenizer, vocab: &Vocab) -> Result<Bpe, TokenizerError> {
        let rules = gguf.str_array(KEY_MERGES)?.ok_or(TokenizerError::MissingKey { key: KEY_MERGES })?;
        let mut merges = Merges::with_capacity(rules.len());
        for (rank, rule) in (0u32..).zip(rules.iter()) {
            // A rule that makes no token could only lead to text without one.
            if let Some((left, right, id)) = parse_merge(rule.as_bytes(), vocab) {
                merges.insert(left, right, Merge { rank, id });
            }
        }
        let mut buffer = [0; 4];
        let bytes = std::array::from_fn(|b| {
            let spelled = byte_to_char(b as u8).encode_utf8(&mut buffer);
            vocab.id(spelled.as_bytes()).unwrap_or(NO_TOKEN)
        });
        let raw = pre.raw_utf8.then(|| Raw {
            byte_tokens: vocab.byte_tokens(),
            joints: Joints::of_tokens((0..vocab.len() as u32).map(|id| vocab.text(id))),
        });
        Ok(Bpe { pre, merges, bytes, raw })
    }

    /// Appends the tokens of `text`, which holds no special tokens any more.
    pub(super) fn encode(&self, vocab: &Vocab, text: &str, out: &mut Vec<u32>) {
        let mut merger = Merger::default();
        match &self.raw {
            None => {
                let mut cache = WordCache::for_text(text.len());
                self.pre.split(text, &mut |word| {
                    cache.tokens(word.as_bytes(), out, |out| {
                        self.byte_word(vocab, word, &mut merger, out);
                    });
                });
            }
            Some(raw) => {
                let text = text.replace(' ', "▁");
                let mut cache = WordCache::for_text(text.len());
                self.pre.split(&text, &mut |line| {
                    // a run of newlines may be a token that no merge makes
                    if line.starts_with('\n')
                        && let Some(id) = vocab.id(line.as_bytes())
                    {
                        out.push(id);
                        return;
                    }
                    raw.joints.split(line, |part| {
                        cache.tokens(part.as_bytes(), out, |out| {
                            self.raw_word(vocab, raw, part, &mut merger, out);
                        });
                    });
                });
            }
        }
    }

    fn merge(&self, merger: &mut Merger) {
        merger.run(|l, r| self.merges.get(l.id, r.id));
    }

    fn byte_word(&self, vocab: &Vocab, word: &str, merger: &mut Merger, out: &mut Vec<u32>) {
        if self.pre.ignore_merges {
            let spelled: String = word.bytes().map(byte_to_char).collect();
            if let Some(id) = vocab.id(spelled.as_bytes()) {
                out.push(id);
                return;
            }
        }
        merger.symbols.clear();
        merger.symbols.extend((0u32..).zip(word.bytes()).map(|(i, b)| Symbol {
            start: i,
            end: i + 1,
            id: self.bytes[usize::from(b)],
        }));
        self.merge(merger);
        out.extend(merger.symbols.iter().map(|s| s.id).filter(|&id| id != NO_TOKEN));
    }

    fn raw_word(&self, vocab: &Vocab, raw: &Raw, word: &str, merger: &mut Merger, out: &mut Vec<u32>) {
        merger.symbols.clear();
        merger.symbols.extend(char_symbols(vocab, word));
        self.merge(merger);
        emit_with_byte_fallback(&merger.symbols, word, &raw.byte_tokens, out);
    }
}

/// One symbol per character.
pub(super) fn char_symbols<'a>(vocab: &'a Vocab, word: &'a str) -> impl Iterator<Item = Symbol> + 'a {
    word.char_indices().map(|(i, c)| {
        let end = i + c.len_utf8();
        Symbol { start: i as u32, end: end as u32, id: vocab.id(&word.as_bytes()[i..end]).unwrap_or(NO_TOKEN) }
    })
}

/// Symbols that are no token are spelled in byte tokens.
pub(super) fn emit_with_byte_fallback(
    symbols: &[Symbol],
    word: &str,
    byte_tokens: &[Option<u32>; 256],
    out: &mut Vec<u32>,
) {
    for s in symbols {
        if s.id != NO_TOKEN {
            out.push(s.id);
            continue;
        }
        let bytes = &word.as_bytes()[s.start as usize..s.end as usize];
        out.extend(bytes.iter().filter_map(|&b| byte_tokens[usize::from(b)]));
    }
}

/// "left right" as the ids of left, right and their concatenation.
fn parse_merge(rule: &[u8], vocab: &Vocab) -> Option<(u32, u32, u32)> {
    // the first byte may itself be a space
    let at = 1 + rule.get(1..)?.iter().position(|&b| b == b' ')?;
    let (left, right) = (&rule[..at], &rule[at + 1..]);
    let mut both = Vec::with_capacity(rule.len());
    both.extend_from_slice(left);
    both.extend_from_slice(right);
    Some((vocab.id(left)?, vocab.id(right)?, vocab.id(&both)?))
}

/// (left, right) -> merge: open addressing, one cache line per look-up.
struct Merges {
    /// left, right, rank, merged id
    slots: Vec<[u32; 4]>,
}

impl Merges {
    const FREE: [u32; 4] = [NO_TOKEN; 4];

    fn with_capacity(n: usize) -> Merges {
        Merges { slots: vec![Self::FREE; (n + n / 2 + 1).next_power_of_two()] }
    }

    #[inline]
    fn slot(&self, left: u32, right: u32) -> usize {
        let key = u64::from(left) << 32 | u64::from(right);
        let h = key.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (h ^ (h >> 32)) as usize & (self.slots.len() - 1)
    }

    /// The first rule for a pair counts.
    fn insert(&mut self, left: u32, right: u32, merge: Merge) {
        let mut at = self.slot(left, right);
        loop {
            let [l, r, _, _] = self.slots[at];
            if l == NO_TOKEN {
                self.slots[at] = [left, right, merge.rank, merge.id];
                return;
            }
            if (l, r) == (left, right) {
                return;
            }
            at = (at + 1) & (self.slots.len() - 1);
        }
    }

    #[inline]
    fn get(&self, left: u32, right: u32) -> Option<Merge> {
        if left == NO_TOKEN || right == NO_TOKEN {
            return None;
        }
        let mut at = self.slot(left, right);
        loop {
            let [l, r, rank, id] = self.slots[at];
            if (l, r) == (left, right) {
                return Some(Merge { rank, id });
            }
            if l == NO_TOKEN {
                return None;
            }
            at = (at + 1) & (self.slots.len() - 1);
        }
    }
}
