//! The audit trail: who did what to which key, as one hash chain per tenant.
//!
//! Pure. Entries are sealed with a key derived from a pepper, so that whoever can write to the
//! database can still not rewrite them; each names the hash of the one before, so that none can be
//! left out; and a head seen elsewhere shows a chain that was cut short.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::id::KeyId;
use super::pepper::PepperRing;
use super::principal::{Author, Owner};
use super::record::{ImportScheme, Reason, RotationReason};
use super::secret::DigestMark;
use super::tenant::TenantId;
use super::text::{ClassName, CommandId, LeakSource, PepperId, PrincipalId, ResourceId, Role};
use super::time::Timestamp;

/// The seal of an audit entry: HMAC-SHA-256 over the entry and the seal before it.
#[derive(Clone, Copy, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub struct AuditHash([u8; 32]);

impl AuditHash {
    /// What the first entry of a chain follows.
    pub const GENESIS: Self = Self([0; 32]);

    /// A hash from its bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes, for a store to keep.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for AuditHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for AuditHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where a tenant's chain ends: the number and the hash of its newest entry.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct AuditHead {
    /// The number of the newest entry; zero before the first.
    pub sequence: u64,
    /// Its hash.
    pub hash: AuditHash,
}

impl AuditHead {
    /// The head of a chain without entries.
    pub const GENESIS: Self = Self {
        sequence: 0,
        hash: AuditHash::GENESIS,
    };
}

impl Default for AuditHead {
    fn default() -> Self {
        Self::GENESIS
    }
}

/// One change of one field, as people read it. Long and free text is told by its length alone.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct FieldChange {
    /// Which field.
    pub field: String,
    /// What it was.
    pub before: String,
    /// What it is now.
    pub after: String,
}

impl FieldChange {
    pub(crate) const SCOPES: &str = "scopes";
    pub(crate) const ADDRESSES: &str = "addresses";
    pub(crate) const EXPIRES: &str = "expires";
    /// The end of a key that has none.
    pub(crate) const NEVER: &str = "never";
}

/// What was done. The key it was done to stands beside it in the entry.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// The tenant became known.
    TenantProvisioned,
    /// The tenant was closed; its keys are refused from then on.
    TenantClosed,
    /// A resource's keys were created.
    ResourceProvisioned {
        /// The host's id of the resource.
        resource: ResourceId,
    },
    /// The key was created.
    KeyCreated {
        /// Its class.
        class: ClassName,
    },
    /// The key came with its tenant or resource.
    KeyProvisioned {
        /// Its class.
        class: ClassName,
    },
    /// The key was imported as a digest.
    KeyImported {
        /// Its class.
        class: ClassName,
        /// How the digest was made.
        scheme: ImportScheme,
        /// A keyed mark of the digest, by which a recovery knows it again.
        mark: DigestMark,
        /// Its owner.
        owner: Owner,
        /// Its end, as it was imported.
        expires_at: Option<Timestamp>,
    },
    /// Fields of the key changed.
    KeyUpdated {
        /// Which, and how.
        changes: Vec<FieldChange>,
    },
    /// The key is refused until it is enabled again.
    KeyDisabled,
    /// The key works again.
    KeyEnabled,
    /// The key is refused for ever.
    KeyRevoked {
        /// Why.
        reason: Reason,
    },
    /// The key is gone for ever.
    KeyDeleted,
    /// The revoked or expired key was removed when the time to keep it was over.
    KeyPurged,
    /// A successor was created.
    KeyRotated {
        /// The successor.
        successor: KeyId,
        /// Why.
        reason: RotationReason,
        /// The end of the old key; the latest one, if it counts from the successor's first use.
        until: Timestamp,
    },
    /// The rotation was called off, and the key works as before.
    RotationCancelled {
        /// The successor that was revoked.
        successor: KeyId,
    },
    /// The first use of a successor was noticed.
    FirstUsed,
    /// The grace of an old key began with its successor's first use.
    GraceBegan {
        /// When the old key ends.
        until: Timestamp,
    },
    /// The secret was replaced because the answer that held it was lost.
    SecretReplaced,
    /// The key was found in the open.
    LeakReported {
        /// Where.
        source: LeakSource,
        /// Whether that revoked it; publishable and legacy keys are only recorded.
        revoked: bool,
    },
    /// The digest was renewed.
    KeyRedigested {
        /// Under which pepper.
        pepper: PepperId,
    },
    /// A principal owns keys here from now on.
    OwnerAdded {
        /// Who.
        owner: PrincipalId,
        /// With which role.
        role: Role,
    },
    /// A principal's role changed, and the reach of its keys with it.
    OwnerRoleChanged {
        /// Who.
        owner: PrincipalId,
        /// The role before; `None` if it was removed.
        before: Option<Role>,
        /// The role now.
        after: Role,
    },
    /// A principal was removed; its keys are refused from then on.
    OwnerRemoved {
        /// Who.
        owner: PrincipalId,
    },
    /// Keys that match a filter are revoked from here on, those created until now.
    BulkRevocationBegan {
        /// Why.
        reason: Reason,
    },
    /// A command over many keys came to its end.
    BulkCommandEnded,
    /// Digests that a backup had forgotten can never be imported again.
    DigestsBlocked {
        /// Keyed marks of the digests, each with the key that had the digest.
        marks: Vec<(DigestMark, KeyId)>,
    },
    /// The tenant's newest instant was set back, because a clock had been wrong.
    TimeRepaired {
        /// The newest instant before.
        from: Timestamp,
        /// The newest instant from then on.
        to: Timestamp,
    },
}

