//! Client certificates that the admin API and the commands pin, remove and issue.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::process::Command;

use nix::unistd::geteuid;
use serde_json::{Value, json};

use crate::admin_guide::keys;
use crate::api::{OPERATOR, VIEWER, admin};
use crate::drain::begin_to_drain;
use crate::harness::api::Api;
use crate::harness::guide::document;
use crate::harness::log::Event;
use crate::harness::openssl::openssl;
use crate::harness::portcullis::{EXECUTABLE, executable};
use crate::harness::program::{Outcome, command, free_address, run, setpriv};
use crate::harness::{Authority, Leaf, Listener, Portcullis, Request, TestDir, Upstream};
use crate::reload::ON_SIGHUP;
use crate::revocation::{assert_ended, assert_lives, session};

/// A program whose listener `main` has `client_certificates`.
struct Pinning {
    portcullis: Portcullis,
    /// Kept open.
    _upstream: Upstream,
    address: SocketAddr,
    /// Issues certificates that no listener trusts by their CA.
    anybody: Authority,
}

/// How a program is started.
struct Setup<'a> {
    command: Command,
    /// Keys above the first table.
    process: &'a str,
    client_auth: &'a str,
    tls: &'a [&'a str],
    /// Of the listener.
    keys: &'a [&'a str],
}

impl<'a> Setup<'a> {
    fn requiring(tls: &'a [&'a str]) -> Self {
        Self { command: executable(), process: "", client_auth: "required", tls, keys: &[] }
    }

    fn start(self, prepare: impl FnOnce(&TestDir, &Authority)) -> Pinning {
        let Self { command, process, client_auth, tls, keys } = self;
        let (upstream, site, address) = (Upstream::echo(), TestDir::new(), free_address());
        let anybody = Authority::new("Anybody's CA");
        fs::create_dir(site.path("clients")).unwrap();
        prepare(&site, &anybody);
        let listener = Listener::redis(&upstream).tls(&format!("client_auth = \"{client_auth}\""));
        let listener = tls.iter().fold(listener, |listener, line| listener.tls(line));
        let listener = keys.iter().fold(listener, |listener, line| listener.key(line));
        let portcullis = Portcullis::start_by(command, site, format!("{process}{}{listener}", admin(address)));
        portcullis.address("main");
        Pinning { portcullis, _upstream: upstream, address, anybody }
    }
}

const PINS: &str = "/v1/listeners/main/client-certificates";
const DIRECTORY: &str = "client_certificates = \"clients\"";
const PATTERN: &str = "client_certificates = \"clients/*.crt\"";

impl Pinning {
    /// With an empty directory `clients`, and client certificates required.
    fn start(tls: &[&str]) -> Self {
        Self::with("required", tls, &[], |_, _| {})
    }

    /// The same with further keys of the listener and prepared files.
    fn with(client_auth: &str, tls: &[&str], keys: &[&str], prepare: impl FnOnce(&TestDir, &Authority)) -> Self {
        Setup { client_auth, keys, ..Setup::requiring(tls) }.start(prepare)
    }

    fn unix(&self) -> Api {
        Api::at_socket(self.portcullis.site.path("admin.sock"))
    }

    fn client(&self, name: &str) -> Leaf {
        self.anybody.issue(Request::client(name))
    }

    fn pin(&self, leaf: &Leaf) -> Value {
        self.unix().post(PINS, &body_of(leaf)).expect(201)
    }

    fn is_admitted(&self, leaf: &Leaf) -> bool {
        self.portcullis.client().showing(leaf).attempt().1.is_ok()
    }

    /// The names in the directory `clients`, sorted.
    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.portcullis.site.path("clients")).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort_unstable();
        names
    }

    /// The fingerprints in the list, in order.
    fn pinned(&self) -> Vec<String> {
        let list = self.unix().get(PINS).expect(200);
        let text = |pin: &Value| pin["sha256"].as_str().unwrap().to_owned();
        list["certificates"].as_array().unwrap().iter().map(text).collect()
    }

    /// A command over TCP with this token, in the directory of the site.
    fn remote(&self, token: &str, arguments: &[&str]) -> Outcome {
        run(self.at_home(arguments).arg("--url").arg(format!("http://{}", self.address)).env("PORTCULLIS_TOKEN", token))
    }

    fn socket(&self, arguments: &[&str]) -> Outcome {
        run(self.at_home(arguments).args(["--socket", "admin.sock"]))
    }

    fn at_home(&self, arguments: &[&str]) -> Command {
        let mut command = executable();
        command.args(arguments).current_dir(self.portcullis.site.directory());
        command
    }
}

fn path_of(leaf: &Leaf) -> String {
    format!("{PINS}/{}", leaf.sha256())
}

fn body_of(leaf: &Leaf) -> Value {
    json!({ "certificate": leaf.pem() })
}

