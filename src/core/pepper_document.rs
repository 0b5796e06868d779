//! The JSON document of a service's peppers, as a pepper file or a secret manager holds it.
//!
//! Pure: no I/O and no clock. Invariants: no error contains content of the document, because the content is
//! secret. Parsing leaves no copy of a key in memory, so [`check_strings`] refuses any text that serde_json
//! would copy.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::error::Category;
use zeroize::Zeroizing;

use super::invalid::{Invalid, Problem};
use super::pepper::{Pepper, PepperRing, PepperState};
use super::text::{self, PepperId};

/// The maximum length of a pepper document: 64 KiB, enough for several hundred peppers.
pub(crate) const MAX_LEN: usize = 64 * 1024;

pub(crate) const TOO_LONG: &str = "must be at most 64 KiB long";

const VERSION: u32 = 1;

/// The byte order mark (U+FEFF in UTF-8), which some editors put at the beginning of a text file.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The reason why text is not a document of peppers. Never contains any part of the text.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the pepper document is malformed: {problem}")]
pub struct PepperDocumentError {
    /// The problem and its place, in words.
    problem: String,
}

impl PepperRing {
    /// Parses the JSON document of a [pepper file](crate::PepperFile) from memory, for example from the
    /// answer of a secret manager. Parsing leaves no copy of a key in memory. Only `text` still contains the
    /// keys: wipe it after the call, for example by `zeroize::Zeroizing`.
    ///
    /// # Errors
    ///
    /// [`PepperDocumentError`] if the text is not such a document. The error contains no part of the text.
    ///
    /// # Examples
    ///
    /// ```
    /// use keyward::PepperRing;
    ///
    /// let mut text = String::from(r#"{ "keyward_pepper_file": 1, "peppers": ["#);
    /// let key = "0f".repeat(32); // from 32 random bytes
    /// text += &format!(r#"{{ "state": "current", "id": "p1", "key": "{key}" }}] }}"#);
    /// let ring = PepperRing::from_json(text.as_bytes())?;
    /// assert_eq!(ring.current().id().as_str(), "p1");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn from_json(text: &[u8]) -> Result<Self, PepperDocumentError> {
        let ring = PepperDocument::parse(text).and_then(|document| document.ring());
        ring.map_err(|problem| PepperDocumentError { problem })
    }
}

/// The whole document, in the form in which a pepper file stores it.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PepperDocument {
    keyward_pepper_file: u32,
    peppers: Vec<StoredPepper>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct StoredPepper {
    state: PepperState,
    id: PepperId,
    key: PepperKey,
}

/// The key of a pepper, written as hexadecimal digits. Boxed, so that moving the key leaves no copy of it on
/// the stack.
#[derive(Default)]
pub(crate) struct PepperKey(pub(crate) Box<Zeroizing<[u8; Pepper::MIN_LEN]>>);

impl Serialize for PepperKey {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        // Allocated at full size, because a growing string would leave copies of the key in memory.
        let mut text = Zeroizing::new(String::with_capacity(2 * Pepper::MIN_LEN));
        let digits = self.0.iter().flat_map(|byte| [byte >> 4, byte & 15]);
        text.extend(digits.filter_map(|digit| char::from_digit(digit.into(), 16)));
        to.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for PepperKey {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let expected = "64 hexadecimal digits";
        text::read(from, |text| {
            Self::parse(text).ok_or(Invalid::new("key", Problem::Format { expected }))
        })
    }
}

impl PepperKey {
    fn parse(text: &str) -> Option<Self> {
        let mut key = Self::default();
        if text.len() != 2 * Pepper::MIN_LEN {
            return None;
        }
        let digit = |byte| char::from(byte).to_digit(16);
        for (byte, &[high, low]) in key.0.iter_mut().zip(text.as_bytes().as_chunks().0) {
            *byte = u8::try_from(digit(high)? << 4 | digit(low)?).ok()?;
        }
        Some(key)
    }
}

impl PepperDocument {
    /// Creates a document of one pepper.
    pub(crate) fn new(id: PepperId, key: PepperKey) -> Self {
        let state = PepperState::Current;
        Self {
            keyward_pepper_file: VERSION,
            peppers: vec![StoredPepper { state, id, key }],
        }
    }

