//! The files of `[listener.credentials]`.

use std::fs;

use super::portcullis::executable;
use super::program::{run, run_with_input};
use super::{Listener, Portcullis, TestDir, eventually};

/// A password that `portcullis password add` accepts. Tests look for it in logs and answers.
pub(crate) const PASSWORD: &str = "Apples-4-pears";
/// Another one.
pub(crate) const OTHER_PASSWORD: &str = "Plums+7-cherries";
/// The password of the role at the database.
pub(crate) const DATABASE_PASSWORD: &str = "open sesame";

/// A directory in which the client `app` has [`PASSWORD`], and the database's password is [`DATABASE_PASSWORD`].
pub(crate) fn site() -> TestDir {
    let site = TestDir::new();
    add_password(&site, "app", PASSWORD);
    site.write("db.password", DATABASE_PASSWORD);
    site
}

/// A listener that uses these files, and acts as the role `keyed` for every client.
pub(crate) fn with_credentials(listener: Listener) -> Listener {
    listener.key(
        "credentials = { clients_file = \"clients.toml\", upstream_user = \"keyed\", upstream_password_file = \"db.password\" }",
    )
}

/// Adds a password with the next ID: `p1`, `p2` and so on.
pub(crate) fn add_password(site: &TestDir, user: &str, password: &str) {
    let mut command = executable();
    command.args(["password", "add", user, "-f"]).arg(site.path("clients.toml"));
    run_with_input(&mut command, password.as_bytes()).success();
}

pub(crate) fn remove_password(site: &TestDir, user: &str, id: &str) {
    let mut command = executable();
    command.args(["password", "remove", user, id, "-f"]).arg(site.path("clients.toml"));
    run(&mut command).success();
}

/// `disable` or `enable`.
pub(crate) fn set_client(site: &TestDir, verb: &str, user: &str) {
    let mut command = executable();
    command.args(["password", verb, user, "-f"]).arg(site.path("clients.toml"));
    run(&mut command).success();
}

/// Checks that no output of the program has a password or a verifier.
pub(crate) fn assert_no_secret(mut portcullis: Portcullis) {
    let status = ["/v1/status", "/v1/rotation"].map(|path| portcullis.ask("GET", path).1.to_string()).concat();
    let clients = fs::read_to_string(portcullis.site.path("clients.toml")).unwrap();
    let verifiers = clients.split('"').filter_map(|text| text.rsplit_once('$')).flat_map(|(_, keys)| keys.split(':'));
    let errors = portcullis.errors();
    let (_, events) = portcullis.stop();
    let log: String = events.iter().map(|event| event.0.to_string()).collect();
    for secret in [PASSWORD, OTHER_PASSWORD, DATABASE_PASSWORD].into_iter().chain(verifiers) {
        for output in [&status, &errors, &log] {
            assert!(!output.contains(secret), "{secret} is in {output}");
        }
    }
}

/// Changes the password of the database under load: with both in the file, back, and with the old one removed. `change` sets it at
/// the database. Sessions are opened before and after each step.
pub(crate) fn rotate_database_password(portcullis: &Portcullis, change: impl Fn(&str)) {
    let some_sessions = || {
        let seen = portcullis.seen();
        eventually("more sessions", || {
            let opened = portcullis.events()[seen..].iter().filter(|event| event.is("connection.opened")).count();
            (opened >= 20).then_some(())
        });
    };
    some_sessions();
    for (file, password) in [
        (Some("new secret\nopen sesame\n"), "new secret"),
        (None, "open sesame"),
        (Some("open sesame\n\nnewer secret\n"), "newer secret"),
        (Some("newer secret\n"), "newer secret"),
    ] {
        if let Some(file) = file {
            portcullis.applies(|| portcullis.site.replace("db.password", file));
        }
        some_sessions();
        change(password);
        some_sessions();
    }
}
