//! Bounded, checked text: names that people type and identifiers that hosts supply.
//!
//! Pure: no I/O and no clock. A value of these types exists only if its text is valid, so no other code
//! checks the text again. Cloning is cheap.
//!
//! Text in stored rows is checked only for its size and for control characters. A row must not become
//! unreadable because another version knows more [hidden characters](is_hidden) or a newer Unicode.

use std::borrow::Borrow;
use std::collections::BTreeSet;
use std::fmt;

use serde::Deserializer;
use serde::de::Visitor;
use unicode_properties::{GeneralCategory, GeneralCategoryGroup, UnicodeGeneralCategory};

use super::invalid::{Invalid, Problem};

/// A string that is cheap to clone: up to 23 bytes are stored inline, longer text is shared, constants are
/// static.
pub(crate) use smol_str::SmolStr as Text;

/// The rule for a kind of text: its field name, its maximum size in bytes and its characters.
#[derive(Clone, Copy)]
pub(crate) struct Rule {
    pub(crate) field: &'static str,
    pub(crate) max: usize,
    pub(crate) accepts: Characters,
}

impl Rule {
    #[inline]
    pub(crate) fn check(&self, text: &str, origin: TextOrigin) -> Result<(), Invalid> {
        // Fast path: nearly all text is ASCII and begins with a visible character. Speed matters, because a
        // node checks all stored text at startup.
        let starts_visible = text.as_bytes().first().is_some_and(u8::is_ascii_graphic);
        let plain = |byte: u8| self.accepts.plain(byte) == Some(true);
        if starts_visible && text.len() <= self.max && text.bytes().all(plain) {
            return Ok(());
        }
        self.find_problem(text, origin)
    }

    #[cold]
    fn find_problem(&self, text: &str, origin: TextOrigin) -> Result<(), Invalid> {
        let refuse = |problem| Err(Invalid::new(self.field, problem));
        if text.len() > self.max {
            return refuse(Problem::TooLong {
                max: self.max,
                actual: text.len(),
            });
        }
        if text.chars().all(|c| origin.is_blank(c)) {
            return refuse(Problem::Empty);
        }
        self.accepts.check(self.field, text, origin)
    }
}

/// The place that text comes from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum TextOrigin {
    /// A person, a program or a file.
    Typed,
    /// A stored row. Its characters were checked when they were typed.
    Stored,
}

impl TextOrigin {
    /// Returns the origin of the text that a deserializer reads. Only stored rows use a binary format, so
    /// text in a human-readable format was typed.
    pub(crate) fn of<'de, D: Deserializer<'de>>(from: &D) -> Self {
        match from.is_human_readable() {
            true => Self::Typed,
            false => Self::Stored,
        }
    }

    fn refuses(self, c: char) -> bool {
        match self {
            Self::Typed => is_hidden(c),
            Self::Stored => c.is_control(),
        }
    }

    /// Returns whether a character shows nothing by itself: a space, a hidden character, or a mark on the
    /// previous character.
    fn is_blank(self, c: char) -> bool {
        let is_mark = || c.general_category_group() == GeneralCategoryGroup::Mark;
        c.is_whitespace() || (self == Self::Typed && (is_hidden(c) || is_mark()))
    }
}

/// Returns whether a character is refused in text that people read, because they would not see it or would
/// see other characters moved: control characters, direction marks, zero-width characters, line separators,
/// tags, and code points that are private or unassigned.
///
/// Text that was stored before a character counted as hidden may contain that character. Escape hidden
/// characters in text for a terminal.
#[must_use]
pub fn is_hidden(c: char) -> bool {
    if c.is_ascii() {
        return c.is_ascii_control();
    }
    c.general_category_group() == GeneralCategoryGroup::Other
        || matches!(
            c.general_category(),
            GeneralCategory::LineSeparator | GeneralCategory::ParagraphSeparator
        )
        || FILLERS.contains(&c)
}

/// Letters, marks and symbols that are drawn as nothing. Variation selectors are absent, because names in
/// Japanese and emoji contain them.
const FILLERS: [char; 13] = [
    '\u{34f}',
    '\u{115f}',
    '\u{1160}',
    '\u{17b4}',
    '\u{17b5}',
    '\u{180b}',
    '\u{180c}',
    '\u{180d}',
    '\u{180f}',
    '\u{2800}',
    '\u{3164}',
    '\u{ffa0}',
    '\u{1d159}',
];

/// A set of characters.
#[derive(Clone, Copy)]
pub(crate) struct Characters {
    /// The membership of each ASCII character in the set, indexed by its code.
    ascii: [bool; 128],
    /// Membership of characters beyond ASCII. Hidden characters never are.
    non_ascii: bool,
    words: &'static str,
}

