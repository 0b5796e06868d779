//! The stable table of errors: the code, the kind and the HTTP status of every error that a front end meets.
//! `docs/errors.md` contains the same table.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;

use keyward::audit::{AuditError, ChainError};
use keyward::command::{Invalid, Problem};
use keyward::entropy::EntropyError;
use keyward::events::{EventCursor, EventsError};
use keyward::key::{Dimension, Entitlement};
use keyward::recovery::RecoveryError;
use keyward::store::{PositionError, StoreError, StoreErrorKind};
use keyward::token::TokenError;
use keyward::usage::UsageQueryError;
use keyward::{
    CommandError, Denial, ErrorKind, KeyId, Reason, Role, Scope, ScopeSet, Timestamp, VerifyError,
};
use regex::Regex;
use support::*;

/// A line of the table.
#[derive(Debug)]
struct ErrorLine {
    error: String,
    code: &'static str,
    kind: ErrorKind,
    public: String,
}

/// Returns the type and the variant of an error, such as `Denial::CapReached`.
fn name(of: &str, error: &impl std::fmt::Debug) -> String {
    let debug = format!("{error:?}");
    let variant = debug.split(|c: char| !c.is_alphanumeric()).next().unwrap();
    format!("{of}::{variant}")
}

macro_rules! lines {
    ($lines:ident, $type:ident, [$($error:expr),* $(,)?]) => {$({
        let error = $error;
        $lines.push(ErrorLine {
            error: name(stringify!($type), &error),
            code: error.code(),
            kind: error.kind(),
            public: error.public_message().to_string(),
        });
    })*};
}

const fn invalid(problem: Problem) -> Invalid {
    let field = "name";
    Invalid { field, problem }
}

fn invalid_values() -> Vec<Invalid> {
    let problems = [
        Problem::Empty,
        Problem::TooLong {
            max: 200,
            actual: 300,
        },
        Problem::TooMany { max: 8, actual: 9 },
        Problem::OutOfRange {
            min: 1,
            max: 9,
            actual: 10,
        },
        Problem::Character {
            position: 3,
            allowed: "a-z",
        },
        Problem::Repeated,
        Problem::Format {
            expected: "kind:id",
        },
    ];
    problems.into_iter().map(invalid).collect()
}

/// Returns one error of every variant.
fn table() -> Vec<ErrorLine> {
    let mut lines = Vec::new();
    for invalid in invalid_values() {
        let problem = name("Problem", &invalid.problem);
        lines.push(ErrorLine {
            error: problem,
            code: invalid.code(),
            kind: invalid.kind(),
            public: invalid.public_message(),
        });
    }
    denials(&mut lines);
    commands(&mut lines);
    verifications(&mut lines);
    trails(&mut lines);
    #[cfg(feature = "http")]
    requests(&mut lines);
    lines
}

