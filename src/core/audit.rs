//! The audit trail: every change with its author, as one hash chain per tenant.
//!
//! Pure: no I/O and no clock. Each entry is sealed with a MAC, whose key is derived from a pepper. Write
//! access to the database is therefore not enough to forge an entry. Each entry contains the previous entry's
//! hash, so removing an entry breaks the chain. Only the oldest entries can be removed: a later entry, the
//! checkpoint, then names the newest of them. A head that was saved outside the store reveals a truncated chain.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::address::AddressAllowlist;
use super::id::KeyId;
use super::kind::ErrorKind;
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
pub struct AuditHash(#[serde(with = "super::hex")] [u8; 32]);

impl AuditHash {
    /// The all-zero hash that precedes the first entry of a chain.
    pub const GENESIS: Self = Self([0; 32]);

    /// Creates a hash from its bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the bytes for storage.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for AuditHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        super::hex::write(&self.0, f)
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
    /// The number of the newest entry. Zero for an empty chain.
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
    /// Descriptions, purposes and metadata are recorded only by size, because their text may be private.
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

    /// A change that is recorded in the audit trail. [`AuditEntry::key`] names the key that changed.
    ///
    /// Events send actions to external receivers, so an action contains no secret and no digest.
    #[derive(Clone, Debug, Eq, PartialEq)]
    #[non_exhaustive]
    pub enum Action {
        /// The tenant was provisioned.
        TenantProvisioned,
        /// The tenant was closed. All its keys are refused.
        TenantClosed,
        /// The keys that the policy provisions with a resource were created.
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
        /// The key was imported as a digest. The entry's [`Evidence`] identifies the digest.
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
        /// The key was revoked. Finishing a rotation revokes the old key with [`Reason::Rotated`]. Cancelling
        /// a rotation revokes the successor with [`Reason::RotationCancelled`].
        KeyRevoked {
            /// The reason of the revocation.
            reason: Reason,
        },
        /// The key was permanently removed.
        KeyDeleted,
        /// The revoked or expired key was removed at the end of its retention.
        KeyPurged,
        /// A successor was created. A separate [`Action::KeyCreated`] entry records the successor itself.
        KeyRotated {
            /// The id of the successor.
            successor: KeyId,
            /// The reason of the rotation.
            reason: RotationReason,
            /// The instant at which the old key ends. If the old key waits for the successor's first use,
            /// this is the latest possible instant.
            old_key_ends: Timestamp,
        },
        /// The rotation was cancelled: its successor was revoked, and the old key works as before.
        RotationCancelled {
            /// The successor that was revoked.
            successor: KeyId,
        },
        /// The successor of a rotated key was used for the first time.
        SuccessorFirstUsed,
        /// The grace period of an old key began, because its successor was used for the first time.
        GraceBegan {
            /// The instant at which the old key ends.
            old_key_ends: Timestamp,
        },
        /// The key got a new secret, because the response with the first secret was lost.
        SecretReplaced,
        /// The key was reported as leaked.
        KeyLeaked {
            /// The place of the leak.
            source: LeakSource,
            /// True if this report revokes the key. False for publishable and legacy keys, and for a key that
            /// was already revoked. A separate [`Action::KeyRevoked`] entry records the revocation.
            revoked: bool,
        },
        /// The key's stored digest was replaced by a digest of the same secret under another pepper.
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
        /// A principal's role changed. The new role also limits the principal's existing keys.
        OwnerRoleChanged {
            /// The principal.
            owner: PrincipalId,
            /// The old role; `None` if the principal was removed before.
            before: Option<Role>,
            /// The new role.
            after: Role,
        },
        /// A principal was removed as an owner. The principal's keys are refused.
        OwnerRemoved {
            /// The principal.
            owner: PrincipalId,
        },
        /// A bulk revocation began. The command revokes the matching keys that were created before this
        /// entry. Each revoked key gets a separate entry.
        BulkRevocationBegan {
            /// The reason of the revocation.
            reason: Reason,
        },
        /// A bulk command finished.
        BulkCommandEnded,
        /// After a restore from a backup, digests that the backup did not contain were blocked from being
        /// imported again. The entry's [`Evidence`] lists the mark of each digest, a MAC from which the
        /// digest cannot be derived.
        DigestsBlocked {
            /// The number of blocked digests.
            count: u32,
        },
        /// The tenant's newest commit time was set back, because a wrong clock had dated a commit in the
        /// future.
        TimeRepaired {
            /// The newest commit time before the repair.
            from: Timestamp,
            /// The newest commit time after the repair.
            to: Timestamp,
        },
        /// Older entries were removed from the trail. This entry is the checkpoint that proves their removal.
        TrailPruned {
            /// The number and the hash of the newest removed entry.
            through: AuditHead,
        },
        /// Entries of the trail are lost, because a page of a damaged file had them. A recovery recorded the loss.
        /// This entry explains the gap, so that the rest of the trail still passes its check. If the trail lost its
        /// end, the number of lost entries is not known: both heads are then that of the newest entry that is left.
        EntriesLost {
            /// The newest entry before the gap.
            after: AuditHead,
            /// The number and the hash of the newest lost entry.
            through: AuditHead,
        },
    }
}

impl Action {
    /// Returns whether the change takes authority away and grants none. A store that is nearly full keeps space
    /// for such changes. Returns false for a change that may do either, such as an update of a key's fields.
    pub(crate) const fn only_narrows(&self) -> bool {
        match self {
            Self::TenantClosed
            | Self::KeyDisabled
            | Self::KeyRevoked { .. }
            | Self::KeyDeleted
            | Self::KeyPurged
            | Self::KeyLeaked { .. }
            | Self::OwnerRemoved { .. }
            | Self::BulkRevocationBegan { .. }
            | Self::BulkCommandEnded
            | Self::DigestsBlocked { .. } => true,
            Self::TenantProvisioned
            | Self::ResourceProvisioned { .. }
            | Self::KeyCreated { .. }
            | Self::KeyProvisioned { .. }
            | Self::KeyImported { .. }
            | Self::KeyUpdated { .. }
            | Self::KeyEnabled
            | Self::KeyRotated { .. }
            | Self::RotationCancelled { .. }
            | Self::SuccessorFirstUsed
            | Self::GraceBegan { .. }
            | Self::SecretReplaced
            | Self::KeyRedigested { .. }
            | Self::OwnerAdded { .. }
            | Self::OwnerRoleChanged { .. }
            | Self::TimeRepaired { .. }
            | Self::TrailPruned { .. }
            | Self::EntriesLost { .. } => false,
        }
    }
}

/// Facts about imported or blocked digests, which an audit entry keeps for a recovery after a restore from a
/// backup. Events do not contain these facts.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Evidence {
    /// An imported digest, with [`Action::KeyImported`].
    Imported {
        /// The mark of the digest: a MAC under a pepper.
        mark: DigestMark,
        /// The key's owner.
        owner: Owner,
        /// The key's expiry at the time of the import. `None` if the key never expires.
        expires_at: Option<Timestamp>,
    },
    /// Blocked digests, with [`Action::DigestsBlocked`].
    Blocked {
        /// The mark of each digest, with the id of the key that had the digest.
        marks: Vec<(DigestMark, KeyId)>,
    },
}

