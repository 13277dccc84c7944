//! The control panel in a real browser: Debian's Chromium, driven by the scenarios in tests/panel/.
//!
//! Each scenario has a program, a Redis and, where it needs one, a PostgreSQL of its own.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::api::{OPERATOR, OWNER, VIEWER};
use crate::credentials_postgres::keyed;
use crate::harness::credentials::{self, OTHER_PASSWORD, PASSWORD, with_credentials};
use crate::harness::digitalocean_api::DigitalOceanApi;
use crate::harness::etcd::Etcd;
use crate::harness::packages::Packages;
use crate::harness::pki::{Authority, Request};
use crate::harness::program::{Group, Running, command, find, free_port, run, supervised};
use crate::harness::{Listener, Portcullis, Postgres, Redis, TestDir};
use crate::postgres::conninfo;

/// A program with listeners for the scenarios.
struct Panel {
    portcullis: Portcullis,
    _redis: Redis,
    _postgres: Option<Postgres>,
    base: String,
}

/// A subject that tries to be markup, and to reverse the direction of the text.
const HOSTILE: &str = "<img src=x onerror=alert(1)>\u{202e}gnp.exe";

/// A group that only the listener `fixed` uses.
const GROUP: &str = "[[source_group]]\nname = \"office\"\ntrusted_sources = [\"192.0.2.77\"]\n\
                     sources_file = \"office.sources\"\n";

/// No API is at the endpoint.
const RESOLVER: &str = "[resolver.digitalocean]\ntoken_file = \"do.token\"\nendpoint = \"https://127.0.0.1:1\"\n";

/// The token of `do.token`.
const CLOUD_TOKEN: &str = "dop_v1_of_a_test";

impl Panel {
    fn start() -> Self {
        Self::with("", None)
    }

    fn with(admin_tls: &str, postgres: Option<Postgres>) -> Self {
        Self::at(TestDir::new(), RESOLVER, admin_tls, postgres)
    }

    fn at(site: TestDir, resolver: &str, admin_tls: &str, postgres: Option<Postgres>) -> Self {
        let redis = Redis::start();
        let upstream = format!("127.0.0.1:{}", redis.port());
        let local = "[[rule]]\ntype = \"ip_addr\"\nvalue = \"127.0.0.1\"\n";
        for listener in ["cache", "solo", "vault"] {
            site.write(&format!("{listener}.sources"), local);
        }
        site.write("office.sources", "rule = []\n");
        site.write("ca.key", site.ca.key_pem());
        site.write("do.token", CLOUD_TOKEN);
        let client = |name: &str| site.ca.issue(Request::client(name));
        site.install("client", &client("panel-client"));
        site.install("hostile", &client(HOSTILE));
        site.install("long", &client(&"W".repeat(10_000)));
        site.install("foreign", &Authority::new("Other CA").issue(Request::client("foreign")));
        let vault_client = client("vault-client");
        site.install("vault-client", &vault_client);
        for directory in ["clients", "vault"] {
            fs::create_dir(site.path(directory)).unwrap();
        }
        site.write("vault/first.crt", vault_client.pem());

        let redis_listener = |name: &str| Listener::redis(&upstream).named(name).trusting(&[]);
        let cache = redis_listener("cache")
            .trusting(&["192.0.2.0/24"])
            .key("sources_file = \"cache.sources\"\nca_bundle = \"ca.crt\"")
            .tls("client_auth = \"optional\"\nclient_ca = \"ca.crt\"\nclient_certificates = \"clients\"")
            .tls("issuing_ca = { cert = \"ca.crt\", key = \"ca.key\" }");
        let vault = redis_listener("vault")
            .key("sources_file = \"vault.sources\"")
            .tls("client_auth = \"required\"\nclient_certificates = \"vault\"");
        let solo = redis_listener("solo")
            .key("sources_file = \"solo.sources\"")
            .tls("client_auth = \"optional\"\nclient_ca = \"ca.crt\"\nclient_certificates = \"clients\"");
        let orders = postgres.as_ref().map(|postgres| {
            Listener::postgres(format_args!("unix:{}", postgres.socket().display())).named("orders").to_string()
        });
        let port = free_port();
        let admin = crate::api::admin(SocketAddr::from(([127, 0, 0, 1], port)));
        let config = format!(
            // A scenario edits files, and sees what a reload would change before it happens.
            "reload.watch = false\nreload.poll = \"0s\"\n{}{admin_tls}{resolver}{GROUP}{cache}{solo}{vault}{}{}",
            admin,
            redis_listener("fixed").trusting(&["10.0.0.0/8", "group:office"]),
            orders.unwrap_or_default()
        );
        let portcullis = Portcullis::start(site, config);
        portcullis.address("cache");
        let scheme = if admin_tls.is_empty() { "http" } else { "https" };
        let base = format!("{scheme}://127.0.0.1:{port}");
        Self { portcullis, _redis: redis, _postgres: postgres, base }
    }

    /// Runs a scenario in a browser.
    fn shows(&self, scenario: &str) {
        let facts = json!({
            "base": self.base,
            "cache": self.portcullis.address("cache").to_string(),
            "vault": self.portcullis.address("vault").to_string(),
        });
        run_scenario(scenario, &self.portcullis.site, facts);
    }
}

