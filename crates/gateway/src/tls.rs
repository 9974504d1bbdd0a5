//! HTTPS at the edge (requirements C4, T6, B18): TLS 1.2 at least, and a certificate made on first start in dev.

use std::any::Any;
use std::fs;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use actix_tls::accept::rustls_0_23::TlsStream;
use actix_web::rt::net::TcpStream;
use gatehouse_client::tls::Watched;
use gatehouse_core::{Error, Result, Timestamp, shown_path};
use rustls::ServerConfig;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use socket2::SockRef;

/// A certificate chain and its key, and where they were read.
#[derive(Debug)]
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    files: Watched<2>,
}

/// What is shown to whoever connects now: renewed files are taken up, those that can't be used change nothing.
#[derive(Debug)]
pub(crate) struct Shown {
    files: Watched<2>,
    current: RwLock<Arc<CertifiedKey>>,
}

impl Shown {
    /// Whether there is nothing more to take up until the files change again.
    fn take_up(&self) -> bool {
        let [certificate, key] = self.files.files();
        match Identity::from_files(certificate, key).and_then(|renewed| renewed.certified()) {
            Ok(renewed) => {
                tracing::info!("the certificate for HTTPS was read again");
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(renewed);
                true
            }
            // A certificate and its key are renewed one after the other: the next look finds both.
            Err(error) => {
                tracing::warn!(
                    problem = error.message(),
                    "the renewed certificate for HTTPS can't be used; going on with the last good one"
                );
                false
            }
        }
    }

    fn current(&self) -> Arc<CertifiedKey> {
        self.files.look(|| self.take_up());
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// When the certificate ends; one that can't be read has ended.
    pub(crate) fn ends_at(&self) -> Timestamp {
        let end = self.current().cert.first().and_then(|leaf| gatehouse_client::tls::ends_at(leaf).ok());
        end.unwrap_or(Timestamp::from_seconds(0))
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

impl Identity {
    /// Reads PEM files.
    ///
    /// # Errors
    /// `TLS_FILES` if one can't be read or holds nothing of its kind.
    pub fn from_files(certificate: &Path, key: &Path) -> Result<Self> {
        let wrong = |path: &Path, error: pem::Error| {
            Error::failed_precondition(
                "TLS_FILES",
                format!("{} can't be used for HTTPS: {}", shown_path(path), in_plain_words(&error)),
            )
        };
        let files = Watched::new([certificate.to_owned(), key.to_owned()]);
        let chain = CertificateDer::pem_file_iter(certificate)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| wrong(certificate, error))?;
        if chain.is_empty() {
            return Err(wrong(certificate, pem::Error::NoItemsFound));
        }
        let key_der = PrivateKeyDer::from_pem_file(key).map_err(|error| wrong(key, error))?;
        Ok(Self { chain, key: key_der, files })
    }

    /// The development certificate in `folder`, for localhost; made there on first use, its key readable by the
    /// owner only, and made anew if what is there can't be used. Never for anything but dev: nobody vouches for it.
    ///
    /// # Errors
    /// `TLS_FILES` if the folder can't be written.
    pub fn development(folder: &Path) -> Result<Self> {
        let (certificate, key) = (folder.join("localhost.pem"), folder.join("localhost-key.pem"));
        let usable = |identity: Self| identity.certified().map(|_| identity);
        if certificate.exists() || key.exists() {
            match Self::from_files(&certificate, &key).and_then(usable) {
                Ok(identity) => return Ok(identity),
                Err(error) => tracing::warn!(
                    problem = error.message(),
                    "the development certificate can't be used and is made anew; what trusts it has to trust the new one"
                ),
            }
        }
        let failed = |error: String| {
            Error::failed_precondition(
                "TLS_FILES",
                format!("no development certificate could be made in {}: {error}", folder.display()),
            )
        };
        let names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
        let made = rcgen::generate_simple_self_signed(names).map_err(|error| failed(error.to_string()))?;
        let write = || {
            fs::create_dir_all(folder)?;
            write_whole(&key, &made.signing_key.serialize_pem(), 0o600)?;
            write_whole(&certificate, &made.cert.pem(), 0o644)
        };
        write().map_err(|error| failed(error.to_string()))?;
        Self::from_files(&certificate, &key)
    }

    fn certified(&self) -> Result<CertifiedKey> {
        let provider = rustls::crypto::ring::default_provider();
        CertifiedKey::from_der(self.chain.clone(), self.key.clone_key(), &provider).map_err(|error| {
            Error::failed_precondition("TLS_FILES", format!("the certificate and the key don't fit: {error}"))
        })
    }

    pub(crate) fn into_server_config(self) -> Result<(ServerConfig, Arc<Shown>)> {
        let current = RwLock::new(Arc::new(self.certified()?));
        let shown = Arc::new(Shown { files: self.files, current });
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(Error::internal)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&shown) as _);
        Ok((config, shown))
    }
}

