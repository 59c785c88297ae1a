//! Vocabularies of the tiny models: complete (every text can be encoded) and as small as that allows.

use super::gguf::File;

const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const BYTE: i32 = 6;

/// Which tokenizer a tiny model carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vocab {
    /// Byte-level BPE with the given `tokenizer.ggml.pre`, and whether BOS is added.
    Bpe(&'static str, bool),
    /// SentencePiece with byte fallback, with or without a space put before the text.
    Spm { space_prefix: bool },
}

const MERGES: [(&str, &str); 5] = [("h", "e"), ("t", "he"), ("Ġ", "the"), ("i", "n"), ("e", "r")];
const CHATML: &str = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
const TURNS: &str = "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + m['role'] + '\n' + m['content'] + '<end_of_turn>\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}";

impl Vocab {
    /// Number of tokens.
    pub fn n_tokens(self) -> usize {
        self.tokens().len()
    }

    /// Texts and types of the tokens.
    fn tokens(self) -> Vec<(String, i32)> {
        let mut tokens: Vec<(String, i32)> = Vec::new();
        match self {
            Vocab::Bpe(..) => {
                tokens.extend((0..=255u8).map(|b| (byte_char(b).to_string(), NORMAL)));
                tokens.extend(MERGES.iter().map(|(a, b)| (format!("{a}{b}"), NORMAL)));
                tokens.extend(["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(|t| (t.to_owned(), CONTROL)));
            }
            Vocab::Spm { .. } => {
                tokens.push(("<unk>".to_owned(), UNKNOWN));
                tokens.extend(["<s>", "</s>", "<start_of_turn>", "<end_of_turn>"].map(|t| (t.to_owned(), CONTROL)));
                tokens.extend((0..=255u8).map(|b| (format!("<0x{b:02X}>"), BYTE)));
                let pieces = ["▁the", "the", "he", "in", "er", "▁", "a", "d", "e", "h", "i", "n", "o", "r", "s", "t"];
                tokens.extend(pieces.map(|t| (t.to_owned(), NORMAL)));
            }
        }
        tokens
    }

    /// Writes the `tokenizer.*` keys.
    pub fn write(self, file: &mut File) {
        let tokens = self.tokens();
        let id = |text: &str| tokens.iter().position(|(t, _)| t == text).unwrap() as u32;
        match self {
            Vocab::Bpe(pre, add_bos) => {
                file.set("tokenizer.ggml.model", "gpt2");
                file.set("tokenizer.ggml.pre", pre);
                file.set("tokenizer.ggml.merges", MERGES.iter().map(|(a, b)| format!("{a} {b}")).collect::<Vec<_>>());
                file.set("tokenizer.ggml.bos_token_id", id("<|endoftext|>"));
                file.set("tokenizer.ggml.eos_token_id", id("<|im_end|>"));
                file.set("tokenizer.ggml.add_bos_token", add_bos);
                file.set("tokenizer.chat_template", CHATML);
            }
            Vocab::Spm { space_prefix } => {
                file.set("tokenizer.ggml.model", "llama");
                file.set("tokenizer.ggml.pre", "default");
                let first_piece = id("▁the") as usize;
                let score = |i: usize| if i < first_piece { 0.0 } else { -((i - first_piece) as f32) };
                file.set("tokenizer.ggml.scores", (0..tokens.len()).map(score).collect::<Vec<f32>>());
                file.set("tokenizer.ggml.bos_token_id", id("<s>"));
                file.set("tokenizer.ggml.eos_token_id", id("</s>"));
                file.set("tokenizer.ggml.unknown_token_id", id("<unk>"));
                file.set("tokenizer.ggml.eot_token_id", id("<end_of_turn>"));
                file.set("tokenizer.ggml.add_bos_token", true);
                file.set("tokenizer.ggml.add_space_prefix", space_prefix);
                file.set("tokenizer.chat_template", TURNS);
            }
        }
        file.set("tokenizer.ggml.tokens", tokens.iter().map(|(t, _)| t.clone()).collect::<Vec<_>>());
        file.set("tokenizer.ggml.token_type", tokens.iter().map(|(_, ty)| *ty).collect::<Vec<_>>());
    }
}

/// GPT-2's printable stand-in for a byte: visible Latin-1 characters are themselves, the others count up from U+0100.
fn byte_char(byte: u8) -> char {
    let visible = |b: u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if visible(byte) {
        return char::from(byte);
    }
    let rank = (0..byte).filter(|b| !visible(*b)).count() as u32;
    char::from_u32(0x100 + rank).unwrap()
}
