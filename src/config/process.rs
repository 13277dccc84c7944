//! What concerns the process as a whole: `[log]`, `[admin]`, `[reload]`, `[shutdown]`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use super::document::{Node, Section};
use super::values::ADMIN_SOCKET;
use super::{Admin, Log, LogFormat, Reload};

pub(super) fn log(root: &Section<'_>, directory: &Path) -> Log {
    let mut log = Log { level: "info".to_owned(), format: LogFormat::Auto, audit_file: None };
    let Some(section) = root.section("log") else { return log };
    if let Some(node) = section.get("level")
        && let Some(level) = node.text(LEVEL)
    {
        match (EnvFilter::try_new(level), level.split(',').find(|part| is_misspelt(part.trim()))) {
            (Ok(_), None) => log.level = level.to_owned(),
            (Ok(_), Some(part)) => node.expected(format_args!("{LEVEL}; {part:?} is none of {}", LEVELS.join(", "))),
            (Err(error), _) => node.expected(format_args!("{LEVEL}: {error}")),
        }
    }
    if let Some(format) = section.get("format").and_then(|node| node.choice(&FORMATS)) {
        log.format = format;
    }
    log.audit_file = section.get("audit_file").and_then(|node| audit_file(&node, directory));
    section.finish();
    log
}

fn audit_file(node: &Node<'_>, directory: &Path) -> Option<PathBuf> {
    let path = directory.join(node.text("a file")?);
    if path.is_dir() {
        node.problem(format_args!("found {}, which is a directory", node.found()));
        return None;
    }
    match path.parent() {
        // The file itself is made when it is first written; `check` must not make it.
        Some(parent) if !parent.as_os_str().is_empty() && !parent.is_dir() => {
            node.problem(format_args!("found {}, but there is no directory {}", node.found(), parent.display()));
            None
        }
        Some(_) | None => Some(path),
    }
}

pub(super) fn admin(root: &Section<'_>, directory: &Path) -> Option<Admin> {
    let section = root.section("admin")?;
    let socket = section.require("listen", ADMIN_SOCKET).and_then(|node| node.admin_socket(directory));
    section.not_yet(&["token", "metrics"]);
    section.finish();
    Some(Admin { socket: socket? })
}

pub(super) fn reload(root: &Section<'_>) -> Reload {
    let mut reload = Reload { watch: true, poll: Some(Duration::from_secs(30)) };
    let Some(section) = root.section("reload") else { return reload };
    if let Some(watch) = section.get("watch").and_then(|node| node.boolean()) {
        reload.watch = watch;
    }
    if let Some(poll) = section.get("poll").and_then(|node| node.duration_or_never()) {
        reload.poll = poll;
    }
    section.not_yet(&["revoke"]);
    section.finish();
    reload
}

pub(super) fn drain(root: &Section<'_>) -> Duration {
    let default = Duration::from_secs(30);
    let Some(section) = root.section("shutdown") else { return default };
    let drain = section.get("drain").and_then(|node| node.duration());
    section.finish();
    drain.unwrap_or(default)
}

/// A filter takes any bare word for the name of a part of the program, also a level with a letter missing.
fn is_misspelt(part: &str) -> bool {
    !part.contains(['=', '[', ':'])
        && !part.starts_with("portcullis")
        && !LEVELS.contains(&part.to_lowercase().as_str())
}

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

const LEVEL: &str = "a tracing filter such as \"info\" or \"info,portcullis=debug\"";

const FORMATS: [(&str, LogFormat); 3] =
    [("auto", LogFormat::Auto), ("text", LogFormat::Text), ("json", LogFormat::Json)];