    /// Parses a document. The error describes the problem in words, without content of the file.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, String> {
        if text.len() > MAX_LEN {
            return Err(TOO_LONG.to_owned());
        }
        let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
        check_strings(text)?;
        let document: Self = serde_json::from_slice(text).map_err(|error| {
            let problem = match error.classify() {
                Category::Eof => "the text ends too early; put a copy back",
                Category::Syntax | Category::Io => "not JSON",
                Category::Data => "a missing or unknown field, or a malformed value",
            };
            format!(
                "line {}, column {}: {problem}",
                error.line(),
                error.column()
            )
        })?;
        match document.keyward_pepper_file {
            VERSION => Ok(document),
            _ => Err(format!(
                "its version is not {VERSION}, the only one known here"
            )),
        }
    }

    /// Returns whether the file has the pepper that the next rotation makes current.
    pub(crate) fn has_next(&self) -> bool {
        self.in_state(PepperState::Next).next().is_some()
    }

    pub(crate) fn add_next(&mut self, id: PepperId, key: PepperKey) {
        let state = PepperState::Next;
        self.peppers.push(StoredPepper { state, id, key });
    }

    /// Makes the next pepper the current one; the previous current pepper stays live.
    pub(crate) fn rotate(&mut self) {
        for stored in &mut self.peppers {
            stored.state = match stored.state {
                PepperState::Next => PepperState::Current,
                PepperState::Current | PepperState::Live => PepperState::Live,
                PepperState::Audit => PepperState::Audit,
            };
        }
        // The current pepper comes first in the file.
        self.peppers
            .sort_by_key(|stored| stored.state != PepperState::Current);
    }

    /// Takes a live pepper out of service. From then on the pepper verifies only the audit entries that were
    /// sealed under it. Returns the pepper's previous state. `None` if the document does not have the pepper.
    pub(crate) fn retire(&mut self, id: &PepperId) -> Option<PepperState> {
        let stored = self.peppers.iter_mut().find(|stored| stored.id == *id)?;
        let before = stored.state;
        if before == PepperState::Live {
            stored.state = PepperState::Audit;
        }
        Some(before)
    }

    /// Returns the ring of the document's peppers. The error describes a contradiction in words, without
    /// content of the document.
    pub(crate) fn ring(&self) -> Result<PepperRing, String> {
        let mut current = self.in_state(PepperState::Current);
        let (Some(first), None) = (current.next(), current.next()) else {
            return Err("must have exactly one current pepper".to_owned());
        };
        if self.in_state(PepperState::Next).count() > 1 {
            return Err("must have at most one next pepper".to_owned());
        }
        let mut ring = PepperRing::new(first.pepper());
        for stored in &self.peppers {
            let added = match stored.state {
                PepperState::Current => Ok(ring),
                PepperState::Next => ring.with_next(stored.pepper()),
                PepperState::Live => ring.with_retired(stored.pepper()),
                PepperState::Audit => ring.with_audit_only(stored.pepper()),
            };
            ring = added.map_err(|_| "must have another id for each pepper".to_owned())?;
        }
        Ok(ring)
    }

    /// Returns the JSON text. The buffer has a fixed size, because a growing buffer would leave copies of the
    /// keys in memory.
    pub(crate) fn text(&self) -> Result<Zeroizing<Vec<u8>>, String> {
        let mut text = Zeroizing::new(vec![b'\n'; MAX_LEN]);
        let mut room = &mut text[..MAX_LEN - 1];
        serde_json::to_writer_pretty(&mut room, self).map_err(|_| TOO_LONG.to_owned())?;
        let len = MAX_LEN - room.len();
        text.truncate(len);
        Ok(text)
    }

    fn in_state(&self, state: PepperState) -> impl Iterator<Item = &StoredPepper> {
        let peppers = self.peppers.iter();
        peppers.filter(move |stored| stored.state == state)
    }
}

impl StoredPepper {
    fn pepper(&self) -> Pepper {
        let key: &[u8; Pepper::MIN_LEN] = &self.key.0;
        Pepper::new(self.id.clone(), key).expect("a key of MIN_LEN bytes is long enough")
    }
}

