//! Reads where the API server is and what proves the identity of Portcullis: the service account of the pod, a kubeconfig, or
//! the keys of the configuration.

use std::env;
use std::error::Error;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use hyper::Uri;
use kube::Config;
use kube::config::{AuthInfo, Cluster, KubeConfigOptions, Kubeconfig};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use zeroize::Zeroizing;

use crate::printable;
use crate::resolution::settings::{KubernetesSettings, Secret};

/// The configuration of a client, and the content of the files that it was made of.
pub(super) struct Credentials {
    pub(super) config: Config,
    content: Content,
}

/// Two are equal if their files have the same content.
impl PartialEq for Credentials {
    fn eq(&self, other: &Self) -> bool {
        self.content.0 == other.content.0
    }
}

/// Everything that was read, in the order of reading.
#[derive(Default)]
struct Content(Vec<Zeroizing<Vec<u8>>>);

impl Content {
    /// Reads a file of at most [`MAX_FILE`] bytes.
    fn file(&mut self, path: &Path) -> Result<&[u8], String> {
        let mut bytes = Zeroizing::new(Vec::new());
        let read = File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes));
        read.map_err(|error| format!("{}: {error}", path.display()))?;
        if u64::try_from(bytes.len()).is_ok_and(|length| length > MAX_FILE) {
            return Err(format!("{}: more than {MAX_FILE} bytes", path.display()));
        }
        self.0.push(bytes);
        Ok(self.0.last().map_or(&[][..], |bytes| bytes))
    }

    fn token(&mut self, secret: &Secret) -> Result<Zeroizing<String>, String> {
        match secret {
            Secret::File(path) => {
                let bytes = self.file(path)?;
                token(bytes).map_err(|error| format!("{}: {error}", path.display()))
            }
            Secret::Environment(name) => {
                let value = env::var(name).map_err(|_| format!("the variable {name} is not set"))?;
                self.0.push(Zeroizing::new(value.into_bytes()));
                let value = self.0.last().map_or(&[][..], |bytes| bytes);
                token(value).map_err(|error| format!("the variable {name}: {error}"))
            }
        }
    }

    fn roots(&mut self, path: &Path) -> Result<Vec<Vec<u8>>, String> {
        let certificates = CertificateDer::pem_slice_iter(self.file(path)?);
        let roots: Result<Vec<_>, _> = certificates.map(|root| root.map(|root| root.to_vec())).collect();
        let roots = roots.map_err(|error| format!("{}: {error}", path.display()))?;
        if roots.is_empty() {
            return Err(format!("{}: no certificate", path.display()));
        }
        Ok(roots)
    }
}

impl Credentials {
    /// # Errors
    /// When a file cannot be read or its content cannot be used, in words for an operator.
    pub(super) fn read(settings: &KubernetesSettings) -> Result<Self, String> {
        match settings {
            KubernetesSettings::InCluster => Self::in_cluster(SERVICE_ACCOUNT.as_ref(), |name| env::var(name).ok()),
            KubernetesSettings::Kubeconfig { file } => Self::kubeconfig(file),
            KubernetesSettings::Server { server, ca, token } => Self::server(server, ca.as_deref(), token.as_ref()),
        }
    }

    fn in_cluster(directory: &Path, variable: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let needed =
            |name| variable(name).ok_or_else(|| format!("{name} is not set; set kubeconfig outside a cluster"));
        let (host, port) = (needed("KUBERNETES_SERVICE_HOST")?, needed("KUBERNETES_SERVICE_PORT")?);
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        let (ca, token) = (directory.join("ca.crt"), Secret::File(directory.join("token")));
        Self::server(&format!("https://{host}:{port}"), Some(&ca), Some(&token))
    }

