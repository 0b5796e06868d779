//! Owners of keys and authors of changes.
//!
//! Pure: no I/O and no clock. Each kind of owner or author is an enum variant, so that no principal's id can
//! be mistaken for another kind.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::id::KeyId;
use super::text::PrincipalId;

/// The owner of a key. Set at creation and immutable.
///
/// Binary formats use a plain enum. JSON and other human-readable formats use an object: `{"type": "tenant"}`
/// or `{"type": "principal", "id": "alice"}`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Owner {
    /// The tenant itself, for example for keys that were provisioned with the tenant.
    Tenant,
    /// A principal of the application.
    Principal(PrincipalId),
}

impl Owner {
    /// Returns the principal, unless the tenant itself owns the key.
    #[must_use]
    pub const fn principal(&self) -> Option<&PrincipalId> {
        match self {
            Self::Tenant => None,
            Self::Principal(principal) => Some(principal),
        }
    }
}

/// The author of a change: the application, a person or a key. Each kind is an enum variant, so that no
/// principal's id can be mistaken for another kind of author.
///
/// Binary formats use a plain enum. JSON and other human-readable formats use an object: `{"type":
/// "application"}`, `{"type": "principal", "id": "alice"}` or `{"type": "key", "id": "…", "owner": {…}}`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Author {
    /// The application itself.
    Application,
    /// A principal who acted in person, not through a key.
    Principal(PrincipalId),
    /// A key that acted.
    Key {
        /// The id of the key.
        key: KeyId,
        /// The key's owner.
        owner: Owner,
    },
}

impl Author {
    /// Returns the principal: the person, or the owner of the key that acted.
    #[must_use]
    pub const fn principal(&self) -> Option<&PrincipalId> {
        match self {
            Self::Application => None,
            Self::Principal(principal) => Some(principal),
            Self::Key { owner, .. } => owner.principal(),
        }
    }

    /// Returns the key that acted. `None` if no key acted.
    #[must_use]
    pub const fn key(&self) -> Option<KeyId> {
        match self {
            Self::Key { key, .. } => Some(*key),
            Self::Application | Self::Principal(_) => None,
        }
    }
}

/// For display only: a principal with the id "the application" prints like the application itself. Compare
/// `Author` values, not their text.
impl fmt::Display for Author {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Application => f.pad("the application"),
            Self::Principal(principal) => f.pad(principal.as_str()),
            Self::Key { key, owner } => match owner.principal() {
                Some(principal) => write!(f, "{principal} by key {key}"),
                None => write!(f, "key {key}"),
            },
        }
    }
}

#[derive(Deserialize, Serialize)]
#[serde(remote = "Owner")]
enum StoredOwner {
    Tenant,
    Principal(PrincipalId),
}

#[derive(Deserialize, Serialize)]
#[serde(remote = "Owner", tag = "type", rename_all = "snake_case")]
enum ReadableOwner {
    Tenant,
    Principal(#[serde(with = "as_id")] PrincipalId),
}

#[derive(Deserialize, Serialize)]
#[serde(remote = "Author")]
enum StoredAuthor {
    Application,
    Principal(PrincipalId),
    Key { key: KeyId, owner: Owner },
}

#[derive(Deserialize, Serialize)]
#[serde(remote = "Author", tag = "type", rename_all = "snake_case")]
enum ReadableAuthor {
    Application,
    Principal(#[serde(with = "as_id")] PrincipalId),
    Key {
        #[serde(rename = "id")]
        key: KeyId,
        owner: Owner,
    },
}

macro_rules! two_forms {
    ($type:ident, $stored:ident, $readable:ident) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                match to.is_human_readable() {
                    true => $readable::serialize(self, to),
                    false => $stored::serialize(self, to),
                }
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                match from.is_human_readable() {
                    true => $readable::deserialize(from),
                    false => $stored::deserialize(from),
                }
            }
        }
    };
}

two_forms!(Owner, StoredOwner, ReadableOwner);
two_forms!(Author, StoredAuthor, ReadableAuthor);

/// Serializes a principal as an object with the field `id`. The enclosing enum adds the field `type`.
mod as_id {
    use super::{Deserialize, Deserializer, PrincipalId, Serialize, Serializer};

    #[derive(Deserialize, Serialize)]
    struct Id<T> {
        id: T,
    }

    pub(super) fn serialize<S: Serializer>(id: &PrincipalId, to: S) -> Result<S::Ok, S::Error> {
        Id { id }.serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PrincipalId, D::Error> {
        Id::deserialize(from).map(|Id { id }| id)
    }
}
