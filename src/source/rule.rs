//! One rule of the trusted sources, and what it names.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::source::addresses::Resolvable;
use crate::source::cloud::CloudSource;
use crate::source::group::GroupName;
use crate::source::host::Host;

/// A rule that trusts a network, a host, objects of a cloud or a group of sources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Identifies the rule within its listener or group.
    pub uuid: Uuid,
    /// Whether the file states the UUID. Otherwise it is derived from the text of the rule.
    pub has_stated_uuid: bool,
    /// What the rule trusts.
    pub source: Source,
    /// The `value` key as written, if it differs from the canonical form. Programs that manage sources compare the text.
    pub spelling: Option<Box<str>>,
    /// Free text for the operator.
    pub description: Option<String>,
    /// From this time on the rule no longer applies; `None` means that it does not expire.
    pub expires_at: Option<OffsetDateTime>,
    /// The place where the rule is configured.
    pub origin: Origin,
}

impl Rule {
    /// A rule without description and expiry, spelled canonically, with the nil UUID.
    pub const fn of(source: Source, origin: Origin) -> Self {
        Self {
            uuid: Uuid::nil(),
            has_stated_uuid: false,
            source,
            spelling: None,
            description: None,
            expires_at: None,
            origin,
        }
    }

    /// Whether the rule has not expired at `now`.
    pub fn is_live(&self, now: OffsetDateTime) -> bool {
        self.expires_at.is_none_or(|end| now < end)
    }

    /// The `value` key as written.
    pub fn written_value(&self) -> Cow<'_, str> {
        self.spelling.as_deref().map_or_else(|| self.source.value().into(), Cow::from)
    }
}

/// The form in all logs and listings: `ip_addr:10.0.0.0/8`.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)
    }
}

/// What a rule trusts, by the kinds of the configuration. The address of a client is a
/// [`ClientAddr`](crate::addr::ClientAddr).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// Every address of a network.
    Network(Network),
    /// Every address of a host.
    Host(Host),
    /// Every address of some objects of a cloud or a cluster.
    Cloud(CloudSource),
    /// Every address that a rule of a group trusts.
    Group(GroupName),
}

impl Source {
    /// The `type` of a network.
    pub const IP_ADDR: &str = "ip_addr";
    /// The `type` of a host.
    pub const DNS: &str = "dns";
    /// The `type` of a group.
    pub const GROUP: &str = "group";

    /// The value of the `type` key, and the prefix in the short form `dns:db.internal`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Network(_) => Self::IP_ADDR,
            Self::Host(_) => Self::DNS,
            Self::Cloud(source) => source.kind(),
            Self::Group(_) => Self::GROUP,
        }
    }

    /// The `value` key in canonical form.
    pub fn value(&self) -> String {
        match self {
            Self::Network(network) => network.to_string(),
            Self::Host(host) => host.name.to_string(),
            Self::Cloud(source) => source.value(),
            Self::Group(name) => name.to_string(),
        }
    }

    /// The host of a `dns` source.
    pub const fn host(&self) -> Option<&Host> {
        match self {
            Self::Host(host) => Some(host),
            Self::Network(_) | Self::Cloud(_) | Self::Group(_) => None,
        }
    }

    /// The objects of a cloud source.
    pub const fn cloud(&self) -> Option<&CloudSource> {
        match self {
            Self::Cloud(source) => Some(source),
            Self::Network(_) | Self::Host(_) | Self::Group(_) => None,
        }
    }

    /// The group of a `group` source.
    pub const fn group(&self) -> Option<&GroupName> {
        match self {
            Self::Group(name) => Some(name),
            Self::Network(_) | Self::Host(_) | Self::Cloud(_) => None,
        }
    }

    /// The source whose addresses are looked up; `None` for a network or a group.
    pub fn resolvable(&self) -> Option<Resolvable> {
        match self {
            Self::Network(_) | Self::Group(_) => None,
            Self::Host(host) => Some(Resolvable::Host(host.name.clone())),
            Self::Cloud(source) => Some(Resolvable::Cloud(source.clone())),
        }
    }

    /// The network of an `ip_addr` source.
    pub const fn network(&self) -> Option<&Network> {
        match self {
            Self::Network(network) => Some(network),
            Self::Host(_) | Self::Cloud(_) | Self::Group(_) => None,
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind();
        match self {
            Self::Network(network) => write!(f, "{kind}:{network}"),
            Self::Host(host) => write!(f, "{kind}:{}", host.name),
            Self::Cloud(source) => source.fmt(f),
            Self::Group(name) => write!(f, "{kind}:{name}"),
        }
    }
}

