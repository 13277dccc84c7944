//! Settings of the whole process: `[log]`, `[state]`, `[reload]`, `[shutdown]`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use crate::config::document::{Node, Section};
use crate::config::{Log, LogFormat, Reload, Revoke, shown};
use crate::permissions;

pub(crate) fn log(root: &Section<'_>, directory: &Path) -> Log {
    let mut log = Log { level: "info".to_owned(), format: LogFormat::Auto, audit_file: None };
    let Some(section) = root.section("log") else { return log };
    if let Some(node) = section.get("level")
        && let Some(level) = node.text(LEVEL)
    {
        match (EnvFilter::try_new(level), level.split(',').find(|part| is_misspelt(part.trim()))) {
            (Ok(_), None) => log.level = level.to_owned(),
            (Ok(_), Some(_)) if shown::is_cut(level) => node.expected(LEVEL),
            (Err(_), _) if shown::is_cut(level) => node.expected(LEVEL),
            (Ok(_), Some(part)) => {
                node.expected(format_args!("{LEVEL}; {part:?} is not a level ({})", LEVELS.join(", ")))
            }
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
    let text = node.text("a file")?;
    let path = directory.join(text);
    if path.is_dir() {
        node.problem(format_args!("found {}, which is a directory", node.found()));
        return None;
    }
    match path.parent() {
        // The first write creates the file; `check` must not create it. A directory hidden by permissions is reported when the
        // file is opened.
        Some(parent)
            if !parent.as_os_str().is_empty()
                && !parent.is_dir()
                && permissions::fix_for_creating(parent).is_none() =>
        {
            // The directory may be most of a value that is not shown.
            let parent = match shown::is_cut(text) {
                true => "its directory".to_owned(),
                false => format!("the directory {}", shown::file(node.key(), parent)),
            };
            node.problem(format_args!("found {}, but {parent} does not exist", node.found()));
            None
        }
        Some(_) | None => Some(path),
    }
}

/// `[state] directory`, else the directory of systemd's `StateDirectory=`, else the default.
pub(crate) fn state(root: &Section<'_>, directory: &Path) -> PathBuf {
    let section = root.section("state");
    let configured = section.as_ref().and_then(|section| section.get("directory"));
    let configured = configured.and_then(|node| {
        let path = node.text(STATE_DIRECTORY)?;
        if path.is_empty() {
            node.expected(STATE_DIRECTORY);
        }
        Some(directory.join(path))
    });
    if let Some(section) = section {
        section.finish();
    }
    // systemd separates several directories by colons.
    let given = || std::env::var("STATE_DIRECTORY").ok()?.split(':').next().map(PathBuf::from);
    let given = || given().filter(|path| path.is_absolute());
    configured.or_else(given).unwrap_or_else(|| PathBuf::from(DEFAULT_STATE_DIRECTORY))
}

pub(crate) fn reload(root: &Section<'_>) -> Reload {
    let mut reload = Reload { watch: true, poll: Some(Duration::from_secs(30)), revoke: Revoke::default() };
    let Some(section) = root.section("reload") else { return reload };
    if let Some(watch) = section.get("watch").and_then(|node| node.boolean()) {
        reload.watch = watch;
    }
    if let Some(poll) = section.get("poll").and_then(|node| node.duration_or_never()) {
        reload.poll = poll;
    }
    if let Some(revoke) = section.get("revoke").and_then(|node| revoke(&node)) {
        reload.revoke = revoke;
    }
    section.finish();
    reload
}

pub(crate) fn revoke(node: &Node<'_>) -> Option<Revoke> {
    node.choice(&[("disconnect", Revoke::Disconnect), ("keep", Revoke::Keep)])
}

pub(crate) fn drain(root: &Section<'_>) -> Duration {
    let default = Duration::from_secs(30);
    let Some(section) = root.section("shutdown") else { return default };
    let drain = section.get("drain").and_then(|node| node.duration());
    section.finish();
    drain.unwrap_or(default)
}

/// A tracing filter accepts any bare word as a target, even a misspelt level.
fn is_misspelt(part: &str) -> bool {
    !part.contains(['=', '[', ':'])
        && !part.starts_with("portcullis")
        && !LEVELS.contains(&part.to_lowercase().as_str())
}

const STATE_DIRECTORY: &str = "a directory such as \"/var/lib/portcullis\"";
const DEFAULT_STATE_DIRECTORY: &str = "/var/lib/portcullis";

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

const LEVEL: &str = "a tracing filter such as \"info\" or \"info,portcullis=debug\"";

const FORMATS: [(&str, LogFormat); 3] =
    [("auto", LogFormat::Auto), ("text", LogFormat::Text), ("json", LogFormat::Json)];
