//! The application's own data about a key, as name-value pairs.
//!
//! Pure: no I/O and no clock.

use std::fmt;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::invalid::{Invalid, Problem};
use super::text::{self, ONE_LINE, PROSE, Rule, Text, TextOrigin};

/// Name-value pairs that the application stores with a key: at most 64 pairs, and 16 KiB in total. Values may
/// be empty. Line feeds and tabs are allowed in values, and [hidden characters](super::text::is_hidden)
/// nowhere.
#[derive(Clone, Default, Eq, PartialEq)]
pub struct Metadata(Vec<(Text, Text)>);

impl Metadata {
    /// The maximum total size of all names and values: 16 KiB.
    pub const MAX_LEN: usize = 16 * 1024;
    /// The maximum number of pairs.
    pub const MAX_PAIRS: usize = 64;
    /// The maximum length of a name, in bytes.
    pub const MAX_NAME_LEN: usize = 128;

    const NAME: Rule = Rule {
        field: "metadata name",
        max: Self::MAX_NAME_LEN,
        accepts: ONE_LINE,
    };

    /// Creates metadata from pairs.
    ///
    /// # Errors
    ///
    /// [`Invalid`] for a blank name, a name that appears twice or a character that is not allowed, or if a
    /// maximum is exceeded.
    pub fn new<N, V>(pairs: impl IntoIterator<Item = (N, V)>) -> Result<Self, Invalid>
    where
        N: Into<String>,
        V: Into<String>,
    {
        let text = |(name, value): (N, V)| (Text::from(name.into()), Text::from(value.into()));
        Self::of(pairs.into_iter().map(text).collect(), TextOrigin::Typed)
    }

    fn of(mut pairs: Vec<(Text, Text)>, origin: TextOrigin) -> Result<Self, Invalid> {
        let refuse = |field, problem| Err(Invalid::new(field, problem));
        if pairs.len() > Self::MAX_PAIRS {
            let problem = Problem::TooMany {
                max: Self::MAX_PAIRS,
                actual: pairs.len(),
            };
            return refuse("metadata", problem);
        }
        // Cheap for pairs from a store, because they are already sorted.
        pairs.sort_by(|(one, _), (other, _)| one.cmp(other));
        if pairs.windows(2).any(|two| two[0].0 == two[1].0) {
            return refuse("metadata name", Problem::Repeated);
        }
        // Checks characters only in typed pairs. An earlier version stored pairs with any characters, and
        // these rows must stay readable.
        let typed = pairs.iter().filter(|_| origin == TextOrigin::Typed);
        for (name, value) in typed {
            Self::NAME.check(name, origin)?;
            PROSE.check("metadata value", value, origin)?;
        }
        let actual = pairs
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        if actual > Self::MAX_LEN {
            return refuse(
                "metadata",
                Problem::TooLong {
                    max: Self::MAX_LEN,
                    actual,
                },
            );
        }
        Ok(Self(pairs))
    }

    /// Returns the value of `name`.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<&str> {
        let own = |(own, _): &(Text, Text)| (**own).cmp(name);
        let at = self.0.binary_search_by(own).ok()?;
        self.0.get(at).map(|(_, value)| &**value)
    }

    /// Returns the pairs, in order of their names.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }

    /// Returns whether there are no pairs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Metadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl Serialize for Metadata {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(self.iter())
    }
}

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct PairsVisitor(TextOrigin);

        impl<'de> Visitor<'de> for PairsVisitor {
            type Value = Metadata;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Metadata, A::Error> {
                let known = map.size_hint().unwrap_or_default();
                let mut pairs = Vec::with_capacity(known.min(Metadata::MAX_PAIRS));
                while let Some((Plain(name), Plain(value))) = map.next_entry()? {
                    pairs.push((name, value));
                }
                Metadata::of(pairs, self.0).map_err(A::Error::custom)
            }
        }

        let origin = TextOrigin::of(&from);
        from.deserialize_map(PairsVisitor(origin))
    }
}

/// The name or the value of a pair, deserialized with a single copy.
struct Plain(Text);

impl<'de> Deserialize<'de> for Plain {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        text::read(from, |text| Ok(Self(text.into())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_of_16_kib_is_exact() {
        assert!(Metadata::new([("k", "v".repeat(Metadata::MAX_LEN - 1))]).is_ok());
        let error = Metadata::new([("k", "v".repeat(Metadata::MAX_LEN))]).unwrap_err();
        assert_eq!(
            error.problem,
            Problem::TooLong {
                max: 16_384,
                actual: 16_385
            }
        );
    }

    #[test]
    fn pairs_are_in_the_order_of_their_names() {
        let metadata = Metadata::new([("b", "4"), ("a", "2")]).unwrap();
        assert_eq!(
            metadata.iter().collect::<Vec<_>>(),
            [("a", "2"), ("b", "4")]
        );
        assert_eq!(metadata.value("b"), Some("4"));
        assert_eq!(metadata.value("c"), None);
        let json = serde_json::to_string(&metadata).unwrap();
        assert_eq!(json, r#"{"a":"2","b":"4"}"#);
        assert_eq!(serde_json::from_str::<Metadata>(&json).unwrap(), metadata);
    }

    #[test]
    fn a_name_that_appears_twice_is_refused() {
        let error = Metadata::new([("b", "1"), ("a", "2"), ("b", "1")]).unwrap_err();
        assert_eq!(error.to_string(), "metadata name appears twice");
        let error = serde_json::from_str::<Metadata>(r#"{"b":"3","a":"2","b":"4"}"#).unwrap_err();
        assert!(error.to_string().contains("appears twice"), "{error}");
    }

    #[test]
    fn hidden_characters_are_refused_in_names_and_values() {
        let problem = |name: &str, value: &str| Metadata::new([(name, value)]).unwrap_err();
        for c in [
            '\u{9b}', '\u{1b}', '\u{7f}', '\u{202e}', '\u{200b}', '\u{2028}',
        ] {
            let text = format!("a{c}b");
            for error in [problem(&text, "v"), problem("n", &text)] {
                let refused = matches!(error.problem, Problem::Character { position: 1, .. });
                assert!(refused, "{error}");
            }
        }
        assert_eq!(problem("\u{200b}", "v").problem, Problem::Empty);
        assert!(Metadata::new([("note", "first\n\tsecond é"), ("empty", "")]).is_ok());
        assert!(Metadata::new([("two\nlines", "v")]).is_err());
    }

    #[test]
    fn stored_metadata_with_hidden_characters_is_read() {
        let stored = std::collections::BTreeMap::from([("n", "a\u{202e}\u{9b}b")]);
        let bytes = postcard::to_allocvec(&stored).unwrap();
        let read: Metadata = postcard::from_bytes(&bytes).unwrap();
        assert_eq!(read.value("n"), Some("a\u{202e}\u{9b}b"));
    }

    #[test]
    fn names_and_pairs_are_bounded() {
        assert!(Metadata::new([("", "v")]).is_err());
        assert!(Metadata::new([("n".repeat(129), "v")]).is_err());
        assert!(Metadata::new((0..65).map(|n| (n.to_string(), ""))).is_err());
    }
}
