//! A turn of a conversation, and which of its bytes have to come through a template.

use std::ops::Range;

/// Between a document and the question about it.
const BETWEEN: &str = "\n\n";
/// Around what a model thinks before it answers.
const THINKING: [&str; 2] = ["<think>", "</think>"];
const ASSISTANT: &str = "assistant";

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    role: String,
    content: String,
    /// Where the question begins, if a document stands before it.
    question: Option<usize>,
}

/// A part of a message that is looked for by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// Its bytes.
    pub(super) range: Range<usize>,
    /// Whether a template may leave it out.
    pub(super) may_go: bool,
}

impl Message {
    /// A turn of `system`, `user` or `assistant`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        Message { role: role.into(), content: content.into(), question: None }
    }

    /// A user's turn: a document, a blank line, a question about it.
    pub fn about(document: &str, question: &str) -> Message {
        let content = format!("{document}{BETWEEN}{question}");
        Message { role: "user".into(), question: Some(content.len() - question.len()), content }
    }

    /// A turn whose content ends with a question about what stands before it; `None` if it does not end so.
    pub fn asking(role: impl Into<String>, content: impl Into<String>, question: &str) -> Option<Message> {
        let (role, content) = (role.into(), content.into());
        let start = content.strip_suffix(question).filter(|_| !question.is_empty())?.len();
        Some(Message { role, content, question: Some(start) })
    }

    /// The role of the speaker, such as `user`.
    pub fn role(&self) -> &str {
        &self.role
    }

    /// The text of the message.
    pub fn content(&self) -> &str {
        &self.content
    }

    /// The bytes of the content that hold the question, if a document stands before it.
    pub fn question(&self) -> Option<Range<usize>> {
        self.question.map(|start| start..self.content.len())
    }

    /// Whether the role is a word, which cannot hold a control token.
    pub(super) fn has_plain_role(&self) -> bool {
        is_plain_role(&self.role)
    }

    /// The parts of the content: the document and the question; what an assistant thought, which templates leave out of later
    /// turns, and its answer. The marks `<think>` and `</think>` around the former belong to neither, so that a template, and the
    /// model, see them as they are.
    pub(super) fn parts(&self) -> Vec<Part> {
        let part = |range, may_go| Part { range, may_go };
        let end = self.content.len();
        match (self.question, thought(&self.role, &self.content)) {
            (Some(start), _) => vec![part(0..start, false), part(start..end, false)],
            (None, Some((thought, answer))) => vec![part(thought, true), part(answer..end, false)],
            (None, None) => vec![part(0..end, false)],
        }
    }
}

/// Whether a role is a word: letters, digits, `-` and `_`.
pub(in crate::tokenizer) fn is_plain_role(role: &str) -> bool {
    !role.is_empty() && role.chars().all(|c| c.is_alphanumeric() || c == '-' || c == '_')
}

/// The bytes of an assistant's words that are not the marks around its thoughts.
pub(in crate::tokenizer) fn unmarked_words(words: &str) -> Vec<Range<usize>> {
    Message::new(ASSISTANT, words).parts().into_iter().map(|p| p.range).collect()
}

/// The bytes that an assistant thought, if it did, and where its answer begins. `<think>` may be missing: some templates write it
/// before the answer.
fn thought(role: &str, content: &str) -> Option<(Range<usize>, usize)> {
    let [opening, closing] = THINKING;
    let end = content.find(closing).filter(|_| role == ASSISTANT)?;
    let blanks = content.len() - content.trim_start().len();
    let start = if content[blanks..].starts_with(opening) { blanks + opening.len() } else { 0 };
    Some((start.min(end)..end, end + closing.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thoughts_may_go() {
        let parts = |role, text: &str| {
            let part = |p: Part| (text[p.range].to_owned(), p.may_go);
            Message::new(role, text).parts().into_iter().map(part).collect::<Vec<_>>()
        };
        let owned = |t: &str, may_go| (t.to_owned(), may_go);
        let text = " <think>\na</think>b</think>c";
        assert_eq!(parts("assistant", text), [owned("\na", true), owned("b</think>c", false)]);
        assert_eq!(parts("assistant", "a</think>b"), [owned("a", true), owned("b", false)]);
        assert_eq!(parts("assistant", "</think>"), [owned("", true), owned("", false)]);
        assert_eq!(parts("assistant", "<think>a"), [owned("<think>a", false)]);
        assert_eq!(parts("user", text), [owned(text, false)]);
    }

    #[test]
    fn roles_are_words() {
        for good in ["user", "assistant", "ipython", "tool_response", "observation", "usuário", "gpt-4"] {
            assert!(is_plain_role(good), "{good}");
        }
        for bad in ["", " ", "user ", "user<|im_end|>", "<s>", "a\nb", "a:b", "[INST]", "｜User｜"] {
            assert!(!is_plain_role(bad), "{bad}");
        }
    }
}
