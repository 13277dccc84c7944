//! `portcullis explain`: by the running program if there is one, and otherwise by the file.

use std::fs;

use serde_json::{Value, json};

use crate::harness::portcullis::{ADMIN, executable};
use crate::harness::program::{Outcome, run};
use crate::harness::{Authority, Listener, Portcullis, Request, TestDir};

const QUIET: &str = "reload = { watch = false, poll = \"0s\" }\n";

fn config(listener: Listener) -> String {
    format!("{ADMIN}{QUIET}{listener}")
}

fn listener() -> Listener {
    let listener = Listener::redis("127.0.0.1:6379").trusting(&["127.0.0.1", "2001:db8::/32"]);
    listener.tls("client_auth = \"optional\"").tls("client_ca = \"ca.crt\"")
}

fn start() -> Portcullis {
    let portcullis = Portcullis::start(TestDir::new(), config(listener()));
    portcullis.address("main");
    portcullis
}

fn explain(site: &TestDir, arguments: &[&str]) -> Outcome {
    run(executable().arg("explain").args(arguments).current_dir(site.directory()))
}

const HERE: &[&str] = &["-c", "portcullis.toml", "--listener", "main", "--source", "127.0.0.1"];

#[test]
fn explain_uses_the_running_policy_while_the_file_differs() {
    let portcullis = start();
    let site = &portcullis.site;
    site.write("portcullis.toml", config(listener().trusting(&["192.0.2.1"])));
    let output = explain(site, HERE).success();
    assert!(output.starts_with("policy    running program (generation 1)\n"), "{output}");
    assert!(
        output.contains("127.0.0.1 is trusted by ip_addr:127.0.0.1") && output.contains("verdict   admitted"),
        "{output}"
    );
}

#[test]
fn explain_uses_the_running_policy_while_the_file_is_invalid() {
    let portcullis = start();
    let site = &portcullis.site;
    let whole = config(listener());
    for broken in
        [format!("{ADMIN}[[listener]]\nname = 7\n"), format!("{whole}\n[[[ \"\n= = =\n"), format!("{whole}x = \n")]
    {
        site.write("portcullis.toml", &broken);
        let output = explain(site, HERE);
        assert_eq!(output.code, Some(0), "{broken}: {}", output.stderr);
        assert!(output.text().contains("policy    running program") && output.text().contains("verdict   admitted"));
    }
    // If the file no longer names the socket, --socket does.
    site.write("portcullis.toml", "]]]]");
    let lost = explain(site, HERE);
    assert_eq!(lost.code, Some(78), "{}", lost.stderr);
    assert!(lost.stderr.contains("use --socket PATH to ask the running program"), "{}", lost.stderr);
    let found = explain(site, &[HERE, &["--socket", "admin.sock"]].concat());
    assert_eq!(found.code, Some(0), "{}", found.stderr);
    fs::remove_file(site.path("portcullis.toml")).unwrap();
    assert!(explain(site, &[HERE, &["--socket", "admin.sock"]].concat()).success().contains("verdict   admitted"));
}

#[test]
fn explain_json_and_socket_report_the_same_verdict_reason_and_rule() {
    let portcullis = start();
    let site = &portcullis.site;
    let output = explain(site, &[HERE, &["--json"]].concat()).success();
    let output: Value = serde_json::from_str(&output).expect("JSON and nothing else");
    assert_eq!(
        (&output["verdict"], &output["rule"], &output["policy"]),
        (&json!("admitted"), &json!("ip_addr:127.0.0.1"), &json!("running"))
    );
    let (status, answer) = portcullis.ask("GET", "/v1/explain?listener=main&source=127.0.0.1");
    assert_eq!((status, &answer["steps"], &answer["verdict"]), (200, &output["steps"], &json!("admitted")));
    assert_eq!((&answer["steps"][0]["step"], answer.get("reason")), (&json!("source"), None));

    let refused = explain(site, &["-c", "portcullis.toml", "--listener", "main", "--source", "192.0.2.1", "--json"]);
    assert_eq!(refused.code, Some(3), "{}", refused.stderr);
    let refused: Value = serde_json::from_str(&refused.text()).expect("JSON and nothing else");
    assert_eq!(
        (&refused["verdict"], &refused["reason"], refused.get("rule")),
        (&json!("refused"), &json!("untrusted_source"), None)
    );
    let (status, answer) = portcullis.ask("GET", "/v1/explain?listener=main&source=2001%3Adb8%3A%3A1");
    assert_eq!((status, &answer["rule"]), (200, &json!("ip_addr:2001:db8::/32")));
    let (status, answer) = portcullis.ask("GET", "/v1/explain?listener=mian&source=127.0.0.1");
    assert_eq!((status, &answer["id"]), (404, &json!("not_found")));
    assert_eq!(portcullis.ask("GET", "/v1/explain?listener=main&source=x").0, 422);
}

