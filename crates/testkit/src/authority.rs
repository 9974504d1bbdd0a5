//! Certificates for tests: good ones, and those that must be refused.

use std::fmt;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use gatehouse_core::Entropy;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use time::{Duration, OffsetDateTime};

/// An authority that signs whatever a test asks for.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

/// What a certificate is to say.
#[derive(Clone, Debug)]
pub struct Leaf<'a> {
    /// URIs, such as `spiffe://dev.gatehouse.internal/job`.
    pub uris: &'a [&'a str],
    /// Host names. 127.0.0.1 is always there.
    pub dns: &'a [&'a str],
    /// When it ends, seconds from now. Negative: it has ended already.
    pub ends_in_s: i64,
}

impl Default for Leaf<'_> {
    fn default() -> Self {
        Self { uris: &[], dns: &["localhost"], ends_in_s: 3_600 }
    }
}

/// PEM files of a certificate.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key, readable by its owner only.
    pub key: PathBuf,
    /// The certificate of the authority.
    pub authorities: PathBuf,
}

impl Authority {
    /// A new one.
    ///
    /// # Panics
    /// Never in practice: a key was made and a certificate signed.
    #[must_use]
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        // Two of one name would be taken for one whose signature is wrong.
        let number = u64::from_le_bytes(Entropy::system().bytes());
        params.distinguished_name.push(DnType::CommonName, format!("Authority {number:016x} for tests"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().expect("a key can be made");
        let made = CertifiedIssuer::self_signed(params.clone(), &key).expect("it can be signed");
        let certificate = made.pem();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    /// One whose certificate and key are in PEM files.
    ///
    /// # Panics
    /// If they can't be read.
    #[must_use]
    pub fn open(certificate: &Path, key: &Path) -> Self {
        let read = |path: &Path| std::fs::read_to_string(path).expect("the file can be read");
        let certificate = read(certificate);
        let key = KeyPair::from_pem(&read(key)).expect("it is a key");
        let issuer = Issuer::from_ca_cert_pem(&certificate, key).expect("it is an authority");
        Self { issuer, certificate }
    }

    /// Its certificate in PEM.
    #[must_use]
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Writes its certificate to `name` in `folder`; where that is.
    ///
    /// # Panics
    /// If the file can't be written.
    #[must_use]
    pub fn write_certificate(&self, folder: &Path, name: &str) -> PathBuf {
        let file = folder.join(name);
        std::fs::write(&file, &self.certificate).expect("the file can be written");
        file
    }

    /// Signs `leaf` and writes `name.crt`, `name.key` and `name.ca.crt` into `folder`.
    ///
    /// # Panics
    /// If the files can't be written, or a name is none.
    #[must_use]
    pub fn issue(&self, folder: &Path, name: &str, leaf: &Leaf<'_>) -> Issued {
        let key = KeyPair::generate().expect("a key can be made");
        let mut params = CertificateParams::default();
        let now = OffsetDateTime::now_utc();
        params.not_after = now + Duration::seconds(leaf.ends_in_s);
        params.not_before = now.min(params.not_after) - Duration::days(1);
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let ascii = |text: &str| text.to_owned().try_into().expect("names are ASCII");
        params.subject_alt_names = (leaf.uris.iter().map(|uri| SanType::URI(ascii(uri))))
            .chain(leaf.dns.iter().map(|name| SanType::DnsName(ascii(name))))
            .chain([SanType::IpAddress([127, 0, 0, 1].into())])
            .collect();
        let certificate = params.signed_by(&key, &self.issuer).expect("it can be signed").pem();
        let issued = Issued {
            certificate: folder.join(format!("{name}.crt")),
            key: folder.join(format!("{name}.key")),
            authorities: folder.join(format!("{name}.ca.crt")),
        };
        write(&issued.key, &key.serialize_pem());
        write(&issued.certificate, &certificate);
        write(&issued.authorities, &self.certificate);
        issued
    }
}

fn write(path: &Path, text: &str) {
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes())).expect("the file can be written");
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authority")
    }
}
