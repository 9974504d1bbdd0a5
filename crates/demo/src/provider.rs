//! The demo's OAuth provider as a process of its own, for a Gatehouse that the demo did not start.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use clap::Args;
use gatehouse_testkit::oauth_provider::{OAuthProvider, Options};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::signals::Signals;

const CERTIFICATE: &str = "provider.crt";
const KEY: &str = "provider.key";
const SECRET: &str = "client.secret";

#[derive(Debug, Args)]
pub(crate) struct ProviderArgs {
    /// Address to listen on, `ip:port`
    #[arg(long, value_name = "ADDRESS")]
    listen: SocketAddr,
    /// What browsers and API clients know it by, such as <https://localhost:9443>
    #[arg(long, value_name = "URL")]
    url: String,
    /// The one address that it sends browsers back to
    #[arg(long, value_name = "URL")]
    callback: String,
    /// Folder that `provider-certificate` filled
    #[arg(long, value_name = "FOLDER")]
    folder: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct CertificateArgs {
    /// Folder for `provider.crt`, `provider.key` and `client.secret`; what is there stays
    #[arg(long, value_name = "FOLDER")]
    folder: PathBuf,
    /// Host name beside localhost; may be given several times
    #[arg(long, value_name = "NAME")]
    name: Vec<String>,
}

/// Serves until a signal.
pub(crate) async fn run(args: &ProviderArgs) -> anyhow::Result<()> {
    let mut signals = Signals::listen()?;
    let chain = CertificateDer::pem_file_iter(args.folder.join(CERTIFICATE))
        .and_then(Iterator::collect)
        .context("no certificate: run provider-certificate first")?;
    let key = PrivateKeyDer::from_pem_file(args.folder.join(KEY)).context("no key of the certificate")?;
    let tls = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    let options = Options {
        client_secret: fs::read_to_string(args.folder.join(SECRET)).context("no client secret")?,
        redirect_uris: vec![args.callback.clone()],
        ..Options::default()
    };
    let listener = TcpListener::bind(args.listen).with_context(|| format!("{} can't be had", args.listen))?;
    let provider = OAuthProvider::serve(options, listener, args.url.trim_end_matches('/'), Some(tls))?;
    println!("The provider is {} and listens on {}.", provider.base_url(), args.listen);
    signals.recv().await;
    Ok(())
}

/// Makes a certificate that nobody vouches for, and the broker's client secret.
pub(crate) fn make_certificate(args: &CertificateArgs) -> anyhow::Result<()> {
    fs::create_dir_all(&args.folder)?;
    if args.folder.join(CERTIFICATE).exists() {
        return Ok(());
    }
    let names = ["localhost", "127.0.0.1", "::1"].into_iter().map(str::to_owned);
    let made =
        rcgen::generate_simple_self_signed(names.chain(args.name.iter().cloned()).collect::<Vec<_>>())?;
    let secret =
        gatehouse_core::ids::new_uuid(&gatehouse_core::Clock::system(), &gatehouse_core::Entropy::system());
    // The certificate last: where it is, all are.
    for (name, text) in [
        (SECRET, secret.simple().to_string()),
        (KEY, made.signing_key.serialize_pem()),
        (CERTIFICATE, made.cert.pem()),
    ] {
        let mut options = OpenOptions::new();
        let mut file =
            options.write(true).create(true).truncate(true).mode(0o600).open(args.folder.join(name))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
    }
    println!("Made the provider's certificate in {}.", args.folder.display());
    Ok(())
}
