//! Addresses of clients, listeners and upstreams.
//!
//! A [`ClientAddr`] is always canonical, because a dual-stack socket reports an IPv4 client as `::ffff:a.b.c.d`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

/// The address of a client: an IP address and port, or none for a client of a Unix socket. An IPv4-mapped IPv6 address is
/// stored as the IPv4 address (RFC 4291 §2.5.5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientAddr {
    /// `None` for a Unix socket.
    ip: Option<IpAddr>,
    port: u16,
}

impl ClientAddr {
    /// A client of a Unix socket.
    pub const UNIX: Self = Self { ip: None, port: 0 };

    /// Converts the address that the kernel reports for an accepted socket, or that a load balancer announces.
    pub fn new(peer: SocketAddr) -> Self {
        let (ip, port) = canonical(peer);
        Self { ip: Some(ip), port }
    }

    /// A client known only by its IP address, as in `portcullis explain`.
    pub fn from_ip(ip: IpAddr) -> Self {
        Self { ip: Some(ip.to_canonical()), port: 0 }
    }

    /// The canonical IP address; `None` for a client of a Unix socket.
    pub fn ip(self) -> Option<IpAddr> {
        self.ip
    }

    /// The source port; `None` for a client of a Unix socket.
    pub fn port(self) -> Option<u16> {
        self.ip.map(|_| self.port)
    }

    /// Address and port; `None` for a client of a Unix socket.
    pub fn socket(self) -> Option<SocketAddr> {
        self.ip.map(|ip| SocketAddr::new(ip, self.port))
    }

    /// The `source` of audit events: the IP address, or `unix`.
    pub fn source(self) -> String {
        self.ip.map_or_else(|| "unix".to_owned(), |ip| ip.to_string())
    }

    /// The key for limits by source; `None` for a client of a Unix socket.
    pub fn source_key(self) -> Option<SourceKey> {
        self.ip.map(|ip| match ip {
            IpAddr::V4(ip) => SourceKey::V4(ip),
            IpAddr::V6(ip) => {
                let [a, b, c, d, ..] = ip.segments();
                SourceKey::V6([a, b, c, d])
            }
        })
    }
}

/// The client of a connection, and the load balancer that announced it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientOrigin {
    pub client: ClientAddr,
    /// The load balancer that the connection comes from, if any.
    pub via: Option<ClientAddr>,
}

impl ClientOrigin {
    /// The load balancer, if it announced a client other than itself.
    pub fn proxy(self) -> Option<ClientAddr> {
        self.via.filter(|via| *via != self.client)
    }
}

/// A client that connects without a load balancer.
impl From<ClientAddr> for ClientOrigin {
    fn from(client: ClientAddr) -> Self {
        Self { client, via: None }
    }
}

/// The canonical IP address and the port of a socket's address.
#[allow(clippy::disallowed_methods, reason = "the one place where an address is taken from a socket's")]
pub(crate) fn canonical(socket: SocketAddr) -> (IpAddr, u16) {
    (socket.ip().to_canonical(), socket.port())
}

impl fmt::Display for ClientAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.socket() {
            Some(socket) => socket.fmt(f),
            None => f.write_str("unix"),
        }
    }
}

/// A source for limits: an IPv4 address, or the /64 of an IPv6 address, because one host can use any address of its /64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceKey {
    V4(Ipv4Addr),
    /// The first four groups of an address.
    V6([u16; 4]),
}

/// The address, or the network.
impl fmt::Display for SourceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4(ip) => ip.fmt(f),
            Self::V6([a, b, c, d]) => write!(f, "{}/64", Ipv6Addr::new(*a, *b, *c, *d, 0, 0, 0, 0)),
        }
    }
}

