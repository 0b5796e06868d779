//! The text form of positions in lists, in the audit trail and in the stream of events.
//!
//! Pure: no I/O and no clock. The form is `<kind>-<version>-<digits>`, such as `key-1-04…`: hexadecimal digits of
//! a postcard body and of a CRC-32 over everything before. It has only letters, digits and `-`, so URLs and shells
//! need no escapes. The checksum finds a position that was cut short while it was copied.

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::hex;
use super::kind::ErrorKind;
use super::query::{AuditPosition, KeyPosition};

/// The only version so far. A later version must still read this one.
const VERSION: u8 = 1;

const CHECKSUM_LEN: usize = 4;

/// 4,096 characters. The longest position has about 2,200: a cursor in a tenant with the longest path.
const MAX_LEN: usize = 4096;

/// The reason why text is not a position.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PositionError {
    /// The text is longer than any position. Nothing was decoded.
    #[error("a position has at most {max} characters, the given text has {actual}")]
    TooLong {
        /// The maximum length.
        max: usize,
        /// The length of the text in bytes.
        actual: usize,
    },
    /// The text is no position of this kind: another value, or a position in another list.
    #[error("not a position of this list: it must begin with {kind}-")]
    Kind {
        /// The beginning of positions of this kind.
        kind: &'static str,
    },
    /// A newer version of this crate wrote the position.
    #[error(
        "position has version {found}, this build reads version {supported}: start from the beginning"
    )]
    Version {
        /// The version of the position.
        found: u8,
        /// The newest version that this build reads.
        supported: u8,
    },
    /// The text was cut short or altered.
    #[error("position is incomplete or altered: pass it exactly as it was returned")]
    Damaged,
}

impl PositionError {
    /// Returns the stable code of the fault, such as `position-damaged`.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::TooLong { .. } => "position-too-long",
            Self::Kind { .. } => "position-of-another-kind",
            Self::Version { .. } => "position-too-new",
            Self::Damaged => "position-damaged",
        }
    }

    /// Returns [`ErrorKind::Invalid`].
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        ErrorKind::Invalid
    }

    /// Returns the text that a client may see: the whole message.
    #[must_use]
    pub fn public_message(&self) -> String {
        self.to_string()
    }
}

/// A position with a text form.
pub(crate) trait PositionText: Sized {
    /// The beginning of the text, before the version.
    const KIND: &'static str;

    type Content: DeserializeOwned + Serialize;

    fn content(&self) -> Self::Content;

    fn from_content(content: Self::Content) -> Self;
}

pub(crate) fn write<P: PositionText>(position: &P, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let start = format!("{}-{VERSION}-", P::KIND);
    let mut body = postcard::to_allocvec(&position.content()).map_err(|_| fmt::Error)?;
    body.extend_from_slice(&checksum(&start, &body));
    f.write_str(&start)?;
    hex::write(&body, f)
}

pub(crate) fn parse<P: PositionText>(text: &str) -> Result<P, PositionError> {
    let (max, actual) = (MAX_LEN, text.len());
    if actual > max {
        return Err(PositionError::TooLong { max, actual });
    }
    let rest = text
        .strip_prefix(P::KIND)
        .and_then(|rest| rest.strip_prefix('-'))
        .ok_or(PositionError::Kind { kind: P::KIND })?;
    let (version, digits) = rest.split_once('-').ok_or(PositionError::Damaged)?;
    let found = version.parse().map_err(|_| PositionError::Damaged)?;
    if found != VERSION || version.starts_with(['+', '0']) {
        return Err(match found > VERSION {
            true => PositionError::Version {
                found,
                supported: VERSION,
            },
            false => PositionError::Damaged,
        });
    }
    let start = &text[..actual - digits.len()];
    let bytes = hex::parse(digits).ok_or(PositionError::Damaged)?;
    let end = bytes
        .len()
        .checked_sub(CHECKSUM_LEN)
        .ok_or(PositionError::Damaged)?;
    let (body, sum) = bytes.split_at(end);
    if checksum(start, body) != *sum {
        return Err(PositionError::Damaged);
    }
    match postcard::take_from_bytes(body) {
        Ok((content, [])) => Ok(P::from_content(content)),
        _ => Err(PositionError::Damaged),
    }
}

fn checksum(start: &str, body: &[u8]) -> [u8; CHECKSUM_LEN] {
    let mut sum = crc32fast::Hasher::new();
    sum.update(start.as_bytes());
    sum.update(body);
    sum.finalize().to_le_bytes()
}

/// Implements `Display`, `FromStr` and serde for a position: each uses the text form.
macro_rules! position_text {
    ($($type:ty),+) => {$(
        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                $crate::core::position::write(self, f)
            }
        }

        impl std::str::FromStr for $type {
            type Err = $crate::core::position::PositionError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                $crate::core::position::parse(text)
            }
        }

        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = <String as serde::Deserialize>::deserialize(from)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )+};
}

