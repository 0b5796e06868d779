//! The error of a value that could not be parsed.
//!
//! Pure: no I/O and no clock. Invariant: an [`Invalid`] never contains the rejected text, because people may
//! paste a secret into the wrong field. It contains only the size of the text and the position of the fault.

use std::convert::Infallible;

use super::kind::ErrorKind;

/// The error of a value that could not be parsed: the field, and the problem of its value.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{field} {problem}")]
pub struct Invalid {
    /// The field, in the words of the documentation ("key name", "scope").
    pub field: &'static str,
    /// The problem of the field's value.
    pub problem: Problem,
}

impl Invalid {
    pub(crate) const fn new(field: &'static str, problem: Problem) -> Self {
        Self { field, problem }
    }
}

impl From<Infallible> for Invalid {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

impl Invalid {
    /// Returns the stable code of the problem, such as `invalid-too-long`.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self.problem {
            Problem::Empty => "invalid-empty",
            Problem::TooLong { .. } => "invalid-too-long",
            Problem::TooMany { .. } => "invalid-too-many",
            Problem::OutOfRange { .. } => "invalid-out-of-range",
            Problem::Character { .. } => "invalid-character",
            Problem::Repeated => "invalid-repeated",
            Problem::Format { .. } => "invalid-format",
        }
    }

    /// Returns [`ErrorKind::Invalid`].
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        ErrorKind::Invalid
    }

    /// Returns the text that a client may see: the whole message, which never contains the value.
    #[must_use]
    pub fn public_message(&self) -> String {
        self.to_string()
    }
}

/// The problem of a rejected value.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The value is empty, which the field does not allow.
    #[error("is empty")]
    Empty,
    /// The value has more bytes than the field allows.
    #[error("is {actual} bytes long, at most {max} are allowed")]
    TooLong {
        /// The maximum size, in bytes.
        max: usize,
        /// The size of the rejected value, in bytes.
        actual: usize,
    },
    /// The value has more entries than the field allows.
    #[error("has {actual} entries, at most {max} are allowed")]
    TooMany {
        /// The maximum number of entries.
        max: usize,
        /// The number of entries given.
        actual: usize,
    },
    /// The number is outside the allowed range.
    #[error("is {actual}, allowed is {min} to {max}")]
    OutOfRange {
        /// The smallest value allowed.
        min: i64,
        /// The largest value allowed.
        max: i64,
        /// The value given.
        actual: i64,
    },
    /// The value contains a character that the field does not allow.
    #[error("has a character at byte {position} that is not allowed; allowed: {allowed}")]
    Character {
        /// The byte offset of the first character that is not allowed.
        position: usize,
        /// A description of the allowed characters.
        allowed: &'static str,
    },
    /// The value appears twice where it may appear once.
    #[error("appears twice")]
    Repeated,
    /// The value does not have the expected format.
    #[error("must be {expected}")]
    Format {
        /// A description of the expected format.
        expected: &'static str,
    },
}
