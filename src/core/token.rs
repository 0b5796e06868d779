//! Tokens: the text form of keys, `{prefix}{id}{secret}{checksum}`.
//!
//! Pure: no I/O and no clock. Id, secret and checksum have fixed lengths and are parsed from the right, so a
//! prefix may contain its own separator anywhere. Nothing is hashed or looked up before [`parse`] has
//! accepted a token.
//!
//! The digest covers `id ‖ secret`, which is one slice of the presented text. The slice has 54 bytes, so that
//! each of the two hashes of HMAC-SHA-256 takes one compression.

use std::fmt;
use std::sync::LazyLock;

use crc32fast::Hasher;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use super::base62;
use super::id::KeyId;
use super::invalid::{Invalid, Problem};
use super::secret::KeyMaterial;
use super::text::{self, Hint, Text};

/// The maximum length of a presented string: 512 bytes. Longer strings are refused unread, so a huge header
/// costs little time.
pub const MAX_PRESENTED_LEN: usize = 512;

const CHECKSUM_LEN: usize = 6;
const ID_AND_SECRET_LEN: usize = KeyId::LEN + KeyMaterial::SECRET_LEN;
const BODY_LEN: usize = ID_AND_SECRET_LEN + CHECKSUM_LEN;
const HINT_TAIL: usize = 4;

/// The prefix of a class's tokens, including the separator: `sk_live_`, `client-`.
///
/// 2 to 32 bytes of `A-Z a-z 0-9 _ - .`. Begins with a letter and ends with one of `_ - .`, so that people
/// and scanners see the end of the prefix.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct TokenPrefix(Text);

impl TokenPrefix {
    /// The maximum length of a prefix: 32 bytes.
    pub const MAX_LEN: usize = 32;

    /// Parses a prefix.
    ///
    /// # Errors
    ///
    /// [`Invalid`] for a malformed prefix.
    pub fn new(text: impl AsRef<str>) -> Result<Self, Invalid> {
        let text = text.as_ref();
        if text.len() > Self::MAX_LEN {
            let problem = Problem::TooLong {
                max: Self::MAX_LEN,
                actual: text.len(),
            };
            return Err(Invalid::new("prefix", problem));
        }
        if is_prefix(text.as_bytes()) {
            return Ok(Self(text.into()));
        }
        let expected = "a letter, then A-Z a-z 0-9 _ - ., with _ - or . at the end";
        Err(Invalid::new("prefix", Problem::Format { expected }))
    }

    /// Returns the prefix as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Bit flags for the positions in a prefix at which a byte is allowed.
const WITHIN: u8 = 1;
const AT_ITS_START: u8 = 2;
const AT_ITS_END: u8 = 4;

const IN_A_PREFIX: [u8; 256] = {
    let mut table = [0; 256];
    let mut b = 0;
    while b < 256 {
        table[b] = match b as u8 {
            b'A'..=b'Z' | b'a'..=b'z' => WITHIN | AT_ITS_START,
            b'0'..=b'9' => WITHIN,
            b'_' | b'-' | b'.' => WITHIN | AT_ITS_END,
            _ => 0,
        };
        b += 1;
    }
    table
};

#[inline]
fn is_prefix(text: &[u8]) -> bool {
    let [first, .., last] = text else {
        return false;
    };
    let may = |b: u8| IN_A_PREFIX[b as usize];
    let ends = may(*first) & AT_ITS_START != 0 && may(*last) & AT_ITS_END != 0;
    text.len() <= TokenPrefix::MAX_LEN
        && ends
        && text.iter().fold(WITHIN, |all, &b| all & may(b)) != 0
}

impl TryFrom<&str> for TokenPrefix {
    type Error = Invalid;

