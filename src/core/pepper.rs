//! Peppers: the service-wide keys that digest secrets and seal audit entries.
//!
//! Pure: no I/O and no clock. Invariant: the bytes of a pepper never leave this module. Only MACs do.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::invalid::{Invalid, Problem};
use super::mac::ShortMacKey;
use super::secret::{Digest, DigestMark};
use super::text::PepperId;

const AUDIT_LABEL: &[u8] = b"keyward audit chain, version 1";

/// One service-wide HMAC-SHA-256 key and its id. Records name their pepper by this id.
#[derive(Clone)]
pub struct Pepper {
    id: PepperId,
    digests: ShortMacKey,
    audit: Hmac<Sha256>,
}

impl Pepper {
    /// The minimum length of a pepper: 32 bytes. A shorter pepper would be weaker than the secrets that it
    /// protects.
    pub const MIN_LEN: usize = 32;

    /// Creates a pepper from at least 32 random bytes. Store these bytes separately from the key records.
    ///
    /// # Errors
    ///
    /// [`Invalid`] if `key` has fewer than [`MIN_LEN`](Self::MIN_LEN) bytes.
    pub fn new(id: PepperId, key: &[u8]) -> Result<Self, Invalid> {
        if key.len() < Self::MIN_LEN {
            let expected = "at least 32 random bytes";
            return Err(Invalid::new("pepper", Problem::Format { expected }));
        }
        let digests = ShortMacKey::new(key);
        // The audit chain uses a derived key, so that a seal is never a valid digest of a secret.
        let derived = Zeroizing::new(mac(keyed(key), &[AUDIT_LABEL]));
        let audit = keyed(&*derived);
        Ok(Self { id, digests, audit })
    }

    /// Returns the id that key records use to name this pepper.
    #[must_use]
    pub const fn id(&self) -> &PepperId {
        &self.id
    }

    /// Returns the digest of `id ‖ secret`, which has at most 55 bytes.
    #[inline]
    #[must_use]
    pub(crate) fn digest<const N: usize>(&self, id_and_secret: &[u8; N]) -> Digest {
        Digest::from_bytes(self.digests.mac(id_and_secret))
    }

    /// Returns the mark of an imported digest. The MAC input starts with a label that no audit entry starts
    /// with, so a mark is never the seal of an audit entry.
    pub(crate) fn mark(&self, digest: &Digest) -> DigestMark {
        DigestMark::from_bytes(self.seal(&[b"keyward imported digest", digest.as_bytes()]))
    }

    /// Returns a value that identifies the bytes of this pepper and does not reveal them. The MAC input starts
    /// with a label that no audit entry and no mark starts with.
    pub(crate) fn check_value(&self) -> [u8; 32] {
        self.seal(&[b"keyward pepper check, version 1"])
    }

    pub(crate) fn seal(&self, parts: &[&[u8]]) -> [u8; 32] {
        mac(self.audit.clone(), parts)
    }
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC accepts keys of any length")
}

/// Returns the MAC of the concatenated parts.
fn mac(mut keyed: Hmac<Sha256>, parts: &[&[u8]]) -> [u8; 32] {
    parts.iter().for_each(|part| keyed.update(part));
    keyed.finalize().into_bytes().into()
}

impl fmt::Debug for Pepper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pepper")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// The peppers of a service: the current pepper digests new secrets, and older peppers verify the secrets
/// that they digested.
///
/// `Debug` prints only the ids.
#[derive(Clone)]
pub struct PepperRing {
    current: Pepper,
    retired: Vec<Pepper>,
    audit_only: Vec<Pepper>,
}

impl PepperRing {
    /// Creates a ring of one pepper.
    #[must_use]
    pub const fn new(current: Pepper) -> Self {
        Self {
            current,
            retired: Vec::new(),
            audit_only: Vec::new(),
        }
    }

    /// Adds an older pepper, so that existing secrets still verify under it.
    ///
    /// # Errors
    ///
    /// [`Invalid`] if the ring already has a pepper with this id.
    pub fn with_retired(mut self, pepper: Pepper) -> Result<Self, Invalid> {
        self.check_new(&pepper)?;
        self.retired.push(pepper);
        Ok(self)
    }

