//! The stored form of records and audit entries: versioned, checksummed, and the same bytes for the same value.
//!
//! Pure: no I/O and no clock. The form is `[version][postcard body][CRC-32 of both, little endian]`. Decoding
//! also accepts other postcard bodies of the same value, such as numbers with leading zeros. Golden files in
//! `src/core/golden` keep every released version readable: their tests fail if a new field changes the format.
//! [`Credential`] does not implement serde, so that only this module writes credentials.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::audit::AuditEntry;
use super::owner::{OwnerRecord, TenantRecord};
use super::record::{Credential, ImportScheme, KeyFacts, KeyRecord, KeyState, Lineage, Maker};
use super::secret::Digest;
use super::text::PepperId;
use super::token::TokenPrefix;

const VERSION: u8 = 1;
const CHECKSUM_LEN: usize = 4;

/// The reason why stored bytes could not be decoded.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The checksum does not match: the bytes changed since they were written.
    #[error("checksum does not match")]
    Checksum,
    /// A newer version of this crate wrote the bytes.
    #[error("format version {found} is newer than {supported}")]
    Version {
        /// The format version of the bytes.
        found: u8,
        /// The newest version that this build reads.
        supported: u8,
    },
    /// The bytes are intact, but do not decode to a valid value.
    #[error("bytes are no valid record")]
    Malformed,
}

macro_rules! stored {
    ($($(#[$doc:meta])* $type:ty;)*) => {$(
        $(#[$doc])*
        impl $type {
            /// Encodes the value for a store: versioned and checksummed.
            #[must_use]
            pub fn to_bytes(&self) -> Vec<u8> {
                seal(&Encode(self))
            }

            /// Decodes the bytes of [`to_bytes`](Self::to_bytes), from this version or an older one.
            ///
            /// # Errors
            ///
            /// [`DecodeError`] if the bytes changed, are newer than this build, or are not a valid value.
            pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
                open::<Decode<Self>>(bytes).map(|decoded| decoded.0)
            }
        }
    )*};
}

stored! {
    KeyRecord;
    OwnerRecord;
    TenantRecord;
    AuditEntry;
}

pub(crate) fn seal(value: &impl Serialize) -> Vec<u8> {
    // Most records fit in 512 bytes, so encoding rarely reallocates.
    let mut start = Vec::with_capacity(512);
    start.push(VERSION);
    // This never fails: writing to memory cannot fail, and no stored type returns an error when it is
    // serialized.
    let mut bytes = postcard::to_extend(value, start).unwrap_or_default();
    let checksum = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes
}

pub(crate) fn open<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, DecodeError> {
    let body_len = bytes
        .len()
        .checked_sub(CHECKSUM_LEN)
        .ok_or(DecodeError::Checksum)?;
    let (sealed, checksum) = bytes.split_at(body_len);
    if crc32fast::hash(sealed).to_le_bytes() != checksum {
        return Err(DecodeError::Checksum);
    }
    match sealed.split_first() {
        Some((&VERSION, body)) => match postcard::take_from_bytes(body) {
            Ok((value, [])) => Ok(value),
            _ => Err(DecodeError::Malformed),
        },
        Some((&found, _)) if found > VERSION => Err(DecodeError::Version {
            found,
            supported: VERSION,
        }),
        _ => Err(DecodeError::Malformed),
    }
}

struct Encode<'a, T>(&'a T);
struct Decode<T>(T);

macro_rules! derived {
    ($($type:ty),*) => {$(
        impl Serialize for Encode<'_, $type> {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                self.0.serialize(to)
            }
        }

        impl<'de> Deserialize<'de> for Decode<$type> {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                <$type>::deserialize(from).map(Self)
            }
        }
    )*};
}

derived!(OwnerRecord, TenantRecord, AuditEntry);

impl Serialize for Encode<'_, KeyRecord> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        RecordV1::serialize(self.0, to)
    }
}

impl<'de> Deserialize<'de> for Decode<KeyRecord> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        RecordV1::deserialize(from).map(Self)
    }
}

#[derive(Deserialize, Serialize)]
#[serde(remote = "KeyRecord")]
struct RecordV1 {
    facts: KeyFacts,
    prefix: Option<TokenPrefix>,
    makers: Vec<Maker>,
    lineage: Lineage,
    state: KeyState,
    #[serde(with = "CredentialV1")]
    credential: Credential,
}

#[derive(Deserialize, Serialize)]
#[serde(remote = "Credential")]
enum CredentialV1 {
    Peppered {
        pepper: PepperId,
        #[serde(with = "digest")]
        digest: Digest,
    },
    Imported {
        scheme: ImportScheme,
        #[serde(with = "digest")]
        digest: Digest,
    },
}

pub(crate) mod digest {
    use super::{Deserialize, Deserializer, Digest, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer>(digest: &Digest, to: S) -> Result<S::Ok, S::Error> {
        digest.as_bytes().serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Digest, D::Error> {
        <[u8; 32]>::deserialize(from).map(Digest::from_bytes)
    }
}
