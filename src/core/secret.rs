//! Secrets, their digests and their fingerprints.
//!
//! Pure: no I/O and no clock. Invariant: a secret leaves its type only through [`Secret::expose`]. This
//! module never prints or copies a secret, and never compares secrets with `==`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::base62;
use super::hex;
use super::id::KeyId;
use super::invalid::{Invalid, Problem};
use super::time::Timestamp;

/// The whole token of a new key. Shown to its owner once, and zeroized on drop.
///
/// There is no `PartialEq`, `Clone`, `Display` or `Serialize`: compare through the verifier, and
/// let the value out only through [`Secret::expose`], which is easy to grep for in review.
pub struct Secret(Zeroizing<String>);

impl Secret {
    pub(crate) fn new(text: Zeroizing<String>) -> Self {
        Self(text)
    }

    /// Returns the token, to be handed to the key's owner.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Returns a copy of a publishable key's token, for the key's record. The token of a publishable key is
    /// not secret, and may be shown again.
    pub(crate) fn publish(&self) -> String {
        self.0.as_str().to_owned()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The stored digest of a key's secret: 32 bytes from which the secret cannot be derived.
///
/// Digests are compared in constant time.
#[derive(Clone, Copy)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Returns a digest from its bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the SHA-256 of a whole token. A host imports a key by this digest.
    #[must_use]
    pub fn sha256(token: impl AsRef<[u8]>) -> Self {
        Self(Sha256::digest(token.as_ref()).into())
    }

    /// Returns the bytes, to be stored.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// A keyed hash of an imported digest: HMAC-SHA-256 under a pepper. The audit trail stores this hash instead
/// of the digest. Without the pepper, the hash reveals nothing about the digest.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct DigestMark(#[serde(with = "super::hex")] [u8; 32]);

impl DigestMark {
    /// Creates a mark from its bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the mark as a [`Digest`], the type that a store can reserve.
    pub(crate) const fn as_digest(&self) -> Digest {
        Digest::from_bytes(self.0)
    }
}

impl ConstantTimeEq for Digest {
    fn ct_eq(&self, other: &Self) -> subtle::Choice {
        self.0.ct_eq(&other.0)
    }
}

impl PartialEq for Digest {
    fn eq(&self, other: &Self) -> bool {
        self.ct_eq(other).into()
    }
}

impl Eq for Digest {}

impl std::hash::Hash for Digest {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Digest(…)")
    }
}

impl FromStr for Digest {
    type Err = Invalid;

    /// Parses 64 hexadecimal characters.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        hex::parse_array(text).map(Self).ok_or(Invalid::new(
            "digest",
            Problem::Format {
                expected: "64 hexadecimal characters",
            },
        ))
    }
}

/// A short identifier of a token, for finding its key: the first 64 bits of the token's SHA-256.
///
/// Computed when the key is created, and independent of peppers. A fingerprint authenticates nothing.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Fingerprint([u8; 8]);

impl Fingerprint {
    /// Returns the fingerprint of a whole token.
    #[must_use]
    pub fn of_token(token: impl AsRef<[u8]>) -> Self {
        Self::of_sha256(&Digest::sha256(token))
    }

    /// Returns the fingerprint of a token by its SHA-256.
    #[must_use]
    pub fn of_sha256(digest: &Digest) -> Self {
        let mut short = [0; 8];
        short.copy_from_slice(&digest.0[..8]);
        Self(short)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Fingerprint {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        hex::parse_array(text).map(Self).ok_or(Invalid::new(
            "fingerprint",
            Problem::Format {
                expected: "16 hexadecimal characters",
            },
        ))
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if to.is_human_readable() {
            to.collect_str(self)
        } else {
            self.0.serialize(to)
        }
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        if from.is_human_readable() {
            String::deserialize(from)?
                .parse()
                .map_err(serde::de::Error::custom)
        } else {
            <[u8; 8]>::deserialize(from).map(Self)
        }
    }
}

/// The random part of a new key: its id and its secret half. The secret half is zeroized on drop.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct KeyMaterial {
    #[zeroize(skip)]
    pub(crate) id: KeyId,
    pub(crate) secret: [u8; Self::SECRET_LEN],
}

impl KeyMaterial {
    /// The length of a secret half: 32 base62 characters, or 190 bits.
    pub const SECRET_LEN: usize = 32;

    /// Generates key material from the current time and from random bytes. `fill` fills a buffer with random
    /// bytes.
    ///
    /// # Errors
    ///
    /// Returns the error of `fill`.
    pub fn draw<E>(
        now: Timestamp,
        mut fill: impl FnMut(&mut [u8]) -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut random = [0; 10];
        fill(&mut random)?;
        let mut secret = [0; Self::SECRET_LEN];
        let mut drawn = Zeroizing::new([0; 2 * Self::SECRET_LEN]);
        let mut filled = 0;
        while filled < secret.len() {
            fill(drawn.as_mut())?;
            for digit in drawn.iter().copied().filter_map(base62::unbiased) {
                if filled < secret.len() {
                    secret[filled] = digit;
                    filled += 1;
                }
            }
        }
        Ok(Self {
            id: KeyId::from_parts(now, random),
            secret,
        })
    }

    /// Returns the id of the new key.
    #[must_use]
    pub const fn id(&self) -> KeyId {
        self.id
    }
}

impl fmt::Debug for KeyMaterial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyMaterial")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_never_contains_secret_bytes() {
        let secret = Secret::new(Zeroizing::new("sk_live_hunter2".to_owned()));
        assert_eq!(format!("{secret:?}"), "Secret(…)");
        assert_eq!(format!("{:?}", Digest::sha256("hunter2")), "Digest(…)");
        let material = KeyMaterial {
            id: KeyId::from_u128(1),
            secret: [b'h'; 32],
        };
        assert!(!format!("{material:?}").contains("hh"));
    }

    #[test]
    fn a_digest_parses_from_hex() {
        let hex = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
        assert_eq!(hex.parse::<Digest>().unwrap(), Digest::sha256("hello"));
        assert!("2cf2".parse::<Digest>().is_err());
        assert!("zz".repeat(32).parse::<Digest>().is_err());
    }

    #[test]
    fn a_fingerprint_is_the_start_of_sha256() {
        assert_eq!(
            Fingerprint::of_token("hello").to_string(),
            "2cf24dba5fb0a30e"
        );
    }

    #[test]
    fn drawing_goes_on_past_bytes_that_would_be_biased() {
        let mut calls = 0;
        let material = KeyMaterial::draw(Timestamp::UNIX_EPOCH, |out| {
            calls += 1;
            out.fill(if calls < 3 { 0xff } else { 61 });
            Ok::<_, ()>(())
        });
        assert_eq!(material.unwrap().secret, [b'z'; 32]);
    }

    #[test]
    fn a_source_that_fails_makes_no_material() {
        assert!(KeyMaterial::draw(Timestamp::UNIX_EPOCH, |_| Err("no entropy")).is_err());
    }
}