/// One entry of a tenant's audit trail, written in the same commit as the change it tells of.
///
/// Exhaustive on purpose, for stores to construct and destructure.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct AuditEntry {
    /// The tenant whose chain this belongs to.
    pub tenant: TenantId,
    /// Its number in that chain, from 1.
    pub sequence: u64,
    /// When it was decided.
    pub at: Timestamp,
    /// The author, with the key that acted if one did.
    pub actor: Author,
    /// The role that the application stated for a person.
    pub role: Option<Role>,
    /// The id of the command.
    pub command: CommandId,
    /// A mark of what the command asked for, by which a reused id is noticed.
    pub command_mark: [u8; 8],
    /// What was done.
    pub action: Action,
    /// To which key.
    pub key: Option<KeyId>,
    /// The pepper whose audit key seals the entry.
    pub pepper: PepperId,
    /// The hash of the entry before.
    pub previous: AuditHash,
    /// The seal over all of the above.
    pub hash: AuditHash,
}

impl AuditEntry {
    /// Where the chain ends if this is its newest entry.
    #[must_use]
    pub const fn head(&self) -> AuditHead {
        AuditHead {
            sequence: self.sequence,
            hash: self.hash,
        }
    }

    pub(crate) fn sealed(mut self, peppers: &PepperRing) -> Self {
        self.hash = self.seal(peppers).unwrap_or(AuditHash::GENESIS);
        self
    }

    fn seal(&self, peppers: &PepperRing) -> Option<AuditHash> {
        let Self {
            tenant,
            sequence,
            at,
            actor,
            role,
            command,
            command_mark,
            action,
            key,
            pepper,
            previous,
            hash: _,
        } = self;
        let told = (
            tenant,
            sequence,
            at,
            actor,
            role,
            command,
            command_mark,
            action,
            key,
            pepper,
        );
        let body = postcard::to_allocvec(&told).ok()?;
        Some(AuditHash(peppers.any(pepper)?.seal(&[&previous.0, &body])))
    }
}

/// Why a chain of audit entries is not what was written.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ChainError {
    /// An entry is missing, or stands twice, or stands out of order.
    #[error("entry {expected} should follow, found {found}")]
    Gap {
        /// The number that should have come.
        expected: u64,
        /// The number that came.
        found: u64,
    },
    /// An entry of another tenant stands in the chain.
    #[error("entry {sequence} belongs to another tenant")]
    Foreign {
        /// Its number.
        sequence: u64,
    },
    /// An entry was changed, or does not follow the one before it.
    #[error("entry {sequence} was altered")]
    Altered {
        /// Its number.
        sequence: u64,
    },
    /// The ring does not have the pepper that sealed an entry.
    #[error("entry {sequence} was sealed under pepper {pepper}, which the ring does not have")]
    UnknownPepper {
        /// Its number.
        sequence: u64,
        /// The pepper's id.
        pepper: PepperId,
    },
    /// The chain ends before an entry that was seen elsewhere, or has another in its place.
    #[error("entry {expected} was seen elsewhere, the chain does not lead to it")]
    Truncated {
        /// The number of the entry that was seen.
        expected: u64,
    },
}

