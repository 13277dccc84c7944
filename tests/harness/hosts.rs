//! Host names of a test: an `/etc/hosts` or `/etc/resolv.conf` that only the programs of the test read.

use std::fmt::Display;
use std::process::Command;

use super::program::{command, run};
use super::{Portcullis, TestDir, portcullis};

/// The file that the program under test reads in place of `/etc/hosts`.
const FILE: &str = "hosts";

/// Sets the addresses of all names. Other names do not exist.
pub(crate) fn name(site: &TestDir, entries: &[(&str, &[&str])]) {
    let line = |(name, ips): &(&str, &[&str])| ips.iter().map(|ip| format!("{ip} {name}\n")).collect::<String>();
    // Written in place, because the mount is of the inode and not of the name.
    site.write(FILE, entries.iter().map(line).collect::<String>());
    site.write("nsswitch.conf", "hosts: files\n");
    // No server is there: a test must not query the servers of the machine.
    site.write("resolv.conf", "nameserver 127.99.99.99\n");
}

/// Resolves names only by the server on 127.0.0.1.
pub(crate) fn resolve_by_dns(site: &TestDir, options: &str) {
    site.write(FILE, "");
    site.write("nsswitch.conf", "hosts: dns\n");
    // Shorter than the defaults, so that a server that does not answer times out soon.
    site.write("resolv.conf", format!("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n{options}\n"));
}

/// The built program, in a namespace in which only the names of this directory exist. The kernel or the environment of
/// the tests may forbid namespaces; then the result is `None`.
pub(crate) fn executable(site: &TestDir) -> Option<Command> {
    let possible = run(inside(site).arg("true")).code == Some(0);
    if !possible {
        eprintln!("skipped: no mount namespace may be made here");
        return None;
    }
    let mut command = inside(site);
    command.arg(portcullis::EXECUTABLE);
    command.env_remove("PORTCULLIS_CONFIG").env_remove("CREDENTIALS_DIRECTORY").env_remove("STATE_DIRECTORY");
    Some(command)
}

/// A started program.
pub(crate) fn start(site: TestDir, config: impl Display) -> Option<Portcullis> {
    let command = executable(&site)?;
    Some(Portcullis::start_by(command, site, config))
}

/// A command whose program is the next argument.
fn inside(site: &TestDir) -> Command {
    let script = "set -e; for file in hosts nsswitch.conf resolv.conf; do \
                  [ ! -f \"$0/$file\" ] || mount --bind \"$0/$file\" \"/etc/$file\"; done; \
                  exec setpriv --pdeathsig KILL -- \"$@\"";
    let mut command = command("unshare");
    // With its own user namespace, in which an unprivileged user may mount.
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script]).arg(site.directory());
    command
}