    fn server(server: &str, ca: Option<&Path>, token: Option<&Secret>) -> Result<Self, String> {
        let mut content = Content::default();
        let mut config = Config::new(https(server)?);
        config.root_cert = ca.map(|ca| content.roots(ca)).transpose()?;
        config.auth_info.token =
            token.map(|token| content.token(token)).transpose()?.map(|token| (*token).clone().into());
        Ok(Self { config, content })
    }

    /// The current context of a kubeconfig.
    fn kubeconfig(file: &Path) -> Result<Self, String> {
        let within = |error: String| format!("{}: {error}", file.display());
        let mut content = Content::default();
        // Before kube reads the file, its size is checked here.
        content.file(file)?;
        let kubeconfig = Kubeconfig::read_from(file).map_err(|error| within(printable::field(with_source(&error))))?;
        let (cluster, user) = current(&kubeconfig).map_err(within)?;
        reject_unsupported(&cluster, &user).map_err(within)?;
        for path in [&cluster.certificate_authority, &user.client_certificate, &user.client_key].into_iter().flatten() {
            content.file(path.as_ref())?;
        }
        let mut config = kubeconfig_config(kubeconfig).map_err(within)?;
        https(&config.cluster_url.to_string()).map_err(within)?;
        // kube has taken it from HTTPS_PROXY. The client uses no proxy.
        config.proxy_url = None;
        if config.auth_info.token.is_none()
            && let Some(path) = config.auth_info.token_file.take()
        {
            let token = content.token(&Secret::File(PathBuf::from(path)))?;
            config.auth_info.token = Some((*token).clone().into());
        }
        Ok(Self { config, content })
    }
}

/// The cluster and the user of the current context.
fn current(kubeconfig: &Kubeconfig) -> Result<(Cluster, AuthInfo), String> {
    let name = kubeconfig.current_context.as_deref().filter(|name| !name.is_empty());
    let name = name.ok_or("no current-context; choose one with kubectl config use-context")?;
    let context = kubeconfig.contexts.iter().find(|context| context.name == name);
    let context = context.and_then(|context| context.context.as_ref());
    let context = context.ok_or_else(|| format!("the context {} does not exist", printable::quoted(name)))?;
    let cluster = kubeconfig.clusters.iter().find(|cluster| cluster.name == context.cluster);
    let cluster = cluster.and_then(|cluster| cluster.cluster.clone());
    let cluster =
        cluster.ok_or_else(|| format!("the cluster {} does not exist", printable::quoted(&context.cluster)))?;
    let user = kubeconfig.auth_infos.iter().find(|user| Some(&user.name) == context.user.as_ref());
    Ok((cluster, user.and_then(|user| user.auth_info.clone()).unwrap_or_default()))
}

fn reject_unsupported(cluster: &Cluster, user: &AuthInfo) -> Result<(), String> {
    let instead = "use a token, a tokenFile or a client certificate";
    if user.exec.is_some() {
        return Err(format!("the user has an exec plugin, which Portcullis does not run; {instead}"));
    }
    if user.auth_provider.is_some() {
        return Err(format!("the user has an auth-provider, which Portcullis does not support; {instead}"));
    }
    if user.username.is_some() || user.password.is_some() {
        return Err(format!("the user has a password, which Kubernetes does not support; {instead}"));
    }
    if cluster.insecure_skip_tls_verify == Some(true) {
        return Err("insecure-skip-tls-verify is not supported; set certificate-authority".to_owned());
    }
    if cluster.proxy_url.is_some() {
        return Err("proxy-url is not supported; name a server that is reachable directly".to_owned());
    }
    Ok(())
}

fn kubeconfig_config(kubeconfig: Kubeconfig) -> Result<Config, String> {
    // The function of kube is async without need: it never waits.
    let options = KubeConfigOptions::default();
    let read = Config::from_custom_kubeconfig(kubeconfig, &options);
    let read = futures_util::FutureExt::now_or_never(read).ok_or("cannot be read")?;
    read.map_err(|error| printable::field(with_source(&error)))
}

