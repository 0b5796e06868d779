//! Bulk commands: their filters and their progress.
//!
//! Pure: no I/O and no clock. A bulk command may need several commits. The first commit authorises the
//! command. The tenant's row stores the command until the last commit, so that maintenance can finish it
//! without the caller.

use serde::{Deserialize, Serialize};

use super::id::KeyId;
use super::principal::Author;
use super::record::{Credential, KeyRecord, Reason};
use super::text::{ClassName, CommandId, PepperId, PrincipalId};
use super::time::Timestamp;

/// A filter for the keys of a bulk command. A key matches if it meets every condition that is set.
///
/// Start from [`all`](Self::all). There is no `Default`, and a missing field does not deserialize, so an
/// empty value cannot match every key by mistake:
///
/// ```compile_fail
/// let filter = keyward::command::BulkFilter::default();
/// ```
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[must_use = "a filter revokes nothing by itself"]
#[non_exhaustive]
pub struct BulkFilter {
    /// Keys of this owner.
    #[serde(deserialize_with = "Option::deserialize")]
    pub owner: Option<PrincipalId>,
    /// Keys of this class.
    #[serde(deserialize_with = "Option::deserialize")]
    pub class: Option<ClassName>,
    /// Keys created before this instant.
    #[serde(deserialize_with = "Option::deserialize")]
    pub created_before: Option<Timestamp>,
    /// Keys whose digest was made with this pepper.
    #[serde(deserialize_with = "Option::deserialize")]
    pub pepper: Option<PepperId>,
    /// Keys that this key made, directly or through other keys.
    #[serde(deserialize_with = "Option::deserialize")]
    pub made_by: Option<MadeBy>,
}

/// A filter for the keys that a key made.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct MadeBy {
    /// The maker: the key that made the matching keys, directly or through other keys.
    pub key: KeyId,
    /// The id of the first key in the maker's chain of rotations. `None` until the manager has looked it up.
    /// Keys that another key of this chain made match too.
    pub lineage: Option<KeyId>,
}

impl BulkFilter {
    /// Returns the filter that matches every key.
    pub const fn all() -> Self {
        Self {
            owner: None,
            class: None,
            created_before: None,
            pepper: None,
            made_by: None,
        }
    }

    /// Narrows to keys of this owner.
    pub fn owner(mut self, owner: PrincipalId) -> Self {
        self.owner = Some(owner);
        self
    }

    /// Narrows to keys of this class.
    pub fn class(mut self, class: ClassName) -> Self {
        self.class = Some(class);
        self
    }

    /// Narrows to keys created before `instant`.
    pub fn created_before(mut self, instant: Timestamp) -> Self {
        self.created_before = Some(instant);
        self
    }

    /// Narrows to keys whose digest was made with this pepper. For a replaced pepper, these are the keys that
    /// have not been used since the replacement.
    pub fn pepper(mut self, pepper: PepperId) -> Self {
        self.pepper = Some(pepper);
        self
    }

    /// Narrows to keys that `key`, or another key of its chain of rotations, made directly or through other
    /// keys. A key that rotates another key counts as a maker of the successor, because the holder of the
    /// rotating key received the secret.
    pub fn made_by(mut self, key: KeyId) -> Self {
        let lineage = None;
        self.made_by = Some(MadeBy { key, lineage });
        self
    }

    /// Returns whether `record` meets every condition.
    #[must_use]
    pub fn matches(&self, record: &KeyRecord) -> bool {
        let Self {
            owner,
            class,
            created_before,
            pepper,
            made_by,
        } = self;
        let under = match &record.credential {
            Credential::Peppered { pepper, .. } => Some(pepper),
            Credential::Imported { .. } => None,
        };
        owner
            .as_ref()
            .is_none_or(|owner| record.owner.principal() == Some(owner))
            && class.as_ref().is_none_or(|class| record.class == *class)
            && created_before.is_none_or(|instant| record.created.at < instant)
            && pepper.as_ref().is_none_or(|pepper| under == Some(pepper))
            && made_by.is_none_or(|by| record.was_made_by(by.key, by.lineage))
    }
}

/// The part of a bulk command that one commit performs.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Sweep {
    /// The keys that this commit processes.
    pub(crate) keys: Vec<KeyId>,
    /// Marks the last commit of the command.
    pub(crate) last: bool,
}

impl From<Vec<KeyId>> for Sweep {
    fn from(keys: Vec<KeyId>) -> Self {
        let last = false;
        Self { keys, last }
    }
}

/// A bulk command that is authorised but not finished.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct PendingSweep {
    /// The id of the command.
    pub command: CommandId,
    /// The author of the command.
    pub by: Author,
    /// The instant of the command's first commit.
    pub began_at: Timestamp,
    /// True if the command also applies to descendant tenants.
    pub descendants: bool,
    /// The kind of the command, with its parameters.
    pub kind: SweepKind,
}

/// The kind of a bulk command.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum SweepKind {
    /// Ends every key of a closed tenant.
    CloseTenant,
    /// Revokes the keys of an owner who was removed.
    RemoveOwner(PrincipalId),
    /// Revokes the keys that match the filter, for this reason.
    Revoke(BulkFilter, Reason),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_without_conditions_is_written_as_such_and_never_read_from_a_blank() {
        let all = serde_json::to_value(BulkFilter::all()).unwrap();
        assert_eq!(
            serde_json::from_value::<BulkFilter>(all.clone()).unwrap(),
            BulkFilter::all()
        );
        assert!(serde_json::from_str::<BulkFilter>("{}").is_err());
        for condition in all.as_object().unwrap().keys() {
            let mut blank = all.clone();
            blank.as_object_mut().unwrap().remove(condition);
            assert!(
                serde_json::from_value::<BulkFilter>(blank).is_err(),
                "{condition}"
            );
        }
    }
}
