//! Text from tokens as they are generated.

use super::Tokenizer;

/// Turns a stream of tokens into text. A token may end in the middle of a character; such bytes
/// are held back until the rest has come.
///
/// Control tokens give no text, unless [`StreamDecoder::with_special`] asks for them.
#[derive(Debug)]
pub struct StreamDecoder<'a> {
    tokenizer: &'a Tokenizer,
    pending: Pending,
}

/// What a stream of tokens has left incomplete.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    bytes: Vec<u8>,
    special: bool,
}

impl<'a> StreamDecoder<'a> {
    /// A decoder that has seen nothing yet.
    pub fn new(tokenizer: &'a Tokenizer) -> StreamDecoder<'a> {
        StreamDecoder { tokenizer, pending: Pending::default() }
    }

    /// A decoder that has seen nothing yet, and writes control tokens out as the vocabulary spells them.
    pub fn with_special(tokenizer: &'a Tokenizer) -> StreamDecoder<'a> {
        StreamDecoder { tokenizer, pending: Pending { special: true, ..Pending::default() } }
    }

    /// The text that `id` completes; empty while a character is incomplete. Bytes that can be no
    /// UTF-8 become U+FFFD.
    pub fn push(&mut self, id: u32) -> String {
        self.pending.push(self.tokenizer, id)
    }

    /// The end of the stream: what is still held back, as U+FFFD.
    pub fn flush(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending.bytes)).into_owned()
    }
}

impl Pending {
    /// As [`StreamDecoder::push`].
    pub(crate) fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> String {
        if self.special || !tokenizer.is_control(id) {
            self.bytes.extend_from_slice(tokenizer.token_bytes(id));
        }
        let mut text = String::new();
        let mut from = 0;
        loop {
            match std::str::from_utf8(&self.bytes[from..]) {
                Ok(rest) => {
                    text.push_str(rest);
                    from = self.bytes.len();
                    break;
                }
                Err(e) => {
                    let good = from + e.valid_up_to();
                    text.push_str(&String::from_utf8_lossy(&self.bytes[from..good]));
                    from = good;
                    match e.error_len() {
                        Some(bad) => {
                            text.push('\u{fffd}');
                            from += bad;
                        }
                        None => break, // incomplete: wait
                    }
                }
            }
        }
        self.bytes.drain(..from);
        text
    }
}
