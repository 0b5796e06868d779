//! Holes: faults that were found in these rules, each to be put back one at a time.
//!
//! The escalation search (`tests/escalation`) has to find each of them, or it shows nothing. Without
//! `--cfg keyward_hole`, which the long tier of the tests alone sets, none can be open.

#[cfg(keyward_hole)]
use std::cell::Cell;

#[cfg(keyward_hole)]
thread_local! {
    static OPEN: Cell<Option<&'static str>> = const { Cell::new(None) };
}

/// Opens the hole of this name, on this thread alone; `None` closes it.
#[cfg(keyward_hole)]
#[doc(hidden)]
pub fn open(name: Option<&'static str>) {
    OPEN.set(name);
}

/// Returns whether the hole of this name is open.
#[cfg(keyward_hole)]
pub(crate) fn is_open(name: &'static str) -> bool {
    OPEN.get() == Some(name)
}

/// Returns whether the hole of this name is open.
#[cfg(not(keyward_hole))]
#[inline(always)]
pub(crate) const fn is_open(_: &'static str) -> bool {
    false
}
