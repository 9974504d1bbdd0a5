//! The side that connects.

use std::io;
use std::sync::Arc;

use gatehouse_core::{Error, Result};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme,
};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::{ALPN, Certificates, ServiceId};
use crate::channel::{Connector, Transport};

/// How to connect to one service: as whom, and who must answer. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ClientTls {
    certificates: Certificates,
    server: ServiceId,
}

impl ClientTls {
    /// Connections to `service`, whose certificate must name it.
    ///
    /// # Errors
    /// `INVALID_SERVICE` if `service` can't be the name of one.
    pub fn to(certificates: &Certificates, service: &str) -> Result<Self> {
        let server = ServiceId::new(certificates.trust_domain(), service)
            .map_err(|error| Error::invalid_argument("INVALID_SERVICE", error.to_string()))?;
        Ok(Self { certificates: certificates.clone(), server })
    }

    /// Secures the connections of a [`Channel`](crate::Channel).
    #[must_use]
    pub fn connector(&self) -> Connector {
        let tls = self.clone();
        Connector::tls(move |stream, host| {
            let tls = tls.clone();
            Box::pin(async move { Ok(Box::new(tls.secure(stream, host).await?) as Box<dyn Transport>) })
        })
    }

    /// The configuration for a connection that begins now.
    fn config(&self) -> std::result::Result<ClientConfig, rustls::Error> {
        let loaded = self.certificates.current();
        let provider = Arc::clone(self.certificates.provider());
        let verifier = Arc::new(IsService {
            roots: Arc::clone(&loaded.roots),
            server: self.server.clone(),
            provider: Arc::clone(&provider),
        });
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(Arc::clone(&loaded.identity) as _);
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        Ok(config)
    }

    /// Makes a fresh connection to `host` one to the service, over which HTTP/2 can be spoken. Each call takes the
    /// certificates as they are now. The caller bounds the time.
    ///
    /// # Errors
    /// The handshake failed, or whoever answered is not the service.
    pub async fn secure(&self, stream: TcpStream, host: String) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(host).map_err(io::Error::other)?;
        let config = self.config().map_err(io::Error::other)?;
        let stream = tokio_rustls::TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
            .inspect_err(|error| tracing::warn!(server = %self.server, %error, "no TLS connection"))?;
        if stream.get_ref().1.alpn_protocol() != Some(ALPN) {
            return Err(io::Error::other("the other side does not speak HTTP/2"));
        }
        Ok(stream)
    }
}

/// Believes a certificate that an authority vouches for and that names one service. Addresses do not matter: replicas
/// come and go with theirs.
#[derive(Debug)]
struct IsService {
    roots: Arc<RootCertStore>,
    server: ServiceId,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for IsService {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        let algorithms = self.provider.signature_verification_algorithms.all;
        let certificate = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&certificate, &self.roots, intermediates, now, algorithms)?;
        let problem = match ServiceId::of_certificate(end_entity) {
            Ok(found) if found == self.server => return Ok(ServerCertVerified::assertion()),
            Ok(found) => format!("the server is {found}, not {}", self.server),
            Err(error) => format!("the server's certificate: {error}"),
        };
        let problem = OtherError(Arc::new(io::Error::other(problem)));
        Err(rustls::Error::InvalidCertificate(CertificateError::Other(problem)))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
