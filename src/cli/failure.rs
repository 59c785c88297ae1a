//! How a command ends when it does not end well.

use std::io;

use clap::Command;

use super::flags;

/// Why a command stopped.
#[derive(Debug)]
pub enum Failure {
    /// Exit code 1, with this message.
    Failed(String),
    /// The same, and flags that mend it, where the command has them.
    Mendable(String, &'static str),
    /// Exit code 130: the user pressed Ctrl-C.
    Interrupted,
    /// Exit code 0: whoever reads our output has seen enough, as `head` does.
    BrokenPipe,
}

impl Failure {
    /// The message, with what mends it by flags of this command.
    pub fn message(&self, command: &Command) -> Option<String> {
        match self {
            Failure::Failed(message) => Some(message.clone()),
            Failure::Mendable(message, flags) => {
                let has =
                    |words: &&str| words.split(' ').filter(|w| w.starts_with('-')).all(|w| flags::has(command, w));
                let there: Vec<&str> = flags.split(", ").filter(has).collect();
                Some(if there.is_empty() { message.clone() } else { format!("{message} ({})", there.join(", ")) })
            }
            Failure::Interrupted | Failure::BrokenPipe => None,
        }
    }

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
            // These parameters are called as their flags.
            spts::Error::Sampler(spts::SamplerError::Parameter { name, .. }) => {
                Failure::Failed(format!("{e} (--{})", name.replace('_', "-")))
            }
            other => match remedy(&other) {
                Some(flags) => Failure::Mendable(other.to_string(), flags),
                None => Failure::Failed(other.to_string()),
            },
        }
    }
}

/// The flags that mend what the library reports, which knows no flags. Commas stand between remedies; a command may have some of
/// them.
fn remedy(e: &spts::Error) -> Option<&'static str> {
    use spts::SidecarError;
    use spts::ggml::GgmlError;
    use spts::gguf::GgufError;
    use spts::quantize::QuantizeError;
    use spts::tokenizer::TokenizerError;
    Some(match e {
        spts::Error::ContextFull { .. } => "-c",
        spts::Error::CacheType { .. } => "-ctk f16 -ctv f16",
        spts::Error::ProxiesMissing => "spts-cli calibrate makes them, --no-proxy scores without",
        spts::Error::Sidecar(
            SidecarError::Version { .. } | SidecarError::OtherModel { .. } | SidecarError::NotFinite { .. },
        ) => "spts-cli calibrate",
        spts::Error::DraftMissing { .. } => "--model-draft",
        spts::Error::SharedKeysParted { .. } => "-ngl",
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::built;

    #[test]
    fn remedies_are_flags_of_the_command() {
        let root = built();
        let at = |path: &[&str]| path.iter().fold(&root, |c, name| c.find_subcommand(name).unwrap()).clone();
        let full = || spts::Error::ContextFull { n_tokens: 2, n_ctx: 1, n_ctx_train: 1 };
        let message = |e: spts::Error, path: &[&str]| Failure::from(e).message(&at(path)).unwrap();
        for path in [&[][..], &["eval", "tasks"], &["tune"]] {
            assert!(message(full(), path).ends_with(" (-c)"), "{path:?}");
        }
        for path in [&["eval", "kl"][..], &["eval", "needle"], &["eval", "proxies"], &["bench"], &["plan"]] {
            assert!(!message(full(), path).contains("-c)"), "{path:?}");
        }
        let types = || spts::Error::CacheType { head_dim: 80 };
        assert!(message(types(), &["bench"]).ends_with(" (-ctk f16 -ctv f16)"));
        assert!(!message(types(), &["eval", "kl"]).contains("-ctk"));
        assert!(message(spts::Error::ProxiesMissing, &["tune"]).ends_with(" (spts-cli calibrate makes them)"));
        let template = || spts::Error::from(spts::tokenizer::TokenizerError::Template { reason: "no".into() });
        assert!(message(template(), &[]).ends_with(" (--no-cnv)"));
        assert!(!message(template(), &["eval", "tasks"]).contains("--no-cnv"));
        let parted = || spts::Error::SharedKeysParted { file: "m.gguf".into(), first: 3, last: 8, n_layers: 6 };
        assert!(message(parted(), &[]).ends_with(" (-ngl)") && message(parted(), &["bench"]).ends_with(" (-ngl)"));
        assert_eq!(Failure::Interrupted.message(&root), None);
    }
}