/// An address that a listener is bound to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ListenAddr {
    Tcp(TcpListenAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl ListenAddr {
    /// Whether two addresses could claim the same port of the same interface, or the same file.
    pub fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Tcp(one), Self::Tcp(other)) => one.overlaps(other),
            (Self::Unix(one), Self::Unix(other)) => one == other,
            (Self::Tcp(_), Self::Unix(_)) | (Self::Unix(_), Self::Tcp(_)) => false,
        }
    }

    /// Whether only programs of this machine can connect to it.
    #[allow(clippy::disallowed_methods, reason = "a listening address is not a client's")]
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => address.socket.ip().to_canonical().is_loopback(),
            Self::Unix(_) => true,
        }
    }

    /// Whether the kernel chooses the port.
    pub fn is_ephemeral(&self) -> bool {
        matches!(self, Self::Tcp(address) if address.socket.port() == 0)
    }
}

/// The form in the configuration.
impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A TCP address that a listener is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TcpListenAddr {
    /// With port 0 the kernel chooses the port.
    pub socket: SocketAddr,
    /// Whether an IPv6 wildcard excludes IPv4. Ignored for an IPv4 address.
    pub ipv6_only: bool,
}

impl TcpListenAddr {
    /// Whether two addresses that differ could still claim the same port of the same interface.
    fn overlaps(&self, other: &Self) -> bool {
        self.socket.port() == other.socket.port()
            && self.socket.port() != 0
            && (self.covers(other) || other.covers(self))
    }

    #[allow(clippy::disallowed_methods, reason = "a listening address is not a client's")]
    fn covers(&self, other: &Self) -> bool {
        let (mine, theirs) = (self.socket.ip(), other.socket.ip());
        match (mine, theirs) {
            (IpAddr::V4(_), IpAddr::V4(_)) => mine.is_unspecified() || mine == theirs,
            (IpAddr::V6(_), IpAddr::V6(_)) => mine.is_unspecified() || mine == theirs,
            (IpAddr::V6(_), IpAddr::V4(_)) => mine.is_unspecified() && !self.ipv6_only,
            (IpAddr::V4(_), IpAddr::V6(_)) => false,
        }
    }
}

impl fmt::Display for TcpListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.socket.fmt(f)
    }
}

/// The configured address of an upstream.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum UpstreamAddr {
    /// `host:port`. A name is resolved for every connection.
    Tcp {
        /// A host name or an IP address without brackets.
        host: String,
        port: u16,
    },
    /// `unix:/path`.
    Unix(PathBuf),
}

impl UpstreamAddr {
    /// Whether a connection to this address would reach `listen` on the same machine, as far as the addresses show it.
    pub fn reaches(&self, listen: &ListenAddr) -> bool {
        match (self, listen) {
            (Self::Tcp { host, port }, ListenAddr::Tcp(listen)) => reaches_port(host, *port, listen),
            (Self::Unix(path), ListenAddr::Unix(listen)) => path == listen,
            (Self::Tcp { .. }, ListenAddr::Unix(_)) | (Self::Unix(_), ListenAddr::Tcp(_)) => false,
        }
    }

    /// The host; `None` for a Unix socket.
    pub fn host(&self) -> Option<&str> {
        match self {
            Self::Tcp { host, .. } => Some(host),
            Self::Unix(_) => None,
        }
    }
}

fn reaches_port(host: &str, port: u16, listen: &TcpListenAddr) -> bool {
    let ip = if host == "localhost" { Ok(IpAddr::V4(Ipv4Addr::LOCALHOST)) } else { host.parse::<IpAddr>() };
    ip.is_ok_and(|ip| {
        let target = TcpListenAddr { socket: SocketAddr::new(ip, port), ipv6_only: true };
        target.socket == listen.socket || (ip.is_loopback() && target.overlaps(listen))
    })
}

