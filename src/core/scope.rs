//! Scopes: the permissions of a key, as `resource:action`.
//!
//! Pure: no I/O and no clock. Invariants: an empty set allows nothing, and an intersection allows only what
//! both sets allow.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::invalid::{Invalid, Problem};
use super::text::{self, Text};

const SEGMENT_MAX: usize = 64;

/// One permission, `resource:action`. Either side may be `*`, which stands for any resource or action.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Scope {
    text: Text,
    /// The byte position of the colon, stored so that a comparison need not search for it.
    colon: u8,
}

impl Scope {
    /// The scope that allows everything: `*:*`.
    pub const ALL: Self = Self {
        text: Text::new_static("*:*"),
        colon: 1,
    };

    /// Parses `resource:action`. Each side is `*` or up to 64 bytes of `a-z 0-9 _ - .`.
    ///
    /// # Errors
    ///
    /// [`Invalid`] if there is not exactly one colon or a side is malformed.
    pub fn new(text: impl AsRef<str>) -> Result<Self, Invalid> {
        let text = text.as_ref();
        let expected = "resource:action, each side `*` or 1 to 64 of a-z 0-9 _ - .";
        if let Some((resource, action)) = text.split_once(':')
            && is_segment(resource)
            && is_segment(action)
            && let Ok(colon) = u8::try_from(resource.len())
        {
            let text = text.into();
            return Ok(Self { text, colon });
        }
        Err(Invalid::new("scope", Problem::Format { expected }))
    }

    /// Creates a scope in a constant. If the text is malformed, the constant does not compile.
    ///
    /// ```
    /// use keyward::Scope;
    ///
    /// const REPORTS_READ: Scope = Scope::from_static("reports:read");
    /// assert_eq!(REPORTS_READ.as_str(), "reports:read");
    /// ```
    ///
    /// ```compile_fail
    /// # use keyward::Scope;
    /// const MALFORMED: Scope = Scope::from_static("reports read");
    /// ```
    ///
    /// # Panics
    ///
    /// Outside a constant, if `text` is malformed. Use [`new`](Self::new) for text that is known only at run
    /// time.
    #[must_use]
    pub const fn from_static(text: &'static str) -> Self {
        let bytes = text.as_bytes();
        let mut colon = 0;
        while colon < bytes.len() && bytes[colon] != b':' {
            colon += 1;
        }
        let resource = is_side(bytes, 0, colon);
        let action = colon < bytes.len() && is_side(bytes, colon + 1, bytes.len());
        assert!(
            resource && action,
            "a scope is resource:action, each side `*` or 1 to 64 of a-z 0-9 _ - ."
        );
        Self {
            text: Text::new_static(text),
            colon: colon as u8,
        }
    }

    /// Returns the scope as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the side before the colon.
    #[must_use]
    pub fn resource(&self) -> &str {
        self.sides().0
    }

    /// Returns the side after the colon.
    #[must_use]
    pub fn action(&self) -> &str {
        self.sides().1
    }

    /// Returns whether this scope allows everything that `other` allows.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        let ((resource, action), (their_resource, their_action)) = (self.sides(), other.sides());
        let side = |own: &str, theirs: &str| {
            // Most scopes differ in their first byte, and comparing one byte is cheaper than comparing
            // strings.
            let begins = own.as_bytes().first() == theirs.as_bytes().first();
            own == "*" || (own.len() == theirs.len() && begins && own == theirs)
        };
        side(action, their_action) && side(resource, their_resource)
    }

    fn meet(&self, other: &Self) -> Option<Self> {
        let side = |a: &str, b: &str| match (a, b) {
            ("*", _) => Some(b.to_owned()),
            (_, "*") => Some(a.to_owned()),
            _ => (a == b).then(|| a.to_owned()),
        };
        let resource = side(self.resource(), other.resource())?;
        let action = side(self.action(), other.action())?;
        Self::new(format!("{resource}:{action}")).ok()
    }

    fn sides(&self) -> (&str, &str) {
        let (resource, action) = self.text.split_at(self.colon.into());
        (resource, &action[1..])
    }
}

const fn is_segment(text: &str) -> bool {
    is_side(text.as_bytes(), 0, text.len())
}

/// Returns whether the bytes from `start` to `end` are a valid side of a scope.
const fn is_side(bytes: &[u8], start: usize, end: usize) -> bool {
    if end - start == 1 && bytes[start] == b'*' {
        return true;
    }
    let mut at = start;
    while at < end {
        if !matches!(bytes[at], b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'.') {
            return false;
        }
        at += 1;
    }
    start < end && end - start <= SEGMENT_MAX
}

impl FromStr for Scope {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::new(text)
    }
}

impl TryFrom<&str> for Scope {
    type Error = Invalid;

    fn try_from(text: &str) -> Result<Self, Invalid> {
        Self::new(text)
    }
}

impl TryFrom<String> for Scope {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        Self::new(&text)
    }
}