pub(crate) use position_text;

position_text!(KeyPosition, AuditPosition);

impl PositionText for KeyPosition {
    const KIND: &'static str = "key";

    type Content = (
        super::text::KeyName,
        Option<super::time::Timestamp>,
        super::id::KeyId,
    );

    fn content(&self) -> Self::Content {
        let Self {
            name,
            expires_at,
            id,
        } = self;
        (name.clone(), *expires_at, *id)
    }

    fn from_content((name, expires_at, id): Self::Content) -> Self {
        Self {
            name,
            expires_at,
            id,
        }
    }
}

impl PositionText for AuditPosition {
    const KIND: &'static str = "audit";

    type Content = (u64, u64);

    fn content(&self) -> Self::Content {
        let Self { revision, sequence } = self;
        (revision.0, *sequence)
    }

    fn from_content((revision, sequence): Self::Content) -> Self {
        Self {
            revision: super::view::Revision(revision),
            sequence,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::id::KeyId;
    use crate::core::text::KeyName;
    use crate::core::time::Timestamp;
    use crate::core::view::Revision;

    fn key(name: &str, expires_at: Option<Timestamp>) -> KeyPosition {
        KeyPosition {
            name: KeyName::new(name).unwrap(),
            expires_at,
            id: KeyId::from_u128(u128::MAX >> 8),
        }
    }

    const AUDIT: AuditPosition = AuditPosition {
        revision: Revision(u64::MAX),
        sequence: 3,
    };

    #[test]
    fn a_position_parses_from_its_text_which_urls_need_not_escape() {
        for position in [
            key("nightly export", None),
            key("ключ / 鍵 ?&#", Some(Timestamp::MAX)),
            key(
                &"é".repeat(KeyName::MAX_LEN / 2),
                Some(Timestamp::UNIX_EPOCH),
            ),
        ] {
            let text = position.to_string();
            assert_eq!(text.parse(), Ok(position), "{text}");
            assert!(text.len() < MAX_LEN / 4, "{}", text.len());
            let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
            assert!(text.bytes().all(plain), "{text}");
        }
        let text = AUDIT.to_string();
        assert_eq!(text.parse(), Ok(AUDIT));
        let json = serde_json::to_string(&AUDIT).unwrap();
        assert_eq!(json, format!("\"{text}\""));
        assert_eq!(serde_json::from_str::<AuditPosition>(&json).unwrap(), AUDIT);
    }

    /// Positions are in bookmarks and scripts, so version 1 stays readable.
    #[test]
    fn the_text_of_version_1_does_not_change() {
        let position = AuditPosition {
            revision: Revision(300),
            sequence: 7,
        };
        assert_eq!(position.to_string(), "audit-1-ac0207d08aaa35");
        let position = key("a", Some(Timestamp::UNIX_EPOCH));
        let text = "key-1-01610100ffffffffffffffffffffffffffffffffff013117a043";
        assert_eq!(position.to_string(), text);
    }

    #[test]
    fn an_error_names_the_fault_of_the_text() {
        let text = AUDIT.to_string();
        let parse = |text: &str| text.parse::<AuditPosition>().unwrap_err();
        let kind = |kind| PositionError::Kind { kind };
        assert_eq!(parse(""), kind("audit"));
        assert_eq!(parse(&key("a", None).to_string()), kind("audit"));
        assert_eq!(text.parse::<KeyPosition>(), Err(kind("key")));
        for end in 0..text.len() {
            let expected = match end {
                0..6 => kind("audit"),
                _ => PositionError::Damaged,
            };
            assert_eq!(parse(&text[..end]), expected, "{end}");
        }
        for at in "audit-1-".len()..text.len() {
            let mut altered = text.clone().into_bytes();
            altered[at] = if altered[at] == b'0' { b'1' } else { b'0' };
            let altered = String::from_utf8(altered).unwrap();
            assert_eq!(parse(&altered), PositionError::Damaged, "{at}");
        }
        let newer = text.replace("audit-1-", "audit-2-");
        let (found, supported) = (2, 1);
        assert_eq!(parse(&newer), PositionError::Version { found, supported });
        for other in [
            "audit-0-",
            "audit-01-",
            "audit-+1-",
            "audit-256-",
            "audit--",
        ] {
            let other = text.replace("audit-1-", other);
            assert_eq!(parse(&other), PositionError::Damaged, "{other}");
        }
        let (max, actual) = (MAX_LEN, MAX_LEN + 1);
        let long = format!("audit-1-{}", "0".repeat(actual - 8));
        assert_eq!(parse(&long), PositionError::TooLong { max, actual });
        assert_eq!(parse("audit-1-é"), PositionError::Damaged);
    }
}
