//! Peppers: the service-wide keys that digest secrets and seal audit entries.
//!
//! Pure: no I/O and no clock. Invariant: the bytes of a pepper never leave this module. Only MACs do.

use std::collections::BTreeMap;
use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
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

/// The role of a pepper in a ring.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PepperState {
    /// Digests new secrets.
    Current,
    /// Becomes the current pepper at the next rotation. Until then it verifies the secrets of processes that
    /// have already loaded the rotated peppers.
    Next,
    /// Verifies the secrets that were digested under this pepper. Their digests move to the current pepper.
    Live,
    /// Verifies the audit entries that were sealed under this pepper, and no secrets.
    Audit,
}

impl PepperState {
    /// Returns the state as a word, such as `current`. A pepper file contains the same words.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Next => "next",
            Self::Live => "live",
            Self::Audit => "audit",
        }
    }

    /// Returns whether a pepper in this state verifies secrets.
    #[must_use]
    pub const fn verifies(self) -> bool {
        match self {
            Self::Current | Self::Next | Self::Live => true,
            Self::Audit => false,
        }
    }
}

impl fmt::Display for PepperState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The number of keys that need a pepper, compared with a ring.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct PepperCount {
    /// The id of the pepper.
    pub pepper: PepperId,
    /// The role of the pepper in the ring. `None` if the ring does not have it.
    pub state: Option<PepperState>,
    /// The number of keys with a digest under this pepper that are neither revoked nor expired.
    pub keys: u64,
}

impl PepperCount {
    /// Lists the counts without a comparison with a ring. No count has a state.
    #[must_use]
    pub fn without_ring(keys: BTreeMap<PepperId, u64>) -> Vec<Self> {
        let count = |(pepper, keys)| Self {
            pepper,
            state: None,
            keys,
        };
        keys.into_iter().map(count).collect()
    }

    /// Returns whether there are keys that the ring cannot verify, because it lacks their pepper or has it for
    /// audit entries only.
    #[must_use]
    pub fn is_unverifiable(&self) -> bool {
        self.keys > 0 && !self.state.is_some_and(PepperState::verifies)
    }
}

/// The peppers of a service: the current pepper digests new secrets, and older peppers verify the secrets
/// that they digested.
///
/// `Debug` prints only the ids.
#[derive(Clone)]
pub struct PepperRing {
    current: Pepper,
    next: Option<Pepper>,
    retired: Vec<Pepper>,
    audit_only: Vec<Pepper>,
    /// The order in which peppers became current in the store, oldest first. `None` if no store recorded it.
    order: Option<Vec<PepperId>>,
}

impl PepperRing {
    /// Creates a ring of one pepper.
    #[must_use]
    pub const fn new(current: Pepper) -> Self {
        Self {
            current,
            next: None,
            retired: Vec::new(),
            audit_only: Vec::new(),
            order: None,
        }
    }

    /// Adds an older pepper, so that existing secrets still verify under this pepper. When a key is used, its
    /// digest moves to the current pepper.
    ///
    /// # Errors
    ///
    /// [`Invalid`] if the ring already has a pepper with this id.
    pub fn with_retired(mut self, pepper: Pepper) -> Result<Self, Invalid> {
        self.check_new(&pepper)?;
        self.retired.push(pepper);
        Ok(self)
    }

    /// Adds the pepper of the next rotation. This process then verifies the secrets of processes whose current
    /// pepper is already the next one. No digest moves away from the next pepper.
    ///
    /// Once every process has this ring, build the rotated ring: [`new`](Self::new) with this pepper, and
    /// [`with_retired`](Self::with_retired) with the previous one.
    ///
    /// # Errors
    ///
    /// [`Invalid`] if the ring already has a next pepper, or a pepper with this id.
    pub fn with_next(mut self, pepper: Pepper) -> Result<Self, Invalid> {
        self.check_new(&pepper)?;
        if self.next.is_some() {
            let expected = "the only next pepper of the ring";
            return Err(Invalid::new("pepper", Problem::Format { expected }));
        }
        self.next = Some(pepper);
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

    /// Returns the pepper that the next rotation makes current.
    #[must_use]
    pub const fn next(&self) -> Option<&Pepper> {
        self.next.as_ref()
    }

    /// Returns the pepper with this id if it verifies secrets. Does not return audit-only peppers.
    #[must_use]
    pub fn live(&self, id: &PepperId) -> Option<&Pepper> {
        let current = std::iter::once(&self.current);
        current
            .chain(self.not_current())
            .find(|pepper| pepper.id == *id)
    }

    /// Returns the role of the pepper with this id. `None` if the ring does not have it.
    #[must_use]
    pub fn state(&self, id: &PepperId) -> Option<PepperState> {
        let mut all = self.with_states();
        all.find(|(pepper, _)| pepper.id == *id)
            .map(|(_, state)| state)
    }

    /// Compares the number of keys under each pepper with this ring. The result has every pepper of the ring, and
    /// every other pepper that keys need.
    #[must_use]
    pub fn count(&self, mut keys: BTreeMap<PepperId, u64>) -> Vec<PepperCount> {
        let own = self.with_states().map(|(pepper, state)| PepperCount {
            keys: keys.remove(&pepper.id).unwrap_or(0),
            pepper: pepper.id.clone(),
            state: Some(state),
        });
        let mut counts: Vec<_> = own.collect();
        counts.extend(PepperCount::without_ring(keys));
        counts
    }

    /// Returns whether digests under the pepper with this id move to the current pepper.
    ///
    /// Digests move if their pepper is live and became current before the current pepper. So each digest moves
    /// only forward, in one order that all processes share. Otherwise two processes with different current peppers
    /// would move a key back and forth with every use.
    pub(crate) fn is_outdated(&self, id: &PepperId) -> bool {
        let place = |order: &[PepperId], id: &PepperId| order.iter().position(|known| known == id);
        let is_before_current = |order: &Vec<PepperId>| {
            let (own, current) = (place(order, id), place(order, &self.current.id));
            own.zip(current).is_some_and(|(own, current)| own < current)
        };
        self.retired.iter().any(|pepper| pepper.id == *id)
            && self.order.as_ref().is_none_or(is_before_current)
    }

    /// Sets the order in which peppers became current in the store, oldest first.
    pub(crate) fn with_order(mut self, order: Vec<PepperId>) -> Self {
        self.order = Some(order);
        self
    }

    /// Returns whether secrets may be digested under another pepper than the current one.
    #[inline]
    pub(crate) const fn has_others(&self) -> bool {
        !self.retired.is_empty() || self.next.is_some()
    }

    /// Returns the peppers that verify secrets, except the current one.
    pub(crate) fn not_current(&self) -> impl Iterator<Item = &Pepper> {
        self.retired.iter().chain(&self.next)
    }

    pub(crate) fn retired(&self) -> &[Pepper] {
        &self.retired
    }

    /// Returns every pepper, including audit-only peppers.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Pepper> {
        self.with_states().map(|(pepper, _)| pepper)
    }

