//! Tenants as paths: `acme`, `acme/web`.
//!
//! Pure: no I/O and no clock. Paths compare by segment, so `acme` contains `acme/web` but not `acme-two`.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::invalid::{Invalid, Problem};
use super::text::{self, SEGMENT, Text, TextOrigin};

/// The unit that owns keys: a project, account or organization. Limits such as the cap on active keys apply
/// within one tenant.
///
/// One to eight segments of `A-Z a-z 0-9 _ - .`, each up to 64 bytes, joined by `/`. The segments `.` and
/// `..` are refused, because URLs and file systems resolve them to other paths.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct TenantId(Text);

impl TenantId {
    /// The maximum number of segments in a path: 8. The host must model deeper trees itself.
    pub const MAX_DEPTH: usize = 8;

    /// Parses a path.
    ///
    /// # Errors
    ///
    /// [`Invalid`] if a segment is empty, is `.` or `..`, is too long, or contains a character that is not allowed
    /// in a [`TenantId`]. Also if there are more than [`MAX_DEPTH`](Self::MAX_DEPTH) segments.
    pub fn new(path: impl AsRef<str>) -> Result<Self, Invalid> {
        let path = path.as_ref();
        let depth = path.split('/').count();
        if depth > Self::MAX_DEPTH {
            let problem = Problem::TooMany {
                max: Self::MAX_DEPTH,
                actual: depth,
            };
            return Err(Invalid::new("tenant", problem));
        }
        path.split('/').try_for_each(check_segment)?;
        Ok(Self(path.into()))
    }

    /// Returns the path as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns whether `other` is this tenant or one of its descendants.
    #[must_use]
    pub fn contains(&self, other: &Self) -> bool {
        other
            .0
            .strip_prefix(&*self.0)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// Returns the paths of this tenant and its ancestors, nearest first. Does not allocate.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &str> {
        let above = self.0.rmatch_indices('/').map(|(end, _)| &self.0[..end]);
        std::iter::once(&*self.0).chain(above)
    }

    /// Returns this tenant and then its ancestors, nearest first. The rows of all these tenants affect this
    /// tenant's keys.
    pub fn lineage(&self) -> impl Iterator<Item = Self> + '_ {
        std::iter::once(self.clone()).chain(self.ancestors())
    }

    /// Returns the entries of `map` for this tenant and its descendants, without visiting any other entry.
    /// All descendants are neighbours in text order. Only siblings such as `a-b` lie between `a` and its
    /// first descendant, so `a` is looked up separately.
    pub(crate) fn range_in<'m, V>(
        &self,
        map: &'m BTreeMap<Self, V>,
    ) -> impl Iterator<Item = (&'m Self, &'m V)> + use<'m, V> {
        let below = format!("{}/", self.0);
        let from = (Bound::Excluded(below.as_str()), Bound::Unbounded);
        let descendants = map.range::<str, _>(from);
        let descendants = descendants.take_while(move |(path, _)| path.0.starts_with(&below));
        map.get_key_value(self).into_iter().chain(descendants)
    }

    /// Returns the ancestors of this tenant, nearest first.
    pub fn ancestors(&self) -> impl Iterator<Item = Self> + '_ {
        self.0
            .rmatch_indices('/')
            .map(|(end, _)| Self(self.0[..end].into()))
    }
}

fn check_segment(segment: &str) -> Result<(), Invalid> {
    SEGMENT.check(segment, TextOrigin::Typed)?;
    match segment {
        "." | ".." => {
            let expected = "segments other than `.` and `..`";
            Err(Invalid::new("tenant", Problem::Format { expected }))
        }
        _ => Ok(()),
    }
}

impl FromStr for TenantId {
    type Err = Invalid;

    fn from_str(path: &str) -> Result<Self, Invalid> {
        Self::new(path)
    }
}

impl TryFrom<&str> for TenantId {
    type Error = Invalid;

    fn try_from(path: &str) -> Result<Self, Invalid> {
        Self::new(path)
    }
}

impl TryFrom<String> for TenantId {
    type Error = Invalid;

    fn try_from(path: String) -> Result<Self, Invalid> {
        Self::new(path)
    }
}

/// Satisfies the contract of [`Borrow`]: a tenant id orders, compares and hashes like its text.
impl Borrow<str> for TenantId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for TenantId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl Serialize for TenantId {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for TenantId {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        text::read(from, |path| Self::new(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(path: &str) -> TenantId {
        TenantId::new(path).unwrap()
    }

    #[test]
    fn paths_compare_by_segment() {
        assert!(tenant("acme").contains(&tenant("acme")));
        assert!(tenant("acme").contains(&tenant("acme/web")));
        assert!(!tenant("acme").contains(&tenant("acme-two")));
        assert!(!tenant("acme/web").contains(&tenant("acme")));
        assert!(!tenant("acme/web").contains(&tenant("acme/website")));
    }

    #[test]
    fn ancestors_come_nearest_first() {
        let above: Vec<_> = tenant("a/b/c").ancestors().map(|t| t.to_string()).collect();
        assert_eq!(above, ["a/b", "a"]);
        assert_eq!(tenant("a").ancestors().count(), 0);
    }

    #[test]
    fn a_range_has_the_tenant_and_its_descendants_and_nothing_else() {
        let paths = [
            "a", "a/b", "a/b-c", "a/b.c/d", "a/b/c", "a/b/c/d", "a/b0", "a/c", "b",
        ];
        let map: BTreeMap<_, _> = paths.iter().map(|path| (tenant(path), ())).collect();
        for path in paths.into_iter().chain(["a/b.c", "c"]) {
            let found: Vec<_> = tenant(path).range_in(&map).map(|(path, ())| path).collect();
            let expected = map.keys().filter(|own| tenant(path).contains(own));
            assert_eq!(found, expected.collect::<Vec<_>>(), "{path}");
        }
    }

    #[test]
    fn malformed_paths_are_refused() {
        for path in ["", "/", "a//b", "a/", "/a", "a b", "é", "a/b/c/d/e/f/g/h/i"] {
            assert!(TenantId::new(path).is_err(), "{path:?}");
        }
    }

    /// Proxies and file systems resolve the segments `.` and `..`, so such a path would name another tenant.
    #[test]
    fn dots_alone_are_no_segment_anywhere_in_a_path() {
        for path in [
            ".",
            "..",
            "acme/..",
            "acme/../victim",
            "./acme",
            "acme/./web",
        ] {
            assert!(TenantId::new(path).is_err(), "{path:?}");
            let stored = serde_json::to_string(path).unwrap();
            assert!(
                serde_json::from_str::<TenantId>(&stored).is_err(),
                "{path:?}"
            );
        }
        for path in ["...", ".acme", "acme..web", "a.b/c."] {
            assert!(TenantId::new(path).is_ok(), "{path:?}");
        }
    }
}
