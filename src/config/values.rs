//! Strings of the configuration with a format: durations, addresses, files, names.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::addr::UpstreamAddr;
use crate::config::document::Node;
use crate::config::files::Location;
use crate::config::systemd_credential;
use crate::config::{PathForm, SourcedFile, SourcedPem, shown};
use crate::limit::rate::{Rate, RateError};

impl Node<'_> {
    /// `"10s"`, `"5m"`, `"1h30m"`, `"250ms"`.
    pub(crate) fn duration(&self) -> Option<Duration> {
        parse_duration(self.text(DURATION)?).map_err(|error| self.expected(error)).ok()
    }

    /// A duration greater than zero.
    pub(crate) fn positive_duration(&self) -> Option<Duration> {
        let duration = self.duration()?;
        if duration.is_zero() {
            self.expected(DurationError::Zero);
            return None;
        }
        Some(duration)
    }

    /// A duration in which `"0s"` means never.
    pub(crate) fn duration_or_never(&self) -> Option<Option<Duration>> {
        self.duration().map(|duration| Some(duration).filter(|duration| !duration.is_zero()))
    }

    /// `"0.0.0.0:6380"` or `"[::]:6380"`.
    pub(crate) fn socket_address(&self) -> Option<SocketAddr> {
        let text = self.text(LISTEN)?;
        let parsed = text.parse().ok();
        if parsed.is_none() {
            match bare_ipv6_with_port(text) {
                Some(meant) => self.expected(format_args!("{LISTEN}; did you mean \"{meant}\"?")),
                None => self.expected(LISTEN),
            }
        }
        parsed
    }

    /// `"host:port"` or `"unix:/path"`, the path relative to `directory`.
    pub(crate) fn upstream_address(&self, directory: &Path) -> Option<UpstreamAddr> {
        let text = self.text(UPSTREAM)?;
        let parsed = match text.strip_prefix("unix:") {
            Some("") => None,
            Some(path) => Some(UpstreamAddr::Unix(directory.join(path))),
            None => host_and_port(text),
        };
        if parsed.is_none() {
            match bare_ipv6_with_port(text) {
                Some(meant) => self.expected(format_args!("{UPSTREAM}; did you mean \"{meant}\"?")),
                None => self.expected(UPSTREAM),
            }
        }
        parsed
    }

    /// The path of `"unix:/path"`, relative to `directory`.
    pub(crate) fn socket_path(&self, directory: &Path, expected: &str) -> Option<PathBuf> {
        let path = self.text(expected)?.strip_prefix("unix:").filter(|path| !path.is_empty());
        let Some(path) = path.map(|path| directory.join(path)) else {
            self.expected(expected);
            return None;
        };
        let length = path.as_os_str().len();
        if length > MAX_SOCKET_PATH {
            self.problem(format_args!(
                "found {}, a path of {length} bytes; the system allows at most {MAX_SOCKET_PATH} for a socket",
                self.found()
            ));
            return None;
        }
        Some(path)
    }

    /// A file to be read: a path, relative to `directory`, or `"credential:NAME"`.
    pub(crate) fn path(&self, directory: &Path) -> Option<PathBuf> {
        let text = self.text(FILE)?;
        if shown::is_pem(text) {
            self.problem(IS_PEM);
            return None;
        }
        match systemd_credential::named(text) {
            Some(name) => self.credential(name),
            None if text.is_empty() => {
                self.expected(FILE);
                None
            }
            None if text.starts_with(VARIABLE_PREFIX) => {
                self.expected(format_args!("{FILE}; only cert and key can be read from an environment variable"));
                None
            }
            None => Some(directory.join(text)),
        }
    }

    /// A file as in [`Self::path`], or `"env:NAME"`.
    pub(crate) fn location(&self, directory: &Path) -> Option<Location> {
        match self.text(FILE)?.strip_prefix(VARIABLE_PREFIX) {
            Some(name) if name.is_empty() || name.contains(['=', '\0', '\n']) => {
                self.expected("the name of an environment variable, such as \"env:TLS_KEY\"");
                None
            }
            Some(name) => Some(Location::Variable(name.to_owned())),
            None => self.path(directory).map(Location::File),
        }
    }

    /// A file with its key and position.
    pub(crate) fn named_file(&self, directory: &Path) -> Option<SourcedFile> {
        self.named_path(directory, PathForm::Files)
    }

    /// One file or several, with their keys and positions.
    pub(crate) fn named_files(&self, directory: &Path) -> Vec<SourcedFile> {
        self.named_paths(directory, PathForm::Files)
    }

    /// One file or several as in [`Self::named_files`], or directories of files.
    pub(crate) fn named_files_or_directories(&self, directory: &Path) -> Vec<SourcedFile> {
        self.named_paths(directory, PathForm::FilesOrDirectory)
    }

    fn named_path(&self, directory: &Path, form: PathForm) -> Option<SourcedFile> {
        let path = self.path(directory)?;
        self.record_location(&Location::from(&path), form);
        Some(SourcedFile { path, position: self.position(), key: self.key().to_owned() })
    }

    fn named_paths(&self, directory: &Path, form: PathForm) -> Vec<SourcedFile> {
        let nodes = self.one_or_list();
        if nodes.is_empty() {
            self.expected("at least one file");
        }
        nodes.iter().filter_map(|node| node.named_path(directory, form)).collect()
    }

    /// The location of a PEM text with its key and position.
    pub(crate) fn named_pem(&self, directory: &Path) -> Option<SourcedPem> {
        let location = self.location(directory)?;
        self.record_location(&location, PathForm::Files);
        Some(SourcedPem { location, position: self.position(), key: self.key().to_owned() })
    }

    /// A host name or an IP address.
    pub(crate) fn host_name(&self) -> Option<String> {
        let text = self.text(HOST)?;
        if text.parse::<IpAddr>().is_err() && !is_host(text) {
            self.expected(HOST);
            return None;
        }
        Some(text.to_owned())
    }

    /// A limit; `zero` describes the meaning of 0.
    pub(crate) fn limit(&self, zero: &str) -> Option<u32> {
        let limit = self.integer().and_then(|number| u32::try_from(number).ok());
        if limit.is_none() {
            self.expected(format_args!("a whole number; 0 means {zero}"));
        }
        limit
    }

    /// `"50/s"`.
    pub(crate) fn rate(&self) -> Option<Rate> {
        self.text(&RateError.to_string())?.parse().map_err(|error| self.expected(error)).ok()
    }

    fn credential(&self, name: &str) -> Option<PathBuf> {
        if !systemd_credential::is_name(name) {
            self.expected("a credential name without slashes and \"..\"");
            return None;
        }
        let directory = systemd_credential::directory();
        if directory.is_none() {
            let name = shown::credential(self.key(), name);
            let found = match &name {
                Some(name) => format!("\"credential:{name}\", a systemd credential"),
                None => "a systemd credential whose name is not shown".to_owned(),
            };
            let name = name.as_deref().unwrap_or("NAME");
            self.problem(format_args!(
                "found {found}, but $CREDENTIALS_DIRECTORY is not set; \
                 add LoadCredential={name}:/path/of/the/file to the systemd unit"
            ));
        }
        directory.map(|directory| directory.join(name))
    }
}

