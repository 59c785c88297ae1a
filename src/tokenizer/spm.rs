//! SentencePiece BPE (Kudo & Richardson 2018) as the llama and gemma vocabularies use it: of all
//! adjacent pairs whose concatenation is a token, the one of highest score merges; characters that
//! are no token fall back to byte tokens. Blanks are spelled U+2581.

use super::bpe::{char_symbols, emit_with_byte_fallback};
use super::merge::{Joints, Merge, Merger, WordCache};
use super::vocab::Vocab;

/// Tables for encoding.
pub(super) struct Spm {
    /// Per token: its score turned into a rank, lower is better.
    ranks: Vec<u32>,
    byte_tokens: [Option<u32>; 256],
    joints: Joints,
}

impl Spm {
    pub(super) fn new(vocab: &Vocab) -> Spm {
        Spm {
            ranks: vocab.scores.iter().map(|&s| rank_of(s)).collect(),
            byte_tokens: vocab.byte_tokens(),
            joints: Joints::of_tokens((0..vocab.len() as u32).map(|id| vocab.text(id))),
        }
    }

    /// Appends the tokens of `text`, with a blank before it if `prefix`.
    pub(super) fn encode(&self, vocab: &Vocab, text: &str, prefix: bool, out: &mut Vec<u32>) {
        let mut spelled = String::with_capacity(text.len() + text.len() / 2 + 3);
        if prefix {
            spelled.push('▁');
        }
        for (i, part) in text.split(' ').enumerate() {
            if i > 0 {
                spelled.push('▁');
            }
            spelled.push_str(part);
        }
        let mut merger = Merger::default();
        let mut cache = WordCache::for_text(spelled.len());
        self.joints.split(&spelled, |word| {
            cache.tokens(word.as_bytes(), out, |out| {
                merger.symbols.clear();
                merger.symbols.extend(char_symbols(vocab, word));
                merger.run(|l, r| {
                    let both = &word.as_bytes()[l.start as usize..r.end as usize];
                    let id = vocab.id(both)?;
                    Some(Merge { rank: self.ranks[id as usize], id })
                });
                emit_with_byte_fallback(&merger.symbols, word, &self.byte_tokens, out);
            });
        });
    }
}

/// Maps scores to integers in reverse order. NaN is refused when the vocabulary is read, so the
/// result is never `u32::MAX`.
fn rank_of(score: f32) -> u32 {
    let bits = (score + 0.0).to_bits(); // -0.0 becomes 0.0
    let ascending = if bits >> 31 == 1 { !bits } else { bits | 0x8000_0000 };
    !ascending
}

#[cfg(test)]
mod tests {
    use super::rank_of;

    #[test]
    fn ranks_reverse_scores() {
        let scores = [f32::INFINITY, 3.0, 0.5, 0.0, -1.0, -1e9, f32::NEG_INFINITY];
        assert!(scores.windows(2).all(|w| rank_of(w[0]) < rank_of(w[1])));
        assert_eq!(rank_of(-0.0), rank_of(0.0));
        assert!(scores.iter().all(|&s| rank_of(s) < u32::MAX));
    }
}
