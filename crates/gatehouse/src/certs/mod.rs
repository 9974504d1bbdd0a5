//! `gatehouse certs`: an authority of one's own and a certificate for each service, made once and renewed in time.
//!
//! What is made belongs to one environment, which stands in the trust domain and so in every certificate: a process of
//! another environment believes none of them, and does not start with one as its own.

mod authority;
mod files;
mod leaf;

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use clap::Args;
use gatehouse_client::tls::{ServiceId, is_service, is_trust_domain};
use gatehouse_core::{Clock, Environment};
use serde_json::json;

use self::authority::Authority;
use self::files::Mode;
use self::leaf::Wanted;
use crate::config::default_trust_domain;
use crate::services::Service;

pub(crate) const EXAMPLES: &str = "\
Examples:
  GATEHOUSE_ENV=prod gatehouse certs --out certs
  GATEHOUSE_ENV=prod gatehouse certs --out certs --name reporting --name postgres --dns '*.internal.example'
  GATEHOUSE_ENV=prod gatehouse certs --out certs --renew --json

Run it daily: it keeps what is good and renews what ends within 30 days; running services take up renewed files by
themselves. Each service gets OUT/<service>/tls.crt, tls.key and ca.crt, and needs no more than this folder:
  tls.cert_file, tls.key_file, tls.ca_file in its configuration.
OUT/ca/ca.key can make a certificate of any service: no service gets it, and outside dev none starts beside it.

To replace the authority without a break: `certs --new-ca` makes both believed, and the next `certs`, once every
service has its new ca.crt, signs with the new one.";

#[derive(Debug, Args)]
pub(crate) struct CertsArgs {
    /// Folder for everything that is made
    #[arg(long, value_name = "FOLDER", default_value = "gatehouse-certs")]
    out: PathBuf,
    /// The environment that they are for; no other believes them
    #[arg(long, env = "GATEHOUSE_ENV", value_name = "dev|staging|prod")]
    environment: Environment,
    /// Whose certificates believe each other; begins with the environment [default: `<environment>.gatehouse.internal`]
    #[arg(long, value_name = "NAME")]
    trust_domain: Option<String>,
    /// A service of your own that gets a certificate too: its name as a client of auth. Repeatable
    #[arg(long, value_name = "NAME")]
    name: Vec<String>,
    /// As --name, for a server that runs as a user of its own, such as PostgreSQL: this user's group may read its key.
    /// Repeatable
    #[arg(long, value_name = "NAME")]
    shared_name: Vec<String>,
    /// A host name that every certificate names besides localhost and its service's name. Repeatable
    #[arg(long, value_name = "NAME")]
    dns: Vec<String>,
    /// An address that every certificate names besides those of loopback. Repeatable
    #[arg(long, value_name = "ADDRESS")]
    ip: Vec<IpAddr>,
    /// How long a certificate lives
    #[arg(long, value_name = "DAYS", default_value_t = 90, value_parser = clap::value_parser!(u16).range(1..=397))]
    days: u16,
    /// How long a new authority lives
    #[arg(long, value_name = "DAYS", default_value_t = 1825, value_parser = clap::value_parser!(u16).range(1..=7300))]
    ca_days: u16,
    /// Renew every certificate now
    #[arg(long)]
    renew: bool,
    /// Make a new authority that is believed beside the old one; certificates stay as they are
    #[arg(long, conflicts_with = "renew")]
    new_ca: bool,
    /// Say what there is as one JSON object
    #[arg(long)]
    json: bool,
}

/// Makes what is missing, renews what ends soon, and says what there is.
pub(crate) fn run(args: &CertsArgs) -> anyhow::Result<ExitCode> {
    let trust_domain = args.trust_domain.clone().unwrap_or_else(|| default_trust_domain(args.environment));
    let prefix = format!("{}.", args.environment);
    ensure!(
        is_trust_domain(&trust_domain) && trust_domain.starts_with(&prefix),
        "--trust-domain {trust_domain:?}: must begin with {prefix} and be made of lower-case letters, digits, dots and \
         hyphens, such as {}",
        default_trust_domain(args.environment)
    );
    let mut names: Vec<&str> = Service::ALL.map(Service::name).to_vec();
    for name in args.name.iter().chain(&args.shared_name) {
        ensure!(
            is_service(name) && name != authority::FOLDER,
            "--name {name:?}: use lower-case letters, digits and hyphens, at most 63, and not {:?}",
            authority::FOLDER
        );
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let now = Clock::system().now();
    files::folder(&args.out)?;
    // Two at once would each make an authority, and one of them would be lost.
    let _lock = files::lock(&args.out)?;
    let authority = Authority::open(&args.out, &trust_domain, args.ca_days, args.new_ca, now)?;
    let mut services = Vec::new();
    for name in names {
        let wanted = Wanted {
            id: ServiceId::new(&trust_domain, name)?,
            dns: &args.dns,
            ip: &args.ip,
            days: args.days,
            key: if args.shared_name.iter().any(|shared| shared == name) {
                Mode::Shared
            } else {
                Mode::Secret
            },
            renew: args.renew,
            keep: args.new_ca,
        };
        let folder = args.out.join(name);
        let made = leaf::settle(&folder, &wanted, &authority, now)
            .with_context(|| format!("no certificate for {name}"))?;
        services.push((name, folder, made));
    }
    if args.json {
        let services: Vec<_> = services
            .iter()
            .map(|(name, folder, made)| {
                json!({
                    "name": name, "id": made.id.to_string(), "action": made.action,
                    "ends_at": made.ends_at.to_string(), "cert_file": folder.join(leaf::CERTIFICATE),
                    "key_file": folder.join(leaf::KEY), "ca_file": folder.join(leaf::AUTHORITIES),
                })
            })
            .collect();
        println!(
            "{}",
            json!({
                "environment": args.environment, "trust_domain": trust_domain,
                "ca": {
                    "file": authority.certificate_file(&args.out), "action": authority.action,
                    "ends_at": authority.ends_at.to_string(),
                },
                "services": services,
            })
        );
        return Ok(ExitCode::SUCCESS);
    }
    println!("{:<16} {:<8} until {}", "authority", authority.action, authority.ends_at);
    for (name, folder, made) in &services {
        println!("{name:<16} {:<8} until {}  {}", made.action, made.ends_at, folder.display());
    }
    if args.new_ca {
        println!(
            "\nGive every service its new ca.crt, then run `gatehouse certs` again: it signs with the new authority."
        );
    }
    Ok(ExitCode::SUCCESS)
}
