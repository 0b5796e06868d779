//! The only `unsafe` in this crate: a prefetch hint to the processor.

/// Prefetches the memory of `item`. Has no effect that a program can observe.
///
/// With a million keys, a search spends more time waiting for memory than computing. A prefetch before the
/// digest is computed hides that wait. `docs/verify.md` has the measurements.
#[inline]
#[allow(
    unsafe_code,
    reason = "stable Rust has no safe form of the prefetch instruction"
)]
pub(super) fn prefetch<T>(item: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: the instruction has no visible effect, and raises no fault for any address. This address is
        // valid anyway.
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
