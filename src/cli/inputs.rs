//! What the commands that answer prompts take in: turns of a conversation as tokens, and files that no output may replace.

use std::path::{Path, PathBuf};

use spts::ModelFile;
use spts::method::spts::schedule_file::path_beside;
use spts::method::spts::sidecar::Sidecar;
use spts::output_file::OutputFile;
use spts::tokenizer::{ChatPrompt, Message, Tokenizer};

use super::failure::Failure;
use super::{RunArgs, note};

/// The prompt's tokens, and where its question stands. A model without a chat template is no chat model: it gets the text
/// alone. Control tokens in it count only with `--no-cnv`, where the text is a template of its author's own.
pub fn encode(args: &RunArgs, model: &ModelFile, messages: &[Message]) -> Result<ChatPrompt, Failure> {
    let tokenizer = model.tokenizer();
    let template = model.chat_template();
    if args.no_cnv || template.is_builtin() {
        if args.system_prompt.is_some() {
            return Err(Failure::Failed(
                "-sys: this model has no chat template, and so no place for a system prompt; put it into -p".into(),
            ));
        }
        let prompt = ChatPrompt::raw(tokenizer, &joined(messages), args.no_cnv);
        note_doubled_bos(tokenizer, &prompt.tokens, "the text");
        return Ok(prompt);
    }
    let system = args.system_prompt.as_deref().map(|s| Message::new("system", s));
    let messages: Vec<Message> = system.into_iter().chain(messages.iter().cloned()).collect();
    let prompt = template.encode(tokenizer, &messages, true).map_err(spts::Error::from)?;
    let whose = if template.given().is_some() { "the chat template" } else { "the model's chat template" };
    note_doubled_bos(tokenizer, &prompt.tokens, whose);
    Ok(prompt)
}

/// The turns of a conversation as one text, for models without a template: blank lines stand between them.
fn joined(messages: &[Message]) -> Message {
    match messages {
        [one] => one.clone(),
        all => Message::new("user", all.iter().map(Message::content).collect::<Vec<_>>().join("\n\n")),
    }
}

/// Models are trained with one BOS; a second one makes their answers worse.
fn note_doubled_bos(tokenizer: &Tokenizer, tokens: &[u32], whose: &str) {
    if let (Some(bos), [first, second, ..]) = (tokenizer.bos(), tokens)
        && *first == bos
        && *second == bos
    {
        let text = tokenizer.token_text(bos);
        note(&format!("the prompt begins with two {text}: {whose} brings one that is not needed"));
    }
}

/// Creates a file that is none of those that a command reads, which the `files` of its arguments list.
pub fn create_output(path: &Path, files: &[PathBuf]) -> Result<OutputFile, Failure> {
    Ok(OutputFile::create(path, &files.iter().map(PathBuf::as_path).collect::<Vec<_>>())?)
}

/// A model's file, and those beside it that are taken unasked.
pub fn with_those_beside(model: Option<&Path>) -> Vec<PathBuf> {
    model.map_or_else(Vec::new, |m| vec![m.to_owned(), Sidecar::path_beside(m), path_beside(m)])
}
