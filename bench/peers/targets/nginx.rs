//! nginx with its stream module: one worker.

use std::path::{Path, PathBuf};

use super::{Abilities, Launch, Program, Setup, TRUSTED};
use crate::fault::Result;
use crate::process::{find, version_line};
use crate::route::Route;

/// The path in Debian's package. Other builds include the module.
const MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

#[derive(Debug)]
pub(super) struct Nginx;

impl Program for Nginx {
    fn find(&self) -> Option<PathBuf> {
        find("nginx").filter(|_| Path::new(MODULE).exists())
    }

    fn version(&self, program: &Path) -> String {
        version_line(program, "-v")
    }

    fn abilities(&self) -> Abilities {
        Abilities { routes: Route::REDIS, tls: true, allowlist: true, hybrid: false, many_rules: false }
    }

    fn launch(&self, setup: &Setup<'_>) -> Result<Launch> {
        let directory = setup.directory.display();
        let files = setup.files;
        let user = if nix::unistd::geteuid().is_root() { "user root;\n" } else { "" };
        let mut text = format!(
            "load_module {MODULE};\n{user}daemon off;\nworker_processes 1;\nworker_rlimit_nofile {files};\n\
             pid {directory}/nginx.pid;\nerror_log stderr error;\nevents {{ worker_connections {files}; }}\n\
             stream {{\n  ssl_protocols TLSv1.2 TLSv1.3;\n  ssl_session_cache shared:tls:20m;\n  ssl_session_timeout 1h;\n  \
             tcp_nodelay on;\n  proxy_timeout 1h;\n"
        );
        for listener in setup.listeners {
            let certificate = listener.certificate(setup.pki);
            text += &format!(
                "  server {{\n    listen 127.0.0.1:{} ssl backlog=4096;\n    ssl_certificate {};\n    ssl_certificate_key {};\n    \
                 allow {TRUSTED};\n    deny all;\n    proxy_pass 127.0.0.1:{};\n",
                listener.port,
                certificate.cert.display(),
                certificate.key.display(),
                listener.upstream
            );
            if listener.route == Route::Mutual {
                text += &format!("    ssl_client_certificate {};\n    ssl_verify_client on;\n", setup.pki.ca.display());
            }
            text += "  }\n";
        }
        text += "}\n";
        let path = setup.write("nginx.conf", &text)?;
        let arguments = ["-c", &path.display().to_string(), "-p", &directory.to_string(), "-e", "stderr"];
        Ok(Launch { arguments: arguments.map(str::to_owned).to_vec(), configuration: text })
    }
}
