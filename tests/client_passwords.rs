//! Passwords of clients that the admin API lists, adds and removes, with real PostgreSQL sessions.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::process::{Child, Stdio};
use std::sync::Mutex;
use std::thread;

use portcullis::internals::timestamp;
use serde_json::{Value, json};

use crate::admin_guide::keys;
use crate::api::{OPERATOR, OWNER, VIEWER, admin};
use crate::credentials_postgres::{ask, keyed};
use crate::harness::api::{Api, ApiReply};
use crate::harness::credentials::{OTHER_PASSWORD, PASSWORD, add_password, set_client, site, with_credentials};
use crate::harness::guide::document;
use crate::harness::portcullis::executable;
use crate::harness::program::{free_address, run};
use crate::harness::{Event, Listener, Portcullis, Postgres, TestDir, Upstream, eventually};
use crate::postgres::{conninfo, psql};

const CLIENTS: &str = "/v1/listeners/main/clients";
const PASSWORDS: &str = "/v1/listeners/main/clients/app/passwords";

/// A program whose listener `main` authenticates the client `app`, and its admin API.
struct Gate {
    portcullis: Portcullis,
    address: SocketAddr,
}

impl Gate {
    fn before(postgres: &Postgres) -> Self {
        Self::with(site(), &with_credentials(Listener::postgres(postgres)).to_string())
    }

    fn with(site: TestDir, listeners: &str) -> Self {
        Self::with_keys("", site, listeners)
    }

    /// The same with keys above the first table.
    fn with_keys(keys: &str, site: TestDir, listeners: &str) -> Self {
        let address = free_address();
        let portcullis = Portcullis::start(site, format!("{keys}{}{listeners}", admin(address)));
        portcullis.address("main");
        Self { portcullis, address }
    }

    fn unix(&self) -> Api {
        Api::at_socket(self.portcullis.site.path("admin.sock"))
    }

    fn tcp(&self, token: &str) -> Api {
        Api::at(self.address).with_token(token)
    }

    fn list(&self) -> Value {
        self.unix().get(CLIENTS).expect(200)
    }

    /// The passwords of the first client.
    fn passwords(&self) -> Vec<Value> {
        self.list()["clients"][0]["passwords"].as_array().unwrap().clone()
    }

    fn file(&self) -> String {
        fs::read_to_string(self.portcullis.site.path("clients.toml")).unwrap()
    }

    /// The targets of the actions of this name in the audit.
    fn targets(&self, action: &str) -> Vec<String> {
        let events = self.portcullis.events();
        let of_action = events.iter().filter(|event| event.is("admin.action") && event.0["action"] == action);
        of_action.map(|event| event.text("target").to_owned()).collect()
    }
}

fn add(api: &Api, body: &Value) -> Value {
    api.post(PASSWORDS, body).expect(201)
}

fn text<'v>(value: &'v Value, field: &str) -> &'v str {
    value[field].as_str().unwrap_or_else(|| panic!("{field} of {value}"))
}

fn etag(reply: &ApiReply) -> String {
    format!("If-Match: {}\r\n", reply.header("etag").expect("an ETag"))
}

/// The salts and the keys of all verifiers in the text of a file.
fn secret_parts(file: &str) -> BTreeSet<String> {
    let verifiers = file.split('"').filter(|part| part.starts_with("SCRAM-SHA-256$"));
    let parts = verifiers.flat_map(|verifier| verifier.split(['$', ':']).filter(|part| part.ends_with('=')));
    let parts: BTreeSet<_> = parts.map(str::to_owned).collect();
    assert!(parts.len() >= 3, "{file}");
    parts
}

/// A psql that waits in a query. Ended when it is dropped.
struct Session(Child);