const FILE: &str = "a file";
const IS_PEM: &str = "is PEM content (not shown), expected a file; write the PEM to a file, or for cert and key to an environment variable";
const HOST: &str = "a host name or an IP address";
const VARIABLE_PREFIX: &str = "env:";
const DURATION: &str = "a duration such as \"10s\", \"5m\" or \"250ms\"";
const LISTEN: &str = "an IP address and port such as \"0.0.0.0:6380\" or \"[::]:6380\"";
const UPSTREAM: &str = "a host and port such as \"127.0.0.1:6379\", or \"unix:/path/to/socket\"";

/// Short enough to be added to any clock without overflow.
const MAX_DURATION: Duration = Duration::from_secs(3650 * 86_400);

/// In bytes: the size of `sun_path` (unix(7)) without the terminating null byte.
const MAX_SOCKET_PATH: usize = 107;

/// Why a text is not a valid duration. Completes "expected …".
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DurationError {
    #[error("{DURATION}")]
    Syntax,
    #[error("a duration of at most \"3650d\"")]
    TooLong,
    #[error("a duration of more than 0s")]
    Zero,
}

/// Reads a duration such as `90d` or `1h30m`, of at most [`MAX_DURATION`].
pub(crate) fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let duration = sum_of_units(text).ok_or(DurationError::Syntax)?;
    if duration > MAX_DURATION { Err(DurationError::TooLong) } else { Ok(duration) }
}

