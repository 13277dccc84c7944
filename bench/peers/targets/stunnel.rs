//! stunnel as Debian builds it: a thread for each connection.

use std::path::{Path, PathBuf};

use super::{Abilities, Grounds, Launch, Program};
use crate::door::Door;
use crate::fault::Result;
use crate::process::{find, says};

#[derive(Debug)]
pub(super) struct Stunnel;

impl Program for Stunnel {
    fn find(&self) -> Option<PathBuf> {
        find("stunnel4").or_else(|| find("stunnel"))
    }

    fn version(&self, program: &Path) -> String {
        says(program, "-version").replace("Initializing inetd mode configuration", "stunnel")
    }

    /// Its allowlist is the machine's /etc/hosts.allow, which a benchmark has no business changing.
    fn abilities(&self) -> Abilities {
        Abilities { doors: Door::ALL, tls: true, allowlist: false, hybrid: false, many_rules: false }
    }

    fn launch(&self, grounds: &Grounds<'_>) -> Result<Launch> {
        let mut text = "foreground = yes\npid =\nsyslog = no\ndebug = err\n\
                        socket = l:TCP_NODELAY=1\nsocket = r:TCP_NODELAY=1\n"
            .to_owned();
        for opening in grounds.openings {
            let certificate = opening.certificate(grounds.pki);
            text += &format!(
                "\n[{}]\naccept = 127.0.0.1:{}\nconnect = 127.0.0.1:{}\ncert = {}\nkey = {}\n\
                 sessionCacheSize = 50000\nTIMEOUTclose = 0\nTIMEOUTidle = 3600\n",
                opening.door.name(),
                opening.port,
                opening.upstream,
                certificate.cert.display(),
                certificate.key.display()
            );
            text += &match opening.door {
                Door::Mutual => format!("verifyChain = yes\nCAfile = {}\n", grounds.pki.ca.display()),
                Door::Postgres => "protocol = pgsql\n".to_owned(),
                _ => String::new(),
            };
        }
        let path = grounds.write("stunnel.conf", &text)?;
        Ok(Launch { arguments: vec![path.display().to_string()], configuration: text })
    }
}