impl Session {
    fn open(gate: &Gate, user: &str, password: &str) -> Self {
        let before = gate.portcullis.sessions().len();
        let mut psql = psql(&conninfo(&gate.portcullis).replace("user=app", &format!("user={user}")));
        psql.env("PGPASSWORD", password).args(["-w", "-c", "select pg_sleep(600)"]);
        let child = psql.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let session = Self(child);
        eventually("the session", || (gate.portcullis.sessions().len() > before).then_some(()));
        session
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn generated_password_is_answered_once_and_works_at_once() {
    let postgres = keyed();
    let gate = Gate::before(&postgres);
    let api = gate.tcp(OPERATOR);
    let added = add(&api, &json!({ "ttl": "90d" }));
    let password = text(&added, "password").to_owned();
    assert_eq!((password.len(), text(&added, "id"), text(&added, "user")), (32, "p2", "app"));
    assert_eq!((text(&added, "state"), &added["listeners"]), ("valid", &json!(["main"])));
    let conninfo = conninfo(&gate.portcullis);
    for password in [PASSWORD, &password] {
        assert_eq!(ask(&conninfo, password, "select current_user").success(), "keyed\n");
    }

    gate.portcullis.wait_until_idle();
    let listed = gate.passwords();
    let [first, second] = listed.as_slice() else { panic!("two passwords: {listed:?}") };
    assert_eq!((text(first, "id"), text(second, "id")), ("p1", "p2"));
    assert_eq!((&first["expires_at"], &second["expires_at"]), (&Value::Null, &added["expires_at"]));
    for each in [first, second] {
        assert_eq!((text(each, "state"), &each["sessions"]), ("valid", &json!(0)), "{each}");
        assert_eq!(each["last_users"][0]["source"], "127.0.0.1", "{each}");
        assert!(each["last_used"].is_string() && each["created_at"].is_string(), "{each}");
    }
    // Without a body as without a password, another one is generated.
    let third = api.request("POST", PASSWORDS, "", b"").expect(201);
    assert_eq!((text(&third, "id"), &third["expires_at"]), ("p3", &Value::Null));
    assert_ne!(text(&third, "password"), password);
    eventually("both actions", || (gate.targets("password.add") == ["main/app/p2", "main/app/p3"]).then_some(()));
    // The file has the salt of the first password in all of them.
    let salts: BTreeSet<String> =
        gate.file().split("scram = \"").skip(1).map(|rest| rest.split('$').nth(1).unwrap().to_owned()).collect();
    assert_eq!(salts.len(), 1, "{salts:?}");
}

#[test]
fn removed_password_ends_exactly_its_sessions_as_the_plan_names_them() {
    let postgres = keyed();
    let gate = Gate::before(&postgres);
    let api = gate.tcp(OPERATOR);
    add(&api, &json!({ "password": OTHER_PASSWORD }));
    api.post("/v1/listeners/main/clients/web/passwords", &json!({ "password": PASSWORD })).expect(201);
    let mut sessions = [("app", PASSWORD), ("app", OTHER_PASSWORD), ("web", PASSWORD)]
        .map(|(user, password)| Session::open(&gate, user, password));
    let counts: Vec<_> = gate.passwords().iter().map(|password| password["sessions"].clone()).collect();
    assert_eq!(counts, [1, 1]);
    let first = gate.portcullis.sessions()[0]["session"].clone();

    let (before, target) = (gate.file(), format!("{PASSWORDS}/p1"));
    let plan = api.delete(&format!("{target}?plan=true")).expect(200);
    assert_eq!((plan["sessions_ended_count"].clone(), plan["listeners"].clone()), (json!(1), json!(["main"])));
    let ended = &plan["sessions_ended"][0];
    assert_eq!((&ended["session"], text(ended, "user")), (&first, "app"));
    assert_eq!(text(ended, "reason"), "credential_revoked");
    assert_eq!((text(&plan["password"], "id"), &plan["password"]["sessions"]), ("p1", &json!(1)));
    assert_eq!((&plan["warnings"], &plan["is_new_client"]), (&json!([]), &json!(false)));
    assert_eq!(gate.file(), before, "a plan changes nothing");
    assert_eq!((gate.portcullis.sessions().len(), gate.targets("password.remove").len()), (3, 0));

    let seen = gate.portcullis.seen();
    api.delete(&target).expect(204);
    let closed = gate.portcullis.event_after(seen, "an end", |event| event.is("connection.closed"));
    let applied = gate.portcullis.event_after(seen, "a reload", |event| event.is("reload.applied"));
    let at = |event: &Event| timestamp::parse(event.text("ts")).unwrap();
    assert!(at(&closed) - at(&applied) < time::Duration::SECOND);
    assert_eq!((json!(closed.number("session")), closed.reason()), (first, "credential_revoked"));
    assert_eq!(sessions[0].0.wait().unwrap().code(), Some(2));
    let users: Vec<_> = gate.portcullis.sessions().iter().map(|session| session["user"].clone()).collect();
    assert_eq!(users, ["app", "web"]);
    // In force before the answer: a new client is denied.
    assert_ne!(ask(&conninfo(&gate.portcullis), PASSWORD, "select 1").code, Some(0));
    eventually("the action", || (gate.targets("password.remove") == ["main/app/p1"]).then_some(()));

    api.delete(&target).expect_error(404, "not_found");
    api.delete("/v1/listeners/main/clients/nobody/passwords/p1").expect_error(404, "not_found");
    let last = api.delete(&format!("{PASSWORDS}/p2?plan=true")).expect(200);
    let warning = last["warnings"][0].as_str().unwrap();
    assert!(warning.contains("no other valid password and no certificate"), "{warning}");
}

#[test]
fn plan_of_a_new_password_changes_nothing_and_has_no_password() {
    let upstream = Upstream::silent();
    let gate = Gate::with(site(), &with_credentials(Listener::postgres(&upstream)).to_string());
    let before = gate.file();
    let plan = gate.unix().post("/v1/listeners/main/clients/new/passwords?plan=true", &json!({})).expect(200);
    assert_eq!((text(&plan, "user"), &plan["is_new_client"]), ("new", &json!(true)));
    assert_eq!((text(&plan["password"], "id"), &plan["sessions_ended"]), ("p1", &json!([])));
    let mut found = BTreeSet::new();
    keys(&plan, &mut found);
    assert_eq!(plan["password"]["password"], Value::Null);
    assert!(!found.contains("scram"), "{found:?}");
    assert_eq!(gate.file(), before);
    assert_eq!(gate.list()["clients"].as_array().unwrap().len(), 1);
    // A user has any name but that of a control character, also with a slash.
    let odd = "/v1/listeners/main/clients/a%2Fb%20c/passwords";
    assert_eq!(text(&gate.unix().post(odd, &json!({})).expect(201), "user"), "a/b c");
    gate.unix().delete(&format!("{odd}/p1")).expect(204);
    gate.unix()
        .post("/v1/listeners/main/clients/a%0Ab/passwords", &json!({}))
        .expect_error(422, "unprocessable_entity");
}

#[test]
fn password_is_bound_by_the_rule_of_the_command() {
    let upstream = Upstream::silent();
    let gate = Gate::with(site(), &with_credentials(Listener::postgres(&upstream)).to_string());
    let (api, before) = (gate.unix(), gate.file());
    for (body, status, word) in [
        (json!({ "password": "Short-1" }), 422, "at least 8"),
        (json!({ "password": "no-upper-1" }), 422, "upper-case"),
        (json!({ "password": PASSWORD }), 409, "has this password already, with the ID p1"),
        (json!({ "id": "p1" }), 409, "the ID p1 already"),
        (json!({ "id": "not an ID" }), 422, "id: expected"),
        (json!({ "ttl": "0s" }), 422, "ttl: expected"),
        (json!({ "expires_at": "2020-01-01T00:00:00Z" }), 422, "in the future"),
        (json!({ "scram": "x" }), 422, "the body must be"),
    ] {
        let reply = api.post(PASSWORDS, &body);
        assert_eq!(reply.status, status, "{body}: {}", reply.body);
        let message = text(&reply.body, "message");
        assert!(message.contains(word) && !message.contains("Short-1") && !message.contains(PASSWORD), "{message}");
    }
    assert_eq!(gate.file(), before);
    assert!(gate.targets("password.add").is_empty());
    for number in 2..=16 {
        add(&api, &json!({ "id": format!("x{number}") }));
    }
    let before = gate.file();
    let many = api.post(PASSWORDS, &json!({})).expect_error(422, "reload_rejected");
    assert!(many.contains("more than 16 passwords"), "{many}");
    assert_eq!(gate.file(), before);
}

#[test]
fn list_shows_every_client_and_nothing_of_a_verifier() {
    let upstream = Upstream::silent();
    let site = site();
    add_password(&site, "off", PASSWORD);
    set_client(&site, "disable", "off");
    let clients = fs::read_to_string(site.path("clients.toml")).unwrap();
    let expired = clients.replacen("p1\",", "p1\", expires_at = 2020-01-01T00:00:00Z,", 1);
    let web =
        "[[client]]\nuser = \"web\"\ncertificates = [\"cn:web\", \"dns:web.internal\"]\nupstream_user = \"reader\"\n";
    site.write("clients.toml", format!("{expired}\n{web}"));
    let gate = Gate::with(site, &with_credentials(Listener::postgres(&upstream)).to_string());
    let list = gate.tcp(VIEWER).get(CLIENTS).expect(200);
    let of = |user: &str| list["clients"].as_array().unwrap().iter().find(|client| client["user"] == user).unwrap();
    assert_eq!((&of("app")["disabled"], &of("off")["disabled"]), (&json!(false), &json!(true)));
    assert_eq!(of("web")["certificates"], json!(["cn:web", "dns:web.internal"]));
    assert_eq!((text(of("app"), "upstream_user"), text(of("web"), "upstream_user")), ("keyed", "reader"));
    let state = |user: &str| text(&of(user)["passwords"][0], "state").to_owned();
    assert_eq!((state("app"), state("off")), ("expired".to_owned(), "disabled".to_owned()));
    assert_eq!(of("web")["passwords"], json!([]));
    assert!(
        text(&list, "clients_file").ends_with("/clients.toml") && list["writable"] == true && list["reason"].is_null()
    );
    let shown = list.to_string();
    for key in secret_parts(&gate.file()) {
        assert!(!shown.contains(&key), "{key} is in {shown}");
    }
    let file = gate.portcullis.site.path("clients.toml");
    assert_eq!(text(&list, "clients_file"), file.display().to_string());
}

#[test]
fn role_decides_and_failures_leave_no_action() {
    let upstream = Upstream::silent();
    let gate = Gate::with(site(), &with_credentials(Listener::postgres(&upstream)).to_string());
    let viewer = gate.tcp(VIEWER);
    viewer.get(CLIENTS).expect(200);
    viewer.post(PASSWORDS, &json!({})).expect_error(403, "forbidden");
    viewer.delete(&format!("{PASSWORDS}/p1")).expect_error(403, "forbidden");
    Api::at(gate.address).get(CLIENTS).expect_error(401, "unauthorized");
    for unknown in ["/v1/listeners/no/clients", "/v1/listeners/group:x/clients"] {
        gate.unix().get(unknown).expect_error(404, "not_found");
    }
    gate.tcp(OWNER).post(&format!("{PASSWORDS}?plan=yes"), &json!({})).expect_error(422, "unprocessable_entity");
    assert_eq!(gate.passwords().len(), 1);
    let added = add(&gate.tcp(OPERATOR), &json!({ "ttl": "1h" }));
    let event = gate.portcullis.event("an action", |event| event.is("admin.action"));
    let facts = ["actor", "role", "action", "target"].map(|field| event.text(field));
    assert_eq!(facts, ["token:operator", "operator", "password.add", "main/app/p2"]);
    assert_eq!(event.text("detail"), format!("expires at {}", text(&added, "expires_at")));
}

#[test]
fn secret_is_in_no_other_answer_no_log_and_no_audit() {
    let postgres = keyed();
    let mut gate = Gate::before(&postgres);
    let api = gate.unix();
    let sent = "Sent-by-8-callers";
    let generated = text(&add(&api, &json!({})), "password").to_owned();
    assert_eq!(add(&api, &json!({ "password": sent }))["password"], Value::Null);
    // Every answer to the same request is another password, or an error.
    let again = api.post(PASSWORDS, &json!({ "password": sent })).expect_error(409, "conflict");
    let session = Session::open(&gate, "app", &generated);
    let plan = api.delete(&format!("{PASSWORDS}/p2?plan=true")).expect(200);
    let answers = [CLIENTS, "/v1/status", "/v1/rotation", "/v1/sessions", "/v1/events?recent=1000&follow=false"]
        .map(|path| String::from_utf8(api.raw(api.head("GET", path, "", 0).as_bytes())).unwrap());
    api.delete(&format!("{PASSWORDS}/p2")).expect(204);
    drop(session);
    let parts = secret_parts(&gate.file());
    let errors = gate.portcullis.errors();
    let (_, events) = gate.portcullis.stop();
    let log: String = events.iter().map(|event: &Event| event.0.to_string()).collect();
    assert!(log.contains("password.add") && log.contains("password.remove"));
    let plan = plan.to_string();
    let outputs = answers.iter().chain([&again, &plan, &errors, &log]);
    for output in outputs {
        for secret in [generated.as_str(), sent, PASSWORD].into_iter().chain(parts.iter().map(String::as_str)) {
            assert!(!output.contains(secret), "{secret} is in {output}");
        }
    }
}

#[test]
fn file_keeps_its_mode_comments_and_other_clients() {
    let upstream = Upstream::silent();
    let site = site();
    let clients = fs::read_to_string(site.path("clients.toml")).unwrap();
    let text_before = format!(
        "# Of the shop.\n\n{clients}\n# by certificate\n[[client]]\nuser = \"web\"\ncertificates = \"cn:web\"\n"
    );
    site.write("clients.toml", &text_before);
    let file = site.path("clients.toml");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    let gate = Gate::with(site, &with_credentials(Listener::postgres(&upstream)).to_string());
    add(&gate.unix(), &json!({}));
    let after = gate.file();
    assert!(after.starts_with("# Of the shop.\n\n") && after.contains("\n# by certificate\n"), "{after}");
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o640);
    gate.unix().delete(&format!("{PASSWORDS}/p2")).expect(204);
    assert_eq!(gate.file(), text_before);
}

#[test]
fn concurrent_changes_are_all_made_and_an_outdated_one_is_refused() {
    let upstream = Upstream::silent();
    let gate = Gate::with(site(), &with_credentials(Listener::postgres(&upstream)).to_string());
    let old = etag(&gate.unix().get(CLIENTS));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| add(&gate.unix(), &json!({})));
        }
    });
    let ids: BTreeSet<String> = gate.passwords().iter().map(|each| text(each, "id").to_owned()).collect();
    assert_eq!(ids, ["p1", "p2", "p3", "p4", "p5"].map(str::to_owned).into());
    let target = format!("{PASSWORDS}/p5");
    let refused = gate.unix().request("DELETE", &target, &old, b"");
    refused.expect_error(412, "precondition_failed");
    let new = etag(&gate.unix().get(CLIENTS));
    let removed = gate.unix().request("DELETE", &target, &new, b"");
    assert_ne!(etag(&removed), new);
    removed.expect(204);
}