/// kube's errors name what failed, and their source why.
fn with_source(error: &dyn Error) -> String {
    match error.source().map(ToString::to_string) {
        Some(source) if !error.to_string().contains(&source) => format!("{error}: {source}"),
        _ => error.to_string(),
    }
}

fn https(server: &str) -> Result<Uri, String> {
    let url: Uri = server.parse().map_err(|error| format!("{}: {error}", printable::quoted(server)))?;
    if url.scheme_str() != Some("https") || url.host().is_none_or(str::is_empty) {
        return Err(format!("{}: not an https URL; the token is sent over TLS only", printable::quoted(server)));
    }
    Ok(url)
}

/// A token without the line feed at its end.
fn token(bytes: &[u8]) -> Result<Zeroizing<String>, String> {
    let text = str::from_utf8(bytes).map_err(|_| "not a token: not UTF-8")?.trim();
    if text.is_empty() {
        return Err("no token".to_owned());
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("not a token: it has spaces or unprintable characters".to_owned());
    }
    Ok(Zeroizing::new(text.to_owned()))
}

/// Where Kubernetes mounts the service account of a pod.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Longer than a kubeconfig with the certificates of many clusters.
const MAX_FILE: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use std::fs;

    use rcgen::{CertificateParams, KeyPair};
    use tempfile::TempDir;

    use super::*;

    fn certificate() -> (String, String) {
        let key = KeyPair::generate().unwrap();
        (CertificateParams::default().self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    fn directory(files: &[(&str, &str)]) -> TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(directory.path().join(name), text).unwrap();
        }
        directory
    }

    fn error(read: Result<Credentials, String>) -> String {
        read.err().unwrap()
    }

    #[test]
    fn service_account_of_the_pod_is_used() {
        let (ca, _) = certificate();
        let directory = directory(&[("ca.crt", &ca), ("token", "abc.def\n")]);
        let variable = |host: &'static str| {
            move |name: &str| match name {
                "KUBERNETES_SERVICE_HOST" => Some(host.to_owned()),
                "KUBERNETES_SERVICE_PORT" => Some("6443".to_owned()),
                _ => None,
            }
        };
        for (host, url) in [("10.96.0.1", "https://10.96.0.1:6443/"), ("fd00::1", "https://[fd00::1]:6443/")] {
            let read = Credentials::in_cluster(directory.path(), variable(host)).unwrap();
            assert_eq!(read.config.cluster_url.to_string(), url);
            assert!(
                read.config.auth_info.token.is_some() && read.config.root_cert.is_some_and(|roots| roots.len() == 1)
            );
        }
        let outside = error(Credentials::in_cluster(directory.path(), |_| None));
        assert_eq!(outside, "KUBERNETES_SERVICE_HOST is not set; set kubeconfig outside a cluster");
    }

    #[test]
    fn changed_file_changes_the_credentials() {
        let ((ca, _), (other, _)) = (certificate(), certificate());
        let directory = directory(&[("ca", &ca), ("token", "a")]);
        let (ca_file, token) = (directory.path().join("ca"), Secret::File(directory.path().join("token")));
        let read = || Credentials::server("https://a:1", Some(&ca_file), Some(&token)).unwrap();
        let before = read();
        assert!(before == read());
        fs::write(directory.path().join("token"), "b").unwrap();
        let after = read();
        assert!(before != after);
        fs::write(&ca_file, other).unwrap();
        assert!(after != read());
    }

    #[test]
    fn unusable_file_is_an_error_that_names_it() {
        let (ca, key) = certificate();
        let large = "x".repeat((1 << 20) + 1);
        let half = &ca[..ca.len() / 2];
        let files =
            [("ca", ca.as_str()), ("key", &key), ("half", half), ("empty", "\n"), ("two", "a b"), ("large", &large)];
        let directory = directory(&files);
        let path = |name: &str| directory.path().join(name);
        for (ca, token, text) in [
            ("key", "ca", "key: no certificate"),
            ("half", "ca", "half: "),
            ("missing", "ca", "missing: No such file"),
            ("large", "ca", "large: more than 1048576 bytes"),
            ("ca", "empty", "empty: no token"),
            ("ca", "two", "two: not a token: it has spaces"),
            ("ca", "large", "large: more than"),
        ] {
            let read = Credentials::server("https://a", Some(&path(ca)), Some(&Secret::File(path(token))));
            let error = error(read);
            assert!(error.contains(text), "{error}");
        }
        let unset = Secret::Environment("PORTCULLIS_TEST_UNSET".to_owned());
        let error = error(Credentials::server("https://a", None, Some(&unset)));
        assert_eq!(error, "the variable PORTCULLIS_TEST_UNSET is not set");
    }

    #[test]
    fn server_without_tls_is_rejected() {
        for server in ["http://a", "a", "a:6443", "https://", "", "ftp://a", "https://a b"] {
            assert!(Credentials::server(server, None, None).is_err(), "{server}");
        }
        assert!(Credentials::server("https://a/k8s/clusters/c-1", None, None).is_ok());
    }

    fn kubeconfig(cluster: &str, user: &str) -> Result<Credentials, String> {
        let (ca, key) = certificate();
        let text = format!(
            "current-context: x\nclusters: [{{ name: c, cluster: {{ {cluster} }} }}]\n\
             users: [{{ name: u, user: {{ {user} }} }}]\ncontexts: [{{ name: x, context: {{ cluster: c, user: u }} }}]\n"
        );
        let directory = directory(&[("config", &text), ("ca.crt", &ca), ("u.crt", &ca), ("u.key", &key), ("t", "abc")]);
        Credentials::kubeconfig(&directory.path().join("config"))
    }

    #[test]
    fn kubeconfig_has_a_token_or_a_client_certificate() {
        let server = "server: 'https://a:6443', certificate-authority: ca.crt, tls-server-name: b";
        let read = kubeconfig(server, "tokenFile: t").unwrap();
        assert!(read.config.auth_info.token.is_some() && read.config.auth_info.token_file.is_none());
        assert_eq!((read.config.tls_server_name.as_deref(), read.content.0.len()), (Some("b"), 3));
        assert!(kubeconfig(server, "token: abc").is_ok());
        let read = kubeconfig(server, "client-certificate: u.crt, client-key: u.key").unwrap();
        assert_eq!(read.content.0.len(), 4, "the files count as content");
    }

    #[test]
    fn unsupported_kubeconfig_is_an_error() {
        let server = "server: 'https://a:6443'";
        for (cluster, user, text) in [
            (server, "exec: { apiVersion: client.authentication.k8s.io/v1, command: touch }", "exec plugin"),
            (server, "auth-provider: { name: gcp, config: {} }", "auth-provider"),
            (server, "username: a, password: b", "password"),
            (server, "tokenFile: missing", "missing: No such file"),
            (server, "client-certificate: missing", "missing: No such file"),
            ("server: 'http://a'", "token: abc", "not an https URL"),
            ("server: 'https://a', insecure-skip-tls-verify: true", "token: abc", "insecure-skip-tls-verify"),
            ("server: 'https://a', proxy-url: 'http://b'", "token: abc", "proxy-url"),
            ("certificate-authority: ca.crt", "token: abc", "config: "),
        ] {
            let error = error(kubeconfig(cluster, user));
            assert!(error.contains(text), "{error}");
        }
        let garbage = directory(&[("a", "{{{{"), ("b", ""), ("c", "current-context: x\n"), ("d", "- 1\n")]);
        for name in ["a", "b", "c", "d", "missing"] {
            let error = error(Credentials::kubeconfig(&garbage.path().join(name)));
            assert!(error.contains(&format!("/{name}: ")), "{error}");
        }
    }
}
