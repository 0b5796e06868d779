//! The networks from which a key may be used.
//!
//! Pure: no I/O and no clock. The application supplies the client's address, from the socket or from a
//! trusted proxy.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::invalid::{Invalid, Problem};

/// The networks from which a key may be used. An empty list allows every address.
///
/// An IPv4 address in its IPv6-mapped form (`::ffff:192.0.2.1`) counts as IPv4, both as a client's address
/// and as an entry of a list. Other IPv6 networks, such as `::/0`, contain no IPv4 address.
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
    /// [`Invalid`] if there are more than [`MAX`](Self::MAX) networks, or if the prefix of a mapped network
    /// is shorter than its 96 fixed bits, as in `::ffff:10.0.0.0/8`.
    pub fn new(networks: impl IntoIterator<Item = IpNet>) -> Result<Self, Invalid> {
        let networks = networks.into_iter().map(|network| {
            let network = canonical(network);
            // Refused as ambiguous: the writer of `::ffff:10.0.0.0/8` means 10.0.0.0/8, but the first 8 bits
            // of the IPv6 address give `::/8`.
            match mapped(&network) {
                Some(_) => Err(Self::invalid(
                    "a mapped network such as ::ffff:192.0.2.0/120",
                )),
                None => Ok(network),
            }
        });
        let networks = networks.collect::<Result<Vec<_>, _>>()?;
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
        let invalid = || Self::invalid("an IP address or a network such as 192.0.2.0/24");
        let parse = |entry: &str| {
            let single = || entry.parse::<IpAddr>().map(IpNet::from);
            let network = entry.parse::<IpNet>().or_else(|_| single());
            network.map_err(|_| invalid())
        };
        Self::new(
            entries
                .into_iter()
                .map(parse)
                .collect::<Result<Vec<_>, _>>()?,
        )
    }

    const fn invalid(expected: &'static str) -> Invalid {
        Invalid::new("address allowlist", Problem::Format { expected })
    }

    /// Returns whether a client at `address` may use the key. `None` is an unknown address: only an empty
    /// list allows it.
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

    /// Returns whether the list is empty, which means that the key may be used from any address.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the networks.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &IpNet> {
        self.0.iter()
    }
}

/// Converts an IPv4-mapped IPv6 network to the IPv4 network that it stands for. Returns any other network
/// unchanged. A client's address is converted with [`IpAddr::to_canonical`] before it is compared, so an
/// unconverted mapped network would match no client.
pub(crate) fn canonical(network: IpNet) -> IpNet {
    let as_ipv4 = || {
        let prefix = network.prefix_len().checked_sub(96)?;
        Some(IpNet::V4(Ipv4Net::new(mapped(&network)?, prefix).ok()?))
    };
    as_ipv4().unwrap_or(network)
}

/// Returns the IPv4 address in the address of a network, if that address is IPv4-mapped, such as
/// `::ffff:192.0.2.0`.
fn mapped(network: &IpNet) -> Option<Ipv4Addr> {
    match network {
        IpNet::V4(_) => None,
        IpNet::V6(network) => Ipv6Net::addr(network).to_ipv4_mapped(),
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
    fn a_mapped_entry_is_the_ipv4_network_it_stands_for() {
        for (mapped, plain) in [
            ("::ffff:127.0.0.1", "127.0.0.1/32"),
            ("::ffff:7f00:1", "127.0.0.1/32"),
            ("::ffff:127.0.0.1/128", "127.0.0.1/32"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
        ] {
            let list = AddressAllowlist::parse([mapped]).unwrap();
            assert_eq!(list, AddressAllowlist::parse([plain]).unwrap(), "{mapped}");
        }
        let list = AddressAllowlist::parse(["::ffff:127.0.0.1"]).unwrap();
        assert!(list.allows(address("127.0.0.1")) && list.allows(address("::ffff:127.0.0.1")));
        assert!(!list.allows(address("127.0.0.2")) && !list.allows(address("::1")));
        let wide = AddressAllowlist::parse(["10.0.0.0/8"]).unwrap();
        let narrow = AddressAllowlist::parse(["::ffff:10.1.0.0/112"]).unwrap();
        assert!(narrow.is_within(&wide) && !wide.is_within(&narrow));
    }

    /// A stored list may contain a mapped network in its IPv6 form, so decoding converts the network to IPv4.
    #[test]
    fn a_mapped_network_from_a_store_is_the_ipv4_network() {
        let stored: Vec<IpNet> = vec!["::ffff:192.0.2.0/120".parse().unwrap()];
        let bytes = postcard::to_allocvec(&stored).unwrap();
        let list: AddressAllowlist = postcard::from_bytes(&bytes).unwrap();
        assert_eq!(list, AddressAllowlist::parse(["192.0.2.0/24"]).unwrap());
        let json = r#"["::ffff:192.0.2.0/120"]"#;
        assert_eq!(
            serde_json::from_str::<AddressAllowlist>(json).unwrap(),
            list
        );
    }

    #[test]
    fn an_ipv6_network_allows_no_ipv4_address() {
        let list = AddressAllowlist::parse(["::/0"]).unwrap();
        assert!(list.allows(address("2001:db8::1")));
        assert!(!list.allows(address("192.0.2.1")) && !list.allows(address("::ffff:192.0.2.1")));
    }

    #[test]
    fn an_empty_list_allows_everyone() {
        assert!(AddressAllowlist::default().allows(None));
    }

    #[test]
    fn malformed_entries_are_refused() {
        for entry in [
            "",
            "192.0.2.0/33",
            "example.com",
            "192.0.2.1:80",
            "::ffff:10.0.0.0/8",
            "::ffff:192.0.2.1/95",
        ] {
            assert!(AddressAllowlist::parse([entry]).is_err(), "{entry:?}");
        }
    }
}
