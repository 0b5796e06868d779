//! The error of building a [`Keyward`](crate::Keyward).

use std::fmt;

use crate::core::policy::PolicyConflict;
use crate::core::text::PepperId;
use crate::observe::WithSources;
use crate::store::{DocumentError, StoreError};

/// The reason why [`build`](crate::KeywardBuilder::build) returned no [`Keyward`](crate::Keyward).
///
/// `Debug` prints the message with its causes, because Rust prints an error that `main` returns with `Debug`.
#[derive(Clone, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The store cannot be read, or this node cannot register.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// This process has another policy than the store, at the same version.
    #[error(transparent)]
    Policy(#[from] PolicyConflict),
    /// The store cannot hold the policy.
    #[error("policy cannot be stored: {problem}")]
    PolicyNotStorable {
        /// The problem, in words.
        problem: String,
    },
    /// The ring has a pepper with the id of a stored one, but with other bytes. Keys that one process creates
    /// would not verify in the other.
    #[error(
        "pepper {pepper} differs from the pepper of that name that this store's keys were created with; use the \
         original pepper file or, if it is lost, a new pepper with another id"
    )]
    PepperDiffers {
        /// The id of the pepper.
        pepper: PepperId,
    },
    /// The ring has none of the peppers that processes of this store have used. The usual cause is a new,
    /// empty pepper file.
    #[error(
        "no pepper of this process ({}) was ever used with this store, which knows {}; use the original pepper \
         file or, if it is lost, build with replace_lost_peppers",
        names(own),
        names(stored)
    )]
    UnrelatedPeppers {
        /// The ids of this process's peppers.
        own: Vec<PepperId>,
        /// The ids of the peppers that the store knows.
        stored: Vec<PepperId>,
    },
    /// The store's record of a shared setting cannot be read, or is written by a newer version of this crate.
    #[error("the store's {what} cannot be read: {problem}")]
    Unreadable {
        /// The setting.
        what: &'static str,
        /// The problem, in words.
        problem: String,
    },
    /// The shared settings could not be written.
    #[error(transparent)]
    Document(DocumentError),
    /// The operating system started no thread for the follower.
    #[error("no thread to follow the store on: {problem}")]
    NoThread {
        /// The error of the operating system.
        problem: String,
    },
}

impl fmt::Debug for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&WithSources(self), f)
    }
}

impl From<DocumentError> for BuildError {
    fn from(error: DocumentError) -> Self {
        match error {
            DocumentError::Store(error) => Self::Store(error),
            error => Self::Document(error),
        }
    }
}

fn names(peppers: &[PepperId]) -> String {
    let names: Vec<_> = peppers.iter().map(PepperId::as_str).collect();
    names.join(", ")
}
