//! Memory that is said to be used up: how tests see what a failed allocation leaves behind.

use std::cell::Cell;

thread_local! {
    /// Allocations until the one that fails; 0 when none does.
    static LEFT: Cell<usize> = const { Cell::new(0) };
}

/// Lets the `n`-th allocation of device memory from now on fail in this thread, from 1; 0 lets none fail.
pub fn fail_allocation(n: usize) {
    LEFT.set(n);
}

/// Whether the failure asked for has yet to come.
pub fn is_pending() -> bool {
    LEFT.get() > 0
}

/// Counts an allocation, and says whether it is the one that fails.
pub(super) fn fails() -> bool {
    let left = LEFT.get();
    LEFT.set(left.saturating_sub(1));
    left == 1
}
