//! `gatehouse certs`: an authority of one's own and a certificate for each service, made once and renewed in time.
//!
//! What is made belongs to one environment, which stands in the trust domain and so in every certificate: a process of
//! another environment believes none of them, and does not start with one as its own.

mod authority;
mod files;
mod leaf;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Args;
use gatehouse_client::tls::{ServiceId, is_service, is_trust_domain};
use gatehouse_core::{Clock, Environment};
use serde_json::json;

use self::authority::Authority;
use self::files::Mode;
use self::leaf::{Host, Purposes, Wanted};
use crate::cli::environment;
use crate::config::default_trust_domain;
use crate::output::{complain, say};
use crate::services::Service;

/// The certificate that the world is shown.
const PUBLIC: &str = "https";

pub(crate) const EXAMPLES: &str = "\
Examples:
  GATEHOUSE_ENV=prod gatehouse certs --out certs
  GATEHOUSE_ENV=prod gatehouse certs --out certs --name reporting --shared-name postgres --host-of postgres=db.internal.example
  GATEHOUSE_ENV=prod gatehouse certs --out certs --public-dns gatehouse.example.com
  GATEHOUSE_ENV=prod gatehouse certs --out certs --renew --json

Run it daily, or let it go on with --every: it keeps what is good and renews what ends within 30 days; running services
take up renewed files by themselves. Each service gets OUT/<service>/tls.crt, tls.key and ca.crt, and needs no more than
this folder:
  tls.cert_file, tls.key_file, tls.ca_file in its configuration.
A certificate says what its owner needs and no more: those of Gatehouse's services name the service, those of --shared-name
get nobody into a service, and the one for browsers (--public-dns) comes from an authority of its own.
OUT/ca/ca.key can make a certificate of any service, OUT/ca/public/ca.key one for browsers: no service gets them, and
outside dev none starts beside the first.

To replace the authorities without a break: `certs --new-ca` makes both old and new believed, and the next `certs`, once
every service has its new ca.crt, signs with the new ones.";

#[derive(Debug, Args)]
pub(crate) struct CertsArgs {
    /// Folder for everything that is made
    #[arg(long, value_name = "FOLDER", default_value = "gatehouse-certs")]
    out: PathBuf,
    /// The environment that they are for; no other believes them [default: that of `GATEHOUSE_ENV`]
    #[arg(long, value_name = "dev|staging|prod")]
    environment: Option<Environment>,
    /// Whose certificates believe each other; begins with the environment [default: `<environment>.gatehouse.internal`]
    #[arg(long, value_name = "NAME")]
    trust_domain: Option<String>,
    /// A service of your own that calls Gatehouse's: its name as a client of auth. Repeatable
    #[arg(long, value_name = "NAME")]
    name: Vec<String>,
    /// A server that calls no service and runs as a user of its own, such as PostgreSQL: this user's group may read its
    /// key. Repeatable
    #[arg(long, value_name = "NAME")]
    shared_name: Vec<String>,
    /// A process that needs to know the others' certificates and has none, such as `gatehouse migrate`. Repeatable
    #[arg(long, value_name = "NAME")]
    ca_only: Vec<String>,
    /// A host name or address that the certificate of NAME says besides its name, localhost and loopback. Gatehouse's
    /// services ask for none. Repeatable
    #[arg(long, value_name = "NAME=HOST", value_parser = parse_host_of)]
    host_of: Vec<(String, Host)>,
    /// A host name or address under which browsers reach the gateway: makes OUT/https, signed by an authority of its own
    /// that vouches for nothing else. Repeatable
    #[arg(long, value_name = "HOST", value_parser = Host::parse)]
    public_dns: Vec<Host>,
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
    /// Go on for ever, and look again every so many hours
    #[arg(long, env = "GATEHOUSE_CERTS_EVERY", hide_env_values = true, value_name = "HOURS", conflicts_with_all = ["renew", "new_ca"], value_parser = clap::value_parser!(u8).range(1..=168))]
    every: Option<u8>,
    /// Say what there is as one JSON object
    #[arg(long)]
    json: bool,
}

/// Makes what is missing, renews what ends soon, and says what there is: once, or again and again.
pub(crate) fn run(args: &CertsArgs) -> anyhow::Result<ExitCode> {
    // Not by the parser of arguments, which would repeat what is no environment.
    let environment = match args.environment {
        Some(environment) => environment,
        None => environment().context("--environment is not given")?,
    };
    let Some(hours) = args.every else {
        settle(args, environment)?;
        return Ok(ExitCode::SUCCESS);
    };
    loop {
        // What is wrong now (a volume that is full, say) may be mended by the next time; the services warn meanwhile.
        if let Err(error) = settle(args, environment) {
            complain!("gatehouse: {}", crate::message(&error));
        }
        std::thread::sleep(Duration::from_hours(hours.into()));
    }
}

