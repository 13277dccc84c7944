//! PgBouncer with session pooling: PostgreSQL only.

use std::path::{Path, PathBuf};

use super::{Abilities, Launch, Program, Setup};
use crate::databases::{DATABASE, USER, own};
use crate::fault::Result;
use crate::process::{find, version_line};
use crate::route::Route;

#[derive(Debug)]
pub(super) struct Pgbouncer;

impl Program for Pgbouncer {
    fn find(&self) -> Option<PathBuf> {
        find("pgbouncer")
    }

    fn version(&self, program: &Path) -> String {
        version_line(program, "--version")
    }

    /// Its allowlist is checked after TLS and the first packet, so a rejection costs a handshake and is not comparable.
    fn abilities(&self) -> Abilities {
        Abilities { routes: &[Route::Postgres], tls: true, allowlist: false, hybrid: false, many_rules: false }
    }

    fn as_postgres(&self) -> bool {
        true
    }

    fn launch(&self, setup: &Setup<'_>) -> Result<Launch> {
        own(setup.directory)?;
        let users = setup.write("users", &format!("\"{USER}\" \"\"\n"))?;
        let users = users.display();
        let mut text = "[databases]\n".to_owned();
        for listener in setup.listeners {
            let certificate = listener.certificate(setup.pki);
            text += &format!(
                "{DATABASE} = host=127.0.0.1 port={}\n\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {}\nunix_socket_dir =\n\
                 pool_mode = session\ndefault_pool_size = 100\nmax_client_conn = 1000\nlisten_backlog = 4096\n\
                 auth_type = trust\nauth_file = {users}\nclient_tls_sslmode = require\nclient_tls_cert_file = {}\n\
                 client_tls_key_file = {}\nlog_connections = 0\nlog_disconnections = 0\n",
                listener.upstream,
                listener.port,
                certificate.cert.display(),
                certificate.key.display()
            );
        }
        let path = setup.write("pgbouncer.ini", &text)?;
        Ok(Launch { arguments: vec![path.display().to_string()], configuration: text })
    }
}
