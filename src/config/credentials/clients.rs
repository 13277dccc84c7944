//! The `[[client]]` tables of a `clients_file`.

use std::path::Path;
use std::sync::Arc;

use crate::config::SourcedFile;
use crate::config::credentials::machine::of_machine;
use crate::config::credentials::user;
use crate::config::document::{Document, Node};
use crate::config::files::Files;
use crate::config::problem::{Position, Problem, Problems};
use crate::config::resolver::transposed;
use crate::config::shown;
use crate::credential::clients::{Client, Clients, ClientsError, ID, MAX_PASSWORDS, Password, SaltRule, is_id};
use crate::credential::mock::MockSecret;
use crate::credential::verifier::Verifier;
use crate::identity::trusted_clients::ClientPattern;

/// Reads the clients of a file, or returns its problems.
pub(crate) fn from_file(file: &SourcedFile, salts: SaltRule, files: &mut Files) -> Result<Clients, Vec<Problem>> {
    let bytes = files.read(&file.path).map_err(|why| vec![file.unreadable(&why)])?;
    let text =
        std::str::from_utf8(&bytes).map_err(|error| vec![whole_file(&file.path, format!("is not UTF-8: {error}"))])?;
    from_text(&file.path, text, salts)
}

/// Reads the clients of the text of a file, or returns its problems.
pub(crate) fn from_text(file: &Path, text: &str, salts: SaltRule) -> Result<Clients, Vec<Problem>> {
    if text.trim().is_empty() {
        // Editors and copies truncate a file before they write it. No session may end in between.
        return Err(vec![whole_file(file, EMPTY.to_owned())]);
    }
    let document = Document::new(file, text);
    let tree = document.parse().map_err(Problems::into_vec)?;
    let root = document.root(tree.get_ref());
    let nodes = root.require("client", "[[client]] tables, or client = [] for none");
    let nodes = nodes.and_then(|node| node.list("a list of tables: write [[client]], in double brackets"));
    let read: Vec<_> = nodes.unwrap_or_default().iter().filter_map(client).collect();
    let mock_secret = root.get("mock_secret").and_then(|node| mock_secret(&node)).unwrap_or_else(of_machine);
    root.finish();
    let (clients, nodes): (Vec<_>, Vec<_>) = read.into_iter().unzip();
    let users: Vec<_> = clients.iter().map(|client| client.user.clone()).collect();
    let clients = Clients::new(clients, salts);
    for error in clients.as_ref().err().into_iter().flatten() {
        report(error, &nodes, &users);
    }
    let problems = document.into_problems();
    let clients = clients.ok().filter(|_| problems.is_empty()).ok_or(problems)?;
    Ok(clients.with_mock_secret(mock_secret))
}

/// Never shows the value.
fn mock_secret(node: &Node<'_>) -> Option<MockSecret> {
    let secret = MockSecret::from_text(node.text(MOCK_SECRET)?);
    if secret.is_none() {
        node.problem(format_args!("is not {MOCK_SECRET}; remove it, and portcullis password add makes a new one"));
    }
    secret
}

/// Where the parts of a client are.
struct ClientNodes<'a> {
    user: Node<'a>,
    passwords: Option<Node<'a>>,
    /// ID and verifier of each password.
    each_password: Vec<[Node<'a>; 2]>,
    certificates: Vec<Node<'a>>,
}

/// `None` if a part is invalid.
fn client<'a>(node: &Node<'a>) -> Option<(Client, ClientNodes<'a>)> {
    let section = node.section("a [[client]] table")?;
    let user_node = section.require("user", "the name of a user");
    let name = user_node.as_ref().and_then(user);
    let passwords_node = section.get("passwords");
    let passwords = passwords_node.as_ref().map_or_else(|| Some(Vec::new()), passwords);
    let certificates = section.get("certificates").map_or_else(|| Some(Vec::new()), |node| certificates(&node));
    let upstream_user = section.get("upstream_user").map(|node| user(&node));
    let is_disabled = section.get("disabled").map(|node| node.boolean());
    section.add_misplaced_keys("add a password with portcullis password add", &["password", "scram"]);
    section.add_misplaced_keys("write it in certificates = [\"…\"]", &["certificate"]);
    section.finish();
    let (passwords, each_password) = passwords?.into_iter().unzip();
    let (certificates, nodes) = certificates?.into_iter().unzip();
    let client = Client {
        user: name?,
        passwords,
        certificates,
        upstream_user: transposed(upstream_user)?,
        is_disabled: transposed(is_disabled)?.unwrap_or(false),
    };
    Some((client, ClientNodes { user: user_node?, passwords: passwords_node, each_password, certificates: nodes }))
}