fn settle(args: &CertsArgs, environment: Environment) -> anyhow::Result<()> {
    let trust_domain = args.trust_domain.clone().unwrap_or_else(|| default_trust_domain(environment));
    let prefix = format!("{environment}.");
    ensure!(
        is_trust_domain(&trust_domain) && trust_domain.starts_with(&prefix),
        "--trust-domain {trust_domain:?}: must begin with {prefix} and be made of lower-case letters, digits, dots and \
         hyphens, such as {}",
        default_trust_domain(environment)
    );
    let owners = owners(args)?;
    let now = Clock::system().now();
    let folder = args.out.join(authority::FOLDER);
    files::folder(&folder)?;
    // Two at once would each make an authority, and one of them would be lost. The lock lies where every run has the same
    // volume, in containers too.
    let _lock = files::lock(&folder)?;
    let open = |folder: &Path| Authority::open(folder, &trust_domain, args.ca_days, args.new_ca, now);
    let authority = open(&folder)?;
    let public_folder = folder.join(authority::PUBLIC_FOLDER);
    let public = if args.public_dns.is_empty() { None } else { Some(open(&public_folder)?) };
    let mut services = Vec::new();
    for Owner { name, purposes, is_named, is_shared } in owners {
        let folder = args.out.join(name);
        let failed = || format!("no certificate for {name}");
        let (Some(purposes), Some(authority)) =
            (purposes, if name == PUBLIC { public.as_ref() } else { Some(&authority) })
        else {
            leaf::settle_without(&folder, &authority).with_context(failed)?;
            continue;
        };
        let wanted = Wanted {
            name,
            id: is_named.then(|| ServiceId::new(&trust_domain, name)).transpose()?,
            purposes,
            hosts: hosts(args, name),
            days: args.days,
            key: if is_shared { Mode::Shared } else { Mode::Secret },
            renew: args.renew,
            keep: args.new_ca,
        };
        let made = leaf::settle(&folder, &wanted, authority, now).with_context(failed)?;
        services.push((name, folder, made));
    }
    let mut authorities = vec![("authority", folder, authority)];
    authorities.extend(public.map(|public| ("public authority", public_folder, public)));
    if args.json {
        let services: Vec<_> = services
            .iter()
            .map(|(name, folder, made)| {
                json!({
                    "name": name, "id": made.id.as_ref().map(ToString::to_string), "action": made.action,
                    "ends_at": made.ends_at.to_string(), "cert_file": folder.join(leaf::CERTIFICATE),
                    "key_file": folder.join(leaf::KEY), "ca_file": folder.join(leaf::AUTHORITIES),
                })
            })
            .collect();
        let mut authorities = authorities.iter().map(|(_, folder, authority)| {
            json!({
                "file": authority::certificate_file(folder), "action": authority.action,
                "ends_at": authority.ends_at.to_string(),
            })
        });
        say!(
            "{}",
            json!({
                "environment": environment, "trust_domain": trust_domain,
                "ca": authorities.next(), "public_ca": authorities.next(), "services": services,
            })
        )?;
        return Ok(());
    }
    for (name, _, authority) in &authorities {
        say!("{name:<16} {:<8} until {}", authority.action, authority.ends_at)?;
    }
    for (name, folder, made) in &services {
        say!("{name:<16} {:<8} until {}  {}", made.action, made.ends_at, folder.display())?;
    }
    if args.new_ca {
        say!(
            "\nGive every service its new ca.crt, then run `gatehouse certs` again: it signs with the new authority."
        )?;
    }
    Ok(())
}

/// Who gets a folder.
struct Owner<'a> {
    name: &'a str,
    /// What its certificate is for; none: it gets no certificate.
    purposes: Option<Purposes>,
    /// Whether the certificate says which service it is.
    is_named: bool,
    /// Whether its group reads its key.
    is_shared: bool,
}

fn owners(args: &CertsArgs) -> anyhow::Result<Vec<Owner<'_>>> {
    let (server, client, both) = (
        Some(Purposes { server: true, client: false }),
        Some(Purposes { server: false, client: true }),
        Some(Purposes { server: true, client: true }),
    );
    let owner = |name, purposes, is_named, is_shared| Owner { name, purposes, is_named, is_shared };
    let mut owners: Vec<_> = Service::ALL
        .map(|service| owner(service.name(), if service.serves_grpc() { both } else { client }, true, false))
        .into();
    owners.extend(args.name.iter().map(|name| owner(name, client, true, false)));
    owners.extend(args.shared_name.iter().map(|name| owner(name, server, false, true)));
    owners.extend(args.ca_only.iter().map(|name| owner(name, None, false, false)));
    let mut seen = BTreeSet::new();
    for Owner { name, .. } in &owners {
        ensure!(
            is_service(name) && *name != authority::FOLDER && *name != PUBLIC,
            "--name {name:?}: use lower-case letters, digits and hyphens, at most 63, and neither {:?} nor {PUBLIC:?}",
            authority::FOLDER
        );
        ensure!(seen.insert(*name), "--name {name:?}: it is named twice, or a service of Gatehouse");
    }
    for (name, host) in &args.host_of {
        ensure!(
            owners.iter().any(|owner| owner.name == name && owner.purposes.is_some()),
            "--host-of {name}={host}: nobody of this name gets a certificate"
        );
    }
    if !args.public_dns.is_empty() {
        owners.push(owner(PUBLIC, server, false, false));
    }
    Ok(owners)
}

/// What the certificate of `name` says besides who it is. Only that for browsers says what browsers ask for.
fn hosts(args: &CertsArgs, name: &str) -> BTreeSet<Host> {
    let loopback = [IpAddr::from([127, 0, 0, 1]), IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])];
    let mut hosts: BTreeSet<_> = loopback.map(Host::Ip).into();
    hosts.insert(Host::Dns("localhost".to_owned()));
    if name == PUBLIC {
        hosts.extend(args.public_dns.iter().cloned());
    } else {
        hosts.insert(Host::Dns(name.to_owned()));
        hosts.extend(args.host_of.iter().filter(|(of, _)| of == name).map(|(_, host)| host.clone()));
    }
    hosts
}

fn parse_host_of(text: &str) -> Result<(String, Host), String> {
    let (name, host) = text.split_once('=').ok_or("write NAME=HOST, such as postgres=db.internal.example")?;
    Ok((name.to_owned(), Host::parse(host)?))
}
