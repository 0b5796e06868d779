//! The text of a pepper file: parsed, changed and written without I/O.
//!
//! Invariant: no [`Fault`] holds what was in the file, because that is secret.

use zeroize::Zeroizing;

use crate::core::pepper::{Pepper, PepperRing};
use crate::core::text::PepperId;

/// What a pepper file begins with, whatever its version.
const MARK: &str = "keyward-pepper ";
const VERSION: &str = "v1";

/// What a pepper is good for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Part {
    /// Digests new secrets.
    Current,
    /// The one that digests new secrets after the next rotation. Verifies until then, for processes
    /// that rotated already.
    Next,
    /// Verifies the secrets that it digested.
    Live,
    /// Proves the audit entries that it sealed.
    Audit,
}

impl Part {
    const fn word(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Next => "next",
            Self::Live => "live",
            Self::Audit => "audit",
        }
    }

    fn of(word: &str) -> Option<Self> {
        [Self::Current, Self::Next, Self::Live, Self::Audit]
            .into_iter()
            .find(|part| part.word() == word)
    }
}

/// What is wrong with a text that should be a pepper file's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Fault {
    Empty,
    Foreign,
    Version,
    Line { line: usize, expected: &'static str },
}

struct Entry {
    part: Part,
    id: PepperId,
    /// On the heap, so that moving an entry leaves no copy of the key behind.
    key: Zeroizing<Vec<u8>>,
}

/// The peppers of a file, in its order.
pub(super) struct Peppers(Vec<Entry>);

impl Peppers {
    pub(super) fn one(id: PepperId, key: Zeroizing<Vec<u8>>) -> Self {
        let part = Part::Current;
        Self(vec![Entry { part, id, key }])
    }

    /// Whether it is known which pepper the next rotation makes the current one.
    pub(super) fn has_next(&self) -> bool {
        self.0.iter().any(|entry| entry.part == Part::Next)
    }

    pub(super) fn add_next(&mut self, id: PepperId, key: Zeroizing<Vec<u8>>) {
        let part = Part::Next;
        self.0.insert(0, Entry { part, id, key });
    }

    /// Makes the next pepper the current one; the one before stays live.
    pub(super) fn rotate(&mut self) {
        for entry in &mut self.0 {
            entry.part = match entry.part {
                Part::Next => Part::Current,
                Part::Current | Part::Live => Part::Live,
                Part::Audit => Part::Audit,
            };
        }
        // The file tells the current one first.
        self.0.sort_by_key(|entry| entry.part != Part::Current);
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Fault> {
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Err(Fault::Empty);
        }
        let text = std::str::from_utf8(bytes).map_err(|_| Fault::Foreign)?;
        let mut lines = text.lines();
        let header = lines.next().unwrap_or_default();
        let version = header.strip_prefix(MARK).ok_or(Fault::Foreign)?;
        if version != VERSION {
            return Err(Fault::Version);
        }
        let numbered = lines.zip(2..);
        let entries: Result<_, _> = numbered
            .map(|(text, line)| entry(text).map_err(|expected| Fault::Line { line, expected }))
            .collect();
        Ok(Self(entries?))
    }

    pub(super) fn ring(&self) -> Result<PepperRing, Fault> {
        let fault = |line, expected| Fault::Line { line, expected };
        let pepper = |entry: &Entry, line| {
            Pepper::new(entry.id.clone(), &entry.key)
                .map_err(|_| fault(line, "a key of at least 32 bytes"))
        };
        let mut numbered = self.0.iter().zip(2..);
        let current = numbered
            .find(|(entry, _)| entry.part == Part::Current)
            .ok_or(fault(self.0.len() + 2, "a current pepper: there is none"))?;
        let mut ring = PepperRing::new(pepper(current.0, current.1)?);
        let mut has_next = false;
        for (entry, line) in self
            .0
            .iter()
            .zip(2..)
            .filter(|(_, line)| *line != current.1)
        {
            let pepper = pepper(entry, line)?;
            let added = match entry.part {
                Part::Current => {
                    return Err(fault(line, "live or audit: a current pepper stands above"));
                }
                Part::Next if std::mem::replace(&mut has_next, true) => {
                    return Err(fault(line, "live or audit: a next pepper stands above"));
                }
                Part::Next | Part::Live => ring.with_retired(pepper),
                Part::Audit => ring.with_audit_only(pepper),
            };
            ring = added.map_err(|_| fault(line, "a pepper whose id no other line has"))?;
        }
        Ok(ring)
    }

    pub(super) fn text(&self) -> Zeroizing<String> {
        // As long as it can get, so that it never moves and leaves a copy behind.
        let room = 32 + self.0.len() * (PepperId::MAX_LEN + 2 * Pepper::MIN_LEN + 16);
        let mut text = Zeroizing::new(String::with_capacity(room));
        text.push_str(MARK);
        text.push_str(VERSION);
        text.push('\n');
        for Entry { part, id, key } in &self.0 {
            text.push_str(part.word());
            text.push(' ');
            text.push_str(id.as_str());
            text.push(' ');
            let digits = key.iter().flat_map(|byte| [byte >> 4, byte & 15]);
            text.extend(digits.filter_map(|digit| char::from_digit(digit.into(), 16)));
            text.push('\n');
        }
        text
    }
}