/// A parser's words without the line that it could not read, which may be the key.
fn in_plain_words(error: &pem::Error) -> String {
    match error {
        pem::Error::Io(error) => error.to_string(),
        pem::Error::NoItemsFound => "it holds nothing of its kind in PEM".to_owned(),
        _ => "it is not sound PEM".to_owned(),
    }
}

/// Writes a file that is there whole or not at all, whenever the process or the machine ends.
fn write_whole(path: &Path, text: &str, mode: u32) -> std::io::Result<()> {
    let unfinished = path.with_extension("pem.new");
    // One that was left over may be readable by others.
    if let Err(error) = fs::remove_file(&unfinished)
        && error.kind() != ErrorKind::NotFound
    {
        return Err(error);
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&unfinished)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&unfinished, path)
}

/// Has the kernel end a connection whose peer takes nothing for `stuck_after`: no timer of ours runs while the
/// socket is full.
pub(crate) fn bound_stuck_writes(connection: &dyn Any, stuck_after: Duration) {
    let socket = connection
        .downcast_ref::<TcpStream>()
        .or_else(|| connection.downcast_ref::<TlsStream<TcpStream>>().map(|stream| stream.get_ref().0));
    if let Some(socket) = socket
        && let Err(error) = SockRef::from(socket).set_tcp_user_timeout(Some(stuck_after))
    {
        tracing::debug!(%error, "a connection goes without a bound on stuck writes");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_development_certificate_is_made_once_and_kept_private() {
        let folder = tempfile::tempdir().expect("a folder");
        let first = Identity::development(folder.path()).expect("made");
        let second = Identity::development(folder.path()).expect("read");
        assert_eq!(first.chain, second.chain);
        let mode = fs::metadata(folder.path().join("localhost-key.pem")).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        second.into_server_config().expect("usable");
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 2, "nothing is left over");
    }

    /// As a process that was killed while it made them leaves the files.
    #[test]
    fn a_development_certificate_that_cant_be_used_is_made_anew() {
        let folder = tempfile::tempdir().expect("a folder");
        let (certificate, key) =
            (folder.path().join("localhost.pem"), folder.path().join("localhost-key.pem"));
        let other = tempfile::tempdir().expect("a folder");
        Identity::development(other.path()).expect("made");
        let spoil: [&dyn Fn(); 5] = [
            &|| fs::write(&certificate, "").expect("written"),
            &|| fs::write(&key, "nonsense").expect("written"),
            &|| fs::remove_file(&certificate).expect("removed"),
            // Each is whole, but they are not a pair.
            &|| fs::rename(other.path().join("localhost-key.pem"), &key).expect("moved"),
            &|| fs::write(key.with_extension("pem.new"), "half").expect("written"),
        ];
        for (number, spoil) in spoil.iter().enumerate() {
            Identity::development(folder.path()).expect("made");
            spoil();
            let anew = Identity::development(folder.path());
            anew.and_then(Identity::into_server_config).unwrap_or_else(|error| panic!("{number}: {error:?}"));
        }
        let mode = fs::metadata(&key).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
