//! The application's own data about a key, as name-value pairs.
//!
//! Pure.

use std::fmt;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::invalid::{Invalid, Problem};
use super::text::{self, Text};

/// Name-value pairs that the application stores with a key: at most 64 pairs, and 16 KiB in total.
#[derive(Clone, Default, Eq, PartialEq)]
pub struct Metadata(Vec<(Text, Text)>);

impl Metadata {
    /// The maximum total size of all names and values: 16 KiB.
    pub const MAX_LEN: usize = 16 * 1024;
    /// The maximum number of pairs.
    pub const MAX_PAIRS: usize = 64;
    /// The maximum length of a name, in bytes.
    pub const MAX_NAME_LEN: usize = 128;

    /// Creates metadata from pairs. If several pairs have the same name, the last pair wins.
    ///
    /// # Errors
    ///
    /// [`Invalid`] for an empty name, or if a maximum is exceeded.
    pub fn new<N, V>(pairs: impl IntoIterator<Item = (N, V)>) -> Result<Self, Invalid>
    where
        N: Into<String>,
        V: Into<String>,
    {
        let text = |(name, value): (N, V)| (Text::from(name.into()), Text::from(value.into()));
        Self::of(pairs.into_iter().map(text).collect())
    }

    fn of(mut pairs: Vec<(Text, Text)>) -> Result<Self, Invalid> {
        // Skips the sort for pairs from a store, which are already sorted.
        if !pairs.is_sorted_by(|(one, _), (next, _)| one < next) {
            // Reversing before the stable sort puts the last pair of each name first, and `dedup_by` keeps
            // the first.
            pairs.reverse();
            pairs.sort_by(|(one, _), (other, _)| one.cmp(other));
            pairs.dedup_by(|(later, _), (first, _)| later == first);
        }
        let refuse = |field, problem| Err(Invalid::new(field, problem));
        if pairs.len() > Self::MAX_PAIRS {
            let problem = Problem::TooMany {
                max: Self::MAX_PAIRS,
                actual: pairs.len(),
            };
            return refuse("metadata", problem);
        }
        for (name, _) in &pairs {
            if name.is_empty() {
                return refuse("metadata name", Problem::Empty);
            }
            if name.len() > Self::MAX_NAME_LEN {
                let problem = Problem::TooLong {
                    max: Self::MAX_NAME_LEN,
                    actual: name.len(),
                };
                return refuse("metadata name", problem);
            }
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
        struct Pairs;

        impl<'de> Visitor<'de> for Pairs {
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
                Metadata::of(pairs).map_err(A::Error::custom)
            }
        }

        from.deserialize_map(Pairs)
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
    fn the_last_value_of_a_name_stays_and_names_are_in_order() {
        let metadata = Metadata::new([("b", "1"), ("a", "2"), ("b", "3"), ("b", "4")]).unwrap();
        assert_eq!(
            metadata.iter().collect::<Vec<_>>(),
            [("a", "2"), ("b", "4")]
        );
        assert_eq!(metadata.value("b"), Some("4"));
        assert_eq!(metadata.value("c"), None);
        let json = serde_json::to_string(&metadata).unwrap();
        assert_eq!(json, r#"{"a":"2","b":"4"}"#);
        let read: Metadata = serde_json::from_str(r#"{"b":"3","a":"2","b":"4"}"#).unwrap();
        assert_eq!(read, metadata);
    }

    #[test]
    fn names_and_pairs_are_bounded() {
        assert!(Metadata::new([("", "v")]).is_err());
        assert!(Metadata::new([("n".repeat(129), "v")]).is_err());
        assert!(Metadata::new((0..65).map(|n| (n.to_string(), ""))).is_err());
    }
}