#[test]
fn answer_means_that_new_connections_are_judged_by_the_change_and_sessions_end() {
    for place in [DIRECTORY, PATTERN] {
        let site = |site: &TestDir, anybody: &Authority| {
            site.write("clients/first.crt", anybody.issue(Request::client("first")).pem());
        };
        let pinning = Pinning::with("required", &[place], &[], site);
        let (app, other) = (pinning.client("app"), pinning.client("other"));
        assert!(!pinning.is_admitted(&app));
        let body = pinning.pin(&app);
        assert_eq!((&body["subject"], &body["sha256"]), (&json!("CN=app"), &json!(app.sha256())));
        let file = format!("{}.crt", app.sha256());
        assert!(body["file"].as_str().unwrap().ends_with(&file), "{body}");
        assert_eq!(fs::read_to_string(pinning.portcullis.site.path(&format!("clients/{file}"))).unwrap(), app.pem());
        let open = session(&pinning.portcullis, &app);
        pinning.pin(&other);
        let kept = session(&pinning.portcullis, &other);
        let listed = pinning.unix().get(PINS).expect(200);
        let of_app = listed["certificates"].as_array().unwrap().iter().find(|pin| pin["sha256"] == app.sha256());
        assert_eq!(of_app.unwrap()["sessions"], 1, "{listed}");

        assert_eq!(pinning.unix().delete(&path_of(&app)).status, 204);
        assert!(!pinning.is_admitted(&app));
        assert_ended(&pinning.portcullis, open, "credential_revoked");
        assert_lives(kept);
        // The next policy judges sessions only after the file is written and the change is in the audit.
        let events = pinning.portcullis.events();
        let position = |matches: &dyn Fn(&Event) -> bool| events.iter().position(matches).unwrap();
        let written = position(&|event| event.is("admin.action") && event.0["action"] == "certs.unpin");
        assert!(written < position(&|event| event.is("session.revoked")));
        assert!(!pinning.files().contains(&file), "{:?}", pinning.files());
        pinning.unix().delete(&path_of(&app)).expect_error(404, "not_found");

        for action in ["certs.pin", "certs.unpin"] {
            let event =
                pinning.portcullis.event(action, |event| event.is("admin.action") && event.0["action"] == action);
            assert_eq!(event.0["target"], format!("main/{}", app.sha256()));
            assert_eq!(event.0["actor"], "unix");
        }
    }
}

#[test]
fn last_certificate_of_a_directory_leaves_nobody_pinned() {
    let pinning = Pinning::start(&[DIRECTORY]);
    let app = pinning.client("app");
    let empty = pinning.unix().get(PINS).expect(200);
    assert_eq!((&empty["writable"], &empty["certificates"]), (&json!(true), &json!([])));
    let warned = pinning.portcullis.event("a warning", |event| {
        event.0["warning"].as_str().is_some_and(|text| text.contains("every client is rejected"))
    });
    assert!(warned.0["warning"].as_str().unwrap().contains("portcullis certs pin main FILE"), "{}", warned.0);
    pinning.pin(&app);
    let open = session(&pinning.portcullis, &app);
    let plan = pinning.unix().delete(&format!("{}?plan=true", path_of(&app))).expect(200);
    assert_eq!((&plan["admits_nobody"], &plan["sessions_ended_count"]), (&json!(true), &json!(1)));
    assert_eq!(plan["sessions_ended"][0]["client_subject"], "CN=app");
    assert_eq!(pinning.unix().delete(&path_of(&app)).status, 204);
    assert_ended(&pinning.portcullis, open, "credential_revoked");
    // Neither the former client, nor another one, nor one without a certificate.
    assert!(!pinning.is_admitted(&app) && !pinning.is_admitted(&pinning.client("other")));
    pinning.portcullis.client().attempt().1.unwrap_err();
    assert_eq!((pinning.files(), pinning.pinned()), (vec![], vec![]));
    // The next start has the same policy.
    let checked = run(pinning.at_home(&["check", "--offline", "-c", "portcullis.toml"]).env("TZ", "UTC"));
    assert!(checked.text().contains("every client is rejected") || checked.stderr.contains("every client is rejected"));
    assert_eq!(checked.code, Some(0), "{}", checked.stderr);
}

#[test]
fn optional_certificate_that_is_no_longer_pinned_is_refused() {
    let pinning = Pinning::with("optional", &[DIRECTORY], &[], |_, _| {});
    let app = pinning.client("app");
    pinning.pin(&app);
    assert!(pinning.is_admitted(&app));
    let plan = pinning.unix().delete(&format!("{}?plan=true", path_of(&app))).expect(200);
    assert_eq!(plan["admits_nobody"], false, "clients without a certificate are admitted");
    assert_eq!(pinning.unix().delete(&path_of(&app)).status, 204);
    assert!(!pinning.is_admitted(&app));
    pinning.portcullis.client().attempt().1.unwrap();
}

#[test]
fn plan_changes_nothing() {
    let pinning = Pinning::start(&[DIRECTORY]);
    let (app, late) = (pinning.client("app"), pinning.anybody.issue(Request::client("late").valid(-20, -10)));
    let plan = |leaf: &Leaf| {
        let body = json!({ "certificate": leaf.pem() });
        pinning.unix().post(&format!("{PINS}?plan=true"), &body).expect(200)
    };
    let generation = || pinning.unix().get("/v1/status").expect(200)["generation"].clone();
    let before = generation();
    let planned = plan(&app);
    assert_eq!((&planned["is_new"], &planned["certificate"]["subject"]), (&json!(true), &json!("CN=app")));
    assert_eq!((&planned["warnings"], &planned["admits_nobody"]), (&json!([]), &json!(false)));
    assert!(plan(&late)["warnings"][0].as_str().unwrap().contains("expired"));
    let root = Leaf::by_itself(Request::client("root").authority());
    assert!(plan(&root)["warnings"][0].as_str().unwrap().contains("marked as a CA"));
    assert!(!pinning.is_admitted(&app));
    assert_eq!((pinning.files(), generation()), (vec![], before));
    pinning.pin(&app);
    assert_eq!(plan(&app)["is_new"], false);
    assert_eq!(pinning.pin(&app)["sha256"], app.sha256(), "one that is pinned is answered as it is");
    assert_eq!(pinning.files().len(), 1);
}

