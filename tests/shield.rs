//! The kernel source filter: it drops packets of untrusted sources only.

use std::io;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::harness::client::{dial_from, port};
use crate::harness::portcullis::{ADMIN, EXECUTABLE, executable};
use crate::harness::program::{allow_many_files, command, run};
use crate::harness::{Listener, Portcullis, TestDir, Upstream, wire};
use crate::reload::ON_SIGHUP;

/// Shorter than the second after which a SYN is sent again: a client that connects within this time was never dropped.
const ONE_SYN: Duration = Duration::from_millis(900);

/// For addresses that are expected not to answer.
const NO_ANSWER: Duration = Duration::from_millis(200);

fn start(listeners: &[&Listener]) -> Portcullis {
    Portcullis::start(TestDir::new(), config(listeners))
}

fn config(listeners: &[&Listener]) -> String {
    listeners.iter().fold([ADMIN, ON_SIGHUP].concat(), |all, listener| format!("{all}{listener}"))
}

fn shielded(upstream: &Upstream, sources: &[&str]) -> Listener {
    Listener::redis(upstream).trusting(sources).key("shield = \"on\"")
}

/// The target address for `source`: of its family if the listener has all addresses, otherwise that of the listener.
#[allow(clippy::disallowed_methods, reason = "a listening address is not a client's")]
fn target(address: SocketAddr, source: &str) -> SocketAddr {
    let ip = if address.ip().is_unspecified() { source.parse().unwrap() } else { address.ip() };
    SocketAddr::new(ip, address.port())
}

fn dial(address: SocketAddr, source: &str, patience: Duration) -> io::Result<TcpStream> {
    let target = target(address, source);
    let source: IpAddr = source.parse().unwrap();
    let stream = dial_from(Some(source), target, Some(patience))?;
    stream.set_read_timeout(Some(crate::harness::WAIT_TIMEOUT))?;
    Ok(stream)
}

/// Whether the address answers. The test fails if it answers a later packet than the first one.
fn is_answered(address: SocketAddr, source: &str) -> bool {
    match dial(address, source, ONE_SYN) {
        Ok(_) => true,
        Err(error) if error.kind() == io::ErrorKind::TimedOut => false,
        Err(error) => panic!("{source}: {error}"),
    }
}

fn is_silent(address: SocketAddr, source: &str) -> bool {
    dial(address, source, NO_ANSWER).is_err_and(|error| error.kind() == io::ErrorKind::TimedOut)
}

/// The shield of the first listener in `status`.
fn status(portcullis: &Portcullis) -> Value {
    portcullis.status()["shield"].clone()
}

fn denials(portcullis: &Portcullis) -> usize {
    portcullis.events().iter().filter(|event| event.is("connection.denied")).count()
}

#[test]
fn untrusted_source_gets_no_answer_and_trusted_source_is_accepted() {
    let upstream = Upstream::echo();
    for (listen, trusted, untrusted) in [
        ("127.0.0.1:0", "127.0.0.5", Some("127.0.0.9")),
        ("[::]:0", "127.0.0.5", Some("127.0.0.9")),
        ("[::]:0", "127.0.0.5", Some("::1")),
        ("[::]:0", "::1", Some("127.0.0.9")),
        ("[::1]:0", "::1", None),
    ] {
        let listener = shielded(&upstream, &[trusted]).on(&[listen]);
        let mut portcullis = start(&[&listener]);
        let address = portcullis.address("main");
        let on = portcullis.event("shield.on", |event| event.is("shield.on"));
        assert_eq!((on.text("listener"), on.number("rules")), ("main", 1));
        let mut inside = portcullis.client().at(target(address, trusted)).from(trusted).connect();
        inside.ask(b"hello", b"hello");
        if let Some(untrusted) = untrusted {
            assert!(is_silent(address, untrusted), "{listen}: {untrusted}");
            let standing = status(&portcullis);
            assert_eq!((&standing["dropped"], &standing["mode"]), (&1.into(), &"on".into()), "{standing}");
            assert!(standing["active_since"].is_string(), "{standing}");
        }
        inside.ask(b"still here", b"still here");
        drop(inside);
        let (_, events) = portcullis.stop();
        let off = events.iter().find(|event| event.is("shield.off")).unwrap();
        assert_eq!(off.number("dropped") > 0, untrusted.is_some());
        assert!(!events.iter().any(|event| event.is("connection.denied")), "the untrusted source was logged");
    }
}

