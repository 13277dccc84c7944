//! OpenSSL's own client, which knows nothing of rustls.

use std::net::SocketAddr;
use std::process::Command;

use super::{Site, program};

/// `openssl s_client` that verifies what it meets and stays until the server ends the connection.
pub(crate) fn s_client(site: &Site, address: SocketAddr, options: &[&str]) -> Command {
    let mut command = program::command("openssl");
    command.args(["s_client", "-connect", &address.to_string(), "-ign_eof"]);
    command.args(["-verify_return_error", "-CAfile"]).arg(site.path("ca.crt"));
    command.args(options).current_dir(site.directory());
    command
}

/// Runs any other `openssl` command among the files of a site.
pub(crate) fn openssl(site: &Site, arguments: &[&str]) -> String {
    let mut command = program::command("openssl");
    program::run(command.args(arguments).current_dir(site.directory())).success()
}
