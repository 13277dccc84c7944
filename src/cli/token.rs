//! `portcullis token`: creates tokens for the admin API, lists and revokes them.

use clap::builder::PossibleValuesParser;
use clap::builder::TypedValueParser as _;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::time::Duration;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::cli::client::args::Running;
use crate::cli::client::tokens;
use crate::cli::{Failure, hint, print_json, print_raw};
use crate::config::edit::tokens::table;
use crate::config::values::{DurationError, parse_positive_duration};
use crate::source::rule::Network;
use crate::timestamp;
use crate::token::secret::TokenSecret;
use crate::token::{NAME, Role, Token, TokenOrigin, is_name};

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Create a token and print it, this once
    #[command(long_about = NEW)]
    New(Box<NewArgs>),
    /// List the tokens of the running program with their last use
    List {
        #[command(flatten)]
        running: Running,
        /// Print JSON instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Remove a token; it is invalid from its next use on
    Revoke {
        #[command(flatten)]
        running: Running,
        /// Name of the token, as shown by `token list`
        #[arg(value_name = "NAME")]
        name: String,
        /// Print JSON instead of text
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct NewArgs {
    #[command(flatten)]
    running: Running,
    /// Name of the token in lists and audit events; unique
    #[arg(long, value_parser = parse_name)]
    name: String,
    /// viewer reads; operator also changes sources, closes sessions and reloads; owner also manages tokens
    #[arg(long, value_parser = PossibleValuesParser::new(Role::ALL.map(Role::code)).try_map(parse_role))]
    role: Role,
    /// Time until the token expires, such as 90d or 12h; default: it does not expire
    #[arg(long, value_name = "DURATION", value_parser = parse_ttl)]
    ttl: Option<Duration>,
    /// IP address or network from which the token may be used; may be repeated; default: all
    #[arg(long = "source", value_name = "CIDR")]
    sources: Vec<Network>,
    /// Only print the token and its [[admin.token]] table, for the configuration; needs no running program
    #[arg(long, conflicts_with_all = ["url", "socket"])]
    offline: bool,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(command: &TokenCommand) -> Result<(), Failure> {
    match command {
        TokenCommand::New(args) if args.offline => new_offline(args),
        TokenCommand::New(args) => tokens::new(&args.running, &request(args), args.json),
        TokenCommand::List { running, json } => tokens::list(running, *json),
        TokenCommand::Revoke { running, name, json } => tokens::revoke(running, name, *json),
    }
}

/// The body of `POST /v1/tokens`.
fn request(args: &NewArgs) -> Value {
    json!({
        "name": args.name,
        "role": args.role.code(),
        "ttl": args.ttl.map(|ttl| format!("{}ms", ttl.as_millis())),
        // Without networks, the key is left out: an empty list would be a token for nowhere.
        "sources": (!args.sources.is_empty()).then(|| args.sources.iter().map(ToString::to_string).collect::<Vec<_>>()),
    })
}

fn new_offline(args: &NewArgs) -> Result<(), Failure> {
    let secret = TokenSecret::generate()
        .map_err(|_| Failure::Failed("cannot create a token: the system provides no random bytes".to_owned()))?;
    let token = token(args, &secret, OffsetDateTime::now_utc());
    if args.json {
        return print_json(&json!({
            "token": secret.reveal(),
            "name": token.name,
            "role": token.role.code(),
            "sha256": token.digest.to_string(),
            "created_at": token.created_at.map(timestamp::seconds),
            "expires_at": token.expires_at.map(timestamp::seconds),
            "sources": token.sources.iter().map(ToString::to_string).collect::<Vec<_>>(),
        }));
    }
    // Both parts consist of checked characters, so nothing needs to be escaped.
    print_raw(&Zeroizing::new(format!("{}\n\n{}", secret.reveal(), table(&token))))?;
    hint(ADD_IT);
    Ok(())
}

fn token(args: &NewArgs, secret: &TokenSecret, now: OffsetDateTime) -> Token {
    let NewArgs { running: _, name, role, ttl, sources, offline: _, json: _ } = args;
    Token {
        name: name.clone(),
        role: *role,
        digest: secret.digest(),
        created_at: Some(now),
        expires_at: ttl.map(|ttl| timestamp::after(now, ttl)),
        sources: sources.clone(),
        origin: TokenOrigin::Configuration,
    }
}

fn parse_name(text: &str) -> Result<String, String> {
    if is_name(text) { Ok(text.to_owned()) } else { Err(format!("expected {NAME}")) }
}

/// clap has already rejected other values.
fn parse_role(code: String) -> Result<Role, &'static str> {
    Role::from_code(&code).ok_or("unknown role")
}

fn parse_ttl(text: &str) -> Result<Duration, String> {
    parse_positive_duration(text).map_err(|error: DurationError| format!("expected {error}"))
}

const NEW: &str = "\
Create a token for the admin API and print it, alone on the first line. Portcullis keeps only its SHA-256, so the token cannot \
be shown again. With --offline, the [[admin.token]] table to add to the configuration follows.";

const ADD_IT: &str = "the token is not shown again; add the table to the configuration, and reload";
