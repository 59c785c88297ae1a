//! Text from tokens as they are generated.

use super::Tokenizer;

/// Turns a stream of tokens into text. A token may end in the middle of a character; such bytes
/// are held back until the rest has come.
///
/// Control tokens give no text, unless [`StreamDecoder::with_special`] asks for them.
pub struct StreamDecoder<'a> {
    tokenizer: &'a Tokenizer,
    pending: Vec<u8>,
    special: bool,
}

impl<'a> StreamDecoder<'a> {
    /// A decoder that has seen nothing yet.
    pub fn new(tokenizer: &'a Tokenizer) -> StreamDecoder<'a> {
        StreamDecoder { tokenizer, pending: Vec::new(), special: false }
    }

    /// A decoder that has seen nothing yet, and writes control tokens out as the vocabulary spells them.
    pub fn with_special(tokenizer: &'a Tokenizer) -> StreamDecoder<'a> {
        StreamDecoder { special: true, ..StreamDecoder::new(tokenizer) }
    }

    /// The text that `id` completes; empty while a character is incomplete. Bytes that can be no
    /// UTF-8 become U+FFFD.
    pub fn push(&mut self, id: u32) -> String {
        if self.special || !self.tokenizer.is_control(id) {
            self.pending.extend_from_slice(self.tokenizer.token_bytes(id));
        }
        let mut text = String::new();
        let mut from = 0;
        loop {
            match std::str::from_utf8(&self.pending[from..]) {
                Ok(rest) => {
                    text.push_str(rest);
                    from = self.pending.len();
                    break;
                }
                Err(e) => {
                    let good = from + e.valid_up_to();
                    text.push_str(&String::from_utf8_lossy(&self.pending[from..good]));
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
        self.pending.drain(..from);
        text
    }

    /// The end of the stream: what is still held back, as U+FFFD.
    pub fn flush(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }
}