    pub(crate) fn any(&self, id: &PepperId) -> Option<&Pepper> {
        self.all().find(|pepper| pepper.id == *id)
    }

    fn with_states(&self) -> impl Iterator<Item = (&Pepper, PepperState)> {
        let in_state = |state| move |pepper| (pepper, state);
        let current = std::iter::once(&self.current).map(in_state(PepperState::Current));
        current
            .chain(self.next.iter().map(in_state(PepperState::Next)))
            .chain(self.retired.iter().map(in_state(PepperState::Live)))
            .chain(self.audit_only.iter().map(in_state(PepperState::Audit)))
    }

    fn check_new(&self, pepper: &Pepper) -> Result<(), Invalid> {
        match self.any(&pepper.id) {
            None => Ok(()),
            Some(_) => {
                let expected = "an id that no other pepper has";
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
            .field("next", &self.next.as_ref().map(|pepper| &pepper.id))
            .field("retired", &ids(&self.retired))
            .field("audit_only", &ids(&self.audit_only))
            .finish_non_exhaustive()
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
        assert!(ring.clone().with_next(pepper("a", 2)).is_err());
        assert!(ring.clone().rotate(pepper("a", 2)).is_err());
        let prepared = ring.with_next(pepper("b", 2)).unwrap();
        assert!(prepared.live(&PepperId::new("b").unwrap()).is_some());
        assert!(prepared.with_next(pepper("c", 3)).is_err());
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
    fn a_digest_moves_only_from_a_live_pepper_that_was_current_before() {
        let id = |id: &str| PepperId::new(id).unwrap();
        let ring = PepperRing::new(pepper("b", 2))
            .with_retired(pepper("a", 1))
            .and_then(|ring| ring.with_next(pepper("c", 3)))
            .and_then(|ring| ring.with_audit_only(pepper("z", 4)))
            .unwrap();
        let outdated = |ring: &PepperRing| {
            let ids = ["a", "b", "c", "z", "unknown"];
            ids.map(|name| ring.is_outdated(&id(name)))
        };
        let only_a = [true, false, false, false, false];
        assert_eq!(outdated(&ring), only_a, "without an order the ring decides");
        let ordered = |ids: &[&str]| {
            ring.clone()
                .with_order(ids.iter().map(|own| id(own)).collect())
        };
        assert_eq!(outdated(&ordered(&["z", "a", "b"])), only_a);
        // A ring that was built with its peppers in the wrong roles, or that is behind another process.
        for order in [&["b", "a"][..], &["b"], &["a"], &[]] {
            assert_eq!(outdated(&ordered(order)), [false; 5], "{order:?}");
        }
    }

    #[test]
    fn each_key_is_counted_under_its_pepper_and_missing_peppers_come_last() {
        let ring = PepperRing::new(pepper("b", 2))
            .with_retired(pepper("c", 1))
            .and_then(|ring| ring.with_audit_only(pepper("a", 3)))
            .unwrap();
        let keys =
            [("0", 4), ("a", 1), ("b", 9)].map(|(id, keys)| (PepperId::new(id).unwrap(), keys));
        let counts = ring.count(BTreeMap::from(keys));
        let shown = counts.iter().map(|count| {
            let state = count.state.map(PepperState::as_str);
            (
                count.pepper.as_str(),
                state,
                count.keys,
                count.is_unverifiable(),
            )
        });
        let expected = [
            ("b", Some("current"), 9, false),
            ("c", Some("live"), 0, false),
            ("a", Some("audit"), 1, true),
            ("0", None, 4, true),
        ];
        assert_eq!(shown.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn debug_output_names_ids_only() {
        let shown = format!("{:?}", PepperRing::new(pepper("a", 0x41)));
        assert_eq!(
            shown,
            r#"PepperRing { current: "a", next: None, retired: [], audit_only: [], .. }"#
        );
    }
}
