//! Tokenizers from a GGUF's metadata: text to token ids and back, and chat templates.
//!
//! Supported are byte-level BPE (`tokenizer.ggml.model` = `gpt2`, with the pre-tokenizers of
//! [`Tokenizer::from_gguf`]), raw BPE (`gemma4`) and SentencePiece BPE (`llama`: Llama 1 and 2,
//! Mistral, Gemma, Phi-3). Ids equal those of llama.cpp, which the models' GGUFs are made with.
//!
//! | file | what |
//! |---|---|
//! | `vocab` | the vocabulary, special and end-of-generation tokens |
//! | `special` | cuts special tokens out of the text |
//! | `markup` | which user-defined tokens are marks of a chat's format |
//! | `pretokenize`, `scan`, `deepseek` | cuts text into words (BPE) |
//! | `merge`, `bpe`, `spm` | words to tokens |
//! | `stream` | tokens to text as they come |
//! | `stop` | texts before which an answer ends |
//! | `chat` | chat templates: messages to a prompt's tokens |
//! | `prompt_text` | prompts as JSON writes them down |

mod bpe;
mod chat;
mod deepseek;
mod markup;
mod merge;
mod pretokenize;
mod prompt_text;
mod scan;
mod special;
mod spm;
mod stop;
mod stream;
pub(crate) mod unicode;
mod vocab;

pub use chat::{ChatPrompt, ChatTemplate, Message, TEMPLATE_THREAD, TemplateVariables};
pub use prompt_text::{PromptKeys, PromptText, is_without_text};
pub use stop::{StopFilter, StopStrings};
pub(crate) use stream::Pending;
pub use stream::StreamDecoder;
pub use vocab::VocabKind;

use std::fmt;
use std::path::Path;

use crate::printable::printable;
use crate::gguf::{Gguf, GgufError};
use bpe::Bpe;
use pretokenize::PreTokenizer;
use special::{Fragment, Plain, Specials};
use spm::Spm;
use vocab::{HIDDEN, KEY_MODEL, KEY_PRE, Vocab};

/// Why a tokenizer or a chat template cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// A key is there with a value of another type.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A key that the tokenizer needs is missing.
    #[error("metadata key `{key}` is missing; convert the model again with its tokenizer")]
    MissingKey {
        /// the key
        key: &'static str,
    },
    /// A key's value makes no sense.
    #[error("metadata key `{key}`: found {found}, expected {expected}")]
    BadValue {
        /// the key
        key: String,
        /// what is there
        found: String,
        /// what should be
        expected: String,
    },
    /// A kind of tokenizer that is not implemented.
    #[error(
        "metadata key `tokenizer.ggml.model`: tokenizer `{model}` is not supported; \
         supported are `gpt2` (byte-level BPE), `gemma4` (raw BPE) and `llama` (SentencePiece BPE)"
    )]
    UnsupportedTokenizer {
        /// the value of `tokenizer.ggml.model`
        model: String,
    },
    /// A pre-tokenizer that is not implemented.
    #[error(
        "metadata key `tokenizer.ggml.pre`: pre-tokenizer `{name}` is not supported; \
         supported are default, gpt-2, llama-bpe, qwen2, qwen35, smollm, tekken, gpt-4o, falcon, \
         bloom, deepseek-llm, deepseek-coder, deepseek-v3 and those that split alike"
    )]
    UnsupportedPreTokenizer {
        /// the value of `tokenizer.ggml.pre`
        name: String,
    },
    /// The chat template does not compile or run.
    #[error("key `tokenizer.chat_template`: {reason}; the model also runs without it")]
    Template {
        /// what the template engine says
        reason: String,
    },
    /// A message is missing in what the chat template writes.
    #[error(
        "key `tokenizer.chat_template`: the text that it writes lacks the {role} message; {}",
        if role == "system" { "put that text into the first user message" } else { "the model also runs without it" }
    )]
    MessageLost {
        /// whose message
        role: String,
    },
    /// A chat template that was given in place of the model's is of no use.
    #[error("chat template {name}: {reason}")]
    GivenTemplate {
        /// its file or name
        name: String,
        /// what is wrong with it
        reason: String,
    },
    /// What was given as a chat template is no file, no known name and no Jinja text.
    #[error("chat template {found:?}: expected a file, a known name ({known}), or Jinja with {{{{ or {{% in it")]
    UnknownTemplate {
        /// what was given
        found: String,
        /// the names
        known: String,
    },
    /// A chat template's file cannot be read.
    #[error("chat template {file}: cannot read: {source}")]
    TemplateFile {
        /// the file
        file: String,
        /// the system's reason
        source: std::io::Error,
    },
    /// What was given as variables of the chat template is no JSON object of such.
    #[error("variables of the chat template: {problem}")]
    TemplateVariables {
        /// what is wrong with them
        problem: String,
    },
    /// A message's role is no word.
    #[error("role {role:?}: expected a word of letters, digits, - and _, such as user")]
    Role {
        /// what was given
        role: String,
    },
    /// Any of these, in a file.
    #[error("{file}: {source}")]
    InFile {
        /// the file
        file: String,
        /// what is wrong with it
        source: Box<TokenizerError>,
    },
    /// The chat template refuses the conversation (`raise_exception`).
    #[error("the model's chat template refuses this conversation: {reason}")]
    Refused {
        /// the template's message
        reason: String,
    },
}

