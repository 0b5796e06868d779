//! Holes: former security faults in these rules. A test can reintroduce one fault at a time.
//!
//! The escalation search (`tests/it/escalation`) must find each open hole. This proves that the search works.
//! Only the long test tier sets `--cfg keyward_hole`. Without that flag, every hole is closed.

#[cfg(keyward_hole)]
use std::cell::Cell;

#[cfg(keyward_hole)]
thread_local! {
    static OPEN: Cell<Option<&'static str>> = const { Cell::new(None) };
}

/// Opens the hole with this name, on the current thread only. `None` closes the open hole.
#[cfg(keyward_hole)]
pub fn open(name: Option<&'static str>) {
    OPEN.set(name);
}

/// Returns whether the hole with this name is open.
#[cfg(keyward_hole)]
pub(crate) fn is_open(name: &'static str) -> bool {
    OPEN.get() == Some(name)
}

/// Returns `false`, because without `--cfg keyward_hole` every hole is closed.
#[cfg(not(keyward_hole))]
#[inline(always)]
pub(crate) const fn is_open(_: &'static str) -> bool {
    false
}
