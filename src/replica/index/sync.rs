//! The atomic types that the index uses: the standard library's types, or loom's types in loom tests. Loom
//! runs a test in every interleaving that the memory model allows.

#[cfg(not(all(test, keyward_loom)))]
pub(super) use self::real::*;

#[cfg(all(test, keyward_loom))]
pub(super) use self::model::*;

#[cfg(not(all(test, keyward_loom)))]
mod real {
    pub(in super::super) use std::sync::OnceLock;
    pub(in super::super) use std::sync::atomic::{
        AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering, fence,
    };

    /// 64 spins before a waiting thread yields to other threads.
    const SPINS: u32 = 64;

    /// Waits briefly for another thread. `spins` is the number of earlier calls for the same wait. Every 64th
    /// call yields the processor to other threads.
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
    pub(in super::super) use loom::sync::atomic::{
        AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering, fence,
    };

    /// Yields to the other threads. Without the yield, loom would never schedule the thread that this thread
    /// waits for.
    pub(in super::super) fn pause(_: u32) {
        loom::hint::spin_loop();
    }

    /// A replacement for `std::sync::OnceLock`, which loom does not model. The item is stored in a standard
    /// `OnceLock`. A loom atomic decides whether a thread sees the item.
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
