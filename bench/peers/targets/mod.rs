//! What is measured: the peers, Portcullis, and the floor. Each module knows one program and its configuration.

mod envoy;
pub(crate) mod floor;
mod haproxy;
mod hitch;
mod nginx;
mod pgbouncer;
mod portcullis;
mod stunnel;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};

use crate::account::Tree;
use crate::client::Way;
use crate::databases::{free_port, local, ping, ready};
use crate::door::Door;
use crate::fault::{Context, Result};
use crate::pki::{Pair, Pki};
use crate::process::{Manner, Running};
use crate::site::Site;
use crate::tls::Offer;

/// A door as one instance has it.
#[derive(Debug, Clone, Copy)]
struct Opening {
    door: Door,
    port: u16,
    upstream: u16,
}

impl Opening {
    fn certificate(self, pki: &Pki) -> &Pair {
        if self.door == Door::Rsa { &pki.rsa } else { &pki.ecdsa }
    }
}

/// What a program needs for writing its configuration.
#[derive(Debug)]
struct Grounds<'a> {
    pki: &'a Pki,
    /// For its files.
    directory: &'a Path,
    openings: &'a [Opening],
    /// How many rules its allowlist has; the one that lets the clients in, and others.
    rules: u32,
    /// How many files it may open.
    files: u64,
}

impl Grounds<'_> {
    /// Writes a file of the program's own.
    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.directory.join(name);
        fs::write(&path, text).context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}

/// How to start a program.
#[derive(Debug)]
struct Launch {
    arguments: Vec<String>,
    /// For the report.
    configuration: String,
}

/// What a program can do; a row that needs more leaves it out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Abilities {
    pub(crate) doors: &'static [Door],
    pub(crate) tls: bool,
    pub(crate) allowlist: bool,
    /// Key exchange X25519MLKEM768.
    pub(crate) hybrid: bool,
    /// An allowlist of any length, for what the length costs.
    pub(crate) many_rules: bool,
}

/// One program.
trait Program: Debug {
    /// Its file, where it is installed.
    fn find(&self) -> Option<PathBuf>;

    fn version(&self, program: &Path) -> String;

    fn abilities(&self) -> Abilities;

    fn launch(&self, grounds: &Grounds<'_>) -> Result<Launch>;

    /// Whether it refuses to run as root.
    fn servant(&self) -> bool {
        false
    }
}

/// A column of the report.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) can: Abilities,
    program: Box<dyn Program>,
    path: PathBuf,
}

/// A target that runs, and ends with this value.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) name: String,
    pub(crate) can: Abilities,
    pub(crate) configuration: String,
    openings: Vec<Opening>,
    process: Running,
}

impl Target {
    /// All targets, and the names of the peers that are not installed.
    pub(crate) fn all(binaries: &[(String, PathBuf)]) -> (Vec<Self>, Vec<String>) {
        let mut programs: Vec<(String, Box<dyn Program>)> = vec![
            ("floor".to_owned(), Box::new(floor::Floor)),
            ("haproxy".to_owned(), Box::new(haproxy::Haproxy)),
            ("nginx".to_owned(), Box::new(nginx::Nginx)),
            ("stunnel".to_owned(), Box::new(stunnel::Stunnel)),
            ("hitch".to_owned(), Box::new(hitch::Hitch)),
            ("envoy".to_owned(), Box::new(envoy::Envoy)),
            ("pgbouncer".to_owned(), Box::new(pgbouncer::Pgbouncer)),
        ];
        for (name, path) in binaries {
            programs.push((name.clone(), Box::new(portcullis::Portcullis::at(path))));
        }
        let (mut targets, mut absent) = (Vec::new(), Vec::new());
        for (name, program) in programs {
            match program.find() {
                Some(path) => targets.push(Self {
                    version: program.version(&path),
                    can: program.abilities(),
                    name,
                    program,
                    path,
                }),
                None => absent.push(name),
            }
        }
        (targets, absent)
    }

    /// Starts it, and waits until it serves.
    pub(crate) async fn start(&self, site: &Site, rules: u32) -> Result<Instance> {
        let directory = site.directory_for(&self.name)?;
        let opening = |door: &Door| Ok(Opening { door: *door, port: free_port()?, upstream: site.upstream(*door) });
        let openings = self.can.doors.iter().map(opening).collect::<Result<Vec<_>>>()?;
        let grounds = Grounds { pki: &site.pki, directory: &directory, openings: &openings, rules, files: site.files };
        let launch = self.program.launch(&grounds).context(|| self.name.clone())?;
        let manner = Manner { servant: self.program.servant(), ..Manner::on(site.cores.proxy) };
        let mut command = manner.command(&self.path);
        command.args(launch.arguments).current_dir(&directory);
        let process = Running::start(command, &directory.join("log"))?;
        let configuration = launch.configuration;
        let mut instance = Instance { name: self.name.clone(), can: self.can, configuration, openings, process };
        instance.wait(site).await?;
        Ok(instance)
    }
}

impl Instance {
    pub(crate) fn tree(&self) -> Tree {
        self.process.tree()
    }

    pub(crate) fn port(&self, door: Door) -> Result<u16> {
        let opening = self.openings.iter().find(|opening| opening.door == door);
        opening.map(|opening| opening.port).ok_or_else(|| format!("{} has no door {door:?}", self.name).into())
    }

    /// A way in for one client, with a memory for tickets of its own.
    pub(crate) fn way(&self, site: &Site, door: Door, offer: Offer) -> Result<Way> {
        let tls = self.can.tls.then(|| offer.config(&site.pki.ca_der, Some(&site.pki.client))).transpose()?;
        Ok(Way { address: local(self.port(door)?), tls })
    }

    async fn wait(&mut self, site: &Site) -> Result<()> {
        let ways: BTreeMap<Door, Way> = self
            .openings
            .iter()
            .map(|opening| {
                let offer = Offer { certificate: opening.door == Door::Mutual, ..Offer::default() };
                Ok((opening.door, self.way(site, opening.door, offer)?))
            })
            .collect::<Result<_>>()?;
        for (door, way) in ways {
            let attempt = || async {
                match door {
                    Door::Postgres => tokio::net::TcpStream::connect(way.address).await.map(drop).map_err(Into::into),
                    _ => ping(way.clone()).await,
                }
            };
            ready(&format!("{} ({})", self.name, door.name()), &mut self.process, attempt).await?;
        }
        Ok(())
    }
}

/// Who is not Portcullis.
pub(crate) const OTHERS: [&str; 7] = ["floor", "haproxy", "nginx", "stunnel", "hitch", "envoy", "pgbouncer"];

/// The address whose clients are let in, everywhere.
const TRUSTED: &str = "127.0.0.1";