/// An entry of a tenant's audit trail, written in the same commit as the change that it records.
///
/// An entry survives its JSON form, with hashes as hexadecimal text: an exported trail can be
/// [replayed](crate::recovery::Recovery::Replay). Text in JSON is checked like text that a person types.
///
/// Deliberately exhaustive, so that stores can construct and destructure entries.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct AuditEntry {
    /// The tenant whose chain contains the entry.
    pub tenant: TenantId,
    /// The entry's number in the tenant's chain, starting at 1.
    pub sequence: u64,
    /// The instant at which the command was decided.
    pub at: Timestamp,
    /// The author of the command: the application, a person or a key.
    pub actor: Author,
    /// The role that the application stated for the person who gave the command. `None` for any other author.
    pub role: Option<Role>,
    /// The id of the command.
    pub command: CommandId,
    /// A hash of the command. If two entries have one command id but different hashes, the id was reused for
    /// another command.
    #[serde(with = "super::hex")]
    pub command_mark: [u8; 8],
    /// The change that the entry records.
    pub action: Action,
    /// Facts about digests that a recovery needs after a restore from a backup. `None` for most actions.
    pub evidence: Option<Evidence>,
    /// The key that changed. `None` if the entry is not about a single key.
    pub key: Option<KeyId>,
    /// The pepper from which the sealing key is derived.
    pub pepper: PepperId,
    /// The hash of the previous entry.
    pub previous: AuditHash,
    /// The seal of the entry: a MAC over all fields above.
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
    #[error(
        "entry {sequence} was sealed under pepper {pepper}, which this process does not have: put back the pepper file that has it"
    )]
    UnknownPepper {
        /// The entry's number.
        sequence: u64,
        /// The pepper's id.
        pepper: PepperId,
    },
    /// The trail does not begin with entry 1, and no later entry records that older entries were removed.
    #[error("the trail begins with entry {found}, and no entry records the removal of older ones")]
    Unproven {
        /// The number of the oldest entry.
        found: u64,
    },
    /// The head that the caller saved was removed with older entries. Later heads can still be checked.
    #[error("the saved head, entry {expected}, was removed with the entries up to {through}")]
    Pruned {
        /// The number of the entry in the saved head.
        expected: u64,
        /// The number of the newest removed entry.
        through: u64,
    },
    /// The chain does not contain the head that the caller saved: later entries were removed, or an entry was
    /// replaced.
    #[error("the chain does not contain the saved head, entry {expected}")]
    Truncated {
        /// The number of the entry in the saved head.
        expected: u64,
    },
}

