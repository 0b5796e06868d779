//! The audit trail: every change with its author, as one hash chain per tenant.
//!
//! Pure. Entries are sealed with a key derived from a pepper, so that write access to the database does not
//! suffice to rewrite them. Each entry contains the hash of the previous entry, so that no entry can be left
//! out. A head that was noted elsewhere reveals a chain that was cut short.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::address::AddressAllowlist;
use super::id::KeyId;
use super::pepper::PepperRing;
use super::principal::{Author, Owner};
use super::record::{ImportScheme, Reason, RotationReason};
use super::scope::ScopeSet;
use super::secret::DigestMark;
use super::tagged::tagged;
use super::tenant::TenantId;
use super::text::{
    ClassName, CommandId, KeyName, LeakSource, PepperId, PrincipalId, ResourceId, Role,
};
use super::time::Timestamp;

/// The seal of an audit entry: HMAC-SHA-256 over the entry and the previous entry's seal.
#[derive(Clone, Copy, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub struct AuditHash([u8; 32]);

impl AuditHash {
    /// The zero hash that stands before the first entry of a chain.
    pub const GENESIS: Self = Self([0; 32]);

    /// Creates a hash from its bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the bytes, for a store to keep.
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

/// The head of a tenant's audit chain: the number and the hash of its newest entry.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct AuditHead {
    /// The number of the newest entry; zero before the first.
    pub sequence: u64,
    /// The hash of the newest entry.
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

tagged! {
    tag = "field";

    /// A changed field of a key, with its value before and after.
    ///
    /// For descriptions, purposes and metadata, entries record only sizes, because the text may not belong in
    /// a log.
    #[derive(Clone, Debug, Eq, PartialEq)]
    #[non_exhaustive]
    pub enum FieldChange {
        /// The name.
        Name {
            /// The old name.
            before: KeyName,
            /// The new name.
            after: KeyName,
        },
        /// The description.
        Description {
            /// The length of the old description in bytes; `None` if the key had none.
            bytes_before: Option<u32>,
            /// The length of the new description in bytes; `None` if the key has none.
            bytes_after: Option<u32>,
        },
        /// The purpose.
        Purpose {
            /// The length of the old purpose in bytes; `None` if the key had none.
            bytes_before: Option<u32>,
            /// The length of the new purpose in bytes; `None` if the key has none.
            bytes_after: Option<u32>,
        },
        /// The metadata.
        Metadata {
            /// The old number of pairs.
            pairs_before: u32,
            /// The new number of pairs.
            pairs_after: u32,
        },
        /// The scopes.
        Scopes {
            /// The old scopes.
            before: ScopeSet,
            /// The new scopes.
            after: ScopeSet,
        },
        /// The networks from which the key may be used.
        Allowlist {
            /// The old networks; empty for any.
            before: AddressAllowlist,
            /// The new networks; empty for any.
            after: AddressAllowlist,
        },
        /// The instant at which the key ends.
        ExpiresAt {
            /// The old end; `None` for never.
            before: Option<Timestamp>,
            /// The new end; `None` for never.
            after: Option<Timestamp>,
        },
    }
}

tagged! {
    tag = "type", content = "data";

    /// A change that a command or the passing of time made. [`AuditEntry::key`] names the key that changed.
    ///
    /// Events send actions to external receivers, so an action holds nothing that a receiver must not see.
    #[derive(Clone, Debug, Eq, PartialEq)]
    #[non_exhaustive]
    pub enum Action {
        /// The tenant was provisioned.
        TenantProvisioned,
        /// The tenant was closed. Its keys are refused from then on.
        TenantClosed,
        /// A resource's keys were created.
        ResourceProvisioned {
            /// The host's id of the resource.
            resource: ResourceId,
        },
        /// The key was created.
        KeyCreated {
            /// The key's class.
            class: ClassName,
        },
        /// The key was created together with its tenant or resource.
        KeyProvisioned {
            /// The key's class.
            class: ClassName,
        },
        /// The key was imported as a digest. The entry's [`Evidence`] marks the digest.
        KeyImported {
            /// The key's class.
            class: ClassName,
            /// The algorithm that made the digest.
            scheme: ImportScheme,
        },
        /// Fields of the key changed.
        KeyUpdated {
            /// The changes, one for each field.
            changes: Vec<FieldChange>,
        },
        /// The key was disabled. It is refused until it is enabled again.
        KeyDisabled,
        /// The key was enabled again.
        KeyEnabled,
        /// The key was revoked. A finished rotation has the reason [`Reason::Rotated`], and a cancelled
        /// rotation has [`Reason::RotationCancelled`].
        KeyRevoked {
            /// The reason of the revocation.
            reason: Reason,
        },
        /// The key was permanently removed.
        KeyDeleted,
        /// The revoked or expired key was removed at the end of its retention.
        KeyPurged,
        /// A successor was created. The creation of the successor has an entry of its own.
        KeyRotated {
            /// The id of the successor.
            successor: KeyId,
            /// The reason of the rotation.
            reason: RotationReason,
            /// The instant at which the old key ends. If its grace starts with the successor's first use, the
            /// latest possible end.
            old_key_ends: Timestamp,
        },
        /// The rotation was cancelled, and the key works as before.
        RotationCancelled {
            /// The successor that was revoked.
            successor: KeyId,
        },
        /// The first use of a successor was recorded.
        SuccessorFirstUsed,
        /// The grace of an old key began with its successor's first use.
        GraceBegan {
            /// The instant at which the old key ends.
            old_key_ends: Timestamp,
        },
        /// The secret was replaced because the response that held it was lost.
        SecretReplaced,
        /// The key was reported as leaked.
        KeyLeaked {
            /// The place of the leak.
            source: LeakSource,
            /// Whether the report revoked the key. That revocation has an entry of its own. Publishable and
            /// legacy keys are not revoked.
            revoked: bool,
        },
        /// The digest was renewed under another pepper.
        KeyRedigested {
            /// The new pepper.
            pepper: PepperId,
        },
        /// A principal was added as an owner of keys.
        OwnerAdded {
            /// The principal.
            owner: PrincipalId,
            /// The principal's role.
            role: Role,
        },
        /// A principal's role changed, and the reach of its keys with it.
        OwnerRoleChanged {
            /// The principal.
            owner: PrincipalId,
            /// The old role; `None` if the principal was removed before.
            before: Option<Role>,
            /// The new role.
            after: Role,
        },
        /// A principal was removed. Its keys are refused from then on.
        OwnerRemoved {
            /// The principal.
            owner: PrincipalId,
        },
        /// A bulk revocation began. It covers the keys that match a filter and were created before this
        /// entry. Each revoked key has an entry of its own.
        BulkRevocationBegan {
            /// The reason of the revocation.
            reason: Reason,
        },
        /// A command over many keys ended.
        BulkCommandEnded,
        /// Digests that the restored backup lacked were blocked, so that they can never be imported again.
        /// The entry's [`Evidence`] lists their marks.
        DigestsBlocked {
            /// The number of blocked digests.
            count: u32,
        },
        /// The tenant's newest instant was set back, because a clock had been wrong.
        TimeRepaired {
            /// The newest instant before the repair.
            from: Timestamp,
            /// The newest instant after the repair.
            to: Timestamp,
        },
    }
}

/// Facts about digests that a recovery needs from an entry. Events leave them out.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Evidence {
    /// An imported digest, with [`Action::KeyImported`].
    Imported {
        /// A keyed mark of the digest.
        mark: DigestMark,
        /// The key's owner.
        owner: Owner,
        /// The key's end at its import; `None` for never.
        expires_at: Option<Timestamp>,
    },
    /// Blocked digests, with [`Action::DigestsBlocked`].
    Blocked {
        /// Keyed marks of the digests, each with the key that had the digest.
        marks: Vec<(DigestMark, KeyId)>,
    },
}