    fn try_from(text: &str) -> Result<Self, Invalid> {
        Self::new(text)
    }
}

impl fmt::Display for TokenPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TokenPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl Serialize for TokenPrefix {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for TokenPrefix {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        text::read(from, |prefix| Self::new(prefix))
    }
}

/// The reason why a presented string is not a token. Detected without hashing or lookups.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// An empty string, or only white space.
    #[error("no key was presented")]
    Empty,
    /// More bytes than [`MAX_PRESENTED_LEN`].
    #[error("key is {actual} bytes long, at most {max} are read", max = MAX_PRESENTED_LEN)]
    TooLong {
        /// The number of bytes presented.
        actual: usize,
    },
    /// Too few or too many characters for a token.
    #[error("key is {actual} characters long, allowed are {min} to {max}", min = MIN_LEN, max = MAX_LEN)]
    Length {
        /// The number of characters presented.
        actual: usize,
    },
    /// A byte that no token contains.
    #[error("key has a character at byte {position} that is not allowed")]
    Character {
        /// The byte's offset in the presented string, after trimming.
        position: usize,
    },
    /// The part before the id is not a prefix.
    #[error("key does not begin with a prefix")]
    Prefix,
    /// The checksum does not match: the text was mistyped, its case was changed, or it is not a key.
    #[error("checksum of the key does not match")]
    Checksum,
    /// The id does not fit in 128 bits.
    #[error("id in the key is out of range")]
    Id,
}

const MIN_LEN: usize = BODY_LEN + 2;
const MAX_LEN: usize = BODY_LEN + TokenPrefix::MAX_LEN;

/// A well-formed token, borrowed from the presented text. Its secret has not been verified.
#[derive(Clone, Copy)]
pub struct Token<'a> {
    /// The prefix. Like the whole token, it consists of visible ASCII.
    prefix: &'a [u8],
    body: &'a [u8; BODY_LEN],
    id: KeyId,
}

impl<'a> Token<'a> {
    /// Returns the prefix, separator included.
    #[must_use]
    pub fn prefix(&self) -> &'a str {
        std::str::from_utf8(self.prefix).unwrap_or_default()
    }

    pub(crate) const fn prefix_bytes(&self) -> &'a [u8] {
        self.prefix
    }

    /// Returns the key id in the token.
    #[must_use]
    pub const fn id(&self) -> KeyId {
        self.id
    }

    #[inline]
    pub(crate) fn id_and_secret(&self) -> &'a [u8; ID_AND_SECRET_LEN] {
        let (id_and_secret, _) = sealed(self.body);
        id_and_secret
    }
}

/// Splits the body of a token into two parts: the id and secret, which are digested, and the checksum.
#[inline]
fn sealed(body: &[u8; BODY_LEN]) -> (&[u8; ID_AND_SECRET_LEN], &[u8; CHECKSUM_LEN]) {
    let parts = body.split_first_chunk::<ID_AND_SECRET_LEN>();
    let parts = parts.and_then(|(sealed, rest)| Some((sealed, rest.first_chunk()?)));
    parts.expect("a body is as long as its parts")
}

impl fmt::Debug for Token<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("prefix", &self.prefix())
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// Returns the presented text without surrounding ASCII whitespace.
///
/// # Errors
///
/// [`TokenError::TooLong`] beyond 512 bytes, [`TokenError::Empty`] if the text is blank, and
/// [`TokenError::Character`] for a byte outside visible ASCII.
pub fn trim(presented: &[u8]) -> Result<&str, TokenError> {
    let trimmed = trimmed(presented)?;
    check_visible(trimmed)?;
    std::str::from_utf8(trimmed).map_err(|error| TokenError::Character {
        position: error.valid_up_to(),
    })
}

/// Returns the trimmed bytes.
#[inline]
fn trimmed(presented: &[u8]) -> Result<&[u8], TokenError> {
    // Longer text is refused without scanning it (trap 16).
    match presented.len() {
        0..=MAX_PRESENTED_LEN => match presented {
            // Nearly always, there is no white space.
            [first, .., last] if first.is_ascii_graphic() && last.is_ascii_graphic() => {
                Ok(presented)
            }
            _ => Ok(presented.trim_ascii()),
        },
        actual => Err(TokenError::TooLong { actual }),
    }
}

/// Checks that a trimmed text has bytes, and that all of them are visible ASCII.
#[inline]
fn check_visible(trimmed: &[u8]) -> Result<(), TokenError> {
    if trimmed.is_empty() {
        return Err(TokenError::Empty);
    }
    if base62::all(trimmed, base62::visible) {
        return Ok(());
    }
    let position = base62::first_other_than(trimmed, base62::visible).unwrap_or_default();
    Err(TokenError::Character { position })
}

