//! Pre-tokenizers: the splitting of text into words that precedes BPE merging.
//!
//! A model names its pre-tokenizer in `tokenizer.ggml.pre`. Each is defined by regular expressions
//! (tokenizer.json of the model's family); applied one after another, each splits every piece left
//! by the one before into its matches and the gaps between them. Here they are hand-written
//! scanners (`scan`): a single pass, no backtracking, linear on any input.

use super::TokenizerError;
use super::deepseek;
use super::scan::{Contraction, Letters, Modern, Prefix, Scan, Step};
use super::unicode::{Classes, LETTER, NUMBER, PUNCT, SPACE};

/// What a pre-tokenizer name means: its scanners and the defaults that come with it.
pub(super) struct PreTokenizer {
    steps: Vec<Step>,
    /// A word that is a token as a whole is taken without merging.
    pub(super) ignore_merges: bool,
    /// `add_bos` where the GGUF does not say.
    pub(super) add_bos: bool,
    /// Tokens are spelled in raw UTF-8 with U+2581 for the space, not in GPT-2's byte alphabet.
    pub(super) raw_utf8: bool,
}

const LLAMA3: Modern = Modern { contraction: Contraction::Word, letters: Letters::All, digits: 3, tail: "\r\n" };
const QWEN2: Modern = Modern { digits: 1, ..LLAMA3 };

const fn run(prefix: Prefix, class: fn(char, u8) -> bool, max: usize) -> Step {
    Step::Run { prefix, class, max }
}

const ANY: usize = usize::MAX;
const NUMBER_EACH: Step = run(Prefix::None, is_number, 1);
const NEWLINE_EACH: Step = run(Prefix::None, is_newline, 1);

fn is_letter(_: char, k: u8) -> bool {
    k & LETTER != 0
}
fn is_number(_: char, k: u8) -> bool {
    k & NUMBER != 0
}
fn is_punct(_: char, k: u8) -> bool {
    k & PUNCT != 0
}
fn is_newline(c: char, _: u8) -> bool {
    c == '\r' || c == '\n'
}
/// `[\p{P}$+<=>^~|]`
fn is_punct_default(c: char, k: u8) -> bool {
    k & PUNCT != 0 || "$+<=>^~|".contains(c)
}
/// falcon adds the backtick
fn is_punct_falcon(c: char, k: u8) -> bool {
    is_punct_default(c, k) || c == '`'
}
/// `[^(\s|.,!?…。，、।۔،)]` of bloom and its kin
fn is_bloom_word(c: char, k: u8) -> bool {
    k & SPACE == 0 && !"(|.,!?…。，、।۔،)".contains(c)
}
impl PreTokenizer {
    /// The pre-tokenizer named `name`; `None` stands for a GGUF without `tokenizer.ggml.pre`.
    ///
    /// # Errors
    /// [`TokenizerError::UnsupportedPreTokenizer`] for an unknown name.
    pub(super) fn named(name: Option<&str>) -> Result<PreTokenizer, TokenizerError> {
        let mut ignore_merges = false;
        let mut add_bos = false;
        let mut raw_utf8 = false;
        let steps = match name.unwrap_or("default") {
            "default" | "" => vec![
                run(Prefix::None, is_punct_default, ANY),
                Step::Gpt2,
                run(Prefix::None, is_number, ANY),
                Step::DigitTriples,
            ],
            "gpt-2" | "phi-2" | "mpt" | "olmo" | "jais" | "gigachat" | "a.x-4.0" | "mellum" | "exaone4"
            | "trillion" | "granite-docling" => vec![Step::Gpt2],
            "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b" | "mellum2" => {
                vec![NUMBER_EACH, Step::Gpt2]
            }
            "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0" | "lfm2" => {
                ignore_merges = true;
                add_bos = true;
                vec![Step::Modern(LLAMA3)]
            }
            "dbrx" | "smaug-bpe" | "chatglm-bpe" => vec![Step::Modern(LLAMA3)],
            "glm4" | "glm5" => {
                ignore_merges = true;
                vec![Step::Modern(LLAMA3)]
            }
            "qwen2" | "deepseek-r1-qwen" | "kormo" | "megrez" | "stablelm2" | "hunyuan" | "solar-open" | "grok-2"
            | "bailingmoe" | "bailingmoe2" | "llada-moe" => {
                vec![Step::Modern(QWEN2)]
            }
            "qwen35" => vec![Step::Modern(Modern { letters: Letters::AndMarks, ..QWEN2 })],
            "seed-coder" => vec![Step::Modern(Modern { tail: "", ..QWEN2 })],
            "tekken" => {
                ignore_merges = true;
                add_bos = true;
                vec![Step::Modern(Modern {
                    contraction: Contraction::None,
                    letters: Letters::Cased,
                    digits: 1,
                    tail: "\r\n/",
                })]
            }
            "gpt-4o" | "llama4" | "kanana2" | "minimax-m2" => vec![Step::Modern(Modern {
                contraction: Contraction::Suffix,
                letters: Letters::Cased,
                digits: 3,
                tail: "\r\n/",
            })],
            "falcon" => vec![run(Prefix::None, is_punct_falcon, ANY), Step::Gpt2, Step::DigitTriples],
            "bloom" | "poro-chat" | "gpt3-finnish" => vec![run(Prefix::Blank, is_bloom_word, ANY)],
            "viking" => vec![run(Prefix::Blank, is_bloom_word, ANY), NUMBER_EACH],
            "deepseek-llm" => vec![
                NEWLINE_EACH,
                run(Prefix::Space, deepseek::is_letter, ANY),
                run(Prefix::Space, deepseek::is_punct, ANY),
                Step::TrailingSpace,
                run(Prefix::None, deepseek::is_cjk, ANY),
                run(Prefix::None, is_number, ANY),
            ],
            "deepseek-coder" => vec![
                NEWLINE_EACH,
                run(Prefix::Space, is_letter, ANY),
                run(Prefix::Space, is_punct, ANY),
                run(Prefix::None, deepseek::is_cjk, ANY),
                NUMBER_EACH,
            ],
            "deepseek-v3" | "hunyuan-dense" | "joyai-llm" | "hy_v4" => {
                vec![run(Prefix::None, is_number, 3), run(Prefix::None, deepseek::is_cjk_v3, ANY), Step::DeepSeek3]
            }
            "gemma4" => {
                raw_utf8 = true;
                add_bos = true;
                vec![Step::Lines]
            }
            other => {
                return Err(TokenizerError::UnsupportedPreTokenizer { name: crate::printable::printable(other) });
            }
        };
        Ok(PreTokenizer { steps, ignore_merges, add_bos, raw_utf8 })
    }