impl ChainError {
    /// Returns the stable code of the fault, such as `audit-gap`.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Gap { .. } => "audit-gap",
            Self::Foreign { .. } => "audit-foreign-entry",
            Self::Altered { .. } => "audit-altered",
            Self::UnknownPepper { .. } => "audit-pepper-unknown",
            Self::Unproven { .. } => "audit-unproven",
            Self::Pruned { .. } => "audit-head-pruned",
            Self::Truncated { .. } => "audit-truncated",
        }
    }

    /// Returns [`ErrorKind::Internal`], except for a saved head that was pruned, which is an
    /// [`ErrorKind::Conflict`].
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Pruned { .. } => ErrorKind::Conflict,
            Self::Gap { .. }
            | Self::Foreign { .. }
            | Self::Altered { .. }
            | Self::UnknownPepper { .. }
            | Self::Unproven { .. }
            | Self::Truncated { .. } => ErrorKind::Internal,
        }
    }

    /// Returns the text that a client may see. It hides faults that only an operator can examine.
    #[must_use]
    pub fn public_message(&self) -> String {
        match self.kind().cover() {
            Some(cover) => cover.to_owned(),
            None => self.to_string(),
        }
    }
}

/// Checks the entries of one tenant that follow the head `start`, oldest first. Needs no store, only the
/// entries and the peppers. The ring must include retired peppers that sealed entries (see
/// [`PepperRing::with_audit_only`]).
///
/// `seen` is a head that was saved outside the store, such as in a log or a receipt. If the chain does not
/// contain `seen`, entries were removed from its end.
///
/// # Errors
///
/// [`ChainError`] for the first entry that fails a check.
pub fn verify_chain<'a>(
    tenant: &TenantId,
    start: AuditHead,
    entries: impl IntoIterator<Item = &'a AuditEntry>,
    peppers: &PepperRing,
    seen: Option<AuditHead>,
) -> Result<AuditHead, ChainError> {
    let mut check = ChainCheck::new(tenant, start, peppers, seen);
    entries.into_iter().try_for_each(|entry| check.add(entry))?;
    check.finish()
}

