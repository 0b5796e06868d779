//! The credentials that a client presents.

use std::fmt;

use super::{Grant, Need};
use crate::core::id::KeyId;
use crate::core::record::KeyType;
use crate::core::rejection::VerifyError;
use crate::core::token;

/// The credentials that a client presents: a key, or a secret key with its public half.
///
/// A reference to text or bytes converts into [`Key`](Self::Key).
///
/// # Examples
///
/// ```
/// # use keyward::{Credentials, Grant, Keyward, Need, VerifyError};
/// # fn example(keys: &Keyward, user: &str, password: &str) -> Result<Grant, VerifyError> {
/// keys.verify(password, &Need::any())?;
///
/// let pair = Credentials::Pair { public: user.as_bytes(), secret: password.as_bytes() };
/// keys.verify(pair, &Need::any())
/// # }
/// ```
#[derive(Clone, Copy)]
#[non_exhaustive]
pub enum Credentials<'a> {
    /// A key by itself.
    Key(&'a [u8]),
    /// A secret key with its public half. The grant is that of the secret key.
    ///
    /// The secret key is verified first. So only a holder of the secret learns anything about the public
    /// half.
    Pair {
        /// The id of the secret key, or a publishable key of the same tenant and environment.
        public: &'a [u8],
        /// The secret key.
        secret: &'a [u8],
    },
}

impl<'a> Credentials<'a> {
    /// Returns the key to verify, and the public half of a pair.
    pub(crate) const fn halves(self) -> (&'a [u8], Option<&'a [u8]>) {
        match self {
            Self::Key(key) => (key, None),
            Self::Pair { public, secret } => (secret, Some(public)),
        }
    }
}

impl<'a, T: AsRef<[u8]> + ?Sized> From<&'a T> for Credentials<'a> {
    #[inline]
    fn from(key: &'a T) -> Self {
        Self::Key(key.as_ref())
    }
}

/// Shows no byte of the credentials.
impl fmt::Debug for Credentials<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Key(_) => "Key(..)",
            Self::Pair { .. } => "Pair { .. }",
        })
    }
}

/// Verifies a single key, or each half of a pair, with `verify`.
pub(super) fn verify_halves<E: From<VerifyError>>(
    credentials: Credentials<'_>,
    need: &Need,
    verify: impl Fn(&[u8], &Need) -> Result<Grant, E>,
) -> Result<Grant, E> {
    let (key, public) = credentials.halves();
    let grant = verify(key, need)?;
    if let Some(key) = publishable_half(&grant, public)? {
        check_pair(&grant, &verify(key, &need.of_publishable_half())?, need)?;
    }
    Ok(grant)
}

/// Returns the publishable key that must be verified too. `None` for a key without a public half, and for a
/// key whose public half is its own id.
pub(super) fn publishable_half<'a>(
    grant: &Grant,
    public: Option<&'a [u8]>,
) -> Result<Option<&'a [u8]>, VerifyError> {
    let Some(public) = public else {
        return Ok(None);
    };
    match token::trim(public)?.parse::<KeyId>() {
        Ok(id) if id == grant.key_id() => Ok(None),
        Ok(_) => Err(VerifyError::PairMismatch),
        Err(_) => Ok(Some(public)),
    }
}

/// Checks that the halves of a pair belong together.
pub(super) fn check_pair(grant: &Grant, public: &Grant, need: &Need) -> Result<(), VerifyError> {
    let belongs = public.key_type() == KeyType::Publishable
        && public.tenant() == grant.tenant()
        && public.environment() == grant.environment()
        && need.accepts_beside(public.class());
    if belongs {
        Ok(())
    } else {
        Err(VerifyError::PairMismatch)
    }
}
