//! Determines the time to live of a name's addresses by querying the name servers, because the system's resolver does not
//! report it.
//!
//! No address is taken from these answers. A server, or an attacker who forges its answers, can only change how often a name
//! is looked up.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::rand;

use crate::dns::resolv_conf::ResolvConf;
use crate::dns::wire::{Family, MAX_ANSWER, Query, Reply};
use crate::source::host::HostName;

/// Queries times to live, and backs off from servers that do not answer.
#[derive(Debug, Default)]
pub(crate) struct TtlProbe(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The settings of the last query. Failures of former servers do not count for new ones.
    settings: Option<ResolvConf>,
    memory: Memory,
}

/// Former results and the backoff.
#[derive(Debug, Default)]
struct Memory {
    names: BTreeMap<HostName, NameHistory>,
    /// Consecutive queries, for any name, without an answer of any server.
    silences: u32,
    /// The end of the backoff for all names.
    silent_until: Option<Instant>,
}

/// The former results of one name.
#[derive(Debug)]
struct NameHistory {
    /// The last time to live.
    last: Option<Duration>,
    /// Consecutive queries without a time to live.
    misses: u32,
    /// The end of the backoff.
    until: Instant,
}

/// The result of querying a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TtlAnswer {
    /// The time to live.
    Ttl(Duration),
    /// An answer without a time to live: the name does not exist, or the server reports an error.
    Nothing,
    /// No server has answered.
    Silence,
}

impl TtlProbe {
    /// The minimum time to live of the next answer of the system's resolver, if it can be determined. Blocks for three seconds at
    /// most.
    ///
    /// Call it before the lookup: a cache answers a later query with the same records or with newer ones.
    pub(crate) fn of(&self, name: &HostName) -> Option<Duration> {
        let settings = ResolvConf::parse(&read_resolv_conf());
        {
            let mut state = self.state();
            if state.settings.as_ref() != Some(&settings) {
                *state = State { settings: Some(settings.clone()), memory: Memory::default() };
            }
            if !state.memory.may_ask(name, Instant::now()) {
                return None;
            }
        }
        let answer = ask(&settings, name);
        self.state().memory.note(name, answer, Instant::now())
    }

    /// Ends the backoff of a name that can be resolved again, because its server may answer now.
    pub(crate) fn retry_at_once(&self, name: &HostName) {
        let memory = &mut self.state().memory;
        memory.names.remove(name);
        memory.silent_until = None;
    }