/// A check of one tenant's entries, in constant memory. Takes the entries one by one, oldest first.
pub(crate) struct ChainCheck<'a> {
    tenant: &'a TenantId,
    peppers: &'a PepperRing,
    head: AuditHead,
    /// The heads that the chain must still pass.
    awaited: Vec<AuditHead>,
    /// The newest removed entry, if the trail begins after it.
    removed: Option<AuditHead>,
    /// True until an entry of the trail proves that the entries before it were removed on purpose.
    is_unproven: bool,
    /// The gaps that no entry has recorded yet. `None` if the chain must have no gap.
    gaps: Option<Vec<TrailGap>>,
}

/// A gap in a trail: the newest entry before the gap, and the newest missing entry.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct TrailGap {
    pub(crate) after: AuditHead,
    pub(crate) through: AuditHead,
}

impl<'a> ChainCheck<'a> {
    /// Begins after the head `start`. The chain must contain every head in `awaited`.
    pub(crate) fn new(
        tenant: &'a TenantId,
        start: AuditHead,
        peppers: &'a PepperRing,
        awaited: impl IntoIterator<Item = AuditHead>,
    ) -> Self {
        let mut check = Self {
            tenant,
            peppers,
            head: start,
            awaited: awaited.into_iter().collect(),
            removed: None,
            is_unproven: false,
            gaps: None,
        };
        check.pass(start);
        check
    }

    /// Allows gaps that a later entry records.
    pub(crate) fn with_recorded_gaps(mut self) -> Self {
        self.gaps = Some(Vec::new());
        self
    }

    fn pass(&mut self, head: AuditHead) {
        self.head = head;
        self.awaited.retain(|awaited| *awaited != head);
    }

    /// Begins with `first`, the oldest entry in a store. Older entries may have been removed, and entries may be
    /// lost: then a later entry must prove it.
    pub(crate) fn of_trail(
        tenant: &'a TenantId,
        first: &AuditEntry,
        peppers: &'a PepperRing,
        awaited: impl IntoIterator<Item = AuditHead>,
    ) -> Self {
        let start = match first.sequence.checked_sub(1) {
            None | Some(0) => {
                return Self::new(tenant, AuditHead::GENESIS, peppers, awaited)
                    .with_recorded_gaps();
            }
            Some(sequence) => AuditHead {
                sequence,
                hash: first.previous,
            },
        };
        Self {
            removed: Some(start),
            is_unproven: true,
            ..Self::new(tenant, start, peppers, awaited).with_recorded_gaps()
        }
    }

    /// Checks the next entry.
    pub(crate) fn add(&mut self, entry: &AuditEntry) -> Result<(), ChainError> {
        let sequence = entry.sequence;
        let expected = self.head.sequence + 1;
        if sequence > expected
            && let Some(gaps) = &mut self.gaps
        {
            let through = AuditHead {
                sequence: sequence - 1,
                hash: entry.previous,
            };
            gaps.push(TrailGap {
                after: self.head,
                through,
            });
            self.pass(through);
        } else if sequence != expected {
            return Err(ChainError::Gap {
                expected,
                found: sequence,
            });
        }
        if entry.tenant != *self.tenant {
            return Err(ChainError::Foreign { sequence });
        }
        if self.peppers.any(&entry.pepper).is_none() {
            return Err(ChainError::UnknownPepper {
                sequence,
                pepper: entry.pepper.clone(),
            });
        }
        if entry.previous != self.head.hash || entry.seal(self.peppers) != Some(entry.hash) {
            return Err(ChainError::Altered { sequence });
        }
        match entry.action {
            Action::TrailPruned { through } => self.prove(AuditHead::GENESIS, through),
            Action::EntriesLost { after, through } => self.prove(after, through),
            _ => {}
        }
        self.pass(entry.head());
        Ok(())
    }