fn denials(lines: &mut Vec<ErrorLine>) {
    let key = KeyId::from_u128(7);
    let (own, later) = (at(START), at("2030-01-01T00:00:00Z"));
    let scope = Scope::new("reports:read").unwrap();
    let class: keyward::key::ClassName = "secret".try_into().unwrap();
    let environment: keyward::key::Environment = "live".try_into().unwrap();
    let limit = NonZeroU32::new(5).unwrap();
    let action = "create keys";
    lines!(
        lines,
        Denial,
        [
            Denial::NotFound,
            Denial::TenantNotFound,
            Denial::ActorExpired,
            Denial::Forbidden {
                action,
                role: Some(Role::MEMBER)
            },
            Denial::SupportOnly { action },
            Denial::HostOnly { action },
            Denial::NotEntitled {
                class: class.clone(),
                entitlement: Entitlement::new("enterprise").unwrap(),
            },
            Denial::CapReached {
                limit,
                classes: Default::default()
            },
            Denial::UnknownClass {
                class: class.clone()
            },
            Denial::Environment {
                class: class.clone(),
                asked: None,
                offered: vec![environment],
            },
            Denial::UnknownResource,
            Denial::PurposeRequired,
            Denial::ScopeNotAllowed {
                class: class.clone(),
                scope
            },
            Denial::Expiry {
                after: own,
                max: Some(later)
            },
            Denial::ExceedsActor {
                dimension: Dimension::Scopes,
                reach: ScopeSet::none(),
            },
            Denial::ActingKey {
                key,
                why: Box::new(VerifyError::Disabled { key }),
            },
            Denial::RoleDrift {
                stated: Role::ADMIN,
                stored: Role::MEMBER
            },
            Denial::SelfRotation {
                reason: "only immediately"
            },
            Denial::ClockRefused {
                own,
                reference: later
            },
            Denial::TenantAhead {
                tenant: tenant("acme"),
                floor: later,
                own
            },
            Denial::FirstUseWait {
                max: hours_60(),
                actual: None
            },
            Denial::TooManyMakers { limit: 32 },
            Denial::ConfirmationRequired,
            Denial::TypedConfirmationRequired {
                text: "delete".to_owned()
            },
            Denial::StillReferenced { references: 2 },
            Denial::ReferencesUnknown,
            Denial::LegacyKey { action: "revoked" },
            Denial::NotRevocable {
                class: class.clone()
            },
            Denial::NotDeletable {
                class: class.clone()
            },
            Denial::NotRotatable { class },
            Denial::Revoked,
            Denial::Expired,
            Denial::Disabled,
            Denial::BeingRotated { successor: key },
            Denial::NotRotating,
            Denial::SuccessorInUse { successor: key },
            Denial::NotReplaceable,
            Denial::OwnerRemoved { owner: who("ann") },
            Denial::TenantClosed {
                tenant: tenant("acme")
            },
            Denial::CorruptRecord { key },
            Denial::DigestTaken,
            Denial::StaleRedigest {
                pepper: "p1".try_into().unwrap()
            },
            Denial::AlreadyCreated { id: key },
            Denial::CommandIdReused,
        ]
    );
}

const fn hours_60() -> Duration {
    Duration::from_secs(60 * 60 * 60)
}

fn store_errors() -> [StoreError; 4] {
    let kinds = [
        StoreErrorKind::Corrupt,
        StoreErrorKind::Denied,
        StoreErrorKind::Indeterminate,
        StoreErrorKind::Unavailable,
    ];
    kinds.map(|kind| StoreError::new(kind, "reading a key"))
}

fn commands(lines: &mut Vec<ErrorLine>) {
    for error in store_errors() {
        lines.push(ErrorLine {
            error: name("StoreErrorKind", &error.kind()),
            code: error.code(),
            kind: error.error_kind(),
            public: error.public_message().to_owned(),
        });
    }
    lines!(
        lines,
        CommandError,
        [CommandError::Contended { attempts: 8 }]
    );
    let error = EntropyError;
    lines.push(ErrorLine {
        error: "EntropyError".to_owned(),
        code: error.code(),
        kind: error.kind(),
        public: error.public_message().to_owned(),
    });
    lines!(lines, UsageQueryError, [UsageQueryError::NoStore]);
    let (max, actual) = (4096, 5000);
    let (found, supported) = (2, 1);
    lines!(
        lines,
        PositionError,
        [
            PositionError::TooLong { max, actual },
            PositionError::Kind { kind: "key" },
            PositionError::Version { found, supported },
            PositionError::Damaged,
        ]
    );
}

fn verifications(lines: &mut Vec<ErrorLine>) {
    let (key, time): (_, Timestamp) = (KeyId::from_u128(7), at(START));
    let class: keyward::key::ClassName = "secret".try_into().unwrap();
    let environment = "live".try_into().unwrap();
    let scope = Scope::new("reports:read").unwrap();
    let (age, bound) = (Duration::from_secs(20), Duration::from_secs(10));
    lines!(
        lines,
        VerifyError,
        [
            VerifyError::Malformed(TokenError::Empty),
            VerifyError::Unknown,
            VerifyError::WrongSecret,
            VerifyError::Revoked {
                key,
                at: time,
                reason: Reason::Lost
            },
            VerifyError::Expired { key, at: time },
            VerifyError::ClockUnsure {
                key,
                now: time,
                floor: time
            },
            VerifyError::Disabled { key },
            VerifyError::OwnerRemoved { key },
            VerifyError::TenantClosed { key },
            VerifyError::Publishable { key },
            VerifyError::WrongClass {
                key,
                class: class.clone()
            },
            VerifyError::WrongEnvironment { key, environment },
            VerifyError::WrongTenant {
                key,
                tenant: tenant("acme")
            },
            VerifyError::AddressNotAllowed {
                key,
                address: std::net::Ipv4Addr::LOCALHOST.into()
            },
            VerifyError::AddressUnknown { key },
            VerifyError::MissingScope { key, scope },
            VerifyError::PairMismatch,
            VerifyError::Stale { age, bound },
            VerifyError::NeedsFresh,
            VerifyError::StoreUnavailable,
            VerifyError::Busy,
            VerifyError::UnknownPepper {
                pepper: "p1".try_into().unwrap()
            },
            VerifyError::UnknownClass { class },
            VerifyError::Corrupt { key },
        ]
    );
}

