//! `portcullis explain`: whether a connection would be admitted, by the policy of the running program if there is one.

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
use crate::cli::client::AdminClient;
use crate::cli::client::args::Running;
use crate::cli::client::json_view::JsonView;
use crate::cli::client::reply::Reply;
use crate::cli::{Failure, hint, load, parse_source, print, print_json};
use crate::config::Config;
use crate::policy::explain::{ExplainError, Hypothetical};
use crate::resolution::cache::ResolutionCache;

#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    #[command(flatten)]
    running: Running,
    /// Listener that the client connects to
    #[arg(long, value_name = "NAME")]
    listener: String,
    /// Client address, or "unix" for a client of the listener's Unix socket
    #[arg(long, value_name = "IP", value_parser = parse_source)]
    source: ClientAddr,
    /// Client certificate in PEM, followed by its intermediates
    #[arg(long, value_name = "FILE")]
    client_cert: Option<PathBuf>,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

/// Which policy to explain.
enum PolicySource {
    /// The answer of the running program.
    Running(Value),
    /// The configuration file, with the reason why the running program does not answer.
    File(String),
}

pub(crate) fn explain(args: &ExplainArgs) -> Result<(), Failure> {
    let chain = args.client_cert.as_deref().map(read_certificates).transpose()?.unwrap_or_default();
    let (body, policy) = match ask_running(args, &chain)? {
        PolicySource::Running(mut body) => {
            let generation = JsonView(&body).number("generation");
            set(&mut body, "policy", "running".into());
            (body, format!("running program (generation {generation})"))
        }
        PolicySource::File(why) => {
            let mut body = explain_file(args, &chain)?;
            set(&mut body, "policy", "file".into());
            set(&mut body, "policy_detail", why.as_str().into());
            (body, format!("{}, not the running program: {why}", args.running.config.config.display()))
        }
    };
    if args.json {
        print_json(&body)?
    } else {
        print(&to_text(&body, &policy))?
    }
    if JsonView(&body).text("verdict").as_deref() == Some("admitted") { Ok(()) } else { Err(Failure::Refused) }
}

/// Asks the running program. With `--socket` or `--url`, a program that does not answer is a failure.
fn ask_running(args: &ExplainArgs, chain: &[CertificateDer<'_>]) -> Result<PolicySource, Failure> {
    if args.running.socket.is_some() || args.running.remote.url.is_some() {
        let reply = send_request(args, &AdminClient::find(&args.running)?, chain)?;
        return explanation(reply).map(PolicySource::Running);
    }
    let file = &args.running.config.config;
    let socket = match Config::admin_of(file) {
        Ok(Some(admin)) => match admin.socket() {
            Some(socket) => socket.to_owned(),
            None => return Ok(PolicySource::File("admin.listen has no Unix socket".to_owned())),
        },
        Ok(None) => return Ok(PolicySource::File("the file has no [admin] section".to_owned())),
        Err(_) => {
            hint("use --socket PATH to ask the running program, even if the file is invalid");
            return Ok(PolicySource::File("the [admin] section cannot be read".to_owned()));
        }
    };
    let client = AdminClient::at(Some(&socket), file)?;
    let reply = match send_request(args, &client, chain) {
        Ok(reply) => reply,
        Err(Failure::Failed(why)) => return Ok(PolicySource::File(first_sentence(&why).to_owned())),
        Err(other) => return Err(other),
    };
    let Some(config) = JsonView(&reply.body).text("config") else {
        let why = "the version of the running program does not support explain";
        return Ok(PolicySource::File(why.to_owned()));
    };
    if !is_same_file(file, Path::new(&config)) {
        let why = format!("it uses another configuration, {config}; use --socket to ask it anyway");
        return Ok(PolicySource::File(why));
    }
    explanation(reply).map(PolicySource::Running)
}

fn send_request(args: &ExplainArgs, client: &AdminClient, chain: &[CertificateDer<'_>]) -> Result<Reply, Failure> {
    // Send only the certificates: the file may also contain a private key.
    let blocks: Vec<_> = chain.iter().map(|der| pem::Pem::new("CERTIFICATE", der.as_ref())).collect();
    let body = json!({
        "listener": args.listener,
        "source": args.source.source(),
        "client_certificate": (!blocks.is_empty()).then(|| pem::encode_many(&blocks)),
    });
    client.send(Method::POST, "/v1/explain", Some(&body))
}

fn explanation(reply: Reply) -> Result<Value, Failure> {
    match JsonView(&reply.body).text("id").as_deref() {
        Some("not_found" | "unprocessable_entity") => Err(Failure::Usage(reply.message())),
        _ => reply.into_body(),
    }
}

/// Explains by the policy of the configuration file.
fn explain_file(args: &ExplainArgs, chain: &[CertificateDer<'_>]) -> Result<Value, Failure> {
    let file = &args.running.config.config;
    let resolutions = ResolutionCache::default();
    let (built, _) = load(file, &resolutions)?;
    let (now, connection) = (OffsetDateTime::now_utc(), Hypothetical { client: args.source, chain });
    let explained = built.snapshot.explain(&args.listener, connection, &resolutions, now);
    let mut body = explained.map_err(|error: ExplainError| Failure::Usage(error.to_string()))?.in_json();
    set(&mut body, "config", json!(file));
    Ok(body)
}

fn to_text(body: &Value, policy: &str) -> String {
    let mut out = String::new();
    let mut line = |step: &str, text: &str| {
        let _ = writeln!(out, "{step:<9} {text}");
    };
    line("policy", policy);
    for step in JsonView(body).list("steps") {
        line(&step.text_or_dash("step"), &step.lines("text").join(" "));
    }
    match JsonView(body).text("reason") {
        None => line("verdict", "admitted"),
        Some(reason) => line("verdict", &format!("refused ({reason})")),
    }
    out
}

fn set(body: &mut Value, key: &str, value: Value) {
    if let Some(fields) = body.as_object_mut() {
        fields.insert(key.to_owned(), value);
    }
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    let found = |path: &Path| fs::canonicalize(path).or_else(|_| std::path::absolute(path)).ok();
    found(one).is_some_and(|one| found(other) == Some(one))
}

/// The reason of an error without the advice that follows it.
fn first_sentence(text: &str) -> &str {
    text.split_once(". ").map_or(text, |(first, _)| first)
}
