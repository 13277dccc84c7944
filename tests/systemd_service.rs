//! Portcullis as a systemd service: what `make install` installs starts after the steps of README.md, and systemd is notified
//! of reloads. The tests do what systemd would do; systemd itself does not run here.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::unistd::geteuid;

use crate::harness::portcullis::{EXECUTABLE, executable};
use crate::harness::program::{Running, free_address, run, setpriv};
use crate::harness::{Listener, Portcullis, TestDir, Upstream, WAIT_TIMEOUT, eventually};
use crate::reload::ON_SIGHUP;

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs `make` with everything below a directory.
fn make(root: &Path, target: &str) {
    let mut command = Command::new("make");
    let variables = [format!("PREFIX={}/usr", root.display()), format!("SYSCONFDIR={}/etc", root.display())];
    command.args(["--no-print-directory", target]).arg(format!("BINARY={EXECUTABLE}")).args(variables);
    run(command.current_dir(repository())).success();
}

/// The command of a line such as `ExecStart=` in the installed unit.
fn command_of(unit: &str, key: &str) -> Vec<String> {
    let line = unit.lines().find_map(|line| line.strip_prefix(key)).expect("the unit has the line");
    line.split(' ').map(str::to_owned).collect()
}

/// A command as the user of the unit, without privileges.
fn as_service(command: &[String]) -> Command {
    let privileges = ["--reuid=nobody", "--regid=nogroup", "--clear-groups", "--bounding-set=-all", "--no-new-privs"];
    let mut service = setpriv(&[&privileges[..], &["--pdeathsig", "KILL"]].concat(), &command[0]);
    service.args(&command[1..]);
    service
}

/// A socket like that of systemd, which every user may write to.
fn notify_socket(path: &Path) -> UnixDatagram {
    let socket = UnixDatagram::bind(path).unwrap();
    socket.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o666)).unwrap();
    socket
}

/// The next message to systemd.
fn next_message(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer).expect("systemd is notified in time");
    String::from_utf8(buffer[..length].to_vec()).unwrap()
}

