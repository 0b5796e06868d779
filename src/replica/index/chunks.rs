//! A list that grows at its end, and whose items never move in memory. So readers need no lock while the list
//! grows.

use std::sync::OnceLock;

use super::memory;

/// 64 items in the first chunk, so that a small index is small.
const FIRST: usize = 64;
/// At most 4 MiB per chunk, so that a chunk can use huge pages.
const CHUNK_SIZE: usize = 4 << 20;
/// 256 chunks per shelf, the middle level of the list.
const SHELF: usize = 256;
/// Room for 17 small chunks: together the first 2²² items, if an item has a single byte.
const SMALL: usize = 17;

type Chunk<T> = OnceLock<Box<[T]>>;
type Shelf<T> = OnceLock<Box<[Chunk<T>]>>;

/// A list with three levels: shelves, chunks and items. An item is created by `Default` together with its
/// chunk. Its own atomics change it later.
///
/// The first chunks double in size up to the size of all later ones: 64, 64, 128, … items.
pub(super) struct Chunks<T> {
    small: [Chunk<T>; SMALL],
    shelves: OnceLock<Box<[Shelf<T>]>>,
}

impl<T> Default for Chunks<T> {
    fn default() -> Self {
        Self {
            small: std::array::from_fn(|_| OnceLock::new()),
            shelves: OnceLock::new(),
        }
    }
}

impl<T: Default> Chunks<T> {
    /// The number of items in a chunk: a power of two, so that finding an item needs no division. The small chunks
    /// together have as many items.
    const CHUNK: usize = 1 << (CHUNK_SIZE / size_of::<T>()).ilog2();
    /// The number of shelves: room for 2³² items.
    const SHELVES: usize = ((1 << 32) / Self::CHUNK as u64 / SHELF as u64) as usize;

    /// Returns the item at `index`. `None` if the chunk of that item is not allocated.
    #[inline]
    pub(super) fn get(&self, index: u32) -> Option<&T> {
        let index = index as usize;
        if index < Self::CHUNK {
            let (chunk, offset) = small(index);
            return self.small[chunk].get()?.get(offset);
        }
        let (shelf, chunk, offset) = Self::large(index);
        let shelf = self.shelves.get()?.get(shelf)?.get()?;
        shelf[chunk].get()?.get(offset)
    }

    /// Returns the item at `index`, and allocates its chunk if needed.
    pub(super) fn at(&self, index: u32) -> &T {
        let index = index as usize;
        if index < Self::CHUNK {
            let (chunk, offset) = small(index);
            let size = if chunk == 0 {
                FIRST
            } else {
                FIRST << (chunk - 1)
            };
            return &self.small[chunk].get_or_init(|| memory::list(size))[offset];
        }
        let (shelf, chunk, offset) = Self::large(index);
        let shelves = self.shelves.get_or_init(|| memory::list(Self::SHELVES));
        let chunks = shelves[shelf].get_or_init(|| memory::list(SHELF));
        &chunks[chunk].get_or_init(|| memory::list(Self::CHUNK))[offset]
    }

    /// Returns the shelf, the chunk, and the offset in the chunk, of an item after the small chunks.
    #[inline]
    const fn large(index: usize) -> (usize, usize, usize) {
        let chunk = index / Self::CHUNK;
        (chunk / SHELF, chunk % SHELF, index % Self::CHUNK)
    }
}

/// Returns the chunk, and the offset in the chunk, of an item in a small chunk.
#[inline]
fn small(index: usize) -> (usize, usize) {
    if index < FIRST {
        return (0, index);
    }
    let doublings = (index / FIRST).ilog2() as usize;
    (doublings + 1, index - (FIRST << doublings))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn each_index_has_an_item_of_its_own() {
        let chunks: Chunks<AtomicU32> = Chunks::default();
        let indices: Vec<u32> = (0..20_000).chain([u32::MAX - 1, u32::MAX]).collect();
        assert!(chunks.get(0).is_none() && chunks.get(u32::MAX).is_none());
        for &index in &indices {
            chunks.at(index).store(index, Ordering::Relaxed);
        }
        for &index in &indices {
            let item = chunks.get(index).map(|item| item.load(Ordering::Relaxed));
            assert_eq!(item, Some(index));
        }
    }
}
