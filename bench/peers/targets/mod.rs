//! The measured programs: the peers, Portcullis and the plain relay. Each module has one program and its configuration.

mod envoy;
mod haproxy;
mod hitch;
mod nginx;
mod pgbouncer;
mod portcullis;
pub(crate) mod relay;
mod stunnel;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};

use crate::account::Tree;
use crate::client::Endpoint;
use crate::databases::{free_port, local, ping, ready};
use crate::fault::{Context, Result};
use crate::pki::{Pair, Pki};
use crate::process::{Placement, Running};
use crate::route::Route;
use crate::site::Site;
use crate::tls::Offer;

/// The listener of one instance for a route.
#[derive(Debug, Clone, Copy)]
struct Listener {
    route: Route,
    port: u16,
    upstream: u16,
}

impl Listener {
    fn certificate(self, pki: &Pki) -> &Pair {
        if self.route == Route::Rsa { &pki.rsa } else { &pki.ecdsa }
    }
}

/// The input for a program's configuration.
#[derive(Debug)]
struct Setup<'a> {
    pki: &'a Pki,
    directory: &'a Path,
    listeners: &'a [Listener],
    /// Number of rules in its allowlist. One of them admits the clients.
    rules: u32,
    /// The limit of open files.
    files: u64,
}

impl Setup<'_> {
    /// Writes a file for the program.
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

/// The features of a program. A row that needs others omits it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Abilities {
    pub(crate) routes: &'static [Route],
    pub(crate) tls: bool,
    pub(crate) allowlist: bool,
    /// Key exchange X25519MLKEM768.
    pub(crate) hybrid: bool,
    /// An allowlist of any length.
    pub(crate) many_rules: bool,
}

/// One program.
trait Program: Debug {
    /// The path, if it is installed.
    fn find(&self) -> Option<PathBuf>;

    fn version(&self, program: &Path) -> String;

    fn abilities(&self) -> Abilities;

    fn launch(&self, setup: &Setup<'_>) -> Result<Launch>;

    /// Whether it refuses to run as root.
    fn as_postgres(&self) -> bool {
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

/// A running target, terminated when dropped.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) name: String,
    pub(crate) can: Abilities,
    pub(crate) configuration: String,
    listeners: Vec<Listener>,
    process: Running,
}

impl Target {
    /// All targets, and the names of the peers that are not installed.
    pub(crate) fn all(binaries: &[(String, PathBuf)]) -> (Vec<Self>, Vec<String>) {
        let mut programs: Vec<(String, Box<dyn Program>)> = vec![
            ("relay".to_owned(), Box::new(relay::PlainRelay)),
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

    /// Starts it and waits until it is ready.
    pub(crate) async fn start(&self, site: &Site, rules: u32) -> Result<Instance> {
        let directory = site.directory_for(&self.name)?;
        let listener =
            |route: &Route| Ok(Listener { route: *route, port: free_port()?, upstream: site.upstream(*route) });
        let listeners = self.can.routes.iter().map(listener).collect::<Result<Vec<_>>>()?;
        let setup = Setup { pki: &site.pki, directory: &directory, listeners: &listeners, rules, files: site.files };
        let launch = self.program.launch(&setup).context(|| self.name.clone())?;
        let placement = Placement { as_postgres: self.program.as_postgres(), ..Placement::on(site.cores.proxy) };
        let mut command = placement.command(&self.path);
        command.args(launch.arguments).current_dir(&directory);
        let process = Running::start(command, &directory.join("log"))?;
        let configuration = launch.configuration;
        let mut instance = Instance { name: self.name.clone(), can: self.can, configuration, listeners, process };
        instance.wait(site).await?;
        Ok(instance)
    }
}

impl Instance {
    pub(crate) fn tree(&self) -> Tree {
        self.process.tree()
    }

    pub(crate) fn port(&self, route: Route) -> Result<u16> {
        let listener = self.listeners.iter().find(|listener| listener.route == route);
        listener
            .map(|listener| listener.port)
            .ok_or_else(|| format!("{} does not support the route {route:?}", self.name).into())
    }

    /// The endpoint for one client, with a separate ticket cache.
    pub(crate) fn endpoint(&self, site: &Site, route: Route, offer: Offer) -> Result<Endpoint> {
        let tls = self.can.tls.then(|| offer.config(&site.pki.ca_der, Some(&site.pki.client))).transpose()?;
        Ok(Endpoint { address: local(self.port(route)?), tls })
    }

    async fn wait(&mut self, site: &Site) -> Result<()> {
        let endpoints: BTreeMap<Route, Endpoint> = self
            .listeners
            .iter()
            .map(|listener| {
                let offer = Offer { certificate: listener.route == Route::Mutual, ..Offer::default() };
                Ok((listener.route, self.endpoint(site, listener.route, offer)?))
            })
            .collect::<Result<_>>()?;
        for (route, endpoint) in endpoints {
            let attempt = || async {
                match route {
                    Route::Postgres => {
                        tokio::net::TcpStream::connect(endpoint.address).await.map(drop).map_err(Into::into)
                    }
                    _ => ping(endpoint.clone()).await,
                }
            };
            ready(&format!("{} ({})", self.name, route.name()), &mut self.process, attempt).await?;
        }
        Ok(())
    }
}

/// The targets other than Portcullis.
pub(crate) const OTHERS: [&str; 7] = ["relay", "haproxy", "nginx", "stunnel", "hitch", "envoy", "pgbouncer"];

/// The client address on every allowlist.
const TRUSTED: &str = "127.0.0.1";
