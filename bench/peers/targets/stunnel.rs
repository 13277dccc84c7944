//! stunnel as Debian builds it: a thread for each connection.

use std::path::{Path, PathBuf};

use super::{Abilities, Launch, Program, Setup};
use crate::fault::Result;
use crate::process::{find, version_line};
use crate::route::Route;

#[derive(Debug)]
pub(super) struct Stunnel;

impl Program for Stunnel {
    fn find(&self) -> Option<PathBuf> {
        find("stunnel4").or_else(|| find("stunnel"))
    }

    fn version(&self, program: &Path) -> String {
        version_line(program, "-version").replace("Initializing inetd mode configuration", "stunnel")
    }

    /// Its allowlist is the machine's /etc/hosts.allow, which a benchmark must not change.
    fn abilities(&self) -> Abilities {
        Abilities { routes: Route::ALL, tls: true, allowlist: false, hybrid: false, many_rules: false }
    }

    fn launch(&self, setup: &Setup<'_>) -> Result<Launch> {
        let mut text = "foreground = yes\npid =\nsyslog = no\ndebug = err\n\
                        socket = l:TCP_NODELAY=1\nsocket = r:TCP_NODELAY=1\n"
            .to_owned();
        for listener in setup.listeners {
            let certificate = listener.certificate(setup.pki);
            text += &format!(
                "\n[{}]\naccept = 127.0.0.1:{}\nconnect = 127.0.0.1:{}\ncert = {}\nkey = {}\n\
                 sessionCacheSize = 50000\nTIMEOUTclose = 0\nTIMEOUTidle = 3600\n",
                listener.route.name(),
                listener.port,
                listener.upstream,
                certificate.cert.display(),
                certificate.key.display()
            );
            text += &match listener.route {
                Route::Mutual => format!("verifyChain = yes\nCAfile = {}\n", setup.pki.ca.display()),
                Route::Postgres => "protocol = pgsql\n".to_owned(),
                _ => String::new(),
            };
        }
        let path = setup.write("stunnel.conf", &text)?;
        Ok(Launch { arguments: vec![path.display().to_string()], configuration: text })
    }
}
