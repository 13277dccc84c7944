//! Rotations of every kind of certificate and key under load.

use std::fmt::Write as _;

use crate::harness::load::UNTIL_STOPPED;
use crate::harness::pki::CrlContent;
use crate::harness::postgres::client;
use crate::harness::program::{command, run};
use crate::harness::{Authority, Event, Leaf, Listener, Load, Portcullis, Postgres, Redis, Request, TestDir};
use crate::postgres::conninfo;
use crate::reload::{ON_CHANGE, ON_SIGHUP};

/// The number of rotations of each kind.
const ROTATIONS: usize = 50;

/// The kinds of rotation.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    /// The server certificate: a new one each time.
    Server,
    /// CAs of clients: an unused one is added and removed.
    Authorities,
    /// Uploaded client certificates: a new one is added, the previous one is removed.
    Uploaded,
    /// A newer CRL that revokes another certificate.
    List,
    /// An unused rule is added, and its predecessor removed.
    Sources,
    /// The rule that admits all clients is replaced by another that does the same.
    Cover,
    /// `trusted_clients` gets narrower and wider.
    Names,
    /// A new first ticket key; the previous one stays.
    Tickets,
    /// A listener is added and removed.
    Beside,
}

const KINDS: [Kind; 9] = [
    Kind::Server,
    Kind::Authorities,
    Kind::Uploaded,
    Kind::List,
    Kind::Sources,
    Kind::Cover,
    Kind::Names,
    Kind::Tickets,
    Kind::Beside,
];

/// The files that are rotated, and how often each kind has been.
struct World {
    clients: Authority,
    redis: Listener,
    postgres: Listener,
    turns: [usize; KINDS.len()],
}

impl World {
    fn new(redis: &Redis, postgres: &Postgres) -> Self {
        let wanting = |listener: Listener| {
            let listener = listener.tls("client_auth = \"required\"").tls("client_ca = \"clients.pem\"");
            let listener = listener.tls("client_certificates = \"uploaded/*.crt\"").tls("client_crl = \"clients.crl\"");
            listener.tls("ticket_keys = \"tickets.keys\"").key("sources_file = \"sources.toml\"")
        };
        let clients = Authority::new("Clients CA");
        let [redis, postgres] = [Listener::redis(redis), Listener::postgres(postgres).named("db")].map(wanting);
        Self { clients, redis, postgres, turns: [0; KINDS.len()] }
    }

    /// The client certificate that never changes.
    fn app(&self) -> Leaf {
        self.clients.issue(Request::client("app"))
    }

    fn turn(&self, kind: Kind) -> usize {
        self.turns[KINDS.iter().position(|other| *other == kind).unwrap()]
    }

    /// Rotates one kind in the files.
    fn rotate(&mut self, kind: Kind, site: &TestDir) {
        self.turns[KINDS.iter().position(|other| *other == kind).unwrap()] += 1;
        self.write(kind, site);
    }

    fn write(&self, kind: Kind, site: &TestDir) {
        let turn = self.turn(kind);
        match kind {
            Kind::Server => site.install("server", &site.server()),
            Kind::Authorities => {
                let others = if turn % 2 == 1 { Authority::new("Other CA").pem() } else { String::new() };
                site.replace("clients.pem", format!("{others}{}", self.clients.pem()));
            }
            Kind::Uploaded => site.replace("uploaded/other.crt", self.app().pem()),
            Kind::List => {
                let list = CrlContent::nothing(turn as u64 + 1).and(self.app().der());
                site.replace("clients.crl", self.clients.list(list).pem());
            }
            Kind::Sources => {
                site.replace("sources.toml", format!("[[rule]]\ntype = \"ip_addr\"\nvalue = \"192.0.2.{turn}\"\n"));
            }
            Kind::Tickets => site.replace("tickets.keys", format!("{}\n{}\n", key(turn + 1), key(turn))),
            Kind::Cover | Kind::Names | Kind::Beside => site.replace("portcullis.toml", self.config()),
        }
    }

    fn config(&self) -> String {
        let cover = [["127.0.0.1"], ["127.0.0.0/8"]][self.turn(Kind::Cover) % 2];
        let names = ["\"cn:app\", \"cn:other\"", "\"cn:app\""][self.turn(Kind::Names) % 2];
        let mut config = ON_SIGHUP.to_owned();
        for listener in [&self.redis, &self.postgres] {
            let listener = listener.clone().trusting(&cover).tls(&format!("trusted_clients = [{names}]"));
            write!(config, "{listener}").unwrap();
        }
        if self.turn(Kind::Beside) % 2 == 1 {
            write!(config, "{}", self.redis.clone().named("beside")).unwrap();
        }
        config
    }
}

/// A ticket key for each turn.
fn key(turn: usize) -> String {
    // 48 bytes are 64 digits of base64.
    format!("{turn:064}")
}

