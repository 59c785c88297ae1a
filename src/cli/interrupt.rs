//! Ctrl-C: the first one stops the computation between two operations, the second one the process.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use super::failure::Failure;

static COMPUTATION: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Catches Ctrl-C from now on. Until there is a computation to stop it ends the process.
pub fn install() -> Result<(), Failure> {
    let handler = || match COMPUTATION.get() {
        Some(flag) if !flag.swap(true, Ordering::Relaxed) => {}
        _ => {
            // The progress line would stand before the shell's prompt.
            let _ = std::io::stderr().write_all(b"\n");
            std::process::exit(crate::INTERRUPTED.into())
        }
    };
    ctrlc::set_handler(handler).map_err(|e| Failure::Failed(format!("cannot catch Ctrl-C: {e}")))
}

/// The flag that stops the computation.
pub fn stops(flag: Arc<AtomicBool>) {
    // A process has one session.
    let _ = COMPUTATION.set(flag);
}
