//! The passwords of the database: `upstream_password_file`.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fmt;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use crate::credential::password::MAX_LENGTH;
use crate::credential::verifier::{Key, Parameters};

/// The passwords that may be valid at the database. Clones share what was learned about them, which is no part of their equality.
#[derive(Clone, Default)]
pub(crate) struct UpstreamPasswords {
    entries: Vec<UpstreamPassword>,
    learned: Arc<Mutex<Learned>>,
}

/// One entry of the file. Wiped from memory when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct UpstreamPassword {
    /// Its line in the file, counted from 1.
    pub(crate) line: usize,
    password: Zeroizing<String>,
}

/// What connections to the database have shown.
#[derive(Default)]
struct Learned {
    /// By user of the database. Only authenticated clients add to it, so it is no larger than `clients_file`.
    users: HashMap<String, UserState>,
    salted: HashMap<SaltedFor, Zeroizing<Key>>,
}

#[derive(Clone, Default)]
struct UserState {
    /// The line of the password that the database accepted last.
    accepted: Option<usize>,
    /// The database rejected every password the last time.
    is_rejected: bool,
    /// When it was last found out which password works, in the middle of a session.
    learned_at: Option<OffsetDateTime>,
    /// By line.
    verdicts: HashMap<usize, Verdicts>,
}

/// When the database accepted and rejected one password of a user last.
#[derive(Clone, Copy, Default)]
struct Verdicts {
    accepted: Option<OffsetDateTime>,
    rejected: Option<OffsetDateTime>,
}

/// What the database says of the password in one line: the evidence that an old one can be removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LineEvidence {
    pub(crate) line: usize,
    /// The users of the database that it was accepted for, the latest first; at most [`MAX_LISTED_USERS`].
    pub(crate) accepted: Vec<DatabaseUser>,
    /// Those that it was rejected for, and has not been accepted for since.
    pub(crate) rejected: Vec<DatabaseUser>,
}

/// A user of the database, and when its server last accepted or rejected a password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DatabaseUser {
    pub(crate) name: String,
    pub(crate) at: OffsetDateTime,
}

/// The password in this line with these parameters.
#[derive(PartialEq, Eq, Hash)]
struct SaltedFor {
    line: usize,
    parameters: Parameters,
}

/// Why a file is rejected. Contains nothing of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PasswordFileError {
    /// Counted from 1; `None` for the file as a whole.
    pub(crate) line: Option<usize>,
    pub(crate) why: WhyRejected,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WhyRejected {
    #[error("has no password; write the password of the database into it, on a line of its own")]
    Empty,
    #[error("contains a NUL, which no password of a database has; remove it")]
    Nul,
    #[error("is not UTF-8; write the password in UTF-8")]
    NotUtf8,
    #[error("is longer than {MAX_LENGTH} bytes; write one password on each line")]
    Long,
    #[error("has more than {MAX_PASSWORDS} passwords; remove old ones")]
    Many,
}