/// Refuses text in which serde_json would copy a string, because the copy could leave a pepper's key in
/// memory. serde_json copies a string that contains an escape, and quotes a misplaced string in its error.
fn check_strings(text: &[u8]) -> Result<(), String> {
    // Without escapes every quote delimits a string, so every second part is a string.
    let parts: Vec<_> = text.split(|byte| *byte == b'"').collect();
    let is_misplaced_key = |at: usize| {
        let is_key = at > 2 && parts[at - 2] == b"key" && parts[at - 1].trim_ascii() == b":";
        parts[at].len() > PepperId::MAX_LEN && !is_key
    };
    if text.contains(&b'\\') {
        return Err("must have no backslash".to_owned());
    }
    if (1..parts.len()).step_by(2).any(is_misplaced_key) {
        return Err("only a key may be longer than 32 characters".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

    fn file(peppers: &[(&str, &str, &str)]) -> String {
        let entry = |(state, id, key): &(&str, &str, &str)| {
            format!(r#"{{"state": "{state}", "id": "{id}", "key": "{key}"}}"#)
        };
        let entries: Vec<_> = peppers.iter().map(entry).collect();
        let entries = entries.join(",\n");
        format!("{{\"keyward_pepper_file\": 1, \"peppers\": [\n{entries}\n]}}\n")
    }

    fn ring(text: &str) -> Result<PepperRing, String> {
        PepperDocument::parse(text.as_bytes())?.ring()
    }

    fn problem(text: impl AsRef<str>) -> String {
        ring(text.as_ref()).expect_err("the text has a problem")
    }

    fn written(peppers: &PepperDocument) -> String {
        String::from_utf8(peppers.text().unwrap().to_vec()).unwrap()
    }

    #[test]
    fn a_written_file_is_read_as_the_same_peppers() {
        let other = KEY.replace("00", "0f");
        let text = file(&[
            ("current", "c", KEY),
            ("live", "b", &other),
            ("audit", "a", &other),
        ]);
        let peppers = PepperDocument::parse(text.as_bytes()).unwrap();
        let shown =
            r#"PepperRing { current: "c", next: None, retired: ["b"], audit_only: ["a"], .. }"#;
        assert_eq!(format!("{:?}", peppers.ring().unwrap()), shown);
        let first = written(&peppers);
        let again = PepperDocument::parse(first.as_bytes()).unwrap();
        assert_eq!(written(&again), first);
        let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(value(&first), value(&text));
    }

    #[test]
    fn line_ends_of_other_systems_and_an_empty_last_line_are_accepted() {
        let text = file(&[("current", "b", KEY), ("live", "a", KEY)]);
        let other = text.replace('\n', "\r\n");
        for text in [
            other.clone(),
            format!("{other}\r\n"),
            format!("{text}\n\n"),
            format!("\u{feff}{text}"),
            text.trim_end().to_owned(),
        ] {
            let ring = PepperRing::from_json(text.as_bytes()).unwrap();
            assert_eq!(ring.current().id().as_str(), "b", "{text:?}");
        }
    }

    #[test]
    fn text_in_memory_is_refused_without_any_part_of_it() {
        let malformed = file(&[("current", "a", &KEY[..62])]);
        let padded = file(&[("current", "a", KEY)]) + &" ".repeat(MAX_LEN);
        for text in [KEY, &malformed, &padded] {
            let error = PepperRing::from_json(text.as_bytes()).unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(!shown.contains(&KEY[..8]), "{shown}");
        }
    }

    #[test]
    fn the_bytes_of_a_key_are_its_digits() {
        let ring = ring(&file(&[("current", "p", KEY)])).unwrap();
        let mut key = [0; 32];
        for (at, byte) in key.iter_mut().enumerate() {
            *byte = u8::try_from(at % 16 * 0x11).unwrap();
        }
        let same = Pepper::new(PepperId::new("p").unwrap(), &key).unwrap();
        assert_eq!(ring.current().digest(b"x"), same.digest(b"x"));
    }

    #[test]
    fn the_current_pepper_may_come_anywhere_and_only_once() {
        let ring = ring(&file(&[("live", "a", KEY), ("current", "b", KEY)])).unwrap();
        assert_eq!(ring.current().id().as_str(), "b");
        let expected = "must have exactly one current pepper";
        for peppers in [
            &[("current", "a", KEY), ("current", "b", KEY)][..],
            &[("live", "a", KEY)],
            &[],
        ] {
            assert_eq!(problem(file(peppers)), expected);
        }
    }

    #[test]
    fn a_file_has_one_next_pepper_at_most_and_one_pepper_for_each_id() {
        let next = [
            ("current", "a", KEY),
            ("next", "b", KEY),
            ("next", "d", KEY),
        ];
        assert_eq!(problem(file(&next)), "must have at most one next pepper");
        let twice = [
            ("current", "c", KEY),
            ("live", "a", KEY),
            ("audit", "a", KEY),
        ];
        let expected = "must have another id for each pepper";
        assert_eq!(problem(file(&twice)), expected);
    }

    #[test]
    fn a_rotation_keeps_the_peppers_of_the_file() {
        let text = file(&[("current", "b", KEY), ("audit", "a", KEY)]);
        let mut peppers = PepperDocument::parse(text.as_bytes()).unwrap();
        let new = "ab".repeat(32);
        peppers.add_next(PepperId::new("c").unwrap(), PepperKey::parse(&new).unwrap());
        peppers.rotate();
        let expected = file(&[
            ("current", "c", &new),
            ("live", "b", KEY),
            ("audit", "a", KEY),
        ]);
        let expected = PepperDocument::parse(expected.as_bytes()).unwrap();
        assert_eq!(written(&peppers), written(&expected));
    }

    #[test]
    fn a_file_that_would_be_too_long_to_read_is_not_written() {
        let id = |id: String| PepperId::new(id).unwrap();
        let mut document = PepperDocument::new(id("c".to_owned()), PepperKey::default());
        for at in 0..MAX_LEN / 100 {
            document.add_next(id(format!("p{at}")), PepperKey::default());
        }
        assert_eq!(document.text().unwrap_err(), TOO_LONG);
    }

    #[test]
    fn other_files_and_other_versions_are_refused() {
        for empty in ["", " \n\n"] {
            assert!(problem(empty).contains("ends too early"));
        }
        for foreign in ["SQLite format 3\0", "{}", "[]", "1", "\"text\""] {
            assert!(problem(foreign).starts_with("line 1, column "));
        }
        assert!(PepperDocument::parse(&[0xff, 0xfe]).is_err());
        let later = file(&[("current", "a", KEY)]).replacen(": 1", ": 2", 1);
        assert!(problem(later).contains("version"));
    }

    #[test]
    fn a_malformed_pepper_is_named_by_its_line() {
        let accent = KEY.replacen("00", "é", 1);
        let sign = KEY.replacen("00", "+0", 1);
        for bad in [
            ("live", "p", &KEY[..62]),
            ("live", "p", &format!("{KEY}00")),
            ("live", "p", &KEY.replace("ff", "fg")),
            ("live", "p", &accent),
            ("live", "p", &sign),
            ("live", "P", KEY),
            ("live", "", KEY),
            ("present", "p", KEY),
            ("", "p", KEY),
        ] {
            let problem = problem(file(&[("current", "a", KEY), bad]));
            assert!(problem.starts_with("line 3, column "), "{bad:?}: {problem}");
        }
    }

    #[test]
    fn a_string_that_the_parser_would_copy_is_refused() {
        let long = "p".repeat(PepperId::MAX_LEN + 1);
        for entry in [
            format!(r#"{{"id": "{long}"}}"#),
            format!(r#"{{"{long}": 1}}"#),
            format!(r#"{{"key": ["{long}"]}}"#),
            format!(r#"{{"key" "{long}"}}"#),
            format!(r#""{long}""#),
        ] {
            let text = format!(r#"{{"keyward_pepper_file": 1, "peppers": [{entry}]}}"#);
            assert!(problem(&text).starts_with("only a key"), "{text}");
        }
        let escaped = file(&[("current", "\\u0061", KEY)]);
        assert_eq!(problem(escaped), "must have no backslash");
    }

    #[test]
    fn a_document_of_another_shape_is_refused_with_its_line() {
        let good = file(&[("current", "a", KEY)]);
        assert!(ring(&good).is_ok());
        for (from, to) in [
            ("\"id\"", "\"more\": 1, \"id\""),
            ("\"id\"", "\"id\": \"b\", \"id\""),
            ("\"id\": \"a\",", ""),
            ("\"a\"", "1"),
            ("\"a\"", "null"),
            ("\"}", "\"},"),
            ("\"}", "\"}}"),
            ("\"}\n]}\n", "\""),
        ] {
            let bad = good.replacen(from, to, 1);
            assert_ne!(bad, good);
            let problem = problem(&bad);
            let place = ["line 2, column ", "line 3, column "];
            assert!(
                place.iter().any(|place| problem.starts_with(place)),
                "{bad}: {problem}"
            );
        }
        let problem = problem(good.replacen("1, ", "1, \"more\": 1, ", 1));
        assert!(problem.starts_with("line 1, column "), "{problem}");
    }
}
