//! Counting tokens: `spts-cli tokenize -m model.gguf -f text`. Only the vocabulary is read, no weights.

use std::io::{BufRead, Write};
use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use spts::gguf::{Gguf, OpenOptions};
use spts::tokenizer::{ChatTemplate, PromptKeys, PromptText, Tokenizer};

use super::failure::Failure;
use super::prompt;

/// For help texts.
pub const HELP: &str = "With --jsonl each line of standard input is a JSON string, or an object with prompt, or with messages (role and \
     content of each) and the assistant's first words as prefix, which go through the model's chat template; each line \
     of the output is an object with n_tokens, and with --ids also ids.";

/// Counting tokens.
#[derive(Args, Clone, Debug)]
pub struct TokenizeArgs {
    /// Model, a GGUF file
    #[arg(short, long, value_name = "FILE")]
    model: PathBuf,
    /// Text, taken as it is: control tokens in it count as such, and the model's BOS comes first
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true, required_unless_present_any = ["file", "jsonl"], conflicts_with = "file")]
    prompt: Option<String>,
    /// File with the text, UTF-8; - is standard input
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Answer JSON lines from standard input, one by one
    #[arg(long, conflicts_with_all = ["prompt", "file", "count"])]
    jsonl: bool,
    /// Print only how many there are
    #[arg(long, conflicts_with = "ids")]
    count: bool,
    /// Print only the ids
    #[arg(long)]
    ids: bool,
}

/// Counts, and writes to standard output.
pub fn tokenize(args: &TokenizeArgs) -> Result<(), Failure> {
    let options = OpenOptions { mmap: true, mlock: false };
    let gguf = Gguf::open(&args.model, options).map_err(spts::Error::from)?;
    let tokenizer = Tokenizer::from_gguf(&gguf).map_err(spts::Error::from)?;
    if args.jsonl {
        let template = ChatTemplate::from_gguf(&gguf, &tokenizer).map_err(spts::Error::from)?;
        return lines(args, &tokenizer, &template);
    }
    let text = match (&args.prompt, &args.file) {
        (Some(text), _) => text.clone(),
        (None, Some(path)) => prompt::read_document(path)?,
        (None, None) => String::new(),
    };
    let ids = tokenizer.encode(&text, true, true);
    let mut out = String::new();
    if args.count {
        out = format!("{}\n", ids.len());
    } else if args.ids {
        out = ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ") + "\n";
    } else {
        for id in ids {
            let bytes = String::from_utf8_lossy(tokenizer.token_bytes(id)).into_owned();
            out.push_str(&format!("{id:>8}  {bytes:?}\n"));
        }
    }
    crate::write_stdout(&out)
}

fn lines(args: &TokenizeArgs, tokenizer: &Tokenizer, template: &ChatTemplate) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    for (i, line) in std::io::stdin().lock().lines().enumerate() {
        let bad = |what: String| Failure::Failed(format!("standard input: line {}: {what}", i + 1));
        let line = line.map_err(|e| bad(e.to_string()))?;
        let text = match serde_json::from_str::<serde_json::Value>(&line).map_err(|e| bad(e.to_string()))? {
            serde_json::Value::String(text) => PromptText::Raw(text),
            object => serde_json::from_value::<PromptKeys>(object)
                .map_err(|e| bad(e.to_string()))
                .and_then(|keys| keys.text().map_err(bad))?,
        };
        let ids = text.encode(tokenizer, template).map_err(|e| bad(e.to_string()))?.tokens;
        let answer = match args.ids {
            true => json!({ "n_tokens": ids.len(), "ids": ids }),
            false => json!({ "n_tokens": ids.len() }),
        };
        // Whoever waits for the answer asks the next question after it.
        writeln!(out, "{answer}").and_then(|()| out.flush()).map_err(Failure::stdout)?;
    }
    Ok(())
}