    /// Forgets all other names.
    pub(crate) fn keep_only(&self, names: &BTreeSet<&HostName>) {
        self.state().memory.names.retain(|name, _| names.contains(name));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory {
    fn may_ask(&self, name: &HostName, now: Instant) -> bool {
        let over = |until: Instant| until <= now;
        self.silent_until.is_none_or(over) && self.names.get(name).is_none_or(|history| over(history.until))
    }

    /// Returns the time to live to use. A datagram may be lost, so the former time to live is used once more.
    fn note(&mut self, name: &HostName, answer: TtlAnswer, now: Instant) -> Option<Duration> {
        match answer {
            TtlAnswer::Ttl(_) | TtlAnswer::Nothing => (self.silences, self.silent_until) = (0, None),
            // Queries at the same time count as one.
            TtlAnswer::Silence if self.silent_until.is_some_and(|until| until > now) => {}
            TtlAnswer::Silence => {
                self.silences = self.silences.saturating_add(1);
                self.silent_until = pause(self.silences, SILENCES_BEFORE_PAUSE).map(|pause| now + pause);
            }
        }
        let history = self.names.entry(name.clone()).or_insert(NameHistory { last: None, misses: 0, until: now });
        if let TtlAnswer::Ttl(time) = answer {
            *history = NameHistory { last: Some(time), misses: 0, until: now };
            return Some(time);
        }
        history.misses = history.misses.saturating_add(1);
        history.until = now + pause(history.misses, 2).unwrap_or_default();
        history.last.take()
    }
}

/// The pause after this many failures. There is none below `on`; from then on it doubles each time.
fn pause(times: u32, on: u32) -> Option<Duration> {
    let doublings = times.checked_sub(on)?.min(16);
    Some(MIN_PAUSE.saturating_mul(1 << doublings).min(MAX_PAUSE))
}

/// Queries a name as the system's resolver would.
fn ask(settings: &ResolvConf, name: &HostName) -> TtlAnswer {
    let end = Instant::now() + PROBE_TIMEOUT;
    let mut answer = TtlAnswer::Silence;
    for candidate in settings.candidates(name.as_str()) {
        match ask_servers(&settings.servers, &candidate, end) {
            Some(Reply::Ttl(time)) => return TtlAnswer::Ttl(time),
            // The next candidate may exist.
            Some(Reply::Absent) => answer = TtlAnswer::Nothing,
            Some(Reply::Unclear | Reply::Unrelated) => return TtlAnswer::Nothing,
            None => return answer,
        }
    }
    answer
}

/// The first clear answer of a server. `None` if no server answers.
fn ask_servers(servers: &[IpAddr], name: &str, end: Instant) -> Option<Reply> {
    let mut received = None;
    for server in servers {
        let reply = ask_server(*server, name, end);
        match reply {
            Some(Reply::Ttl(_) | Reply::Absent) => return reply,
            _ => received = received.or(reply),
        }
    }
    received
}

/// Queries both address families at once. The answer for one family is enough.
fn ask_server(server: IpAddr, name: &str, end: Instant) -> Option<Reply> {
    let end = end.min(Instant::now() + SERVER_TIMEOUT);
    let asked = [Family::Ipv4, Family::Ipv6].map(|family| {
        let query = Query::new(random_id()?, name, family)?;
        Some((send(server, &query).ok()?, query))
    });
    let [ipv4, ipv6] = asked.map(|asked| asked.and_then(|(socket, query)| receive(&socket, &query, end)));
    match (ipv4, ipv6) {
        (Some(Reply::Ttl(one)), Some(Reply::Ttl(other))) => Some(Reply::Ttl(one.min(other))),
        (Some(Reply::Ttl(time)), _) | (_, Some(Reply::Ttl(time))) => Some(Reply::Ttl(time)),
        (Some(Reply::Absent), Some(Reply::Absent)) => Some(Reply::Absent),
        (None, None) => None,
        (Some(_), _) | (_, Some(_)) => Some(Reply::Unclear),
    }
}

/// Sends a query from a new port that is connected to this server, so that only its answers arrive.
fn send(server: IpAddr, query: &Query) -> io::Result<UdpSocket> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
    socket.connect(SocketAddr::new(server, PORT))?;
    socket.send(&query.bytes())?;
    Ok(socket)
}

fn receive(socket: &UdpSocket, query: &Query, end: Instant) -> Option<Reply> {
    let mut buffer = [0; MAX_ANSWER as usize];
    for _ in 0..MAX_DATAGRAMS {
        let left = end.saturating_duration_since(Instant::now());
        // A timeout of zero is an error, which also ends the wait.
        socket.set_read_timeout(Some(left)).ok()?;
        match socket.recv(&mut buffer) {
            Ok(length) => match query.parse(buffer.get(..length)?) {
                Reply::Unrelated => {}
                received => return Some(received),
            },
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
    None
}

fn random_id() -> Option<u16> {
    let mut bytes = [0; 2];
    rand::fill(&mut bytes).ok()?;
    Some(u16::from_ne_bytes(bytes))
}

/// Reads the file. A missing file is empty.
fn read_resolv_conf() -> String {
    let mut bytes = Vec::new();
    let read = File::open(RESOLV_CONF).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut bytes));
    read.map_or_else(|_| String::new(), |_| String::from_utf8_lossy(&bytes).into_owned())
}

const RESOLV_CONF: &str = "/etc/resolv.conf";
const MAX_BYTES: u64 = 64 << 10;

const PORT: u16 = 53;

/// The time for one name, and for one server. A slower server is still queried by the system's resolver.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);
const SERVER_TIMEOUT: Duration = Duration::from_secs(1);

/// Maximum number of unrelated datagrams before the answer.
const MAX_DATAGRAMS: u32 = 16;

/// Consecutive unanswered queries after which all names are paused.
const SILENCES_BEFORE_PAUSE: u32 = 4;

const MIN_PAUSE: Duration = Duration::from_secs(60);
const MAX_PAUSE: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn name(number: u32) -> HostName {
        format!("app{number}.test").parse().unwrap()
    }

    fn minutes(minutes: u64) -> Duration {
        Duration::from_secs(60 * minutes)
    }