impl From<&Scope> for Scope {
    fn from(scope: &Scope) -> Self {
        scope.clone()
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for Scope {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Scope {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        text::read(from, |scope| Self::new(scope))
    }
}

/// A sorted set of scopes without duplicates. The set allows everything that at least one of its scopes
/// covers. An empty set allows nothing.
#[derive(Clone, Default, Eq, Hash, PartialEq)]
pub struct ScopeSet(Vec<Scope>);

impl ScopeSet {
    /// The maximum number of scopes in a set.
    pub const MAX: usize = 64;

    /// Returns the empty set, which allows nothing.
    #[must_use]
    pub const fn none() -> Self {
        Self(Vec::new())
    }

    /// Returns the set that allows everything.
    #[must_use]
    pub fn all() -> Self {
        Self(vec![Scope::ALL])
    }

    /// Creates a set from scopes.
    ///
    /// # Errors
    ///
    /// [`Invalid`] if there are more than [`MAX`](Self::MAX) scopes.
    pub fn new(scopes: impl IntoIterator<Item = Scope>) -> Result<Self, Invalid> {
        let mut set: Vec<_> = scopes.into_iter().collect();
        // Sets from a store are already sorted, so checking first is cheaper than always sorting.
        if !set.is_sorted_by(|one, next| one < next) {
            set.sort_unstable();
            set.dedup();
        }
        if set.len() > Self::MAX {
            let problem = Problem::TooMany {
                max: Self::MAX,
                actual: set.len(),
            };
            return Err(Invalid::new("scope set", problem));
        }
        Ok(Self(set))
    }

    /// Parses a set of scopes.
    ///
    /// # Errors
    ///
    /// [`Invalid`] for the first malformed scope, or if there are more than [`MAX`](Self::MAX) scopes.
    pub fn parse<'a>(scopes: impl IntoIterator<Item = &'a str>) -> Result<Self, Invalid> {
        Self::new(
            scopes
                .into_iter()
                .map(Scope::new)
                .collect::<Result<Vec<_>, _>>()?,
        )
    }

    /// Returns whether the set allows `scope`.
    #[must_use]
    pub fn allows(&self, scope: &Scope) -> bool {
        self.0.iter().any(|own| own.covers(scope))
    }

    /// Returns whether the set allows everything that `other` allows.
    #[must_use]
    pub fn contains(&self, other: &Self) -> bool {
        other.0.iter().all(|scope| self.allows(scope))
    }

    /// Returns the set of everything that both sets allow. The result may hold more than [`MAX`](Self::MAX)
    /// scopes.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let mut met: BTreeSet<_> = self
            .0
            .iter()
            .flat_map(|a| other.0.iter().filter_map(|b| a.meet(b)))
            .collect();
        let all: Vec<_> = met.iter().cloned().collect();
        met.retain(|scope| {
            !all.iter()
                .any(|wider| wider != scope && wider.covers(scope))
        });
        Self(met.into_iter().collect())
    }

    /// Returns whether the set allows nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the scopes, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Scope> {
        self.0.iter()
    }
}

impl From<Scope> for ScopeSet {
    fn from(scope: Scope) -> Self {
        Self(vec![scope])
    }
}

impl fmt::Debug for ScopeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(&self.0).finish()
    }
}

impl fmt::Display for ScopeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, scope) in self.0.iter().enumerate() {
            let space = if index == 0 { "" } else { " " };
            write!(f, "{space}{scope}")?;
        }
        Ok(())
    }
}

impl Serialize for ScopeSet {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(to)
    }
}

impl<'de> Deserialize<'de> for ScopeSet {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Self::new(Vec::<Scope>::deserialize(from)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(scopes: &[&str]) -> ScopeSet {
        ScopeSet::parse(scopes.iter().copied()).unwrap()
    }

    fn any_set() -> impl Strategy<Value = ScopeSet> {
        let side = prop_oneof![Just("*"), Just("a"), Just("b")];
        prop::collection::vec((side.clone(), side), 0..5).prop_map(|sides| {
            ScopeSet::new(
                sides
                    .iter()
                    .map(|(r, a)| Scope::new(format!("{r}:{a}")).unwrap()),
            )
            .unwrap()
        })
    }

    proptest! {
        #[test]
        fn a_meeting_of_sets_allows_exactly_what_both_allow(a in any_set(), b in any_set()) {
            let met = a.intersection(&b);
            for scope in ["a:a", "a:b", "b:a", "b:b", "c:a", "a:c", "c:c"] {
                let scope = Scope::new(scope).unwrap();
                prop_assert_eq!(met.allows(&scope), a.allows(&scope) && b.allows(&scope));
            }
            prop_assert!(a.contains(&met) && b.contains(&met));
        }
    }

    #[test]
    fn a_star_stands_for_a_whole_segment_only() {
        assert!(set(&["reports:*"]).allows(&Scope::new("reports:read").unwrap()));
        assert!(!set(&["reports:*"]).allows(&Scope::new("reports.v2:read").unwrap()));
        assert!(Scope::new("rep*:read").is_err());
    }

    #[test]
    fn malformed_scopes_are_refused() {
        for scope in ["", ":", "a", "a:", ":b", "a:b:c", "A:b", "a: b", "é:b"] {
            assert!(Scope::new(scope).is_err(), "{scope:?}");
        }
    }

    #[test]
    fn no_scopes_allow_nothing() {
        assert!(!ScopeSet::none().allows(&Scope::ALL));
        assert!(!ScopeSet::none().allows(&Scope::new("a:b").unwrap()));
    }
}
