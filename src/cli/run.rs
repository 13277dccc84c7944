//! `portcullis run`.

use std::io::IsTerminal as _;
use std::path::Path;
use std::sync::Arc;

use tracing::warn;

use crate::audit::log::subscriber;
use crate::audit::{Audit, LineFormat, open_audit_file};
use crate::cli::{Failure, load};
use crate::config::LogFormat;
use crate::resolution::cache::ResolutionCache;
use crate::server::Server;
use crate::server::signals::Signals;
use crate::{descriptors, fault};

pub(crate) fn run(file: &Path) -> Result<(), Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::Failed(error.to_string());
    // Raise the limit before anything opens descriptors. If this fails, the descriptor budget uses the current limit.
    let raised = descriptors::raise_limit();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| failed(&error))?;
    // Install the handlers first: a signal during a long start is handled after it and does not kill the process.
    let signals = runtime.block_on(async { Signals::listen() }).map_err(|error| failed(&error))?;

    let resolutions = Arc::new(ResolutionCache::default());
    let (built, fingerprint) = load(file, &resolutions)?;
    let log = &built.snapshot.config.log;
    let audit_file = log.audit_file.clone().map(open_audit_file).transpose().map_err(Failure::Failed)?;
    let audit = Audit::start(line_format(log.format), audit_file);
    let (subscriber, handle) = subscriber(&audit, &log.level).map_err(|error| failed(&error))?;
    tracing::subscriber::set_global_default(subscriber).map_err(|error| failed(&error))?;

    fault::install_hook();
    if let Err(error) = raised {
        warn!(%error, "cannot raise the limit of open files, keeping the current limit");
    }

    let serve = async {
        let server = Server::start(built, fingerprint, resolutions, audit.clone(), handle);
        let server = server.map_err(|error| failed(&error))?;
        server.run(signals).await;
        Ok(())
    };
    let result = fault::contain("main thread", || runtime.block_on(serve)).unwrap_or_else(|fault| Err(failed(&fault)));
    // Do not wait for blocking tasks that read files or resolve names.
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
