//! The networks from which a key may be used.
//!
//! Pure. The application supplies the client's address, from the socket or from a trusted proxy.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::invalid::{Invalid, Problem};

/// The networks from which a key may be used. An empty list allows every address.
///
/// An IPv4 address that arrives in its IPv6-mapped form (`::ffff:192.0.2.1`) counts as IPv4.
#[derive(Clone, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(try_from = "Vec<IpNet>")]
pub struct AddressAllowlist(Vec<IpNet>);

impl AddressAllowlist {
    /// The maximum number of networks in a list.
    pub const MAX: usize = 64;

    /// Creates a list of networks.
    ///
    /// # Errors
    ///
    /// [`Invalid`] if there are more than [`MAX`](Self::MAX) networks.
    pub fn new(networks: impl IntoIterator<Item = IpNet>) -> Result<Self, Invalid> {
        let networks: Vec<_> = networks.into_iter().collect();
        if networks.len() > Self::MAX {
            let problem = Problem::TooMany {
                max: Self::MAX,
                actual: networks.len(),
            };
            return Err(Invalid::new("address allowlist", problem));
        }
        Ok(Self(networks))
    }

    /// Parses networks (`192.0.2.0/24`) and single addresses (`2001:db8::1`).
    ///
    /// # Errors
    ///
    /// [`Invalid`] for a malformed entry, or if there are more than [`MAX`](Self::MAX) entries.
    pub fn parse<'a>(entries: impl IntoIterator<Item = &'a str>) -> Result<Self, Invalid> {
        let expected = "an IP address or a network such as 192.0.2.0/24";
        let invalid = Invalid::new("address allowlist", Problem::Format { expected });
        let parse = |entry: &str| {
            let single = || entry.parse::<IpAddr>().map(IpNet::from);
            entry
                .parse::<IpNet>()
                .or_else(|_| single())
                .map_err(|_| invalid.clone())
        };
        Self::new(
            entries
                .into_iter()
                .map(parse)
                .collect::<Result<Vec<_>, _>>()?,
        )
    }

    /// Returns whether a client at `address` may use the key. Only an empty list allows an unknown address
    /// (`None`).
    #[must_use]
    pub fn allows(&self, address: Option<IpAddr>) -> bool {
        self.0.is_empty()
            || address
                .map(|address| address.to_canonical())
                .is_some_and(|address| self.0.iter().any(|network| network.contains(&address)))
    }

    /// Returns whether `limit` allows every address that this list allows. Each network of this list must be
    /// within a single network of `limit`. An empty list allows every address.
    pub(crate) fn is_within(&self, limit: &Self) -> bool {
        let covered = |own: &IpNet| limit.iter().any(|network| network.contains(own));
        limit.is_empty() || (!self.is_empty() && self.iter().all(covered))
    }

    /// Returns whether the key may be used from any address.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the networks.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &IpNet> {
        self.0.iter()
    }
}

impl TryFrom<Vec<IpNet>> for AddressAllowlist {
    type Error = Invalid;

    fn try_from(networks: Vec<IpNet>) -> Result<Self, Invalid> {
        Self::new(networks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn a_list_allows_its_networks_and_nothing_else() {
        let list = AddressAllowlist::parse(["192.0.2.0/24", "2001:db8::1"]).unwrap();
        assert!(list.allows(address("192.0.2.9")));
        assert!(list.allows(address("2001:db8::1")));
        assert!(!list.allows(address("192.0.3.1")));
        assert!(!list.allows(None), "an unknown client passes no list");
    }

    #[test]
    fn a_mapped_address_counts_as_ipv4() {
        let list = AddressAllowlist::parse(["192.0.2.0/24"]).unwrap();
        assert!(list.allows(address("::ffff:192.0.2.9")));
    }

    #[test]
    fn an_empty_list_allows_everyone() {
        assert!(AddressAllowlist::default().allows(None));
    }

    #[test]
    fn malformed_entries_are_refused() {
        for entry in ["", "192.0.2.0/33", "example.com", "192.0.2.1:80"] {
            assert!(AddressAllowlist::parse([entry]).is_err(), "{entry:?}");
        }
    }
}
