//! Edits of the text of a `clients_file`.

use toml_edit::{
    Array, ArrayOfTables, Datetime, DocumentMut, InlineTable, Item, RawString, Table, TableLike, Value, value,
};

use crate::config::edit::sources::text::LineBreak;
use crate::config::edit::tables::{appended, remove_element, remove_key, remove_table};
use crate::credential::clients::Password;
use crate::credential::mock::MockSecret;
use crate::timestamp;

/// Why a text is not edited. The text of the file is not repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ClientEditError {
    #[error("is not valid TOML; run \"portcullis check\" and correct it")]
    Syntax,
    #[error("has a key \"client\" or \"passwords\" that is not a list of tables; correct it")]
    NotTables,
    #[error("has no client of this name; list its clients with portcullis password list")]
    NoClient,
    #[error("has no password of this client with this ID; list them with portcullis password list")]
    NoPassword,
}

/// Returns the text with a further password of a client, which is added if there is none of this user.
///
/// # Errors
/// If the text is not a `clients_file`.
pub(crate) fn with_password(text: &str, user: &str, password: &Password) -> Result<String, ClientEditError> {
    edited(text, |mut document| match find(&mut document, user)? {
        Some(Found::Table(client)) => {
            add_password(client, password, || multi_line([keys(password)]))?;
            Ok(document.to_string())
        }
        Some(Found::Inline(client)) => {
            add_password(client, password, || Array::from_iter([keys(password)]))?;
            Ok(document.to_string())
        }
        None => with_client(document, user, password),
    })
}

/// Returns the text with a `mock_secret`, unless it has one.
///
/// # Errors
/// If the text is not a `clients_file`.
pub(crate) fn with_mock_secret(text: &str, secret: &MockSecret) -> Result<String, ClientEditError> {
    edited(text, |document| {
        if document.contains_key("mock_secret") {
            return Ok(document.to_string());
        }
        let secret = secret.to_text();
        Ok(format!("# Hides which users exist. Keep it secret.\nmock_secret = \"{}\"\n\n{document}", *secret))
    })
}

/// Returns the text without a password and without the comment directly above it or beside it. The client stays.
///
/// # Errors
/// If the text is not a `clients_file`, or has no such client or password.
pub(crate) fn without_password(text: &str, user: &str, id: &str) -> Result<String, ClientEditError> {
    edited(text, |mut document| {
        let client = find(&mut document, user)?.ok_or(ClientEditError::NoClient)?.table();
        let kept = match client.get_mut("passwords") {
            None => return Err(ClientEditError::NoPassword),
            Some(Item::ArrayOfTables(tables)) => {
                let index = tables.iter().position(|table| has_text(table, "id", id));
                remove_table(tables, index.ok_or(ClientEditError::NoPassword)?)
            }
            Some(item) => {
                let list = item.as_array_mut().ok_or(ClientEditError::NotTables)?;
                let index = inline_tables(list)?.position(|table| has_text(table, "id", id));
                remove_element(list, index.ok_or(ClientEditError::NoPassword)?);
                if list.is_empty() && list.trailing().as_str().is_some_and(|text| text.trim().is_empty()) {
                    list.set_trailing("");
                    list.set_trailing_comma(false);
                }
                None
            }
        };
        // The comment stood above the last table of the client.
        if let Some(kept) = kept {
            let trailing = kept + document.trailing().as_str().unwrap_or_default();
            document.set_trailing(trailing);
        }
        Ok(document.to_string())
    })
}

/// Returns the text in which a client is disabled, or enabled again.
///
/// # Errors
/// If the text is not a `clients_file`, or has no such client.
pub(crate) fn with_disabled(text: &str, user: &str, is_disabled: bool) -> Result<String, ClientEditError> {
    edited(text, |mut document| {
        let client = find(&mut document, user)?.ok_or(ClientEditError::NoClient)?.table();
        match (client.get_mut("disabled").and_then(Item::as_value_mut), is_disabled) {
            (Some(known), true) => {
                let decor = known.decor().clone();
                *known = Value::from(true);
                *known.decor_mut() = decor;
            }
            (None, true) => drop(client.insert("disabled", value(true))),
            (Some(_), false) => drop(client.remove("disabled")),
            (None, false) => {}
        }
        Ok(document.to_string())
    })
}