#[test]
fn guide_has_every_field_of_the_answers() {
    let pinning = Pinning::start(&[DIRECTORY]);
    let app = pinning.client("app");
    pinning.pin(&app);
    let _session = session(&pinning.portcullis, &app);
    let mut found = BTreeSet::new();
    keys(&pinning.unix().get(PINS).expect(200), &mut found);
    keys(&pinning.unix().delete(&format!("{}?plan=true", path_of(&app))).expect(200), &mut found);
    let guide = document("docs/ADMIN.md");
    let missing: Vec<_> = found.iter().filter(|key| !guide.contains(&format!("`{key}`"))).collect();
    assert!(missing.is_empty() && found.len() > 25, "{missing:?} of {found:?}");
}

#[test]
fn stale_etag_is_refused() {
    let pinning = Pinning::start(&[DIRECTORY]);
    let unix = pinning.unix();
    let etag = unix.get(PINS).header("etag").unwrap().to_owned();
    let request = |method: &str, target: &str, etag: &str, leaf: Option<&Leaf>| {
        let body = leaf.map(|leaf| body_of(leaf).to_string()).unwrap_or_default();
        unix.request(method, target, &format!("If-Match: {etag}\r\n"), body.as_bytes())
    };
    let (app, other) = (pinning.client("app"), pinning.client("other"));
    assert_eq!(request("POST", PINS, &etag, Some(&app)).status, 201);
    request("POST", PINS, &etag, Some(&other)).expect_error(412, "precondition_failed");
    request("DELETE", &path_of(&app), &etag, None).expect_error(412, "precondition_failed");
    assert_eq!(pinning.pinned(), [app.sha256()]);
    let fresh = unix.get(PINS).header("etag").unwrap().to_owned();
    assert_eq!(request("DELETE", &path_of(&app), &fresh, None).status, 204);
    assert_eq!(unix.get(PINS).header("etag"), Some(etag.as_str()), "the same certificates have the same tag");
}

#[test]
fn one_certificate_of_a_file_is_removed_and_the_others_stay() {
    let mut leaves = Vec::new();
    let pinning = Pinning::with("required", &[DIRECTORY], &[], |site, anybody| {
        let middle = anybody.intermediate("Middle");
        leaves.extend([middle.issue(Request::client("app")), anybody.issue(Request::client("other"))]);
        site.write("clients/all.pem", format!("# first\n{}# second\n{}", leaves[0].pem(), leaves[1].pem()));
    });
    let [app, other] = leaves.as_slice() else { panic!("two certificates") };
    assert!(pinning.is_admitted(app) && pinning.is_admitted(other));
    assert_eq!(pinning.unix().delete(&path_of(app)).status, 204);
    assert!(!pinning.is_admitted(app) && pinning.is_admitted(other));
    let text = fs::read_to_string(pinning.portcullis.site.path("clients/all.pem")).unwrap();
    assert_eq!(text, format!("# first\n# second\n{}", other.pem()));
    pinning.portcullis.event("a warning", |event| {
        let text = event.0["warning"].as_str().unwrap_or_default();
        text.contains("all.pem pins 2 client certificates (CN=app; CN=other)")
    });
    assert_eq!(pinning.pinned(), [other.sha256()], "the issuer of the removed one is not pinned in its place");
}

#[test]
fn place_that_cannot_be_changed_is_explained() {
    let refusal = |pinning: &Pinning| {
        let list = pinning.unix().get(PINS).expect(200);
        assert_eq!((&list["writable"], &list["location"]), (&json!(false), &Value::Null));
        let body = json!({ "certificate": pinning.client("app").pem() });
        let message = pinning.unix().post(PINS, &body).expect_error(409, "conflict");
        assert_eq!(list["reason"], message);
        message
    };
    let prepare = |site: &TestDir, anybody: &Authority| {
        site.write("clients/one.crt", anybody.issue(Request::client("one")).pem());
    };
    let explicit = Pinning::with("required", &["client_certificates = \"clients/one.crt\""], &[], prepare);
    assert!(refusal(&explicit).contains("names no directory"));
    let one = format!("{PINS}/{}", explicit.pinned()[0]);
    assert!(explicit.unix().delete(&one).expect_error(409, "conflict").contains("names the file"));
    let question_mark = Pinning::with("required", &["client_certificates = \"clients/on?.crt\""], &[], prepare);
    assert!(refusal(&question_mark).contains("pattern with *"));
    let by_ca = Pinning::start(&["client_ca = \"ca.crt\""]);
    assert!(refusal(&by_ca).contains("client_certificates = \"main.clients\""));
    let none = Pinning::with("none", &[], &[], |_, _| {});
    assert!(refusal(&none).contains("client_auth = \"none\""));

    // The last file of a pattern, and one that the configuration needs elsewhere.
    let pattern = Pinning::with("required", &[PATTERN], &[], prepare);
    let one = format!("{PINS}/{}", pattern.pinned()[0]);
    assert!(pattern.unix().delete(&one).expect_error(409, "conflict").contains("last file"));
    assert_eq!(pattern.files(), ["one.crt"]);
    let shared = Pinning::with("required", &[DIRECTORY], &["ca_bundle = \"clients/one.crt\""], prepare);
    let one = format!("{PINS}/{}", shared.pinned()[0]);
    shared.unix().delete(&one).expect_error(422, "reload_rejected");
    assert_eq!((shared.files(), shared.pinned().len()), (vec!["one.crt".to_owned()], 1));
}

