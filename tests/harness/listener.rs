//! Builds the text of a `[[listener]]` with defaults for tests.

use std::fmt::{self, Display, Formatter};

/// One listener named `main` on a free port of 127.0.0.1 that trusts 127.0.0.1 by default.
#[derive(Debug, Clone)]
pub(crate) struct Listener {
    pub(crate) name: String,
    protocol: &'static str,
    listen: Vec<String>,
    upstream: String,
    upstream_keys: Vec<String>,
    balancers: Vec<String>,
    trusted: Vec<String>,
    certificates: Vec<String>,
    keys: Vec<String>,
    tls: Vec<String>,
    limits: Vec<String>,
    postgres: Vec<String>,
}

impl Listener {
    pub(crate) fn redis(upstream: impl Display) -> Self {
        Self::new("redis", &upstream)
    }

    pub(crate) fn postgres(upstream: impl Display) -> Self {
        Self::new("postgres", &upstream)
    }

    pub(crate) fn tcp(upstream: impl Display) -> Self {
        Self::new("tcp", &upstream)
    }

    fn new(protocol: &'static str, upstream: &dyn Display) -> Self {
        Self {
            name: "main".to_owned(),
            protocol,
            listen: vec!["127.0.0.1:0".to_owned()],
            upstream: upstream.to_string(),
            upstream_keys: vec![],
            balancers: vec![],
            trusted: vec!["127.0.0.1".to_owned()],
            certificates: vec![],
            keys: vec![],
            tls: vec![],
            limits: vec![],
            postgres: vec![],
        }
        .certificates(&["server"])
    }

    pub(crate) fn named(self, name: &str) -> Self {
        Self { name: name.to_owned(), ..self }
    }

    pub(crate) fn on(self, addresses: &[&str]) -> Self {
        Self { listen: owned(addresses), ..self }
    }

    pub(crate) fn trusting(self, sources: &[&str]) -> Self {
        Self { trusted: owned(sources), ..self }
    }

    /// The certificates in `NAME.crt` and `NAME.key`, in this order.
    pub(crate) fn certificates(self, names: &[&str]) -> Self {
        let table = |name: &&str| format!("cert = \"{name}.crt\", key = \"{name}.key\"");
        Self { certificates: names.iter().map(table).collect(), ..self }
    }

    /// One certificate, by the keys of its table.
    pub(crate) fn certificate(self, table: &str) -> Self {
        Self { certificates: vec![table.to_owned()], ..self }
    }

    /// No TLS, as the sidecar of a client has it.
    pub(crate) fn without_tls(self) -> Self {
        Self { certificates: vec![], ..self }
    }

    /// A line of `[listener.upstream]`.
    pub(crate) fn upstream(mut self, line: &str) -> Self {
        self.upstream_keys.push(line.to_owned());
        self
    }

    /// TLS towards the upstream, verified by these files.
    pub(crate) fn upstream_tls(self, verification: &str, ca: &str) -> Self {
        self.upstream(&format!("tls = {verification:?}")).upstream(&format!("ca = {ca:?}"))
    }

    /// Load balancers that have to speak the PROXY protocol.
    pub(crate) fn behind(self, balancers: &[&str]) -> Self {
        Self { balancers: owned(balancers), ..self }
    }

    /// A line of `[[listener]]`.
    pub(crate) fn key(mut self, line: &str) -> Self {
        self.keys.push(line.to_owned());
        self
    }

    /// A line of `[listener.tls]`.
    pub(crate) fn tls(mut self, line: &str) -> Self {
        self.tls.push(line.to_owned());
        self
    }

    /// A line of `[listener.limits]`.
    pub(crate) fn limit(mut self, line: &str) -> Self {
        self.limits.push(line.to_owned());
        self
    }

    /// A line of `[listener.postgres]`.
    pub(crate) fn postgres_key(mut self, line: &str) -> Self {
        self.postgres.push(line.to_owned());
        self
    }
}

fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

impl Display for Listener {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n[[listener]]")?;
        writeln!(f, "name = {:?}\nprotocol = {:?}", self.name, self.protocol)?;
        writeln!(f, "listen = {:?}\ntrusted_sources = {:?}", self.listen, self.trusted)?;
        if self.upstream_keys.is_empty() {
            writeln!(f, "upstream = {:?}", self.upstream)?;
        }
        if self.certificates.is_empty() {
            writeln!(f, "tls = \"off\"")?;
        }
        lines(f, &self.keys)?;
        if !self.certificates.is_empty() {
            writeln!(f, "[listener.tls]\ncertificates = [")?;
            for table in &self.certificates {
                writeln!(f, "    {{ {table} }},")?;
            }
            writeln!(f, "]")?;
            lines(f, &self.tls)?;
        }
        if !self.upstream_keys.is_empty() {
            writeln!(f, "[listener.upstream]\naddress = {:?}", self.upstream)?;
            lines(f, &self.upstream_keys)?;
        }
        if !self.balancers.is_empty() {
            writeln!(f, "[listener.proxy_protocol]\ntrusted = {:?}", self.balancers)?;
        }
        writeln!(f, "[listener.limits]")?;
        lines(f, &self.limits)?;
        if !self.postgres.is_empty() {
            writeln!(f, "[listener.postgres]")?;
            lines(f, &self.postgres)?;
        }
        Ok(())
    }
}

fn lines(f: &mut Formatter<'_>, lines: &[String]) -> fmt::Result {
    lines.iter().try_for_each(|line| writeln!(f, "{line}"))
}