/// The place where a rule is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// In `trusted_sources` of the configuration.
    Configuration,
    /// In a `sources_file`.
    SourcesFile {
        /// When a program added the rule.
        created_at: Option<OffsetDateTime>,
    },
}

impl Origin {
    /// The word for it in the API.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Configuration => "config",
            Self::SourcesFile { .. } => "file",
        }
    }

    /// When a program added the rule, if one did.
    pub fn created_at(&self) -> Option<OffsetDateTime> {
        match self {
            Self::Configuration => None,
            Self::SourcesFile { created_at } => *created_at,
        }
    }
}

/// An IPv4 or IPv6 network, or a single address. Host bits are zero, and an IPv4-mapped IPv6 network is stored as IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Network {
    net: IpNet,
    /// Whether it was written without a prefix length.
    bare: bool,
}

impl Network {
    pub fn net(self) -> IpNet {
        self.net
    }

    /// Whether it is a single address.
    pub fn is_single_address(self) -> bool {
        self.net.prefix_len() == self.net.max_prefix_len()
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.bare { self.net.addr().fmt(f) } else { self.net.fmt(f) }
    }
}

impl FromStr for Network {
    type Err = NetworkError;

    /// Reads `10.1.2.3`, `10.0.0.0/8`, `2001:db8::1` or `2001:db8::/32`.
    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let ip = parse_address(address)?;
        let longest = if ip.is_ipv4() { 32 } else { 128 };
        let (prefix, bare) = match length {
            None => (longest, true),
            Some(digits) => (parse_length(digits, longest)?, false),
        };
        let net = fold_mapped(ip, prefix)?;
        if net.addr() != net.network() {
            return Err(NetworkError::HostBits { meant: net.trunc() });
        }
        Ok(Self { net, bare })
    }
}

/// Why a text is not a network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// Bits are set to the right of the prefix.
    #[error("an address with bits set beyond its prefix length; did you mean \"{meant}\"?")]
    HostBits {
        /// The network without them.
        meant: IpNet,
    },
    /// An IPv4 octet starts with a zero, which some programs parse as octal.
    #[error("an IPv4 address with a leading zero, which some programs parse as octal; remove the zero")]
    LeadingZero,
    /// An IPv4-mapped network that also contains addresses that are not IPv4.
    #[error("an IPv4-mapped IPv6 network wider than /96; write the IPv4 network itself, such as \"10.0.0.0/8\"")]
    MappedTooWide,
    /// A prefix length that is not a number, or longer than the address.
    #[error("a network with an invalid prefix length; use a number from 0 to {longest}")]
    PrefixLength {
        /// The longest prefix of the address family.
        longest: u8,
    },
    /// Not an IP address.
    #[error("not an IPv4 or IPv6 address or network")]
    Syntax,
    /// A zone, which is valid on one host only.
    #[error("an address with a zone ID; sources are matched without the zone, so remove \"%\" and everything after it")]
    Zone,
}

fn parse_address(text: &str) -> Result<IpAddr, NetworkError> {
    if text.contains('%') {
        return Err(NetworkError::Zone);
    }
    text.parse().map_err(|_| if has_leading_zero(text) { NetworkError::LeadingZero } else { NetworkError::Syntax })
}

/// Whether `text` would be an IPv4 address without leading zeros such as in `010`.
fn has_leading_zero(text: &str) -> bool {
    let parts: Vec<&str> = text.split('.').collect();
    parts.len() == 4
        && parts.iter().all(|part| part.parse::<u8>().is_ok())
        && parts.iter().any(|part| part.len() > 1 && part.starts_with('0'))
}

