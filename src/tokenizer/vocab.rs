//! The vocabulary: token texts, kinds, scores and the special ids, read from a GGUF's
//! `tokenizer.ggml.*` keys and checked completely, so that encoding cannot fail later.

use super::TokenizerError;
use super::unicode::char_to_byte;
use std::borrow::Cow;

use crate::gguf::{Array, Gguf, Value};

pub(super) const KEY_MODEL: &str = "tokenizer.ggml.model";
pub(super) const KEY_PRE: &str = "tokenizer.ggml.pre";
pub(super) const KEY_TOKENS: &str = "tokenizer.ggml.tokens";
const KEY_SCORES: &str = "tokenizer.ggml.scores";
const KEY_TYPES: &str = "tokenizer.ggml.token_type";
pub(super) const KEY_MERGES: &str = "tokenizer.ggml.merges";

/// Which algorithm the vocabulary is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VocabKind {
    /// SentencePiece BPE: merges chosen by token score, byte fallback (`llama`).
    Spm,
    /// BPE with ranked merges over GPT-2's byte alphabet (`gpt2`).
    Bpe,
    /// BPE with ranked merges over raw UTF-8, byte fallback (`gemma4`).
    RawBpe,
}

/// Attributes of one token: a set of flags.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Attr(u8);

impl Attr {
    pub(super) const UNKNOWN: Attr = Attr(1);
    pub(super) const UNUSED: Attr = Attr(2);
    pub(super) const NORMAL: Attr = Attr(4);
    pub(super) const CONTROL: Attr = Attr(8);
    pub(super) const USER_DEFINED: Attr = Attr(16);
    pub(super) const BYTE: Attr = Attr(32);
    /// Swallows the white space after it.
    pub(super) const RSTRIP: Attr = Attr(64);

    const fn or(self, other: Attr) -> Attr {
        Attr(self.0 | other.0)
    }
    pub(super) fn any(self, of: Attr) -> bool {
        self.0 & of.0 != 0
    }
    fn insert(&mut self, other: Attr) {
        self.0 |= other.0;
    }
    fn remove(&mut self, other: Attr) {
        self.0 &= !other.0;
    }
}

/// Shown only where special tokens are wanted, matched in text only when asked for.
pub(super) const HIDDEN: Attr = Attr::CONTROL.or(Attr::UNKNOWN);
/// Matched in the text before tokenization.
pub(super) const SPECIAL: Attr = HIDDEN.or(Attr::USER_DEFINED);