/// An entry of a tenant's audit trail, written in the same commit as the change that it records.
///
/// Exhaustive on purpose, for stores to construct and destructure.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct AuditEntry {
    /// The tenant whose chain contains the entry.
    pub tenant: TenantId,
    /// The entry's number in the tenant's chain, starting at 1.
    pub sequence: u64,
    /// The instant at which the command was decided.
    pub at: Timestamp,
    /// The author, including the key if a key acted.
    pub actor: Author,
    /// The role that the application stated for a principal.
    pub role: Option<Role>,
    /// The id of the command.
    pub command: CommandId,
    /// A mark of the command's content, which reveals a reused command id.
    pub command_mark: [u8; 8],
    /// The change that the entry records.
    pub action: Action,
    /// Facts about digests that a recovery needs.
    pub evidence: Option<Evidence>,
    /// The key that changed.
    pub key: Option<KeyId>,
    /// The pepper whose audit key seals the entry.
    pub pepper: PepperId,
    /// The hash of the previous entry.
    pub previous: AuditHash,
    /// The seal over all fields above.
    pub hash: AuditHash,
}

impl AuditEntry {
    /// Returns the head of a chain whose newest entry is this entry.
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
            evidence,
            key,
            pepper,
            previous,
            hash: _,
        } = self;
        let fields = (
            tenant,
            sequence,
            at,
            actor,
            role,
            command,
            command_mark,
            action,
            evidence,
            key,
            pepper,
        );
        let body = postcard::to_allocvec(&fields).ok()?;
        Some(AuditHash(peppers.any(pepper)?.seal(&[&previous.0, &body])))
    }
}

