//! The side that is connected to.

use std::io;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, ServerConfig, SignatureScheme,
};

use super::{ALPN, Certificates, ServiceId};

/// The configuration for a connection that begins now: the client must show a certificate of our trust domain. Which
/// service it is, [`ServiceId::of_certificate`] of its first certificate says after the handshake.
///
/// # Errors
/// None in practice: what could be wrong was found when the files were read.
pub fn server_config(certificates: &Certificates) -> Result<ServerConfig, rustls::Error> {
    let loaded = certificates.current();
    let provider = Arc::clone(certificates.provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::clone(&loaded.roots), Arc::clone(&provider))
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
    let verifier = OfTrustDomain { inner: verifier, trust_domain: certificates.trust_domain().to_owned() };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::clone(&loaded.identity) as _);
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

#[derive(Debug)]
struct OfTrustDomain {
    inner: Arc<dyn ClientCertVerifier>,
    trust_domain: String,
}

impl ClientCertVerifier for OfTrustDomain {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now)?;
        let problem = match ServiceId::of_certificate(end_entity) {
            Ok(id) if id.trust_domain() == self.trust_domain => return Ok(verified),
            Ok(id) => format!("the client is {id}, of another trust domain than {}", self.trust_domain),
            Err(error) => format!("the client's certificate: {error}"),
        };
        let problem = OtherError(Arc::new(io::Error::other(problem)));
        Err(rustls::Error::InvalidCertificate(CertificateError::Other(problem)))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
