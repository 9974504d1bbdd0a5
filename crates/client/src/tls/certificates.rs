//! The certificate, key and authorities of one process, read again when the files change.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use gatehouse_core::{Clock, Error, Result, Timestamp, shown_path};
use rustls::RootCertStore;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{ServiceId, ServiceIdError, Watched};

/// How long before its end a certificate that nobody renewed is warned of. It is renewed a month before, by
/// `gatehouse certs` at least.
pub const WARN_BEFORE: Duration = Duration::from_hours(21 * 24);

/// Where the PEM files are, and whom to believe.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The service's certificate, then those between it and the authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The certificates of the authorities; while one is replaced, both.
    pub authorities: PathBuf,
    /// Only certificates of this trust domain are believed.
    pub trust_domain: String,
}

/// What the files held when they were last good.
#[derive(Debug)]
pub struct Loaded {
    /// What the certificate calls this process.
    pub id: ServiceId,
    /// When the certificate ends.
    pub ends_at: Timestamp,
    /// Certificate and key, for either side of a connection.
    pub(crate) identity: Arc<SingleCertAndKey>,
    /// Whether it may be shown to those who connect, too: its extended key usage allows that.
    pub is_server: bool,
    /// Who may vouch for the other side.
    pub roots: Arc<RootCertStore>,
}

/// The certificates of this process. Cheap to clone; clones share them. Renewed files are taken up by the next
/// connection that begins at least a second later; files that can't be used keep the last good ones, which is logged.
#[derive(Clone)]
pub struct Certificates(Arc<Shared>);

struct Shared {
    files: TlsFiles,
    provider: Arc<CryptoProvider>,
    loaded: RwLock<Arc<Loaded>>,
    watched: Watched<3>,
}

impl Certificates {
    /// Reads `files`.
    ///
    /// # Errors
    /// `TLS_FILES`, with what is wrong: a file can't be read, key and certificate are not a pair, the certificate has
    /// ended, names no service of the trust domain, or none of the authorities vouches for it.
    pub fn load(files: TlsFiles) -> Result<Self> {
        let provider = provider();
        let watched = Watched::new([&files.certificate, &files.key, &files.authorities].map(Clone::clone));
        let loaded = read(&files, &provider)?;
        say(&loaded);
        Ok(Self(Arc::new(Shared { files, provider, loaded: RwLock::new(Arc::new(loaded)), watched })))
    }

    /// What is in force now; looks at the files if nobody did in the last second.
    #[must_use]
    pub fn current(&self) -> Arc<Loaded> {
        self.0.watched.look(|| self.take_up());
        self.loaded()
    }

    /// As [`Certificates::current`], but looks at the files in any case.
    #[must_use]
    pub fn reload(&self) -> Arc<Loaded> {
        self.0.watched.look_now(|| self.take_up());
        self.loaded()
    }

    fn loaded(&self) -> Arc<Loaded> {
        Arc::clone(&self.0.loaded.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Who this process is.
    #[must_use]
    pub fn id(&self) -> ServiceId {
        self.loaded().id.clone()
    }

    /// Whom to believe.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.0.files.trust_domain
    }

    /// The cryptography in use.
    pub(crate) fn provider(&self) -> &Arc<CryptoProvider> {
        &self.0.provider
    }

    /// Whether there is nothing more to take up until the files change again.
    fn take_up(&self) -> bool {
        let before = self.loaded();
        match read(&self.0.files, &self.0.provider) {
            Ok(loaded) if loaded.id == before.id => {
                say(&loaded);
                *self.0.loaded.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(loaded);
                true
            }
            Ok(loaded) => {
                tracing::error!(
                    id = %before.id, found = %loaded.id,
                    "the certificate was replaced by one of another service; going on with the last good one"
                );
                true
            }
            // A certificate and its key are renewed one after the other: the next look finds both.
            Err(error) => {
                tracing::warn!(
                    problem = error.message(),
                    "renewed TLS files can't be used; going on with the last good ones"
                );
                false
            }
        }
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Certificates({})", self.id())
    }
}

/// When a certificate ends.
///
/// # Errors
/// [`ServiceIdError::Unreadable`].
pub fn ends_at(certificate: &CertificateDer<'_>) -> std::result::Result<Timestamp, ServiceIdError> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| ServiceIdError::Unreadable)?;
    Ok(Timestamp::from_seconds(parsed.validity().not_after.timestamp()))
}

fn say(loaded: &Loaded) {
    let now = Clock::system().now();
    tracing::info!(id = %loaded.id, ends_at = %loaded.ends_at, "TLS between services: the certificate was read");
    if loaded.ends_at.since(now) < WARN_BEFORE {
        tracing::warn!(id = %loaded.id, ends_at = %loaded.ends_at, "the TLS certificate ends soon: renew it");
    }
}

/// ring, as everywhere in Gatehouse, whatever the process installed as its default.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn wrong(path: &Path, problem: impl fmt::Display) -> Error {
    Error::failed_precondition("TLS_FILES", format!("{} can't be used: {problem}", shown_path(path)))
}

