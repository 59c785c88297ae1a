//! ggml's messages: collected through a callback, silent unless asked for.

use std::ffi::{CStr, c_char, c_void};
use std::sync::Once;
use std::sync::atomic::{AtomicU8, Ordering};

use ggml_sys as sys;

/// Which messages of ggml reach stderr.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[non_exhaustive]
pub enum Level {
    /// None.
    Silent = 0,
    /// Warnings and errors.
    Warnings = 1,
    /// Everything.
    All = 2,
}

static LEVEL: AtomicU8 = AtomicU8::new(Level::Silent as u8);

/// Sets the level for the whole process.
pub fn set_level(level: Level) {
    LEVEL.store(level as u8, Ordering::Relaxed);
}

/// Installs the callback, once, before ggml says anything.
pub(super) fn install() {
    static INSTALL: Once = Once::new();
    // SAFETY: the callback is a plain function that never unwinds.
    INSTALL.call_once(|| unsafe { sys::ggml_log_set(Some(on_message), std::ptr::null_mut()) });
}

unsafe extern "C" fn on_message(level: sys::ggml_log_level, text: *const c_char, _user: *mut c_void) {
    let wanted = LEVEL.load(Ordering::Relaxed);
    let severe = (sys::GGML_LOG_LEVEL_WARN..=sys::GGML_LOG_LEVEL_ERROR).contains(&level);
    if text.is_null() || wanted == Level::Silent as u8 || (wanted == Level::Warnings as u8 && !severe) {
        return;
    }
    // SAFETY: ggml passes a NUL-terminated string.
    let text = unsafe { CStr::from_ptr(text) };
    // A closed stderr must not unwind into C.
    use std::io::Write;
    let _ = std::io::stderr().write_all(text.to_bytes());
}
