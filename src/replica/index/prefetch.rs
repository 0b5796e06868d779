//! The only `unsafe` in this crate: a prefetch hint to the processor.

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

#[cfg(test)]
mod tests {
    use super::*;

    /// `cargo miri test prefetch` finds no undefined behaviour, wherever the item lies.
    #[test]
    fn a_hint_changes_nothing() {
        let items = [[7_u64; 9]; 5];
        items.iter().flatten().for_each(prefetch);
        let boxed = Box::new([1_u8; 3]);
        prefetch(&boxed[2]);
        assert_eq!((items, *boxed), ([[7; 9]; 5], [1; 3]));
    }
}