#[test]
fn links_and_files_with_a_key_are_not_changed() {
    let pinning = Pinning::with("required", &[DIRECTORY], &[], |site, anybody| {
        site.write("outside.crt", anybody.issue(Request::client("linked")).pem());
        symlink("../outside.crt", site.path("clients/linked.crt")).unwrap();
        let both = anybody.issue(Request::client("both"));
        site.write("clients/with-key.pem", format!("{}{}", both.pem(), both.key_pem()));
    });
    let list = pinning.unix().get(PINS).expect(200);
    for (subject, words) in [("CN=linked", "symbolic link"), ("CN=both", "private key")] {
        let pin =
            list["certificates"].as_array().unwrap().iter().find(|pin| pin["subject"] == subject).unwrap().clone();
        let target = format!("{PINS}/{}", pin["sha256"].as_str().unwrap());
        let message = pinning.unix().delete(&target).expect_error(409, "conflict");
        assert!(message.contains(words), "{message}");
    }
    // A link under the name of a new file.
    let app = pinning.client("app");
    let file = pinning.portcullis.site.path(&format!("clients/{}.crt", app.sha256()));
    symlink("../planted.crt", &file).unwrap();
    let message = pinning.unix().post(PINS, &body_of(&app)).expect_error(409, "conflict");
    assert!(message.contains("symbolic link"), "{message}");
    assert!(!pinning.portcullis.site.path("planted.crt").exists());
    assert_eq!(pinning.pinned().len(), 2);
}

#[test]
fn body_that_is_not_one_client_certificate_is_refused() {
    let pinning = Pinning::start(&[DIRECTORY]);
    let (app, other) = (pinning.client("app"), pinning.client("other"));
    let unix = pinning.unix();
    let middle = pinning.anybody.intermediate("Middle");
    let mut old = Vec::new();
    for (text, word) in [
        (String::new(), "empty"),
        ("hello".to_owned(), "no certificate"),
        (app.pem()[..app.pem().len() / 2].to_owned(), "END line"),
        (format!("{}{}", app.pem(), other.pem()), "2 client certificates"),
        (middle.pem(), "is a CA certificate"),
        (format!("{}{}", app.pem(), app.key_pem()), "private key"),
        (app.key_pem(), "private key"),
        ("-----BEGIN CERTIFICATE-----\nAAEC\n-----END CERTIFICATE-----\n".to_owned(), "X.509"),
    ] {
        let message = unix.post(PINS, &json!({ "certificate": text })).expect_error(422, "unprocessable_entity");
        assert!(message.contains(word), "{word}: {message}");
        old.push(message);
    }
    for body in [json!({ "certificate": 1 }), json!({}), json!({ "certificate": app.pem(), "file": "../x" }), json!([])]
    {
        unix.post(PINS, &body).expect_error(422, "unprocessable_entity");
    }
    unix.request("POST", PINS, "", b"{").expect_error(400, "bad_request");
    let large = json!({ "certificate": format!("{}{}", "#\n".repeat(40_000), app.pem()) });
    unix.post(PINS, &large).expect_error(413, "payload_too_large");
    unix.delete(&format!("{PINS}/..%2F..%2Fca.crt")).expect_error(422, "unprocessable_entity");
    assert_eq!(pinning.files(), Vec::<String>::new());

    let key = app.key_pem();
    let log: String = pinning.portcullis.events().iter().map(|event| event.0.to_string()).collect();
    for line in key.lines().filter(|line| !line.starts_with("---")) {
        assert!(!log.contains(line) && old.iter().all(|message| !message.contains(line)), "a key is repeated");
    }
}