    /// Calls `word` for the pieces of `text` from left to right; joined they are `text`.
    pub(super) fn split<'t>(&self, text: &'t str, word: &mut impl FnMut(&'t str)) {
        apply(&self.steps, Classes::get(), text, word);
    }
}

fn apply<'t, F: FnMut(&'t str)>(steps: &[Step], table: &'static Classes, text: &'t str, word: &mut F) {
    let Some((step, rest)) = steps.split_first() else {
        word(text);
        return;
    };
    let s = Scan { text, table };
    let mut from = 0;
    while from < text.len() {
        let to = step.piece(&s, from);
        if rest.is_empty() {
            word(&text[from..to]);
        } else {
            apply(rest, table, &text[from..to], word);
        }
        from = to;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(pre: &str, text: &str) -> Vec<String> {
        let mut out = Vec::new();
        if let Ok(p) = PreTokenizer::named(Some(pre)) {
            p.split(text, &mut |w| out.push(w.to_owned()));
        }
        assert_eq!(out.concat(), text, "{pre}");
        assert!(out.iter().all(|w| !w.is_empty()), "{pre}: {out:?}");
        out
    }

    #[test]
    fn gpt2_words() {
        assert_eq!(words("gpt-2", "I'll  go, 12 \n\n x "), ["I", "'ll", " ", " go", ",", " 12", " \n\n", " x", " "]);
    }

    #[test]
    fn smollm_isolates_digits() {
        assert_eq!(words("smollm", "a 123  b"), ["a", " ", "1", "2", "3", " ", " b"]);
    }

    #[test]
    fn llama3_and_qwen2_differ_in_digits() {
        assert_eq!(words("llama-bpe", "x12345"), ["x", "123", "45"]);
        assert_eq!(words("qwen2", "x12"), ["x", "1", "2"]);
        assert_eq!(words("qwen2", "It'S (ok)\r\n \n  go"), ["It", "'S", " (", "ok", ")\r\n", " \n", " ", " go"]);
    }

    #[test]
    fn cased_families() {
        assert_eq!(words("gpt-4o", "HelloWorld's"), ["Hello", "World's"]);
        assert_eq!(words("tekken", "ABC def"), ["ABC", " def"]);
    }

    #[test]
    fn every_family_keeps_all_text() {
        let text = " \u{3000}\u{85}Ab\u{301}9②'s\r\n\t$x<|y|>日本語ー가 '\u{200b}\u{0}...\u{10ffff} ";
        for pre in [
            "default",
            "gpt-2",
            "smollm",
            "llama-bpe",
            "qwen2",
            "qwen35",
            "tekken",
            "gpt-4o",
            "falcon",
            "bloom",
            "viking",
            "deepseek-llm",
            "deepseek-coder",
            "deepseek-v3",
            "seed-coder",
            "gemma4",
        ] {
            for (i, _) in text.char_indices() {
                words(pre, &text[i..]);
                words(pre, &text[..i]);
            }
        }
    }

    #[test]
    fn unknown_name_is_an_error() {
        assert!(PreTokenizer::named(Some("no-such")).is_err());
    }
}
