//! HMAC-SHA-256 of a short message with a constant length, in two SHA-256 compressions.
//!
//! Pure: no I/O and no clock. Verification uses this module, because the MAC is most of its cost and the
//! `hmac` crate takes 1.5 times as long. All other MACs of the library come from the `hmac` crate. The tests
//! compare this module with the `hmac` crate and with RFC 4231.

use sha2::block_api::compress256;
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, ZeroizeOnDrop};

const BLOCK: usize = 64;
/// 9 bytes, the minimum padding of SHA-256: one byte that starts with a 1 bit, and the message length in 8
/// bytes.
const TAIL: usize = 9;

/// The initial state of SHA-256 (FIPS 180-4, section 5.3.3).
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

/// A MAC key, stored as the two SHA-256 states that can be precomputed (RFC 2104, section 4).
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub(crate) struct ShortMacKey {
    inner: [u32; 8],
    outer: [u32; 8],
}

impl ShortMacKey {
    /// Precomputes the states of `key`. A key longer than a block is hashed first (RFC 2104, section 2).
    pub(crate) fn new(key: &[u8]) -> Self {
        let mut block = [0; BLOCK];
        if key.len() > BLOCK {
            let mut hashed: [u8; 32] = Sha256::digest(key).into();
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

    /// Returns the HMAC-SHA-256 of `message`, which has at most 55 bytes. The length is a compile-time
    /// constant, so no branch depends on it.
    #[inline]
    pub(crate) fn mac<const N: usize>(&self, message: &[u8; N]) -> [u8; 32] {
        hash_tail(self.outer, &hash_tail(self.inner, message))
    }
}

/// Returns the SHA-256 digest of one block followed by `message`. `state` is the SHA-256 state after that
/// block. Takes one compression.
#[inline]
fn hash_tail<const N: usize>(mut state: [u32; 8], message: &[u8; N]) -> [u8; 32] {
    const { assert!(N + TAIL <= BLOCK, "the message and its tail fit one block") };
    let mut block = [0; BLOCK];
    block[..N].copy_from_slice(message);
    block[N] = 0x80;
    let bits = 8 * (BLOCK + N) as u64;
    block[BLOCK - 8..].copy_from_slice(&bits.to_be_bytes());
    compress256(&mut state, &[block]);
    let mut digest = [0; 32];
    for (bytes, word) in digest.as_chunks_mut().0.iter_mut().zip(state) {
        *bytes = word.to_be_bytes();
    }
    digest
}

#[cfg(test)]
mod tests {
    use hmac::{Hmac, KeyInit, Mac};
    use proptest::prelude::*;

    use super::*;

    fn agrees<const N: usize>(key: &[u8], message: &[u8; 55]) -> bool {
        let message = message.first_chunk::<N>().unwrap();
        let mut reference = <Hmac<Sha256> as KeyInit>::new_from_slice(key).unwrap();
        reference.update(message);
        let reference: [u8; 32] = reference.finalize().into_bytes().into();
        ShortMacKey::new(key).mac(message) == reference
    }

    proptest! {
        #[test]
        fn it_agrees_with_the_hmac_crate(
            key in prop::collection::vec(any::<u8>(), 0..150),
            message: [u8; 55],
        ) {
            prop_assert!(agrees::<0>(&key, &message) && agrees::<1>(&key, &message));
            prop_assert!(agrees::<32>(&key, &message) && agrees::<54>(&key, &message));
            prop_assert!(agrees::<55>(&key, &message));
        }
    }

    #[test]
    fn it_agrees_with_the_hmac_crate_for_keys_around_a_block() {
        for len in [0, 63, 64, 65, 128] {
            assert!(agrees::<55>(&vec![0x5a; len], &[1; 55]), "{len}");
        }
    }

    #[test]
    fn it_gives_the_macs_of_rfc_4231() {
        fn hex(bytes: [u8; 32]) -> String {
            bytes.iter().map(|byte| format!("{byte:02x}")).collect()
        }
        let counting: Vec<u8> = (1..=25).collect();
        // The test cases of RFC 4231, sections 4.2 to 4.7. Section 4.6 truncates the MAC to 128 bits. The
        // message of section 4.8 is too long for this module.
        let mac = hex(ShortMacKey::new(&[0x0b; 20]).mac(b"Hi There"));
        assert_eq!(
            mac,
            "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"
        );
        let mac = hex(ShortMacKey::new(b"Jefe").mac(b"what do ya want for nothing?"));
        assert_eq!(
            mac,
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        let mac = hex(ShortMacKey::new(&[0xaa; 20]).mac(&[0xdd; 50]));
        assert_eq!(
            mac,
            "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe"
        );
        let mac = hex(ShortMacKey::new(&counting).mac(&[0xcd; 50]));
        assert_eq!(
            mac,
            "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b"
        );
        let mac = hex(ShortMacKey::new(&[0x0c; 20]).mac(b"Test With Truncation"));
        assert_eq!(mac[..32], *"a3b6167473100ee06e0c796c2955552b");
        let long = b"Test Using Larger Than Block-Size Key - Hash Key First";
        let mac = hex(ShortMacKey::new(&[0xaa; 131]).mac(long));
        assert_eq!(
            mac,
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"
        );
    }
}