/// Byte strings end to end in one allocation.
#[derive(Default)]
struct Strings {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Strings {
    fn push(&mut self, s: &[u8]) {
        self.bytes.extend_from_slice(s);
        self.ends.push(self.bytes.len());
    }
    fn len(&self) -> usize {
        self.ends.len()
    }
    fn get(&self, i: usize) -> &[u8] {
        let Some(&end) = self.ends.get(i) else {
            return &[];
        };
        let start = if i == 0 { 0 } else { self.ends[i - 1] };
        &self.bytes[start..end]
    }
}

/// Token texts with a hash index, scores, attributes and special ids.
pub(super) struct Vocab {
    pub(super) kind: VocabKind,
    texts: Strings,
    /// What each token stands for in text.
    pieces: Strings,
    /// Open addressing over `texts`; `EMPTY` or a token id.
    index: Vec<u32>,
    /// Empty unless `kind` is Spm.
    pub(super) scores: Vec<f32>,
    attrs: Vec<Attr>,
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    pub(super) eot: Option<u32>,
    pub(super) eom: Option<u32>,
    pub(super) unk: Option<u32>,
    pub(super) pad: Option<u32>,
    /// Sorted.
    pub(super) eog: Vec<u32>,
    pub(super) add_bos: bool,
    pub(super) add_eos: bool,
    pub(super) add_space_prefix: bool,
    /// What was ignored, one line each.
    pub(super) warnings: Vec<String>,
}

const EMPTY: u32 = u32::MAX;

/// Multiply-and-fold hash of a short byte string; the table below it is fixed once the vocabulary
/// is read, so text from outside cannot make it degenerate.
#[inline]
pub(super) fn hash_bytes(bytes: &[u8]) -> u64 {
    const K: u64 = 0x9e37_79b9_7f4a_7c15;
    let fold = |h: u64| {
        let wide = u128::from(h) * u128::from(K);
        (wide as u64) ^ ((wide >> 64) as u64)
    };
    let mut h = bytes.len() as u64 ^ 0x2545_f491_4f6c_dd1d;
    let mut chunks = bytes.chunks_exact(8);
    for chunk in &mut chunks {
        let mut word = [0; 8];
        word.copy_from_slice(chunk);
        h = fold(h ^ u64::from_le_bytes(word));
    }
    let mut word = [0; 8];
    let rest = chunks.remainder();
    word[..rest.len()].copy_from_slice(rest);
    fold(fold(h ^ u64::from_le_bytes(word)))
}

impl Vocab {
    /// Reads and checks the vocabulary.
    ///
    /// `add_bos` is the default of the tokenizer's family, used where the GGUF does not say.
    ///
    /// # Errors
    /// Missing keys, wrong types, lengths that differ, duplicate tokens, ids out of range.
    pub(super) fn from_gguf(gguf: &Gguf, kind: VocabKind, add_bos: bool) -> Result<Vocab, TokenizerError> {
        let tokens = gguf.str_array(KEY_TOKENS)?.ok_or(TokenizerError::MissingKey { key: KEY_TOKENS })?;
        let n = tokens.len();
        if n == 0 || n >= i32::MAX as usize {
            return Err(TokenizerError::bad(KEY_TOKENS, format!("{n} tokens"), "between 1 and 2^31 - 1"));
        }
        let mut texts = Strings::default();
        for (id, text) in tokens.iter().enumerate() {
            if text.is_empty() {
                // llama.cpp's spelling, so that the id stays reachable
                texts.push(format!("[EMPTY_{id}]").as_bytes());
            } else {
                texts.push(text.as_bytes());
            }
        }
        let attrs = match gguf.i32_array(KEY_TYPES)? {
            None => vec![Attr::NORMAL; n],
            Some(types) if types.len() >= n => types[..n]
                .iter()
                .map(|t| match t {
                    1 => Attr::NORMAL,
                    2 => Attr::UNKNOWN,
                    3 => Attr::CONTROL,
                    4 => Attr::USER_DEFINED,
                    5 => Attr::UNUSED,
                    6 => Attr::BYTE,
                    _ => Attr(0),
                })
                .collect(),
            Some(types) => {
                return Err(TokenizerError::bad(
                    KEY_TYPES,
                    format!("{} entries", types.len()),
                    format!("{n}, one per token"),
                ));
            }
        };
        let scores = if kind == VocabKind::Spm { read_scores(gguf, n)? } else { Vec::new() };
        let index = build_index(&texts)?;
        let (bos_default, eos_default, unk_default) = match kind {
            VocabKind::Spm => (Some(1), Some(2), Some(0)),
            VocabKind::Bpe => (Some(11), Some(11), None),
            VocabKind::RawBpe => (None, None, None),
        };
        let mut warnings = Vec::new();
        let mut special = |key, default| special_id(gguf, key, n, default, &mut warnings);
        let mut vocab = Vocab {
            kind,
            bos: special("tokenizer.ggml.bos_token_id", bos_default)?,
            eos: special("tokenizer.ggml.eos_token_id", eos_default)?,
            eot: special("tokenizer.ggml.eot_token_id", None)?,
            eom: special("tokenizer.ggml.eom_token_id", None)?,
            unk: special("tokenizer.ggml.unknown_token_id", unk_default)?,
            pad: special("tokenizer.ggml.padding_token_id", None)?,
            add_bos: gguf.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(add_bos),
            add_eos: gguf.bool("tokenizer.ggml.add_eos_token")?.unwrap_or(false),
            add_space_prefix: gguf.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(kind == VocabKind::Spm),
            eog: Vec::new(),
            pieces: Strings::default(),
            warnings: Vec::new(),
            texts,
            index,
            scores,
            attrs,
        };
        vocab.warnings = warnings;
        // Every GGUF of Gemma 4 needs it, also those that say otherwise.
        vocab.add_bos |= kind == VocabKind::RawBpe;
        if vocab.add_bos && vocab.bos.is_none() {
            return Err(TokenizerError::MissingKey { key: "tokenizer.ggml.bos_token_id" });
        }
        if vocab.add_eos && vocab.eos.is_none() {
            return Err(TokenizerError::MissingKey { key: "tokenizer.ggml.eos_token_id" });
        }
        vocab.find_end_tokens(gguf)?;
        vocab.build_pieces()?;
        let name = gguf.str("general.name")?.unwrap_or("").to_lowercase();
        if name.contains("phi-3") || name.contains("phi3") {
            vocab.strip_after_specials();
        }
        Ok(vocab)
    }

