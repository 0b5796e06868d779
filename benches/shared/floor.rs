//! The floor: the lowest possible cost of verifying a key whose secret is hashed with a pepper.
//!
//! The floor is one HMAC-SHA-256 of `id ‖ secret` with a prepared key, which takes two raw compressions.

use std::hint::black_box;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use sha2::block_api::compress256;

use crate::batch::Batch;
use crate::keys::{ID_AND_SECRET, PEPPER};

/// The initial hash value of FIPS 180-4, section 5.3.3.
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

/// A prepared HMAC key: the SHA-256 states after the inner and the outer key block.
#[derive(Clone, Copy, Debug)]
pub struct HmacFloor {
    inner: [u32; 8],
    outer: [u32; 8],
}

impl HmacFloor {
    /// Prepares the benchmarks' pepper as an HMAC key.
    pub fn new() -> Self {
        let keyed = |pad: u8| {
            let mut block = [pad; 64];
            block.iter_mut().zip(PEPPER).for_each(|(b, k)| *b ^= k);
            let mut state = START;
            compress256(&mut state, &[block]);
            state
        };
        let floor = Self {
            inner: keyed(0x36),
            outer: keyed(0x5c),
        };
        let message = [b'x'; ID_AND_SECRET];
        let mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&PEPPER).unwrap();
        let whole: [u8; 32] = mac.chain_update(message).finalize().into_bytes().into();
        let word = u32::from_be_bytes([whole[0], whole[1], whole[2], whole[3]]);
        assert_eq!(
            floor.mac(&message)[0],
            word,
            "the floor computes the same HMAC as the `hmac` crate"
        );
        floor
    }

    #[inline]
    pub fn mac(&self, message: &[u8; ID_AND_SECRET]) -> [u32; 8] {
        let mut block = [0; 64];
        block[..ID_AND_SECRET].copy_from_slice(message);
        block[ID_AND_SECRET] = 0x80;
        // The message length includes the key block: 64 + 54 bytes, in bits.
        block[62..].copy_from_slice(&(8 * (64 + ID_AND_SECRET as u16)).to_be_bytes());
        let mut state = self.inner;
        compress256(&mut state, &[block]);

        let mut block = [0; 64];
        for (bytes, word) in block.chunks_exact_mut(4).zip(state) {
            bytes.copy_from_slice(&word.to_be_bytes());
        }
        block[32] = 0x80;
        block[62..].copy_from_slice(&(8 * (64 + 32_u16)).to_be_bytes());
        let mut state = self.outer;
        compress256(&mut state, &[block]);
        state
    }

    /// Computes the HMACs of a batch one after another.
    pub fn run(&self, batch: &Batch) {
        let nothing = black_box(0);
        let mut at = 0;
        while at < batch.len() {
            let mac = black_box(self.mac(batch.id_and_secret(at)));
            at += 1 + (mac[0] as usize & nothing);
        }
    }
}

impl Default for HmacFloor {
    fn default() -> Self {
        Self::new()
    }
}
