//! Huge pages for what a CPU reads from end to end with every token: a step of decoding spends some percent of its time on
//! walking page tables otherwise.

/// Memory smaller than this gains nothing.
const WORTH_IT: usize = 4 << 20;

/// Whether the kernel gives huge pages to those who ask.
pub fn are_given() -> bool {
    // `[never]` is how the chosen one of the settings is written.
    cfg!(target_os = "linux")
        && std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").is_ok_and(|s| !s.contains("[never]"))
}

/// Asks for huge pages behind `len` bytes at `base` that nothing has touched yet. Only a hint: a refusal changes nothing but
/// speed.
///
/// # Safety
/// The memory is the caller's own and anonymous.
pub unsafe fn advise(base: *mut u8, len: usize) {
    #[cfg(target_os = "linux")]
    if len >= WORTH_IT {
        const PAGE: usize = 4096;
        let skip = base.align_offset(PAGE);
        // SAFETY: whole pages within the caller's memory; the advice leaves their contents alone.
        unsafe { libc::madvise(base.add(skip).cast(), (len - skip) / PAGE * PAGE, libc::MADV_HUGEPAGE) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (base, len, WORTH_IT);
}
