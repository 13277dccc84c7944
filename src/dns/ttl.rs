//! For how long the addresses of a name are good. The system's resolver does not tell, so its servers are asked for that
//! beside it. From here come no addresses: what a server says, or somebody else in its name, can change how often a name
//! is looked up, and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::rand;

use crate::dns::resolv_conf::ResolvConf;
use crate::dns::wire::{Family, LONGEST_ANSWER, Query, Reply};
use crate::source::host::HostName;

/// Who learns how long answers are good, and does not ask again and again those who cannot say.
#[derive(Debug, Default)]
pub(crate) struct TtlProbe(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// As they were at the last time. What others did not answer says nothing of new ones.
    settings: Option<ResolvConf>,
    memory: Memory,
}

/// What was told, and who need not be asked for now.
#[derive(Debug, Default)]
struct Memory {
    names: BTreeMap<HostName, Past>,
    /// Questions in a row, whatever for, that no server has answered.
    silences: u32,
    /// Until when the servers are taken to be silent to everybody.
    silent_until: Option<Instant>,
}

/// What is known of one name.
#[derive(Debug)]
struct Past {
    /// What was told the last time.
    last: Option<Duration>,
    /// How often in a row nothing was.
    misses: u32,
    /// Until when it is left alone.
    until: Instant,
}

/// What came of asking for a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TtlAnswer {
    /// The time to live.
    For(Duration),
    /// There was an answer that does not say it: the DNS does not know the name, or it is in trouble.
    Nothing,
    /// No server has answered.
    Silence,
}

impl TtlProbe {
    /// For how long what the system's resolver will answer from now on is good at least, if that can be learnt. Blocks, for
    /// three seconds at most.
    ///
    /// To be asked before the resolver is: what a cache answers later is what it has now, or something fresher.
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
        let told = ask(&settings, name);
        self.state().memory.note(name, told, Instant::now())
    }

    /// Lets a name be asked for at once: it could be resolved again, so whatever kept its server silent may be over.
    pub(crate) fn hope_for(&self, name: &HostName) {
        let memory = &mut self.state().memory;
        memory.names.remove(name);
        memory.silent_until = None;
    }

    /// Forgets the names that are none of these.
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
        self.silent_until.is_none_or(over) && self.names.get(name).is_none_or(|past| over(past.until))
    }

    /// Returns what to go by. A datagram may be lost, so the time that was told before counts once more.
    fn note(&mut self, name: &HostName, told: TtlAnswer, now: Instant) -> Option<Duration> {
        match told {
            TtlAnswer::For(_) | TtlAnswer::Nothing => (self.silences, self.silent_until) = (0, None),
            // Of those who asked at the same time one counts.
            TtlAnswer::Silence if self.silent_until.is_some_and(|until| until > now) => {}
            TtlAnswer::Silence => {
                self.silences = self.silences.saturating_add(1);
                self.silent_until = pause(self.silences, ENOUGH).map(|pause| now + pause);
            }
        }
        let past = self.names.entry(name.clone()).or_insert(Past { last: None, misses: 0, until: now });
        if let TtlAnswer::For(time) = told {
            *past = Past { last: Some(time), misses: 0, until: now };
            return Some(time);
        }
        past.misses = past.misses.saturating_add(1);
        past.until = now + pause(past.misses, 2).unwrap_or_default();
        past.last.take()
    }
}

/// From so many times `on` there is a pause, twice as long at every time.
fn pause(times: u32, on: u32) -> Option<Duration> {
    let doublings = times.checked_sub(on)?.min(16);
    Some(FIRST_PAUSE.saturating_mul(1 << doublings).min(LONGEST_PAUSE))
}

/// Asks for a name as the system's resolver would.
fn ask(settings: &ResolvConf, name: &HostName) -> TtlAnswer {
    let end = Instant::now() + PATIENCE;
    let mut told = TtlAnswer::Silence;
    for candidate in settings.candidates(name.as_str()) {
        match ask_servers(&settings.servers, &candidate, end) {
            Some(Reply::For(time)) => return TtlAnswer::For(time),
            // Under another name, perhaps.
            Some(Reply::Absent) => told = TtlAnswer::Nothing,
            Some(Reply::Unclear | Reply::Stranger) => return TtlAnswer::Nothing,
            None => return told,
        }
    }
    told
}