impl TokenizerError {
    /// The same error, naming the file that it is about.
    pub(crate) fn in_file(self, path: &Path) -> TokenizerError {
        match self {
            named @ (TokenizerError::Gguf(_) | TokenizerError::InFile { .. }) => named,
            source => TokenizerError::InFile { file: path.display().to_string(), source: Box::new(source) },
        }
    }

    /// The error itself, without the file that it was found in.
    pub fn inner(&self) -> &TokenizerError {
        match self {
            TokenizerError::InFile { source, .. } => source.inner(),
            other => other,
        }
    }

    fn bad(key: &str, found: impl Into<String>, expected: impl Into<String>) -> TokenizerError {
        TokenizerError::BadValue { key: key.to_owned(), found: printable(&found.into()), expected: expected.into() }
    }
}

/// A model's tokenizer. Immutable and shareable between threads.
pub struct Tokenizer {
    vocab: Vocab,
    specials: Specials,
    model: Model,
    pre: String,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer").field("n_vocab", &self.n_vocab()).field("pre", &self.pre).finish_non_exhaustive()
    }
}

enum Model {
    Bpe(Box<Bpe>),
    Spm(Box<Spm>),
}

impl Tokenizer {
    /// Reads and checks the tokenizer of a GGUF (`tokenizer.ggml.*`).
    ///
    /// # Errors
    /// Missing keys, an unsupported tokenizer or pre-tokenizer, or a vocabulary that contradicts
    /// itself; the message names the file and the key.
    pub fn from_gguf(gguf: &Gguf) -> Result<Tokenizer, TokenizerError> {
        Self::read(gguf).map_err(|e| e.in_file(gguf.path()))
    }

    fn read(gguf: &Gguf) -> Result<Tokenizer, TokenizerError> {
        let model = gguf.str(KEY_MODEL)?.ok_or(TokenizerError::MissingKey { key: KEY_MODEL })?;
        let kind = match model {
            "llama" => VocabKind::Spm,
            "gpt2" => VocabKind::Bpe,
            "gemma4" => VocabKind::RawBpe,
            other => {
                return Err(TokenizerError::UnsupportedTokenizer { model: printable(other) });
            }
        };
        let pre = match kind {
            VocabKind::Spm => None,
            VocabKind::Bpe => gguf.str(KEY_PRE)?,
            VocabKind::RawBpe => Some("gemma4"),
        };
        let (vocab, model) = if kind == VocabKind::Spm {
            let vocab = Vocab::from_gguf(gguf, kind, true)?;
            let spm = Spm::new(&vocab);
            (vocab, Model::Spm(Box::new(spm)))
        } else {
            let splitter = PreTokenizer::named(pre)?;
            // a byte-level vocabulary may still name gemma4's splitting
            let kind = if splitter.raw_utf8 { VocabKind::RawBpe } else { kind };
            let vocab = Vocab::from_gguf(gguf, kind, splitter.add_bos)?;
            let bpe = Bpe::from_gguf(gguf, splitter, &vocab)?;
            (vocab, Model::Bpe(Box::new(bpe)))
        };
        Ok(Tokenizer { specials: Specials::new(&vocab), pre: pre.unwrap_or("default").to_owned(), vocab, model })
    }

