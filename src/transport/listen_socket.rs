//! A listening TCP socket and its packet filter.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use socket2::{SockFilter, SockRef, Socket};
use tokio::sync::Notify;

use crate::source::packet_filter::PacketFilter;

/// A listening TCP socket whose packets from untrusted sources the kernel can drop.
#[derive(Debug)]
pub(crate) struct ListenSocket {
    listener: TcpListener,
    /// Whether a filter was ever attached. Clients in the backlog may have inherited it.
    was_filtered: AtomicBool,
    /// Accepted connections from untrusted sources.
    untrusted: AtomicU64,
    /// Whether `alarm` is notified of untrusted connections.
    watched: AtomicBool,
    alarm: Arc<Notify>,
}

impl ListenSocket {
    /// Listens on a bound socket. `filter` is attached before, so it applies to the first client. If the kernel rejects the
    /// filter, the socket listens without one; the shield tries again later and reports the error.
    ///
    /// # Errors
    /// The error of listen(2).
    pub(crate) fn listen(
        socket: Socket,
        backlog: i32,
        filter: Option<&PacketFilter>,
        alarm: &Arc<Notify>,
    ) -> io::Result<Self> {
        let was_filtered = filter.is_some_and(|filter| attach(&socket, filter).is_ok());
        socket.listen(backlog)?;
        Ok(Self {
            listener: socket.into(),
            was_filtered: was_filtered.into(),
            untrusted: AtomicU64::new(0),
            watched: AtomicBool::new(false),
            alarm: Arc::clone(alarm),
        })
    }

    /// Accepts a client from the backlog.
    ///
    /// # Errors
    /// The error of accept(2).
    pub(crate) fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, peer) = self.listener.accept()?;
        if self.was_filtered.load(Ordering::SeqCst) {
            // The accepted socket inherits the filter of that time, on which a session must not depend. Usually it has none,
            // and the call fails.
            let _ = SockRef::from(&stream).detach_filter();
        }
        Ok((stream, peer))
    }

    /// Attaches a filter, in place of the current one. It applies to every packet from now on.
    pub(crate) fn attach_filter(&self, filter: &PacketFilter) -> io::Result<()> {
        self.was_filtered.store(true, Ordering::SeqCst);
        let socket = SockRef::from(&self.listener);
        attach(&socket, filter).or_else(|_| {
            // Two filters at once may exceed net.core.optmem_max. No filter is better than an outdated one.
            self.detach_filter();
            attach(&socket, filter)
        })
    }

    /// Detaches the filter, if there is one.
    pub(crate) fn detach_filter(&self) {
        if self.was_filtered.load(Ordering::SeqCst) {
            let _ = SockRef::from(&self.listener).detach_filter();
        }
    }

    /// Sets whether the alarm is notified of untrusted connections.
    pub(crate) fn set_watched(&self, watched: bool) {
        self.watched.store(watched, Ordering::Relaxed);
    }

    /// Counts an accepted connection from an untrusted source.
    pub(crate) fn count_untrusted(&self) {
        self.untrusted.fetch_add(1, Ordering::Relaxed);
        if self.watched.load(Ordering::Relaxed) {
            self.alarm.notify_one();
        }
    }

    /// The number of accepted connections from untrusted sources.
    pub(crate) fn untrusted(&self) -> u64 {
        self.untrusted.load(Ordering::Relaxed)
    }

    pub(crate) fn socket(&self) -> &TcpListener {
        &self.listener
    }
}

impl AsRawFd for ListenSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.listener.as_raw_fd()
    }
}

fn attach(socket: &Socket, filter: &PacketFilter) -> io::Result<()> {
    let instruction = |it: &crate::source::packet_filter::Instruction| SockFilter::new(it.code, it.jt, it.jf, it.k);
    socket.attach_filter(&filter.instructions().iter().map(instruction).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::IpAddr;
    use std::time::Duration;

    use socket2::{Domain, Type};

    use super::*;

    fn filter(networks: &[&str]) -> PacketFilter {
        PacketFilter::accepting(networks.iter().map(|text| text.parse().unwrap())).unwrap()
    }

    fn port(listen: &str, networks: &[&str]) -> ListenSocket {
        let address: SocketAddr = listen.parse().unwrap();
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
        if address.is_ipv6() {
            socket.set_only_v6(false).unwrap();
        }
        socket.bind(&address.into()).unwrap();
        ListenSocket::listen(socket, 16, Some(&filter(networks)), &Arc::default()).unwrap()
    }

    fn dial(port: &ListenSocket, source: &str) -> io::Result<TcpStream> {
        let source: IpAddr = source.parse().unwrap();
        let target = SocketAddr::new(source, port.socket().local_addr().unwrap().port());
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
        socket.connect_timeout(&target.into(), Duration::from_millis(150))?;
        Ok(socket.into())
    }

    /// Dials from the address that is also the target: all of 127.0.0.0/8 is local.
    fn is_admitted(port: &ListenSocket, source: &str) -> bool {
        match dial(port, source) {
            Ok(_) => true,
            Err(error) if error.kind() == io::ErrorKind::TimedOut => false,
            Err(error) => panic!("{source}: {error}"),
        }
    }

    #[test]
    fn dual_stack_socket_filters_ipv4_and_ipv6() {
        let port = port("[::]:0", &["127.0.0.5/32", "::1/128"]);
        assert!(is_admitted(&port, "127.0.0.5") && is_admitted(&port, "::1"));
        assert!(!is_admitted(&port, "127.0.0.4") && !is_admitted(&port, "127.0.0.1"));
        port.attach_filter(&filter(&["127.0.0.4/32"])).unwrap();
        assert!(is_admitted(&port, "127.0.0.4"));
        assert!(!is_admitted(&port, "127.0.0.5") && !is_admitted(&port, "::1"));
        port.detach_filter();
        assert!(is_admitted(&port, "127.0.0.5") && is_admitted(&port, "::1"));
    }

    #[test]
    fn accepted_socket_has_no_filter() {
        let port = port("127.0.0.1:0", &["127.0.0.0/8"]);
        let mut client = dial(&port, "127.0.0.1").unwrap();
        let (mut accepted, _) = port.accept().unwrap();
        let error = SockRef::from(&accepted).detach_filter().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
        port.attach_filter(&filter(&[])).unwrap();
        let mut received = [0; 5];
        client.write_all(b"still").unwrap();
        accepted.read_exact(&mut received).unwrap();
        assert_eq!(&received, b"still");
    }

    #[test]
    fn trusted_source_is_admitted_even_if_the_kernel_rejects_the_longest_program() {
        let port = port("127.0.0.1:0", &["127.0.0.0/8"]);
        let many: Vec<_> =
            (0..2_000_u32).map(|number| format!("10.0.{}.{}/32", number / 125, number % 125 * 2)).collect();
        let many: Vec<_> = many.iter().map(String::as_str).chain(["127.0.0.1/32"]).collect();
        for _ in 0..20 {
            // The result depends on net.core.optmem_max; a trusted source is admitted in any case.
            let _ = port.attach_filter(&filter(&many));
            let mut client = dial(&port, "127.0.0.1").unwrap();
            client.write_all(b"x").unwrap();
            port.accept().unwrap().0.read_exact(&mut [0]).unwrap();
        }
    }
}
