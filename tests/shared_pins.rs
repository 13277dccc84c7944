//! Changes of client certificates that concern several listeners, or nothing.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::admin_guide::keys;
use crate::api::admin;
use crate::harness::api::Api;
use crate::harness::guide::document;
use crate::harness::portcullis::executable;
use crate::harness::program::{free_address, run};
use crate::harness::{Authority, Leaf, Listener, Portcullis, Request, TestDir, Upstream};
use crate::revocation::session;

/// Listeners `main`, `queue` and `other`. The first two name one directory of client certificates.
struct Shared {
    portcullis: Portcullis,
    /// Kept open.
    _upstream: Upstream,
    anybody: Authority,
}

const PINS: &str = "/v1/listeners/main/client-certificates";

impl Shared {
    fn start() -> Self {
        let (upstream, site, address): (_, _, SocketAddr) = (Upstream::echo(), TestDir::new(), free_address());
        let anybody = Authority::new("Anybody's CA");
        let listener = |name: &str, directory: &str| {
            fs::create_dir_all(site.path(directory)).unwrap();
            Listener::redis(&upstream)
                .named(name)
                .tls("client_auth = \"required\"")
                .tls(&format!("client_certificates = \"{directory}\""))
        };
        let queue = listener("queue", "clients").tls("trusted_clients = [\"cn:app\"]");
        let config = format!("{}{}{queue}{}", admin(address), listener("main", "clients"), listener("other", "else"));
        let portcullis = Portcullis::start(site, config);
        portcullis.address("queue");
        Self { portcullis, _upstream: upstream, anybody }
    }

    fn unix(&self) -> Api {
        Api::at_socket(self.portcullis.site.path("admin.sock"))
    }

    fn client(&self, name: &str) -> Leaf {
        self.anybody.issue(Request::client(name))
    }

    fn command(&self, arguments: &[&str]) -> String {
        let mut command = executable();
        command.args(arguments).args(["--socket", "admin.sock"]).current_dir(self.portcullis.site.directory());
        run(&mut command).success()
    }

    /// The details of this action in the audit, in order.
    fn audited(&self, action: &str) -> Vec<Value> {
        let events = self.portcullis.events();
        let wanted = events.iter().filter(|event| event.is("admin.action") && event.0["action"] == action);
        wanted.map(|event| event.0["detail"].clone()).collect()
    }
}

fn body_of(leaf: &Leaf) -> Value {
    json!({ "certificate": leaf.pem() })
}

#[test]
fn listeners_that_share_a_directory_are_named_in_plan_answer_and_audit() {
    let shared = Shared::start();
    let (app, jobs) = (shared.client("app"), shared.client("jobs"));
    let plan = |leaf: &Leaf| shared.unix().post(&format!("{PINS}?plan=true"), &body_of(leaf)).expect(200);
    let both = json!(["main", "queue"]);
    let planned = plan(&jobs);
    assert_eq!((&planned["listeners"], &planned["admits_nobody"]), (&both, &json!(false)));
    let warning = planned["warnings"][0].as_str().unwrap();
    assert!(warning.contains("matches no pattern of trusted_clients of listener queue"), "{warning}");
    assert_eq!(plan(&app)["warnings"], json!([]));

    let mut found = BTreeSet::new();
    let answer = shared.unix().post(PINS, &body_of(&app)).expect(201);
    keys(&answer, &mut found);
    assert_eq!((&answer["listeners"], &answer["subject"]), (&both, &json!("CN=app")));
    assert_eq!(plan(&app)["listeners"], json!([]), "it is pinned");
    assert_eq!(shared.unix().post(PINS, &body_of(&app)).expect(201)["listeners"], json!([]));
    for (listener, is_admitted) in [("main", true), ("queue", true), ("other", false)] {
        let (port, attempt) = shared.portcullis.client_of(listener).showing(&app).attempt();
        assert_eq!(attempt.is_ok(), is_admitted, "{listener}");
        drop(attempt);
        // Until then the plan below would end its session.
        shared.portcullis.ending(port);
    }

    shared.portcullis.site.write("app.pem", app.pem());
    shared.portcullis.site.write("jobs.pem", jobs.pem());
    let unpin = shared.command(&["certs", "unpin", "main", "app.pem", "--plan"]);
    assert!(unpin.contains("this would also change: queue\n"), "{unpin}");
    assert!(unpin.contains("no one can connect to main, queue after this; no session would end"), "{unpin}");
    let planned = shared.unix().delete(&format!("{PINS}/{}?plan=true", app.sha256())).expect(200);
    keys(&planned, &mut found);
    assert_eq!((&planned["listeners"], &planned["listeners_admitting_nobody"]), (&both, &both));
    assert_eq!(shared.unix().delete(&format!("{PINS}/{}", app.sha256())).status, 204);
    let pinned = shared.command(&["certs", "pin", "main", "jobs.pem"]);
    assert!(pinned.ends_with("also admitted by: queue\n"), "{pinned}");

    let detail = |subject: &str| json!(format!("{subject}; also changes queue"));
    shared.portcullis.event("the last pin", |event| event.is("admin.action") && event.0["detail"] == detail("CN=jobs"));
    assert_eq!(shared.audited("certs.pin"), [detail("CN=app"), detail("CN=jobs")], "a repeated pin is not audited");
    assert_eq!(shared.audited("certs.unpin"), [detail("CN=app")]);
    let guide = document("docs/ADMIN.md");
    let missing: Vec<_> = found.iter().filter(|key| !guide.contains(&format!("`{key}`"))).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn plan_of_an_unpin_says_that_the_certificate_would_no_longer_be_pinned() {
    let shared = Shared::start();
    let app = shared.client("app");
    shared.unix().post(PINS, &body_of(&app)).expect(201);
    let _session = session(&shared.portcullis, &app);
    let plan = shared.unix().delete(&format!("{PINS}/{}?plan=true", app.sha256())).expect(200);
    let detail = plan["sessions_ended"][0]["detail"].as_str().unwrap();
    assert!(detail.contains("CN=app would no longer be pinned") && !detail.contains("was removed"), "{detail}");
}