/// Parses a token.
///
/// # Errors
///
/// [`TokenError`], which never repeats the presented text.
///
/// # Examples
///
/// ```
/// use keyward::token::{self, TokenError};
///
/// assert_eq!(token::parse(b"hunter2").unwrap_err(), TokenError::Length { actual: 7 });
/// ```
#[inline]
pub fn parse(presented: &[u8]) -> Result<Token<'_>, TokenError> {
    let text = trimmed(presented)?;
    // These two checks imply that the text is visible ASCII. If one fails, `fault` finds the exact error.
    let parts = text.split_last_chunk::<BODY_LEN>();
    let well_formed =
        |(prefix, body): &(&[u8], &[u8; BODY_LEN])| base62::is_digits(body) && is_prefix(prefix);
    let Some((prefix, body)) = parts.filter(well_formed) else {
        return Err(fault(text));
    };
    let (id_and_secret, checksum) = sealed(body);
    let before = &text[..text.len() - CHECKSUM_LEN];
    if base62::decode_word(checksum) != u64::from(crc32(before)) {
        return Err(TokenError::Checksum);
    }
    let digits = id_and_secret.first_chunk::<{ KeyId::LEN }>();
    let id = digits.and_then(KeyId::from_digits).ok_or(TokenError::Id)?;
    Ok(Token { prefix, body, id })
}

/// Returns the reason why a trimmed text is not a token.
#[inline(never)]
fn fault(text: &[u8]) -> TokenError {
    if let Err(error) = check_visible(text) {
        return error;
    }
    if !(MIN_LEN..=MAX_LEN).contains(&text.len()) {
        return TokenError::Length { actual: text.len() };
    }
    let (prefix, body) = text.split_at(text.len() - BODY_LEN);
    match base62::first_other(body) {
        Some(inside) => TokenError::Character {
            position: prefix.len() + inside,
        },
        None => TokenError::Prefix,
    }
}

/// Returns a regular expression with which a secret scanner finds the tokens of `prefix`.
///
/// Uses only syntax that RE2, Rust's `regex` and PCRE share. To drop false positives, a scanner can check the
/// last six characters: the CRC-32 (IEEE) of all characters before them, in base62 with the digits
/// `0-9A-Za-z`.
#[must_use]
pub fn scanner_pattern(prefix: &TokenPrefix) -> String {
    let escaped = prefix.as_str().replace('.', r"\.");
    format!(r"\b{escaped}[0-9A-Za-z]{{{BODY_LEN}}}\b")
}

/// Returns the checksum of a token. `before` is the token's text before the checksum. A scanner uses the
/// checksum to distinguish keys from similar text. The checksum protects against typing errors, not against
/// forgery.
///
/// # Examples
///
/// ```
/// use keyward::token;
///
/// assert_eq!(token::checksum("sk_live_"), "2pFfUd");
/// ```
#[must_use]
pub fn checksum(before: &str) -> String {
    checksum_of(before.as_bytes())
        .map(char::from)
        .iter()
        .collect()
}

/// Returns the token of a new key.
pub(crate) fn compose(prefix: &TokenPrefix, material: &KeyMaterial) -> Zeroizing<String> {
    // Allocated at full size, because a growing string would leave copies of the secret in memory.
    let mut token = Zeroizing::new(String::with_capacity(prefix.as_str().len() + BODY_LEN));
    token.push_str(prefix.as_str());
    let digits = |bytes: &mut Zeroizing<String>, part: &[u8]| {
        part.iter().for_each(|&digit| bytes.push(char::from(digit)));
    };
    digits(&mut token, &material.id.to_digits());
    digits(&mut token, &material.secret);
    let checksum = checksum_of(token.as_bytes());
    digits(&mut token, &checksum);
    token
}

/// Returns the part of a composed token that is digested.
pub(crate) fn id_and_secret(token: &str) -> &[u8; ID_AND_SECRET_LEN] {
    let body = token.as_bytes().last_chunk();
    sealed(body.expect("a composed token has a body")).0
}

