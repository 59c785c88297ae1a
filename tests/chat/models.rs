//! Tokenizers and chat templates of tiny models, and what their prompts hold.

use std::ops::Range;

use spts::gguf::Gguf;
use spts::tokenizer::{ChatPrompt, ChatTemplate, Message, Tokenizer, TokenizerError};

use crate::support::chat::{CONTROL, USER_DEFINED, add_tokens, retype_tokens, with_template};
use crate::support::gguf::File;
use crate::support::tiny::Tiny;

/// The tokenizer and the chat template of a tiny model that was changed, from a file of this name.
pub fn changed(model: &str, name: &str, change: impl FnOnce(&mut File)) -> (Tokenizer, ChatTemplate) {
    let mut file = Tiny::named(model).build();
    change(&mut file);
    let gguf = Gguf::from_bytes(file.to_bytes(), name).unwrap();
    let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
    let template = ChatTemplate::from_gguf(&gguf, &tokenizer).unwrap();
    (tokenizer, template)
}

/// A tiny model's tokenizer and chat template.
pub fn model(name: &str) -> (Tokenizer, ChatTemplate) {
    changed(name, name, |_| ())
}

/// The tiny llama with more tokens, all marks among them user-defined instead of control tokens.
pub fn user_defined(template: &str, more: &[&str]) -> (Tokenizer, ChatTemplate) {
    changed("llama", "user-defined", |file| {
        retype_tokens(file, CONTROL, USER_DEFINED);
        add_tokens(file, more, USER_DEFINED);
        with_template(template)(file);
    })
}

/// What a template makes of one message.
pub fn render(source: &str) -> Result<String, TokenizerError> {
    ChatTemplate::new(source, "<s>", "</s>").apply(&user(" x hi "), true)
}

/// A conversation of one message.
pub fn user(text: &str) -> Vec<Message> {
    vec![Message::new("user", text)]
}

/// The text of tokens, control tokens as they are spelled.
pub fn spelled(t: &Tokenizer, ids: &[u32]) -> String {
    String::from_utf8(ids.iter().flat_map(|&id| t.token_bytes(id)).copied().collect()).unwrap()
}

/// The control tokens of a prompt, as they are spelled.
pub fn controls(t: &Tokenizer, prompt: &ChatPrompt) -> Vec<String> {
    prompt.tokens.iter().filter(|&&id| t.is_control(id)).map(|&id| t.token_text(id)).collect()
}

/// The text of a prompt's tokens in this range.
pub fn content(t: &Tokenizer, prompt: &ChatPrompt, range: &Option<Range<usize>>) -> String {
    spelled(t, &prompt.tokens[range.clone().unwrap()])
}

/// How often a token stands in a prompt.
pub fn count(t: &Tokenizer, tokens: &[u32], text: &str) -> usize {
    let id = t.token_id(text).unwrap();
    tokens.iter().filter(|&&token| token == id).count()
}
