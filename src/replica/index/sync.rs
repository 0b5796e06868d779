//! By what the index's writer and its readers share memory: the standard library's atomics, or
//! loom's, which run a test in each order that the memory model allows.

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

    /// How often one looks again before others are let run.
    const SPINS: u32 = 64;

    /// Waits a moment for another thread, the `spins`th time.
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

    /// Lets the others run: loom takes no turn for a thread that only waits.
    pub(in super::super) fn pause(_: u32) {
        loom::hint::spin_loop();
    }

    /// What the index asks of the standard one, which loom has none of: the item is kept by that,
    /// and whether a thread may see it yet is loom's to say.
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
