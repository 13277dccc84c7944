//! `docs/METRICS.md`, generated from the catalog.

use std::fmt::Write as _;

use crate::metrics::exposition::catalog;
use crate::metrics::exposition::catalog::{Kind, Row};

/// The text of `docs/METRICS.md`.
pub fn reference() -> String {
    let mut text = INTRODUCTION.to_owned();
    for (title, prefix) in [("Portcullis", "portcullis_"), ("Process", "process_")] {
        // Writing to a String never fails.
        let _ = write!(text, "## {title}\n\n| series | type | labels | meaning |\n|---|---|---|---|\n");
        for row in catalog::ALL.iter().filter(|row| row.name.starts_with(prefix)) {
            text.push_str(&line(row));
        }
        text.push('\n');
    }
    text + NOTES
}

fn line(row: &Row) -> String {
    let kind = match row.kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram => "histogram",
    };
    let labels: Vec<_> = row.labels.iter().map(|label| format!("`{label}`")).collect();
    let labels = if labels.is_empty() { "–".to_owned() } else { labels.join(", ") };
    let presence = if row.presence.is_empty() { String::new() } else { format!(" Present {}.", row.presence) };
    format!("| `{}` | {kind} | {labels} | {}{presence} |\n", row.name, row.help)
}

const INTRODUCTION: &str = "\
# Metrics

This page lists the series that Portcullis exports to Prometheus. It is generated from
`src/metrics/exposition/catalog.rs`: change the table there and run

    PORTCULLIS_WRITE_DOCS=1 cargo test --test tests metrics::reference

Set an address in the configuration to serve them:

```toml
[admin]
listen = \"unix:/run/portcullis/admin.sock\"
metrics = \"127.0.0.1:9643\"
```

| path | answer |
|---|---|
| `GET /metrics` | the series: OpenMetrics 1.0 if the client accepts it, otherwise Prometheus text 0.0.4 |
| `GET /healthz` | 200 while the process answers |
| `GET /readyz` | 200; 503 before all listeners are bound and while draining |

The address has no TLS and needs no token. Nothing else is served on it. A reload moves it. Scrapes
run on a thread of their own: at most 32 clients at a time, 16 of one source, 10 seconds for each.

Scrape it:

```yaml
scrape_configs:
  - job_name: portcullis
    static_configs:
      - targets: [\"127.0.0.1:9643\"]
```

Alert rules are in [packaging/prometheus](../packaging/prometheus/portcullis-alerts.yml). They expect
the job name `portcullis`. A dashboard is in
[packaging/grafana](../packaging/grafana/portcullis.json).

";

const NOTES: &str = "\
## Notes

- Counters continue through reloads, and when a removed listener returns. A restart resets them.
  The series of a removed listener disappear when its last session has ended.
- No label holds a client's address, port, subject or SNI. The number of series depends on the
  configuration only. `subject` is that of a configured certificate.
- The reason codes are those of the [audit](AUDIT.md). Every reason is present from the start, at 0.
- `portcullis_relayed_bytes_total` advances while sessions run.
- `portcullis_config_hash` covers settings, rules, and the certificates that are trusted. It does not
  cover the addresses of host names, the certificates and keys that Portcullis presents, and
  defaults that depend on the machine. Files count by their paths relative to the configuration file.
- `kind` is `server_certificate`, `client_ca` or `client_certificate`. `role` is `server`,
  `client_ca`, `client_certificate`, `upstream_ca`, `upstream_certificate`, `admin` or
  `admin_client_ca`. The last two are those of `[admin.tls]`, and have an empty `listener`.
";