/// Runs a scenario in a browser. The directory and the tokens are added to the facts.
fn run_scenario(scenario: &str, site: &TestDir, mut facts: Value) {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/panel");
    let scripts = site.path("scenarios");
    fs::create_dir(&scripts).unwrap();
    for script in fs::read_dir(tests).unwrap().map(|entry| entry.unwrap()) {
        fs::copy(script.path(), scripts.join(script.file_name())).unwrap();
    }
    std::os::unix::fs::symlink(Packages::installed().node.join("node_modules"), scripts.join("node_modules")).unwrap();
    facts["directory"] = json!(site.directory());
    facts["tokens"] = json!({ "viewer": VIEWER, "operator": OPERATOR, "owner": OWNER });
    let output = site.path("scenario.out");
    let file = fs::File::create(&output).unwrap();
    let mut command = supervised();
    // In the foreground: another process group would leave that of the supervisor.
    command.args(["timeout", "--foreground", "-k", "1", "300", "node"]).arg(scripts.join("scenario.mjs"));
    command.args([scenario, &facts.to_string()]).env("CHROMIUM", find("chromium")).current_dir(site.directory());
    command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
    let mut browser = Group(Running::start(&mut command));
    let code = browser.0.exit_code();
    drop(browser);
    let output = String::from_utf8_lossy(&fs::read(output).unwrap()).into_owned();
    assert_eq!(code, Some(0), "{scenario}:\n{output}");
}

/// Two members of one fleet, each with a panel.
struct FleetPanels {
    etcd: Etcd,
    members: [Portcullis; 2],
    bases: [String; 2],
    _redis: Redis,
}

impl FleetPanels {
    fn start() -> Self {
        let (etcd, redis) = (Etcd::start(), Redis::start());
        let upstream = format!("127.0.0.1:{}", redis.port());
        let listener = Listener::redis(&upstream).trusting(&[]).key("sources_store = \"fleet\"");
        let [(a, first), (b, second)] = ["a", "b"].map(|name| {
            let port = free_port();
            let admin = crate::api::admin(SocketAddr::from(([127, 0, 0, 1], port)));
            let config = format!(
                "state.directory = \"state\"\n{admin}[fleet]\nname = \"prod\"\nmember = \"{name}\"\nstore = \"etcd\"\n\
                 [fleet.etcd]\nendpoints = [\"{}\"]\n{listener}",
                etcd.url()
            );
            (Portcullis::start(TestDir::new(), config), format!("http://127.0.0.1:{port}"))
        });
        Self { etcd, members: [a, b], bases: [first, second], _redis: redis }
    }

    fn shows(&self, scenario: &str) {
        let [_, second] = &self.members;
        let facts = json!({
            "base": self.bases[0],
            "etcd": self.etcd.process_id(),
            "second": {
                "base": self.bases[1],
                "directory": second.site.directory(),
                "main": second.address("main").to_string(),
            },
        });
        run_scenario(scenario, &self.members[0].site, facts);
    }
}

/// A program whose listener `main` has clients with passwords, after one that has none.
struct ClientsPanel {
    portcullis: Portcullis,
    base: String,
    /// Kept open.
    _postgres: Postgres,
}

impl ClientsPanel {
    fn start() -> Self {
        let (site, postgres) = (credentials::site(), keyed());
        credentials::add_password(&site, "off", OTHER_PASSWORD);
        credentials::set_client(&site, "disable", "off");
        let known = fs::read_to_string(site.path("clients.toml")).unwrap();
        let web = "[[client]]\nuser = \"web\"\ncertificates = [\"cn:web\"]\n";
        let old = known.split_once("passwords").map(|(_, rest)| format!("[[client]]\nuser = \"old\"\npasswords{rest}"));
        let old = old.unwrap().split("\n\n").next().unwrap().replace("{ id", "{ expires_at = 2020-01-01T00:00:00Z, id");
        site.write("clients.toml", format!("{known}\n{web}\n{old}\n"));
        let cache = Listener::redis(&postgres).named("cache");
        let listener = with_credentials(Listener::postgres(&postgres));
        let port = free_port();
        let admin = crate::api::admin(SocketAddr::from(([127, 0, 0, 1], port)));
        let portcullis = Portcullis::start(site, format!("{admin}{cache}{listener}"));
        portcullis.address("main");
        Self { portcullis, base: format!("http://127.0.0.1:{port}"), _postgres: postgres }
    }

    fn shows(&self, scenario: &str) {
        let facts = json!({
            "base": self.base,
            "psql": find("psql"),
            "conninfo": conninfo(&self.portcullis),
            "password": PASSWORD,
        });
        run_scenario(scenario, &self.portcullis.site, facts);
    }
}

macro_rules! scenarios {
    ($($name:ident)*) => {
        const SCENARIOS: &[&str] = &[$(stringify!($name)),*];

        $(#[test]
        fn $name() {
            Panel::start().shows(stringify!($name));
        })*
    };
}