    /// The tokens of `text`.
    ///
    /// `add_special` adds the tokens that the model wants at the beginning and end of a text (BOS,
    /// EOS: [`Tokenizer::add_bos`]). `parse_special` recognizes control tokens spelled out in the
    /// text, as a rendered chat template has them; leave it off for text that must not pose as
    /// such. User-defined tokens are always recognized, as in llama.cpp; messages of a conversation
    /// ([`ChatTemplate::encode`]) are told apart better.
    pub fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Vec<u32> {
        let mut out = Vec::with_capacity(text.len() / 3 + 2);
        if add_special && self.vocab.add_bos {
            out.extend(self.vocab.bos);
        }
        self.encode_fragments(text, &self.specials.partition(text, parse_special), &mut out, &mut |_, _| {});
        if add_special && self.vocab.add_eos {
            out.extend(self.vocab.eos);
        }
        out
    }

    /// Appends the tokens of the fragments of `text`. `each` sees, for every fragment, its bytes and the number of tokens
    /// before it.
    fn encode_fragments(
        &self,
        text: &str,
        fragments: &[Fragment],
        out: &mut Vec<u32>,
        each: &mut dyn FnMut(&Fragment, usize),
    ) {
        // SentencePiece puts a blank before a text and after every special token.
        let mut after_special = true;
        for fragment in fragments {
            each(fragment, out.len());
            match fragment {
                Fragment::Token(id, _) => {
                    out.push(*id);
                    after_special = true;
                }
                Fragment::Text(range) => {
                    let text = &text[range.clone()];
                    match &self.model {
                        Model::Bpe(bpe) => bpe.encode(&self.vocab, text, out),
                        Model::Spm(spm) => {
                            let prefix = self.vocab.add_space_prefix && after_special;
                            spm.encode(&self.vocab, text, prefix, out);
                        }
                    }
                    after_special = false;
                }
            }
        }
    }

    /// The control tokens and marks of `text`, in order.
    fn control_tokens(&self, text: &str, plain: &Plain) -> Vec<u32> {
        let fragments = self.specials.partition_around(text, plain);
        let ids = fragments.iter().filter_map(|f| match f {
            Fragment::Token(id, _) if self.is_control(*id) || plain.markup.contains(*id) => Some(*id),
            _ => None,
        });
        ids.collect()
    }

    /// The token of BOS, if the model wants it and `text` does not begin with it.
    fn missing_bos(&self, text: &str, plain: &Plain) -> Option<u32> {
        let bos = self.vocab.bos.filter(|_| self.vocab.add_bos)?;
        let fragments = self.specials.partition_around(text, plain);
        (!matches!(fragments.first(), Some(Fragment::Token(id, _)) if *id == bos)).then_some(bos)
    }