impl UpstreamPasswords {
    /// Reads one password from each line. Empty lines are ignored; spaces belong to the password.
    ///
    /// # Errors
    /// If a line is no password, or there are none or too many.
    pub(crate) fn from_file(bytes: &[u8]) -> Result<Self, PasswordFileError> {
        let mut entries = Vec::new();
        for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if !line.is_empty() {
                let password = password(line).map_err(|why| PasswordFileError { line: Some(index + 1), why })?;
                entries.push(UpstreamPassword { line: index + 1, password });
            }
        }
        match entries.len() {
            0 => Err(PasswordFileError { line: None, why: WhyRejected::Empty }),
            1..=MAX_PASSWORDS => Ok(Self { entries, learned: Arc::default() }),
            _ => Err(PasswordFileError { line: None, why: WhyRejected::Many }),
        }
    }

    /// Takes over what is known of those passwords that another file has too, in whatever line.
    #[must_use]
    pub(crate) fn with_evidence_of(self, other: &Self) -> Self {
        let line_of = |line: usize| {
            let known = other.entries.iter().find(|entry| entry.line == line)?;
            self.entries.iter().find(|entry| entry.password == known.password).map(|entry| entry.line)
        };
        let renumbered = |(user, state): (&String, &UserState)| {
            let verdicts = state.verdicts.iter().filter_map(|(line, verdicts)| Some((line_of(*line)?, *verdicts)));
            let accepted = state.accepted.and_then(line_of);
            // With another file the next rejection is a new one.
            (user.clone(), UserState { accepted, verdicts: verdicts.collect(), ..UserState::default() })
        };
        let users = other.learned().users.iter().map(renumbered).collect();
        self.learned().users = users;
        self
    }

    /// The number of passwords.
    pub(crate) fn count(&self) -> usize {
        self.entries.len()
    }

    /// In the order in which to try them for this user of the database: the one that it accepted last, then that of the file.
    pub(crate) fn in_order(&self, user: &str) -> Vec<UpstreamPassword> {
        let accepted = self.learned().users.get(user).and_then(|state| state.accepted);
        let mut entries = self.entries.clone();
        entries.sort_by_key(|entry| Some(entry.line) != accepted);
        entries
    }

    /// Records that the database accepts a user, with the password in this line if it has asked for one. Returns whether it
    /// had rejected every password of the user before.
    pub(crate) fn note_accepted(&self, user: &str, line: Option<usize>, now: OffsetDateTime) -> bool {
        self.of_user(user, |state| {
            state.accepted = line.or(state.accepted);
            if let Some(line) = line {
                state.verdicts.entry(line).or_default().accepted = Some(now);
            }
            mem::replace(&mut state.is_rejected, false)
        })
    }

    /// Whether to find out now which password of a user works: at most once a second.
    pub(crate) fn begin_learning(&self, user: &str, now: OffsetDateTime) -> bool {
        self.of_user(user, |state| {
            let may_begin =
                state.learned_at.is_none_or(|at| !(at..at.saturating_add(LEARNING_INTERVAL)).contains(&now));
            state.learned_at = if may_begin { Some(now) } else { state.learned_at };
            may_begin
        })
    }

    /// Records that the database rejects the password in this line for a user.
    pub(crate) fn note_wrong(&self, user: &str, line: usize, now: OffsetDateTime) {
        self.of_user(user, |state| state.verdicts.entry(line).or_default().rejected = Some(now));
    }

    /// Records that the database rejects every password of a user. Returns whether it did not the last time.
    pub(crate) fn note_rejected(&self, user: &str) -> bool {
        self.of_user(user, |state| !mem::replace(&mut state.is_rejected, true))
    }

    /// What the database says of each password, in the order of the file.
    pub(crate) fn evidence(&self) -> Vec<LineEvidence> {
        let learned = self.learned();
        let listed = |at: &dyn Fn(&Verdicts) -> Option<OffsetDateTime>, line: usize| {
            let users = learned.users.iter();
            let users = users.filter_map(|(name, state)| Some((Reverse(at(state.verdicts.get(&line)?)?), name)));
            let mut users: Vec<_> = users.collect();
            users.sort_unstable();
            let users = users.into_iter().take(MAX_LISTED_USERS);
            users.map(|(Reverse(at), name)| DatabaseUser { name: name.clone(), at }).collect()
        };
        let of_line = |UpstreamPassword { line, .. }: &UpstreamPassword| LineEvidence {
            line: *line,
            accepted: listed(&|verdicts| verdicts.accepted, *line),
            rejected: listed(&|verdicts| verdicts.rejected.filter(|at| Some(*at) > verdicts.accepted), *line),
        };
        self.entries.iter().map(of_line).collect()
    }

    /// SaltedPassword of one of the passwords for these parameters, if it was computed before.
    pub(crate) fn salted(&self, entry: &UpstreamPassword, parameters: &Parameters) -> Option<Zeroizing<Key>> {
        let key = SaltedFor { line: entry.line, parameters: parameters.clone() };
        self.learned().salted.get(&key).cloned()
    }

    /// Keeps SaltedPassword of one of the passwords. A database has one salt for each user.
    pub(crate) fn keep_salted(&self, entry: &UpstreamPassword, parameters: Parameters, salted: Zeroizing<Key>) {
        let mut learned = self.learned();
        if learned.salted.len() >= MAX_SALTED {
            learned.salted.clear();
        }
        learned.salted.insert(SaltedFor { line: entry.line, parameters }, salted);
    }

    fn of_user<T>(&self, user: &str, work: impl FnOnce(&mut UserState) -> T) -> T {
        let mut learned = self.learned();
        // Most connections change nothing, and copy no name.
        match learned.users.get_mut(user) {
            Some(state) => work(state),
            None => work(learned.users.entry(user.to_owned()).or_default()),
        }
    }

    fn learned(&self) -> MutexGuard<'_, Learned> {
        self.learned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl UpstreamPassword {
    pub(crate) fn expose(&self) -> &str {
        &self.password
    }
}

impl PartialEq for UpstreamPasswords {
    fn eq(&self, other: &Self) -> bool {
        self.entries == other.entries
    }
}

impl Eq for UpstreamPasswords {}

