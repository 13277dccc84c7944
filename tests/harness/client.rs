//! Clients: sockets from a chosen source address, and TLS on them.

use std::borrow::Borrow;
use std::cell::OnceCell;
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{AlertDescription, ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion};
use socket2::{Domain, SockRef, Socket, Type};

use super::{Authority, Leaf, WAIT_TIMEOUT, program, wire};

/// Settings of a client of a listener. Connections made with one `Client` share their TLS sessions, so the second may resume.
pub(crate) struct Client {
    address: SocketAddr,
    source: Option<IpAddr>,
    name: String,
    roots: RootCertStore,
    identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    versions: Vec<&'static SupportedProtocolVersion>,
    alpn: Vec<Vec<u8>>,
    records: Option<usize>,
    ssl_request: bool,
    config: OnceCell<Arc<ClientConfig>>,
}

impl Client {
    pub(crate) fn new(address: SocketAddr, ca: &Authority) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(ca.der().clone()).expect("a test's authority is sound");
        Self {
            address,
            source: None,
            name: "localhost".to_owned(),
            roots,
            identity: None,
            versions: rustls::ALL_VERSIONS.to_vec(),
            alpn: vec![],
            records: None,
            ssl_request: false,
            config: OnceCell::new(),
        }
    }

    /// Comes from this address of the machine (127.0.0.0/8 has many).
    pub(crate) fn from(self, source: &str) -> Self {
        Self { source: Some(source.parse().expect("an address")), ..self }
    }

    pub(crate) fn at(self, address: SocketAddr) -> Self {
        Self { address, ..self }
    }

    /// Connects to another address from now on, with the same TLS sessions.
    pub(crate) fn go_to(&mut self, address: SocketAddr) {
        self.address = address;
    }

    /// Asks for a server of this name.
    pub(crate) fn named(self, name: &str) -> Self {
        Self { name: name.to_owned(), ..self }
    }

    /// Presents a certificate.
    pub(crate) fn showing(self, identity: impl Borrow<Leaf>) -> Self {
        let leaf = identity.borrow();
        Self { identity: Some((leaf.path(), leaf.key_der())), ..self }
    }

    pub(crate) fn speaking(self, version: &'static SupportedProtocolVersion) -> Self {
        Self { versions: vec![version], ..self }
    }

    pub(crate) fn alpn(self, protocols: &[&str]) -> Self {
        Self { alpn: protocols.iter().map(|name| name.as_bytes().to_vec()).collect(), ..self }
    }

    /// Sends records of this size at most, header included; rustls takes no less than 32.
    pub(crate) fn in_records_of(self, size: usize) -> Self {
        Self { records: Some(size), ..self }
    }

    /// Sends an SSLRequest first, as PostgreSQL's clients do.
    pub(crate) fn with_ssl_request(self) -> Self {
        Self { ssl_request: true, ..self }
    }

    /// A bare TCP connection.
    pub(crate) fn dial(&self) -> TcpStream {
        self.try_dial().expect("the listener takes the connection")
    }

    pub(crate) fn try_dial(&self) -> io::Result<TcpStream> {
        let stream = dial_from(self.source, self.address, None)?;
        stream.set_read_timeout(Some(WAIT_TIMEOUT))?;
        stream.set_write_timeout(Some(WAIT_TIMEOUT))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// A TLS connection, with the handshake done on this side.
    pub(crate) fn connect(&self) -> Connection {
        self.try_connect().expect("the handshake succeeds")
    }

    pub(crate) fn try_connect(&self) -> io::Result<Connection> {
        self.secure(self.try_dial()?)
    }

    /// TLS on a connection that is already there.
    pub(crate) fn secure(&self, mut stream: TcpStream) -> io::Result<Connection> {
        let port = port(&stream);
        if self.ssl_request {
            stream.write_all(&wire::SSL_REQUEST)?;
            assert_eq!(wire::read_exactly(&mut stream, 1), b"S");
        }
        let mut tls = self.tls();
        while tls.is_handshaking() {
            tls.complete_io(&mut stream)?;
        }
        Ok(Connection { stream: StreamOwned::new(tls, stream), port })
    }

    /// Connects and reads what an echoing upstream sends back. Returns the source port, and the error. A TLS 1.3 client
    /// learns that its certificate is rejected only when it reads.
    pub(crate) fn attempt(&self) -> (u16, io::Result<Connection>) {
        let stream = self.dial();
        let port = port(&stream);
        let connection = self.secure(stream).and_then(|mut connection| {
            let mut echo = [0; 4];
            connection.stream.write_all(b"PING")?;
            connection.stream.read_exact(&mut echo)?;
            if &echo == b"PING" { Ok(connection) } else { Err(io::Error::other("no echo")) }
        });
        (port, connection)
    }

    /// The TLS versions, as text.
    pub(crate) fn versions(&self) -> String {
        format!("{:?}", self.versions)
    }

    /// The client side of TLS, without a socket.
    pub(crate) fn tls(&self) -> ClientConnection {
        let name = ServerName::try_from(self.name.clone()).expect("a server name");
        ClientConnection::new(Arc::clone(self.config()), name).expect("a client can be made")
    }

    pub(crate) fn config(&self) -> &Arc<ClientConfig> {
        self.config.get_or_init(|| {
            let config =
                ClientConfig::builder_with_protocol_versions(&self.versions).with_root_certificates(self.roots.clone());
            let mut config = match &self.identity {
                None => config.with_no_client_auth(),
                Some((path, key)) => {
                    config.with_client_auth_cert(path.clone(), key.clone_key()).expect("a test's certificate is usable")
                }
            };
            config.alpn_protocols.clone_from(&self.alpn);
            config.max_fragment_size = self.records;
            Arc::new(config)
        })
    }
}