pub(crate) fn hint_of(prefix: &TokenPrefix, token: &str) -> Result<Hint, Invalid> {
    Hint::new(format!("{prefix}…{}", &token[token.len() - HINT_TAIL..]))
}

fn checksum_of(sealed: &[u8]) -> [u8; CHECKSUM_LEN] {
    let mut digits = [0; CHECKSUM_LEN];
    base62::encode_word(u64::from(crc32(sealed)), &mut digits);
    digits
}

/// Returns the CRC-32 (IEEE) of `bytes`.
#[inline]
fn crc32(bytes: &[u8]) -> u32 {
    // A new hasher asks several times which instructions the processor has. A copy does not ask.
    static EMPTY: LazyLock<Hasher> = LazyLock::new(Hasher::new);
    let mut hasher = EMPTY.clone();
    hasher.update(bytes);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::core::time::Timestamp;

    fn compose_with(prefix: &str, seed: u8) -> String {
        let mut next = seed;
        let material = KeyMaterial::draw(Timestamp::UNIX_EPOCH, |out| {
            for byte in out {
                next = next.wrapping_mul(31).wrapping_add(7);
                *byte = next;
            }
            Ok::<_, ()>(())
        });
        compose(&TokenPrefix::new(prefix).unwrap(), &material.unwrap()).to_string()
    }

    fn any_prefix() -> impl Strategy<Value = String> {
        "[A-Za-z][A-Za-z0-9_.-]{0,30}[_.-]"
    }

    /// Parses as `parse` does, byte by byte, by the definition of each error in turn.
    fn parse_naively(presented: &[u8]) -> Result<(&[u8], u128), TokenError> {
        let actual = presented.len();
        if actual > MAX_PRESENTED_LEN {
            return Err(TokenError::TooLong { actual });
        }
        let text = presented.trim_ascii();
        if text.is_empty() {
            return Err(TokenError::Empty);
        }
        if let Some(position) = text.iter().position(|b| !b.is_ascii_graphic()) {
            return Err(TokenError::Character { position });
        }
        let actual = text.len();
        if !(62..=92).contains(&actual) {
            return Err(TokenError::Length { actual });
        }
        let (prefix, body) = text.split_at(actual - 60);
        if let Some(inside) = body.iter().position(|b| !b.is_ascii_alphanumeric()) {
            let position = prefix.len() + inside;
            return Err(TokenError::Character { position });
        }
        if TokenPrefix::new(std::str::from_utf8(prefix).unwrap()).is_err() {
            return Err(TokenError::Prefix);
        }
        let (before, sum) = text.split_at(actual - 6);
        if checksum(std::str::from_utf8(before).unwrap()).as_bytes() != sum {
            return Err(TokenError::Checksum);
        }
        let digit = |b: u8| match b {
            b'0'..=b'9' => b - b'0',
            b'A'..=b'Z' => b - b'A' + 10,
            _ => b - b'a' + 36,
        };
        let append = |id: u128, &b: &u8| id.checked_mul(62)?.checked_add(digit(b).into());
        let id = body[..22].iter().try_fold(0, append);
        Ok((prefix, id.ok_or(TokenError::Id)?))
    }

    /// Texts near a token: its parts, any of which may be wrong, with space around them. Most have a checksum
    /// that matches, so that a wrong part is not hidden behind it.
    fn near_a_token() -> impl Strategy<Value = Vec<u8>> {
        let prefix = prop_oneof![4 => any_prefix(), 1 => "[ -~]{0,40}"];
        let id = prop_oneof![4 => "[0-6][0-9A-Za-z]{21}", 1 => "[0-9A-Za-z]{22}"];
        let secret =
            prop_oneof![6 => "[0-9A-Za-z]{32}", 1 => "[0-9A-Za-z]{30,34}", 1 => "[ -~]{32}"];
        let space = "[ \t\r\n]{0,3}";
        let wrong = prop::option::weighted(0.4, (any::<prop::sample::Index>(), any::<u8>()));
        let sealed = prop::bool::weighted(0.8);
        let parts = (space, prefix, id, secret, space, wrong, sealed);
        parts.prop_map(|(before, prefix, id, secret, after, wrong, sealed)| {
            let mut text = format!("{prefix}{id}{secret}").into_bytes();
            if let (Some((at, b)), true) = (&wrong, sealed) {
                let at = at.index(text.len());
                text[at] = *b;
            }
            text.extend(checksum_of(&text));
            if let (Some((at, b)), false) = (&wrong, sealed) {
                let at = at.index(text.len());
                text[at] = *b;
            }
            [before.as_bytes(), &text, after.as_bytes()].concat()
        })
    }

    proptest! {
        #[test]
        fn a_text_parses_as_by_a_naive_parser(text in near_a_token()) {
            let parsed = parse(&text).map(|token| (token.prefix_bytes(), token.id().to_u128()));
            prop_assert_eq!(parsed, parse_naively(&text));
        }

        #[test]
        fn any_bytes_parse_as_by_a_naive_parser(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            prop_assert_eq!(parse(&bytes).map(drop), parse_naively(&bytes).map(drop));
        }

        #[test]
        fn a_token_of_any_prefix_parses_back(prefix in any_prefix(), seed: u8) {
            let text = compose_with(&prefix, seed);
            let token = parse(text.as_bytes()).unwrap();
            prop_assert_eq!(token.prefix(), prefix);
            prop_assert_eq!(token.id_and_secret().len(), 54);
        }

        #[test]
        fn any_one_changed_byte_is_refused(seed: u8, at in 0usize..68, to: u8) {
            let mut text = compose_with("sk_live_", seed).into_bytes();
            prop_assume!(text[at] != to && !to.is_ascii_whitespace());
            text[at] = to;
            prop_assert!(parse(&text).is_err());
        }

        #[test]
        fn a_truncated_token_is_refused(seed: u8, len in 0usize..68) {
            prop_assert!(parse(&compose_with("sk_live_", seed).as_bytes()[..len]).is_err());
        }

        #[test]
        fn a_scanner_finds_every_token(prefix in any_prefix(), seed: u8) {
            let pattern = scanner_pattern(&TokenPrefix::new(&prefix).unwrap());
            let text = compose_with(&prefix, seed);
            let found = regex::Regex::new(&pattern).unwrap();
            let line = format!("curl -H 'Authorization: Bearer {text}' x");
            prop_assert_eq!(found.find(&line).map(|found| found.as_str()), Some(text.as_str()));
        }
    }

    #[test]
    fn a_changed_case_fails_the_checksum() {
        let text = compose_with("sk_live_", 3).to_ascii_lowercase();
        assert_eq!(parse(text.as_bytes()).unwrap_err(), TokenError::Checksum);
    }

    #[test]
    fn space_around_a_token_is_trimmed_once_and_inside_refused() {
        let text = compose_with("sk_live_", 3);
        assert!(parse(format!(" \t{text}\r\n").as_bytes()).is_ok());
        assert!(
            parse(format!("\u{a0}{text}").as_bytes()).is_err(),
            "no Unicode space"
        );
        assert!(parse(text.replace("live_", "live ").as_bytes()).is_err());
    }

    #[test]
    fn more_than_512_bytes_are_not_looked_at() {
        let text = compose_with("sk_live_", 3);
        let padded = format!("{text}{}", " ".repeat(512 - text.len()));
        assert!(parse(padded.as_bytes()).is_ok());
        let actual = 513;
        assert_eq!(
            parse(format!("{padded} ").as_bytes()).unwrap_err(),
            TokenError::TooLong { actual }
        );
    }

    #[test]
    fn prefixes_without_a_separator_at_their_end_are_refused() {
        for prefix in ["", "_", "sk", "1k_", "sk live_", "é_"] {
            assert!(TokenPrefix::new(prefix).is_err(), "{prefix:?}");
        }
        assert!(TokenPrefix::new(format!("{}_", "a".repeat(32))).is_err());
    }

    #[test]
    fn debug_output_of_a_token_leaves_out_its_secret() {
        let text = compose_with("sk_live_", 3);
        let shown = format!("{:?}", parse(text.as_bytes()).unwrap());
        assert!(!shown.contains(&text[30..62]), "{shown}");
    }
}