    pub(super) fn len(&self) -> usize {
        self.texts.len()
    }

    /// The token's text as the GGUF spells it.
    pub(super) fn text(&self, id: u32) -> &[u8] {
        self.texts.get(id as usize)
    }

    /// The bytes that the token stands for.
    pub(super) fn piece(&self, id: u32) -> &[u8] {
        self.pieces.get(id as usize)
    }

    pub(super) fn attr(&self, id: u32) -> Attr {
        self.attrs.get(id as usize).copied().unwrap_or(Attr(0))
    }

    /// The id of the token spelled `text`.
    #[inline]
    pub(super) fn id(&self, text: &[u8]) -> Option<u32> {
        let mask = self.index.len() - 1;
        let mut at = hash_bytes(text) as usize & mask;
        loop {
            match self.index[at] {
                EMPTY => return None,
                id if self.text(id) == text => return Some(id),
                _ => at = (at + 1) & mask,
            }
        }
    }

    /// The ids of the byte tokens `<0x00>` to `<0xFF>`; where there is none, the unknown token.
    pub(super) fn byte_tokens(&self) -> [Option<u32>; 256] {
        std::array::from_fn(|b| self.id(format!("<0x{b:02X}>").as_bytes()).or_else(|| self.id(&[b as u8])).or(self.unk))
    }