/// The first fault in a chain of audit entries.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ChainError {
    /// An entry is missing, duplicated or out of order.
    #[error("entry {expected} should follow, found {found}")]
    Gap {
        /// The expected number.
        expected: u64,
        /// The number that was found.
        found: u64,
    },
    /// The chain contains an entry of another tenant.
    #[error("entry {sequence} belongs to another tenant")]
    Foreign {
        /// The entry's number.
        sequence: u64,
    },
    /// An entry was changed, or does not follow the previous entry.
    #[error("entry {sequence} was altered")]
    Altered {
        /// The entry's number.
        sequence: u64,
    },
    /// The ring does not have the pepper that sealed an entry.
    #[error("entry {sequence} was sealed under pepper {pepper}, which the ring does not have")]
    UnknownPepper {
        /// The entry's number.
        sequence: u64,
        /// The pepper's id.
        pepper: PepperId,
    },
    /// The chain lacks an entry that was noted elsewhere, or has a different entry in its place.
    #[error("entry {expected} was seen elsewhere, the chain does not lead to it")]
    Truncated {
        /// The number of the entry that was noted.
        expected: u64,
    },
}

/// Checks one tenant's entries, oldest first, starting after `start`. Needs no store, only the entries and
/// the peppers, including peppers kept with [`PepperRing::with_audit_only`].
///
/// `seen` is a head that was noted elsewhere, such as in a log or a receipt. The chain must pass through
/// `seen`, which reveals a trail that was cut short.
///
/// # Errors
///
/// [`ChainError`] names the first entry that differs from what was written.
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
                evidence: None,
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
    fn an_intact_chain_passes_and_returns_its_head() {
        let entries = chain(3);
        assert_eq!(verify(&entries, None), Ok(entries[2].head()));
        assert_eq!(
            verify(&entries, Some(entries[1].head())),
            Ok(entries[2].head())
        );
    }

    #[test]
    fn an_alteration_of_any_field_is_detected() {
        let alter: [fn(&mut AuditEntry); 9] = [
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
            |e| e.evidence = Some(Evidence::Blocked { marks: Vec::new() }),
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
    fn a_removed_entry_is_detected() {
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
    fn a_head_noted_elsewhere_reveals_a_chain_that_was_cut_short() {
        let entries = chain(3);
        let seen = Some(entries[2].head());
        assert_eq!(
            verify(&entries[..2], seen),
            Err(ChainError::Truncated { expected: 3 })
        );
        assert_eq!(
            verify(&entries[..2], None),
            Ok(entries[1].head()),
            "without the head the cut goes unnoticed"
        );
    }

    #[test]
    fn a_chain_resealed_without_the_pepper_is_detected() {
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
    fn a_missing_pepper_is_named() {
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