    /// Adds a pepper that verifies only the audit entries that it sealed, and no secrets.
    ///
    /// # Errors
    ///
    /// [`Invalid`] if the ring already has a pepper with this id.
    pub fn with_audit_only(mut self, pepper: Pepper) -> Result<Self, Invalid> {
        self.check_new(&pepper)?;
        self.audit_only.push(pepper);
        Ok(self)
    }

    /// Makes `pepper` the current pepper. Existing secrets still verify under the previous pepper.
    ///
    /// # Errors
    ///
    /// [`Invalid`] if the ring already has a pepper with this id.
    pub fn rotate(mut self, pepper: Pepper) -> Result<Self, Invalid> {
        self.check_new(&pepper)?;
        self.retired
            .push(std::mem::replace(&mut self.current, pepper));
        Ok(self)
    }

    /// Returns the pepper that digests new secrets.
    #[must_use]
    pub const fn current(&self) -> &Pepper {
        &self.current
    }

    /// Returns the current or retired pepper with this id. Does not return audit-only peppers.
    #[must_use]
    pub fn live(&self, id: &PepperId) -> Option<&Pepper> {
        std::iter::once(&self.current)
            .chain(&self.retired)
            .find(|pepper| pepper.id == *id)
    }

    pub(crate) fn retired(&self) -> &[Pepper] {
        &self.retired
    }

    /// Returns every pepper, including audit-only peppers.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Pepper> {
        let current = std::iter::once(&self.current);
        current.chain(&self.retired).chain(&self.audit_only)
    }

    pub(crate) fn any(&self, id: &PepperId) -> Option<&Pepper> {
        self.live(id)
            .or_else(|| self.audit_only.iter().find(|pepper| pepper.id == *id))
    }

    fn check_new(&self, pepper: &Pepper) -> Result<(), Invalid> {
        match self.any(&pepper.id) {
            None => Ok(()),
            Some(_) => {
                let expected = "an id that the ring does not have";
                Err(Invalid::new("pepper id", Problem::Format { expected }))
            }
        }
    }
}

impl fmt::Debug for PepperRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids = |peppers: &[Pepper]| peppers.iter().map(|p| p.id.clone()).collect::<Vec<_>>();
        f.debug_struct("PepperRing")
            .field("current", &self.current.id)
            .field("retired", &ids(&self.retired))
            .field("audit_only", &ids(&self.audit_only))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pepper(id: &str, byte: u8) -> Pepper {
        Pepper::new(PepperId::new(id).unwrap(), &[byte; 32]).unwrap()
    }

    #[test]
    fn digests_match_rfc_4231() {
        // Uses the 131-byte key of RFC 4231, section 4.7, because the shorter keys of that RFC are below
        // `MIN_LEN`.
        let pepper = Pepper::new(PepperId::new("p").unwrap(), &[0xaa; 131]).unwrap();
        let expected = "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54";
        let digest = pepper.digest(b"Test Using Larger Than Block-Size Key - Hash Key First");
        assert_eq!(digest, expected.parse().unwrap());
    }

    #[test]
    fn short_peppers_are_refused() {
        assert!(Pepper::new(PepperId::new("p").unwrap(), &[1; 31]).is_err());
    }

    #[test]
    fn a_ring_holds_an_id_once() {
        let ring = PepperRing::new(pepper("a", 1));
        assert!(ring.clone().with_retired(pepper("a", 2)).is_err());
        assert!(ring.rotate(pepper("a", 2)).is_err());
    }

    #[test]
    fn an_audit_only_pepper_verifies_no_secret() {
        let ring = PepperRing::new(pepper("b", 1))
            .with_audit_only(pepper("a", 2))
            .unwrap();
        assert!(ring.live(&PepperId::new("a").unwrap()).is_none());
        assert!(ring.any(&PepperId::new("a").unwrap()).is_some());
    }

    #[test]
    fn debug_output_names_ids_only() {
        let shown = format!("{:?}", PepperRing::new(pepper("a", 0x41)));
        assert_eq!(
            shown,
            r#"PepperRing { current: "a", retired: [], audit_only: [] }"#
        );
    }
}