    /// End-of-generation tokens. GGUFs often name only one of several, so tokens with well-known
    /// texts count too (the list is llama.cpp's, which users' models are made for).
    fn find_end_tokens(&mut self, gguf: &Gguf) -> Result<(), TokenizerError> {
        const EOT: &[&str] = &[
            "<|eot_id|>",
            "<|im_end|>",
            "<|end|>",
            "<end_of_turn>",
            "<|endoftext|>",
            "<|end_of_text|>",
            "<EOT>",
            "_<EOT>",
            "[EOT]",
            "<｜end▁of▁sentence｜>",
            "<end_of_utterance>",
        ];
        const MORE_ENDS: &[&str] = &[
            "<|return|>",
            "<|call|>",
            "<|flush|>",
            "<|calls|>",
            "</s>",
            "<|eom_id|>",
            "[EOS]",
            "<eos>",
            "<turn|>",
            "<|tool_response>",
            "[e~[",
        ];
        const INFILL: &[(&[&str], &[&str])] = &[
            (&["tokenizer.ggml.fim_pad_token_id"], &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"]),
            (
                &["tokenizer.ggml.fim_rep_token_id"],
                &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"],
            ),
            (&["tokenizer.ggml.fim_sep_token_id"], &["<|file_sep|>"]),
        ];
        // Infill tokens are hidden too, although only some of them end a generation.
        const INFILL_MARKS: &[(&str, &[&str])] = &[
            (
                "tokenizer.ggml.fim_pre_token_id",
                &[
                    "<|fim_prefix|>",
                    "<fim-prefix>",
                    "<fim_prefix>",
                    "<｜fim▁begin｜>",
                    "<PRE>",
                    "▁<PRE>",
                    "<|code_prefix|>",
                    "<|prefix|>",
                ],
            ),
            (
                "tokenizer.ggml.fim_suf_token_id",
                &[
                    "<|fim_suffix|>",
                    "<fim-suffix>",
                    "<fim_suffix>",
                    "<｜fim▁hole｜>",
                    "<SUF>",
                    "▁<SUF>",
                    "<|code_suffix|>",
                    "<|suffix|>",
                ],
            ),
            (
                "tokenizer.ggml.fim_mid_token_id",
                &[
                    "<|fim_middle|>",
                    "<fim-middle>",
                    "<fim_middle>",
                    "<｜fim▁end｜>",
                    "<MID>",
                    "▁<MID>",
                    "<|code_middle|>",
                    "<|middle|>",
                ],
            ),
        ];
        let n = self.len();
        if self.eot.is_none() {
            self.eot = self.first_of(EOT);
        }
        if self.eom.is_none() {
            self.eom = self.first_of(&["<|eom_id|>"]);
        }
        for (key, texts) in INFILL_MARKS {
            if special_id(gguf, key, n, None, &mut self.warnings)?.is_none() {
                self.first_of(texts);
            }
        }
        let mut eog = Vec::new();
        for (keys, texts) in INFILL {
            let id = match special_id(gguf, keys[0], n, None, &mut self.warnings)? {
                Some(id) => Some(id),
                None => self.first_of(texts),
            };
            eog.extend(id);
        }
        for text in EOT.iter().chain(MORE_ENDS) {
            if let Some(id) = self.id(text.as_bytes()) {
                self.attrs[id as usize].insert(Attr::CONTROL);
                eog.push(id);
            }
        }
        // gpt-oss: parts of its message format that must be visible
        for text in ["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"] {
            if let Some(id) = self.id(text.as_bytes()) {
                self.attrs[id as usize] = Attr::USER_DEFINED;
            }
        }
        eog.extend([self.eos, self.eot, self.eom].into_iter().flatten());
        let has = |t: &str| self.id(t.as_bytes()).filter(|id| eog.contains(id));
        let call = has("<|call|>").or(has("<|calls|>")).is_some();
        let not_end = if call && (has("<|return|>").is_some() || has("<|flush|>").is_some()) {
            has("<|end|>") // there it ends a message, not the generation
        } else {
            None
        };
        let not_s = has("<|tool_response>").or(has("<|plamo:eos|>")).and(has("</s>")); // there it is plain text
        if let Some(id) = not_end {
            self.attrs[id as usize] = Attr::USER_DEFINED;
        }
        if let Some(id) = not_s {
            self.attrs[id as usize] = Attr::NORMAL;
        }
        eog.retain(|id| Some(*id) != not_end && Some(*id) != not_s);
        eog.sort_unstable();
        eog.dedup();
        self.eog = eog;
        Ok(())
    }

    /// The first of `texts` that is a token, which thereby counts as a control token.
    fn first_of(&mut self, texts: &[&str]) -> Option<u32> {
        let id = texts.iter().find_map(|t| self.id(t.as_bytes()))?;
        self.attrs[id as usize].insert(Attr::CONTROL);
        Some(id)
    }

    fn build_pieces(&mut self) -> Result<(), TokenizerError> {
        let mut pieces = Strings::default();
        let mut buffer = Vec::new();
        for id in 0..self.texts.len() {
            let text = self.texts.get(id);
            let attr = self.attrs[id];
            buffer.clear();
            if attr.any(SPECIAL) {
                buffer.extend_from_slice(text);
            } else if attr.any(Attr::BYTE) {
                buffer.push(parse_byte_token(text).ok_or_else(|| {
                    TokenizerError::bad(
                        KEY_TOKENS,
                        format!("byte token {id} {:?}", String::from_utf8_lossy(text)),
                        "<0x00> to <0xFF>",
                    )
                })?);
            } else if attr.any(Attr::NORMAL) {
                let text = String::from_utf8_lossy(text);
                if self.kind == VocabKind::Bpe {
                    for c in text.chars() {
                        match char_to_byte(c) {
                            Some(b) => buffer.push(b),
                            None => buffer.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
                        }
                    }
                } else {
                    buffer.extend_from_slice(text.replace('▁', " ").as_bytes());
                }
            }
            pieces.push(&buffer);
        }
        self.pieces = pieces;
        Ok(())
    }

    /// Phi-3's special tokens swallow the white space after them; GGUF has no key for it.
    fn strip_after_specials(&mut self) {
        let slash_s = self.id(b"</s>");
        for (id, attr) in (0..).zip(self.attrs.iter_mut()) {
            if attr.any(SPECIAL) || Some(id) == slash_s {
                attr.insert(Attr::RSTRIP);
            }
        }
        for text in ["<unk>", "<s>", "<|endoftext|>"] {
            if let Some(id) = self.id(text.as_bytes()) {
                self.attrs[id as usize].remove(Attr::RSTRIP);
            }
        }
    }
}

fn read_scores(gguf: &Gguf, n: usize) -> Result<Vec<f32>, TokenizerError> {
    let scores: Cow<[f32]> = match gguf.get(KEY_SCORES) {
        None => vec![0.0; n].into(),
        Some(Value::Array(Array::I32(v))) => v.iter().map(|&s| s as f32).collect(),
        Some(_) => gguf.f32_array(KEY_SCORES)?.unwrap_or_default().into(),
    };
    let Some(scores) = scores.get(..n) else {
        return Err(TokenizerError::bad(
            KEY_SCORES,
            format!("{} entries", scores.len()),
            format!("{n}, one per token"),
        ));
    };
    if let Some(id) = scores.iter().position(|s| s.is_nan()) {
        return Err(TokenizerError::bad(KEY_SCORES, format!("NaN for token {id}"), "numbers"));
    }
    Ok(scores.to_vec())
}

fn build_index(texts: &Strings) -> Result<Vec<u32>, TokenizerError> {
    let mut index = vec![EMPTY; (texts.len() * 2).next_power_of_two()];
    let mask = index.len() - 1;
    for id in 0..texts.len() {
        let text = texts.get(id);
        let mut at = hash_bytes(text) as usize & mask;
        while index[at] != EMPTY {
            if texts.get(index[at] as usize) == text {
                return Err(TokenizerError::bad(
                    KEY_TOKENS,
                    format!("{:?} both as token {} and {id}", String::from_utf8_lossy(text), index[at]),
                    "every token once",
                ));
            }
            at = (at + 1) & mask;
        }
        index[at] = id as u32;
    }
    Ok(index)
}

/// The id under `key`. One that is no token is ignored, with a warning, as is a negative one, which stands for none (-1);
/// `default` counts if it is a token.
fn special_id(
    gguf: &Gguf,
    key: &'static str,
    n: usize,
    default: Option<u32>,
    warnings: &mut Vec<String>,
) -> Result<Option<u32>, TokenizerError> {
    let found: Option<i64> = match gguf.get(key) {
        Some(value) => value.to_integer().or(gguf.u32(key)?.map(i64::from)),
        None => None,
    };
    let is_token = |id: &u32| (*id as usize) < n;
    let id = found.and_then(|id| u32::try_from(id).ok()).filter(is_token);
    if let (Some(found), None) = (found, id) {
        let file = gguf.path().display();
        warnings.push(format!("{file}: metadata key `{key}`: {found} is no token of the {n}; it is ignored"));
    }
    Ok(id.or(default.filter(is_token)))
}

fn parse_byte_token(text: &[u8]) -> Option<u8> {
    let hex = text.strip_prefix(b"<0x")?.strip_suffix(b">")?;
    let hex = std::str::from_utf8(hex).ok().filter(|h| h.len() == 2)?;
    u8::from_str_radix(hex, 16).ok()
}