/// The first clear answer of a server; none where all are silent.
fn ask_servers(servers: &[IpAddr], name: &str, end: Instant) -> Option<Reply> {
    let mut heard = None;
    for server in servers {
        let of_server = ask_server(*server, name, end);
        match of_server {
            Some(Reply::For(_) | Reply::Absent) => return of_server,
            _ => heard = heard.or(of_server),
        }
    }
    heard
}

/// Asks for both kinds of addresses at once. One that is there says enough: whether the other one is there, the system's
/// resolver finds out.
fn ask_server(server: IpAddr, name: &str, end: Instant) -> Option<Reply> {
    let end = end.min(Instant::now() + PATIENCE_WITH_ONE);
    let asked = [Family::Ipv4, Family::Ipv6].map(|family| {
        let question = Query::new(random_id()?, name, family)?;
        Some((send(server, &question).ok()?, question))
    });
    let [ipv4, ipv6] = asked.map(|asked| asked.and_then(|(socket, question)| hear(&socket, &question, end)));
    match (ipv4, ipv6) {
        (Some(Reply::For(one)), Some(Reply::For(other))) => Some(Reply::For(one.min(other))),
        (Some(Reply::For(time)), _) | (_, Some(Reply::For(time))) => Some(Reply::For(time)),
        (Some(Reply::Absent), Some(Reply::Absent)) => Some(Reply::Absent),
        (None, None) => None,
        (Some(_), _) | (_, Some(_)) => Some(Reply::Unclear),
    }
}

/// Sends a question from a port that only the answer to it can come to, and only from this server.
fn send(server: IpAddr, question: &Query) -> io::Result<UdpSocket> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
    socket.connect(SocketAddr::new(server, PORT))?;
    socket.send(&question.bytes())?;
    Ok(socket)
}

