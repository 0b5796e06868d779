//! Bounded, checked text: names that people type and identifiers that hosts supply.
//!
//! Pure. A value that exists is valid, so nothing downstream checks it again. Cloning is cheap.

use std::borrow::Borrow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;

use serde::Deserializer;
use serde::de::Visitor;

use super::invalid::{Invalid, Problem};

/// Shared text that can also be a constant.
#[derive(Clone)]
pub(crate) enum Text {
    Static(&'static str),
    Shared(Arc<str>),
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Static(text) => text,
            Self::Shared(text) => text,
        }
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self::Shared(text.into())
    }
}

impl PartialEq for Text {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Text {}

impl PartialOrd for Text {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Text {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (**self).cmp(&**other)
    }
}

impl Hash for Text {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl Borrow<str> for Text {
    fn borrow(&self) -> &str {
        self
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

/// What a kind of text takes.
#[derive(Clone, Copy)]
pub(crate) struct Rule {
    pub(crate) field: &'static str,
    pub(crate) max: usize,
    pub(crate) allowed: &'static str,
    pub(crate) accepts: fn(char) -> bool,
}

impl Rule {
    pub(crate) fn check(&self, text: &str) -> Result<(), Invalid> {
        let refuse = |problem| Err(Invalid::new(self.field, problem));
        if text.len() > self.max {
            return refuse(Problem::TooLong {
                max: self.max,
                actual: text.len(),
            });
        }
        if text.trim().is_empty() {
            return refuse(Problem::Empty);
        }
        match text.char_indices().find(|&(_, c)| !(self.accepts)(c)) {
            Some((position, _)) => refuse(Problem::Character {
                position,
                allowed: self.allowed,
            }),
            None => Ok(()),
        }
    }
}

/// Reads text where it lies, so that a start copies none of it twice.
pub(crate) fn read<'de, D: Deserializer<'de>, T>(
    from: D,
    parse: fn(&str) -> Result<T, Invalid>,
) -> Result<T, D::Error> {
    struct Reader<T>(fn(&str) -> Result<T, Invalid>);

    impl<T> Visitor<'_> for Reader<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string")
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
            (self.0)(text).map_err(E::custom)
        }
    }