/// `None` if one is invalid.
fn passwords<'a>(node: &Node<'a>) -> Option<Vec<(Arc<Password>, [Node<'a>; 2])>> {
    let nodes = node.list("a list of passwords, which portcullis password add writes")?;
    // Reads all before returning, so that all problems are reported.
    let passwords: Vec<_> = nodes.iter().map(password).collect();
    passwords.into_iter().collect()
}

fn password<'a>(node: &Node<'a>) -> Option<(Arc<Password>, [Node<'a>; 2])> {
    let section = node.section("a table with id and scram")?;
    let id_node = section.require("id", ID);
    let scram = section.require("scram", SCRAM);
    let created_at = section.get("created_at").map(|node| node.instant());
    let expires_at = section.get("expires_at").map(|node| node.instant());
    section.finish();
    let id = id_node.as_ref().and_then(id);
    let verifier = scram.as_ref().and_then(verifier);
    let password = Password {
        id: id?,
        verifier: verifier?,
        created_at: transposed(created_at)?,
        // A password with an invalid expiry must not become one without.
        expires_at: transposed(expires_at)?,
    };
    Some((Arc::new(password), [id_node?, scram?]))
}

fn id(node: &Node<'_>) -> Option<String> {
    let id = node.text(ID)?;
    if !is_id(id) {
        node.expected(ID);
        return None;
    }
    Some(id.to_owned())
}

/// Never shows the value, because it may be the password itself.
fn verifier(node: &Node<'_>) -> Option<Verifier> {
    node.text(SCRAM)?.parse().map_err(|error| node.problem(error)).ok()
}

/// `None` if one is invalid.
fn certificates<'a>(node: &Node<'a>) -> Option<Vec<(ClientPattern, Node<'a>)>> {
    let pattern = |node: &Node<'a>| -> Option<(ClientPattern, Node<'a>)> {
        let text = node.text("a name such as \"cn:app\"")?;
        let pattern = text.parse().map_err(|error| node.expected(error)).ok()?;
        Some((pattern, node.clone()))
    };
    let patterns: Vec<_> = node.one_or_list().iter().map(pattern).collect();
    patterns.into_iter().collect()
}

