//! Certificates that change under running clients.

use std::process::Stdio;

use crate::harness::postgres::client;
use crate::harness::program::{Running, run};
use crate::harness::{Listener, Portcullis, Postgres, Redis, Site};
use crate::postgres::conninfo;

const ROTATIONS: usize = 20;

/// Puts a new certificate in place and waits until it is taken, again and again.
fn rotate(portcullis: &Portcullis) {
    for _ in 0..ROTATIONS {
        let leaf = portcullis.site.server();
        portcullis.site.replace("server.crt", leaf.pem());
        portcullis.site.replace("server.key", leaf.key_pem());
        let sha256 = leaf.sha256();
        // A reload says which certificates came and went.
        portcullis.event("the rotation", |event| !event.is("reload.rejected") && event.0.to_string().contains(&sha256));
    }
}

#[test]
fn twenty_rotations_cost_no_redis_client_an_error() {
    let redis = Redis::start();
    let config = format!("reload.poll = \"0s\"\n{}", Listener::redis(&redis));
    let portcullis = Portcullis::start(Site::new(), config);
    let mut inside = portcullis.client().connect();
    inside.ask(b"PING\r\n", b"+PONG\r\n");
    std::thread::scope(|scope| {
        let rotating = scope.spawn(|| rotate(&portcullis));
        let mut rounds = 0_u32;
        while !rotating.is_finished() || rounds == 0 {
            // A session that stays, and one that is new every time.
            inside.ask(&b"PING\r\n".repeat(200), &b"+PONG\r\n".repeat(200));
            portcullis.client().connect().ask(b"PING\r\n", b"+PONG\r\n");
            rounds += 1;
        }
        rotating.join().unwrap();
    });
    let events = portcullis.events();
    assert!(!events.iter().any(|event| event.is("connection.denied")));
}

#[test]
fn twenty_rotations_cost_pgbench_nothing() {
    let postgres = Postgres::start();
    let config = format!("reload.poll = \"0s\"\n{}", Listener::postgres(&postgres));
    let portcullis = Portcullis::start(Site::new(), config);
    let conninfo = conninfo(&portcullis);
    run(client("pgbench").args(["-i", "-q", "-d", &conninfo])).success();
    // Two clients that stay connected, and two that connect anew for every transaction. Both go on until interrupted.
    let start = |options: &[&str]| {
        let mut pgbench = client("pgbench");
        pgbench.args(["-n", "-S", "-c", "2", "-T", "600", "-d", &conninfo]).args(options);
        Running::start(pgbench.stdout(Stdio::null()).stderr(Stdio::piped()))
    };
    let mut running = [start(&[]), start(&["-C"])];
    rotate(&portcullis);
    let events = portcullis.events();
    assert!(!events.iter().any(|event| event.is("connection.denied")));
    for pgbench in &mut running {
        assert!(pgbench.0.try_wait().unwrap().is_none(), "pgbench gave up");
        pgbench.signal("INT");
        pgbench.exit_code();
        let said = std::io::read_to_string(pgbench.0.stderr.take().unwrap()).unwrap();
        assert!(!said.contains("error") && !said.contains("aborted"), "{said}");
    }
}