    from.deserialize_str(Reader(parse))
}

fn identifier(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.')
}

fn lower(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '-' | '.')
}

fn visible(c: char) -> bool {
    c.is_ascii_graphic()
}

fn one_line(c: char) -> bool {
    !c.is_control()
}

fn prose(c: char) -> bool {
    !c.is_control() || matches!(c, '\n' | '\t')
}

const IDENTIFIER: &str = "A-Z a-z 0-9 _ - .";
const LOWER: &str = "a-z 0-9 _ - .";
const VISIBLE: &str = "visible ASCII without spaces";
const ONE_LINE: &str = "anything but control characters";
const PROSE: &str = "anything but control characters, line feed and tab excepted";

pub(crate) const SEGMENT: Rule = Rule {
    field: "tenant",
    max: 64,
    allowed: IDENTIFIER,
    accepts: identifier,
};

/// Defines text newtypes with their bounds; every one parses, prints, orders and serializes alike.
macro_rules! text_types {
    ($($(#[$doc:meta])* $name:ident: $field:literal, $max:literal, $allowed:ident, $accepts:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub struct $name(Text);

        impl $name {
            /// The most bytes a value may have.
            pub const MAX_LEN: usize = $max;

            const RULE: Rule =
                Rule { field: $field, max: $max, allowed: $allowed, accepts: $accepts };

            /// Parses and checks `text`.
            ///
            /// # Errors
            ///
            /// [`Invalid`] names the field, the bound and the size, never the text itself.
            pub fn new(text: impl AsRef<str>) -> Result<Self, Invalid> {
                let text = text.as_ref();
                Self::RULE.check(text)?;
                Ok(Self(text.into()))
            }

            /// The text.
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
                read(from, |text| Self::new(text))
            }
        }
    )*};
}

text_types! {
    /// What people call a key: one line, up to 200 bytes.
    KeyName: "key name", 200, ONE_LINE, one_line;
    /// Longer words about a key, up to 2,000 bytes; line feeds allowed.
    Description: "description", 2000, PROSE, prose;
    /// What a key is for, up to 500 bytes; a policy may require it (rule G-38).
    Purpose: "purpose", 500, PROSE, prose;
    /// Who acts or owns: the host's own id of a user or service, up to 200 bytes of visible ASCII.
    PrincipalId: "principal", 200, VISIBLE, visible;
    /// What a principal may do, in the words of a [`Policy`](crate::policy::Policy).
    Role: "role", 64, LOWER, lower;
    /// The name of a kind of key in a [`Policy`](crate::policy::Policy).
    ClassName: "class", 64, LOWER, lower;
    /// The name of a [`Policy`](crate::policy::Policy).
    PolicyName: "policy name", 64, LOWER, lower;
    /// Where a key may be used: `live`, `test`, or a name of the host's own (rule G-36).
    Environment: "environment", 32, LOWER, lower;
    /// A plan or feature that the host says an actor has (rule A2-39).
    Entitlement: "entitlement", 64, LOWER, lower;
    /// The label of a class that is not final yet, such as `beta` (rule A1-28).
    Stage: "stage", 32, LOWER, lower;
    /// The kind of a resource that keys come with, such as `deployment.client` (rule A2-22).
    ResourceKind: "resource kind", 64, LOWER, lower;
    /// The host's own id of a resource.
    ResourceId: "resource", 200, VISIBLE, visible;
    /// Names a command, so that its retry changes nothing: the caller's idempotency key, or random.
    CommandId: "command id", 128, VISIBLE, visible;
    /// Names a pepper in a [`PepperRing`](crate::PepperRing); it stands in records, in the open.
    PepperId: "pepper id", 32, LOWER, lower;
    /// Where a leaked key was found: a scanner's name, a URL.
    LeakSource: "leak source", 500, ONE_LINE, one_line;
    /// What a person sees of a key after its creation: its prefix and its last characters.
    Hint: "hint", 80, ONE_LINE, one_line;
    /// What people call a node: a host name, say.
    NodeLabel: "node label", 128, ONE_LINE, one_line;
}

impl Role {
    /// Administers a tenant in the shipped profiles.
    pub const ADMIN: Self = Self(Text::Static("admin"));
    /// Manages keys in the `amplitude` profile (rule A1-01).
    pub const MANAGER: Self = Self(Text::Static("manager"));
    /// Builds against the host's API; how much that is, a policy says (rule Y-25).
    pub const DEVELOPER: Self = Self(Text::Static("developer"));
    /// Belongs to a tenant, with the least rights.
    pub const MEMBER: Self = Self(Text::Static("member"));
    /// The host's support staff: the only role to which `SupportOnly` rules answer (rule A2-02).
    pub const SUPPORT: Self = Self(Text::Static("support"));
    /// The host itself. No policy may define it; see [`Actor::system`](crate::Actor::system).
    pub const SYSTEM: Self = Self(Text::Static("system"));
}

impl Environment {
    /// Real traffic.
    pub const LIVE: Self = Self(Text::Static("live"));
    /// Trial traffic.
    pub const TEST: Self = Self(Text::Static("test"));
}

impl KeyName {
    /// Stands for the name in a place in an order that asks for none.
    pub(crate) const UNNAMED: Self = Self(Text::Static("-"));
}

impl PrincipalId {
    /// The principal of [`Actor::system`](crate::Actor::system).
    pub const SYSTEM: Self = Self(Text::Static("system"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_name_is_told_its_bound_and_size_and_never_repeated() {
        let error = KeyName::new("x".repeat(201)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "key name: is 201 bytes long, at most 200 are allowed"
        );
        let error = KeyName::new("sk_live\u{7}abc").unwrap_err();
        assert_eq!(
            error.problem,
            Problem::Character {
                position: 7,
                allowed: ONE_LINE
            }
        );
        assert!(!error.to_string().contains("sk_live"));
    }

    #[test]
    fn blank_text_is_empty() {
        assert_eq!(KeyName::new("  ").unwrap_err().problem, Problem::Empty);
    }

    #[test]
    fn the_longest_name_is_accepted() {
        assert!(KeyName::new("é".repeat(100)).is_ok());
        assert!(Role::new("Admin").is_err(), "roles are lower case");
    }
}
