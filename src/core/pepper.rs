//! Peppers: the service-wide keys that digest secrets and seal audit entries.
//!
//! Pure. Invariant: a pepper's bytes leave this module only as MACs.

use std::fmt;

use zeroize::Zeroize;

use super::invalid::{Invalid, Problem};
use super::mac::MacKey;
use super::secret::{Digest, DigestMark};
use super::text::PepperId;

const AUDIT_LABEL: &[u8] = b"keyward audit chain, version 1";

/// One service-wide HMAC-SHA-256 key, with the id by which records name it.
#[derive(Clone)]
pub struct Pepper {
    id: PepperId,
    digests: MacKey,
    audit: MacKey,
}

impl Pepper {
    /// The bytes a pepper has at least; fewer would be weaker than the secrets it protects.
    pub const MIN_LEN: usize = 32;

    /// Makes a pepper of at least 32 random bytes, kept outside the store that holds the records.
    ///
    /// # Errors
    ///
    /// [`Invalid`] if `key` has fewer than [`MIN_LEN`](Self::MIN_LEN) bytes.
    pub fn new(id: PepperId, key: &[u8]) -> Result<Self, Invalid> {
        if key.len() < Self::MIN_LEN {
            let expected = "at least 32 random bytes";
            return Err(Invalid::new("pepper", Problem::Form { expected }));
        }
        let digests = MacKey::new(key);
        // A key of its own for the audit chain: what seals entries can never pass for a digest.
        let mut derived = digests.mac(AUDIT_LABEL);
        let audit = MacKey::new(&derived);
        derived.zeroize();
        Ok(Self { id, digests, audit })
    }

    /// The id under which records name this pepper.
    #[must_use]
    pub const fn id(&self) -> &PepperId {
        &self.id
    }

    /// The digest of `id ‖ secret` (at most 55 bytes, so one compression each way).
    #[inline]
    #[must_use]
    pub(crate) fn digest<const N: usize>(&self, id_and_secret: &[u8; N]) -> Digest {
        Digest::from_bytes(self.digests.short_mac(id_and_secret))
    }

    /// The mark of an imported digest. No audit entry is sealed over bytes that begin like this.
    pub(crate) fn mark(&self, digest: &Digest) -> DigestMark {
        DigestMark::from_bytes(self.seal(&[b"keyward imported digest", digest.as_bytes()]))
    }

    pub(crate) fn seal(&self, parts: &[&[u8]]) -> [u8; 32] {
        self.audit.mac(&parts.concat())
    }
}

impl fmt::Debug for Pepper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pepper")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// The live peppers: one digests new secrets, older ones still verify the secrets they digested.
///
/// Debug output names the ids and nothing else.
#[derive(Clone)]
pub struct PepperRing {
    current: Pepper,
    retired: Vec<Pepper>,
    audit_only: Vec<Pepper>,
}

impl PepperRing {
    /// A ring of one pepper.
    #[must_use]
    pub const fn new(current: Pepper) -> Self {
        Self {
            current,
            retired: Vec::new(),
            audit_only: Vec::new(),
        }
    }

    /// Adds an older pepper, under which existing secrets go on verifying.
    ///
    /// # Errors
    ///
    /// [`Invalid`] if the ring has a pepper of this id.
    pub fn with_retired(mut self, pepper: Pepper) -> Result<Self, Invalid> {
        self.check_new(&pepper)?;
        self.retired.push(pepper);
        Ok(self)
    }

    /// Adds a pepper that verifies no secret any more, and still proves the audit entries it sealed.
    ///
    /// # Errors
    ///
    /// [`Invalid`] if the ring has a pepper of this id.
    pub fn with_audit_only(mut self, pepper: Pepper) -> Result<Self, Invalid> {
        self.check_new(&pepper)?;
        self.audit_only.push(pepper);
        Ok(self)
    }

    /// Makes `pepper` the current one; the one before stays live.
    ///
    /// # Errors
    ///
    /// [`Invalid`] if the ring has a pepper of this id.
    pub fn rotate(mut self, pepper: Pepper) -> Result<Self, Invalid> {
        self.check_new(&pepper)?;
        self.retired
            .push(std::mem::replace(&mut self.current, pepper));
        Ok(self)
    }

    /// The pepper that digests new secrets.
    #[must_use]
    pub const fn current(&self) -> &Pepper {
        &self.current
    }

    /// The pepper of this id, if secrets may verify under it.
    #[must_use]
    pub fn live(&self, id: &PepperId) -> Option<&Pepper> {
        std::iter::once(&self.current)
            .chain(&self.retired)
            .find(|pepper| pepper.id == *id)
    }

    pub(crate) fn retired(&self) -> &[Pepper] {
        &self.retired
    }

    /// Every pepper, those that only seal the audit trail included.
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
                Err(Invalid::new("pepper id", Problem::Form { expected }))
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
    fn digests_match_rfc_4231_test_case_2_extended_to_a_full_key() {
        // RFC 4231 section 4.4: a key of 20 bytes 0xaa repeated is below MIN_LEN, so case 4.7's
        // 131-byte key is used.
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
    fn an_id_stands_in_a_ring_once() {
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