/// Checks one tenant's entries, oldest first, from `start` on. Needs no store: only the entries
/// and the peppers, those kept with [`PepperRing::with_audit_only`] included.
///
/// `seen` is a head that was noted elsewhere (a log, a receipt): the chain must pass through it, so
/// that a trail cut short shows.
///
/// # Errors
///
/// [`ChainError`] names the first entry that is not what was written.
pub fn verify_chain<'a>(
    tenant: &TenantId,
    start: AuditHead,
    entries: impl IntoIterator<Item = &'a AuditEntry>,
    peppers: &PepperRing,
    seen: Option<AuditHead>,
) -> Result<AuditHead, ChainError> {
    let passes = |head: AuditHead| seen.is_none_or(|seen| seen == head);
    let mut head = start;
    let mut passed = passes(start);
    for entry in entries {
        let sequence = entry.sequence;
        let expected = head.sequence + 1;
        if sequence != expected {
            return Err(ChainError::Gap {
                expected,
                found: sequence,
            });
        }
        if entry.tenant != *tenant {
            return Err(ChainError::Foreign { sequence });
        }
        if peppers.any(&entry.pepper).is_none() {
            return Err(ChainError::UnknownPepper {
                sequence,
                pepper: entry.pepper.clone(),
            });
        }
        if entry.previous != head.hash || entry.seal(peppers) != Some(entry.hash) {
            return Err(ChainError::Altered { sequence });
        }
        head = entry.head();
        passed |= passes(head);
    }
    match seen {
        Some(seen) if !passed => Err(ChainError::Truncated {
            expected: seen.sequence,
        }),
        _ => Ok(head),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::pepper::Pepper;

    fn ring() -> PepperRing {
        PepperRing::new(Pepper::new(PepperId::new("p1").unwrap(), &[7; 32]).unwrap())
    }

    fn chain(len: u64) -> Vec<AuditEntry> {
        let mut head = AuditHead::GENESIS;
        let next = |sequence| {
            let entry = AuditEntry {
                tenant: TenantId::new("acme").unwrap(),
                sequence,
                at: Timestamp::UNIX_EPOCH,
                actor: Author::Application,
                role: None,
                command: CommandId::new(format!("c{sequence}")).unwrap(),
                command_mark: [0; 8],
                action: Action::KeyDisabled,
                key: Some(KeyId::from_u128(9)),
                pepper: PepperId::new("p1").unwrap(),
                previous: head.hash,
                hash: AuditHash::GENESIS,
            };
            let entry = entry.sealed(&ring());
            head = entry.head();
            entry
        };
        (1..=len).map(next).collect()
    }

    fn verify(entries: &[AuditEntry], seen: Option<AuditHead>) -> Result<AuditHead, ChainError> {
        let tenant = TenantId::new("acme").unwrap();
        verify_chain(&tenant, AuditHead::GENESIS, entries, &ring(), seen)
    }

    #[test]
    fn an_intact_chain_passes_and_tells_its_head() {
        let entries = chain(3);
        assert_eq!(verify(&entries, None), Ok(entries[2].head()));
        assert_eq!(
            verify(&entries, Some(entries[1].head())),
            Ok(entries[2].head())
        );
    }

    #[test]
    fn any_altered_field_shows() {
        let alter: [fn(&mut AuditEntry); 8] = [
            |e| e.at = Timestamp::MAX,
            |e| e.actor = Author::Principal(PrincipalId::new("mallory").unwrap()),
            |e| {
                e.actor = Author::Key {
                    key: KeyId::from_u128(1),
                    owner: crate::core::principal::Owner::Tenant,
                }
            },
            |e| e.role = Some(Role::ADMIN),
            |e| e.action = Action::KeyEnabled,
            |e| e.key = None,
            |e| e.command = CommandId::new("other").unwrap(),
            |e| e.command_mark = [1; 8],
        ];
        for change in alter {
            let mut entries = chain(3);
            change(&mut entries[1]);
            assert_eq!(
                verify(&entries, None),
                Err(ChainError::Altered { sequence: 2 })
            );
        }
    }

    #[test]
    fn a_removed_entry_shows() {
        let mut entries = chain(3);
        entries.remove(1);
        assert_eq!(
            verify(&entries, None),
            Err(ChainError::Gap {
                expected: 2,
                found: 3
            })
        );
    }

    #[test]
    fn a_chain_cut_short_shows_against_a_head_seen_elsewhere() {
        let entries = chain(3);
        let seen = Some(entries[2].head());
        assert_eq!(
            verify(&entries[..2], seen),
            Err(ChainError::Truncated { expected: 3 })
        );
        assert_eq!(
            verify(&entries[..2], None),
            Ok(entries[1].head()),
            "without it, it cannot show"
        );
    }

    #[test]
    fn a_chain_resealed_without_the_pepper_shows() {
        let mallory = PepperRing::new(Pepper::new(PepperId::new("p1").unwrap(), &[8; 32]).unwrap());
        let mut entries = chain(2);
        entries[1].action = Action::KeyEnabled;
        entries[1] = entries[1].clone().sealed(&mallory);
        assert_eq!(
            verify(&entries, None),
            Err(ChainError::Altered { sequence: 2 })
        );
    }

    #[test]
    fn a_pepper_that_is_gone_is_named() {
        let pepper = PepperId::new("p1").unwrap();
        let other = Pepper::new(PepperId::new("p2").unwrap(), &[7; 32]).unwrap();
        let tenant = TenantId::new("acme").unwrap();
        let result = verify_chain(
            &tenant,
            AuditHead::GENESIS,
            &chain(1),
            &PepperRing::new(other),
            None,
        );
        assert_eq!(
            result,
            Err(ChainError::UnknownPepper {
                sequence: 1,
                pepper
            })
        );
    }
}