#[test]
fn explain_sends_the_certificate_and_not_its_key() {
    let portcullis = start();
    let site = &portcullis.site;
    let good = site.ca.issue(Request::client("app"));
    site.write("good.pem", format!("{}{}", good.key_pem(), good.pem()));
    site.install("untrusted", &Authority::new("Another CA").issue(Request::client("app")));
    // The file would not trust either.
    site.write("other.crt", Authority::new("Other CA").pem());
    site.write("portcullis.toml", config(listener()).replace("ca.crt", "other.crt"));
    let output = explain(site, &[HERE, &["--client-cert", "good.pem"]].concat()).success();
    assert!(output.contains("CN=app chains to CN=Test CA"), "{output}");
    let refused = explain(site, &[HERE, &["--client-cert", "untrusted.crt"]].concat());
    assert_eq!(refused.code, Some(3), "{}", refused.stderr);
    assert!(refused.text().contains("refused (client_certificate_unknown_ca)"), "{}", refused.text());
    let body = json!({ "listener": "main", "source": "127.0.0.1", "client_certificate": good.pem() }).to_string();
    let (status, answer) = portcullis.ask_with("POST", "/v1/explain", &body);
    assert_eq!((status, &answer["verdict"]), (200, &json!("admitted")), "{answer}");
}

#[test]
fn explain_without_a_running_program_uses_the_file() {
    let site = TestDir::new();
    let outcome = |arguments: &[&str]| explain(&site, &[HERE, arguments].concat());
    site.write("portcullis.toml", config(listener()));
    let output = outcome(&[]).success();
    let first = output.lines().next().unwrap();
    assert!(first.contains("portcullis.toml, not the running program") && first.contains("no such socket"), "{output}");
    assert!(output.contains("verdict   admitted"), "{output}");
    let answer: Value = serde_json::from_str(&outcome(&["--json"]).success()).expect("JSON and nothing else");
    assert_eq!((&answer["policy"], &answer["verdict"]), (&json!("file"), &json!("admitted")));
    site.write("portcullis.toml", listener());
    assert!(outcome(&[]).success().lines().next().unwrap().contains("no [admin]"));
    // A socket that is named has to answer.
    let outcome = outcome(&["--socket", "admin.sock"]);
    assert_eq!((outcome.code, outcome.text().as_str()), (Some(1), ""), "{}", outcome.stderr);
}

#[test]
fn explain_with_another_file_uses_that_file() {
    let portcullis = start();
    let site = &portcullis.site;
    site.write("next.toml", config(listener().trusting(&["192.0.2.1"])));
    let next = ["-c", "next.toml", "--listener", "main", "--source", "127.0.0.1"];
    let refused = explain(site, &next);
    assert_eq!(refused.code, Some(3), "{}", refused.stderr);
    assert!(refused.text().lines().next().unwrap().contains("uses another configuration"), "{}", refused.text());
    explain(site, &[&next[..], &["--socket", "admin.sock"]].concat()).success();
}

#[test]
fn unknown_listener_is_wrong_usage_with_and_without_a_running_program() {
    let portcullis = start();
    let unknown = ["-c", "portcullis.toml", "--listener", "mian", "--source", "127.0.0.1"];
    for listener in [&unknown[..], &["-c", "portcullis.toml", "--listener", "main", "--source", "unix"]] {
        let outcome = explain(&portcullis.site, listener);
        assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
        assert!(outcome.stderr.contains("main"), "{}", outcome.stderr);
    }
}
