//! Reads the files of a listener or of `[admin]`, and records every problem and warning.

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use time::OffsetDateTime;

use crate::config::files::{Files, Location, PathKind, is_in_volume};
use crate::config::problem::Problem;
use crate::config::{CertificateFiles, SourcedFile, SourcedPem};
use crate::identity::client_verifier::ClientVerifier;
use crate::policy::builder::Certificates;
use crate::timestamp;
use crate::x509::certificate::Certificate;
use crate::x509::chain::check::ShownTo;
use crate::x509::crl::{Crl, KnownCrls};
use crate::x509::encrypted_key::{EncryptedKeyError, Passphrase};
use crate::x509::error::BuildError;
use crate::x509::expiry::{days_left, expiry_milestone};
use crate::x509::key_pair::CertifiedKeyPair;
use crate::x509::pem;
use crate::x509::pem::{PemError, StoredKey};

/// Reads files, and records problems and warnings under the name of their owner.
pub(crate) struct Reader<'a> {
    /// Such as `listener cache` or `admin`.
    pub(crate) owner: String,
    pub(crate) files: &'a mut Files,
    pub(crate) problems: &'a mut Vec<Problem>,
    pub(crate) warnings: &'a mut Vec<String>,
    /// The CRLs of the previous policy, and those that other listeners have read.
    pub(crate) known_lists: &'a mut KnownCrls,
}