#[test]
fn change_that_meets_one_of_the_command_is_made_or_refused_and_never_lost() {
    let upstream = Upstream::silent();
    let gate = Gate::with(site(), &with_credentials(Listener::postgres(&upstream)).to_string());
    let file = gate.portcullis.site.path("clients.toml");
    let by_command = |id: &str| {
        let mut command = executable();
        let outcome = run(command.args(["password", "add", "app", "--generate", "--id", id, "-f"]).arg(&file));
        assert!(outcome.code == Some(0) || outcome.stderr.contains("was edited meanwhile"), "{}", outcome.stderr);
        outcome.code == Some(0)
    };
    let by_api = |id: &str| {
        let reply = gate.unix().post(PASSWORDS, &json!({ "id": id }));
        let is_made = reply.status == 201;
        assert!(is_made || reply.expect_error(409, "conflict").contains("was edited meanwhile"));
        is_made
    };
    let all_made = Mutex::new(BTreeSet::from(["p1".to_owned()]));
    let (made, by_command, by_api) = (&all_made, &by_command, &by_api);
    thread::scope(|scope| {
        for id in ["a", "b", "c", "d"] {
            scope.spawn(move || by_command(id).then(|| made.lock().unwrap().insert(id.to_owned())));
        }
        for id in ["e", "f", "g", "h"] {
            scope.spawn(move || by_api(id).then(|| made.lock().unwrap().insert(id.to_owned())));
        }
    });
    let made = all_made.into_inner().unwrap();
    eventually("all are in force", || {
        let ids: BTreeSet<String> = gate.passwords().iter().map(|each| text(each, "id").to_owned()).collect();
        (ids == made).then_some(())
    });
}