#[test]
fn directory_that_cannot_be_written_is_explained() {
    // Without its capabilities, root obeys the modes of its own files.
    let command = if geteuid().is_root() {
        setpriv(&["--pdeathsig", "KILL", "--bounding-set=-all", "--inh-caps=-all"], EXECUTABLE)
    } else {
        executable()
    };
    let pinning = Setup { command, process: ON_SIGHUP, ..Setup::requiring(&[DIRECTORY]) }.start(|site, anybody| {
        site.write("clients/one.crt", anybody.issue(Request::client("one")).pem());
    });
    let directory = pinning.portcullis.site.path("clients");
    let set_mode = |mode| fs::set_permissions(&directory, fs::Permissions::from_mode(mode)).unwrap();
    let app = pinning.client("app");
    set_mode(0o500);
    let list = pinning.unix().get(PINS).expect(200);
    let message = pinning.unix().post(PINS, &body_of(&app)).expect_error(409, "conflict");
    let unpinned = pinning.unix().delete(&format!("{PINS}/{}", pinning.pinned()[0])).expect_error(409, "conflict");
    set_mode(0o700);
    assert_eq!((&list["writable"], &list["reason"]), (&json!(false), &json!(message)));
    let fix = format!("run: chmod u+wx {}", directory.display());
    assert!(message.contains("cannot be written to as user") && message.ends_with(&fix), "{message}");
    assert!(unpinned.contains("one.crt cannot be written: Permission denied"), "{unpinned}");
    assert_eq!((pinning.files(), pinning.pinned().len()), (vec!["one.crt".to_owned()], 1));
    pinning.pin(&app);

    fs::remove_dir_all(&directory).unwrap();
    let message = pinning.unix().post(PINS, &body_of(&pinning.client("other"))).expect_error(409, "conflict");
    assert!(message.ends_with("clients is not a directory; create it"), "{message}");
}

#[test]
fn certificate_in_two_files_is_not_removed() {
    let pinning = Pinning::with("required", &[DIRECTORY], &[], |site, anybody| {
        let twice = anybody.issue(Request::client("twice")).pem();
        site.write("clients/a.crt", &twice);
        site.write("clients/b.crt", &twice);
    });
    let listed = pinning.pinned();
    assert_eq!((listed.len(), &listed[0]), (2, &listed[1]));
    let message = pinning.unix().delete(&format!("{PINS}/{}", listed[0])).expect_error(409, "conflict");
    assert!(message.contains("a.crt and ") && message.contains("b.crt both hold this certificate"), "{message}");
    assert_eq!(pinning.files(), ["a.crt", "b.crt"]);
}

#[test]
fn edit_by_hand_that_undoes_a_change_is_named() {
    let pinning = Setup { process: ON_SIGHUP, ..Setup::requiring(&[DIRECTORY]) }.start(|_, _| {});
    let (app, other) = (pinning.client("app"), pinning.client("other"));
    pinning.pin(&app);
    let site = &pinning.portcullis.site;
    let file = format!("clients/{}.crt", app.sha256());
    site.write("clients/copy.crt", app.pem());
    let message = pinning.unix().delete(&path_of(&app)).expect_error(409, "conflict");
    assert!(message.contains("clients/copy.crt was edited, so that this file holds"), "{message}");
    fs::remove_file(site.path("clients/copy.crt")).unwrap();

    site.write(&file, other.pem());
    let message = pinning.unix().post(PINS, &body_of(&app)).expect_error(409, "conflict");
    assert!(message.contains(&format!("{file} was edited and no longer holds this certificate")), "{message}");
    site.write(&file, app.pem());

    fs::create_dir(site.path("elsewhere")).unwrap();
    let config = fs::read_to_string(site.path("portcullis.toml")).unwrap();
    site.write("portcullis.toml", config.replace(DIRECTORY, "client_certificates = \"elsewhere\""));
    let message = pinning.unix().post(PINS, &body_of(&other)).expect_error(409, "conflict");
    assert!(message.contains("client_certificates no longer names"), "{message}");
    assert_eq!((pinning.files().len(), pinning.pinned()), (1, vec![app.sha256()]));
}

#[test]
fn listener_is_found_by_its_uuid() {
    let pinning = Pinning::start(&[DIRECTORY]);
    let listeners = pinning.unix().get("/v1/listeners").expect(200);
    let uuid = listeners["listeners"][0]["uuid"].as_str().unwrap();
    let pins = format!("/v1/listeners/{uuid}/client-certificates");
    let app = pinning.client("app");
    pinning.unix().post(&pins, &body_of(&app)).expect(201);
    assert_eq!(pinning.unix().get(&pins).expect(200)["certificates"][0]["sha256"], app.sha256());
    let plan = pinning.unix().delete(&format!("{pins}/{}?plan=true", app.sha256())).expect(200);
    assert_eq!(plan["certificate"]["subject"], "CN=app");
    assert_eq!(pinning.unix().delete(&format!("{pins}/{}", app.sha256())).status, 204);
    assert_eq!(pinning.pinned(), Vec::<String>::new());
}

#[test]
fn draining_program_changes_and_issues_nothing() {
    let tls = [&ISSUING[..], &[DIRECTORY]].concat();
    let setup =
        Setup { process: "shutdown.drain = \"10m\"\n", keys: &["ca_bundle = \"ca.crt\""], ..Setup::requiring(&tls) };
    let pinning = setup.start(|site, _| issuing_ca(site, &[]));
    let app = pinning.client("app");
    pinning.pin(&app);
    let _session = session(&pinning.portcullis, &app);
    begin_to_drain(&pinning.portcullis);
    let unix = pinning.unix();
    let answers = [
        unix.post(PINS, &body_of(&pinning.client("other"))),
        unix.post(&format!("{PINS}?plan=true"), &body_of(&app)),
        unix.delete(&path_of(&app)),
        unix.post(&format!("{PINS}/issue"), &json!({ "name": "app" })),
    ];
    for answer in answers {
        let message = answer.expect_error(409, "conflict");
        assert!(message.starts_with("draining: "), "{message}");
    }
    assert_eq!(pinning.pinned(), [app.sha256()], "the list is still there");
}