fn parse_length(digits: &str, longest: u8) -> Result<u8, NetworkError> {
    let plain = !digits.is_empty() && digits.len() <= 3 && digits.bytes().all(|byte| byte.is_ascii_digit());
    let padded = digits.len() > 1 && digits.starts_with('0');
    match digits.parse::<u8>() {
        Ok(length) if plain && !padded && length <= longest => Ok(length),
        _ => Err(NetworkError::PrefixLength { longest }),
    }
}

/// Converts `::ffff:a.b.c.d/p` with p ≥ 96 to the IPv4 network.
fn fold_mapped(ip: IpAddr, prefix: u8) -> Result<IpNet, NetworkError> {
    let mapped = match ip {
        IpAddr::V6(v6) => v6.to_ipv4_mapped(),
        IpAddr::V4(_) => None,
    };
    match mapped {
        None => IpNet::new(ip, prefix).map_err(|_| NetworkError::Syntax),
        Some(_) if prefix < MAPPED_PREFIX => Err(NetworkError::MappedTooWide),
        Some(v4) => Ipv4Net::new(v4, prefix - MAPPED_PREFIX).map(IpNet::V4).map_err(|_| NetworkError::Syntax),
    }
}

/// Prefix length of `::ffff:0:0/96`, which contains all IPv4-mapped addresses (RFC 4291 §2.5.5.2).
const MAPPED_PREFIX: u8 = 96;

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Result<String, NetworkError> {
        text.parse::<Network>().map(|network| network.to_string())
    }

    #[test]
    fn address_and_network_are_shown_as_written() {
        for text in ["10.1.2.3", "10.0.0.0/8", "10.1.2.3/32", "0.0.0.0/0", "::/0", "2001:db8::/32", "::1", "::1/128"] {
            assert_eq!(shown(text).as_deref(), Ok(text));
        }
        assert_eq!(shown("2001:DB8:0::/32").as_deref(), Ok("2001:db8::/32"));
    }

    #[test]
    fn mapped_network_is_stored_as_ipv4() {
        assert_eq!(shown("::ffff:10.1.2.3").as_deref(), Ok("10.1.2.3"));
        assert_eq!(shown("::ffff:10.0.0.0/104").as_deref(), Ok("10.0.0.0/8"));
        assert_eq!(shown("::ffff:0:0/96").as_deref(), Ok("0.0.0.0/0"));
        assert_eq!(shown("::ffff:0:0/90"), Err(NetworkError::MappedTooWide));
    }

    #[test]
    fn network_with_host_bits_is_rejected_and_the_network_suggested() {
        let error = shown("10.1.2.3/8").unwrap_err();
        assert!(error.to_string().contains("\"10.0.0.0/8\""), "{error}");
        let error = shown("2001:db8::1/32").unwrap_err();
        assert!(error.to_string().contains("\"2001:db8::/32\""), "{error}");
    }

    #[test]
    fn invalid_network_is_rejected_with_its_reason() {
        assert_eq!(shown("010.0.0.1"), Err(NetworkError::LeadingZero));
        assert_eq!(shown("10.0.0.01/32"), Err(NetworkError::LeadingZero));
        assert_eq!(shown("fe80::1%eth0"), Err(NetworkError::Zone));
        assert_eq!(shown("10.0.0.0/33"), Err(NetworkError::PrefixLength { longest: 32 }));
        assert_eq!(shown("10.0.0.0/+8"), Err(NetworkError::PrefixLength { longest: 32 }));
        assert_eq!(shown("10.0.0.0/08"), Err(NetworkError::PrefixLength { longest: 32 }));
        assert_eq!(shown("2001:db8::/129"), Err(NetworkError::PrefixLength { longest: 128 }));
        for text in ["", "10.0.0", "example.com", "10.0.0.0/8/8", " 10.0.0.1", "10.0.0.0-10.0.0.9"] {
            assert!(shown(text).is_err(), "{text:?}");
        }
    }
}
