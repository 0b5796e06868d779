//! When something was done, and by whom.
//!
//! Pure.

use serde::{Deserialize, Serialize};

use super::principal::Author;
use super::time::Timestamp;

/// When something was done, and by whom.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Stamp {
    /// When.
    pub at: Timestamp,
    /// By whom.
    pub by: Author,
}