fn hear(socket: &UdpSocket, question: &Query, end: Instant) -> Option<Reply> {
    let mut buffer = [0; LONGEST_ANSWER as usize];
    for _ in 0..MOST_DATAGRAMS {
        let left = end.saturating_duration_since(Instant::now());
        // No time left is an error here, and that is an end, too.
        socket.set_read_timeout(Some(left)).ok()?;
        match socket.recv(&mut buffer) {
            Ok(length) => match question.hear(buffer.get(..length)?) {
                Reply::Stranger => {}
                heard => return Some(heard),
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

/// The file, or nothing where there is none.
fn read_resolv_conf() -> String {
    let mut bytes = Vec::new();
    let read = File::open(RESOLV_CONF).and_then(|file| file.take(MOST_BYTES).read_to_end(&mut bytes));
    read.map_or_else(|_| String::new(), |_| String::from_utf8_lossy(&bytes).into_owned())
}

const RESOLV_CONF: &str = "/etc/resolv.conf";
const MOST_BYTES: u64 = 64 << 10;

const PORT: u16 = 53;

/// How long one name may take, and one server with it. Who takes longer is asked by the system's resolver all the same.
const PATIENCE: Duration = Duration::from_secs(3);
const PATIENCE_WITH_ONE: Duration = Duration::from_secs(1);

/// Answers to something else that may come before the one to the question.
const MOST_DATAGRAMS: u32 = 16;

/// Silences in a row that are no matter of one name.
const ENOUGH: u32 = 4;

const FIRST_PAUSE: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

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
    fn a_name_of_which_nothing_is_told_is_asked_for_more_and_more_seldom() {
        let (mut memory, mut now) = (Memory::default(), Instant::now());
        for pause in [0, 1, 2, 4, 8, 16, 32, 60, 60] {
            assert!(memory.may_ask(&name(1), now));
            assert_eq!(memory.note(&name(1), TtlAnswer::Nothing, now), None);
            now += minutes(pause);
            assert!(pause == 0 || !memory.may_ask(&name(1), now - Duration::from_secs(1)), "{pause}");
            assert!(memory.may_ask(&name(2), now), "others are not concerned");
        }
        let _ = memory.note(&name(1), TtlAnswer::For(Duration::ZERO), now);
        let _ = memory.note(&name(1), TtlAnswer::Nothing, now);
        assert!(memory.may_ask(&name(1), now), "it begins anew");
    }

    #[test]
    fn one_lost_datagram_changes_nothing() {
        let (mut memory, now) = (Memory::default(), Instant::now());
        let time = Some(Duration::from_secs(5));
        for told in [TtlAnswer::Silence, TtlAnswer::Nothing] {
            assert_eq!(memory.note(&name(1), TtlAnswer::For(Duration::from_secs(5)), now), time);
            assert_eq!(memory.note(&name(1), told, now), time);
            assert!(memory.may_ask(&name(1), now));
            assert_eq!(memory.note(&name(1), told, now), None, "but a second one does");
        }
    }

    #[test]
    fn servers_that_are_silent_to_all_are_left_alone_by_all() {
        let (mut memory, now) = (Memory::default(), Instant::now());
        for number in 1..2 * ENOUGH {
            let _ = memory.note(&name(number), TtlAnswer::Silence, now);
            assert_eq!(memory.may_ask(&name(99), now), number < ENOUGH, "{number}: it may be a matter of those names");
        }
        let later = now + minutes(1);
        assert!(memory.may_ask(&name(99), later), "all at once are one");
        let _ = memory.note(&name(99), TtlAnswer::Silence, later);
        assert!(!memory.may_ask(&name(98), later + minutes(1)));
        assert!(memory.may_ask(&name(98), later + minutes(2)));
        let _ = memory.note(&name(98), TtlAnswer::Nothing, later);
        assert!(memory.may_ask(&name(97), later), "one answer is enough");
    }

    #[test]
    fn hope_is_for_one_name_and_its_server() {
        let (lives, now) = (TtlProbe::default(), Instant::now());
        for _ in 0..2 {
            for number in 0..=ENOUGH {
                let _ = lives.state().memory.note(&name(number), TtlAnswer::Silence, now);
            }
        }
        lives.hope_for(&name(1));
        assert!(lives.state().memory.may_ask(&name(1), now));
        assert!(!lives.state().memory.may_ask(&name(2), now));
        lives.keep_only(&BTreeSet::new());
        assert!(lives.state().memory.may_ask(&name(2), now));
    }

    #[test]
    fn what_comes_before_the_answer_is_passed_over_but_not_for_ever() {
        let question = Query::new(7, "app.test", Family::Ipv4).unwrap();
        for (strangers, heard) in [(0, Some(Reply::Absent)), (5, Some(Reply::Absent)), (MOST_DATAGRAMS, None)] {
            let [ours, server] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
            ours.connect(server.local_addr().unwrap()).unwrap();
            server.connect(ours.local_addr().unwrap()).unwrap();
            let mut answer = question.bytes();
            answer.truncate(26);
            answer[2..12].copy_from_slice(&[0x81, 0x83, 0, 1, 0, 0, 0, 0, 0, 0]);
            let mut untrusted = answer.clone();
            untrusted[0] ^= 1;
            let sending = thread::spawn(move || {
                for datagram in (0..strangers).map(|_| &untrusted).chain([&answer]) {
                    server.send(datagram).unwrap();
                }
            });
            sending.join().unwrap();
            assert_eq!(hear(&ours, &question, Instant::now() + PATIENCE), heard, "{strangers}");
        }
        let [ours, server] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        ours.connect(server.local_addr().unwrap()).unwrap();
        assert_eq!(hear(&ours, &question, Instant::now()), None, "no time left");
        assert_eq!(hear(&ours, &question, Instant::now() + Duration::from_millis(10)), None);
    }
}
