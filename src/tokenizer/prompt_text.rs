//! A prompt as JSON writes it down: text as it is, or the turns of a conversation.

use serde::Deserialize;

use super::{ChatPrompt, ChatTemplate, Message, Tokenizer, TokenizerError};

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
    /// Neither `prompt` nor `messages`, both of them, no text in them, or a `question` that does not end the last message.
    pub fn text(self) -> Result<PromptText, String> {
        let prefix = self.prefix.unwrap_or_default();
        let text = match (self.prompt, self.messages) {
            (Some(prompt), None) => PromptText::Raw(prompt + &prefix),
            (None, Some(turns)) => {
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
        let empty = match &text {
            PromptText::Raw(text) => text.is_empty(),
            PromptText::Chat { messages, .. } => messages.iter().all(|m| m.content().is_empty()),
        };
        if empty { Err("the prompt has no text".into()) } else { Ok(text) }
    }
}

impl PromptText {
    /// The tokens, and where in them a question stands. A model without a chat template is no chat model: it gets the messages
    /// one after the other, with blank lines between them. The assistant's first words are encoded by themselves.
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
                prompt.tokens.extend(tokenizer.encode(prefix, false, false));
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
    }
}
