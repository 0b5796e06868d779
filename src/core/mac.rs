//! HMAC-SHA-256 with the key's part computed beforehand: two compressions for a token.
//!
//! Pure. The `hmac` crate does the same in half as much time again; a verification does little else,
//! so that this one is our own, and checked against it and RFC 4231.

use sha2::block_api::compress256;
use zeroize::{Zeroize, ZeroizeOnDrop};

const BLOCK: usize = 64;
/// What ends a message: one bit, then its length in eight bytes.
const TAIL: usize = 9;

/// SHA-256 before the first block (FIPS 180-4, section 5.3.3).
const START: [u32; 8] = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];

/// A MAC key of at most 64 bytes, as the two states that RFC 2104 section 4 lets one keep.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub(crate) struct MacKey {
    inner: [u32; 8],
    outer: [u32; 8],
}

impl MacKey {
    /// Keys longer than a block are hashed first (RFC 2104, section 2).
    pub(crate) fn new(key: &[u8]) -> Self {
        let mut block = [0; BLOCK];
        if key.len() > BLOCK {
            let mut hashed = hash(START, 0, key);
            block[..32].copy_from_slice(&hashed);
            hashed.zeroize();
        } else {
            block[..key.len()].copy_from_slice(key);
        }
        let keyed = |pad: u8| {
            let mut padded = block.map(|byte| byte ^ pad);
            let mut state = START;
            compress256(&mut state, &[padded]);
            padded.zeroize();
            state
        };
        let (inner, outer) = (keyed(0x36), keyed(0x5c));
        block.zeroize();
        Self { inner, outer }
    }

    /// HMAC-SHA-256 of `message`.
    pub(crate) fn mac(&self, message: &[u8]) -> [u8; 32] {
        short_hash(self.outer, &hash(self.inner, BLOCK, message))
    }

    /// The same of at most 55 bytes, whose number is known beforehand: two compressions, and nothing
    /// that depends on a length.
    #[inline]
    pub(crate) fn short_mac<const N: usize>(&self, message: &[u8; N]) -> [u8; 32] {
        short_hash(self.outer, &short_hash(self.inner, message))
    }
}

/// SHA-256 of one block that `state` stands for, and of `message`, in one compression.
#[inline]
fn short_hash<const N: usize>(mut state: [u32; 8], message: &[u8; N]) -> [u8; 32] {
    const { assert!(N + TAIL <= BLOCK, "it fits a block with what ends it") };
    let mut block = [0; BLOCK];
    block[..N].copy_from_slice(message);
    block[N] = 0x80;
    let bits = 8 * (BLOCK + N) as u64;
    block[BLOCK - 8..].copy_from_slice(&bits.to_be_bytes());
    compress256(&mut state, &[block]);
    to_bytes(state)
}

#[inline]
fn to_bytes(state: [u32; 8]) -> [u8; 32] {
    let mut out = [0; 32];
    for (bytes, word) in out.as_chunks_mut().0.iter_mut().zip(state) {
        *bytes = word.to_be_bytes();
    }
    out
}

/// SHA-256 of what `state` stands for, `before` bytes long, and `message`.
fn hash(mut state: [u32; 8], before: usize, message: &[u8]) -> [u8; 32] {
    let (blocks, rest) = message.as_chunks::<BLOCK>();
    if !blocks.is_empty() {
        compress256(&mut state, blocks);
    }
    let bits = 8 * (before + message.len()) as u64;
    let mut last = [[0; BLOCK]; 2];
    let last = if rest.len() + TAIL <= BLOCK {
        &mut last[..1]
    } else {
        &mut last[..]
    };
    let flat = last.as_flattened_mut();
    flat[..rest.len()].copy_from_slice(rest);
    flat[rest.len()] = 0x80;
    let end = flat.len();
    flat[end - 8..].copy_from_slice(&bits.to_be_bytes());
    compress256(&mut state, last);
    to_bytes(state)
}

#[cfg(test)]
mod tests {
    use hmac::{Hmac, KeyInit, Mac};
    use proptest::prelude::*;
    use sha2::Sha256;

    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    proptest! {
        #[test]
        fn it_agrees_with_the_hmac_crate(
            key in prop::collection::vec(any::<u8>(), 0..150),
            message in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let mut theirs = <Hmac<Sha256> as KeyInit>::new_from_slice(&key).unwrap();
            theirs.update(&message);
            let theirs: [u8; 32] = theirs.finalize().into_bytes().into();
            prop_assert_eq!(MacKey::new(&key).mac(&message), theirs);
        }

        #[test]
        fn one_of_a_known_length_is_the_same(
            key in prop::collection::vec(any::<u8>(), 0..150),
            message: [u8; 55],
        ) {
            fn agree<const N: usize>(key: &MacKey, message: &[u8; 55]) -> bool {
                let message = message.first_chunk::<N>().unwrap();
                key.short_mac(message) == key.mac(message)
            }
            let key = MacKey::new(&key);
            prop_assert!(agree::<0>(&key, &message) && agree::<1>(&key, &message));
            prop_assert!(agree::<54>(&key, &message) && agree::<55>(&key, &message));
        }
    }

    #[test]
    fn it_gives_what_rfc_4231_says() {
        let long =
            b"This is a test using a larger than block-size key and a larger than block-size \
                     data. The key needs to be hashed before being used by the HMAC algorithm.";
        let counting: Vec<u8> = (1..=25).collect();
        // Section 4.6 is truncated to 128 bits.
        let cases: [(&[u8], &[u8], &str); 7] = [
            (
                &[0x0b; 20],
                b"Hi There",
                "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
            ),
            (
                b"Jefe",
                b"what do ya want for nothing?",
                "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
            ),
            (
                &[0xaa; 20],
                &[0xdd; 50],
                "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe",
            ),
            (
                &counting,
                &[0xcd; 50],
                "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b",
            ),
            (
                &[0x0c; 20],
                b"Test With Truncation",
                "a3b6167473100ee06e0c796c2955552b",
            ),
            (
                &[0xaa; 131],
                b"Test Using Larger Than Block-Size Key - Hash Key First",
                "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
            ),
            (
                &[0xaa; 131],
                long,
                "9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2",
            ),
        ];
        for (key, message, expected) in cases {
            let mac = hex(&MacKey::new(key).mac(message));
            assert_eq!(&mac[..expected.len()], expected);
        }
    }
}