/// The files of a ZIP file, extracted into `unzipped`.
fn unzip(site: &TestDir, file: &str) -> String {
    let script =
        format!("import zipfile\nz = zipfile.ZipFile('{file}')\nz.extractall('unzipped')\nprint(*z.namelist())");
    run(command("python3").args(["-c", &script]).current_dir(site.directory())).success().trim().to_owned()
}

/// A CA in `issuing.crt` and `issuing.key`.
fn issuing_ca(site: &TestDir, more: &[&str]) {
    let request = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj"];
    let rest = ["/CN=Issuing CA", "-keyout", "issuing.key", "-out", "issuing.crt", "-days", "30"];
    openssl(site, &[&request[..], &rest, more].concat());
}

const ISSUING: [&str; 2] =
    ["issuing_ca = { cert = \"issuing.crt\", key = \"issuing.key\" }", "client_ca = \"issuing.crt\""];

/// Whether a client with the extracted certificate gets through.
fn connects(pinning: &Pinning) -> bool {
    let port = pinning.portcullis.address("main").port().to_string();
    let script = format!(
        "import socket, ssl\n\
         c = ssl.create_default_context(cafile='unzipped/redis_ca.pem')\n\
         c.load_cert_chain('unzipped/redis_user.crt', 'unzipped/redis_user_private.key')\n\
         s = c.wrap_socket(socket.create_connection(('127.0.0.1', {port})), server_hostname='localhost')\n\
         s.sendall(b'PING')\n\
         print(s.recv(4) == b'PING')"
    );
    let directory = pinning.portcullis.site.directory();
    run(command("python3").args(["-c", &script]).current_dir(directory)).text().trim() == "True"
}

#[test]
fn issued_certificate_is_sent_once_and_admits_its_client() {
    let keys = ["ca_bundle = \"ca.crt\""];
    let pinning = Pinning::with("required", &ISSUING, &keys, |site, _| issuing_ca(site, &[]));
    let site = &pinning.portcullis.site;
    let list = pinning.unix().get(PINS).expect(200);
    assert_eq!((&list["issuing_ca"]["subject"], &list["ca_bundle"]), (&json!("CN=Issuing CA"), &json!(true)));
    let warning = |words: &str| {
        pinning
            .portcullis
            .event("a warning", |event| event.0["warning"].as_str().is_some_and(|text| text.contains(words)))
    };
    warning("is better kept elsewhere");

    let body = json!({ "name": "app", "dns": ["app.internal"] }).to_string();
    let operator = Api::at(pinning.address).with_token(OPERATOR);
    let target = format!("{PINS}/issue");
    let reply =
        operator.raw([operator.head("POST", &target, "", body.len()).as_bytes(), body.as_bytes()].concat().as_slice());
    let end = reply.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    let head = String::from_utf8_lossy(&reply[..end]).to_lowercase();
    assert!(head.starts_with("http/1.1 200 ") && head.contains("content-type: application/zip"), "{head}");
    assert!(head.contains("content-disposition: attachment; filename=\"app.zip\""), "{head}");
    let end_of_ca = list["issuing_ca"]["not_after"].as_str().unwrap().to_lowercase();
    assert!(head.contains(&format!("x-not-after: {end_of_ca}")), "{end_of_ca}: {head}");
    fs::File::create(site.path("app.zip")).unwrap().write_all(&reply[end + 4..]).unwrap();
    assert_eq!(unzip(site, "app.zip"), "redis_user.crt redis_user_private.key redis_ca.pem");
    assert!(connects(&pinning));
    let read = |name: &str| fs::read_to_string(site.path(name)).unwrap();
    assert_eq!(read("unzipped/redis_ca.pem"), read("ca.crt"));
    openssl(site, &["verify", "-purpose", "sslclient", "-CAfile", "issuing.crt", "unzipped/redis_user.crt"]);
    let dates = |file: &str| openssl(site, &["x509", "-in", file, "-noout", "-enddate"]);
    assert_eq!(dates("unzipped/redis_user.crt"), dates("issuing.crt"), "it does not outlive its CA");
    let names =
        openssl(site, &["x509", "-in", "unzipped/redis_user.crt", "-noout", "-subject", "-ext", "subjectAltName"]);
    assert!(names.contains("CN = app") || names.contains("CN=app"), "{names}");
    assert!(names.contains("DNS:app.internal"), "{names}");

    let event =
        pinning.portcullis.event("the issue", |event| event.is("admin.action") && event.0["action"] == "certs.issue");
    let fingerprint = event.0["target"].as_str().unwrap().strip_prefix("main/").unwrap().to_owned();
    assert_eq!((fingerprint.len(), event.0["actor"].as_str()), (64, Some("token:operator")));
    let log: String = pinning.portcullis.events().iter().map(|event| event.0.to_string()).collect();
    for file in ["unzipped/redis_user_private.key", "issuing.key"] {
        assert!(!read(file).lines().filter(|line| !line.starts_with("---")).any(|line| log.contains(line)), "{file}");
    }
    for (body, status) in [
        (json!({ "name": "../app" }), 422),
        (json!({ "name": "a\r\nx: y" }), 422),
        (json!({ "name": "app", "days": 0 }), 422),
        (json!({ "name": "app", "dns": ["a b"] }), 422),
        (json!({ "name": "app", "dns": ["10.0.0.1"] }), 422),
        (json!({ "name": "app", "dns": ["*"] }), 422),
        (json!({ "name": "app", "ca": "x" }), 422),
    ] {
        assert_eq!(operator.post(&target, &body).status, status, "{body}");
    }
    let message =
        operator.post(&target, &json!({ "name": "app", "days": 400 })).expect_error(422, "unprocessable_entity");
    assert!(
        message.starts_with("days is 400, but the CA expires in ") && message.contains("; use at most "),
        "{message}"
    );
    let viewer = Api::at(pinning.address).with_token(VIEWER);
    viewer.post(&target, &json!({ "name": "app" })).expect_error(403, "forbidden");
    let bundle = viewer.raw(viewer.head("GET", "/v1/listeners/main/ca-bundle", "", 0).as_bytes());
    let bundle = String::from_utf8(bundle).unwrap();
    let (head, text) = bundle.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("application/x-pem-file") && head.contains("filename=\"main-ca.pem\""), "{head}");
    assert_eq!(text, read("ca.crt"));
}