/// One TLS connection.
pub(crate) struct Connection {
    pub(crate) stream: StreamOwned<ClientConnection, TcpStream>,
    port: u16,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "connection from port {}", self.port)
    }
}

impl Connection {
    /// The source port, which identifies the audit events.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn tls(&self) -> &ClientConnection {
        &self.stream.conn
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("it can be sent");
    }

    pub(crate) fn receive(&mut self, count: usize) -> Vec<u8> {
        wire::read_exactly(&mut self.stream, count)
    }

    /// Sends, and checks the answer.
    pub(crate) fn ask(&mut self, question: &[u8], answer: &[u8]) {
        self.send(question);
        let received = self.receive(answer.len());
        assert_eq!(received.escape_ascii().to_string(), answer.escape_ascii().to_string());
    }

    /// Everything up to a close_notify; an end without one is an error.
    pub(crate) fn rest(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.stream.read_to_end(&mut bytes).map(|_| bytes)
    }

    /// Up to this mark, or the end if that comes before.
    pub(crate) fn rest_until(&mut self, mark: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        while !bytes.ends_with(mark) {
            let mut byte = [0];
            if self.stream.read(&mut byte).expect("it ends well") == 0 {
                break;
            }
            bytes.extend(byte);
        }
        bytes
    }

    /// Sends close_notify, and continues to receive.
    pub(crate) fn finish_sending(&mut self) {
        self.stream.conn.send_close_notify();
        while self.stream.conn.wants_write() {
            self.stream.conn.write_tls(&mut self.stream.sock).expect("it can be sent");
        }
    }

    /// Ends TCP's sending direction without a close_notify.
    pub(crate) fn hang_up(&mut self) {
        self.stream.sock.shutdown(Shutdown::Write).expect("it was open");
    }

    /// Ends with an RST.
    pub(crate) fn reset(self) {
        reset(self.stream.sock);
    }
}

/// The alert by which the server ended a connection.
pub(crate) fn alert(error: &io::Error) -> Option<AlertDescription> {
    if let rustls::Error::AlertReceived(alert) = error.get_ref()?.downcast_ref()? {
        return Some(*alert);
    }
    None
}

/// A TCP connection from a port that this process has not used before. Tests find audit events by their source port, and
/// the kernel gives a port to two connections from different addresses, or in quick succession.
#[allow(clippy::disallowed_methods, reason = "the target's family decides, folded or not")]
pub(crate) fn dial_from(
    source: Option<IpAddr>,
    target: SocketAddr,
    timeout: Option<Duration>,
) -> io::Result<TcpStream> {
    let any = match target.ip() {
        IpAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
    };
    loop {
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
        // The port may have belonged to a connection that is in TIME_WAIT, from another run.
        socket.set_reuse_address(true)?;
        let source = SocketAddr::new(source.unwrap_or(any), program::next_client_port());
        let connected = socket.bind(&source.into()).and_then(|()| match timeout {
            Some(timeout) => socket.connect_timeout(&target.into(), timeout),
            None => socket.connect(&target.into()),
        });
        match connected {
            Ok(()) => return Ok(TcpStream::from(socket)),
            // A server or another run has this port.
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) && is_local(source) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Whether this machine has the address, so that only its port can be what is not available.
#[allow(clippy::disallowed_methods, reason = "an address of this machine is no client's")]
fn is_local(address: SocketAddr) -> bool {
    UdpSocket::bind((address.ip(), 0)).is_ok()
}

/// The source port of a connection, which identifies its audit events.
pub(crate) fn port(stream: &TcpStream) -> u16 {
    stream.local_addr().expect("it is connected").port()
}

/// Ends a TCP connection with an RST.
pub(crate) fn reset(stream: TcpStream) {
    let linger = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    linger.expect("a socket takes a linger time");
}
