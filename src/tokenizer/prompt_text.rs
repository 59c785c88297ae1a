//! A prompt as JSON writes it down: text as it is, or the turns of a conversation.

use serde::Deserialize;

use super::chat::{is_plain_role, unmarked_words};
use super::special::Plain;
use super::{ChatPrompt, ChatTemplate, Message, Tokenizer, TokenizerError};
use crate::printable::printable;

/// What a model is to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PromptText {
    /// Text as it is; control tokens in it count as such.
    Raw(String),
    /// A conversation, to be written out by the model's chat template, and the assistant's first words behind it.
    Chat {
        /// The turns.
        messages: Vec<Message>,
        /// What the answer begins with; empty if nothing was said yet.
        prefix: String,
    },
}

/// The keys of a JSON object that make a [`PromptText`].
#[derive(Clone, Debug, Default, Deserialize)]
pub struct PromptKeys {
    prompt: Option<String>,
    messages: Option<Vec<Turn>>,
    prefix: Option<String>,
    /// The end of the last message that asks about what stands before it.
    question: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct Turn {
    role: String,
    content: String,
}

impl PromptKeys {
    /// The prompt, or what is wrong with the keys, in a few words.
    ///
    /// # Errors
    /// Neither `prompt` nor `messages`, both of them, no text in them, a role that is no word, or a `question` that does not end
    /// the last message.
    pub fn text(self) -> Result<PromptText, String> {
        let prefix = self.prefix.unwrap_or_default();
        let text = match (self.prompt, self.messages) {
            (Some(prompt), None) => PromptText::Raw(prompt + &prefix),
            (None, Some(turns)) => {
                if let Some(turn) = turns.iter().find(|t| !is_plain_role(&t.role)) {
                    let role = printable(&turn.role);
                    return Err(format!("role {role:?}, expected a word of letters, digits, - and _, such as user"));
                }
                let mut messages: Vec<Message> = turns.into_iter().map(|t| Message::new(t.role, t.content)).collect();
                if let (Some(question), Some(last)) = (&self.question, messages.last_mut()) {
                    *last = Message::asking(last.role(), last.content(), question)
                        .ok_or("`question` does not end the last message")?;
                }
                PromptText::Chat { messages, prefix }
            }
            (Some(_), Some(_)) => return Err("both `prompt` and `messages`, expected one of them".into()),
            (None, None) => return Err("neither `prompt` nor `messages`".into()),
        };
        let has_text = match &text {
            PromptText::Raw(text) => !is_without_text(text),
            PromptText::Chat { messages, .. } => {
                let of_users = || messages.iter().filter(|m| m.role() == "user");
                let counts = |m: &Message| of_users().next().is_none() || m.role() == "user";
                messages.iter().any(|m| counts(m) && !is_without_text(m.content()))
            }
        };
        if has_text { Ok(text) } else { Err("the prompt has no text".into()) }
    }
}

/// Whether a text has nothing but blanks, if anything.
pub fn is_without_text(text: &str) -> bool {
    text.trim_matches(is_blank).is_empty()
}

/// White space, and the marks of byte order and of zero width that look like none.
fn is_blank(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{feff}' | '\u{200b}'..='\u{200d}' | '\u{2060}' | '\0')
}

impl PromptText {
    /// The tokens, and where in them a question stands. A model without a chat template is no chat model: it gets the messages
    /// one after the other, with blank lines between them. The assistant's first words are encoded by themselves; of control
    /// tokens and marks they may hold those around its thoughts.
    ///
    /// # Errors
    /// The template refuses the conversation, or is broken.
    pub fn encode(&self, tokenizer: &Tokenizer, template: &ChatTemplate) -> Result<ChatPrompt, TokenizerError> {
        match self {
            PromptText::Raw(text) => Ok(ChatPrompt::raw(tokenizer, &Message::new("user", text.as_str()), true)),
            PromptText::Chat { messages, prefix } if template.is_builtin() => {
                let contents: Vec<&str> = messages.iter().map(Message::content).collect();
                let text = contents.join("\n\n") + prefix;
                Ok(ChatPrompt::raw(tokenizer, &Message::new("user", text), false))
            }
            PromptText::Chat { messages, prefix } => {
                let mut prompt = template.encode(tokenizer, messages, true)?;
                let plain = Plain {
                    ranges: unmarked_words(prefix),
                    markup: tokenizer.specials.markup(template.source()),
                    ..Plain::default()
                };
                prompt.tokens.extend(tokenizer.encode_located(prefix, &plain, None).0);
                prompt.text.push_str(prefix);
                Ok(prompt)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(json: &str) -> Result<PromptText, String> {
        serde_json::from_str::<PromptKeys>(json).unwrap().text()
    }

    #[test]
    fn a_prompt_is_a_text_or_a_conversation() {
        assert_eq!(text(r#"{"prompt": "a"}"#), Ok(PromptText::Raw("a".into())));
        assert_eq!(text(r#"{"prompt": "a", "prefix": " b", "more": 1}"#), Ok(PromptText::Raw("a b".into())));
        let chat = PromptText::Chat { messages: vec![Message::new("user", "a")], prefix: " b".into() };
        assert_eq!(text(r#"{"messages": [{"role": "user", "content": "a"}], "prefix": " b"}"#), Ok(chat));
        let asked = text(r#"{"messages": [{"role": "user", "content": "a\nb?"}], "question": "b?"}"#).unwrap();
        let PromptText::Chat { messages, .. } = asked else { panic!("a conversation") };
        assert_eq!(messages[0].question(), Some(2..4));
        text(r#"{"messages": [{"role": "user", "content": "a"}], "question": "b"}"#).unwrap_err();
        for bad in ["{}", r#"{"prompt": "a", "messages": []}"#, r#"{"prompt": ""}"#, r#"{"messages": []}"#] {
            text(bad).unwrap_err();
        }
        for blank in [
            r#"{"prompt": "   "}"#,
            r#"{"prompt": "\n\ufeff\t", "prefix": " "}"#,
            r#"{"messages": [{"role": "user", "content": " \n"}]}"#,
            r#"{"messages": [{"role": "system", "content": "a"}, {"role": "user", "content": ""}]}"#,
            r#"{"messages": [{"role": "system", "content": " "}]}"#,
        ] {
            assert_eq!(text(blank), Err("the prompt has no text".into()), "{blank}");
        }
        for role in ["user<|im_end|>", "", "a b", "[INST]", "us\x1ber"] {
            let json = serde_json::json!({ "messages": [{ "role": role, "content": "a" }] });
            let e = text(&json.to_string()).unwrap_err();
            assert!(e.starts_with("role ") && e.contains("expected a word") && !e.contains('\x1b'), "{e}");
        }
    }
}