impl fmt::Display for UpstreamAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv4_mapped_client_equals_the_ipv4_client() {
        let mapped = ClientAddr::new("[::ffff:10.1.2.3]:5".parse().unwrap());
        assert_eq!(mapped, ClientAddr::new("10.1.2.3:5".parse().unwrap()));
        assert_eq!(mapped.to_string(), "10.1.2.3:5");
    }

    #[test]
    fn wildcard_overlaps_exactly_the_addresses_it_covers() {
        let at = |text: &str, ipv6_only| ListenAddr::Tcp(TcpListenAddr { socket: text.parse().unwrap(), ipv6_only });
        assert!(at("0.0.0.0:1", false).overlaps(&at("127.0.0.1:1", false)));
        assert!(at("127.0.0.1:1", false).overlaps(&at("[::]:1", false)));
        assert!(!at("127.0.0.1:1", false).overlaps(&at("[::]:1", true)));
        assert!(!at("127.0.0.1:1", false).overlaps(&at("127.0.0.2:1", false)));
        assert!(!at("0.0.0.0:0", false).overlaps(&at("127.0.0.1:0", false)));
        assert!(!at("0.0.0.0:1", false).overlaps(&at("127.0.0.1:2", false)));
    }

    #[test]
    fn upstream_that_is_the_listener_itself_is_detected() {
        let upstream = |host: &str, port| UpstreamAddr::Tcp { host: host.into(), port };
        let listen = |text: &str| ListenAddr::Tcp(TcpListenAddr { socket: text.parse().unwrap(), ipv6_only: false });
        assert!(upstream("127.0.0.1", 6380).reaches(&listen("127.0.0.1:6380")));
        assert!(upstream("localhost", 6380).reaches(&listen("0.0.0.0:6380")));
        assert!(upstream("::1", 6380).reaches(&listen("[::]:6380")));
        assert!(upstream("10.1.2.3", 6380).reaches(&listen("10.1.2.3:6380")));
        assert!(!upstream("127.0.0.1", 6379).reaches(&listen("127.0.0.1:6380")));
        assert!(!upstream("10.9.9.9", 6380).reaches(&listen("0.0.0.0:6380")));
        assert!(!upstream("db.internal", 6380).reaches(&listen("0.0.0.0:6380")));
    }

    #[test]
    fn ipv6_upstream_is_shown_in_brackets() {
        assert_eq!(UpstreamAddr::Tcp { host: "::1".into(), port: 6379 }.to_string(), "[::1]:6379");
        assert_eq!(UpstreamAddr::Tcp { host: "db".into(), port: 5432 }.to_string(), "db:5432");
        assert_eq!(UpstreamAddr::Unix("/run/redis.sock".into()).to_string(), "unix:/run/redis.sock");
    }

    #[test]
    fn only_loopback_and_unix_sockets_are_local() {
        let tcp = |text: &str| ListenAddr::Tcp(TcpListenAddr { socket: text.parse().unwrap(), ipv6_only: false });
        for text in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert!(tcp(text).is_local(), "{text}");
        }
        for text in ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "[2001:db8::1]:1"] {
            assert!(!tcp(text).is_local(), "{text}");
        }
        assert!(ListenAddr::Unix("/run/x.sock".into()).is_local());
    }

    #[test]
    fn ipv6_64_is_one_source_and_each_ipv4_address_is_another() {
        let key = |text: &str| ClientAddr::from_ip(text.parse().unwrap()).source_key().unwrap();
        assert_eq!(key("2001:db8:1:2::1"), key("2001:db8:1:2:ffff:ffff:ffff:ffff"));
        assert_ne!(key("2001:db8:1:2::1"), key("2001:db8:1:3::1"));
        assert_ne!(key("10.0.0.1"), key("10.0.0.2"));
        assert_eq!(key("10.0.0.1"), key("::ffff:10.0.0.1"));
        assert_ne!(key("0.0.0.1"), key("::1"));
        assert_eq!(key("2001:db8:1:2:3::").to_string(), "2001:db8:1:2::/64");
        assert_eq!(key("::ffff:10.0.0.1").to_string(), "10.0.0.1");
        assert_eq!(ClientAddr::UNIX.source_key(), None);
    }

    #[test]
    fn client_of_a_unix_socket_has_no_address() {
        assert_eq!(ClientAddr::UNIX.ip(), None);
        assert_eq!(ClientAddr::UNIX.port(), None);
        assert_eq!(ClientAddr::UNIX.source(), "unix");
        assert_eq!(ClientAddr::UNIX.to_string(), "unix");
    }
}
