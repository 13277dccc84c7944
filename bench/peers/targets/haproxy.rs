//! HAProxy: one thread, mode tcp.

use std::path::{Path, PathBuf};

use super::{Abilities, Launch, Program, Setup, TRUSTED};
use crate::fault::Result;
use crate::process::{find, version_line};
use crate::route::Route;

#[derive(Debug)]
pub(super) struct Haproxy;

impl Program for Haproxy {
    fn find(&self) -> Option<PathBuf> {
        find("haproxy")
    }

    fn version(&self, program: &Path) -> String {
        version_line(program, "-v")
    }

    fn abilities(&self) -> Abilities {
        Abilities { routes: Route::REDIS, tls: true, allowlist: true, hybrid: false, many_rules: false }
    }

    fn launch(&self, setup: &Setup<'_>) -> Result<Launch> {
        // Two files for each connection, and some for itself.
        let connections = setup.files.saturating_sub(200) / 2;
        let mut text = format!(
            "global\n    nbthread 1\n    maxconn {connections}\n    tune.ssl.cachesize 50000\n\n\
             defaults\n    mode tcp\n    backlog 4096\n    timeout connect 5s\n    timeout client 1h\n    timeout server 1h\n"
        );
        for listener in setup.listeners {
            let (name, port, upstream) = (listener.route.name(), listener.port, listener.upstream);
            let certificate = listener.certificate(setup.pki).both.display();
            let mutual = match listener.route {
                Route::Mutual => format!(" ca-file {} verify required", setup.pki.ca.display()),
                _ => String::new(),
            };
            text += &format!(
                "\nlisten {name}\n    bind 127.0.0.1:{port} ssl crt {certificate}{mutual}\n    \
                 tcp-request connection reject unless {{ src {TRUSTED} }}\n    server redis 127.0.0.1:{upstream}\n"
            );
        }
        let path = setup.write("haproxy.cfg", &text)?;
        let arguments = vec!["-f".to_owned(), path.display().to_string(), "-db".to_owned()];
        Ok(Launch { arguments, configuration: text })
    }
}