fn entry(line: &str) -> Result<Entry, &'static str> {
    let mut words = line.split(' ');
    let (Some(part), Some(id), Some(key), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err("`current`, `next`, `live` or `audit`, an id, and 64 hexadecimal digits");
    };
    Ok(Entry {
        part: Part::of(part).ok_or("`current`, `next`, `live` or `audit` first")?,
        id: PepperId::new(id)
            .map_err(|_| "an id of at most 32 of a-z 0-9 _ - . in second place")?,
        key: unhex(key).ok_or("a key of 64 hexadecimal digits in third place")?,
    })
}

fn unhex(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    if text.len() != 2 * Pepper::MIN_LEN {
        return None;
    }
    let mut key = Zeroizing::new(Vec::with_capacity(Pepper::MIN_LEN));
    for pair in text.as_bytes().chunks_exact(2) {
        let digit = |at: usize| char::from(pair[at]).to_digit(16);
        key.push(u8::try_from(digit(0)? << 4 | digit(1)?).ok()?);
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

    fn fault(text: &str) -> Fault {
        let parsed = Peppers::parse(text.as_bytes()).and_then(|peppers| peppers.ring());
        parsed.expect_err("the text is at fault")
    }

    fn line(text: String) -> usize {
        match fault(&text) {
            Fault::Line { line, .. } => line,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_text_has_one_next_pepper_at_most() {
        let text = format!(
            "keyward-pepper v1\ncurrent a {KEY}\nnext b {KEY}\nlive c {KEY}\nnext d {KEY}\n"
        );
        assert_eq!(line(text), 5);
    }

    #[test]
    fn what_is_written_is_read_again_word_for_word() {
        let other = KEY.replace("00", "0f");
        let third = KEY.replace("00", "f0");
        let text = format!("keyward-pepper v1\ncurrent c {KEY}\nlive b {other}\naudit a {third}\n");
        let peppers = Peppers::parse(text.as_bytes()).unwrap();
        assert_eq!(*peppers.text(), text);
        let ring = peppers.ring().unwrap();
        let shown = r#"PepperRing { current: "c", retired: ["b"], audit_only: ["a"] }"#;
        assert_eq!(format!("{ring:?}"), shown);
    }

    #[test]
    fn the_bytes_of_a_key_are_the_digits() {
        let peppers = Peppers::parse(format!("keyward-pepper v1\ncurrent p {KEY}").as_bytes());
        let ring = peppers.unwrap().ring().unwrap();
        let mut key = [0; 32];
        for (at, byte) in key.iter_mut().enumerate() {
            *byte = u8::try_from(at % 16 * 17).unwrap();
        }
        let same = Pepper::new(PepperId::new("p").unwrap(), &key).unwrap();
        assert_eq!(ring.current().digest(b"x"), same.digest(b"x"));
    }

    #[test]
    fn the_current_pepper_may_stand_anywhere_and_once() {
        let text = format!("keyward-pepper v1\nlive a {KEY}\ncurrent b {KEY}\n");
        let ring = Peppers::parse(text.as_bytes()).unwrap().ring().unwrap();
        assert_eq!(ring.current().id().as_str(), "b");
        let twice = format!("keyward-pepper v1\ncurrent a {KEY}\ncurrent b {KEY}\n");
        assert_eq!(line(twice), 3);
        assert_eq!(line(format!("keyward-pepper v1\nlive a {KEY}\n")), 3);
        assert_eq!(line("keyward-pepper v1\n".to_owned()), 2);
    }

    #[test]
    fn a_rotation_keeps_what_was_there() {
        let text = format!("keyward-pepper v1\ncurrent b {KEY}\naudit a {KEY}\n");
        let mut peppers = Peppers::parse(text.as_bytes()).unwrap();
        peppers.add_next(PepperId::new("c").unwrap(), Zeroizing::new(vec![0xab; 32]));
        peppers.rotate();
        let new = "ab".repeat(32);
        let rotated = format!("keyward-pepper v1\ncurrent c {new}\nlive b {KEY}\naudit a {KEY}\n");
        assert_eq!(*peppers.text(), rotated);
    }

    #[test]
    fn other_files_are_told_apart() {
        assert_eq!(fault(""), Fault::Empty);
        assert_eq!(fault(" \n\n"), Fault::Empty);
        assert_eq!(fault("SQLite format 3\0"), Fault::Foreign);
        assert_eq!(fault("keyward-pepper"), Fault::Foreign);
        assert_eq!(fault("keyward-pepper v2\n"), Fault::Version);
        assert!(matches!(Peppers::parse(&[0xff, 0xfe]), Err(Fault::Foreign)));
    }

    #[test]
    fn a_line_at_fault_is_named_by_its_number() {
        let short = &KEY[..62];
        let long = format!("{KEY}00");
        let digit = KEY.replace("ff", "fg");
        let accent = KEY.replacen("00", "é", 1);
        for bad in [
            format!("current p {short}"),
            format!("current p {long}"),
            format!("current p {digit}"),
            format!("current p {accent}"),
            format!("current P {KEY}"),
            format!("current {} {KEY}", "p".repeat(33)),
            format!("present p {KEY}"),
            format!("current  p {KEY}"),
            format!("current p {KEY} more"),
            "current p".to_owned(),
            String::new(),
        ] {
            assert_eq!(line(format!("keyward-pepper v1\nlive a {KEY}\n{bad}\n")), 3);
        }
        let twice = format!("keyward-pepper v1\ncurrent c {KEY}\nlive a {KEY}\naudit a {KEY}\n");
        assert_eq!(line(twice), 4);
    }
}