/// Reports an error at the part of the file that it is about.
fn report(error: &ClientsError, nodes: &[ClientNodes<'_>], users: &[String]) {
    let user_of = |client: usize| shown::key_name(users.get(client).map_or("", String::as_str));
    let node_of = |client: usize| nodes.get(client);
    match error {
        ClientsError::DuplicateUser { client } => {
            if let Some(ClientNodes { user, .. }) = node_of(*client) {
                user.problem(format_args!("found {}, {DUPLICATE_USER}", user.found()));
            }
        }
        ClientsError::ManyPasswords { client } => {
            if let Some(node) = node_of(*client).and_then(|nodes| nodes.passwords.as_ref()) {
                node.problem(format_args!(
                    "has more than {MAX_PASSWORDS} passwords; remove old ones with portcullis password remove"
                ));
            }
        }
        ClientsError::DuplicateId { client, password } => {
            if let Some([id, _]) = node_of(*client).and_then(|nodes| nodes.each_password.get(*password)) {
                id.problem(DUPLICATE_ID);
            }
        }
        ClientsError::OtherParameters { client, password } => {
            if let Some([_, scram]) = node_of(*client).and_then(|nodes| nodes.each_password.get(*password)) {
                scram.problem(OTHER_PARAMETERS);
            }
        }
        ClientsError::SharedCertificate { client, certificate, pattern, other } => {
            if let Some(node) = node_of(*client).and_then(|nodes| nodes.certificates.get(*certificate)) {
                let (found, user) = (node.found(), user_of(*other));
                let pattern = shown::bounded(&pattern.to_string());
                node.problem(format_args!(
                    "found {found}, but \"{pattern}\" of the client \"{user}\" matches the same certificates; \
                     remove one of the two patterns"
                ));
            }
        }
    }
}

fn whole_file(file: &Path, message: String) -> Problem {
    Problem { position: Position::file(file), key: String::new(), message }
}

const EMPTY: &str = "is empty or not completely written; write \"client = []\" for a list without clients";

const MOCK_SECRET: &str = "32 bytes in base64";

const SCRAM: &str = "the SCRAM verifier of a password, which portcullis password add writes";

const DUPLICATE_USER: &str =
    "which is already the user of another client; merge the two tables, or choose another user";

const DUPLICATE_ID: &str = "is also the ID of another password of this client; choose another ID";

const OTHER_PARAMETERS: &str = "has another salt or other iterations than the first password of this client, which clients of \
                                PostgreSQL do not support; remove it, and add the password with portcullis password add";

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;
    use crate::timestamp;

    // The password "pencil", and another one with the same salt and iterations.
    const PENCIL: &str = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:\
                          wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";
    const OTHER: &str = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=:\
                         WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=";

    fn read(text: &str, salts: SaltRule) -> Result<Clients, String> {
        let lines = |problems: Vec<Problem>| problems.iter().map(|problem| format!("{problem}\n")).collect::<String>();
        from_text(Path::new("c.toml"), text, salts).map_err(lines)
    }

    fn problems(text: &str) -> String {
        read(text, SaltRule::OnePerUser).unwrap_err()
    }

    #[test]
    fn client_is_read_with_all_its_keys() {
        let text = format!(
            "[[client]]\nuser = \"app\"\nupstream_user = \"owner\"\ndisabled = true\ncertificates = [\"cn:app\", \"uri:s://x/*\"]\n\
             passwords = [\n    {{ id = \"p1\", scram = \"{PENCIL}\", created_at = 2026-01-31T00:00:00Z }},\n\
             {{ id = \"p2\", scram = \"{OTHER}\", expires_at = \"2027-01-31T01:00:00+01:00\" }},\n]\n\
             [[client]]\nuser = \"web\"\ncertificates = \"cn:web\"\n\
             [[client]]\nuser = \"job\"\n[[client.passwords]]\nid = \"a\"\nscram = \"{PENCIL}\"\n"
        );
        let clients = read(&text, SaltRule::OnePerUser).unwrap();
        let users: Vec<_> = clients.iter().map(|client| client.user.as_str()).collect();
        assert_eq!(users, ["app", "web", "job"]);
        let app = clients.by_user("app").unwrap();
        assert_eq!((app.upstream_user.as_deref(), app.is_disabled), (Some("owner"), true));
        let [p1, p2] = app.passwords.as_slice() else { unreachable!("two passwords: {app:?}") };
        assert_eq!((p1.id.as_str(), p1.verifier.to_string().as_str()), ("p1", PENCIL));
        let at = |text: &str| -> Option<OffsetDateTime> { timestamp::parse(text) };
        assert_eq!((p1.created_at, p1.expires_at), (at("2026-01-31T00:00:00Z"), None));
        assert_eq!((p2.created_at, p2.expires_at), (None, at("2027-01-31T00:00:00Z")));
        assert_eq!(app.certificates.len(), 2);
        assert_eq!(clients.by_user("job").unwrap().passwords.len(), 1);
    }

    #[test]
    fn file_without_clients_says_so_and_an_empty_one_is_a_problem() {
        assert_eq!(read("client = []\n", SaltRule::Any).map(|clients| clients.iter().count()), Ok(0));
        assert_eq!(
            problems(" \n"),
            "c.toml: is empty or not completely written; write \"client = []\" for a list without clients\n"
        );
        assert_eq!(
            problems("# none\n"),
            "c.toml:1:1: client: is missing; expected [[client]] tables, or client = [] for none\n"
        );
    }

    #[test]
    fn all_problems_are_reported_with_their_positions() {
        let salt = PENCIL.replacen("W22Z", "W22A", 1);
        let text = format!(
            "[[client]]\nuser = \"app\"\npasswords = [{{ id = \"p1\", scram = \"{PENCIL}\" }},\n\
             {{ id = \"p1\", scram = \"{salt}\" }}]\n\
             [[client]]\nuser = \"app\"\ncertificates = [\"dns:*.x\"]\n\
             [[client]]\nuser = \"\"\npasswords = [{{ id = \"p 1\", scram = \"Passw0rd!\" }}]\ncertificates = [\"app\"]\n\
             [[client]]\nuser = \"web\"\ncertificates = [\"dns:a.x\"]\npassword = \"Passw0rd!\"\n"
        );
        assert_eq!(
            problems(&text),
            "c.toml:9:8: client[2].user: found \"\", expected a user name that is not empty\n\
             c.toml:10:21: client[2].passwords[0].id: found a string that is not shown, expected an ID of 1 to 32 letters, digits and \"-\", \"_\", \".\", such as \"p1\"\n\
             c.toml:10:36: client[2].passwords[0].scram: is not of the form SCRAM-SHA-256$ITERATIONS:SALT$STOREDKEY:SERVERKEY; make one with portcullis password add\n\
             c.toml:11:17: client[2].certificates[0]: found \"app\", expected \"cn:…\", \"dns:…\", \"uri:…\", \"email:…\" or \"sha256:…\"\n\
             c.toml:15:1: client[3].password: does not belong here; add a password with portcullis password add\n\
             c.toml:4:8: client[0].passwords[1].id: is also the ID of another password of this client; choose another ID\n\
             c.toml:4:22: client[0].passwords[1].scram: has another salt or other iterations than the first password of this client, which clients of PostgreSQL do not support; remove it, and add the password with portcullis password add\n\
             c.toml:6:8: client[1].user: found \"app\", which is already the user of another client; merge the two tables, or choose another user\n\
             c.toml:14:17: client[3].certificates[0]: found \"dns:a.x\", but \"dns:*.x\" of the client \"app\" matches the same certificates; remove one of the two patterns\n"
        );
    }

    #[test]
    fn password_in_any_key_is_never_shown() {
        let secret = "Zk3vQ9xTn2LpW8rYb5McHq7Js4Df";
        let mock_secret = format!("\"{}=\"", "A".repeat(43));
        let valid = format!(
            "mock_secret = {mock_secret}\n[[client]]\nuser = \"app\"\nupstream_user = \"owner\"\ndisabled = true\ncertificates = [\"cn:app\"]\n\
             passwords = [{{ id = \"p1\", scram = \"{PENCIL}\", created_at = 2026-01-31T00:00:00Z, expires_at = 2027-01-31T00:00:00Z }}]\n"
        );
        let mut shown = 0;
        for value in [
            "\"app\"",
            "\"owner\"",
            "true",
            "[\"cn:app\"]",
            "\"cn:app\"",
            "\"p1\"",
            &format!("\"{PENCIL}\""),
            "2026-01-31T00:00:00Z",
            "2027-01-31T00:00:00Z",
            &mock_secret,
        ] {
            for replacement in [format!("\"{secret}\""), format!("[\"{secret}\"]"), secret.to_owned()] {
                let text = valid.replacen(value, &replacement, 1);
                let problems = read(&text, SaltRule::OnePerUser).err().unwrap_or_default();
                shown += usize::from(!problems.is_empty());
                assert!(!problems.contains(&secret[4..16]), "{text}\n{problems}");
            }
        }
        assert!(shown > 20, "{shown}");
        let problems = problems(&format!("{valid}{secret} = 1\n"));
        assert!(!problems.contains(&secret[4..16]), "{problems}");
    }
}
