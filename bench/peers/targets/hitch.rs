//! hitch: one worker. All its frontends have the same upstream, so it has no route for background load.

use std::path::{Path, PathBuf};

use super::{Abilities, Launch, Program, Setup};
use crate::fault::Result;
use crate::process::{find, version_line};
use crate::route::Route;

#[derive(Debug)]
pub(super) struct Hitch;

impl Program for Hitch {
    fn find(&self) -> Option<PathBuf> {
        find("hitch")
    }

    fn version(&self, program: &Path) -> String {
        version_line(program, "--version")
    }

    fn abilities(&self) -> Abilities {
        let routes = &[Route::Redis, Route::Rsa, Route::Mutual];
        Abilities { routes, tls: true, allowlist: false, hybrid: false, many_rules: false }
    }

    fn launch(&self, setup: &Setup<'_>) -> Result<Launch> {
        let upstream = setup.listeners.first().map_or(0, |listener| listener.upstream);
        let user = if nix::unistd::geteuid().is_root() { "user = \"nobody\"\n" } else { "" };
        let mut text = format!(
            "backend = \"[127.0.0.1]:{upstream}\"\nworkers = 1\nbacklog = 4096\n{user}\
             daemon = off\nquiet = on\nsyslog = off\ntls-protos = TLSv1.2 TLSv1.3\n"
        );
        for listener in setup.listeners {
            let certificate = listener.certificate(setup.pki).both.display();
            text += &format!(
                "frontend = {{\n  host = \"127.0.0.1\"\n  port = \"{}\"\n  pem-file = \"{certificate}\"\n",
                listener.port
            );
            if listener.route == Route::Mutual {
                text += &format!("  client-verify = required\n  client-verify-ca = \"{}\"\n", setup.pki.ca.display());
            }
            text += "}\n";
        }
        let path = setup.write("hitch.conf", &text)?;
        Ok(Launch { arguments: vec![format!("--config={}", path.display())], configuration: text })
    }
}
