//! Revisions: the numbers that order commits.

use serde::{Deserialize, Serialize};

/// The number of a commit. One counter per store orders all commits. A tenant's revision is the revision of
/// its last commit.
#[derive(
    Clone, Copy, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize,
)]
pub struct Revision(pub u64);

impl Revision {
    /// The revision before the first commit.
    pub const ZERO: Self = Self(0);
}

impl std::fmt::Display for Revision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}
