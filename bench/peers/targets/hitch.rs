//! hitch: one worker. It has one upstream for all its frontends, so no door for background load.

use std::path::{Path, PathBuf};

use super::{Abilities, Grounds, Launch, Program};
use crate::door::Door;
use crate::fault::Result;
use crate::process::{find, says};

#[derive(Debug)]
pub(super) struct Hitch;

impl Program for Hitch {
    fn find(&self) -> Option<PathBuf> {
        find("hitch")
    }

    fn version(&self, program: &Path) -> String {
        says(program, "--version")
    }

    fn abilities(&self) -> Abilities {
        let doors = &[Door::Redis, Door::Rsa, Door::Mutual];
        Abilities { doors, tls: true, allowlist: false, hybrid: false, many_rules: false }
    }

    fn launch(&self, grounds: &Grounds<'_>) -> Result<Launch> {
        let upstream = grounds.openings.first().map_or(0, |opening| opening.upstream);
        let user = if nix::unistd::geteuid().is_root() { "user = \"nobody\"\n" } else { "" };
        let mut text = format!(
            "backend = \"[127.0.0.1]:{upstream}\"\nworkers = 1\nbacklog = 4096\n{user}\
             daemon = off\nquiet = on\nsyslog = off\ntls-protos = TLSv1.2 TLSv1.3\n"
        );
        for opening in grounds.openings {
            let certificate = opening.certificate(grounds.pki).both.display();
            text += &format!(
                "frontend = {{\n  host = \"127.0.0.1\"\n  port = \"{}\"\n  pem-file = \"{certificate}\"\n",
                opening.port
            );
            if opening.door == Door::Mutual {
                text += &format!("  client-verify = required\n  client-verify-ca = \"{}\"\n", grounds.pki.ca.display());
            }
            text += "}\n";
        }
        let path = grounds.write("hitch.conf", &text)?;
        Ok(Launch { arguments: vec![format!("--config={}", path.display())], configuration: text })
    }
}