    /// The tokens of a text, behind BOS if there is one, and the byte at which each begins.
    fn encode_located(&self, text: &str, plain: &Plain, bos: Option<u32>) -> (Vec<u32>, Vec<usize>) {
        let fragments = self.specials.partition_around(text, plain);
        let mut ids = Vec::with_capacity(text.len() / 3 + 2);
        // (first token, bytes) of each fragment.
        let mut spans = Vec::with_capacity(fragments.len());
        ids.extend(bos);
        self.encode_fragments(text, &fragments, &mut ids, &mut |fragment, first| {
            let (Fragment::Text(bytes) | Fragment::Token(_, bytes)) = fragment;
            spans.push((first, bytes.clone()));
        });
        let mut starts = vec![0; ids.len()];
        for (i, (first, bytes)) in spans.iter().enumerate() {
            let end = spans.get(i + 1).map_or(ids.len(), |next| next.0);
            let lengths: usize = ids[*first..end].iter().map(|&id| self.token_bytes(id).len()).sum();
            // The blank that SentencePiece puts before a text is in the first token and not in the text.
            let mut added = lengths.saturating_sub(bytes.len()).min(1);
            let mut at = bytes.start;
            for (start, &id) in starts[*first..end].iter_mut().zip(&ids[*first..end]) {
                *start = at.min(bytes.end);
                at += self.token_bytes(id).len() - std::mem::take(&mut added).min(self.token_bytes(id).len());
            }
        }
        (ids, starts)
    }

    /// The bytes that a token stands for, perhaps a part of a character; control tokens as the
    /// vocabulary spells them. Empty for unused tokens and ids out of range.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.vocab.piece(id)
    }

    /// The token as the vocabulary spells it (`Ġthe`, `▁the`, `<0x0A>`), for display.
    pub fn token_text(&self, id: u32) -> String {
        String::from_utf8_lossy(self.vocab.text(id)).into_owned()
    }

    /// The id of the token that the vocabulary spells `text`.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        self.vocab.id(text.as_bytes())
    }

    /// The text of `ids`, without control tokens; the blank that SentencePiece put before the text
    /// is taken away again. Bytes that are no UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut bytes = Vec::new();
        for &id in ids.iter().filter(|&&id| !self.is_control(id)) {
            bytes.extend_from_slice(self.token_bytes(id));
        }
        let bytes = match bytes.strip_prefix(b" ") {
            Some(rest) if self.vocab.add_space_prefix => rest,
            _ => &bytes,
        };
        String::from_utf8_lossy(bytes).into_owned()
    }

    /// Number of tokens in the vocabulary.
    pub fn n_vocab(&self) -> usize {
        self.vocab.len()
    }

    /// What is odd about the vocabulary and does no harm, one line each.
    pub fn warnings(&self) -> &[String] {
        &self.vocab.warnings
    }

    /// The algorithm that splits text into tokens.
    pub fn kind(&self) -> VocabKind {
        self.vocab.kind
    }

    /// The pre-tokenizer's name (`tokenizer.ggml.pre`).
    pub fn pre(&self) -> &str {
        &self.pre
    }

    /// The token that begins a sequence.
    pub fn bos(&self) -> Option<u32> {
        self.vocab.bos
    }

    /// The token that ends a sequence.
    pub fn eos(&self) -> Option<u32> {
        self.vocab.eos
    }

    /// The token that ends a turn of a conversation.
    pub fn eot(&self) -> Option<u32> {
        self.vocab.eot
    }

    /// The token that ends a message.
    pub fn eom(&self) -> Option<u32> {
        self.vocab.eom
    }

    /// The token that stands for unknown text.
    pub fn unk(&self) -> Option<u32> {
        self.vocab.unk
    }

    /// The token that pads sequences.
    pub fn pad(&self) -> Option<u32> {
        self.vocab.pad
    }

    /// Whether the model wants BOS before a text.
    pub fn add_bos(&self) -> bool {
        self.vocab.add_bos
    }

    /// Whether the model wants EOS after a text.
    pub fn add_eos(&self) -> bool {
        self.vocab.add_eos
    }

    /// Whether `id` ends a generation.
    pub fn is_eog(&self, id: u32) -> bool {
        self.vocab.eog.binary_search(&id).is_ok()
    }

    /// All tokens that end a generation, ascending.
    pub fn eog_ids(&self) -> &[u32] {
        &self.vocab.eog
    }

    /// Whether `id` is a control (or unknown) token, which stands for no text.
    pub fn is_control(&self, id: u32) -> bool {
        self.vocab.attr(id).any(HIDDEN)
    }
}
