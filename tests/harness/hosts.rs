//! Names that a test gives and takes: an `/etc/hosts`, or a `/etc/resolv.conf`, that only the programs of the test see.

use std::fmt::Display;
use std::process::Command;

use super::program::{command, run};
use super::{Portcullis, TestDir, portcullis};

/// What the program under test reads in place of `/etc/hosts` lies in this file of the site.
const FILE: &str = "hosts";

/// Gives each name its addresses, and takes all other names away.
pub(crate) fn name(site: &TestDir, entries: &[(&str, &[&str])]) {
    let line = |(name, ips): &(&str, &[&str])| ips.iter().map(|ip| format!("{ip} {name}\n")).collect::<String>();
    // In place: the program sees the file itself, and not its name.
    site.write(FILE, entries.iter().map(line).collect::<String>());
    site.write("nsswitch.conf", "hosts: files\n");
    // No server is there: a test must not query the servers of the machine.
    site.write("resolv.conf", "nameserver 127.99.99.99\n");
}

/// Has names looked up at the server that is on 127.0.0.1 where the program runs, and nowhere else.
pub(crate) fn resolve_by_dns(site: &TestDir, options: &str) {
    site.write(FILE, "");
    site.write("nsswitch.conf", "hosts: dns\n");
    // Shorter than the system's resolver has it by itself, so that a server that does not answer is known for it soon.
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
    // As its own root, the way an unprivileged user may have mounts.
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script]).arg(site.directory());
    command
}
