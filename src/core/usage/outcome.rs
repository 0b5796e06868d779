//! The outcome under which a use of a key is counted.

use crate::core::rejection::VerifyError;

/// The outcome under which a use of a key is counted.
///
/// A new version may add outcomes. Their codes are never reused, because stores keep them for years.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
pub enum UseOutcome {
    /// The key was accepted.
    Accepted,
    /// The key has expired.
    Expired,
    /// The key was revoked.
    Revoked,
    /// The key is disabled.
    Disabled,
    /// The secret does not match the key. Clients cannot distinguish this outcome from an unknown key.
    WrongSecret,
    /// The key lacks a scope that the request needs.
    MissingScope,
    /// The key may not be used from the client's address, or the address is unknown.
    WrongAddress,
    /// The key is of another class, environment or tenant than the request needs.
    WrongKind,
    /// The key's owner was removed, or its tenant was closed.
    OwnerRemoved,
    /// A rate limit was reached.
    RateLimited,
    /// A quota is used up, or credits are.
    OverQuota,
}

impl UseOutcome {
    /// All outcomes, in the order of their codes.
    pub const ALL: &'static [Self] = &[
        Self::Accepted,
        Self::Expired,
        Self::Revoked,
        Self::Disabled,
        Self::WrongSecret,
        Self::MissingScope,
        Self::WrongAddress,
        Self::WrongKind,
        Self::OwnerRemoved,
        Self::RateLimited,
        Self::OverQuota,
    ];

    /// Returns the number that stores keep.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// Returns the outcome with this code. `None` if a later version added the code.
    #[must_use]
    pub fn of_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }

    /// Returns the stable name, for reports and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::Disabled => "disabled",
            Self::WrongSecret => "wrong-secret",
            Self::MissingScope => "missing-scope",
            Self::WrongAddress => "wrong-address",
            Self::WrongKind => "wrong-kind",
            Self::OwnerRemoved => "owner-removed",
            Self::RateLimited => "rate-limited",
            Self::OverQuota => "over-quota",
        }
    }

    /// Returns the outcome under which a refusal counts for the presented key. `None` if the refusal counts for no key:
    /// the text is no key, the key is unknown, two keys do not belong together, or the node could not decide.
    #[must_use]
    pub const fn of_refusal(refusal: &VerifyError) -> Option<Self> {
        Some(match refusal {
            VerifyError::WrongSecret => Self::WrongSecret,
            VerifyError::Revoked { .. } => Self::Revoked,
            VerifyError::Expired { .. } => Self::Expired,
            VerifyError::Disabled { .. } => Self::Disabled,
            VerifyError::OwnerRemoved { .. } | VerifyError::TenantClosed { .. } => {
                Self::OwnerRemoved
            }
            VerifyError::Publishable { .. }
            | VerifyError::WrongClass { .. }
            | VerifyError::WrongEnvironment { .. }
            | VerifyError::WrongTenant { .. } => Self::WrongKind,
            VerifyError::AddressNotAllowed { .. } | VerifyError::AddressUnknown { .. } => {
                Self::WrongAddress
            }
            VerifyError::MissingScope { .. } => Self::MissingScope,
            VerifyError::Malformed(_)
            | VerifyError::Unknown
            | VerifyError::PairMismatch
            | VerifyError::ClockUnsure { .. }
            | VerifyError::Stale { .. }
            | VerifyError::NeedsFresh
            | VerifyError::StoreUnavailable
            | VerifyError::Busy
            | VerifyError::UnknownPepper { .. }
            | VerifyError::UnknownClass { .. }
            | VerifyError::Corrupt { .. } => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::id::KeyId;
    use crate::core::record::Reason;
    use crate::core::tenant::TenantId;
    use crate::core::time::Timestamp;

    /// The numbers in stores. A change of one of them would give old counts another meaning.
    #[test]
    fn codes_and_names_stay_as_they_are() {
        let known = [
            (0, "accepted"),
            (1, "expired"),
            (2, "revoked"),
            (3, "disabled"),
            (4, "wrong-secret"),
            (5, "missing-scope"),
            (6, "wrong-address"),
            (7, "wrong-kind"),
            (8, "owner-removed"),
            (9, "rate-limited"),
            (10, "over-quota"),
        ];
        let all: Vec<_> = UseOutcome::ALL
            .iter()
            .map(|outcome| (outcome.code(), outcome.name()))
            .collect();
        assert_eq!(all, known);
        for outcome in UseOutcome::ALL {
            assert_eq!(UseOutcome::of_code(outcome.code()), Some(*outcome));
        }
        assert_eq!(UseOutcome::of_code(11), None);
    }

    #[test]
    fn a_refusal_counts_under_its_reason() {
        let (key, at) = (KeyId::from_u128(1), Timestamp::UNIX_EPOCH);
        let reason = Reason::Leaked;
        let scope = "a:b".parse().unwrap();
        let (class, tenant) = ("secret".parse().unwrap(), TenantId::new("a").unwrap());
        let address = [127, 0, 0, 1].into();
        let environment = "live".parse().unwrap();
        for (refusal, name) in [
            (VerifyError::WrongSecret, Some("wrong-secret")),
            (VerifyError::Revoked { key, at, reason }, Some("revoked")),
            (VerifyError::Expired { key, at }, Some("expired")),
            (VerifyError::Disabled { key }, Some("disabled")),
            (VerifyError::OwnerRemoved { key }, Some("owner-removed")),
            (VerifyError::TenantClosed { key }, Some("owner-removed")),
            (VerifyError::Publishable { key }, Some("wrong-kind")),
            (VerifyError::WrongClass { key, class }, Some("wrong-kind")),
            (
                VerifyError::WrongEnvironment { key, environment },
                Some("wrong-kind"),
            ),
            (VerifyError::WrongTenant { key, tenant }, Some("wrong-kind")),
            (
                VerifyError::AddressNotAllowed { key, address },
                Some("wrong-address"),
            ),
            (VerifyError::AddressUnknown { key }, Some("wrong-address")),
            (
                VerifyError::MissingScope { key, scope },
                Some("missing-scope"),
            ),
            (VerifyError::Unknown, None),
            (VerifyError::PairMismatch, None),
            (VerifyError::NeedsFresh, None),
            (VerifyError::Busy, None),
            (VerifyError::Corrupt { key }, None),
        ] {
            let found = UseOutcome::of_refusal(&refusal).map(UseOutcome::name);
            assert_eq!(found, name, "{refusal}");
        }
    }
}
