//! Tokens that a vocabulary calls text, and that are marks of a chat's format all the same.
//!
//! Vocabularies type some marks as user-defined (4) instead of control (3), often by mistake: a converter takes the type from
//! whether a tokenizer's configuration calls an added token special. llama.cpp recognizes user-defined tokens in every text, so
//! that a document that spells such a mark opens a turn of its own. In messages they are therefore treated as control tokens are.
//! What is a mark is decided by two things:
//!
//! - its spelling: what llama.cpp's converter makes a control token of (`<|...|>`, `<｜...｜>`, `<unused...>`, `<pad>`, `<mask>`,
//!   `<2mass>`, `[@BOS@]`), and further spellings that templates have and texts do not (`<|...`, `...|>`, `<s>`, `</s>`,
//!   `<start_of_...>`, `<end_of_...>`, `<<SYS>>`, `[INST]` and other words of capitals in brackets);
//! - the chat template: a tag, `<...>` or `[...]` without blanks, that stands in its source, or whose closing or opening tag does
//!   (`<think>`, `</tool_call>`).
//!
//! All other user-defined tokens, such as runs of blanks, code fences, or tags of HTML, are text, and tokens wherever they stand.

/// Whether a token's spelling makes it a mark.
pub(super) fn looks_like_markup(text: &str) -> bool {
    const WORDS: [&str; 14] = [
        "<pad>", "<mask>", "<2mass>", "[@BOS@]", "<s>", "</s>", "<bos>", "<eos>", "<unk>", "<sop>", "<eop>", "<EOT>",
        "<<SYS>>", "<</SYS>>",
    ];
    if WORDS.contains(&text) {
        return true;
    }
    if let Some(inner) = text.strip_prefix('<').and_then(|t| t.strip_suffix('>')) {
        let is_barred = |bar| inner.starts_with(bar) || inner.ends_with(bar);
        return is_tag(text)
            && (is_barred('|')
                || is_barred('｜')
                || ["unused", "start_of_", "end_of_"].iter().any(|beginning| inner.starts_with(beginning)));
    }
    let Some(inner) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) else { return false };
    let word = inner.strip_prefix('/').unwrap_or(inner);
    word.len() > 1 && word.chars().all(|c| c.is_ascii_uppercase() || c == '_')
}

/// Whether a token is a word in angle or square brackets.
pub(super) fn is_tag(text: &str) -> bool {
    let enclosed = |open, close| text.len() > 2 && text.starts_with(open) && text.ends_with(close);
    (enclosed('<', '>') || enclosed('[', ']')) && !text.contains(char::is_whitespace)
}

/// The closing tag of an opening one, and the other way round.
pub(super) fn counterpart(tag: &str) -> String {
    let (bracket, name) = tag.split_at(tag.chars().next().map_or(0, char::len_utf8));
    match name.strip_prefix('/') {
        Some(name) => format!("{bracket}{name}"),
        None => format!("{bracket}/{name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_by_their_spelling() {
        for mark in [
            "<|im_start|>", "<｜User｜>", "<｜end▁of▁sentence｜>", "<|turn>", "<turn|>", "<start_of_turn>", "<end_of_turn>",
            "<end_of_utterance>", "<unused7>", "[INST]", "[/INST]", "[TOOL_CALLS]", "<s>", "</s>", "<<SYS>>", "[@BOS@]",
        ] {
            assert!(looks_like_markup(mark), "{mark}");
        }
        for text in [
            "", "  ", "\n\n", "\t", "```", "<", "<>", "<|", "|>", "[]", "[A]", "[x]", "[0]", "<think>", "</think>", "<b>",
            "<table>", "a|>", "<| |>", "->", "<=", "▁▁", "[Inst]", "<tool_call>",
        ] {
            assert!(!looks_like_markup(text), "{text:?}");
        }
        for (tag, other) in [("<think>", "</think>"), ("</tool_call>", "<tool_call>"), ("[x]", "[/x]")] {
            assert!(is_tag(tag), "{tag}");
            assert_eq!(counterpart(tag), other);
        }
        for text in ["\n", "<>", "[]", "<a b>", "->", "think"] {
            assert!(!is_tag(text), "{text:?}");
        }
    }
}
