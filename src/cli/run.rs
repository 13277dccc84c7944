//! `portcullis run`.

use std::io::IsTerminal as _;
use std::path::Path;
use std::sync::Arc;

use tracing::warn;

use crate::audit::log::subscriber;
use crate::audit::{Audit, LineFormat, open_audit_file};
use crate::cli::{Failure, load};
use crate::config::LogFormat;
use crate::dns::HostCache;
use crate::server::Server;
use crate::server::signals::Signals;
use crate::{descriptors, fault};

pub(crate) fn run(file: &Path) -> Result<(), Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::Failed(error.to_string());
    // Before anything that needs descriptors. Where it fails the budget is made for the limit that there is.
    let raised = descriptors::raise_limit();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| failed(&error))?;
    // First of all, so that a signal during a long start is heard after it and does not end the process.
    let signals = runtime.block_on(async { Signals::listen() }).map_err(|error| failed(&error))?;

    let names = Arc::new(HostCache::default());
    let (built, fingerprint) = load(file, &names)?;
    let log = &built.snapshot.config.log;
    let audit_file = log.audit_file.clone().map(open_audit_file).transpose().map_err(Failure::Failed)?;
    let audit = Audit::start(line_format(log.format), audit_file);
    let (subscriber, handle) = subscriber(&audit, &log.level).map_err(|error| failed(&error))?;
    tracing::subscriber::set_global_default(subscriber).map_err(|error| failed(&error))?;

    fault::install_hook();
    if let Err(error) = raised {
        warn!(%error, "limit of open files stays as it is");
    }

    let serve = async {
        let server = Server::start(built, fingerprint, names, audit.clone(), handle);
        let server = server.map_err(|error| failed(&error))?;
        server.run(signals).await;
        Ok(())
    };
    let result = fault::contain("main thread", || runtime.block_on(serve)).unwrap_or_else(|fault| Err(failed(&fault)));
    // Whoever still reads a file or resolves a name is not waited for.
    runtime.shutdown_background();
    audit.flush();
    result
}

fn line_format(format: LogFormat) -> LineFormat {
    match format {
        LogFormat::Auto if std::io::stdout().is_terminal() => LineFormat::Text,
        LogFormat::Auto | LogFormat::Json => LineFormat::Json,
        LogFormat::Text => LineFormat::Text,
    }
}