#[test]
fn issuing_without_a_ca_or_for_an_unknown_server_ca_is_a_conflict() {
    let none = Pinning::start(&[DIRECTORY]);
    let target = format!("{PINS}/issue");
    let message = none.unix().post(&target, &json!({ "name": "app" })).expect_error(409, "conflict");
    assert!(message.contains("issuing_ca = {"), "{message}");
    assert_eq!(none.unix().get("/v1/listeners/main/ca-bundle").expect_error(404, "not_found"), {
        "listener main has no ca_bundle; set ca_bundle to the file that clients should trust"
    });
    let unknown = Pinning::with("required", &ISSUING, &[], |site, _| issuing_ca(site, &[]));
    let message = unknown.unix().post(&target, &json!({ "name": "app" })).expect_error(409, "conflict");
    assert!(message.contains("set ca_bundle"), "{message}");
    assert!(message.len() < 400 && unknown.unix().get(PINS).expect(200)["ca_bundle"] == false);
}

#[test]
fn expired_issuing_ca_issues_nothing() {
    let pinning = Pinning::with("required", &ISSUING, &["ca_bundle = \"ca.crt\""], |site, _| {
        let expired = Authority::expired("Old CA");
        site.write("issuing.crt", expired.pem());
        site.write("issuing.key", expired.key_pem());
    });
    pinning.portcullis.event("a warning", |event| {
        event.0["warning"].as_str().is_some_and(|text| text.contains("issuing CA certificate CN=Old CA expired at"))
    });
    let message =
        pinning.unix().post(&format!("{PINS}/issue"), &json!({ "name": "app" })).expect_error(409, "conflict");
    assert!(message.starts_with("the issuing CA CN=Old CA expired at "), "{message}");
    assert!(message.ends_with("; set issuing_ca to a valid one and reload"), "{message}");
}

#[test]
fn unusable_issuing_ca_is_found_by_check() {
    let check = |prepare: &dyn Fn(&TestDir), tls: &[&str]| {
        let site = TestDir::new();
        prepare(&site);
        let listener = Listener::redis("127.0.0.1:1").tls("client_auth = \"required\"");
        site.write("portcullis.toml", tls.iter().fold(listener, |listener, line| listener.tls(line)));
        run(executable().args(["check", "--offline", "-c", "portcullis.toml"]).current_dir(site.directory()))
    };
    let untrusted = ["issuing_ca = { cert = \"issuing.crt\", key = \"issuing.key\" }", "client_ca = \"ca.crt\""];
    let outcome = check(&|site| issuing_ca(site, &[]), &untrusted);
    let all = format!("{}{}", outcome.text(), outcome.stderr);
    assert!(
        outcome.code == Some(0) && all.contains("would be rejected") && all.contains("add the CA to client_ca"),
        "{all}"
    );
    let outcome = check(&|site| issuing_ca(site, &[]), &ISSUING);
    let all = format!("{}{}", outcome.text(), outcome.stderr);
    assert!(outcome.code == Some(0) && !all.contains("would be rejected") && all.contains("kept elsewhere"), "{all}");

    let other_key = ["issuing_ca = { cert = \"issuing.crt\", key = \"server.key\" }", "client_ca = \"issuing.crt\""];
    let no_ca = ["issuing_ca = { cert = \"server.crt\", key = \"server.key\" }", "client_ca = \"ca.crt\""];
    let may_not_sign = |site: &TestDir| issuing_ca(site, &["-addext", "keyUsage=digitalSignature"]);
    for (outcome, words) in [
        (check(&|site| issuing_ca(site, &[]), &other_key), "matches the key"),
        (check(&|_| {}, &no_ca), "is not a CA"),
        (check(&may_not_sign, &ISSUING), "keyCertSign"),
    ] {
        assert_eq!(outcome.code, Some(78), "{}", outcome.stderr);
        assert!(outcome.stderr.contains(words) && outcome.stderr.contains("issuing_ca"), "{words}: {}", outcome.stderr);
    }
    let site = TestDir::new();
    site.write(
        "portcullis.toml",
        Listener::redis("127.0.0.1:1").tls("issuing_ca = { cert = \"ca.crt\", key = \"ca.key\" }"),
    );
    let outcome = run(executable().args(["check", "-c", "portcullis.toml"]).current_dir(site.directory()));
    assert_eq!(outcome.code, Some(78));
    assert!(outcome.stderr.contains("client_auth = \"none\" does not request"), "{}", outcome.stderr);
}

