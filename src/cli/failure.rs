//! How a command ends when it does not end well.

use std::io;

/// Why a command stopped.
#[derive(Debug)]
pub enum Failure {
    /// Exit code 1, with this message.
    Failed(String),
    /// Exit code 130: the user pressed Ctrl-C.
    Interrupted,
    /// Exit code 0: whoever reads our output has seen enough, as `head` does.
    BrokenPipe,
}

impl Failure {
    /// A write to standard output that failed.
    pub fn stdout(e: io::Error) -> Failure {
        match e.kind() {
            io::ErrorKind::BrokenPipe => Failure::BrokenPipe,
            _ => Failure::Failed(format!("standard output: {e}")),
        }
    }
}

impl From<spts::Error> for Failure {
    fn from(e: spts::Error) -> Failure {
        match e {
            spts::Error::Interrupted => Failure::Interrupted,
            other => Failure::Failed(match remedy(&other) {
                Some(flags) => format!("{other} ({flags})"),
                None => other.to_string(),
            }),
        }
    }
}

/// The flags that mend what the library reports, which knows no flags.
fn remedy(e: &spts::Error) -> Option<&'static str> {
    use spts::ggml::GgmlError;
    use spts::gguf::GgufError;
    use spts::quantize::QuantizeError;
    use spts::tokenizer::TokenizerError;
    Some(match e {
        spts::Error::ContextFull { .. } => "-c",
        spts::Error::CacheType { .. } => "-ctk f16 -ctv f16",
        spts::Error::ProxiesMissing => "spts-cli calibrate makes them, --no-proxy scores without",
        spts::Error::DraftMissing { .. } => "--model-draft",
        spts::Error::Ggml(GgmlError::OutOfMemory { what, .. }) if what.contains("residual") => "--document-memory host",
        spts::Error::Document(spts::DocumentError::OtherTypes { .. }) => "-ctk and -ctv",
        spts::Error::Ggml(GgmlError::OutOfMemory { .. }) => "-ngl, -ub, -ctk and -ctv",
        spts::Error::Gguf(GgufError::Lock { .. }) => "without --mlock",
        spts::Error::Tokenizer(e) => match e.inner() {
            TokenizerError::MessageLost { role } if role == "system" => "without -sys",
            TokenizerError::Template { .. } | TokenizerError::MessageLost { .. } => "--no-cnv",
            _ => return None,
        },
        spts::Error::Quantize(QuantizeError::Requantize { .. }) => "--allow-requantize",
        _ => return None,
    })
}

impl From<spts::output_file::OutputError> for Failure {
    fn from(e: spts::output_file::OutputError) -> Failure {
        Failure::Failed(e.to_string())
    }
}

impl From<super::prompt::PromptError> for Failure {
    fn from(e: super::prompt::PromptError) -> Failure {
        Failure::Failed(e.to_string())
    }
}

impl From<spts::method::spts::schedule_file::ScheduleFileError> for Failure {
    fn from(e: spts::method::spts::schedule_file::ScheduleFileError) -> Failure {
        use spts::method::spts::schedule_file::ScheduleFileError::{Fractions, Unknown};
        // These two speak of what stands behind the flag, the others of a file.
        let flag = if matches!(e, Unknown(_) | Fractions { .. }) { "--" } else { "" };
        Failure::Failed(format!("{flag}{e}"))
    }
}

impl From<spts::method::MethodError> for Failure {
    fn from(e: spts::method::MethodError) -> Failure {
        Failure::Failed(e.to_string())
    }
}

impl From<spts::method::spts::schedule::ScheduleError> for Failure {
    fn from(e: spts::method::spts::schedule::ScheduleError) -> Failure {
        Failure::Failed(e.to_string())
    }
}
