//! The host's own words about a key, as pairs of text.
//!
//! Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::invalid::{Invalid, Problem};

/// Pairs of text that the host keeps with a key: up to 64, up to 16 KiB in all.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "BTreeMap<String, String>")]
pub struct Metadata(BTreeMap<String, String>);

impl Metadata {
    /// The most bytes of names and values together: 16 KiB.
    pub const MAX_LEN: usize = 16 * 1024;
    /// The most pairs.
    pub const MAX_PAIRS: usize = 64;
    /// The most bytes of one pair's name.
    pub const MAX_NAME_LEN: usize = 128;

    /// Collects pairs; of two with one name, the later one stays.
    ///
    /// # Errors
    ///
    /// [`Invalid`] names the bound that was passed and by how much.
    pub fn new<N, V>(pairs: impl IntoIterator<Item = (N, V)>) -> Result<Self, Invalid>
    where
        N: Into<String>,
        V: Into<String>,
    {
        let pairs: BTreeMap<String, String> = pairs
            .into_iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect();
        let refuse = |field, problem| Err(Invalid::new(field, problem));
        if pairs.len() > Self::MAX_PAIRS {
            let problem = Problem::TooMany {
                max: Self::MAX_PAIRS,
                actual: pairs.len(),
            };
            return refuse("metadata", problem);
        }
        for name in pairs.keys() {
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

    /// The value kept under `name`.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// The pairs, in order of their names.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Whether there is no pair.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl TryFrom<BTreeMap<String, String>> for Metadata {
    type Error = Invalid;

    fn try_from(pairs: BTreeMap<String, String>) -> Result<Self, Invalid> {
        Self::new(pairs)
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
    fn names_and_pairs_are_bounded() {
        assert!(Metadata::new([("", "v")]).is_err());
        assert!(Metadata::new([("n".repeat(129), "v")]).is_err());
        assert!(Metadata::new((0..65).map(|n| (n.to_string(), ""))).is_err());
    }
}