fn trails(lines: &mut Vec<ErrorLine>) {
    let (sequence, expected, found, through) = (3, 3, 5, 4);
    lines!(
        lines,
        ChainError,
        [
            ChainError::Gap { expected, found },
            ChainError::Foreign { sequence },
            ChainError::Altered { sequence },
            ChainError::UnknownPepper {
                sequence,
                pepper: "p1".try_into().unwrap()
            },
            ChainError::Unproven { found },
            ChainError::Pruned { expected, through },
            ChainError::Truncated { expected },
        ]
    );
    let error = ChainError::Gap { expected, found };
    lines!(
        lines,
        RecoveryError,
        [
            RecoveryError::Chain {
                tenant: tenant("acme"),
                error
            },
            RecoveryError::SameStore,
            RecoveryError::OtherHistory,
            RecoveryError::ForeignTrail,
            RecoveryError::NothingLater,
        ]
    );
    let resume = Box::new(EventCursor::BEGINNING);
    lines!(
        lines,
        EventsError,
        [EventsError::HistoryReplaced { resume }]
    );
}

#[cfg(feature = "http")]
fn requests(lines: &mut Vec<ErrorLine>) {
    use keyward::web::{AuthError, CredentialsError};

    let key = KeyId::from_u128(7);
    let retry_after = Duration::from_secs(1);
    let scope = Scope::new("reports:read").unwrap();
    lines!(
        lines,
        AuthError,
        [
            AuthError::Missing,
            AuthError::Ambiguous(CredentialsError::SeveralKeys),
            AuthError::Rejected(VerifyError::Unknown),
            AuthError::Rejected(VerifyError::MissingScope { key, scope }),
            AuthError::NoTenant { key },
            AuthError::LimitReached { key, retry_after },
            AuthError::Rejected(VerifyError::StoreUnavailable),
            AuthError::NoLayer,
        ]
    );
}

fn rows(lines: &[ErrorLine]) -> Vec<String> {
    let row = |line: &ErrorLine| {
        let ErrorLine {
            error,
            code,
            kind,
            public,
        } = line;
        let status = kind.http_status();
        format!("| `{code}` | {status} | {kind} | `{error}` | {public} |")
    };
    lines.iter().map(row).collect()
}

#[cfg(feature = "http")]
#[test]
fn the_page_of_errors_lists_every_code_with_its_kind_and_status() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/errors.md");
    let text = fs::read_to_string(&page).unwrap();
    let documented: Vec<_> = text
        .lines()
        .filter(|line| line.starts_with("| `"))
        .collect();
    let rows = rows(&table());
    assert!(
        documented == rows,
        "the table of {} must be:\n{}",
        page.display(),
        rows.join("\n")
    );
}

#[test]
fn each_kind_has_one_http_status_and_one_grpc_code() {
    let kinds = [
        (ErrorKind::Invalid, 400, 3),
        (ErrorKind::Unauthenticated, 401, 16),
        (ErrorKind::Forbidden, 403, 7),
        (ErrorKind::NotFound, 404, 5),
        (ErrorKind::Conflict, 409, 9),
        (ErrorKind::LimitReached, 429, 8),
        (ErrorKind::Unavailable, 503, 14),
        (ErrorKind::Internal, 500, 13),
    ];
    for (kind, http, grpc) in kinds {
        assert_eq!(
            (kind.http_status(), kind.grpc_code()),
            (http, grpc),
            "{kind}"
        );
    }
    let used: Vec<_> = table().iter().map(|line| line.kind).collect();
    assert!(kinds.iter().all(|(kind, ..)| used.contains(kind)));
}

