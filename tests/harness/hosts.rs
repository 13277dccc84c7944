//! Names that a test gives and takes: an `/etc/hosts` that only the programs of the test see.

use std::fmt::Display;
use std::process::Command;

use super::program::{command, run};
use super::{Portcullis, Site, portcullis};

/// What the program under test reads in place of `/etc/hosts` lies in this file of the site.
const FILE: &str = "hosts";

/// Gives each name its addresses, and takes all other names away.
pub(crate) fn name(site: &Site, entries: &[(&str, &[&str])]) {
    let line = |(name, ips): &(&str, &[&str])| ips.iter().map(|ip| format!("{ip} {name}\n")).collect::<String>();
    // In place: the program sees the file itself, and not its name.
    site.write(FILE, entries.iter().map(line).collect::<String>());
    site.write("nsswitch.conf", "hosts: files\n");
}

/// The built program, in a namespace of its own in which only the names of this site exist. The kernel, or whoever runs
/// the tests, may forbid namespaces; then there is none.
pub(crate) fn executable(site: &Site) -> Option<Command> {
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
pub(crate) fn start(site: Site, config: impl Display) -> Option<Portcullis> {
    let command = executable(&site)?;
    Some(Portcullis::start_by(command, site, config))
}

/// A command whose program is the next argument.
fn inside(site: &Site) -> Command {
    let script = "mount --bind \"$0/hosts\" /etc/hosts && mount --bind \"$0/nsswitch.conf\" /etc/nsswitch.conf && \
                  exec setpriv --pdeathsig KILL -- \"$@\"";
    let mut command = command("unshare");
    // As its own root, the way an unprivileged user may have mounts.
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script]).arg(site.directory());
    command
}