/// Edits a text and keeps its line breaks.
fn edited(
    text: &str,
    edit: impl FnOnce(DocumentMut) -> Result<String, ClientEditError>,
) -> Result<String, ClientEditError> {
    let document = text.parse().map_err(|_| ClientEditError::Syntax)?;
    Ok(LineBreak::of(text).apply(edit(document)?))
}

/// A client in either form.
enum Found<'d> {
    /// `[[client]]`
    Table(&'d mut Table),
    /// An element of `client = [{ … }]`.
    Inline(&'d mut InlineTable),
}

impl<'d> Found<'d> {
    fn table(self) -> &'d mut dyn TableLike {
        match self {
            Self::Table(table) => table,
            Self::Inline(table) => table,
        }
    }
}

fn find<'d>(document: &'d mut DocumentMut, user: &str) -> Result<Option<Found<'d>>, ClientEditError> {
    match document.get_mut("client") {
        None => Ok(None),
        Some(Item::ArrayOfTables(tables)) => {
            Ok(tables.iter_mut().find(|table| has_text(*table, "user", user)).map(Found::Table))
        }
        Some(item) => {
            let list = item.as_array_mut().ok_or(ClientEditError::NotTables)?;
            drop(inline_tables(list)?);
            let mut tables = list.iter_mut().filter_map(Value::as_inline_table_mut);
            Ok(tables.find(|table| has_text(*table, "user", user)).map(Found::Inline))
        }
    }
}

/// # Errors
/// If an element is not a table.
fn inline_tables(list: &Array) -> Result<impl Iterator<Item = &InlineTable>, ClientEditError> {
    let tables: Option<Vec<_>> = list.iter().map(Value::as_inline_table).collect();
    tables.map(Vec::into_iter).ok_or(ClientEditError::NotTables)
}

fn has_text(table: &dyn TableLike, key: &str, text: &str) -> bool {
    table.get(key).and_then(Item::as_str) == Some(text)
}

/// Adds a password to a client. `first` is the list of a client that has no list yet.
fn add_password(
    client: &mut dyn TableLike,
    password: &Password,
    first: impl FnOnce() -> Array,
) -> Result<(), ClientEditError> {
    match client.get_mut("passwords") {
        None => drop(client.insert("passwords", value(first()))),
        Some(Item::ArrayOfTables(tables)) => push_table(tables, password),
        Some(item) => push(item.as_array_mut().ok_or(ClientEditError::NotTables)?, keys(password)),
    }
    Ok(())
}

fn push_table(tables: &mut ArrayOfTables, password: &Password) {
    let mut table = keys(password).into_table();
    table.decor_mut().set_prefix("\n");
    tables.push(table);
}

/// Adds an element on a line of its own, after the comment at the end of the line before.
fn push(list: &mut Array, element: InlineTable) {
    for known in list.iter_mut() {
        let is_on_own_line = known.decor().prefix().and_then(RawString::as_str).is_some_and(|text| text.contains('\n'));
        if !is_on_own_line {
            known.decor_mut().set_prefix(INDENT);
        }
    }
    let trailing = list.trailing().as_str().unwrap_or_default().trim_end().to_owned();
    let mut element = Value::from(element);
    element.decor_mut().set_prefix(trailing + INDENT);
    list.push_formatted(element);
    list.set_trailing("\n");
    list.set_trailing_comma(true);
}

fn multi_line(elements: impl IntoIterator<Item = InlineTable>) -> Array {
    let mut list = Array::new();
    elements.into_iter().for_each(|element| push(&mut list, element));
    list
}