#[test]
fn rotations_of_every_kind_under_load_cause_no_client_error() {
    let (redis, postgres) = (Redis::start(), Postgres::start());
    let (site, mut world) = (TestDir::new(), World::new(&redis, &postgres));
    std::fs::create_dir(site.path("uploaded")).unwrap();
    let uploaded = Authority::new("Anybody's CA").issue(Request::client("app"));
    site.write("uploaded/app.crt", uploaded.pem());
    site.install("app", &world.app());
    KINDS.iter().for_each(|kind| world.write(*kind, &site));
    let portcullis = Portcullis::start(site, world.config());

    let loads = loads(&portcullis);
    let mut inside = portcullis.client().showing(world.app()).connect();
    let coming = portcullis.client().showing(uploaded);
    std::thread::scope(|scope| {
        let rotating = scope.spawn(|| {
            let mut rotate = |kinds: &[Kind]| {
                portcullis.applies(|| {
                    kinds.iter().for_each(|kind| world.rotate(*kind, &portcullis.site));
                    portcullis.hang_up();
                });
            };
            // Each by itself first, and then all of them at once.
            KINDS.iter().for_each(|kind| rotate(&[*kind]));
            (1..ROTATIONS).for_each(|_| rotate(&KINDS));
        });
        while !rotating.is_finished() {
            // A session that stays, and one that is new every time, under the CA and without.
            let long = vec![b'x'; 10_000];
            let echo = [b"*2\r\n$4\r\nECHO\r\n$10000\r\n", &long[..], b"\r\n"].concat();
            let echoed = [b"$10000\r\n", &long[..], b"\r\n"].concat();
            inside.ask(&echo.repeat(20), &echoed.repeat(20));
            coming.connect().ask(b"PING\r\n", b"+PONG\r\n");
        }
        rotating.join().unwrap();
    });
    // Before the loads are stopped.
    let events = portcullis.events();
    loads.into_iter().for_each(Load::stop_without_error);
    assert!(KINDS.iter().all(|kind| world.turn(*kind) == ROTATIONS));
    let harmed = |name: &str| events.iter().find(|event| event.is(name));
    for name in ["connection.denied", "session.revoked", "reload.rejected"] {
        assert!(harmed(name).is_none(), "{}", harmed(name).unwrap().0);
    }
    // Every reload has authorized all sessions: without the name they end.
    world.redis = world.redis.tls("trusted_clients = \"cn:other\"");
    portcullis.reconfigure(format!("{ON_SIGHUP}{}", world.redis));
    assert_eq!(inside.rest().unwrap(), b"");
    assert_eq!(portcullis.ending(inside.port()).reason(), "credential_revoked");
}

/// Clients by the CA: some that stay, some that connect for every transaction.
fn loads(portcullis: &Portcullis) -> [Load; 3] {
    let path = |name: &str| portcullis.site.path(name);
    let port = portcullis.address("main").port().to_string();
    let mut benchmark = command("redis-benchmark");
    benchmark.args(["-h", "127.0.0.1", "-p", &port, "-q", "-l", "-c", "4", "-P", "16", "-t", "set,get", "--tls"]);
    benchmark.arg("--cacert").arg(path("ca.crt")).arg("--cert").arg(path("app.crt")).arg("--key").arg(path("app.key"));

    let conninfo = conninfo(portcullis).replace(&port, &portcullis.address("db").port().to_string());
    let conninfo = format!("{conninfo} sslcert={} sslkey={}", path("app.crt").display(), path("app.key").display());
    run(client("pgbench").args(["-i", "-q", "-d", &conninfo])).success();
    let pgbench = |options: &[&str]| {
        let mut pgbench = client("pgbench");
        pgbench.args(["-n", "-S", "-c", "2", "-d", &conninfo]).args(UNTIL_STOPPED).args(options);
        Load::start(&mut pgbench)
    };
    [Load::start(&mut benchmark), pgbench(&[]), pgbench(&["-C"])]
}

#[test]
fn watched_rotations_under_load_cause_no_client_error() {
    let redis = Redis::start();
    let config = format!("{ON_CHANGE}{}", Listener::redis(&redis));
    let portcullis = Portcullis::start(TestDir::new(), config);
    let mut inside = portcullis.client().connect();
    std::thread::scope(|scope| {
        let rotating = scope.spawn(|| {
            for _ in 0..20 {
                let leaf = portcullis.site.server();
                portcullis.site.replace("server.crt", leaf.pem());
                portcullis.site.replace("server.key", leaf.key_pem());
                // A reload logs the certificates that were added and removed.
                let is_logged =
                    |event: &Event| event.is("reload.applied") && event.0.to_string().contains(&leaf.sha256());
                portcullis.event("the rotation", is_logged);
            }
        });
        while !rotating.is_finished() {
            inside.ask(&b"PING\r\n".repeat(200), &b"+PONG\r\n".repeat(200));
            portcullis.client().connect().ask(b"PING\r\n", b"+PONG\r\n");
        }
        rotating.join().unwrap();
    });
    assert!(!portcullis.events().iter().any(|event| event.is("connection.denied")));
}