/// The messages up to the one that has `line`, which ends a reload or a start.
fn messages_until(socket: &UnixDatagram, line: &str) -> Vec<String> {
    let mut messages = Vec::new();
    loop {
        messages.push(next_message(socket));
        if messages.last().unwrap().lines().any(|sent| sent == line) {
            return messages;
        }
    }
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[test]
fn installed_example_runs_as_an_unprivileged_user() {
    if !geteuid().is_root() {
        eprintln!("skipped: only root can become another user");
        return;
    }
    let site = TestDir::new();
    fs::set_permissions(site.directory(), fs::Permissions::from_mode(0o755)).unwrap();
    let root = site.path("root");
    make(&root, "install");
    let unit = fs::read_to_string(root.join("usr/lib/systemd/system/portcullis.service")).unwrap();
    let program = root.join("usr/bin/portcullis").display().to_string();
    let etc = root.join("etc/portcullis");

    // The steps of README.md. tmpfiles.d makes the directories, with other paths than here.
    let runtime = root.join("run");
    let owned_by_service = ["install", "-d", "-m", "750", "-o", "nobody", "-g", "nogroup"];
    run(Command::new(owned_by_service[0]).args(&owned_by_service[1..]).arg(&runtime)).success();
    run(Command::new(&program).args(["certs", "init"]).arg(site.path("certs"))).success();
    let install = |options: &[&str], from: &Path, to: &Path| {
        run(Command::new("install").args(options).arg(from).arg(to)).success();
    };
    fs::create_dir(etc.join("certs")).unwrap();
    install(&["-m", "644"], &site.path("certs/server.crt"), &etc.join("certs/server.crt"));
    install(
        &["-m", "600", "-o", "nobody", "-g", "nogroup"],
        &site.path("certs/server.key"),
        &etc.join("certs/server.key"),
    );
    let config = etc.join("portcullis.toml");
    install(&["-m", "644"], &etc.join("portcullis.toml.example"), &config);
    // "And edit it": only what two tests at a time cannot share.
    let text = fs::read_to_string(&config).unwrap();
    let edited = text.replace("0.0.0.0:6380", &free_address().to_string());
    let edited = edited.replace("/run/portcullis", &runtime.display().to_string());
    assert!(edited.contains("[admin]") && edited != text);
    fs::write(&config, &edited).unwrap();

    let start = command_of(&unit, "ExecStart=");
    assert_eq!(start, [program.as_str(), "run", "-c", config.to_str().unwrap()]);
    let checked = run(&mut as_service(&[&program, "check", "-c", config.to_str().unwrap()].map(str::to_owned)));
    assert_eq!(checked.code, Some(0), "{}", checked.stderr);
    let socket = notify_socket(&site.path("notify"));
    let mut command = as_service(&start);
    command.env("NOTIFY_SOCKET", site.path("notify")).stdout(Stdio::null()).stderr(Stdio::null());
    let mut service = Running::start(&mut command);
    assert_eq!(next_message(&socket), "READY=1\nSTATUS=serving 1 listener, generation 1");

    let mut reload = as_service(&command_of(&unit, "ExecReload="));
    run(&mut reload).success();
    fs::write(&config, edited.replace("\"redis\"", "\"reddis\"")).unwrap();
    let rejected = run(&mut reload);
    assert_eq!(rejected.code, Some(1));
    assert!(
        rejected.stderr.contains("reload was rejected") && rejected.stderr.contains("reddis"),
        "{}",
        rejected.stderr
    );
    service.signal("TERM");
    assert_eq!(service.exit_code(), Some(0));

    make(&root, "uninstall");
    let mut left = files(&root);
    left.sort();
    assert_eq!(left, [etc.join("certs/server.crt"), etc.join("certs/server.key"), config]);
}

#[test]
fn unit_is_valid() {
    let site = TestDir::new();
    let unit = fs::read_to_string(repository().join("packaging/systemd/portcullis.service")).unwrap();
    site.write("portcullis.service", unit.replace("/usr/bin/portcullis", EXECUTABLE));
    let mut command = Command::new("systemd-analyze");
    command.args(["verify", "--man=no"]).arg(site.path("portcullis.service"));
    match command.output() {
        Err(error) => eprintln!("skipped: systemd-analyze: {error}"),
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
    }
}

#[test]
fn systemd_is_notified_of_every_reload_and_its_result() {
    let upstream = Upstream::echo();
    let site = TestDir::new();
    let socket = notify_socket(&site.path("notify"));
    let mut command = executable();
    command.env("NOTIFY_SOCKET", site.path("notify"));
    let listener = || Listener::redis(&upstream);
    let config = |listener: Listener| format!("{ON_SIGHUP}admin.listen = \"unix:admin.sock\"\n{listener}");
    let mut portcullis = Portcullis::start_by(command, site, config(listener()));
    messages_until(&socket, "READY=1");
    let ask = |text: String| {
        portcullis.site.replace("portcullis.toml", text);
        run(executable().args(["reload", "--socket", "admin.sock"]).current_dir(portcullis.site.directory())).code
    };
    let status = |message: &str| message.lines().find_map(|line| line.strip_prefix("STATUS=")).unwrap().to_owned();

    assert_eq!(ask(config(listener().trusting(&["127.0.0.0/8"]))), Some(0));
    let messages = messages_until(&socket, "READY=1");
    let (start, end) = (&messages[0], &messages[1]);
    let microseconds = start.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").and_then(|text| text.parse::<u64>().ok());
    assert!(microseconds.is_some_and(|time| time > 0), "{start}");
    assert_eq!(status(end), "serving 1 listener, generation 2");

    assert_eq!(ask(config(listener().trusting(&["10.1.2.3/8"]).key("enforcement = \"log\""))), Some(1));
    let messages = messages_until(&socket, "READY=1");
    assert!(messages[0].starts_with("RELOADING=1\n"), "{messages:?}");
    let words = status(&messages[1]);
    for part in ["serving 1 listener, generation 2; reload rejected at ", "10.1.2.3/8", "(and 1 more)"] {
        assert!(words.contains(part), "no {part:?} in {words}");
    }

    // Once the file is fixed, the status no longer has the rejection.
    assert_eq!(ask(config(listener().trusting(&["127.0.0.0/9"]))), Some(0));
    assert_eq!(status(&messages_until(&socket, "READY=1")[1]), "serving 1 listener, generation 3");

    let mut session = portcullis.client().connect();
    session.ask(b"hello", b"hello");
    portcullis.process.signal("TERM");
    assert_eq!(status(&messages_until(&socket, "STOPPING=1")[0]), "draining: 1 open sessions, waiting up to 30s");
    drop(session);
    let code = eventually("the end", || portcullis.process.0.try_wait().unwrap());
    assert_eq!(code.code(), Some(0));
}