impl Reader<'_> {
    pub(crate) fn warn_about_readers(&mut self, what: &str, location: &Location) {
        if self.files.is_open_to_others(location) {
            // File modes in a volume cannot be changed.
            let in_volume = matches!(location, Location::File(path) if is_in_volume(path));
            if in_volume {
                self.warn(format_args!(
                    "every user in the pod can read the {what} {location}; set defaultMode: 0400 on the volume of the Secret \
                     (0440 with fsGroup)"
                ));
            } else {
                self.warn(format_args!("group or others can read the {what} {location}; run: chmod 600 {location}"));
            }
        }
    }

    /// Returns the files that match a pattern.
    pub(crate) fn matching(&mut self, pattern: &SourcedFile) -> Option<Vec<SourcedFile>> {
        let paths = self.files.matching(&pattern.path).map_err(|error| self.problems.push(pattern.problem(error)));
        Some(paths.ok()?.into_iter().map(|path| SourcedFile { path, ..pattern.clone() }).collect())
    }

    /// Returns the files of a path that may be a directory, and how it names them.
    pub(crate) fn named(&mut self, named: &SourcedFile) -> Option<(PathKind, Vec<SourcedFile>)> {
        let found = self.files.named(&named.path).map_err(|error| self.problems.push(named.problem(error)));
        let (kind, paths) = found.ok()?;
        Some((kind, paths.into_iter().map(|path| SourcedFile { path, ..named.clone() }).collect()))
    }

    pub(crate) fn parse<T, E: std::fmt::Display>(
        &mut self,
        file: &SourcedFile,
        parse: impl FnOnce(&[u8]) -> Result<T, E>,
    ) -> Option<T> {
        let bytes = self.files.read(&file.path).map_err(|error| self.problems.push(file.unreadable(&error))).ok()?;
        parse(&bytes).map_err(|error| self.problems.push(file.problem(error))).ok()
    }

    pub(crate) fn pem<T>(&mut self, text: &SourcedPem, parse: fn(&[u8]) -> Result<T, PemError>) -> Option<T> {
        let bytes =
            self.files.read(&text.location).map_err(|error| self.problems.push(text.unreadable(&error))).ok()?;
        parse(&bytes).map_err(|error| self.problems.push(text.problem(error))).ok()
    }

    pub(crate) fn warn_about_dates(&mut self, what: &str, certificate: &Certificate) {
        let now = OffsetDateTime::now_utc();
        let Certificate { subject, not_before, not_after, .. } = certificate;
        if now > *not_after {
            self.warn(format_args!("the {what} {subject} expired at {}; replace it", timestamp::seconds(*not_after)));
        } else if now < *not_before {
            self.warn(format_args!(
                "the {what} {subject} is not valid before {}; check the clock, or use a valid one",
                timestamp::seconds(*not_before)
            ));
        } else if expiry_milestone(*not_after, now).is_some() {
            let (left, end) = (days_left(*not_after, now), timestamp::seconds(*not_after));
            let days = if left == 1 { "day" } else { "days" };
            self.warn(format_args!("the {what} {subject} expires in {left} {days}, at {end}; replace it"));
        }
    }

    pub(crate) fn warn(&mut self, warning: impl std::fmt::Display) {
        self.warnings.push(format!("{}: {warning}", self.owner));
    }

    pub(crate) fn certificate(&mut self, files: &CertificateFiles, shown_to: ShownTo) -> Option<CertifiedKeyPair> {
        let chain = self.pem(&files.cert, pem::certificates);
        let key = self.private_key(files);
        match CertifiedKeyPair::new(chain?, key?) {
            Ok(certificate) => {
                for issuer in certificate.chain().iter().skip(1).filter_map(|der| Certificate::parse(der).ok()) {
                    self.warn_about_dates("intermediate certificate", &issuer);
                }
                self.warn_about_chain(&files.cert, &certificate, shown_to);
                Some(certificate)
            }
            Err(error) => {
                let key = &files.key.location;
                self.problems.push(files.cert.problem(format_args!("with key {key}: {error}")));
                None
            }
        }
    }

    pub(crate) fn private_key(&mut self, files: &CertificateFiles) -> Option<PrivateKeyDer<'static>> {
        let CertificateFiles { cert: _, key, key_passphrase_file } = files;
        let stored = self.pem(key, pem::stored_key);
        self.warn_about_readers("key", &key.location);
        let Some(file) = key_passphrase_file else {
            return match stored? {
                StoredKey::Plain(key) => Some(key),
                StoredKey::Encrypted(_) => {
                    self.problems.push(key.problem(PASSPHRASE_NEEDED));
                    None
                }
            };
        };
        let passphrase = self.parse(file, Passphrase::from_file);
        self.warn_about_readers("passphrase", &Location::from(&file.path));
        match (stored?, passphrase?) {
            (StoredKey::Plain(plain), _) => {
                self.warn(format_args!("the key {} is not encrypted; remove key_passphrase_file", key.location));
                Some(plain)
            }
            (StoredKey::Encrypted(encrypted), passphrase) => {
                let problem = |error| match error {
                    EncryptedKeyError::WrongPassphrase => file.problem(format_args!(
                        "does not contain the passphrase of {} on its first line; replace that line",
                        key.location
                    )),
                    other => key.problem(other),
                };
                encrypted.decrypt(&passphrase).map_err(|error| self.problems.push(problem(error))).ok()
            }
        }
    }

    pub(crate) fn anchors(&mut self, file: &SourcedFile, ders: Vec<CertificateDer<'static>>) -> Option<Certificates> {
        let mut anchors = Vec::new();
        for (index, der) in ders.into_iter().enumerate() {
            let parsed = Certificate::parse(&der).map_err(BuildError::from);
            match parsed.and_then(|parsed| ClientVerifier::check_anchor(&der).map(|()| parsed)) {
                Ok(parsed) => {
                    if !parsed.may_issue() {
                        let subject = &parsed.subject;
                        self.warn(format_args!(
                            "the client CA certificate {subject} must not issue certificates, so it authenticates no client"
                        ));
                    }
                    self.warn_about_key("client CA certificate", &der, &parsed);
                    anchors.push((der, parsed));
                }
                Err(error) => {
                    self.problems.push(file.problem(format_args!("certificate {}: {error}", index + 1)));
                    return None;
                }
            }
        }
        Some(anchors)
    }

    /// Reads the CRLs of one file, and frees its bytes before the next file is read.
    pub(crate) fn revocation_lists(&mut self, file: &SourcedFile) -> Option<Vec<Crl>> {
        let bytes = self.files.read(&file.path).map_err(|error| self.problems.push(file.unreadable(&error))).ok()?;
        let parsed = Crl::parse_all_knowing(&bytes, self.known_lists);
        drop(bytes);
        self.files.release(&file.path);
        parsed.map_err(|error| self.problems.push(file.problem(error))).ok()
    }
}

const PASSPHRASE_NEEDED: &str = "holds an encrypted private key; \
                                 set key_passphrase_file to a file whose first line is the passphrase";
