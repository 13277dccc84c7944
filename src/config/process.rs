//! What concerns the process as a whole: `[log]`, `[reload]`, `[shutdown]`.

use std::path::Path;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use super::document::Section;
use super::{Log, LogFormat, Reload};

pub(super) fn log(root: &Section<'_>, directory: &Path) -> Log {
    let mut log = Log { level: "info".to_owned(), format: LogFormat::Auto, audit_file: None };
    let Some(section) = root.section("log") else { return log };
    if let Some(node) = section.get("level")
        && let Some(level) = node.text(LEVEL)
    {
        match EnvFilter::try_new(level) {
            Ok(_) => log.level = level.to_owned(),
            Err(error) => node.expected(format_args!("{LEVEL}: {error}")),
        }
    }
    if let Some(format) = section.get("format").and_then(|node| node.choice(&FORMATS)) {
        log.format = format;
    }
    log.audit_file = section.get("audit_file").and_then(|node| node.text("a file")).map(|path| directory.join(path));
    section.finish();
    log
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

const LEVEL: &str = "a tracing filter such as \"info\" or \"info,portcullis=debug\"";

const FORMATS: [(&str, LogFormat); 3] =
    [("auto", LogFormat::Auto), ("text", LogFormat::Text), ("json", LogFormat::Json)];
