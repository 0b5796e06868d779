//! The atomics that the index's writer and readers share: the standard library's, or loom's. Loom
//! runs a test in every order that the memory model allows.

#[cfg(not(all(test, keyward_loom)))]
pub(super) use self::real::*;

#[cfg(all(test, keyward_loom))]
pub(super) use self::model::*;

#[cfg(not(all(test, keyward_loom)))]
mod real {
    pub(in super::super) use std::sync::OnceLock;
    pub(in super::super) use std::sync::atomic::{
        AtomicI64, AtomicU32, AtomicU64, Ordering, fence,
    };

    /// 64 attempts before the thread yields to others.
    const SPINS: u32 = 64;

    /// Waits briefly for another thread, for the `spins`th time.
    pub(in super::super) fn pause(spins: u32) {
        if spins.is_multiple_of(SPINS) {
            std::thread::yield_now();
        } else {
            std::hint::spin_loop();
        }
    }
}

#[cfg(all(test, keyward_loom))]
mod model {
    use loom::sync::atomic::AtomicBool;
    pub(in super::super) use loom::sync::atomic::{
        AtomicI64, AtomicU32, AtomicU64, Ordering, fence,
    };

    /// Yields to the other threads: loom schedules nobody else while a thread only spins.
    pub(in super::super) fn pause(_: u32) {
        loom::hint::spin_loop();
    }

    /// Replaces `std::sync::OnceLock`, which loom does not model. A standard one stores the item,
    /// and a loom atomic decides whether a thread may see it yet.
    pub(in super::super) struct OnceLock<T> {
        item: std::sync::OnceLock<T>,
        is_set: AtomicBool,
    }

    impl<T> OnceLock<T> {
        pub(in super::super) fn new() -> Self {
            Self {
                item: std::sync::OnceLock::new(),
                is_set: AtomicBool::new(false),
            }
        }

        pub(in super::super) fn get(&self) -> Option<&T> {
            let is_set = self.is_set.load(Ordering::Acquire);
            self.item.get().filter(|_| is_set)
        }

        pub(in super::super) fn set(&self, item: T) -> Result<(), T> {
            self.item.set(item)?;
            self.is_set.store(true, Ordering::Release);
            Ok(())
        }
    }
}