impl Characters {
    const fn ascii(words: &'static str, from: u8, to: u8, more: &[u8]) -> Self {
        let mut ascii = [false; 128];
        let mut at = from;
        while at <= to {
            ascii[at as usize] = true;
            at += 1;
        }
        let mut at = 0;
        while at < more.len() {
            ascii[more[at] as usize] = true;
            at += 1;
        }
        Self {
            ascii,
            non_ascii: false,
            words,
        }
    }

    const fn and_non_ascii(self) -> Self {
        Self {
            non_ascii: true,
            ..self
        }
    }

    /// Returns whether an ASCII character is in the set; `None` for a byte that is not ASCII.
    #[inline]
    fn plain(&self, byte: u8) -> Option<bool> {
        self.ascii.get(usize::from(byte)).copied()
    }

    /// Checks that every character of `text` is in the set.
    pub(crate) fn check(
        &self,
        field: &'static str,
        text: &str,
        origin: TextOrigin,
    ) -> Result<(), Invalid> {
        let allowed = self.words;
        match self.first_other(text, origin) {
            Some(position) => Err(Invalid::new(
                field,
                Problem::Character { position, allowed },
            )),
            None => Ok(()),
        }
    }

    /// Returns the position of the first character that is not in the set.
    fn first_other(&self, text: &str, origin: TextOrigin) -> Option<usize> {
        let mut others = text.char_indices().filter(|&(_, c)| {
            let plain = u8::try_from(c).ok().and_then(|byte| self.plain(byte));
            !plain.unwrap_or(self.non_ascii && !origin.refuses(c))
        });
        others.next().map(|(at, _)| at)
    }
}

const IDENTIFIER: Characters = Characters::ascii(
    "A-Z a-z 0-9 _ - .",
    b'a',
    b'z',
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.",
);
const LOWER: Characters = Characters::ascii("a-z 0-9 _ - .", b'a', b'z', b"0123456789_-.");
const VISIBLE: Characters = Characters::ascii("visible ASCII without spaces", b'!', b'~', b"");
pub(crate) const ONE_LINE: Characters =
    Characters::ascii("visible characters and spaces", b' ', b'~', b"").and_non_ascii();
pub(crate) const PROSE: Characters = Characters::ascii(
    "visible characters, spaces, line feeds and tabs",
    b' ',
    b'~',
    b"\n\t",
)
.and_non_ascii();

pub(crate) const SEGMENT: Rule = Rule {
    field: "tenant",
    max: 64,
    accepts: IDENTIFIER,
};

/// Deserializes text through a borrowed string, so that the text is copied only once.
#[inline]
pub(crate) fn read<'de, D: Deserializer<'de>, T>(
    from: D,
    parse: impl FnOnce(&str) -> Result<T, Invalid>,
) -> Result<T, D::Error> {
    struct ParseVisitor<F>(F);

    impl<T, F: FnOnce(&str) -> Result<T, Invalid>> Visitor<'_> for ParseVisitor<F> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string")
        }

        #[inline]
        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
            (self.0)(text).map_err(E::custom)
        }
    }

    from.deserialize_str(ParseVisitor(parse))
}

