//! One process's certificate.

use std::collections::BTreeSet;
use std::fmt;
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

/// Where something is reached: what a certificate may name besides its owner.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Host {
    Ip(IpAddr),
    Dns(String),
}

impl Host {
    /// Reads a name (`*.internal.example` too) or an address.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if let Ok(ip) = text.parse() {
            return Ok(Self::Ip(ip));
        }
        let name = text.strip_prefix("*.").unwrap_or(text);
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        if name.len() <= 253 && name.split('.').all(is_label) {
            return Ok(Self::Dns(text.to_ascii_lowercase()));
        }
        Err(format!("{text:?} is neither a host name nor an address"))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Dns(name) => f.write_str(name),
        }
    }
}

/// What a certificate is for, and no more than that.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Purposes {
    /// It is shown to those who connect.
    pub(super) server: bool,
    /// It is shown to services that its owner calls.
    pub(super) client: bool,
}

/// What a certificate is to be.
pub(super) struct Wanted<'a> {
    /// Its owner, by the name of its folder.
    pub(super) name: &'a str,
    /// Who the owner is to Gatehouse's services; none for a server that calls none of them.
    pub(super) id: Option<ServiceId>,
    pub(super) purposes: Purposes,
    /// Every name and address that it says, whatever it said before.
    pub(super) hosts: BTreeSet<Host>,
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
    pub(super) id: Option<ServiceId>,
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
    let (certificate_file, key_file) = (folder.join(CERTIFICATE), folder.join(KEY));
    // First: what the new certificate needs to be believed.
    settle_authorities(folder, authority)?;
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
    params.distinguished_name = authority::name(wanted.name, &authority.trust_domain);
    params.subject_alt_names = names(wanted)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let Purposes { server, client } = wanted.purposes;
    let usages =
        [(server, ExtendedKeyUsagePurpose::ServerAuth), (client, ExtendedKeyUsagePurpose::ClientAuth)];
    params.extended_key_usages =
        usages.into_iter().filter_map(|(wanted, usage)| wanted.then_some(usage)).collect();
    let certificate = authority.sign(&params, &key)?;
    files::write(&key_file, &key.serialize_pem(), wanted.key)?;
    files::write(&certificate_file, &certificate, Mode::Public)?;
    Ok(settled(if found.is_some() { "renewed" } else { "made" }, end))
}

/// Sees to it that `folder` holds what its owner is to believe.
fn settle_authorities(folder: &Path, authority: &Authority) -> anyhow::Result<()> {
    files::folder(folder)?;
    let authorities = folder.join(AUTHORITIES);
    if files::read(&authorities)?.as_ref() != Some(&authority.bundle) {
        files::write(&authorities, &authority.bundle, Mode::Public)?;
    }
    Ok(())
}

/// As [`settle`] for one who only checks others' certificates, and has none.
pub(super) fn settle_without(folder: &Path, authority: &Authority) -> anyhow::Result<()> {
    settle_authorities(folder, authority)?;
    for file in [CERTIFICATE, KEY] {
        files::remove(&folder.join(file))?;
    }
    Ok(())
}

fn names(wanted: &Wanted<'_>) -> anyhow::Result<Vec<SanType>> {
    let id = wanted.id.iter().map(|id| Ok(SanType::URI(id.to_string().try_into()?)));
    let hosts = wanted.hosts.iter().map(|host| {
        Ok(match host {
            Host::Dns(name) => SanType::DnsName(name.as_str().try_into()?),
            Host::Ip(address) => SanType::IpAddress(*address),
        })
    });
    id.chain(hosts).collect()
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
    if !fits || wanted.id.is_some() && ServiceId::of_certificate(&der).ok() != wanted.id {
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
    let good = lasts && ends_at > now && authority.signed(&parsed) && says_no_more(&parsed, wanted);
    good.then_some(ends_at)
}

/// Whether it has the names and purposes that are wanted, and no other.
fn says_no_more(certificate: &X509Certificate<'_>, wanted: &Wanted<'_>) -> bool {
    let Ok(Some(found)) = certificate.subject_alternative_name() else { return false };
    let mut hosts = BTreeSet::new();
    let mut uris = Vec::new();
    for name in &found.value.general_names {
        match name {
            GeneralName::DNSName(name) => hosts.insert(Host::Dns((*name).to_owned())),
            GeneralName::IPAddress(octets) => {
                let v4 = <[u8; 4]>::try_from(*octets).map(IpAddr::from);
                match v4.or_else(|_| <[u8; 16]>::try_from(*octets).map(IpAddr::from)) {
                    Ok(address) => hosts.insert(Host::Ip(address)),
                    Err(_) => return false,
                }
            }
            GeneralName::URI(uri) => {
                uris.push((*uri).to_owned());
                true
            }
            _ => return false,
        };
    }
    let id: Vec<String> = wanted.id.iter().map(ToString::to_string).collect();
    let purposes = match certificate.extended_key_usage() {
        Ok(Some(usage)) if !usage.value.any => {
            Some(Purposes { server: usage.value.server_auth, client: usage.value.client_auth })
        }
        _ => None,
    };
    hosts == wanted.hosts && uris == id && purposes == Some(wanted.purposes)
}
