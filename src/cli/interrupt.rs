//! Ctrl-C (or SIGTERM, SIGHUP): the first one stops the computation between two operations, the second one the process.
//! Either way no file is left behind that is not complete.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use spts::output_file;

use super::failure::Failure;

/// The flags of the sessions that were opened, the oldest first.
static COMPUTATIONS: Mutex<Vec<Weak<AtomicBool>>> = Mutex::new(Vec::new());

/// Catches Ctrl-C, SIGTERM and SIGHUP from now on. Until there is a computation to stop it ends the process.
pub fn install() -> Result<(), Failure> {
    let handler = || {
        let flags = COMPUTATIONS.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = flags.iter().filter_map(Weak::upgrade).filter(|flag| !flag.swap(true, Ordering::Relaxed)).count();
        if asked == 0 {
            output_file::remove_unfinished();
            // The progress line would stand before the shell's prompt.
            let _ = std::io::stderr().write_all(b"\n");
            std::process::exit(crate::INTERRUPTED.into())
        }
    };
    let hangups_ignored = hangup::is_ignored();
    ctrlc::set_handler(handler).map_err(|e| Failure::Failed(format!("cannot catch Ctrl-C: {e}")))?;
    if hangups_ignored {
        hangup::ignore();
    }
    Ok(())
}

/// SIGHUP, which `nohup` has ignored for its child: that has to stay so.
#[cfg(unix)]
mod hangup {
    pub fn is_ignored() -> bool {
        // SAFETY: without a new action the call only writes the present one to `action`, a plain structure for which all zeros
        // are valid.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            libc::sigaction(libc::SIGHUP, std::ptr::null(), &mut action) == 0 && action.sa_sigaction == libc::SIG_IGN
        }
    }

    pub fn ignore() {
        // SAFETY: ignoring a signal runs no code of ours.
        unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
    }
}

#[cfg(not(unix))]
mod hangup {
    pub fn is_ignored() -> bool {
        false
    }

    pub fn ignore() {}
}

/// The flag that stops a computation, for as long as its session lives.
pub fn stops(flag: &Arc<AtomicBool>) {
    let mut flags = COMPUTATIONS.lock().unwrap_or_else(PoisonError::into_inner);
    flags.retain(|f| f.strong_count() > 0);
    flags.push(Arc::downgrade(flag));
}