#[test]
fn change_by_hand_is_detected_and_an_invalid_file_stays_as_it_is() {
    let upstream = Upstream::silent();
    let listener = with_credentials(Listener::postgres(&upstream)).to_string();
    let gate = Gate::with_keys("reload.watch = false\nreload.poll = \"0s\"\n", site(), &listener);
    let tag = etag(&gate.unix().get(CLIENTS));
    add_password(&gate.portcullis.site, "app", OTHER_PASSWORD);
    gate.unix().request("POST", PASSWORDS, &tag, b"{}").expect_error(412, "precondition_failed");
    // Another password under a known ID looks the same in the list.
    let added = gate.file();
    let first = added.split('"').find(|part| part.starts_with("SCRAM-SHA-256$")).unwrap().to_owned();
    let second = added.split('"').rfind(|part| part.starts_with("SCRAM-SHA-256$")).unwrap().to_owned();
    let [one, _] = added.split("    { id = \"p2\"").collect::<Vec<_>>().try_into().unwrap();
    gate.portcullis.site.write("clients.toml", format!("{}]\n", one.replace(&first, &second)));
    gate.unix().request("POST", PASSWORDS, &tag, b"{}").expect_error(412, "precondition_failed");
    gate.portcullis.site.write("clients.toml", &added);
    // Without a precondition the change is made to the file as it is, and both come into force.
    assert_eq!(text(&add(&gate.unix(), &json!({})), "id"), "p3");
    assert_eq!(gate.passwords().len(), 3);
    for broken in [gate.file().replace("user = ", "usr = "), " \n".to_owned(), "client = ".to_owned()] {
        gate.portcullis.site.write("clients.toml", &broken);
        for reply in [gate.unix().post(PASSWORDS, &json!({})), gate.unix().delete(&format!("{PASSWORDS}/p1"))] {
            assert!([404, 409, 422].contains(&reply.status), "{}", reply.body);
        }
        assert_eq!(gate.file(), broken);
    }
    assert_eq!(gate.passwords().len(), 3, "the policy in force stays");
}

