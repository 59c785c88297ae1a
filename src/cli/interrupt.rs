//! Ctrl-C (or SIGTERM, SIGHUP): the first one stops the computation between two operations, the second one the process.
//! Either way no file is left behind that is not complete.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use spts::output_file;

use super::failure::Failure;

/// The flags of the sessions that were opened, the oldest first.
static COMPUTATIONS: Mutex<Vec<Weak<AtomicBool>>> = Mutex::new(Vec::new());

/// Nothing is computed: SIGTERM and SIGHUP end the process. Ctrl-C is a key there, or comes between the key that ends a line and
/// the answer to it.
static AT_REST: AtomicBool = AtomicBool::new(false);

/// Catches Ctrl-C, SIGTERM and SIGHUP from now on; a hangup that `nohup` has ignored stays ignored. Until there is a computation
/// to stop they end the process.
///
/// # Errors
/// The system does not let signals be caught.
pub fn install() -> Result<(), Failure> {
    let hangup = (!is_ignored(SIGHUP)).then_some(SIGHUP);
    let caught = [SIGINT, SIGTERM].into_iter().chain(hangup);
    let failed = |e: std::io::Error| Failure::Failed(format!("cannot catch Ctrl-C: {e}"));
    let mut signals = Signals::new(caught).map_err(failed)?;
    let thread = std::thread::Builder::new().name("interrupt".into());
    thread.spawn(move || signals.forever().for_each(interrupt)).map_err(failed)?;
    Ok(())
}

fn interrupt(signal: i32) {
    let flags = COMPUTATIONS.lock().unwrap_or_else(PoisonError::into_inner);
    let at_rest = AT_REST.load(Ordering::Relaxed);
    if at_rest && signal == SIGINT {
        return;
    }
    let asked = flags.iter().filter_map(Weak::upgrade).filter(|flag| !flag.swap(true, Ordering::Relaxed)).count();
    if asked == 0 || at_rest {
        output_file::remove_unfinished();
        // The progress line would stand before the shell's prompt.
        let _ = std::io::stderr().write_all(b"\n");
        // At once: the handlers that a usual exit runs take apart what the computing threads still use.
        signal_hook::low_level::exit(crate::INTERRUPTED.into())
    }
}

/// Waits for the user: signals that come meanwhile have no computation to stop.
pub fn at_rest<T>(wait: impl FnOnce() -> T) -> T {
    AT_REST.store(true, Ordering::Relaxed);
    let out = wait();
    AT_REST.store(false, Ordering::Relaxed);
    out
}

/// Whether whoever started the process had it ignore a signal: Linux lists them as a mask.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    mask.is_some_and(|mask| mask & (1 << (signal - 1)) != 0)
}

/// The flag that stops a computation, for as long as its session lives.
pub fn stops(flag: &Arc<AtomicBool>) {
    let mut flags = COMPUTATIONS.lock().unwrap_or_else(PoisonError::into_inner);
    flags.retain(|f| f.strong_count() > 0);
    flags.push(Arc::downgrade(flag));
}
