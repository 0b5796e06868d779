//! The tokens for one measured run, built beforehand and contiguous in memory.
//!
//! So reading a token is as cheap as in a service that has just read it from a request's header.

use crate::Random;
use crate::keys::{BODY, ID_AND_SECRET, Keys, WIDTH};

/// Tokens of equal length in one buffer.
#[derive(Clone, Debug)]
pub struct Batch {
    text: Vec<u8>,
    width: usize,
}

impl Batch {
    pub fn new<T: AsRef<[u8]>>(texts: impl IntoIterator<Item = T>) -> Self {
        let (mut all, mut width) = (Vec::new(), 0);
        for text in texts {
            let text = text.as_ref();
            assert!(
                width == 0 || width == text.len(),
                "all texts have the same length"
            );
            width = text.len();
            all.extend_from_slice(text);
        }
        Self { text: all, width }
    }

    pub fn len(&self) -> usize {
        self.text.len() / self.width
    }

    #[inline]
    pub fn at(&self, at: usize) -> &[u8] {
        &self.text[at * self.width..][..self.width]
    }

    /// Returns the bytes of a token that `HmacFloor` hashes: its id and secret. For a foreign text, returns
    /// as many bytes of the text.
    #[inline]
    pub fn id_and_secret(&self, at: usize) -> &[u8; ID_AND_SECRET] {
        let end = (at + 1) * self.width;
        self.text[end - BODY.min(self.width)..][..ID_AND_SECRET]
            .try_into()
            .expect("a slice of ID_AND_SECRET bytes has that length")
    }

    /// Makes valid tokens of random keys with numbers below `among`.
    pub fn valid(keys: &Keys, among: u64, count: usize, random: &mut Random) -> Self {
        Self::new((0..count).map(|_| keys.token(random.below(among))))
    }

    /// Makes tokens with the id of an existing key, a wrong secret and a valid checksum.
    pub fn wrong_secret(keys: &Keys, among: u64, count: usize, random: &mut Random) -> Self {
        Self::new((0..count).map(|_| {
            let id = keys.id(random.below(among));
            keys.compose(id, random.next())
        }))
    }

    /// Makes well-formed tokens of keys that do not exist.
    pub fn unknown(keys: &Keys, among: u64, count: usize, random: &mut Random) -> Self {
        Self::new((0..count).map(|_| {
            let id = keys.stranger(random.below(among), random.next());
            keys.compose(id, random.next())
        }))
    }

    /// Makes tokens with one illegal character at a random position after the prefix.
    pub fn malformed(keys: &Keys, among: u64, count: usize, random: &mut Random) -> Self {
        Self::new((0..count).map(|_| {
            let mut text = keys.token(random.below(among)).into_bytes();
            let at = WIDTH - 1 - usize::try_from(random.below(BODY as u64)).unwrap_or(0);
            text[at] = b'+';
            text
        }))
    }

    /// Makes tokens with a wrong checksum.
    pub fn bad_checksum(keys: &Keys, among: u64, count: usize, random: &mut Random) -> Self {
        Self::new((0..count).map(|_| {
            let mut text = keys.token(random.below(among)).into_bytes();
            let last = &mut text[WIDTH - 1];
            *last = if *last == b'x' { b'y' } else { b'x' };
            text
        }))
    }

    /// Makes credentials of another service: texts as long as a small JSON Web Token.
    pub fn foreign(count: usize, random: &mut Random) -> Self {
        const TEXT: &[u8] =
            b"eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIiwibmFt\
            ZSI6IkpvaG4gRG9lIiwiaWF0IjoxNTE2MjM5MDIyfQ.SflKxwRJSMeKKF2QT4fwpMeJf36POk6yJV_adQssw5c";
        Self::new((0..count).map(|_| {
            let mut text = TEXT.to_vec();
            text[60] = b'a' + (random.below(26) as u8);
            text
        }))
    }
}
