//! PgBouncer with session pooling: PostgreSQL only.

use std::path::{Path, PathBuf};

use super::{Abilities, Grounds, Launch, Program};
use crate::databases::{DATABASE, USER, own};
use crate::door::Door;
use crate::fault::Result;
use crate::process::{find, says};

#[derive(Debug)]
pub(super) struct Pgbouncer;

impl Program for Pgbouncer {
    fn find(&self) -> Option<PathBuf> {
        find("pgbouncer")
    }

    fn version(&self, program: &Path) -> String {
        says(program, "--version")
    }

    /// Its allowlist is read after TLS and the first packet, so a stranger there costs a handshake: another thing.
    fn abilities(&self) -> Abilities {
        Abilities { doors: &[Door::Postgres], tls: true, allowlist: false, hybrid: false, many_rules: false }
    }

    fn servant(&self) -> bool {
        true
    }

    fn launch(&self, grounds: &Grounds<'_>) -> Result<Launch> {
        own(grounds.directory)?;
        let users = grounds.write("users", &format!("\"{USER}\" \"\"\n"))?;
        let users = users.display();
        let mut text = "[databases]\n".to_owned();
        for opening in grounds.openings {
            let certificate = opening.certificate(grounds.pki);
            text += &format!(
                "{DATABASE} = host=127.0.0.1 port={}\n\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {}\nunix_socket_dir =\n\
                 pool_mode = session\ndefault_pool_size = 100\nmax_client_conn = 1000\nlisten_backlog = 4096\n\
                 auth_type = trust\nauth_file = {users}\nclient_tls_sslmode = require\nclient_tls_cert_file = {}\n\
                 client_tls_key_file = {}\nlog_connections = 0\nlog_disconnections = 0\n",
                opening.upstream,
                opening.port,
                certificate.cert.display(),
                certificate.key.display()
            );
        }
        let path = grounds.write("pgbouncer.ini", &text)?;
        Ok(Launch { arguments: vec![path.display().to_string()], configuration: text })
    }
}