/// Reads a duration greater than zero.
pub(crate) fn parse_positive_duration(text: &str) -> Result<Duration, DurationError> {
    let duration = parse_duration(text)?;
    if duration.is_zero() { Err(DurationError::Zero) } else { Ok(duration) }
}

/// Saturates at the maximum.
fn sum_of_units(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, tail) = rest.split_at(digits);
        let letters = tail.len() - tail.trim_start_matches(|c: char| c.is_ascii_lowercase()).len();
        let (unit, tail) = tail.split_at(letters);
        let milliseconds = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return None,
        };
        if number.is_empty() {
            return None;
        }
        let part = number.parse().unwrap_or(u64::MAX).saturating_mul(milliseconds);
        total = total.saturating_add(Duration::from_millis(part));
        rest = tail;
    }
    Some(total).filter(|_| !text.is_empty())
}

fn host_and_port(text: &str) -> Option<UpstreamAddr> {
    let (host, port) = text.rsplit_once(':')?;
    let port = port.parse::<u16>().ok().filter(|port| *port != 0)?;
    let host = match host.strip_prefix('[') {
        Some(bracketed) => bracketed.strip_suffix(']').filter(|inner| inner.parse::<Ipv6Addr>().is_ok())?,
        None => Some(host).filter(|host| is_host(host))?,
    };
    Some(UpstreamAddr::Tcp { host: host.to_owned(), port })
}

/// A host name or IPv4 address. Underscores are allowed, because container names contain them.
fn is_host(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    text.len() <= 253 && text.strip_suffix('.').unwrap_or(text).split('.').all(is_label)
}

/// Returns `[::1]:6379` for the invalid `::1:6379`.
fn bare_ipv6_with_port(text: &str) -> Option<String> {
    let (host, port) = text.rsplit_once(':')?;
    let _: Ipv6Addr = host.parse().ok()?;
    let _: u16 = port.parse().ok()?;
    Some(format!("[{host}]:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duration_without_a_known_unit_is_rejected() {
        assert_eq!(parse_duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_duration("1h30m"), Ok(Duration::from_secs(5_400)));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("0s"), Ok(Duration::ZERO));
        for text in ["", "10", "s", "10 s", "-1s", "1.5s", "10S", "5min", "h1", "1h1"] {
            assert_eq!(parse_duration(text), Err(DurationError::Syntax), "{text:?}");
        }
        assert_eq!(parse_duration("3650d"), Ok(MAX_DURATION));
        for text in ["3650d1ms", "9999999999999h", "18446744073709551615d", "99999999999999999999999s1ms"] {
            assert_eq!(parse_duration(text), Err(DurationError::TooLong), "{text:?}");
        }
        assert_eq!(parse_positive_duration("0h"), Err(DurationError::Zero));
    }

    #[test]
    fn upstream_without_host_or_port_is_rejected() {
        let tcp = |host: &str, port| Some(UpstreamAddr::Tcp { host: host.into(), port });
        assert_eq!(host_and_port("127.0.0.1:6379"), tcp("127.0.0.1", 6379));
        assert_eq!(host_and_port("redis_1.internal:6379"), tcp("redis_1.internal", 6379));
        assert_eq!(host_and_port("[::1]:6379"), tcp("::1", 6379));
        for text in ["", "redis", "redis:", "redis:0", "redis:65536", "::1:6379", "[redis]:1", "a b:1", "redis://x:1"] {
            assert_eq!(host_and_port(text), None, "{text:?}");
        }
        assert_eq!(bare_ipv6_with_port("::1:6379").as_deref(), Some("[::1]:6379"));
    }
}
