//! Owners and authors: whose a key is, and who made a change.
//!
//! Pure. Each kind is a variant, so that no name that a person may have can stand for another kind.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::id::KeyId;
use super::text::PrincipalId;

/// To whom a key is linked. Set at creation, immutable (rule Y-23).
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    /// The tenant itself: keys that came with it, the legacy key among them.
    Tenant,
    /// A principal of the host.
    Principal(PrincipalId),
}

impl Owner {
    /// The principal, unless the tenant itself owns the key.
    #[must_use]
    pub const fn principal(&self) -> Option<&PrincipalId> {
        match self {
            Self::Tenant => None,
            Self::Principal(principal) => Some(principal),
        }
    }
}

/// The author of a change. Each kind is a variant, so that no name can stand for another kind.
#[derive(Clone, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Author {
    /// The application itself.
    Application,
    /// A principal in a session of its own.
    Principal(PrincipalId),
    /// A key.
    Key {
        /// Which key.
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

    /// Returns the key that acted, if one did.
    #[must_use]
    pub const fn key(&self) -> Option<KeyId> {
        match self {
            Self::Key { key, .. } => Some(*key),
            Self::Application | Self::Principal(_) => None,
        }
    }
}

/// For people: a principal that is called "the application" prints the same. Compare authors instead.
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
