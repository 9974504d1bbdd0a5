//! What a service is called in certificates: `spiffe://<trust domain>/<service>` (SPIFFE-ID, section 2).

use std::fmt;

use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// The name of one service in one trust domain.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServiceId {
    trust_domain: String,
    service: String,
}

/// Why a certificate or a text names no service.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServiceIdError {
    /// The certificate can't be read.
    #[error("it is no X.509 certificate")]
    Unreadable,
    /// It carries no URI among its alternative names.
    #[error(
        "it names no service: it has no URI such as spiffe://prod.gatehouse.internal/job among its alternative names"
    )]
    Missing,
    /// It carries more than one; SPIFFE allows exactly one.
    #[error("it names more than one service")]
    Several,
    /// The URI is of another form.
    #[error("{0:?} is not of the form spiffe://<trust domain>/<service>")]
    Malformed(String),
}

impl ServiceId {
    /// The service `service` of `trust_domain`.
    ///
    /// # Errors
    /// [`ServiceIdError::Malformed`] unless both are lower-case names as SPIFFE has them.
    pub fn new(trust_domain: &str, service: &str) -> Result<Self, ServiceIdError> {
        let id = Self { trust_domain: trust_domain.to_owned(), service: service.to_owned() };
        if is_trust_domain(trust_domain) && is_service(service) {
            Ok(id)
        } else {
            Err(ServiceIdError::Malformed(id.to_string()))
        }
    }

    /// The service that a leaf certificate names, which must have exactly one URI among its alternative names.
    /// Whether the certificate is to be believed is checked elsewhere.
    ///
    /// # Errors
    /// Any [`ServiceIdError`].
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Result<Self, ServiceIdError> {
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| ServiceIdError::Unreadable)?;
        let names = parsed.subject_alternative_name().map_err(|_| ServiceIdError::Unreadable)?;
        let mut uris =
            names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
                GeneralName::URI(uri) => Some(*uri),
                _ => None,
            });
        match (uris.next(), uris.next()) {
            (None, _) => Err(ServiceIdError::Missing),
            (Some(uri), None) => Self::parse(uri),
            (Some(_), Some(_)) => Err(ServiceIdError::Several),
        }
    }

    fn parse(uri: &str) -> Result<Self, ServiceIdError> {
        uri.strip_prefix("spiffe://")
            .and_then(|rest| rest.split_once('/'))
            .and_then(|(trust_domain, service)| Self::new(trust_domain, service).ok())
            .ok_or_else(|| {
                let shown = uri.chars().filter(|character| !character.is_control()).take(128).collect();
                ServiceIdError::Malformed(shown)
            })
    }

    /// Whose certificates believe each other.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// The service's name, which is also the name of its client at auth.
    #[must_use]
    pub fn service(&self) -> &str {
        &self.service
    }
}

impl fmt::Display for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/{}", self.trust_domain, self.service)
    }
}

/// Whether `text` can be a trust domain: lower-case letters, digits, `.`, `-` and `_`, at most 255 (SPIFFE-ID, 2.1).
#[must_use]
pub fn is_trust_domain(text: &str) -> bool {
    (1..=255).contains(&text.len()) && text.bytes().all(|byte| is_name_byte(byte) || byte == b'.')
}

/// Whether `text` can be a service: one path segment of lower-case letters, digits, `-` and `_`, at most 63.
#[must_use]
pub fn is_service(text: &str) -> bool {
    (1..=63).contains(&text.len()) && text.bytes().all(is_name_byte)
}

const fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_one_segment_of_a_trust_domain() {
        let id = ServiceId::parse("spiffe://prod.gatehouse.internal/token-broker").unwrap();
        assert_eq!((id.trust_domain(), id.service()), ("prod.gatehouse.internal", "token-broker"));
        assert_eq!(id.to_string(), "spiffe://prod.gatehouse.internal/token-broker");
        for wrong in [
            "",
            "https://prod/job",
            "spiffe://prod",
            "spiffe://prod/",
            "spiffe:///job",
            "spiffe://prod/job/",
            "spiffe://prod/ns/default/sa/job",
            "spiffe://prod:1/job",
            "spiffe://user@prod/job",
            "spiffe://Prod/job",
            "spiffe://prod/Job",
            "spiffe://prod/job?x",
            "spiffe://prod/job#x",
            "spiffe://prod/j%6fb",
            "SPIFFE://prod/job",
        ] {
            assert!(ServiceId::parse(wrong).is_err(), "{wrong:?} was taken");
        }
    }
}
