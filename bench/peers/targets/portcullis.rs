//! Portcullis itself, this build or another one.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::{Abilities, Grounds, Launch, Program, TRUSTED};
use crate::decision::first_address;
use crate::door::Door;
use crate::fault::Result;
use crate::process::says;

#[derive(Debug)]
pub(super) struct Portcullis {
    path: PathBuf,
}

impl Portcullis {
    pub(super) fn at(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }
}

impl Program for Portcullis {
    fn find(&self) -> Option<PathBuf> {
        Some(self.path.clone()).filter(|path| path.is_file())
    }

    fn version(&self, program: &Path) -> String {
        says(program, "--version")
    }

    fn abilities(&self) -> Abilities {
        Abilities { doors: Door::ALL, tls: true, allowlist: true, hybrid: true, many_rules: true }
    }

    fn launch(&self, grounds: &Grounds<'_>) -> Result<Launch> {
        let mut text = String::new();
        for opening in grounds.openings {
            let certificate = opening.certificate(grounds.pki);
            let protocol = if opening.door == Door::Postgres { "postgres" } else { "redis" };
            writeln!(
                text,
                "[[listener]]\nname = \"{}\"\nprotocol = \"{protocol}\"\nlisten = \"127.0.0.1:{}\"\n\
                 upstream = \"127.0.0.1:{}\"\ntrusted_sources = [\"{TRUSTED}\"]\n\
                 tls.certificates = [{{ cert = \"{}\", key = \"{}\" }}]",
                opening.door.name(),
                opening.port,
                opening.upstream,
                certificate.cert.display(),
                certificate.key.display()
            )?;
            if opening.door == Door::Mutual {
                writeln!(text, "tls.client_auth = \"required\"\ntls.client_ca = \"{}\"", grounds.pki.ca.display())?;
            }
            if grounds.rules > 1 && opening.door == Door::Redis {
                grounds.write("sources.toml", &sources(grounds.rules as usize - 1))?;
                writeln!(text, "sources_file = \"sources.toml\"")?;
            }
            text.push('\n');
        }
        let path = grounds.write("portcullis.toml", &text)?;
        let arguments = ["run", "-c", &path.display().to_string()].map(str::to_owned).to_vec();
        Ok(Launch { arguments, configuration: text })
    }
}

/// Rules of the kind whose lookup is measured, without those that would know the stranger.
fn sources(count: usize) -> String {
    let mut text = String::new();
    let spread = (0..).map(|number| (first_address(number), 24 + 4 * (number % 3)));
    for (address, length) in spread.filter(|(address, _)| !address.is_loopback()).take(count) {
        text += &format!("[[rule]]\ntype = \"ip_addr\"\nvalue = \"{address}/{length}\"\n");
    }
    text
}