fn read(files: &TlsFiles, provider: &Arc<CryptoProvider>) -> Result<Loaded> {
    let chain = certificates(&files.certificate)?;
    let leaf = chain.first().ok_or_else(|| wrong(&files.certificate, "it holds no certificate"))?;
    let key = PrivateKeyDer::from_pem_slice(&contents(&files.key)?)
        .map_err(|_| wrong(&files.key, "it holds no private key in PEM"))?;
    let mut roots = RootCertStore::empty();
    for authority in certificates(&files.authorities)? {
        roots.add(authority).map_err(|error| wrong(&files.authorities, error))?;
    }
    let ends_at = ends_at(leaf).map_err(|error| wrong(&files.certificate, error))?;
    let id = ServiceId::of_certificate(leaf).map_err(|error| wrong(&files.certificate, error))?;
    if id.trust_domain() != files.trust_domain {
        let problem = format!("it is {id}, and this process is in the trust domain {}", files.trust_domain);
        return Err(wrong(&files.certificate, problem));
    }
    // Peers would refuse it: better said here than by all of them.
    let roots = Arc::new(roots);
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(provider))
        .build()
        .map_err(|error| wrong(&files.authorities, error))?;
    verifier.verify_client_cert(leaf, &chain[1..], UnixTime::now()).map_err(|error| {
        let problem = match error {
            rustls::Error::InvalidCertificate(
                rustls::CertificateError::Expired | rustls::CertificateError::ExpiredContext { .. },
            ) => format!("it ended at {ends_at}; renew it"),
            rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer) => {
                format!("no certificate in {} vouches for it", shown_path(&files.authorities))
            }
            other => other.to_string(),
        };
        wrong(&files.certificate, problem)
    })?;
    let is_server = ParsedCertificate::try_from(leaf).is_ok_and(|leaf| {
        let algorithms = provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&leaf, &roots, &chain[1..], UnixTime::now(), algorithms)
            .is_ok()
    });
    let certified = CertifiedKey::from_der(chain, key, provider)
        .map_err(|_| wrong(&files.key, format!("it is not the key of {}", files.certificate.display())))?;
    let identity = Arc::new(SingleCertAndKey::from(certified));
    Ok(Loaded { id, ends_at, identity, is_server, roots })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let found = CertificateDer::pem_slice_iter(&contents(path)?)
        .collect::<std::result::Result<Vec<_>, _>>()
        // The parser repeats the line that it could not read, which may be a key.
        .map_err(|_| wrong(path, "it is not sound PEM"))?;
    if found.is_empty() { Err(wrong(path, "it holds no certificate in PEM")) } else { Ok(found) }
}

/// At most 1 MiB: a wrong path must not fill the memory.
fn contents(path: &Path) -> Result<Vec<u8>> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(1024 * 1024 + 1).read_to_end(&mut bytes))
        .and_then(|read| if read <= 1024 * 1024 { Ok(()) } else { Err(io::Error::other("it is too large")) })
        .map_err(|error| wrong(path, error))?;
    Ok(bytes)
}
