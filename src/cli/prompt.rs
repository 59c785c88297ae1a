//! The prompt: a document and a question behind it.

use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use spts::tokenizer::{Message, is_without_text};
use thiserror::Error;

/// More bytes than any context holds: such a file was given by mistake, or never ends.
const MAX_BYTES: u64 = 1 << 30;

/// Why there is no prompt.
#[derive(Debug, Error)]
pub enum PromptError {
    /// Not there, no permission, a folder.
    #[error("{}: cannot read the document: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Bytes that are no text.
    #[error("{}: not UTF-8 text: byte {offset} is {byte:#04x}; convert the file to UTF-8 first", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Of the first bad byte, from 0.
        offset: usize,
        /// Its value.
        byte: u8,
    },
    /// Above [`MAX_BYTES`].
    #[error("{}: longer than {} bytes; no context holds that", path.display(), MAX_BYTES)]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// A document without text, or with white space only.
    #[error("{}: the document has no text", path.display())]
    NoDocument {
        /// The file.
        path: PathBuf,
    },
    /// Neither a document nor a question with text.
    #[error("the prompt is empty: -p has no text")]
    Empty,
}

/// Reads a text file; `-` is standard input. A byte order mark and the newline at the end are left out.
pub fn read_document(path: &Path) -> Result<String, PromptError> {
    let io = |source| PromptError::Io { path: path.to_owned(), source };
    let reader: Box<dyn Read> = if path == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(std::fs::File::open(path).map_err(io)?)
    };
    let mut bytes = Vec::new();
    reader.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(PromptError::TooLong { path: path.to_owned() });
    }
    let text = String::from_utf8(bytes).map_err(|e| {
        let offset = e.utf8_error().valid_up_to();
        PromptError::NotUtf8 {
            path: path.to_owned(),
            offset,
            byte: e.as_bytes().get(offset).copied().unwrap_or_default(),
        }
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let text = text.strip_suffix('\n').unwrap_or(text);
    Ok(text.strip_suffix('\r').unwrap_or(text).to_owned())
}

/// Reads a text as [`read_document`] does. Of a JSON object with a string `text` (collections of essays come as such) that
/// string is the text.
pub fn read_text(path: &Path) -> Result<String, PromptError> {
    #[derive(serde::Deserialize)]
    struct Wrapped {
        text: String,
    }
    let text = read_document(path)?;
    if !text.trim_start().starts_with('{') {
        return Ok(text);
    }
    Ok(serde_json::from_str::<Wrapped>(&text).map_or(text, |w| w.text))
}

/// A text that is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document(String);

impl Document {
    /// Reads it; `-` is standard input.
    ///
    /// # Errors
    /// A document that cannot be read or has no text.
    pub fn read(path: &Path) -> Result<Document, PromptError> {
        let text = read_document(path)?;
        match is_without_text(&text) {
            true => Err(PromptError::NoDocument { path: path.to_owned() }),
            false => Ok(Document(text)),
        }
    }

    /// The user's message: the document, a blank line, the question.
    pub fn with(&self, question: &str) -> Message {
        Message::about(&self.0, question)
    }
}

/// What the user says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// The text of `-f`.
    document: Option<Document>,
    /// The text of `-p`.
    question: Option<String>,
}

impl Prompt {
    /// Reads the document. A question without text counts as none.
    ///
    /// # Errors
    /// A document that cannot be read or has no text; neither document nor question.
    pub fn read(file: Option<&Path>, question: Option<&str>) -> Result<Prompt, PromptError> {
        let document = file.map(Document::read).transpose()?;
        let question = question.filter(|q| !is_without_text(q)).map(str::to_owned);
        match (&document, &question) {
            (None, None) => Err(PromptError::Empty),
            _ => Ok(Prompt { document, question }),
        }
    }

    /// The user's message: the document, a blank line, the question.
    pub fn message(&self) -> Message {
        match (&self.document, &self.question) {
            (Some(document), Some(question)) => document.with(question),
            (Some(Document(text)), None) => Message::new("user", text),
            (None, question) => Message::new("user", question.clone().unwrap_or_default()),
        }
    }
}

/// Whether text waits on standard input that nobody will read. Neither waits nor takes anything.
#[cfg(unix)]
pub fn standard_input_waits() -> bool {
    let stdin = std::io::stdin();
    !stdin.is_terminal() && rustix::io::ioctl_fionread(&stdin).is_ok_and(|n| n > 0)
}

/// Elsewhere one cannot tell.
#[cfg(not(unix))]
pub fn standard_input_waits() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<String, PromptError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("doc.txt");
        std::fs::write(&path, bytes).unwrap();
        read_document(&path)
    }

    #[test]
    fn one_newline_at_the_end_goes() {
        assert_eq!(read(b"\xef\xbb\xbfa\n\n").unwrap(), "a\n");
        assert_eq!(read(b"a\r\n").unwrap(), "a");
        assert_eq!(read(b"").unwrap(), "");
    }

    #[test]
    fn a_text_may_be_wrapped_in_json() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("essays.json");
        for (content, text) in
            [(r#"{"text": "a\u00e9"}"#, "aé"), ("{plain text}", "{plain text}"), (r#"{"t": 1}"#, r#"{"t": 1}"#)]
        {
            std::fs::write(&path, content).unwrap();
            assert_eq!(read_text(&path).unwrap(), text);
        }
    }

    #[test]
    fn what_is_no_text_is_refused() {
        assert!(read(b"abc\xff").unwrap_err().to_string().ends_with("byte 3 is 0xff; convert the file to UTF-8 first"));
        // Cut off in the middle of a character.
        assert!(read(b"abc\xe2\x82").unwrap_err().to_string().contains("byte 3 is 0xe2"));
        assert!(matches!(read_document(Path::new("no/such/file")), Err(PromptError::Io { .. })));
        assert!(matches!(read_document(&std::env::temp_dir()), Err(PromptError::Io { .. })));
    }

    #[test]
    fn the_question_follows_the_document() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("doc.txt");
        std::fs::write(&path, "d\n").unwrap();
        let read = |file: Option<&Path>, question| Prompt::read(file, question);
        let message = read(Some(&path), Some("q")).unwrap().message();
        assert_eq!((message.content(), message.question()), ("d\n\nq", Some(3..4)));
        for question in [None, Some(""), Some(" ")] {
            let message = read(Some(&path), question).unwrap().message();
            assert_eq!((message.content(), message.question()), ("d", None));
        }
        assert_eq!(read(None, Some("q")).unwrap().message(), Message::new("user", "q"));
        assert!(matches!(read(None, Some(" \n")), Err(PromptError::Empty)));
        for empty in ["", "\n", " \t\r\n ", "\u{feff}", "\u{feff}\u{feff} \n", "\u{200b}\0"] {
            std::fs::write(&path, empty).unwrap();
            for question in [None, Some("q")] {
                let e = read(Some(&path), question).unwrap_err();
                assert!(e.to_string().ends_with("doc.txt: the document has no text"), "{empty:?}: {e}");
            }
        }
    }
}
