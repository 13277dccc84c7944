//! DNS servers: dnsmasq, and one that sends invalid answers. Both are on port 53 of 127.0.0.1, in a separate
//! network for each test.

use std::net::{IpAddr, UdpSocket};
use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use nix::sched::{CloneFlags, unshare};

use super::TestDir;
use super::program::{Running, command, run, serve_on};

/// Runs a test in a separate network with only 127.0.0.0/8 and ::1, in which all ports are free. Only root may
/// make one and use it from a thread; others skip the test.
pub(crate) fn alone(test: impl FnOnce() + Send) {
    let alone = || {
        if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
            eprintln!("skipped: no network namespace may be made here: {error}");
            return;
        }
        run(command("ip").args(["link", "set", "lo", "up"])).success();
        test();
    };
    // The namespace is that of the thread, of the threads and programs it starts, and of their sockets.
    thread::scope(|scope| scope.spawn(alone).join().unwrap_or_else(|panic| resume_unwind(panic)));
}

/// A real server for the domain `test`, with the records in a file of the directory.
#[derive(Debug)]
pub(crate) struct Dnsmasq(Running);

const RECORDS: &str = "records";

impl Dnsmasq {
    /// Options are those of dnsmasq, such as `local-ttl=1`.
    pub(crate) fn start(site: &TestDir, options: &[&str], records: &[(&str, &[&str])]) -> Self {
        write(site, records);
        let server = serve_on(53, "started, version", |port| {
            let mut command = command("dnsmasq");
            command.args([
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--no-resolv",
                "--no-hosts",
                "--local=/test/",
            ]);
            command.args(["--user=root", "--group=root", "--pid-file=", "--log-facility=-", "--log-queries"]);
            command.args(["--listen-address=127.0.0.1", "--bind-interfaces", &format!("--port={port}")]);
            command.arg(format!("--addn-hosts={}", site.path(RECORDS).display()));
            command.args(options.iter().map(|option| format!("--{option}")));
            command
        });
        Self(server.expect("the port is free in a network of one's own"))
    }

    /// Uses these records from now on.
    pub(crate) fn have(&self, site: &TestDir, records: &[(&str, &[&str])]) {
        write(site, records);
        self.0.signal("HUP");
    }
}

fn write(site: &TestDir, records: &[(&str, &[&str])]) {
    let line = |(name, ips): &(&str, &[&str])| ips.iter().map(|ip| format!("{ip} {name}\n")).collect::<String>();
    site.write(RECORDS, records.iter().map(line).collect::<String>());
}

/// A server that gives every query the same kind of answer.
#[derive(Debug)]
pub(crate) struct FakeDnsServer {
    socket: Arc<UdpSocket>,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug)]
struct Shared {
    way: DnsAnswer,
    questions: usize,
    over: bool,
}

/// The kind of answer.
#[derive(Debug, Clone, Copy)]
pub(crate) enum DnsAnswer {
    /// These addresses, with this TTL in seconds.
    Good(&'static [&'static str], u32),
    /// No answer.
    Silent,
    /// A response code only (2 is SERVFAIL, 3 NXDOMAIN, 5 REFUSED).
    Code(u8),
    /// Truncated, so that the client would have to use TCP; but there is no TCP.
    Truncated,
    /// With an invalid record.
    Garbled,
    /// Addresses for IPv4, and SERVFAIL for IPv6.
    Half(&'static [&'static str], u32),
}

impl FakeDnsServer {
    pub(crate) fn start(way: DnsAnswer) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:53").expect("the port is free in a network of one's own");
        let (socket, shared) = (Arc::new(socket), Arc::new(Mutex::new(Shared { way, questions: 0, over: false })));
        let (serving, state) = (Arc::clone(&socket), Arc::clone(&shared));
        thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok((length, from)) = serving.recv_from(&mut buffer) {
                let way = {
                    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
                    if state.over {
                        return;
                    }
                    state.questions += 1;
                    state.way
                };
                if let Some(answer) = answer(&buffer[..length], way) {
                    let _ = serving.send_to(&answer, from);
                }
            }
        });
        Self { socket, shared }
    }

    /// Gives another kind of answer from now on.
    pub(crate) fn answer(&self, way: DnsAnswer) {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).way = way;
    }

    /// The number of queries so far.
    pub(crate) fn questions(&self) -> usize {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).questions
    }
}

impl Drop for FakeDnsServer {
    fn drop(&mut self) {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).over = true;
        // Wakes the serving thread, which then ends.
        let address = self.socket.local_addr().expect("it is bound");
        let _ = self.socket.send_to(b"", address);
    }
}

fn answer(question: &[u8], way: DnsAnswer) -> Option<Vec<u8>> {
    // The name begins behind the header, and its type and class follow it.
    let end = 12 + question[12..].iter().position(|byte| *byte == 0).expect("a name") + 5;
    let (kind, mut answer) = (question[end - 3], question[..end].to_vec());
    let mut set = |flags: [u8; 2], records: u8| {
        answer[2..12].copy_from_slice(&[flags[0], flags[1], 0, 1, 0, records, 0, 0, 0, 0])
    };
    match way {
        DnsAnswer::Silent => return None,
        DnsAnswer::Half(..) if kind == 28 => set([0x81, 0x82], 0),
        DnsAnswer::Code(code) => set([0x81, 0x80 | code], 0),
        DnsAnswer::Truncated => set([0x83, 0x80], 0),
        DnsAnswer::Garbled => {
            set([0x81, 0x80], 1);
            answer.extend([0xc0, 0xff, 0, kind, 0, 1]);
        }
        DnsAnswer::Good(ips, seconds) | DnsAnswer::Half(ips, seconds) => {
            let ips = ips.iter().map(|ip| ip.parse::<IpAddr>().expect("an address"));
            let of_kind: Vec<Vec<u8>> = ips
                .filter(|ip| ip.is_ipv4() == (kind == 1))
                .map(|ip| match ip {
                    IpAddr::V4(ip) => ip.octets().to_vec(),
                    IpAddr::V6(ip) => ip.octets().to_vec(),
                })
                .collect();
            set([0x81, 0x80], u8::try_from(of_kind.len()).expect("a few"));
            for data in of_kind {
                answer.extend([0xc0, 12, 0, kind, 0, 1]);
                answer.extend(seconds.to_be_bytes());
                answer.extend(u16::try_from(data.len()).expect("short").to_be_bytes());
                answer.extend(data);
            }
        }
    }
    Some(answer)
}