    /// Notes that an entry records the removal or the loss of entries.
    fn prove(&mut self, after: AuditHead, through: AuditHead) {
        let recorded = TrailGap { after, through };
        if after == AuditHead::GENESIS && self.removed == Some(through) {
            self.is_unproven = false;
        }
        if let Some(gaps) = &mut self.gaps {
            gaps.retain(|gap| *gap != recorded);
        }
    }

    /// Returns the gaps that no entry has recorded, in a trail that should end with `end`.
    pub(crate) fn unrecorded_gaps(&self, end: AuditHead) -> Vec<TrailGap> {
        let begin = self.removed.filter(|_| self.is_unproven);
        let begin = begin.map(|through| TrailGap {
            after: AuditHead::GENESIS,
            through,
        });
        let last = (end.sequence > self.head.sequence).then_some(TrailGap {
            after: self.head,
            through: end,
        });
        let within = self.gaps.iter().flatten().copied();
        begin.into_iter().chain(within).chain(last).collect()
    }

    /// Ends the check, and returns the head of the chain.
    pub(crate) fn finish(self) -> Result<AuditHead, ChainError> {
        let removed = self.removed.unwrap_or_default().sequence;
        if self.is_unproven {
            return Err(ChainError::Unproven { found: removed + 1 });
        }
        if let Some(TrailGap { after, through }) = self.gaps.iter().flatten().next() {
            return Err(ChainError::Gap {
                expected: after.sequence + 1,
                found: through.sequence + 1,
            });
        }
        let later = self
            .awaited
            .iter()
            .find(|awaited| awaited.sequence >= removed);
        match later.or(self.awaited.first()) {
            Some(awaited) if awaited.sequence < removed => Err(ChainError::Pruned {
                expected: awaited.sequence,
                through: removed,
            }),
            Some(awaited) => Err(ChainError::Truncated {
                expected: awaited.sequence,
            }),
            None => Ok(self.head),
        }
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

    #[test]
    fn a_trail_begins_where_a_sealed_entry_says_that_older_ones_were_removed() {
        let mut entries = chain(5);
        let checkpoint = |entry: &mut AuditEntry, through| {
            entry.action = Action::TrailPruned { through };
            *entry = entry.clone().sealed(&ring());
        };
        let (second, fourth) = (entries[1].head(), entries[3].head());
        checkpoint(&mut entries[4], second);
        let tenant = TenantId::new("acme").unwrap();
        let verify = |entries: &[AuditEntry], seen| {
            let ring = ring();
            let mut check = ChainCheck::of_trail(&tenant, &entries[0], &ring, seen);
            entries.iter().try_for_each(|entry| check.add(entry))?;
            check.finish()
        };
        let head = entries[4].head();
        for seen in [None, Some(second), Some(fourth)] {
            assert_eq!(verify(&entries[2..], seen), Ok(head));
        }
        assert_eq!(
            verify(&entries, Some(second)),
            Ok(head),
            "nothing was removed yet"
        );
        let removed = verify(&entries[2..], Some(entries[0].head()));
        let (expected, through) = (1, 2);
        assert_eq!(removed, Err(ChainError::Pruned { expected, through }));
        let gap = |found| Err(ChainError::Unproven { found });
        assert_eq!(
            verify(&entries[1..], None),
            gap(2),
            "fewer than were removed"
        );
        assert_eq!(
            verify(&entries[3..], None),
            gap(4),
            "more than were removed"
        );
        assert_eq!(
            verify(&entries[2..4], None),
            gap(3),
            "without the checkpoint"
        );
        let mut forged = entries.clone();
        forged[4].action = Action::TrailPruned {
            through: entries[2].head(),
        };
        let altered = Err(ChainError::Altered { sequence: 5 });
        assert_eq!(
            verify(&forged[3..], None),
            altered,
            "a checkpoint that nobody sealed"
        );
        // The seal is right, but the removed entry had another hash.
        let mut other = entries.clone();
        other[2].previous = AuditHash::from_bytes([1; 32]);
        assert!(verify(&other[2..], None).is_err());
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
