//! The error of a value that could not be parsed.
//!
//! Pure. Invariant: an [`Invalid`] never holds the refused value, only its size and the position of the
//! fault, because people paste secrets into the wrong field.

use std::convert::Infallible;

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

/// The problem of a refused value.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// An empty value, which the field does not take.
    #[error("is empty")]
    Empty,
    /// More bytes than the field takes.
    #[error("is {actual} bytes long, at most {max} are allowed")]
    TooLong {
        /// The bound, in bytes.
        max: usize,
        /// The size of the refused value, in bytes.
        actual: usize,
    },
    /// More elements than the field takes.
    #[error("has {actual} entries, at most {max} are allowed")]
    TooMany {
        /// The bound, in entries.
        max: usize,
        /// The number of entries given.
        actual: usize,
    },
    /// A number outside its range.
    #[error("is {actual}, allowed is {min} to {max}")]
    OutOfRange {
        /// The smallest value allowed.
        min: i64,
        /// The largest value allowed.
        max: i64,
        /// The value given.
        actual: i64,
    },
    /// A character that the field does not take.
    #[error("has a character at byte {position} that is not allowed; allowed: {allowed}")]
    Character {
        /// Byte offset of the first refused character.
        position: usize,
        /// The characters that the field takes, in words.
        allowed: &'static str,
    },
    /// The value does not have the form that the field takes.
    #[error("must be {expected}")]
    Format {
        /// The expected form, in words.
        expected: &'static str,
    },
}
