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
            other => Failure::Failed(other.to_string()),
        }
    }
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
        Failure::Failed(e.to_string())
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