scenarios! {
    signing_in
    role_is_offered_what_it_may_do
    revoked_token_ends_the_session
    tokens_are_created_once_and_revoked
    sources_are_added_edited_removed_and_restored
    cloud_source_shows_why_it_is_not_resolved
    own_address_is_trusted_with_one_choice
    dangerous_lists_are_warned_about
    listener_without_a_file_explains_how_to_add_one
    source_group_is_changed_and_added_to_a_listener
    two_people_edit_at_once
    ten_thousand_sources_are_searched
    denied_source_is_allowed_and_explained
    session_is_found_and_closed
    chart_shows_the_values_of_the_last_minutes
    explain_answers_for_any_address_and_certificate
    reload_is_planned_and_a_rejected_one_names_file_and_line
    rotation_shows_who_uses_what
    audit_is_followed_filtered_and_paused
    names_that_others_choose_stay_text
    other_pages_can_neither_read_nor_change
    failing_api_loses_nothing_that_was_typed
    outage_of_the_program_is_shown_and_survived
    stolen_session_ends_with_sign_out
    no_view_has_a_serious_accessibility_problem
    every_view_fits_every_width
    keyboard_reaches_everything
    times_are_local_with_utc_on_hover
    pasted_certificate_is_shown_then_accepted_then_removed
    removing_the_last_certificate_opens_nothing
    issued_certificate_is_downloaded_once
    ca_bundle_is_downloaded
}

#[test]
fn pure_functions_of_the_panel() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/panel/unit.test.mjs");
    run(command("node").arg("--test").arg(tests)).success();
}

#[test]
fn overview_shows_what_is_connected_and_what_needs_a_person() {
    let panel = Panel::with("", Some(Postgres::start()));
    panel.shows("overview_shows_what_is_connected_and_what_needs_a_person");
}

#[test]
fn resolved_cloud_source_names_its_objects_and_becomes_stale() {
    let site = TestDir::new();
    let api = DigitalOceanApi::start(&site, CLOUD_TOKEN);
    api.droplet(7, &["web"], &[("127.0.0.7", "private"), ("2001:db8::7", "public")]);
    let resolver = RESOLVER.replace("https://127.0.0.1:1", &api.url()) + "ca = \"ca.crt\"\nrefresh = \"1s\"\n";
    Panel::at(site, &resolver, "", None).shows("resolved_cloud_source_names_its_objects_and_becomes_stale");
}

#[test]
fn pictures_of_the_documents() {
    Panel::with("", Some(Postgres::start())).shows("pictures_of_the_documents");
}

#[test]
fn cookie_is_tied_to_the_host_under_tls() {
    let tls = "[admin.tls]\ncertificates = [{ cert = \"server.crt\", key = \"server.key\" }]\n";
    Panel::with(tls, None).shows("cookie_is_tied_to_the_host_under_tls");
}

#[test]
fn members_of_a_fleet_are_listed_share_rules_and_are_forgotten() {
    FleetPanels::start().shows("members_of_a_fleet_are_listed_share_rules_and_are_forgotten");
}

#[test]
fn store_that_is_down_or_refused_is_shown_and_accepted() {
    FleetPanels::start().shows("store_that_is_down_or_refused_is_shown_and_accepted");
}

#[test]
fn password_is_generated_once_and_the_old_one_is_removed_with_its_sessions() {
    ClientsPanel::start().shows("password_is_generated_once_and_the_old_one_is_removed_with_its_sessions");
}

#[test]
fn clients_are_shown_to_a_viewer_and_sessions_name_their_user() {
    ClientsPanel::start().shows("clients_are_shown_to_a_viewer_and_sessions_name_their_user");
}

#[test]
fn clients_are_accessible_at_every_width() {
    ClientsPanel::start().shows("clients_are_accessible_at_every_width");
}

/// Scenarios with a program of another kind.
const OTHERS: [&str; 9] = [
    "password_is_generated_once_and_the_old_one_is_removed_with_its_sessions",
    "clients_are_shown_to_a_viewer_and_sessions_name_their_user",
    "clients_are_accessible_at_every_width",
    "overview_shows_what_is_connected_and_what_needs_a_person",
    "resolved_cloud_source_names_its_objects_and_becomes_stale",
    "pictures_of_the_documents",
    "cookie_is_tied_to_the_host_under_tls",
    "members_of_a_fleet_are_listed_share_rules_and_are_forgotten",
    "store_that_is_down_or_refused_is_shown_and_accepted",
];

#[test]
fn every_scenario_is_run() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/panel");
    let scripts = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let texts = scripts.filter(|path| !path.ends_with("driver.mjs")).map(|path| fs::read_to_string(path).unwrap());
    let written: BTreeSet<String> = texts
        .flat_map(|text| {
            let names = text.lines().filter_map(|line| line.strip_prefix("export async function ")?.split('(').next());
            names.map(str::to_owned).collect::<Vec<_>>()
        })
        .collect();
    let run: BTreeSet<String> = SCENARIOS.iter().chain(&OTHERS).map(|&name| name.to_owned()).collect();
    assert_eq!(written, run);
}
