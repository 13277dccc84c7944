//! A request for a client certificate, as the admin API accepts it.

use aws_lc_rs::rand;
use rcgen::{CertificateParams, SanType, SerialNumber};
use time::{Duration, OffsetDateTime};

use crate::issuing::IssuingError;
use crate::issuing::authority::{Authority, Signed};
use crate::issuing::params::{client_params, dns_name, new_key};

/// The names and the validity of a client certificate to issue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientRequest {
    name: String,
    /// `None` for [`DEFAULT_DAYS`], or until the CA expires if that is earlier.
    days: Option<u32>,
    dns: Vec<String>,
}

/// Why a request is invalid. The texts follow the name of the field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ClientRequestError {
    #[error(
        "name must have 1 to {MAX_NAME} letters, digits, dots, underscores, hyphens and @, and begin with a letter or digit"
    )]
    Name,
    #[error("days must be a number from 1 to {MAX_DAYS}")]
    Days,
    #[error("days is {days}, but the CA expires in {left} days; {}", advice(*left))]
    OutlivesCa { days: u32, left: i64 },
    #[error(
        "dns must be a list of at most {MAX_DNS} host names such as app.internal or *.internal, without IP addresses"
    )]
    Dns,
}

impl ClientRequest {
    /// # Errors
    /// If a name or the number of days is not allowed.
    pub(crate) fn new(name: String, days: Option<u64>, dns: Vec<String>) -> Result<Self, ClientRequestError> {
        if !is_safe(&name) {
            return Err(ClientRequestError::Name);
        }
        let days = days.map(u32::try_from).transpose().map_err(|_| ClientRequestError::Days)?;
        if days.is_some_and(|days| !(1..=MAX_DAYS).contains(&days)) {
            return Err(ClientRequestError::Days);
        }
        if dns.len() > MAX_DNS || dns.iter().any(|name| dns_name(name).is_none()) {
            return Err(ClientRequestError::Dns);
        }
        Ok(Self { name, days, dns })
    }

    /// The common name. It is also a valid part of a file name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Checks that the stated validity ends before the CA does.
    ///
    /// # Errors
    /// [`ClientRequestError::OutlivesCa`].
    pub(crate) fn check_validity(
        &self,
        end_of_ca: OffsetDateTime,
        now: OffsetDateTime,
    ) -> Result<(), ClientRequestError> {
        match self.days {
            Some(days) if now.saturating_add(Duration::days(days.into())) > end_of_ca => {
                Err(ClientRequestError::OutlivesCa { days, left: (end_of_ca - now).whole_days() })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Issues the certificate with a new key. It does not outlive the CA.
    ///
    /// # Errors
    /// If the crypto provider fails.
    pub(crate) fn issue(&self, authority: &Authority) -> Result<Signed, IssuingError> {
        let mut params = self.params(authority.facts().not_after);
        params.serial_number = Some(random_serial()?);
        authority.sign(&params, new_key()?, None)
    }

    fn params(&self, end_of_ca: OffsetDateTime) -> CertificateParams {
        let mut params = client_params(&self.name, self.days.unwrap_or(DEFAULT_DAYS));
        params.not_after = params.not_after.min(end_of_ca);
        let dns: Vec<SanType> = self.dns.iter().filter_map(|name| dns_name(name)).collect();
        params.subject_alt_names = dns;
        params
    }
}

fn advice(days_left: i64) -> String {
    match days_left {
        ..=0 => "leave out days for a certificate that ends with the CA".to_owned(),
        days => format!("use at most {days}"),
    }
}

/// A positive number of 16 bytes (RFC 5280 §4.1.2.2), of which 126 bits are random.
fn random_serial() -> Result<SerialNumber, IssuingError> {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes).map_err(|_| IssuingError::certificate("the system has no random numbers"))?;
    let [first, ..] = &mut bytes;
    *first = *first & 0x3f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn is_safe(name: &str) -> bool {
    name.len() <= MAX_NAME
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-@".contains(&byte))
}

/// Bytes: the upper bound of a common name (RFC 5280, ub-common-name).
const MAX_NAME: usize = 64;
pub(crate) const MAX_DAYS: u32 = 3650;
pub(crate) const DEFAULT_DAYS: u32 = 90;
pub(crate) const MAX_DNS: usize = 16;

/// What [`ClientRequest::new`] accepts as a name, as a regular expression for callers.
pub(crate) const NAME_PATTERN: &str = "^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$";

#[cfg(test)]
mod tests {
    use super::*;

    fn request(name: &str, days: Option<u64>, dns: &[&str]) -> Result<ClientRequest, ClientRequestError> {
        ClientRequest::new(name.to_owned(), days, dns.iter().map(|&name| name.to_owned()).collect())
    }

    #[test]
    fn unsafe_names_and_validities_are_rejected() {
        let longest = "a".repeat(MAX_NAME);
        for name in ["app", "app-1.internal", "app@example.com", "9_x", &longest] {
            assert_eq!(request(name, None, &[]).unwrap().name(), name);
        }
        assert!(NAME_PATTERN.ends_with(&format!("{{0,{}}}$", MAX_NAME - 1)));
        let too_long = "a".repeat(MAX_NAME + 1);
        for name in ["", ".app", "-app", "a/b", "a b", "a\"b", "a\r\nx: y", "caf\u{e9}", "a\0", "a,CN=b", &too_long] {
            assert_eq!(request(name, None, &[]), Err(ClientRequestError::Name), "{name:?}");
        }
        for (days, is_valid) in [(0, false), (1, true), (3650, true), (3651, false), (u64::MAX, false)] {
            assert_eq!(request("app", Some(days), &[]).is_ok(), is_valid, "{days}");
        }
        assert!(request("app", None, &["app.internal"]).is_ok());
        assert!(request("app", None, &["*.internal", "1.example"]).is_ok());
        let addresses = [vec!["10.0.0.1"], vec!["::1"], vec!["127.1"], vec!["*"], vec!["*.*"], vec!["a", "1"]];
        for dns in [vec![""], vec!["a b"], vec!["a..b"], vec!["a"; MAX_DNS + 1]].into_iter().chain(addresses) {
            assert_eq!(request("app", None, &dns), Err(ClientRequestError::Dns), "{dns:?}");
        }
    }

    #[test]
    fn certificate_does_not_outlive_its_ca() {
        let now = OffsetDateTime::now_utc();
        let request = request("app", Some(90), &["app.internal"]).unwrap();
        let (soon, late) = (now + Duration::days(3), now + Duration::days(900));
        assert_eq!(request.params(soon).not_after, soon);
        assert!(request.params(late).not_after < now + Duration::days(91));
        assert_eq!(request.params(late).subject_alt_names.len(), 1);
    }

    #[test]
    fn stated_validity_beyond_the_end_of_the_ca_is_rejected() {
        let now = OffsetDateTime::now_utc();
        let message = |days: u64, left: Duration| {
            request("app", Some(days), &[]).unwrap().check_validity(now + left, now).map_err(|error| error.to_string())
        };
        let left = Duration::days(20) + Duration::HOUR;
        assert_eq!(message(20, left), Ok(()));
        assert_eq!(message(400, left).unwrap_err(), "days is 400, but the CA expires in 20 days; use at most 20");
        assert!(message(1, Duration::HOUR).unwrap_err().contains("0 days; leave out days"));
        assert_eq!(request("app", None, &[]).unwrap().check_validity(now + left, now), Ok(()));
    }
}
