//! The container image: built from Debian packages, and run read-only as a user without privileges.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::harness::portcullis::EXECUTABLE;
use crate::harness::program::{command, run, setpriv};
use crate::harness::{Listener, Portcullis, TestDir, Upstream};

/// The user of the image.
const USER: u32 = 65532;

/// The blob that a descriptor of the image names.
fn blob(image: &Path, descriptor: &Value) -> PathBuf {
    image.join("blobs").join(descriptor["digest"].as_str().unwrap().replace(':', "/"))
}

fn json(file: &Path) -> Value {
    serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
}

/// Builds the image with the program under test. Returns its configuration and its root directory.
fn build(site: &TestDir) -> (Value, PathBuf) {
    let archive = site.path("image.tar");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/build-image");
    run(command("bash").arg(script).args(["--binary", EXECUTABLE, "--output"]).arg(&archive)).success();
    let (image, root) = (site.path("image"), site.path("root"));
    for directory in [&image, &root] {
        fs::create_dir(directory).unwrap();
    }
    run(command("tar").arg("-C").arg(&image).arg("-xf").arg(archive)).success();
    let manifest = json(&blob(&image, &json(&image.join("index.json"))["manifests"][0]));
    for layer in manifest["layers"].as_array().unwrap() {
        run(command("tar").arg("-C").arg(&root).arg("-xf").arg(blob(&image, layer))).success();
    }
    (json(&blob(&image, &manifest["config"]))["config"].clone(), root)
}

/// A command that ends in the path of the program in the image: read-only, as the user of the image, without privileges. The
/// directory of the test is visible under its own path, as a volume would be.
fn in_container(root: &Path, site: &Path) -> Command {
    const ENTER: &str = "mount --make-rprivate / && mount --bind $1 $1 && mkdir -p $1$2 $1/proc && mount --bind $2 $1$2 && \
                         mount --bind /proc $1/proc && \
                         mount -o remount,bind,ro $1 && shift 2 && \
                         exec setpriv --no-new-privs chroot --userspec=65532:65532 --groups= \"$@\"";
    let mut command = setpriv(&["--pdeathsig", "KILL"], "unshare");
    command.args(["--mount", "sh", "-ec", ENTER, "sh"]).arg(root).arg(site).arg(root).arg("/usr/bin/portcullis");
    command
}

#[test]
fn image_runs_read_only_as_a_user_without_privileges() {
    let built = TestDir::new();
    if fs::metadata(built.directory()).unwrap().uid() != 0 {
        eprintln!("skipped: only root may change to the user of the image");
        return;
    }
    let (config, root) = build(&built);
    assert_eq!(config["User"], "65532:65532");
    assert_eq!(config["Entrypoint"], serde_json::json!(["/usr/bin/portcullis"]));
    assert_eq!(config["StopSignal"], "SIGTERM");
    assert!(!root.join("bin/sh").exists() && !root.join("usr/bin/sh").exists(), "the image has no shell");
    assert!(fs::metadata(root.join("etc/ssl/certs/ca-certificates.crt")).unwrap().len() > 100_000);

    let upstream = Upstream::echo();
    let site = TestDir::new();
    fs::create_dir(site.path("state")).unwrap();
    let settings = "admin.listen = \"unix:admin.sock\"\nstate.directory = \"state\"\n";
    let listener = Listener::redis(&upstream).trusting(&["127.0.0.1", "dns:localhost"]);
    site.write("portcullis.toml", "");
    for entry in fs::read_dir(site.directory()).unwrap() {
        chown(entry.unwrap().path(), Some(USER), Some(USER)).unwrap();
    }
    chown(site.directory(), Some(USER), Some(USER)).unwrap();
    let program = in_container(&root, site.directory());
    let mut portcullis = Portcullis::start_by(program, site, format!("{settings}{listener}"));
    let mut session = portcullis.client().connect();
    session.ask(b"hello", b"hello");
    let process = portcullis.process.0.id();
    let facts = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let fact = |key: &str| facts.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim();
    assert!(fact("Uid:").split_whitespace().all(|user| user == "65532"), "{facts}");
    assert_eq!((fact("CapEff:"), fact("NoNewPrivs:")), ("0000000000000000", "1"));
    // The last good answers of host names reach the volume.
    crate::harness::eventually("a file in the state directory", || {
        fs::read_dir(portcullis.site.path("state")).unwrap().next().map(drop)
    });
    drop(session);
    assert_eq!(portcullis.stop().0, Some(0));
}
