//! What the agent gives up before it reads its first message.
//!
//! A fault in a parser or in a library then has no file to write, no program to execute and no port to open, and cannot read the
//! memory of the process that has the keys. Each restriction is applied as far as the kernel knows it.

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, RestrictionStatus, Ruleset, RulesetAttr as _, RulesetError,
    RulesetStatus, Scope,
};
use nix::sys::prctl::{set_dumpable, set_no_new_privs, set_pdeathsig};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use tracing::warn;

use crate::agent::message::Confinement;

/// Confines this process. Must run before there are other threads.
pub(crate) fn confine() -> Confinement {
    let limit = |resource, most| setrlimit(resource, most, most);
    for (restriction, result) in [
        // The program may have ended already; then the connection is closed.
        ("end with the program", set_pdeathsig(Signal::SIGKILL)),
        ("no core dumps", limit(Resource::RLIMIT_CORE, 0)),
        ("no memory for debuggers", set_dumpable(false)),
        ("no new privileges", set_no_new_privs()),
        ("open files", limit(Resource::RLIMIT_NOFILE, MAX_FILES)),
        ("memory", limit(Resource::RLIMIT_AS, MAX_MEMORY)),
    ] {
        if let Err(error) = result {
            warn!(restriction, %error, "agent restriction not applied");
        }
    }
    match restrict() {
        Ok(status) => match status.ruleset {
            RulesetStatus::FullyEnforced => Confinement::Full,
            RulesetStatus::PartiallyEnforced => Confinement::Partial,
            RulesetStatus::NotEnforced => Confinement::None,
        },
        Err(error) => {
            warn!(%error, "agent restriction not applied");
            Confinement::None
        }
    }
}

/// Denies what the agent never does, everywhere: there are no rules that allow it again. Reading stays possible, because a later
/// task names other files.
fn restrict() -> Result<RestrictionStatus, RulesetError> {
    let reading: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::ReadDir;
    let ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST) & !reading)?
        .handle_access(AccessNet::BindTcp)?
        .scope(Scope::from_all(NEWEST))?;
    ruleset.create()?.restrict_self()
}

/// Linux 6.12: files, TCP ports, devices, signals to other processes, abstract sockets.
const NEWEST: ABI = ABI::V6;

/// A connection for each request at a time, and the files of tokens and certificates.
const MAX_FILES: u64 = 256;

/// Address space in bytes. The largest answer takes a small part of it.
const MAX_MEMORY: u64 = 1 << 30;

#[cfg(test)]
mod tests {
    use std::env;
    use std::fs;
    use std::io::ErrorKind;
    use std::net::{TcpListener, TcpStream};
    use std::process::{Command, id};

    use nix::sys::signal::kill;
    use nix::unistd::{Pid, getppid};

    use super::*;

    const DIRECTORY: &str = "PORTCULLIS_TEST_CONFINED";

    /// Runs in a process of its own. Landlock confines the thread that asks for it, which is that of this test.
    #[test]
    fn confined_process() {
        let Some(directory) = env::var_os(DIRECTORY) else { return };
        let kept = directory.clone().into_string().unwrap() + "/kept";
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let confinement = confine();
        println!("{confinement:?}");
        if confinement == Confinement::None {
            return;
        }
        let denied = |kind: ErrorKind| assert_eq!(kind, ErrorKind::PermissionDenied);
        assert_eq!(fs::read_to_string(&kept).unwrap(), "kept", "reading is possible");
        denied(fs::write(&kept, "other").unwrap_err().kind());
        denied(fs::write(kept.clone() + "2", "new").unwrap_err().kind());
        denied(fs::remove_file(&kept).unwrap_err().kind());
        denied(fs::rename(&kept, kept.clone() + "2").unwrap_err().kind());
        denied(fs::create_dir(kept.clone() + "3").unwrap_err().kind());
        denied(Command::new("/bin/true").spawn().unwrap_err().kind());
        denied(fs::File::open(format!("/proc/{}/mem", getppid())).unwrap_err().kind());
        TcpStream::connect(server.local_addr().unwrap()).unwrap();
        if confinement == Confinement::Full {
            denied(TcpListener::bind("127.0.0.1:0").unwrap_err().kind());
            assert!(kill(getppid(), Signal::SIGURG).is_err());
            kill(Pid::from_raw(id().try_into().unwrap()), Signal::SIGURG).unwrap();
        }
    }

    #[test]
    fn confined_process_can_read_and_connect_only() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("kept"), "kept").unwrap();
        let arguments = ["--exact", "agent::process::confinement::tests::confined_process", "--nocapture"];
        let outcome =
            Command::new(env::current_exe().unwrap()).args(arguments).env(DIRECTORY, directory.path()).output();
        let outcome = outcome.unwrap();
        let text = String::from_utf8_lossy(&outcome.stdout) + String::from_utf8_lossy(&outcome.stderr);
        assert!(outcome.status.success() && text.contains("1 passed"), "{text}");
        if text.contains("None") {
            eprintln!("skipped: this kernel has no Landlock");
        }
    }
}