/// Wrapping errors return the code of the error that they wrap, so a code may have several lines. But a code has
/// one kind, and belongs to one variant.
#[test]
fn a_code_belongs_to_one_error_and_one_kind() {
    let mut owners: BTreeMap<&str, ErrorLine> = BTreeMap::new();
    let kebab = Regex::new("^[a-z]+(-[a-z]+)*$").unwrap();
    for line in table() {
        assert!(kebab.is_match(line.code), "{line:?}");
        if let Some(other) = owners.insert(line.code, line) {
            panic!("{other:?} shares its code");
        }
    }
}

/// Returns the codes in the bodies of the functions `code` and `public_code` of the library.
fn codes_in_sources(folder: &Path, found: &mut BTreeSet<String>) {
    let function = Regex::new(r"(?s)fn (?:public_)?code\(.*?\n    \}").unwrap();
    let code = Regex::new(r#""([a-z-]+)""#).unwrap();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            codes_in_sources(&path, found);
            continue;
        }
        if path.extension().is_none_or(|kind| kind != "rs") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        for body in function.find_iter(&text) {
            let codes = code.captures_iter(body.as_str());
            found.extend(codes.map(|code| code[1].to_owned()));
        }
    }
}

#[cfg(feature = "http")]
#[test]
fn the_table_contains_every_code_of_the_library() {
    let mut declared = BTreeSet::new();
    codes_in_sources(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("../src"),
        &mut declared,
    );
    assert!(declared.len() > 90, "{declared:?}");
    let listed: BTreeSet<_> = table().iter().map(|line| line.code.to_owned()).collect();
    assert_eq!(listed, declared);
}

#[test]
fn a_wrapping_error_has_the_code_and_the_kind_of_its_cause() {
    for error in store_errors() {
        let (code, kind) = (error.code(), error.error_kind());
        let wrapped = [
            (
                CommandError::from(error.clone()).code(),
                CommandError::from(error.clone()).kind(),
            ),
            (
                AuditError::from(error.clone()).code(),
                AuditError::from(error.clone()).kind(),
            ),
            (
                EventsError::from(error.clone()).code(),
                EventsError::from(error.clone()).kind(),
            ),
            (
                UsageQueryError::from(error.clone()).code(),
                UsageQueryError::from(error.clone()).kind(),
            ),
            (
                RecoveryError::from(error.clone()).code(),
                RecoveryError::from(error).kind(),
            ),
        ];
        assert_eq!(wrapped, [(code, kind); 5]);
    }
    let denial = Denial::Invalid(invalid(Problem::Empty));
    assert_eq!(
        (denial.code(), denial.kind()),
        ("invalid-empty", ErrorKind::Invalid)
    );
    let error = CommandError::from(denial);
    assert_eq!(error.public_message(), "name is empty");
    let key = KeyId::from_u128(7);
    let busy = Box::new(VerifyError::Busy);
    let acting = Denial::ActingKey { key, why: busy };
    assert_eq!(
        acting.kind(),
        ErrorKind::LimitReached,
        "the kind of its reason"
    );
}

/// A client that presents an invalid key must not learn the reason, and no client learns about the service's
/// clock, store or configuration.
#[test]
fn no_public_message_reveals_a_reason_that_only_the_service_may_know() {
    for line in table() {
        let ErrorLine {
            kind,
            public,
            error,
            ..
        } = &line;
        match kind {
            ErrorKind::Unauthenticated if error.starts_with("VerifyError") => {
                assert_eq!(public, "invalid API key", "{line:?}");
            }
            ErrorKind::Unavailable | ErrorKind::Internal => {
                let words = ["clock", "commit", "pepper", "record", "corrupt", "entry"];
                let found = words.iter().find(|word| public.contains(**word));
                assert_eq!(found, None, "{line:?}");
            }
            _ => {}
        }
    }
}
