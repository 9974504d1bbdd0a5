//! The authority: its key signs what its certificate vouches for.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail, ensure};
use gatehouse_client::tls::ends_at;
use gatehouse_core::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData as _,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::files::{self, Mode};

/// Where it lies, apart from what services are given.
pub(super) const FOLDER: &str = "ca";
/// Below it, that of what the world is shown.
pub(super) const PUBLIC_FOLDER: &str = "public";
const CERTIFICATE: &str = "ca.crt";
const KEY: &str = "ca.key";
/// The one before, believed until it ends.
const PREVIOUS: &str = "previous.crt";

/// Clocks of different hosts differ.
const BACKDATED: Duration = Duration::from_hours(1);

/// An authority that can sign.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pub(super) trust_domain: String,
    /// What services are to believe: its certificate, and that of the one before.
    pub(super) bundle: String,
    pub(super) ends_at: Timestamp,
    /// `made`, `kept` or `replaced`.
    pub(super) action: &'static str,
}

impl Authority {
    /// The authority in `folder`, made where there is none or `replace` says so.
    pub(super) fn open(
        folder: &Path,
        trust_domain: &str,
        days: u16,
        replace: bool,
        now: Timestamp,
    ) -> anyhow::Result<Self> {
        files::folder(folder)?;
        let (certificate_file, key_file) = (folder.join(CERTIFICATE), folder.join(KEY));
        let found = match (files::read(&certificate_file)?, files::read(&key_file)?) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            // The key is written first, so this one signed nothing yet.
            (None, _) => None,
            (Some(_), None) => bail!(
                "the authority's key {} is missing; put it back from its backup, or remove {} to begin anew",
                key_file.display(),
                certificate_file.display()
            ),
        };
        let action = match (&found, replace) {
            (None, _) => "made",
            (Some(_), false) => "kept",
            (Some((certificate, _)), true) => {
                files::write(&folder.join(PREVIOUS), certificate, Mode::Public)?;
                "replaced"
            }
        };
        let (text, key) = match found {
            Some(found) if !replace => found,
            _ => {
                let (certificate, key) = make(trust_domain, days, now)?;
                files::write(&key_file, &key, Mode::Secret)?;
                files::write(&certificate_file, &certificate, Mode::Public)?;
                (certificate, key)
            }
        };
        let broken = || format!("{} is no authority that can be used", certificate_file.display());
        // The parser's own words repeat the line, which is a private key where the files were mixed up.
        let certificate = CertificateDer::from_pem_slice(text.as_bytes()).map_err(|_| anyhow!(broken()))?;
        check(&certificate, trust_domain).with_context(broken)?;
        let ends_at = ends_at(&certificate)?;
        ensure!(ends_at > now, "the authority ended at {ends_at}; make a new one with --new-ca");
        let key = KeyPair::from_pem(&key)
            .with_context(|| format!("{} holds no private key", key_file.display()))?;
        // A crash while it was replaced may have left the new key beside the old certificate.
        let pair = X509Certificate::from_der(&certificate)
            .is_ok_and(|(_, parsed)| parsed.public_key().raw == key.subject_public_key_info());
        ensure!(
            pair,
            "{} is not the key of {}; put the right one back, or make a new authority with --new-ca",
            key_file.display(),
            certificate_file.display()
        );
        let issuer = Issuer::from_ca_cert_der(&certificate, key).with_context(broken)?;
        let mut bundle = text;
        if let Some(previous) = files::read(&folder.join(PREVIOUS))? {
            bundle.push_str(&previous);
        }
        Ok(Self { issuer, certificate, trust_domain: trust_domain.to_owned(), bundle, ends_at, action })
    }

    /// Signs a certificate for `key`.
    pub(super) fn sign(&self, params: &CertificateParams, key: &KeyPair) -> anyhow::Result<String> {
        Ok(params.signed_by(key, &self.issuer)?.pem())
    }

    /// Whether it, and not the one before, signed `certificate`.
    pub(super) fn signed(&self, certificate: &X509Certificate<'_>) -> bool {
        X509Certificate::from_der(&self.certificate)
            .is_ok_and(|(_, own)| certificate.verify_signature(Some(own.public_key())).is_ok())
    }
}

/// Where the certificate of the authority in `folder` is.
pub(super) fn certificate_file(folder: &Path) -> PathBuf {
    folder.join(CERTIFICATE)
}

/// A new certificate and its key.
fn make(trust_domain: &str, days: u16, now: Timestamp) -> anyhow::Result<(String, String)> {
    let key = KeyPair::generate()?;
    let mut params = params(now, now.plus(Duration::from_hours(u64::from(days) * 24)))?;
    // Names that differ let verifiers tell two authorities of one folder apart.
    let made_at = params.not_before.unix_timestamp();
    params.distinguished_name = name(&format!("Gatehouse authority {made_at}"), trust_domain);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}

/// What every certificate has in common.
pub(super) fn params(now: Timestamp, end: Timestamp) -> anyhow::Result<CertificateParams> {
    let date = |at: Timestamp| OffsetDateTime::from_unix_timestamp(at.as_seconds());
    let mut params = CertificateParams::default();
    params.not_before = date(now.minus(BACKDATED))?;
    params.not_after = date(end)?;
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

pub(super) fn name(common: &str, trust_domain: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, trust_domain);
    name.push(DnType::CommonName, common);
    name
}

fn check(certificate: &CertificateDer<'_>, trust_domain: &str) -> anyhow::Result<()> {
    let (_, parsed) = X509Certificate::from_der(certificate)?;
    ensure!(parsed.is_ca(), "it is no certificate of an authority");
    let organization = parsed.subject().iter_organization().next().and_then(|name| name.as_str().ok());
    match organization {
        Some(found) if found == trust_domain => Ok(()),
        found => Err(anyhow!(
            "it is of the trust domain {}, not {trust_domain}; name another folder with --out",
            found.unwrap_or("of nobody")
        )),
    }
}