#[test]
fn shared_file_changes_all_its_listeners_and_a_listener_without_one_says_so() {
    let upstream = Upstream::silent();
    let listeners =
        ["main", "other"].map(|name| with_credentials(Listener::postgres(&upstream).named(name)).to_string());
    let open = Listener::postgres(&upstream).named("open").to_string();
    let gate = Gate::with(site(), &format!("{}{open}", listeners.concat()));
    let added = add(&gate.unix(), &json!({}));
    assert_eq!(added["listeners"], json!(["main", "other"]));
    let event = gate.portcullis.event("an action", |event| event.is("admin.action"));
    assert_eq!(event.text("detail"), "also changes other");
    let list = gate.unix().get("/v1/listeners/open/clients").expect(200);
    assert_eq!((&list["clients"], &list["clients_file"], &list["writable"]), (&json!([]), &Value::Null, &json!(false)));
    let target = "/v1/listeners/open/clients/app/passwords";
    let refused = gate.unix().post(target, &json!({})).expect_error(409, "conflict");
    assert!(refused.contains("no [listener.credentials]") && text(&list, "reason") == refused, "{refused}");
}

#[test]
fn file_that_cannot_be_replaced_is_named() {
    let upstream = Upstream::silent();
    let site = site();
    fs::create_dir(site.path("locked")).unwrap();
    fs::copy(site.path("clients.toml"), site.path("locked/clients.toml")).unwrap();
    let listener =
        with_credentials(Listener::postgres(&upstream)).to_string().replace("clients.toml", "locked/clients.toml");
    let gate = Gate::with(site, &listener);
    // A directory in the place of the temporary file stops every user, also root.
    fs::create_dir(gate.portcullis.site.path("locked/.clients.toml.new")).unwrap();
    let refused = gate.unix().post(PASSWORDS, &json!({})).expect_error(409, "conflict");
    assert!(
        refused.contains("locked/clients.toml cannot be written") && refused.contains("nothing was changed"),
        "{refused}"
    );
    assert_eq!(gate.passwords().len(), 1);
}

#[test]
fn guide_describes_every_field() {
    let postgres = keyed();
    let gate = Gate::before(&postgres);
    let added = add(&gate.unix(), &json!({}));
    let _session = Session::open(&gate, "app", text(&added, "password"));
    let plan = gate.unix().delete(&format!("{PASSWORDS}/p2?plan=true")).expect(200);
    assert_eq!(plan["sessions_ended_count"], 1);
    let mut found = BTreeSet::new();
    [gate.list(), added, plan].iter().for_each(|answer| keys(answer, &mut found));
    let guide = document("docs/ADMIN.md");
    let missing: Vec<_> = found.iter().filter(|key| !guide.contains(&format!("`{key}`"))).collect();
    assert!(missing.is_empty(), "docs/ADMIN.md does not describe {missing:?}");
}