/// Defines newtypes of checked text. All of them parse, print, order and serialize in the same way.
macro_rules! text_types {
    ($($(#[$doc:meta])* $name:ident: $field:literal, $max:literal, $accepts:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub struct $name(Text);

        impl $name {
            /// The maximum length in bytes.
            pub const MAX_LEN: usize = $max;

            const RULE: Rule =
                Rule { field: $field, max: $max, accepts: $accepts };

            /// Parses and checks `text`.
            ///
            /// # Errors
            ///
            /// [`Invalid`] if the text is blank, too long or has a character that is not allowed. The error
            /// never contains the text.
            #[inline]
            pub fn new(text: impl AsRef<str>) -> Result<Self, Invalid> {
                Self::from_origin(text.as_ref(), TextOrigin::Typed)
            }

            #[inline]
            pub(crate) fn from_origin(text: &str, origin: TextOrigin) -> Result<Self, Invalid> {
                Self::RULE.check(text, origin)?;
                Ok(Self(text.into()))
            }

            /// Returns the text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = Invalid;

            fn from_str(text: &str) -> Result<Self, Invalid> {
                Self::new(text)
            }
        }

        impl TryFrom<&str> for $name {
            type Error = Invalid;

            fn try_from(text: &str) -> Result<Self, Invalid> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = Invalid;

            fn try_from(text: String) -> Result<Self, Invalid> {
                Self::new(text)
            }
        }

        impl From<&$name> for $name {
            fn from(value: &$name) -> Self {
                value.clone()
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_str(&self.0)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let origin = TextOrigin::of(&from);
                read(from, |text| Self::from_origin(text, origin))
            }
        }
    )*};
}

text_types! {
    /// The human-readable name of a key: one line of up to 200 bytes.
    KeyName: "key name", 200, ONE_LINE;
    /// A longer description of a key, up to 2,000 bytes. Line feeds and tabs are allowed.
    Description: "description", 2000, PROSE;
    /// The purpose of a key, up to 500 bytes. A policy may require a purpose.
    Purpose: "purpose", 500, PROSE;
    /// The host's own id of a user or service that acts or owns keys: up to 200 bytes of visible ASCII.
    PrincipalId: "principal", 200, VISIBLE;
    /// A role of a principal, defined by a [`Policy`](crate::policy::Policy).
    Role: "role", 64, LOWER;
    /// The name of a class of keys in a [`Policy`](crate::policy::Policy).
    ClassName: "class", 64, LOWER;
    /// The name of a [`Policy`](crate::policy::Policy).
    PolicyName: "policy name", 64, LOWER;
    /// The environment of a key: `live`, `test`, or a name that the host chooses.
    Environment: "environment", 32, LOWER;
    /// A plan or feature that the host grants an actor.
    Entitlement: "entitlement", 64, LOWER;
    /// The label of a class that is not final yet, such as `beta`.
    Stage: "stage", 32, LOWER;
    /// The kind of a resource that is provisioned with keys, such as `deployment.client`.
    ResourceKind: "resource kind", 64, LOWER;
    /// The host's own id of a resource.
    ResourceId: "resource", 200, VISIBLE;
    /// The idempotency key of a command, chosen by the caller or random. A retry with the same id changes
    /// nothing.
    CommandId: "command id", 128, VISIBLE;
    /// The id of a pepper in a [`PepperRing`](crate::PepperRing). Stored in clear text with each key.
    PepperId: "pepper id", 32, LOWER;
    /// The place where a leaked key was found: a scanner's name, a URL.
    LeakSource: "leak source", 500, ONE_LINE;
    /// The visible part of a key after its creation: its prefix and its last characters.
    Hint: "hint", 80, ONE_LINE;
    /// The name of a document in a store, such as `policies`.
    DocumentName: "document name", 128, LOWER;
    /// The human-readable name of a node, such as a host name.
    NodeLabel: "node label", 128, ONE_LINE;
}

impl Role {
    /// An administrator of a tenant in the shipped profiles.
    pub const ADMIN: Self = Self(Text::new_static("admin"));
    /// A manager of keys in the `amplitude` profile.
    pub const MANAGER: Self = Self(Text::new_static("manager"));
    /// Develops against the host's API, within the reach that a policy gives the role.
    pub const DEVELOPER: Self = Self(Text::new_static("developer"));
    /// A member of a tenant, with the fewest rights.
    pub const MEMBER: Self = Self(Text::new_static("member"));
    /// The host's support staff: the only role that may use `SupportOnly` rules.
    pub const SUPPORT: Self = Self(Text::new_static("support"));
}

impl Environment {
    /// Production traffic.
    pub const LIVE: Self = Self(Text::new_static("live"));
    /// Test traffic.
    pub const TEST: Self = Self(Text::new_static("test"));
}

impl DocumentName {
    /// The policies in use.
    pub(crate) const POLICIES: Self = Self(Text::new_static("policies"));
    /// The check values of the peppers in use.
    pub(crate) const PEPPERS: Self = Self(Text::new_static("peppers"));
    /// The mark of a store that was salvaged from a damaged one.
    pub(crate) const SALVAGE: Self = Self(Text::new_static("salvage"));
    /// The prefix of the documents that name the holders of leases.
    pub(crate) const LEASE: &str = "lease.";
}

impl KeyName {
    /// A placeholder name for a `KeyPosition` in an order that does not depend on names.
    pub(crate) const UNNAMED: Self = Self(Text::new_static("-"));
}

/// Returns classes as the end of a noun phrase, such as ` of class server`. Empty if the set is empty.
pub(crate) fn of_classes(classes: &BTreeSet<ClassName>) -> String {
    let names: Vec<_> = classes.iter().map(ClassName::as_str).collect();
    match names.as_slice() {
        [] => String::new(),
        [one] => format!(" of class {one}"),
        several => format!(" of classes {}", several.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_of_a_refused_name_has_its_bound_and_size_and_never_the_name() {
        let error = KeyName::new("x".repeat(201)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "key name is 201 bytes long, at most 200 are allowed"
        );
        let error = KeyName::new("sk_live\u{7}abc").unwrap_err();
        assert_eq!(
            error.problem,
            Problem::Character {
                position: 7,
                allowed: ONE_LINE.words
            }
        );
        assert!(!error.to_string().contains("sk_live"));
    }

    #[test]
    fn blank_text_is_empty() {
        assert_eq!(KeyName::new("  ").unwrap_err().problem, Problem::Empty);
    }

    #[test]
    fn names_that_nobody_sees_are_empty() {
        for hidden in [
            "\u{200b}\u{200b}",
            "\u{200b} \u{2060}",
            "\u{3000}",
            "\u{a0}\u{2003}",
            "\u{ad}",
            "\u{feff}",
            "\u{3164}",
            "\u{2800}",
            "\u{115f}\u{1160}",
            "\u{fe0f}",
            "\u{301}",
            "\u{e0041}\u{e0042}",
            "\n",
        ] {
            for problem in [
                KeyName::new(hidden).unwrap_err().problem,
                Description::new(hidden).unwrap_err().problem,
            ] {
                assert_eq!(problem, Problem::Empty, "{hidden:?}");
            }
        }
    }

    #[test]
    fn characters_that_hide_or_turn_text_are_refused_by_position() {
        let ranges = [
            '\u{7f}'..='\u{9f}',
            '\u{ad}'..='\u{ad}',
            '\u{600}'..='\u{605}',
            '\u{61c}'..='\u{61c}',
            '\u{180b}'..='\u{180f}',
            '\u{200b}'..='\u{200f}',
            '\u{2028}'..='\u{202e}',
            '\u{2060}'..='\u{206f}',
            '\u{3164}'..='\u{3164}',
            '\u{e000}'..='\u{f8ff}',
            '\u{fdd0}'..='\u{fdef}',
            '\u{feff}'..='\u{feff}',
            '\u{fff0}'..='\u{fffb}',
            '\u{ffff}'..='\u{ffff}',
            '\u{1d173}'..='\u{1d17a}',
            '\u{e0000}'..='\u{e007f}',
            '\u{f0000}'..='\u{10ffff}',
        ];
        for c in ranges.into_iter().flatten() {
            assert!(is_hidden(c), "{c:?}");
            let text = format!("alice{c}eviL");
            for (problem, rule) in [
                (KeyName::new(&text).unwrap_err().problem, ONE_LINE),
                (Purpose::new(&text).unwrap_err().problem, PROSE),
                (Hint::new(&text).unwrap_err().problem, ONE_LINE),
            ] {
                let (position, allowed) = (5, rule.words);
                assert_eq!(problem, Problem::Character { position, allowed }, "{c:?}");
            }
        }
    }

    #[test]
    fn names_in_any_script_are_accepted() {
        for name in [
            "Žluťoučký kůň",
            "e\u{301}te\u{301}",
            "ключ",
            "مفتاح",
            "चाबी",
            "鍵\u{3000}一",
            "葛\u{e0100}城",
            "열쇠",
            "build ❤\u{fe0f} 🦀",
            "a\u{a0}b",
        ] {
            assert!(KeyName::new(name).is_ok(), "{name}");
        }
    }

    /// A store may hold names that an earlier version accepted. A key must not stop working because of them.
    #[test]
    fn a_stored_name_with_hidden_characters_is_read_and_a_typed_one_is_refused() {
        let name = "alice\u{202e}eviL";
        let bytes = postcard::to_allocvec(name).unwrap();
        let read: KeyName = postcard::from_bytes(&bytes).unwrap();
        assert_eq!(read.as_str(), name);
        let json = serde_json::to_string(name).unwrap();
        assert!(serde_json::from_str::<KeyName>(&json).is_err());
        let bytes = postcard::to_allocvec("a\u{9b}b").unwrap();
        assert!(postcard::from_bytes::<KeyName>(&bytes).is_err());
    }

    /// Compares the sets with an independent definition, for every Unicode character.
    #[test]
    fn every_character_is_accepted_where_it_should_be() {
        let identifier = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        let lower = |c: char| identifier(c) && !c.is_ascii_uppercase();
        let one_line = |c: char| !is_hidden(c);
        let prose = |c: char| one_line(c) || "\n\t".contains(c);
        for c in '\0'..='\u{ffff}' {
            let text = format!("a{c}é");
            let at = |own: Characters| own.first_other(&text, TextOrigin::Typed);
            let first = |accepts: bool, non_ascii: bool| match (accepts, non_ascii) {
                (false, _) => Some(1),
                (true, false) => Some(1 + c.len_utf8()),
                (true, true) => None,
            };
            assert_eq!(at(IDENTIFIER), first(identifier(c), false), "{c:?}");
            assert_eq!(at(LOWER), first(lower(c), false), "{c:?}");
            assert_eq!(at(VISIBLE), first(c.is_ascii_graphic(), false), "{c:?}");
            assert_eq!(at(ONE_LINE), first(one_line(c), true), "{c:?}");
            assert_eq!(at(PROSE), first(prose(c), true), "{c:?}");
        }
    }

    #[test]
    fn the_longest_name_is_accepted() {
        assert!(KeyName::new("é".repeat(100)).is_ok());
        assert!(Role::new("Admin").is_err(), "roles are lower case");
    }
}
