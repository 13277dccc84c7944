//! A port that is listened on, and the packet filter before it.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use socket2::{SockFilter, SockRef, Socket};
use tokio::sync::Notify;

use crate::source::packet_filter::PacketFilter;

/// A listening TCP socket that the kernel can be told to keep strangers from.
#[derive(Debug)]
pub(crate) struct ListenSocket {
    listener: TcpListener,
    /// Whether there ever was a filter. Clients that wait to be accepted may have come while there was.
    was_filtered: AtomicBool,
    /// Strangers that came through.
    untrusted: AtomicU64,
    /// Whether somebody wants to hear of them.
    watched: AtomicBool,
    alarm: Arc<Notify>,
}

impl ListenSocket {
    /// Begins to listen on a bound socket, behind `filter` from the first client on. Where the kernel refuses the filter it is
    /// left out: whoever looks after the shields will try again, and say so.
    ///
    /// # Errors
    /// The kernel's.
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

    /// Takes a client that waits.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, from) = self.listener.accept()?;
        if self.was_filtered.load(Ordering::SeqCst) {
            // It has a filter of its own, the one that was there when it came: a session must not depend on that. Most
            // often it fails because there is none.
            let _ = SockRef::from(&stream).detach_filter();
        }
        Ok((stream, from))
    }

    /// Puts a filter before the port, in place of one that is there. It counts for every packet from now on.
    pub(crate) fn fit(&self, filter: &PacketFilter) -> io::Result<()> {
        self.was_filtered.store(true, Ordering::SeqCst);
        let socket = SockRef::from(&self.listener);
        attach(&socket, filter).or_else(|_| {
            // Room for two may be more than net.core.optmem_max allows; and better none than one that is out of date.
            self.open();
            attach(&socket, filter)
        })
    }

    /// Takes the filter away. Where there is none, nothing happens.
    pub(crate) fn open(&self) {
        if self.was_filtered.load(Ordering::SeqCst) {
            let _ = SockRef::from(&self.listener).detach_filter();
        }
    }

    /// Rings the alarm, from now on or no longer, when a stranger comes through.
    pub(crate) fn watch(&self, watched: bool) {
        self.watched.store(watched, Ordering::Relaxed);
    }

    /// Notes that a client was a stranger.
    pub(crate) fn count_untrusted(&self) {
        self.untrusted.fetch_add(1, Ordering::Relaxed);
        if self.watched.load(Ordering::Relaxed) {
            self.alarm.notify_one();
        }
    }

    /// How many strangers have come through.
    pub(crate) fn untrusted(&self) -> u64 {
        self.untrusted.load(Ordering::Relaxed)
    }

    /// The socket itself.
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

    /// Who dials comes from where it dials to: 127.0.0.0/8 is all on this machine.
    fn is_let_in(port: &ListenSocket, source: &str) -> bool {
        match dial(port, source) {
            Ok(_) => true,
            Err(error) if error.kind() == io::ErrorKind::TimedOut => false,
            Err(error) => panic!("{source}: {error}"),
        }
    }

    #[test]
    fn a_port_of_both_families_knows_both() {
        let port = port("[::]:0", &["127.0.0.5/32", "::1/128"]);
        assert!(is_let_in(&port, "127.0.0.5") && is_let_in(&port, "::1"));
        assert!(!is_let_in(&port, "127.0.0.4") && !is_let_in(&port, "127.0.0.1"));
        port.fit(&filter(&["127.0.0.4/32"])).unwrap();
        assert!(is_let_in(&port, "127.0.0.4"));
        assert!(!is_let_in(&port, "127.0.0.5") && !is_let_in(&port, "::1"));
        port.open();
        assert!(is_let_in(&port, "127.0.0.5") && is_let_in(&port, "::1"));
    }

    #[test]
    fn what_is_accepted_has_no_filter_any_more() {
        let port = port("127.0.0.1:0", &["127.0.0.0/8"]);
        let mut client = dial(&port, "127.0.0.1").unwrap();
        let (mut accepted, _) = port.accept().unwrap();
        let error = SockRef::from(&accepted).detach_filter().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
        port.fit(&filter(&[])).unwrap();
        let mut heard = [0; 5];
        client.write_all(b"still").unwrap();
        accepted.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"still");
    }

    #[test]
    fn the_longest_program_is_taken_or_refused_in_words_and_replaced_again_and_again() {
        let port = port("127.0.0.1:0", &["127.0.0.0/8"]);
        let many: Vec<_> =
            (0..2_000_u32).map(|number| format!("10.0.{}.{}/32", number / 125, number % 125 * 2)).collect();
        let many: Vec<_> = many.iter().map(String::as_str).chain(["127.0.0.1/32"]).collect();
        for _ in 0..20 {
            // However it ends, who is trusted comes in.
            let _ = port.fit(&filter(&many));
            let mut client = dial(&port, "127.0.0.1").unwrap();
            client.write_all(b"x").unwrap();
            port.accept().unwrap().0.read_exact(&mut [0]).unwrap();
        }
    }
}
