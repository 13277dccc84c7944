//! `portcullis password`: the passwords of a listener's clients, in their file.

mod file;
mod list;
mod prompt;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::cli::password::file::ClientsFile;
use crate::cli::{Failure, hint, print, print_raw};
use crate::config::edit::clients::{with_disabled, with_mock_secret, with_password, without_password};
use crate::config::values::{DurationError, parse_positive_duration};
use crate::credential::clients::{ID, check_user, is_id};
use crate::credential::mock::MockSecret;
use crate::credential::new_password::{NewPassword, NewPasswordError};
use crate::credential::password::{check, generate};
use crate::timestamp;

#[derive(Debug, Subcommand)]
pub(crate) enum PasswordCommand {
    /// Add a password of a client, from standard input or generated
    #[command(long_about = ADD)]
    Add(AddArgs),
    /// List the clients and their passwords, without the passwords themselves
    List {
        #[command(flatten)]
        file: FileArg,
        /// Print JSON instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Remove a password; the sessions that use it are closed when the file is reloaded
    Remove {
        #[command(flatten)]
        file: FileArg,
        /// User name of the client
        user: String,
        /// ID of the password, as shown by `password list`
        id: String,
    },
    /// Disable a client with all its passwords and certificates; its sessions are closed when the file is reloaded
    Disable {
        #[command(flatten)]
        file: FileArg,
        /// User name of the client
        user: String,
    },
    /// Enable a client that was disabled
    Enable {
        #[command(flatten)]
        file: FileArg,
        /// User name of the client
        user: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct FileArg {
    /// File that clients_file in [listener.credentials] names
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    path: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct AddArgs {
    /// User name of the client; a new client is added to the file
    #[arg(value_parser = parse_user)]
    user: String,
    #[command(flatten)]
    file: FileArg,
    /// Generate the password and print it, this once
    #[arg(long)]
    generate: bool,
    /// Time until the password expires, such as 90d or 12h; default: it does not expire
    #[arg(long, value_name = "DURATION", value_parser = parse_expiry)]
    expires: Option<Duration>,
    /// ID of the password; default: p1, p2 and so on
    #[arg(long, value_parser = parse_id)]
    id: Option<String>,
}

pub(crate) fn run(command: &PasswordCommand) -> Result<(), Failure> {
    match command {
        PasswordCommand::Add(args) => add(args),
        PasswordCommand::List { file, json } => list::list(&file.path, *json),
        PasswordCommand::Remove { file, user, id } => remove(file, user, id),
        PasswordCommand::Disable { file, user } => set_disabled(file, user, true),
        PasswordCommand::Enable { file, user } => set_disabled(file, user, false),
    }
}

fn add(args: &AddArgs) -> Result<(), Failure> {
    let AddArgs { user, file: FileArg { path }, generate: is_generated, expires, id } = args;
    // An error of the file is reported before a person types a password.
    check_id(&ClientsFile::read_or_new(path)?, args)?;
    let text = if *is_generated { generated()? } else { typed(user)? };
    let file = ClientsFile::read_or_new(path)?;
    check_id(&file, args)?;
    let client = file.client(user);
    let now = OffsetDateTime::now_utc();
    let new = NewPassword {
        id: id.clone(),
        created_at: now,
        expires_at: expires.map(|expires| timestamp::after(now, expires)),
    };
    let password = new.of(client, &text).map_err(|error| not_added(user, &error))?;
    let secret = MockSecret::random().ok_or_else(|| not_added(user, &NewPasswordError::NoRandom))?;
    file.write(|text| with_mock_secret(&with_password(text, user, &password)?, &secret))?;
    let expiry = password
        .expires_at
        .map_or("does not expire".to_owned(), |end| format!("expires at {}", timestamp::seconds(end)));
    let added = format!("the password {} of {user:?} is in {} and {expiry}", password.id, path.display());
    if *is_generated {
        // Consists of printable characters.
        print_raw(&Zeroizing::new(format!("{}\n", &*text)))?;
        hint(&format!("{added}; it is not shown again"));
    } else {
        print(&format!("{added}\n"))?;
    }
    if client.is_some_and(|client| client.is_disabled) {
        hint(&format!("the client {user:?} is disabled; enable it with portcullis password enable"));
    }
    Ok(())
}

fn remove(FileArg { path }: &FileArg, user: &str, id: &str) -> Result<(), Failure> {
    let file = ClientsFile::read(path)?;
    file.write(|text| without_password(text, user, id))?;
    print(&format!("the password {id} of {user:?} is removed from {}\n", path.display()))?;
    let is_last = file.client(user).is_some_and(|client| client.passwords.len() == 1 && client.certificates.is_empty());
    if is_last {
        hint(&format!("{user:?} has no other password and no certificate, so it can no longer authenticate"));
    }
    Ok(())
}

fn set_disabled(FileArg { path }: &FileArg, user: &str, is_disabled: bool) -> Result<(), Failure> {
    ClientsFile::read(path)?.write(|text| with_disabled(text, user, is_disabled))?;
    let state = if is_disabled { "disabled" } else { "enabled" };
    print(&format!("the client {user:?} in {} is {state}\n", path.display()))
}

fn generated() -> Result<Zeroizing<String>, Failure> {
    generate().ok_or_else(|| Failure::Failed(NO_RANDOM.to_owned()))
}

/// A password that a person types or a script writes.
fn typed(user: &str) -> Result<Zeroizing<String>, Failure> {
    let text = prompt::read(user)?;
    check(&text).map_err(|weak| Failure::Failed(format!("the password {weak}")))?;
    Ok(text)
}

fn not_added(user: &str, error: &NewPasswordError) -> Failure {
    Failure::Failed(match error {
        NewPasswordError::NoRandom => NO_RANDOM.to_owned(),
        NewPasswordError::TakenId(_) | NewPasswordError::Known(_) => format!("{user:?} {error}"),
    })
}

fn check_id(file: &ClientsFile<'_>, AddArgs { user, id, .. }: &AddArgs) -> Result<(), Failure> {
    match (file.client(user), id) {
        (Some(client), Some(id)) if client.password(id).is_some() => Err(Failure::Failed(format!(
            "{user:?} has a password with the ID {id} already; choose another ID, or leave out --id"
        ))),
        _ => Ok(()),
    }
}

fn parse_user(text: &str) -> Result<String, String> {
    check_user(text).map(|()| text.to_owned()).map_err(|error| format!("expected {error}"))
}

fn parse_id(text: &str) -> Result<String, String> {
    if is_id(text) { Ok(text.to_owned()) } else { Err(format!("expected {ID}")) }
}

fn parse_expiry(text: &str) -> Result<Duration, String> {
    parse_positive_duration(text).map_err(|error: DurationError| format!("expected {error}"))
}

const NO_RANDOM: &str = "cannot add a password: the system provides no random bytes";

const ADD: &str = "\
Add a password of a client to the file that clients_file in [listener.credentials] names. The password is read from standard \
input: twice and without echo on a terminal, otherwise all of the input without a line break at its end. It needs 8 characters \
with upper-case and lower-case letters, digits and special characters. With --generate it is random, and printed alone on the \
first line.

The file receives a SCRAM-SHA-256 verifier and not the password. A client may have several passwords, so that a new one works \
before the old one is removed. A running program that uses the file reloads it.";
