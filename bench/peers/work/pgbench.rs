//! pgbench through a target.

use std::time::Instant;

use tokio::process::Command;

use super::{Figure, Outcome, Trial};
use crate::databases;
use crate::fault::{Context, Result};
use crate::route::Route;

/// Makes the OpenSSL of libpq offer the same parameters as the other clients.
const OPENSSL_CNF: &str = "openssl_conf = all\n[all]\nssl_conf = ssl\n[ssl]\nsystem_default = tls\n\
                           [tls]\nCiphersuites = TLS_AES_128_GCM_SHA256\nGroups = X25519\nMinProtocol = TLSv1.3\n";

#[derive(Debug, Clone, Copy)]
pub(super) struct Pgbench {
    /// Whether each transaction uses a new connection.
    pub(super) reconnect: bool,
}

impl Pgbench {
    pub(super) async fn sample(self, trial: Trial<'_>) -> Result<Outcome> {
        let pgbench = databases::pgbench(trial.site.cores.clients, trial.instance.port(Route::Postgres)?)?;
        let tls = match trial.instance.can.tls {
            true => format!("sslmode=verify-full sslrootcert={}", trial.site.pki.ca.display()),
            false => "sslmode=disable".to_owned(),
        };
        let configuration = trial.site.write("openssl.cnf", OPENSSL_CNF)?;
        // pgbench accepts whole seconds only. A much shorter sample has a few transactions.
        let seconds = trial.plan.sample.as_secs_f64();
        let length =
            if seconds < 0.1 { "--transactions=5".to_owned() } else { format!("--time={}", seconds.round().max(1.0)) };
        let mut command = pgbench.command(&tls);
        command.env("OPENSSL_CONF", configuration);
        command.args(["--select-only", "--no-vacuum", "--client=4", "--jobs=1", &length]);
        if self.reconnect {
            command.arg("--connect");
        }
        let tree = trial.instance.tree();
        let (cpu, begun) = (tree.cpu()?, Instant::now());
        let output = Command::from(command).kill_on_drop(true).output().await.context(|| "pgbench".to_owned())?;
        let (cpu, wall) = (tree.cpu()?.saturating_sub(cpu), begun.elapsed());
        let text = String::from_utf8_lossy(&output.stdout);
        let done = text
            .lines()
            .find_map(|line| line.strip_prefix("number of transactions actually processed: "))
            .and_then(|number| number.split('/').next()?.trim().parse::<u64>().ok())
            .filter(|done| output.status.success() && *done > 0);
        let Some(units) = done else {
            return Err(format!("pgbench: {}: {}", output.status, String::from_utf8_lossy(&output.stderr)).into());
        };
        let each = Figure::new("CPU", "µs/transaction", cpu.as_secs_f64() * 1e6 / units as f64);
        let rate = Figure::info("rate", "transactions/s", units as f64 / wall.as_secs_f64());
        Ok(Outcome { figures: vec![each, rate], units, cpu, wall, failures: 0 })
    }
}
