//! The kinds of error, each with its HTTP status. This module is the only place that maps errors to statuses.
//!
//! Pure: no I/O and no clock. Every error that a front end meets has three methods:
//!
//! - `code` returns a stable name for programs and logs. Codes are unique in the crate, and `docs/errors.md` lists
//!   them. Later versions add codes, and never change or reuse one.
//! - `kind` returns the [`ErrorKind`], and with it the HTTP status. (`StoreError` calls this method `error_kind`.)
//! - `public_message` returns the text that a client may see. The `Display` text is for the service's own logs.

use std::fmt;

/// The kind of an error, which determines the HTTP status of the response.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request is malformed, or lacks something that it needs: 400.
    Invalid,
    /// The key does not authenticate: 401.
    Unauthenticated,
    /// The key or the actor may not do this: 403.
    Forbidden,
    /// The object does not exist, or the actor does not reach it: 404.
    NotFound,
    /// The request contradicts the current state, such as a cap that is reached or a key that is revoked: 409. A
    /// retry fails too, until the state changes.
    Conflict,
    /// Too many requests: 429. A retry after a pause may succeed.
    LimitReached,
    /// The service cannot answer at the moment, for example because its store is down: 503. A retry may succeed.
    Unavailable,
    /// The service is misconfigured, or stored data is damaged: 500. An operator must act.
    Internal,
}

impl ErrorKind {
    /// Returns the HTTP status.
    #[must_use]
    pub const fn http_status(self) -> u16 {
        match self {
            Self::Invalid => 400,
            Self::Unauthenticated => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::LimitReached => 429,
            Self::Unavailable => 503,
            Self::Internal => 500,
        }
    }

    /// Returns the gRPC status code.
    #[must_use]
    pub const fn grpc_code(self) -> i32 {
        match self {
            Self::Invalid => 3,          // INVALID_ARGUMENT
            Self::Unauthenticated => 16, // UNAUTHENTICATED
            Self::Forbidden => 7,        // PERMISSION_DENIED
            Self::NotFound => 5,         // NOT_FOUND
            Self::Conflict => 9,         // FAILED_PRECONDITION
            Self::LimitReached => 8,     // RESOURCE_EXHAUSTED
            Self::Unavailable => 14,     // UNAVAILABLE
            Self::Internal => 13,        // INTERNAL
        }
    }

    /// Returns the name of the kind in kebab case.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Unauthenticated => "unauthenticated",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not-found",
            Self::Conflict => "conflict",
            Self::LimitReached => "limit-reached",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
        }
    }

    /// Returns the text for a client that may not see the cause. `None` if the error's own text may be shown.
    pub(crate) const fn cover(self) -> Option<&'static str> {
        match self {
            Self::Unavailable => Some("the service cannot answer at the moment: try again later"),
            Self::Internal => Some("the service has an internal error"),
            Self::Invalid
            | Self::Unauthenticated
            | Self::Forbidden
            | Self::NotFound
            | Self::Conflict
            | Self::LimitReached => None,
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