fn password(line: &[u8]) -> Result<Zeroizing<String>, WhyRejected> {
    if line.contains(&0) {
        return Err(WhyRejected::Nul);
    }
    if line.len() > MAX_LENGTH {
        return Err(WhyRejected::Long);
    }
    let text = std::str::from_utf8(line).map_err(|_| WhyRejected::NotUtf8)?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// Without the passwords.
impl fmt::Debug for UpstreamPasswords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UpstreamPasswords({})", self.entries.len())
    }
}

/// Without the password.
impl fmt::Debug for UpstreamPassword {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UpstreamPassword(line {})", self.line)
    }
}

/// Each may be tried for a connection to the database.
const MAX_PASSWORDS: usize = 16;

/// Users of the database that the evidence of one password lists.
const MAX_LISTED_USERS: usize = 8;

/// A client may authenticate thousands of times a second.
const LEARNING_INTERVAL: Duration = Duration::SECOND;

/// Salted passwords in memory. One has about 150 bytes.
const MAX_SALTED: usize = 4096;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn exposed(passwords: &UpstreamPasswords, user: &str) -> Vec<String> {
        passwords.in_order(user).iter().map(|entry| entry.expose().to_owned()).collect()
    }

    fn at(seconds: i64) -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + Duration::seconds(seconds)
    }

    /// The line, the users that it was accepted for, and those that it is rejected for now, with the seconds.
    fn evidence(passwords: &UpstreamPasswords) -> Vec<(usize, String, String)> {
        let text = |users: Vec<DatabaseUser>| {
            let user = |user: DatabaseUser| format!("{} {}", user.name, user.at.unix_timestamp());
            users.into_iter().map(user).collect::<Vec<_>>().join(", ")
        };
        let lines = passwords.evidence().into_iter();
        lines.map(|line| (line.line, text(line.accepted), text(line.rejected))).collect()
    }

    fn read(text: &[u8]) -> Result<Vec<String>, PasswordFileError> {
        UpstreamPasswords::from_file(text).map(|passwords| exposed(&passwords, "app"))
    }

    #[test]
    fn each_line_is_a_password_with_its_spaces() {
        assert_eq!(read(b"one\n"), Ok(vec!["one".to_owned()]));
        let two = ["new pass ", " old#1"].map(str::to_owned).to_vec();
        assert_eq!(read(b"\nnew pass \r\n\r\n\n old#1"), Ok(two));
    }

    #[test]
    fn file_without_passwords_or_with_something_else_is_rejected_with_its_line() {
        let error = |line, why| Err(PasswordFileError { line, why });
        assert_eq!(read(b""), error(None, WhyRejected::Empty));
        assert_eq!(read(b"\r\n\n"), error(None, WhyRejected::Empty));
        assert_eq!(read(b"one\n\ntw\0o\n"), error(Some(3), WhyRejected::Nul));
        assert_eq!(read(b"\xff"), error(Some(1), WhyRejected::NotUtf8));
        assert_eq!(read(&[b'a'; MAX_LENGTH + 1]), error(Some(1), WhyRejected::Long));
        assert!(read("x\n".repeat(MAX_PASSWORDS).as_bytes()).is_ok());
        assert_eq!(read("x\n".repeat(MAX_PASSWORDS + 1).as_bytes()), error(None, WhyRejected::Many));
    }

    #[test]
    fn debug_output_has_no_password() {
        let passwords = UpstreamPasswords::from_file(b"hunter2\nhunter3\n").unwrap();
        assert_eq!(format!("{passwords:?}"), "UpstreamPasswords(2)");
        assert_eq!(format!("{:?}", passwords.in_order("app")[1]), "UpstreamPassword(line 2)");
    }

    #[test]
    fn password_that_the_database_accepted_last_is_first_for_its_user() {
        let passwords = UpstreamPasswords::from_file(b"one\n\ntwo\nthree\n").unwrap();
        assert!(!passwords.note_accepted("app", Some(3), at(1)));
        assert_eq!(exposed(&passwords, "app"), ["two", "one", "three"]);
        assert!(!passwords.note_accepted("app", None, at(1)));
        assert_eq!(exposed(&passwords.clone(), "app"), ["two", "one", "three"]);
        assert_eq!(exposed(&passwords, "job"), ["one", "two", "three"]);
        assert_eq!(passwords, UpstreamPasswords::from_file(b"one\n\ntwo\nthree\n").unwrap());
        assert_ne!(
            passwords,
            UpstreamPasswords::from_file(b"one\ntwo\nthree\n").unwrap(),
            "the lines are named in the log"
        );
    }

    #[test]
    fn rejection_of_all_passwords_is_new_once_until_one_is_accepted() {
        let passwords = UpstreamPasswords::from_file(b"one\n").unwrap();
        assert_eq!([(); 2].map(|()| passwords.note_rejected("app")), [true, false]);
        assert!(passwords.note_rejected("job"));
        assert_eq!([(); 2].map(|()| passwords.note_accepted("app", Some(1), at(1))), [true, false]);
        assert!(passwords.note_rejected("app"));
    }

    #[test]
    fn learning_begins_once_a_second_for_each_user() {
        let passwords = UpstreamPasswords::from_file(b"old\nnew\n").unwrap();
        let begins = |user: &str, second| passwords.begin_learning(user, at(second));
        assert_eq!([begins("app", 1), begins("app", 1), begins("job", 1), begins("app", 2)], [true, false, true, true]);
        assert!(begins("app", 0), "the clock was set back");
    }

    #[test]
    fn evidence_has_the_last_verdict_of_the_database_for_each_line_and_user() {
        let passwords = UpstreamPasswords::from_file(b"old\n\nnew\n").unwrap();
        let row = |line, accepted: &str, rejected: &str| (line, accepted.to_owned(), rejected.to_owned());
        assert_eq!(evidence(&passwords), [row(1, "", ""), row(3, "", "")]);
        passwords.note_accepted("app", Some(1), at(1));
        passwords.note_accepted("job", Some(1), at(2));
        passwords.note_accepted("open", None, at(3));
        passwords.note_wrong("app", 1, at(4));
        passwords.note_accepted("app", Some(3), at(4));
        assert_eq!(evidence(&passwords), [row(1, "job 2, app 1", "app 4"), row(3, "app 4", "")]);
        passwords.note_wrong("app", 3, at(5));
        passwords.note_accepted("app", Some(1), at(6));
        assert_eq!(evidence(&passwords), [row(1, "app 6, job 2", ""), row(3, "app 4", "app 5")]);
        for number in 0..100 {
            passwords.note_accepted(&format!("user{number}"), Some(1), at(100 + number));
        }
        let users = &passwords.evidence()[0].accepted;
        assert_eq!((users.len(), users[0].name.as_str()), (MAX_LISTED_USERS, "user99"));
    }

    #[test]
    fn evidence_of_a_password_follows_it_into_another_line() {
        let before = UpstreamPasswords::from_file(b"old\nolder\n").unwrap();
        before.note_accepted("app", Some(1), at(1));
        before.note_wrong("job", 2, at(2));
        before.note_rejected("job");
        let after = UpstreamPasswords::from_file(b"new\n\nold\n").unwrap().with_evidence_of(&before);
        let row = |line, accepted: &str, rejected: &str| (line, accepted.to_owned(), rejected.to_owned());
        assert_eq!(evidence(&after), [row(1, "", ""), row(3, "app 1", "")]);
        assert_eq!(exposed(&after, "app"), ["old", "new"]);
        assert!(after.note_rejected("job"), "it is reported again");
        assert_eq!(evidence(&before), [row(1, "app 1", ""), row(2, "", "job 2")], "a plan changes nothing");
    }

    #[test]
    fn salted_password_is_kept_by_line_and_parameters() {
        let passwords = UpstreamPasswords::from_file(b"one\ntwo\n").unwrap();
        let entries = passwords.in_order("app");
        let [first, second] = [1, 2].map(|byte| Parameters::mock("app", &[byte; 32]));
        passwords.keep_salted(&entries[0], first.clone(), Zeroizing::new([7; 32]));
        assert_eq!(passwords.salted(&entries[0], &first).as_deref(), Some(&[7; 32]));
        assert_eq!(passwords.salted(&entries[0], &second), None);
        assert_eq!(passwords.salted(&entries[1], &first), None);
        for byte in 0..=255 {
            for line in 1..=32 {
                let entry = UpstreamPassword { line, ..entries[0].clone() };
                passwords.keep_salted(&entry, Parameters::mock("app", &[byte; 32]), Zeroizing::default());
            }
        }
        assert!(passwords.learned().salted.len() <= MAX_SALTED);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_rejected(bytes in prop::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..200)) {
            if let Ok(passwords) = UpstreamPasswords::from_file(&bytes) {
                let lines = bytes.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
                let lines: Vec<_> = lines.filter(|line| !line.is_empty()).collect();
                prop_assert!(passwords.entries.iter().map(|entry| entry.password.as_bytes()).eq(lines));
            }
        }
    }
}