/// Adds a client with its first password.
fn with_client(mut document: DocumentMut, user: &str, password: &Password) -> Result<String, ClientEditError> {
    if let Some(Item::Value(list)) = document.get_mut("client") {
        let list = list.as_array_mut().ok_or(ClientEditError::NotTables)?;
        if !list.is_empty() {
            let mut client = InlineTable::new();
            client.insert("user", user.into());
            client.insert("passwords", Array::from_iter([keys(password)]).into());
            push(list, client);
            return Ok(document.to_string());
        }
        // `client = []` is what a file without clients contains.
        remove_key(&mut document, "client");
    }
    let mut client = Table::new();
    client.insert("user", value(user));
    client.insert("passwords", value(multi_line([keys(password)])));
    Ok(appended(document.to_string(), &format!("[[client]]\n{client}")))
}

fn keys(password: &Password) -> InlineTable {
    let Password { id, verifier, created_at, expires_at } = password;
    let mut table = InlineTable::new();
    table.insert("id", id.into());
    table.insert("scram", verifier.to_string().into());
    for (key, at) in [("created_at", created_at), ("expires_at", expires_at)] {
        // Every text of `seconds` is a TOML date-time.
        if let Some(at) = at.and_then(|at| timestamp::seconds(at).parse::<Datetime>().ok()) {
            table.insert(key, at.into());
        }
    }
    table
}