#[test]
fn commands_pin_unpin_and_issue_over_socket_and_tcp() {
    let tls = [&ISSUING[..], &[DIRECTORY]].concat();
    let keys = ["ca_bundle = \"ca.crt\""];
    let pinning = Pinning::with("required", &tls, &keys, |site, _| issuing_ca(site, &[]));
    let site = &pinning.portcullis.site;
    let app = pinning.client("app");
    site.write("app.pem", format!("{}{}", app.pem(), app.key_pem()));
    let planned = pinning.socket(&["certs", "pin", "main", "app.pem", "--plan"]).success();
    assert!(planned.starts_with("main: this would change:\n  + CN=app, sha256 "), "{planned}");
    assert!(!pinning.is_admitted(&app));
    let done = pinning.remote(OPERATOR, &["certs", "pin", "main", "app.pem"]).success();
    assert!(done.starts_with("main: admits CN=app, sha256 "), "{done}");
    assert!(pinning.is_admitted(&app));
    let in_json = pinning.socket(&["certs", "pin", "main", "app.pem", "--json"]).success();
    assert_eq!(serde_json::from_str::<Value>(&in_json).unwrap()["sha256"], app.sha256());
    let denied = pinning.remote(VIEWER, &["certs", "unpin", "main", &app.sha256()]);
    assert_eq!(denied.code, Some(1), "{}", denied.stderr);
    let planned = pinning.socket(&["certs", "unpin", "main", "app.pem", "--plan", "--json"]).success();
    assert_eq!(serde_json::from_str::<Value>(&planned).unwrap()["certificate"]["subject"], "CN=app");
    let colons: Vec<_> = app
        .sha256()
        .to_uppercase()
        .as_bytes()
        .chunks(2)
        .map(|pair| String::from_utf8_lossy(pair).into_owned())
        .collect();
    let done = pinning.remote(OPERATOR, &["certs", "unpin", "main", &colons.join(":")]).success();
    assert_eq!(done, format!("main: no longer admits {}\n", app.sha256()));
    assert!(!pinning.is_admitted(&app));
    pinning.pin(&app);
    let done = pinning.socket(&["certs", "unpin", "main", &app.sha256()[..8]]).success();
    assert_eq!(done, format!("main: no longer admits {}\n", app.sha256()));
    openssl(site, &["pkcs12", "-export", "-in", "app.pem", "-out", "app.p12", "-passout", "pass:x"]);
    let bundle = pinning.socket(&["certs", "pin", "main", "app.p12"]);
    assert!(bundle.stderr.contains("openssl pkcs12 -in FILE -clcerts -nokeys"), "{}", bundle.stderr);
    let bare = pinning.socket(&["certs", "issue", "--name", "carl"]);
    assert!(bare.stderr.contains("--listener NAME asks the running program"), "{}", bare.stderr);
    let again = pinning.socket(&["certs", "unpin", "main", "app.pem"]);
    assert!(again.code == Some(1) && again.stderr.contains("no pinned client certificate"), "{}", again.stderr);

    let issued =
        pinning.remote(OPERATOR, &["certs", "issue", "--listener", "main", "--name", "jobs", "--days", "5"]).success();
    assert!(
        issued.contains("main: issued a certificate for jobs, valid until 20") && issued.contains("jobs.zip"),
        "{issued}"
    );
    assert_eq!(fs::metadata(site.path("jobs.zip")).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(unzip(site, "jobs.zip"), "redis_user.crt redis_user_private.key redis_ca.pem");
    assert!(connects(&pinning));
    let again = pinning.socket(&["certs", "issue", "--listener", "main", "--name", "jobs"]);
    assert!(again.code == Some(1) && again.stderr.contains("is not overwritten"), "{}", again.stderr);
    let json =
        pinning.socket(&["certs", "issue", "--listener", "main", "--name", "new", "--out", "zips", "--json"]).success();
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap()["file"], "zips/new.zip");

    for arguments in [
        &["certs", "pin", "nobody", "app.pem"][..],
        &["certs", "unpin", "nobody", "app.pem"],
        &["certs", "issue", "--listener", "nobody", "--name", "x"],
        &["certs", "issue", "--name", "x"],
        &["certs", "issue", "--listener", "main", "--name", "x", "--email", "a@example.com"],
        &["certs", "issue", "--listener", "main", "--name", "../x"],
        &["certs", "issue", "--listener", "main", "--name", "a b"],
        &["certs", "issue", "--listener", "main", "--name", "x", "--dns", "a..b"],
    ] {
        let outcome = pinning.socket(arguments);
        assert_eq!(outcome.code, Some(2), "{arguments:?}: {}", outcome.stderr);
    }
}
