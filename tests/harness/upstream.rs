//! Upstreams whose behaviour a test chooses.

use std::fmt::{self, Display, Formatter};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::{Leaf, WAIT_TIMEOUT, eventually};

/// A connection inside TLS.
pub(crate) type Secured = StreamOwned<ServerConnection, TcpStream>;

/// TLS that presents this certificate and requests none.
pub(crate) fn showing(own: &Leaf) -> ServerConfig {
    let config = ServerConfig::builder().with_no_client_auth();
    config.with_single_cert(own.path(), own.key_der()).expect("a test's certificate is usable")
}

/// A TCP server on a free port of 127.0.0.1, with a thread for each connection.
#[derive(Debug)]
pub(crate) struct Upstream {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    connections: AtomicUsize,
    ended: AtomicUsize,
    received: Mutex<Vec<u8>>,
    over: AtomicBool,
}

impl Upstream {
    /// Serves every connection with `serve`.
    pub(crate) fn new(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        Self::sharing(move |stream, _| serve(stream))
    }

    /// Sends everything back, and ends when the client does.
    pub(crate) fn echo() -> Self {
        Self::new(|mut stream| {
            let mut back = stream.try_clone().expect("a socket can be cloned");
            // The client may close at any time.
            let _ = std::io::copy(&mut stream, &mut back);
        })
    }

    /// Reads everything, sends nothing, and keeps the received bytes.
    pub(crate) fn silent() -> Self {
        Self::sharing(|mut stream, shared| {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = stream.read(&mut buffer) {
                let mut received = shared.received.lock().unwrap_or_else(PoisonError::into_inner);
                received.extend(&buffer[..count]);
            }
        })
    }

    /// Reads one PostgreSQL startup packet, remembers it, and closes, as a server does after a CancelRequest.
    pub(crate) fn brief() -> Self {
        Self::sharing(|mut stream, shared| {
            let mut length = [0; 4];
            if stream.read_exact(&mut length).is_err() {
                return;
            }
            let mut packet = length.to_vec();
            let rest = u64::from(u32::from_be_bytes(length)).saturating_sub(4);
            // Borrowed: the client sees the end only after the packet is remembered.
            let _ = (&stream).take(rest).read_to_end(&mut packet);
            shared.received.lock().unwrap_or_else(PoisonError::into_inner).extend(packet);
        })
    }

    /// Sends these bytes at once, and then reads everything.
    pub(crate) fn sending(piece: &'static [u8]) -> Self {
        Self::new(move |mut stream| {
            let _ = stream.write_all(piece);
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        })
    }

    /// Sends these bytes, ends its sending direction, and then reads everything.
    pub(crate) fn sending_and_closing(piece: &'static [u8]) -> Self {
        Self::new(move |mut stream| {
            let _ = stream.write_all(piece);
            let _ = stream.shutdown(Shutdown::Write);
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        })
    }

    /// Serves every connection with `serve`, in TLS.
    pub(crate) fn tls(config: ServerConfig, serve: impl Fn(Secured) + Send + Sync + 'static) -> Self {
        let config = Arc::new(config);
        Self::new(move |mut stream| {
            let mut tls = ServerConnection::new(Arc::clone(&config)).expect("a server can be made");
            while tls.is_handshaking() {
                // The test checks at the other end why the handshake failed.
                if tls.complete_io(&mut stream).is_err() {
                    return;
                }
            }
            serve(StreamOwned::new(tls, stream));
        })
    }

    fn sharing(serve: impl Fn(TcpStream, &Shared) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared::default());
        let serve = Arc::new(serve);
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if accepting.over.load(Ordering::SeqCst) {
                    return;
                }
                accepting.connections.fetch_add(1, Ordering::SeqCst);
                let (serve, shared) = (Arc::clone(&serve), Arc::clone(&accepting));
                thread::spawn(move || {
                    serve(stream, &shared);
                    shared.ended.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        Self { address, shared }
    }

    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// No client has connected yet: a connection made now is the first one that is accepted.
    pub(crate) fn assert_untouched(&self) {
        let _mine = TcpStream::connect(self.address).expect("the upstream is up");
        eventually("the upstream takes a connection", || (self.connections() > 0).then_some(()));
        assert_eq!(self.connections(), 1, "a client reached the upstream");
        assert!(self.received().is_empty(), "the upstream received bytes");
    }

    /// All clients have closed without sending a byte. For an upstream that keeps the received bytes.
    pub(crate) fn assert_received_nothing(&self) {
        // Accepted after all earlier connections.
        drop(TcpStream::connect(self.address).expect("the upstream is up"));
        let ended = || self.shared.ended.load(Ordering::SeqCst);
        eventually("all clients have closed", || (ended() > 0 && ended() == self.connections()).then_some(()));
        assert_eq!(self.received().escape_ascii().to_string(), "", "the upstream received bytes");
    }

    /// The bytes received so far, from all connections together.
    pub(crate) fn received(&self) -> Vec<u8> {
        self.shared.received.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for this many bytes.
    pub(crate) fn receives(&self, count: usize) -> Vec<u8> {
        eventually("the upstream receives the bytes", || {
            Some(self.received()).filter(|received| received.len() >= count)
        })
    }
}

impl Display for Upstream {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        // Wakes the accepting thread, which then ends.
        let _ = TcpStream::connect_timeout(&self.address, WAIT_TIMEOUT);
    }
}
