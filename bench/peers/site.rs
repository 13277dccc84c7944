//! The environment of the targets: a directory, certificates, databases and cores.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;

use crate::databases::{Postgres, Redis};
use crate::fault::{Context, Result};
use crate::machine::Cores;
use crate::pki::Pki;
use crate::process::Placement;
use crate::route::Route;

// Fields are dropped in this order: the servers before the directory they write to.
#[derive(Debug)]
pub(crate) struct Site {
    redis: Redis,
    bulk: Redis,
    postgres: Option<Postgres>,
    pub(crate) pki: Pki,
    pub(crate) cores: Cores,
    /// The limit of open files of a process.
    pub(crate) files: u64,
    /// Number of started instances.
    instances: AtomicU32,
    directory: TempDir,
}

impl Site {
    pub(crate) async fn build(cores: Cores, files: u64, postgres: bool) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("portcullis-bench-").tempdir()?;
        let path = directory.path();
        // Some targets drop root and still have to read their keys, which are deleted with the directory.
        fs::set_permissions(path, Permissions::from_mode(0o755))?;
        let pki = Pki::make(path)?;
        let clients = Placement::on(cores.clients);
        let redis = Redis::start("redis", path, clients, files).await?;
        let bulk = Redis::start("redis-bulk", path, Placement { idle: true, ..clients }, files).await?;
        let postgres = if postgres { Some(Postgres::start(path, cores.clients).await?) } else { None };
        Ok(Self { redis, bulk, postgres, pki, cores, files, instances: AtomicU32::new(0), directory })
    }

    /// The port of the database of a route.
    pub(crate) fn upstream(&self, route: Route) -> u16 {
        match route {
            Route::Redis | Route::Rsa | Route::Mutual => self.redis.port,
            Route::Bulk => self.bulk.port,
            // Without PostgreSQL no client uses this route.
            Route::Postgres => self.postgres.as_ref().map_or(1, |postgres| postgres.port),
        }
    }

    /// An empty directory for one instance of a target.
    pub(crate) fn directory_for(&self, target: &str) -> Result<PathBuf> {
        let number = self.instances.fetch_add(1, Ordering::Relaxed);
        let path = self.directory.path().join(format!("{target}-{number}"));
        fs::create_dir(&path).context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }

    /// Writes a file that all targets share.
    pub(crate) fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.directory.path().join(name);
        fs::write(&path, text).context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}
