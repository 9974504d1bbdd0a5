//! One service's certificate.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use gatehouse_client::tls::{ServiceId, ends_at};
use gatehouse_core::Timestamp;
use rcgen::{ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PublicKeyData as _, SanType};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::authority::{self, Authority};
use super::files::{self, Mode};

pub(super) const CERTIFICATE: &str = "tls.crt";
pub(super) const KEY: &str = "tls.key";
pub(super) const AUTHORITIES: &str = "ca.crt";

/// A certificate that ends within this, or within a third of its life, is renewed.
const RENEW_BEFORE: Duration = Duration::from_hours(30 * 24);

/// What a service's certificate is to be.
pub(super) struct Wanted<'a> {
    pub(super) id: ServiceId,
    pub(super) dns: &'a [String],
    pub(super) ip: &'a [IpAddr],
    pub(super) days: u16,
    /// Who may read its key.
    pub(super) key: Mode,
    /// Even if the one that is there is good.
    pub(super) renew: bool,
    /// Even if the authority is a new one: services do not believe that one yet.
    pub(super) keep: bool,
}

/// What there is now.
pub(super) struct Settled {
    pub(super) id: ServiceId,
    pub(super) ends_at: Timestamp,
    /// `made`, `kept` or `renewed`.
    pub(super) action: &'static str,
}

/// Sees to it that `folder` holds what is wanted.
pub(super) fn settle(
    folder: &Path,
    wanted: &Wanted<'_>,
    authority: &Authority,
    now: Timestamp,
) -> anyhow::Result<Settled> {
    files::folder(folder)?;
    let (certificate_file, key_file) = (folder.join(CERTIFICATE), folder.join(KEY));
    let authorities = folder.join(AUTHORITIES);
    // First: what the new certificate needs to be believed.
    if files::read(&authorities)?.as_ref() != Some(&authority.bundle) {
        files::write(&authorities, &authority.bundle, Mode::Public)?;
    }
    let found = files::read(&certificate_file)?.zip(files::read(&key_file)?);
    let settled = |action, ends_at| Settled { id: wanted.id.clone(), ends_at, action };
    if let Some((certificate, key)) = &found
        && !wanted.renew
        && let Some(ends_at) = good_until(certificate, key, wanted, authority, now)
    {
        return Ok(settled("kept", ends_at));
    }
    let key = KeyPair::generate()?;
    let end = now.plus(Duration::from_hours(u64::from(wanted.days) * 24)).min(authority.ends_at);
    let mut params = authority::params(now, end)?;
    params.distinguished_name = authority::name(wanted.id.service(), wanted.id.trust_domain());
    params.subject_alt_names = names(wanted)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = authority.sign(&params, &key)?;
    files::write(&key_file, &key.serialize_pem(), wanted.key)?;
    files::write(&certificate_file, &certificate, Mode::Public)?;
    Ok(settled(if found.is_some() { "renewed" } else { "made" }, end))
}

fn names(wanted: &Wanted<'_>) -> anyhow::Result<Vec<SanType>> {
    let mut names = vec![SanType::URI(wanted.id.to_string().try_into()?)];
    let own = [wanted.id.service().to_owned(), "localhost".to_owned()];
    for name in own.iter().chain(wanted.dns).collect::<BTreeSet<_>>() {
        names.push(SanType::DnsName(name.as_str().try_into()?));
    }
    let own = [IpAddr::from([127, 0, 0, 1]), IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])];
    names.extend(
        own.iter().chain(wanted.ip).collect::<BTreeSet<_>>().into_iter().copied().map(SanType::IpAddress),
    );
    Ok(names)
}

/// When what is there ends, if it need not be made anew.
fn good_until(
    certificate: &str,
    key: &str,
    wanted: &Wanted<'_>,
    authority: &Authority,
    now: Timestamp,
) -> Option<Timestamp> {
    let der = CertificateDer::from_pem_slice(certificate.as_bytes()).ok()?;
    let (_, parsed) = X509Certificate::from_der(&der).ok()?;
    let fits = parsed.public_key().raw == KeyPair::from_pem(key).ok()?.subject_public_key_info();
    if !fits || ServiceId::of_certificate(&der).ok()? != wanted.id {
        return None;
    }
    let ends_at = ends_at(&der).ok()?;
    if wanted.keep {
        return Some(ends_at);
    }
    let begun_at = Timestamp::from_seconds(parsed.validity().not_before.timestamp());
    let margin = (ends_at.since(begun_at) / 3).min(RENEW_BEFORE);
    // One that the end of its authority cut short can't be had for longer.
    let lasts = ends_at.minus(margin) > now || ends_at >= authority.ends_at;
    let good = lasts && ends_at > now && authority.signed(&parsed) && has_names(&parsed, wanted);
    good.then_some(ends_at)
}

/// Whether it has every name that is wanted; more do not matter.
fn has_names(certificate: &X509Certificate<'_>, wanted: &Wanted<'_>) -> bool {
    let Ok(Some(found)) = certificate.subject_alternative_name() else { return false };
    let found = &found.value.general_names;
    let dns =
        |name: &str| found.iter().any(|found| matches!(found, GeneralName::DNSName(found) if *found == name));
    let ip = |address: &IpAddr| {
        let octets = match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        found.iter().any(|found| matches!(found, GeneralName::IPAddress(found) if **found == octets[..]))
    };
    wanted.dns.iter().all(|name| dns(name)) && wanted.ip.iter().all(ip)
}
