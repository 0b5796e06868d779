//! Hints about memory: a prefetch by the processor, and huge pages. The only `unsafe` in this crate.
//!
//! Neither hint changes the result of a program.

use std::mem::MaybeUninit;

/// Asks the processor to load the memory of `item` into its cache. The program's results do not change.
///
/// With a million keys, a search spends more time waiting for memory than computing. If the prefetch starts
/// before the digest is computed, the wait and the computation overlap. `docs/verify.md` has the
/// measurements.
#[inline]
#[allow(
    unsafe_code,
    reason = "stable Rust has no safe form of the prefetch instruction"
)]
pub(super) fn prefetch<T>(item: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: the instruction changes nothing that a program can observe, and raises no fault for any
        // address. The address is valid in any case, because it comes from a reference.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(item).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = item;
}

/// 1 MiB: the smallest list for which a huge page can make a difference.
const LARGE: usize = 1 << 20;

/// Returns a list of `length` default items, in memory for which the kernel may use huge pages.
///
/// The processor caches few addresses of 4-KiB pages. In a large index, almost every search would look up the address
/// of its page first. A failure of the hint is ignored, because the list is then only slower.
pub(super) fn list<T: Default>(length: usize) -> Box<[T]> {
    let mut items = Vec::with_capacity(length);
    if length * size_of::<T>() >= LARGE {
        // Before the first write: the kernel chooses the size of a page when the page is first used.
        advise_huge_pages(items.spare_capacity_mut());
    }
    items.resize_with(length, T::default);
    items.into_boxed_slice()
}

/// Permits huge pages for the whole pages of `memory`.
#[allow(
    unsafe_code,
    reason = "stable Rust has no safe form of the system call"
)]
fn advise_huge_pages<T>(memory: &mut [MaybeUninit<T>]) {
    #[cfg(all(target_os = "linux", not(miri)))]
    {
        use rustix::mm::{Advice, madvise};
        let page = rustix::param::page_size();
        let bytes = memory.as_mut_ptr().cast::<u8>();
        let before = bytes.align_offset(page);
        let pages = size_of_val(memory).saturating_sub(before) / page * page;
        if pages > 0 {
            // SAFETY: the range lies within `memory`, which is borrowed exclusively and unused. The advice changes
            // neither contents nor access rights of the pages, only their size.
            let _ = unsafe {
                madvise(
                    bytes.wrapping_add(before).cast(),
                    pages,
                    Advice::LinuxHugepage,
                )
            };
        }
    }
    #[cfg(not(all(target_os = "linux", not(miri))))]
    let _ = memory;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_list_has_its_items() {
        for length in [0, 1, 1000, LARGE / 8 - 1, LARGE / 8, LARGE] {
            let list = list::<u64>(length);
            assert_eq!(list.len(), length);
            assert!(list.iter().all(|item| *item == 0));
        }
    }

    /// `cargo miri test memory` finds no undefined behaviour, wherever the item lies.
    #[test]
    fn a_hint_changes_nothing() {
        let items = [[7_u64; 9]; 5];
        items.iter().flatten().for_each(prefetch);
        let boxed = Box::new([1_u8; 3]);
        prefetch(&boxed[2]);
        assert_eq!((items, *boxed), ([[7; 9]; 5], [1; 3]));
    }
}
