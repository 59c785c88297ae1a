//! Chat templates and tokens of tiny models, other than they come with.

use super::gguf::{File, Value};

/// The type of a token that steers, such as the end of a turn.
pub const CONTROL: i32 = 3;
/// The type of a token that is text and always a token of its own.
pub const USER_DEFINED: i32 = 4;

const TEMPLATE: &str = "tokenizer.chat_template";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";

/// Takes a file's chat template away.
pub fn without_template(file: &mut File) {
    file.metadata.retain(|(key, _)| key != TEMPLATE);
}

/// Gives a file this chat template in place of its own.
pub fn with_template(template: &str) -> impl FnOnce(&mut File) {
    move |file| {
        without_template(file);
        file.set(TEMPLATE, template);
    }
}

/// Adds tokens of one type behind a file's own.
pub fn add_tokens(file: &mut File, texts: &[&str], ty: i32) {
    array(file, TOKENS).extend(texts.iter().map(|text| Value::from(*text)));
    array(file, TYPES).extend(texts.iter().map(|_| Value::I32(ty)));
}

/// Gives all tokens of one type another.
pub fn retype_tokens(file: &mut File, from: i32, to: i32) {
    array(file, TYPES).iter_mut().filter(|ty| **ty == Value::I32(from)).for_each(|ty| *ty = Value::I32(to));
}

fn array<'a>(file: &'a mut File, key: &str) -> &'a mut Vec<Value> {
    match file.metadata.iter_mut().find(|(k, _)| k == key) {
        Some((_, Value::Array(_, values))) => values,
        other => panic!("{key}: {other:?} is no array"),
    }
}
