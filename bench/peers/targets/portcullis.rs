//! Portcullis: this build or another binary.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::{Abilities, Launch, Program, Setup, TRUSTED};
use crate::decision::first_address;
use crate::fault::Result;
use crate::process::version_line;
use crate::route::Route;

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
        version_line(program, "--version")
    }

    fn abilities(&self) -> Abilities {
        Abilities { routes: Route::ALL, tls: true, allowlist: true, hybrid: true, many_rules: true }
    }

    fn launch(&self, setup: &Setup<'_>) -> Result<Launch> {
        let mut text = String::new();
        for listener in setup.listeners {
            let certificate = listener.certificate(setup.pki);
            let protocol = if listener.route == Route::Postgres { "postgres" } else { "redis" };
            writeln!(
                text,
                "[[listener]]\nname = \"{}\"\nprotocol = \"{protocol}\"\nlisten = \"127.0.0.1:{}\"\n\
                 upstream = \"127.0.0.1:{}\"\ntrusted_sources = [\"{TRUSTED}\"]\n\
                 tls.certificates = [{{ cert = \"{}\", key = \"{}\" }}]",
                listener.route.name(),
                listener.port,
                listener.upstream,
                certificate.cert.display(),
                certificate.key.display()
            )?;
            if listener.route == Route::Mutual {
                writeln!(text, "tls.client_auth = \"required\"\ntls.client_ca = \"{}\"", setup.pki.ca.display())?;
            }
            if setup.rules > 1 && listener.route == Route::Redis {
                setup.write("sources.toml", &sources(setup.rules as usize - 1))?;
                writeln!(text, "sources_file = \"sources.toml\"")?;
            }
            text.push('\n');
        }
        let path = setup.write("portcullis.toml", &text)?;
        let arguments = ["run", "-c", &path.display().to_string()].map(str::to_owned).to_vec();
        Ok(Launch { arguments, configuration: text })
    }
}

/// Rules of the kind whose lookup is measured, without those that trust the untrusted client.
fn sources(count: usize) -> String {
    let mut text = String::new();
    let spread = (0..).map(|number| (first_address(number), 24 + 4 * (number % 3)));
    for (address, length) in spread.filter(|(address, _)| !address.is_loopback()).take(count) {
        text += &format!("[[rule]]\ntype = \"ip_addr\"\nvalue = \"{address}/{length}\"\n");
    }
    text
}