    #[test]
    fn name_without_a_time_to_live_is_queried_with_exponential_backoff() {
        let (mut memory, mut now) = (Memory::default(), Instant::now());
        for pause in [0, 1, 2, 4, 8, 16, 32, 60, 60] {
            assert!(memory.may_ask(&name(1), now));
            assert_eq!(memory.note(&name(1), TtlAnswer::Nothing, now), None);
            now += minutes(pause);
            assert!(pause == 0 || !memory.may_ask(&name(1), now - Duration::from_secs(1)), "{pause}");
            assert!(memory.may_ask(&name(2), now), "other names are not affected");
        }
        let _ = memory.note(&name(1), TtlAnswer::Ttl(Duration::ZERO), now);
        let _ = memory.note(&name(1), TtlAnswer::Nothing, now);
        assert!(memory.may_ask(&name(1), now), "the backoff restarts");
    }

    #[test]
    fn single_lost_datagram_keeps_the_last_time_to_live() {
        let (mut memory, now) = (Memory::default(), Instant::now());
        let time = Some(Duration::from_secs(5));
        for answer in [TtlAnswer::Silence, TtlAnswer::Nothing] {
            assert_eq!(memory.note(&name(1), TtlAnswer::Ttl(Duration::from_secs(5)), now), time);
            assert_eq!(memory.note(&name(1), answer, now), time);
            assert!(memory.may_ask(&name(1), now));
            assert_eq!(memory.note(&name(1), answer, now), None, "a second one does not");
        }
    }

    #[test]
    fn servers_that_never_answer_are_paused_for_all_names() {
        let (mut memory, now) = (Memory::default(), Instant::now());
        for number in 1..2 * SILENCES_BEFORE_PAUSE {
            let _ = memory.note(&name(number), TtlAnswer::Silence, now);
            assert_eq!(
                memory.may_ask(&name(99), now),
                number < SILENCES_BEFORE_PAUSE,
                "{number}: only those names may be affected"
            );
        }
        let later = now + minutes(1);
        assert!(memory.may_ask(&name(99), later), "queries at the same time count as one");
        let _ = memory.note(&name(99), TtlAnswer::Silence, later);
        assert!(!memory.may_ask(&name(98), later + minutes(1)));
        assert!(memory.may_ask(&name(98), later + minutes(2)));
        let _ = memory.note(&name(98), TtlAnswer::Nothing, later);
        assert!(memory.may_ask(&name(97), later), "one answer is enough");
    }

    #[test]
    fn retry_ends_the_backoff_of_one_name_and_of_the_servers() {
        let (probe, now) = (TtlProbe::default(), Instant::now());
        for _ in 0..2 {
            for number in 0..=SILENCES_BEFORE_PAUSE {
                let _ = probe.state().memory.note(&name(number), TtlAnswer::Silence, now);
            }
        }
        probe.retry_at_once(&name(1));
        assert!(probe.state().memory.may_ask(&name(1), now));
        assert!(!probe.state().memory.may_ask(&name(2), now));
        probe.keep_only(&BTreeSet::new());
        assert!(probe.state().memory.may_ask(&name(2), now));
    }

    #[test]
    fn limited_number_of_unrelated_datagrams_is_skipped() {
        let query = Query::new(7, "app.test", Family::Ipv4).unwrap();
        for (unrelated, received) in [(0, Some(Reply::Absent)), (5, Some(Reply::Absent)), (MAX_DATAGRAMS, None)] {
            let [ours, server] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
            ours.connect(server.local_addr().unwrap()).unwrap();
            server.connect(ours.local_addr().unwrap()).unwrap();
            let mut answer = query.bytes();
            answer.truncate(26);
            answer[2..12].copy_from_slice(&[0x81, 0x83, 0, 1, 0, 0, 0, 0, 0, 0]);
            let mut other = answer.clone();
            other[0] ^= 1;
            let sending = thread::spawn(move || {
                for datagram in (0..unrelated).map(|_| &other).chain([&answer]) {
                    server.send(datagram).unwrap();
                }
            });
            sending.join().unwrap();
            assert_eq!(receive(&ours, &query, Instant::now() + PROBE_TIMEOUT), received, "{unrelated}");
        }
        let [ours, server] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        ours.connect(server.local_addr().unwrap()).unwrap();
        assert_eq!(receive(&ours, &query, Instant::now()), None, "no time left");
        assert_eq!(receive(&ours, &query, Instant::now() + Duration::from_millis(10)), None);
    }
}
