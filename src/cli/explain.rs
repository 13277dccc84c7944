//! `portcullis explain`: what would become of a connection, by the policy of the running program where there is one.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use hyper::Method;
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::addr::ClientAddr;
use crate::cli::certs::inspect::read_certificates;
use crate::cli::client::reading::Reading;
use crate::cli::client::{Control, Reply};
use crate::cli::{ConfigFile, Failure, hint, load, print, print_json, source};
use crate::config::Config;
use crate::dns::HostCache;
use crate::policy::explain::ExplainError;

/// What `explain` is asked.
#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    #[command(flatten)]
    config: ConfigFile,
    /// The listener it would come to
    #[arg(long, value_name = "NAME")]
    listener: String,
    /// The address it would come from, or "unix" for a program that opens the listener's Unix socket
    #[arg(long, value_name = "IP", value_parser = source)]
    source: ClientAddr,
    /// The certificate it would present (PEM, its chain behind it)
    #[arg(long, value_name = "FILE")]
    client_cert: Option<PathBuf>,
    /// Ask the program at this admin socket, instead of the one that the configuration names
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Print JSON instead of words
    #[arg(long)]
    json: bool,
}

/// Whose policy an answer is about.
enum Answered {
    /// The running program's.
    Running(Value),
    /// Nobody has answered, for this reason: the configuration file has to.
    Nobody(String),
}

pub(crate) fn explain(args: &ExplainArgs) -> Result<(), Failure> {
    let chain = args.client_cert.as_deref().map(read_certificates).transpose()?.unwrap_or_default();
    let (answer, policy) = match ask(args, &chain)? {
        Answered::Running(mut answer) => {
            let generation = Reading(&answer).number("generation");
            set(&mut answer, "policy", "running".into());
            (answer, format!("of the running program (generation {generation})"))
        }
        Answered::Nobody(why) => {
            let mut answer = by_file(args, &chain)?;
            set(&mut answer, "policy", "file".into());
            set(&mut answer, "policy_detail", why.as_str().into());
            (answer, format!("of {}, not of a running program: {why}", args.config.config.display()))
        }
    };
    if args.json {
        print_json(&answer)?
    } else {
        print(&in_words(&answer, &policy))?
    }
    if Reading(&answer).text("verdict").as_deref() == Some("admitted") { Ok(()) } else { Err(Failure::Refused) }
}

/// Asks the running program. With `--socket` it is the one that is meant, and has to answer.
fn ask(args: &ExplainArgs, chain: &[CertificateDer<'_>]) -> Result<Answered, Failure> {
    if let Some(socket) = &args.socket {
        let reply = question(args, socket, chain)?;
        return understood(reply).map(Answered::Running);
    }
    let file = &args.config.config;
    let socket = match Config::admin_of(file) {
        Ok(Some(admin)) => admin.socket,
        Ok(None) => return Ok(Answered::Nobody("it has no [admin], by which one could be asked".to_owned())),
        Err(_) => {
            hint("--socket PATH asks the running program, whatever is wrong with the file");
            return Ok(Answered::Nobody("its [admin] cannot be read".to_owned()));
        }
    };
    let reply = match question(args, &socket, chain) {
        Ok(reply) => reply,
        Err(Failure::Failed(why)) => return Ok(Answered::Nobody(first_sentence(&why).to_owned())),
        Err(other) => return Err(other),
    };
    let Some(config) = Reading(&reply.body).text("config") else {
        let why = "the one that answers is of a version that cannot explain";
        return Ok(Answered::Nobody(why.to_owned()));
    };
    if !is_same_file(file, Path::new(&config)) {
        let why = format!("the one that answers has another configuration, {config}; --socket asks it all the same");
        return Ok(Answered::Nobody(why));
    }
    understood(reply).map(Answered::Running)
}

fn question(args: &ExplainArgs, socket: &Path, chain: &[CertificateDer<'_>]) -> Result<Reply, Failure> {
    // Only what is public of the file goes over the socket: it may hold a private key, too.
    let blocks: Vec<_> = chain.iter().map(|der| pem::Pem::new("CERTIFICATE", der.as_ref())).collect();
    let body = json!({
        "listener": args.listener,
        "source": args.source.source(),
        "client_certificate": (!blocks.is_empty()).then(|| pem::encode_many(&blocks)),
    });
    Control::at(Some(socket), &args.config.config)?.ask(Method::POST, "/v1/explain", Some(&body))
}

fn understood(reply: Reply) -> Result<Value, Failure> {
    match Reading(&reply.body).text("id").as_deref() {
        Some("not_found" | "unprocessable_entity") => Err(Failure::Usage(reply.message())),
        _ => reply.done(),
    }
}

/// The answer of the configuration file.
fn by_file(args: &ExplainArgs, chain: &[CertificateDer<'_>]) -> Result<Value, Failure> {
    let file = &args.config.config;
    let (built, _) = load(file, &HostCache::default())?;
    let explained = built.snapshot.explain(&args.listener, args.source, chain, OffsetDateTime::now_utc());
    let mut answer = explained.map_err(|error: ExplainError| Failure::Usage(error.to_string()))?.in_json();
    set(&mut answer, "config", json!(file));
    Ok(answer)
}

fn in_words(answer: &Value, policy: &str) -> String {
    let mut out = String::new();
    let mut line = |step: &str, words: &str| {
        let _ = writeln!(out, "{step:<9} {words}");
    };
    line("policy", policy);
    for step in Reading(answer).list("steps") {
        line(&step.text_or_dash("step"), &step.lines("text").join(" "));
    }
    match Reading(answer).text("reason") {
        None => line("verdict", "admitted"),
        Some(reason) => line("verdict", &format!("refused ({reason})")),
    }
    out
}

fn set(answer: &mut Value, key: &str, value: Value) {
    if let Some(fields) = answer.as_object_mut() {
        fields.insert(key.to_owned(), value);
    }
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    let found = |path: &Path| fs::canonicalize(path).or_else(|_| std::path::absolute(path)).ok();
    found(one).is_some_and(|one| found(other) == Some(one))
}

/// The reason without the advice behind it.
fn first_sentence(text: &str) -> &str {
    text.split_once(". ").map_or(text, |(first, _)| first)
}
