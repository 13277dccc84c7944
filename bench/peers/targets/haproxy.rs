//! HAProxy: one thread, mode tcp.

use std::path::{Path, PathBuf};

use super::{Abilities, Grounds, Launch, Program, TRUSTED};
use crate::door::Door;
use crate::fault::Result;
use crate::process::{find, says};

#[derive(Debug)]
pub(super) struct Haproxy;

impl Program for Haproxy {
    fn find(&self) -> Option<PathBuf> {
        find("haproxy")
    }

    fn version(&self, program: &Path) -> String {
        says(program, "-v")
    }

    fn abilities(&self) -> Abilities {
        Abilities { doors: Door::REDIS, tls: true, allowlist: true, hybrid: false, many_rules: false }
    }

    fn launch(&self, grounds: &Grounds<'_>) -> Result<Launch> {
        // Two files for each connection, and some for itself.
        let connections = grounds.files.saturating_sub(200) / 2;
        let mut text = format!(
            "global\n    nbthread 1\n    maxconn {connections}\n    tune.ssl.cachesize 50000\n\n\
             defaults\n    mode tcp\n    backlog 4096\n    timeout connect 5s\n    timeout client 1h\n    timeout server 1h\n"
        );
        for opening in grounds.openings {
            let (name, port, upstream) = (opening.door.name(), opening.port, opening.upstream);
            let certificate = opening.certificate(grounds.pki).both.display();
            let mutual = match opening.door {
                Door::Mutual => format!(" ca-file {} verify required", grounds.pki.ca.display()),
                _ => String::new(),
            };
            text += &format!(
                "\nlisten {name}\n    bind 127.0.0.1:{port} ssl crt {certificate}{mutual}\n    \
                 tcp-request connection reject unless {{ src {TRUSTED} }}\n    server redis 127.0.0.1:{upstream}\n"
            );
        }
        let path = grounds.write("haproxy.cfg", &text)?;
        let arguments = vec!["-f".to_owned(), path.display().to_string(), "-db".to_owned()];
        Ok(Launch { arguments, configuration: text })
    }
}
