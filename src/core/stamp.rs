//! The instant and the author of a change.
//!
//! Pure: no I/O and no clock.

use serde::{Deserialize, Serialize};

use super::principal::Author;
use super::time::Timestamp;

/// The instant and the author of a change.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Stamp {
    /// The instant of the change.
    pub at: Timestamp,
    /// The author of the change.
    pub by: Author,
}