#[test]
fn changed_rule_applies_to_the_filter_with_its_reload() {
    let upstream = Upstream::echo();
    let with = |sources: &[&str]| config(&[&shielded(&upstream, sources)]);
    let portcullis = Portcullis::start(TestDir::new(), with(&["127.0.0.1"]));
    let address = portcullis.address("main");
    let mut inside = portcullis.client().connect();
    for _ in 0..5 {
        assert!(portcullis.reconfigure(with(&["127.0.0.0/24"])).is("reload.applied"));
        assert!(is_answered(address, "127.0.0.7"));
        inside.ask(b"another rule covers it", b"another rule covers it");
        let mut leaves = portcullis.client().from("127.0.0.7").connect();
        // Before its first answer it is in the handshake, and would be denied instead of revoked.
        leaves.ask(b"a session", b"a session");
        assert!(portcullis.reconfigure(with(&["127.0.0.1", "127.1.0.0/16"])).is("reload.applied"));
        assert!(is_silent(address, "127.0.0.7"));
        assert_eq!(portcullis.ending(leaves.port()).reason(), "source_revoked");
        inside.ask(b"and its own again", b"and its own again");
    }
}

#[test]
fn trusted_source_is_never_dropped_while_sources_change() {
    allow_many_files();
    let upstream = Upstream::echo();
    let mut portcullis = start(&[&shielded(&upstream, &["127.0.0.1", "127.0.0.2"])]);
    let address = portcullis.address("main");
    let many: Vec<_> = (0..400).map(|number| format!("10.{}.{}.0/25", number / 200, number % 200)).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    let lists: [Vec<&str>; 5] = [
        vec!["127.0.0.1", "127.0.0.2"],
        vec!["127.0.0.0/8", "::/0"],
        [&many[..], &["127.0.0.1", "127.0.0.2/31"]].concat(),
        vec!["127.0.0.0/30", "10.0.0.0/8"],
        [&["127.0.0.2", "127.0.0.1"], &many[..7]].concat(),
    ];
    let (done, dialled) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for source in ["127.0.0.1", "127.0.0.2"] {
            let (done, dialled) = (&done, &dialled);
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    let mut stream = dial(address, source, ONE_SYN).expect("the first packet is answered");
                    // To the end, so that no queue gets full.
                    stream.shutdown(Shutdown::Write).unwrap();
                    wire::read_until_closed(&mut stream);
                    dialled.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let mut sessions: Vec<_> = ["127.0.0.1", "127.0.0.2"].map(|ip| portcullis.client().from(ip).connect()).into();
        let mut round = 0_u64;
        while round < 60 || (dialled.load(Ordering::Relaxed) < 3_000 && round < 600) {
            let list = &lists[usize::try_from(round).unwrap() % lists.len()];
            let listener = Listener::redis(&upstream).trusting(list);
            // Also switches the shield on and off.
            let shield = ["on", "on", "auto", "on", "off", "on", "on"][usize::try_from(round).unwrap() % 7];
            let listener = listener.key(&format!("shield = {shield:?}"));
            let applied = portcullis.reconfigure(config(&[&listener]));
            assert!(applied.is("reload.applied"), "{}", applied.0);
            for session in &mut sessions {
                let output = format!("round {round}").repeat(100);
                session.ask(output.as_bytes(), output.as_bytes());
            }
            if round.is_multiple_of(10) {
                sessions.push(portcullis.client().from("127.0.0.2").connect());
            }
            round += 1;
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(dialled.load(Ordering::Relaxed) >= 1_000, "{dialled:?}");
    let (_, events) = portcullis.stop();
    let refused: Vec<_> = events.iter().filter(|event| event.0["reason"] == "untrusted_source").collect();
    assert!(refused.is_empty(), "{refused:?}");
    let dropped: u64 = events.iter().filter(|event| event.is("shield.off")).map(|event| event.number("dropped")).sum();
    assert_eq!(dropped, 0, "only they have come");
}

#[test]
fn flood_activates_the_shield_until_it_ends() {
    let upstream = Upstream::echo();
    let listener = Listener::redis(&upstream).trusting(&["127.0.0.1"]).key("shield = \"auto\"");
    let portcullis = start(&[&listener]);
    let address = portcullis.address("main");
    let mut untrusted = dial(address, "127.0.0.9", ONE_SYN).unwrap();
    assert_eq!(wire::read_until_closed(&mut untrusted), b"");
    assert_eq!(portcullis.refusal(port(&untrusted)), "untrusted_source");
    let raised = AtomicBool::new(false);
    let on = thread::scope(|scope| {
        scope.spawn(|| {
            while !raised.load(Ordering::Relaxed) {
                // More than a hundred a second, and no more than the machine can do besides.
                let _ = dial(address, "127.0.0.9", NO_ANSWER);
                thread::sleep(Duration::from_millis(2));
            }
        });
        let on = portcullis.event("shield.on", |event| event.is("shield.on"));
        raised.store(true, Ordering::Relaxed);
        on
    });
    assert!(on.text("detail").starts_with("flood: "), "{}", on.0);
    let seen = denials(&portcullis);
    assert!(seen >= 150, "{seen}");
    assert!(is_silent(address, "127.0.0.9"));
    assert!(is_answered(address, "127.0.0.1"));
    portcullis.client().connect().ask(b"hello", b"hello");
    let standing = status(&portcullis);
    assert!(standing["dropped"].as_u64().is_some_and(|dropped| dropped > 0), "{standing}");
    let off = portcullis.event("shield.off", |event| event.is("shield.off"));
    assert_eq!(off.text("detail"), "the flood is over");
    assert!(off.number("dropped") > 0);
    let mut untrusted = dial(address, "127.0.0.9", ONE_SYN).unwrap();
    assert_eq!(wire::read_until_closed(&mut untrusted), b"");
    assert_eq!(portcullis.refusal(port(&untrusted)), "untrusted_source", "it is logged again");
}

#[test]
fn added_listener_is_shielded_and_its_successor_is_not() {
    let upstream = Upstream::echo();
    let port = crate::harness::program::free_port();
    let at = format!("127.0.0.1:{port}");
    let first = shielded(&upstream, &["127.0.0.1"]).named("first").on(&[&at]);
    let portcullis = start(&[&shielded(&upstream, &["127.0.0.1"])]);
    portcullis.address("main");
    let applied = portcullis.reconfigure(config(&[&shielded(&upstream, &["127.0.0.1"]), &first]));
    assert!(applied.is("reload.applied"), "{}", applied.0);
    let address = portcullis.address("first");
    assert!(is_silent(address, "127.0.0.9") && is_answered(address, "127.0.0.1"));
    let second = Listener::redis(&upstream).trusting(&["127.0.0.9"]).named("second").on(&[&at]);
    assert!(portcullis.reconfigure(config(&[&second])).is("reload.applied"));
    assert!(is_answered(address, "127.0.0.9") && is_answered(address, "127.0.0.1"));
    let gone =
        |name: &str| portcullis.event("shield.off", |event| event.is("shield.off") && event.0["listener"] == name);
    assert_eq!(gone("first").text("detail"), "the listener was removed");
    gone("main");
}

/// The obstacles to a shield, and the configuration line that causes each.
const OBSTACLES: [(&str, &str); 2] = [
    ("enforcement = \"observe\"", "rejects no source"),
    ("proxy_protocol.trusted = [\"127.0.0.9\"]", "the addresses of the load balancers"),
];

#[test]
fn unavailable_shield_is_reported_and_traffic_continues() {
    let upstream = Upstream::echo();
    for (line, words) in OBSTACLES {
        let portcullis = start(&[&shielded(&upstream, &["127.0.0.1"]).key(line)]);
        let address = portcullis.address("main");
        let warned = |message: &str| message.contains("shield = \"on\" has no effect") && message.contains(words);
        portcullis.event(words, |event| event.0["warning"].as_str().is_some_and(warned));
        assert!(is_answered(address, "127.0.0.9"), "{line}");
        portcullis.client().connect().ask(b"hello", b"hello");
        let mut check = executable();
        let output = run(check.args(["check", "-c"]).arg(portcullis.site.path("portcullis.toml"))).success();
        assert!(output.lines().any(|line| line.starts_with("warning: ") && warned(line)), "{output}");
        let standing = status(&portcullis);
        assert!(standing["unavailable_reason"].as_str().is_some_and(|why| why.contains(words)), "{standing}");
    }
}

#[test]
fn too_many_sources_deactivate_the_filter_until_there_are_fewer() {
    let upstream = Upstream::echo();
    let many: Vec<_> = (0..2_500).map(|number| format!("10.0.{}.{}", number / 125, number % 125 * 2)).collect();
    let many: Vec<_> = many.iter().map(String::as_str).chain(["127.0.0.1"]).collect();
    let portcullis = start(&[&shielded(&upstream, &["127.0.0.1"])]);
    let address = portcullis.address("main");
    assert!(is_silent(address, "127.0.0.9"));
    let seen = portcullis.seen();
    assert!(portcullis.reconfigure(config(&[&shielded(&upstream, &many)])).is("reload.applied"));
    let off = portcullis.event_after(seen, "shield.off", |event| event.is("shield.off"));
    assert!(off.text("detail").contains("4096 instructions"), "{}", off.0);
    let warned = |message: &str| message.contains("shield = \"on\" has no effect: the trusted sources need a program");
    portcullis.event_after(seen, "a warning", |event| event.0["warning"].as_str().is_some_and(warned));
    assert!(is_answered(address, "127.0.0.9") && is_answered(address, "127.0.0.1"));
    let seen = portcullis.seen();
    assert!(portcullis.reconfigure(config(&[&shielded(&upstream, &["127.0.0.1"])])).is("reload.applied"));
    portcullis.event_after(seen, "shield.on", |event| event.is("shield.on"));
    assert!(is_silent(address, "127.0.0.9") && is_answered(address, "127.0.0.1"));
}

/// A program in a separate network, and its clients.
struct Machine {
    portcullis: Portcullis,
    /// The process in whose network clients are.
    clients: String,
}

impl Machine {
    /// Starts the program in the network that `script` makes. The script writes into the file `clients` the id of the process in
    /// whose network clients run. The kernel or the environment of the tests may forbid namespaces; then the result is `None`.
    fn start(script: &str, config: &str) -> Option<Self> {
        let mut possible = command("unshare");
        possible.args(["--user", "--map-root-user", "--net", "ip", "link", "add", "a0", "type", "veth"]);
        let possible = run(&mut possible);
        if possible.code != Some(0) {
            eprintln!("skipped: no network namespace may be made here: {}", possible.stderr);
            return None;
        }
        let site = TestDir::new();
        let mut inside = command("unshare");
        let script = format!("set -e; ip link set lo up; {script}; exec setpriv --pdeathsig KILL -- \"$@\"");
        inside.args(["--user", "--map-root-user", "--net", "sh", "-c", &script]).arg(site.directory()).arg(EXECUTABLE);
        let portcullis = Portcullis::start_by(inside, site, config);
        portcullis.address("main");
        let clients = std::fs::read_to_string(portcullis.site.path("clients")).unwrap().trim().to_owned();
        Some(Self { portcullis, clients })
    }

    /// Whether there is no answer within these seconds, and whether there was TLS.
    fn call(&self, target: &str, source: &str, seconds: &str) -> (bool, bool) {
        let mut client = command("nsenter");
        client.args(["--target", &self.clients, "--user", "--net", "--preserve-credentials"]);
        // Entering another user namespace clears the signal that `command` has set.
        const TIED: [&str; 4] = ["setpriv", "--pdeathsig", "KILL", "--"];
        client
            .args(TIED)
            .args(["timeout", seconds])
            .args(TIED)
            .args(["openssl", "s_client", "-brief", "-connect", target, "-bind", source]);
        let outcome = run(client.arg("-CAfile").arg(self.portcullis.site.path("ca.crt")));
        (outcome.code == Some(124), outcome.stderr.contains("Protocol version: TLSv1.3"))
    }

    fn dropped(&self) -> Option<u64> {
        status(&self.portcullis)["dropped"].as_u64()
    }
}

/// Makes a network of two machines: clients are on the far one.
const TWO_MACHINES: &str = "setpriv --pdeathsig KILL -- unshare --net sleep 600 & far=$!
while [ \"$(readlink /proc/$far/ns/net)\" = \"$(readlink /proc/$$/ns/net)\" ] || [ \"$(cat /proc/$far/comm)\" != sleep ]; do
    sleep 0.01
done
ip link add near type veth peer name far netns $far
ip addr add 10.9.0.1/24 dev near; ip addr add fd09::1/64 dev near nodad; ip link set near up
nsenter --target $far --net sh -ec 'for last in 2 3; do
    ip addr add 10.9.0.$last/24 dev far; ip addr add fd09::$last/64 dev far nodad
done; ip link set far up'
echo $far > \"$0/clients\"";

#[test]
fn filter_drops_untrusted_packets_of_both_families_over_a_network() {
    let upstream = Upstream::silent();
    for listen in [&["[::]:6380"][..], &["0.0.0.0:6380", "[fd09::1]:6380"]] {
        let listener = shielded(&upstream, &["10.9.0.2", "fd09::2"]).on(listen);
        let Some(machine) = Machine::start(TWO_MACHINES, &config(&[&listener])) else { return };
        machine.portcullis.event("shield.on", |event| event.is("shield.on"));
        for (target, trusted, untrusted) in
            [("10.9.0.1:6380", "10.9.0.2:0", "10.9.0.3:0"), ("[fd09::1]:6380", "[fd09::2]:0", "[fd09::3]:0")]
        {
            let dropped = machine.dropped();
            assert!(dropped.is_some());
            assert_eq!(machine.call(target, trusted, "30"), (false, true), "{target}");
            assert_eq!(machine.dropped(), dropped, "not one packet of it");
            assert_eq!(machine.call(target, untrusted, "0.5"), (true, false), "{target}");
            assert!(machine.dropped() > dropped);
        }
    }
}

/// The kernel allows only this much memory for socket options. Clients run here.
const SMALL_OPTMEM: &str = "echo 6000 > /proc/sys/net/core/optmem_max; echo $$ > \"$0/clients\"";

#[test]
fn rejected_filter_is_reported_and_leaves_the_port_open() {
    let upstream = Upstream::silent();
    let (few, target) = (["127.0.0.1"], "127.0.0.1:6380");
    let many: Vec<_> = (0..300).map(|number| format!("10.{}.{}.0/25", number / 200, number % 200)).collect();
    let many: Vec<_> = many.iter().map(String::as_str).chain(few).collect();
    let with = |sources: &[&str]| config(&[&shielded(&upstream, sources).on(&[target])]);
    let Some(machine) = Machine::start(SMALL_OPTMEM, &with(&few)) else { return };
    let Machine { portcullis, .. } = &machine;
    assert_eq!(machine.call(target, "127.0.0.9:0", "0.5"), (true, false));
    let seen = portcullis.seen();
    assert!(portcullis.reconfigure(with(&many)).is("reload.applied"));
    let off = portcullis.event_after(seen, "shield.off", |event| event.is("shield.off"));
    assert!(off.text("detail").contains("increase net.core.optmem_max"), "{}", off.0);
    let warned = |message: &str| message.contains("cannot attach the packet filter of");
    portcullis.event_after(seen, "a warning", |event| event.0["error"].as_str().is_some_and(warned));
    assert_eq!(machine.call(target, "127.0.0.9:0", "30"), (false, false), "it is closed, and not left alone");
    assert_eq!(machine.call(target, "127.0.0.1:0", "30"), (false, true));
    let seen = portcullis.seen();
    assert!(portcullis.reconfigure(with(&few)).is("reload.applied"));
    portcullis.event_after(seen, "shield.on", |event| event.is("shield.on"));
    assert_eq!(machine.call(target, "127.0.0.9:0", "0.5"), (true, false));
    assert_eq!(machine.call(target, "127.0.0.1:0", "30"), (false, true));
}