const INDENT: &str = "\n    ";

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;
    use crate::config::credentials::clients::from_text;
    use crate::credential::clients::fixtures::password;
    use crate::credential::clients::{Clients, SaltRule};

    fn read(text: &str) -> Clients {
        from_text(Path::new("c.toml"), text, SaltRule::OnePerUser).unwrap_or_else(|error| panic!("{error:?}\n{text}"))
    }

    /// Users with the IDs of their passwords.
    fn shown(text: &str) -> Vec<String> {
        let ids = |client: &crate::credential::clients::Client| {
            client.passwords.iter().map(|password| format!(" {}", password.id)).collect::<String>()
        };
        read(text).iter().map(|client| format!("{}{}", client.user, ids(client))).collect()
    }

    /// With `…` in the place of verifiers.
    fn short(text: &str) -> String {
        text.replace(&password("", "x").verifier.to_string(), "…")
    }

    fn with(text: &str, user: &str, id: &str) -> String {
        with_password(text, user, &password(id, "x")).unwrap()
    }

    fn without(text: &str, user: &str, id: &str) -> String {
        without_password(text, user, id).unwrap()
    }

    #[test]
    fn first_password_makes_a_client_and_further_ones_get_their_lines() {
        let at = |text| timestamp::parse(text);
        let first = Password { created_at: at("2026-01-31T00:00:00.5Z"), ..password("p1", "x") };
        let second = Password { expires_at: at("2027-01-31T00:00:00Z"), ..password("p2", "x") };
        let one = with_password("", "a \"b\"", &first).unwrap();
        assert_eq!(
            short(&one),
            "[[client]]\nuser = 'a \"b\"'\npasswords = [\n    { id = \"p1\", scram = \"…\", created_at = 2026-01-31T00:00:00Z },\n]\n"
        );
        let two = with_password(&one, "a \"b\"", &second).unwrap();
        assert_eq!(
            two,
            one.replace("},\n]", "},\n    { id = \"p2\", scram = \"…\", expires_at = 2027-01-31T00:00:00Z },\n]")
                .replace('…', &second.verifier.to_string())
        );
        assert_eq!(without(&two, "a \"b\"", "p2"), one);
        assert_eq!(short(&without(&one, "a \"b\"", "p1")), "[[client]]\nuser = 'a \"b\"'\npasswords = []\n");
        let again = with(&without(&one, "a \"b\"", "p1"), "a \"b\"", "p3");
        assert!(short(&again).ends_with("passwords = [\n    { id = \"p3\", scram = \"…\" },\n]\n"), "{again}");
    }

    #[test]
    fn mock_secret_is_added_once_and_nothing_else_changes() {
        let secret = MockSecret::default();
        for text in ["client = []\n", "# Clients of the shop.\n\n[[client]]\nuser = \"web\"\n"] {
            let added = with_mock_secret(text, &secret).unwrap();
            let first = format!("mock_secret = \"{}\"\n\n{text}", *secret.to_text());
            assert!(added.ends_with(&first), "{added}");
            assert_eq!(with_mock_secret(&added, &MockSecret::random().unwrap()).unwrap(), added);
            assert_eq!(read(&added).parameters("nobody"), secret.parameters("nobody"));
            assert_eq!(read(text).parameters("nobody"), read(text).parameters("nobody"), "that of the machine");
        }
    }

    #[test]
    fn comments_and_other_clients_stay_as_they_are() {
        let text = with("", "app", "p1");
        let table =
            "# of the shop\n[[client]]\nuser = \"web\" # by certificate\ncertificates = [\"cn:web\"]\n\n# the end\n";
        let text = format!("# Clients of the shop.\n\n{}\n{table}", text.replace("},\n", "},  # until May\n"));
        let more = with(&text, "app", "p2");
        assert!(short(&more).contains("},  # until May\n    { id = \"p2\", scram = \"…\" },\n]\n"), "{more}");
        assert!(more.starts_with("# Clients of the shop.\n\n[[client]]") && more.ends_with(table), "{more}");
        assert_eq!(without(&more, "app", "p2"), text);
        let first = without(&more, "app", "p1");
        assert!(!first.contains("until May") && first.ends_with(table), "{first}");
        let web = with(&text, "web", "p1");
        assert!(
            short(&web)
                .contains("certificates = [\"cn:web\"]\npasswords = [\n    { id = \"p1\", scram = \"…\" },\n]\n")
        );
        let new = with(&text, "new", "p1");
        assert!(new.starts_with(&text), "{new}");
        assert_eq!(shown(&new), ["app p1", "web", "new p1"]);
    }

    #[test]
    fn lists_in_other_forms_are_edited_in_place() {
        let verifier = password("", "x").verifier.to_string();
        let tables = format!(
            "[[client]]\nuser = \"app\"\n\n# old\n[[client.passwords]]\nid = \"p1\"\nscram = \"{verifier}\"\n\n[[client]]\nuser = \"web\"\n"
        );
        let two = with(&tables, "app", "p2");
        assert_eq!(shown(&two), ["app p1 p2", "web"]);
        assert!(two.contains("# old\n[[client.passwords]]"), "{two}");
        assert_eq!(shown(&without(&two, "app", "p1")), ["app p2", "web"]);
        assert_eq!(shown(&without(&without(&two, "app", "p2"), "app", "p1")), ["app", "web"]);

        let inline = "client = [{ user = \"app\" }, { user = \"web\" }]\n";
        let two = with(&with(inline, "web", "p1"), "web", "p2");
        assert_eq!(shown(&two), ["app", "web p1 p2"]);
        assert_eq!(shown(&with(&two, "new", "p1")), ["app", "web p1 p2", "new p1"]);
        assert_eq!(shown(&without(&two, "web", "p2")), ["app", "web p1"]);

        let one_line =
            format!("[[client]]\nuser = \"app\"\npasswords = [{{ id = \"p1\", scram = \"{verifier}\" }}] # all\n");
        let two = short(&with(&one_line, "app", "p2"));
        let expected =
            "passwords = [\n    { id = \"p1\", scram = \"…\" },\n    { id = \"p2\", scram = \"…\" },\n] # all\n";
        assert!(two.ends_with(expected), "{two}");

        let empty = with("# none yet\nclient = []\n# the end\n", "app", "p1");
        assert!(empty.starts_with("# none yet\n# the end\n\n[[client]]\n"), "{empty}");
        let dos = with("[[client]]\r\nuser = \"app\"\r\n", "app", "p1");
        assert_eq!((dos.matches('\n').count(), dos.matches("\r\n").count()), (5, 5), "{dos}");
    }

    #[test]
    fn client_is_disabled_and_enabled_without_other_changes() {
        let text = with("", "app", "p1");
        let disabled = with_disabled(&text, "app", true).unwrap();
        assert_eq!(disabled, format!("{text}disabled = true\n"));
        assert_eq!(with_disabled(&disabled, "app", true).unwrap(), disabled);
        assert_eq!(with_disabled(&disabled, "app", false).unwrap(), text);
        assert_eq!(with_disabled(&text, "app", false).unwrap(), text);
        let commented = format!("{text}disabled = false # since May\n");
        assert_eq!(with_disabled(&commented, "app", true).unwrap(), format!("{text}disabled = true # since May\n"));
        assert_eq!(with_disabled(&text, "web", true), Err(ClientEditError::NoClient));
    }

    #[test]
    fn text_that_is_not_a_clients_file_is_left_alone() {
        let add = |text| with_password(text, "app", &password("p1", "x"));
        for (text, error) in [
            ("client = ", ClientEditError::Syntax),
            ("client = 1\n", ClientEditError::NotTables),
            ("client = [1]\n", ClientEditError::NotTables),
            ("[client]\nuser = 'app'\n", ClientEditError::NotTables),
            ("[[client]]\nuser = 'app'\npasswords = 1\n", ClientEditError::NotTables),
        ] {
            assert_eq!(add(text), Err(error), "{text}");
            assert_eq!(without_password(text, "app", "p1"), Err(error), "{text}");
        }
        let text = with("", "app", "p1");
        assert_eq!(without_password(&text, "web", "p1"), Err(ClientEditError::NoClient));
        assert_eq!(without_password(&text, "app", "p2"), Err(ClientEditError::NoPassword));
        assert_eq!(without_password("[[client]]\nuser = 'app'\n", "app", "p1"), Err(ClientEditError::NoPassword));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Add(String, String),
        Remove(prop::sample::Index),
        Disable(prop::sample::Index, bool),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => ("[a-c]", "p[1-9]").prop_map(|(user, id)| Step::Add(user, id)),
            2 => any::<prop::sample::Index>().prop_map(Step::Remove),
            1 => (any::<prop::sample::Index>(), any::<bool>()).prop_map(|(index, is)| Step::Disable(index, is)),
        ]
    }

    proptest! {
        #[test]
        fn any_sequence_of_edits_has_the_effect_of_the_commands(steps in prop::collection::vec(step(), 0..12)) {
            let mut text = "# clients\n\n".to_owned();
            let mut expected: Vec<(String, Vec<String>, bool)> = Vec::new();
            for step in steps {
                match step {
                    Step::Add(user, id) => {
                        match expected.iter_mut().find(|(known, ..)| *known == user) {
                            Some((_, ids, _)) if ids.contains(&id) => continue,
                            Some((_, ids, _)) => ids.push(id.clone()),
                            None => expected.push((user.clone(), vec![id.clone()], false)),
                        }
                        text = with(&text, &user, &id);
                    }
                    Step::Remove(index) => {
                        let mut all = expected.iter_mut().filter(|(_, ids, _)| !ids.is_empty()).collect::<Vec<_>>();
                        if all.is_empty() {
                            continue;
                        }
                        let at = index.index(all.len());
                        let (user, ids, _) = &mut *all[at];
                        let id = ids.remove(index.index(ids.len()));
                        text = without(&text, user, &id);
                    }
                    Step::Disable(index, is) if !expected.is_empty() => {
                        let at = index.index(expected.len());
                        expected[at].2 = is;
                        text = with_disabled(&text, &expected[at].0, is).unwrap();
                    }
                    Step::Disable(..) => {}
                }
            }
            prop_assert!(text.starts_with("# clients\n"));
            if !expected.is_empty() {
                let clients = read(&text);
                let found = clients.iter().map(|client| {
                    let ids = client.passwords.iter().map(|password| password.id.clone()).collect();
                    (client.user.clone(), ids, client.is_disabled)
                });
                prop_assert_eq!(found.collect::<Vec<_>>(), expected);
            }
        }
    }
}
