//! Services in processes of their own that know each other by certificates, and strangers who must not get in.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gatehouse_client::tls::{Certificates, ClientTls, TlsFiles};
use gatehouse_client::{ChannelConfig, audience, channel, from_status};
use gatehouse_core::ErrorCode;
use gatehouse_db::{DatabaseUrl, Db, Sql, params, read_tx};
use gatehouse_proto::access::{PACKAGES, access_table};
use gatehouse_proto::auth::v1::token_service_client::TokenServiceClient;
use gatehouse_proto::auth::v1::{GetJwksRequest, IssueTokenRequest};
use gatehouse_testkit::authority::{Authority, Issued, Leaf};
use gatehouse_testkit::{Postgres, Redis, eventually, lasting_port};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tower::ServiceExt as _;
use x509_parser::extensions::GeneralName;

use crate::processes::{SERVICES, configuration, do_the_main_job, is_ready, start};
use crate::support::{Ended, Gatehouse, PATIENCE, ended, folder, program};

const TRUST_DOMAIN: &str = "dev.gatehouse.internal";

async fn certs(place: &Path, arguments: &[&str]) -> Ended {
    let mut command = program();
    command.env("GATEHOUSE_ENV", "dev").args(["certs", "--json", "--out"]).arg(place.join("certs"));
    ended(command.args(arguments)).await
}

/// What a service of its own is told of its certificate.
fn variables(place: &Path, service: &str) -> Vec<(&'static str, PathBuf)> {
    let folder = place.join("certs").join(service);
    vec![
        ("GATEHOUSE_TLS__CERT_FILE", folder.join("tls.crt")),
        ("GATEHOUSE_TLS__KEY_FILE", folder.join("tls.key")),
        ("GATEHOUSE_TLS__CA_FILE", folder.join("ca.crt")),
    ]
}

/// Where a service listens, as the configuration has it.
fn address(config: &Path, service: &str) -> String {
    let text = std::fs::read_to_string(config).unwrap();
    let key = format!("listen.{} = ", service.replace('-', "_"));
    text.lines().find_map(|line| line.strip_prefix(&key)).unwrap().trim_matches('"').to_owned()
}

/// The certificates of `service` as a client uses them.
fn own(place: &Path, service: &str) -> Certificates {
    let folder = place.join("certs").join(service);
    Certificates::load(TlsFiles {
        certificate: folder.join("tls.crt"),
        key: folder.join("tls.key"),
        authorities: folder.join("ca.crt"),
        trust_domain: TRUST_DOMAIN.to_owned(),
    })
    .unwrap()
}

/// Asks the service at `address` for its keys, as the owner of `certificates`, if it is `server`.
async fn ask(certificates: &Certificates, address: &str, server: &str) -> Result<(), String> {
    let tls = ClientTls::to(certificates, server).unwrap();
    let channel = channel(&ChannelConfig::to(format!("https://{address}")).with_tls(tls)).unwrap();
    let asked = TokenServiceClient::new(channel).get_jwks(GetJwksRequest {}).await;
    asked.map(drop).map_err(|status| from_status(status).reason().to_owned())
}

/// What the method at `path` answers the owner of `certificates` who shows no token: code and reason.
async fn call(certificates: &Certificates, address: &str, server: &str, path: &str) -> (ErrorCode, String) {
    let tls = ClientTls::to(certificates, server).unwrap();
    let channel = channel(&ChannelConfig::to(format!("https://{address}")).with_tls(tls)).unwrap();
    let request =
        http::Request::post(format!("https://{address}{path}")).header("content-type", "application/grpc");
    // An empty message: 1 byte for "not compressed", 4 for its length.
    let body = tonic::body::Body::new("\0\0\0\0\0".to_owned());
    let answer = channel.oneshot(request.body(body).unwrap()).await.unwrap();
    let error = from_status(tonic::Status::from_header_map(answer.headers()).expect("a refusal"));
    (error.code(), error.reason().to_owned())
}

/// The service of a method.
fn server_of(path: &str) -> &'static str {
    let service =
        SERVICES.iter().find(|service| path.contains(&format!("gatehouse.{}.", service.replace('-', "_"))));
    service.unwrap()
}

/// How many connections of services PostgreSQL itself says to be encrypted, and how many not.
async fn connections(url: &str, ca_file: &Path) -> (i64, i64) {
    const CONNECTIONS: Sql = Sql::new(
        "CONNECTIONS",
        "SELECT CAST(COUNT(*) FILTER (WHERE ssl) AS BIGINT) AS encrypted,
                CAST(COUNT(*) FILTER (WHERE NOT ssl) AS BIGINT) AS clear
         FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name LIKE 'gatehouse-%'",
    );
    let config = gatehouse_db::Config {
        url: DatabaseUrl::new(url),
        ca_file: Some(ca_file.to_owned()),
        ..gatehouse_db::Config::default()
    };
    let db = Db::connect(&config, "test").await.unwrap();
    let row = read_tx!(db, "test.connections", |tx| { tx.fetch_one(&CONNECTIONS, params![]).await }).unwrap();
    (row.get("encrypted").unwrap(), row.get("clear").unwrap())
}

/// A handshake by hand, with what a well-behaved client would not show; the certificate that the server showed. Who
/// refuses says why and closes, maybe while the client still writes: then a reset can overtake the word, and it is
/// asked again.
async fn handshake(
    place: &Path,
    address: &str,
    client: Option<&Issued>,
) -> Result<CertificateDer<'static>, String> {
    eventually(PATIENCE, || async {
        match shake_hands(place, address, client).await {
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => None,
            shaken => Some(shaken.map_err(|error| error.to_string())),
        }
    })
    .await
}

async fn shake_hands(
    place: &Path,
    address: &str,
    client: Option<&Issued>,
) -> io::Result<CertificateDer<'static>> {
    let mut roots = RootCertStore::empty();
    let authority = CertificateDer::from_pem_file(place.join("certs/ca/ca.crt")).unwrap();
    roots.add(authority).unwrap();
    let config = ClientConfig::builder().with_root_certificates(roots);
    let mut config = match client {
        None => config.with_no_client_auth(),
        Some(client) => {
            let chain = vec![CertificateDer::from_pem_file(&client.certificate).unwrap()];
            config.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(&client.key).unwrap()).unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(address).await.unwrap();
    // By host name, so that the names for tools other than ours are proven too.
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    let shown = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
    // A client learns only after its own part whether it was let in: HTTP/2 begins, and the server answers.
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await?;
    match stream.read(&mut [0; 16]).await? {
        0 => Err(io::Error::other("closed")),
        _ => Ok(shown),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_know_each_other_and_strangers_stay_outside() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let place = folder();
    let place = place.path();
    let names = ["--name", "stranger", "--name", "reporting", "--shared-name", "postgres"];
    let names = [&names[..], &["--public-dns", "gateway.example"]].concat();
    let made = certs(place, &names).await;
    assert_eq!(made.code, Some(0), "{made:?}");
    // PostgreSQL and Redis have certificates of the same authority, and are talked to in no other way.
    let ours = Authority::open(&place.join("certs/ca/ca.crt"), &place.join("certs/ca/ca.key"));
    let redis = Redis::start_with_tls(&ours).unwrap();
    let postgres = Postgres::start_with_tls(&ours).unwrap();
    let url = format!("{}?sslmode=verify-full", postgres.url());
    let config = configuration(place, redis.url(), &url);
    let start = |service: &str, number| {
        let mut variables = variables(place, service);
        let authorities = place.join("certs").join(service).join("ca.crt");
        for section in ["AUTH", "TOKEN_BROKER", "JOB", "AUDIT"].map(|name| format!("DATABASES__{name}")) {
            variables.push((format!("GATEHOUSE_{section}__CA_FILE").leak(), authorities.clone()));
        }
        variables.push(("GATEHOUSE_REDIS__CA_FILE", authorities));
        variables.push(("GATEHOUSE_TLS__INTERNAL_SERVICES", "reporting".into()));
        variables.push(("GATEHOUSE_RATE_LIMITS__TIMEOUT_MS", "5000".into()));
        start(place, &config, service, number, &variables)
    };
    let mut processes: Vec<Gatehouse> = SERVICES.iter().map(|service| start(service, 1)).collect();
    let (one, two) = (start("gateway", 1), start("gateway", 2));
    processes.push(start("optimizer", 1));
    for process in processes.iter().chain([&one, &two]) {
        is_ready(process).await;
    }
    do_the_main_job(&one, &two).await;
    let (encrypted, clear) = connections(&url, &place.join("certs/ca/ca.crt")).await;
    assert!(encrypted >= 4 && clear == 0, "{encrypted} encrypted, {clear} clear");
    // A gateway begins while Redis is busy, perhaps; for good it is away only if it can't be reached.
    eventually(PATIENCE, || async {
        ["gateway-1", "gateway-2"].iter().all(|name| {
            let log = std::fs::read_to_string(place.join(format!("{name}.log"))).unwrap();
            log.matches("the rate limit store is away").count()
                == log.matches("the rate limit store is back").count()
        })
    })
    .await;

    let auth = address(&config, "auth");
    // The right service may ask the right service, and goes on with no other that lies in its way.
    ask(&own(place, "gateway"), &auth, "auth").await.unwrap();
    let refused = ask(&own(place, "gateway"), &auth, "audit").await.unwrap_err();
    assert_eq!(refused, "SERVICE_UNAVAILABLE");

    each_method_has_its_callers(place, &config).await;
    // A service of the user's own, once it is listed.
    ask(&own(place, "reporting"), &auth, "auth").await.unwrap();
    // The secret of one service is worth nothing in the hands of another.
    let job_secret = std::fs::read_to_string(place.join("job.secret")).unwrap();
    let token = async |as_service: &str| {
        let tls = ClientTls::to(&own(place, as_service), "auth").unwrap();
        let channel = channel(&ChannelConfig::to(format!("https://{auth}")).with_tls(tls)).unwrap();
        let request = IssueTokenRequest {
            client_id: "job".to_owned(),
            client_secret: job_secret.clone(),
            audience: audience::AUDIT.to_owned(),
            scope: String::new(),
        };
        TokenServiceClient::new(channel).issue_token(request).await
    };
    let refused = from_status(token("optimizer").await.unwrap_err());
    assert_eq!(refused.reason(), "CLIENT_OF_ANOTHER_SERVICE");
    token("job").await.unwrap();
    let metrics = one.probe("/metrics").await;
    assert!(metrics.contains("gatehouse_tls_certificate_remaining_seconds{"), "{metrics}");

    strangers_stay_outside(place, &auth, &ours).await;

    // Renewed files are taken up without a restart, and nothing breaks.
    let good = Leaf { uris: &["spiffe://dev.gatehouse.internal/gateway"], ..Leaf::default() };
    let before = handshake(place, &auth, Some(&ours.issue(place, "good", &good))).await.unwrap();
    let renewed = certs(place, &[&names[..], &["--renew"]].concat()).await;
    assert_eq!(renewed.code, Some(0), "{renewed:?}");
    let good = ours.issue(place, "good", &good);
    eventually(PATIENCE, || async { handshake(place, &auth, Some(&good)).await.unwrap() != before }).await;
    do_the_main_job(&two, &one).await;

    for process in [one, two].into_iter().chain(processes.into_iter().rev()) {
        let status = process.stop().await;
        assert!(status.success(), "{status}");
    }
}

/// Who is let in is not let at everything: each method has its callers, whatever token they might show.
async fn each_method_has_its_callers(place: &Path, config: &Path) {
    let refusal = (ErrorCode::PermissionDenied, "CALLER_NOT_ALLOWED".to_owned());
    let (stranger, optimizer) = (own(place, "stranger"), own(place, "optimizer"));
    for (path, declared) in access_table(PACKAGES).unwrap() {
        let (server, address) = (server_of(&path), address(config, server_of(&path)));
        assert_eq!(call(&stranger, &address, server, &path).await, refusal, "{path}");
        let answer = call(&optimizer, &address, server, &path).await;
        assert_eq!(answer == refusal, !declared.may_be_called_by("optimizer", false), "{path}: {answer:?}");
    }
}

/// Nobody gets in without a certificate of ours that counts now.
async fn strangers_stay_outside(place: &Path, auth: &str, ours: &Authority) {
    let refused = handshake(place, auth, None).await.unwrap_err();
    assert!(refused.contains("CertificateRequired"), "{refused}");
    let gateway = ["spiffe://dev.gatehouse.internal/gateway"];
    let good = Leaf { uris: &gateway, ..Leaf::default() };
    handshake(place, auth, Some(&ours.issue(place, "good", &good))).await.unwrap();
    let others = [
        ("of another authority", Authority::new().issue(place, "other", &good), "UnknownCA"),
        ("ended", ours.issue(place, "ended", &Leaf { ends_in_s: -1, ..good.clone() }), "CertificateExpired"),
        ("without a name", ours.issue(place, "nameless", &Leaf::default()), "alert"),
        (
            "with two names",
            ours.issue(
                place,
                "two",
                &Leaf { uris: &[gateway[0], "spiffe://dev.gatehouse.internal/job"], ..Leaf::default() },
            ),
            "alert",
        ),
        (
            "of another environment",
            ours.issue(
                place,
                "prod",
                &Leaf { uris: &["spiffe://prod.gatehouse.internal/gateway"], ..good.clone() },
            ),
            "alert",
        ),
    ];
    let made = |name: &str| {
        let [certificate, key, authorities] =
            ["tls.crt", "tls.key", "ca.crt"].map(|file| place.join("certs").join(name).join(file));
        Issued { certificate, key, authorities }
    };
    let others = others.into_iter().chain([
        ("a server that calls nobody", made("postgres"), "UnsupportedCertificate"),
        ("what browsers are shown", made("https"), "UnsupportedCertificate"),
    ]);
    for (what, issued, expected) in others {
        let refused = handshake(place, auth, Some(&issued)).await.unwrap_err();
        assert!(refused.contains(expected), "{what}: {refused}");
    }
    // Nor in the clear.
    let plain = channel(&ChannelConfig::to(format!("http://{auth}"))).unwrap();
    assert!(TokenServiceClient::new(plain).get_jwks(GetJwksRequest {}).await.is_err());
}

/// The `action` of `service` in what `certs --json` said.
fn action(said: &Ended, service: &str) -> String {
    assert_eq!(said.code, Some(0), "{said:?}");
    let said: Value = serde_json::from_str(&said.stdout).unwrap();
    let services = said["services"].as_array().unwrap();
    let found = services.iter().find(|found| found["name"] == service).unwrap();
    found["action"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn certificates_are_made_once_and_renewed_when_they_must_be() {
    let place = folder();
    let place = place.path();
    let read = |file: &str| std::fs::read_to_string(place.join("certs").join(file)).unwrap();
    assert_eq!(action(&certs(place, &[]).await, "job"), "made");
    let (authority, job) = (read("ca/ca.crt"), read("job/tls.crt"));
    assert_eq!(action(&certs(place, &[]).await, "job"), "kept");
    assert_eq!((read("ca/ca.crt"), read("job/tls.crt")), (authority.clone(), job.clone()));
    // A name more, a life that is almost over, a broken file: each is a reason.
    let elsewhere = ["--host-of", "job=job.internal.example"];
    assert_eq!(action(&certs(place, &elsewhere).await, "job"), "renewed");
    assert_eq!(action(&certs(place, &elsewhere).await, "job"), "kept");
    // And a name that is not wanted any more.
    assert_eq!(action(&certs(place, &[]).await, "job"), "renewed");
    assert_eq!(action(&certs(place, &[]).await, "job"), "kept");
    std::fs::write(place.join("certs/job/tls.crt"), "nonsense").unwrap();
    assert_eq!(action(&certs(place, &[]).await, "job"), "renewed");
    let ours = Authority::open(&place.join("certs/ca/ca.crt"), &place.join("certs/ca/ca.key"));
    let uris = ["spiffe://dev.gatehouse.internal/job"];
    let short = ours.issue(place, "short", &Leaf { uris: &uris, ends_in_s: 60, ..Leaf::default() });
    std::fs::copy(short.certificate, place.join("certs/job/tls.crt")).unwrap();
    std::fs::copy(short.key, place.join("certs/job/tls.key")).unwrap();
    assert_eq!(action(&certs(place, &[]).await, "job"), "renewed");
    assert_eq!(action(&certs(place, &["--renew"]).await, "auth"), "renewed");

    // A new authority is believed first and signs later.
    let before = read("job/tls.crt");
    assert_eq!(action(&certs(place, &["--new-ca"]).await, "job"), "kept");
    assert_eq!(read("job/tls.crt"), before);
    assert_ne!(read("ca/ca.crt"), authority);
    assert!(read("job/ca.crt").contains(&authority) && read("job/ca.crt").contains(&read("ca/ca.crt")));
    assert!(own(place, "job").id().service() == "job", "the old certificate still counts");
    assert_eq!(action(&certs(place, &[]).await, "job"), "renewed");
    assert_eq!(action(&certs(place, &[]).await, "job"), "kept");

    for (arguments, expected) in [
        (&["--name", "ca"][..], "--name"),
        (&["--shared-name", "https"], "--name"),
        (&["--shared-name", "auth"], "named twice"),
        (&["--host-of", "postgres=db.example"], "nobody of this name"),
        (&["--name", "Job"], "--name"),
        (&["--trust-domain", "prod.example"], "must begin with dev."),
        (&["--trust-domain", "dev.example"], "is of the trust domain dev.gatehouse.internal"),
    ] {
        let refused = certs(place, arguments).await.refusal();
        assert!(refused.contains(expected), "{expected}: {refused}");
    }
    let mut nowhere = program();
    let refused = ended(nowhere.args(["certs", "--out"]).arg(place.join("x"))).await;
    assert!(refused.code == Some(2) && refused.stderr.contains("--environment"), "{refused:?}");
}

/// Names, URIs and purposes in a certificate: (names, URIs, for servers, for clients).
fn said_by(file: &Path) -> (Vec<String>, Vec<String>, bool, bool) {
    let der = CertificateDer::from_pem_file(file).unwrap();
    let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
    let (mut names, mut uris) = (Vec::new(), Vec::new());
    for name in &parsed.subject_alternative_name().unwrap().unwrap().value.general_names {
        match name {
            GeneralName::DNSName(name) => names.push((*name).to_owned()),
            GeneralName::URI(uri) => uris.push((*uri).to_owned()),
            _ => {}
        }
    }
    let usage = parsed.extended_key_usage().unwrap().unwrap().value;
    (names, uris, usage.server_auth, usage.client_auth)
}

#[tokio::test]
async fn a_certificate_says_what_its_owner_needs_and_no_more() {
    let place = folder();
    let place = place.path();
    // As an earlier version left it.
    std::fs::create_dir_all(place.join("certs/migrate")).unwrap();
    std::fs::write(place.join("certs/migrate/tls.key"), "old").unwrap();
    let arguments = [
        ["--public-dns", "gateway.example"],
        ["--shared-name", "postgres"],
        ["--host-of", "postgres=db.internal.example"],
        ["--name", "reporting"],
        ["--ca-only", "migrate"],
    ];
    assert_eq!(action(&certs(place, arguments.as_flattened()).await, "https"), "made");
    let of = |service: &str, file: &str| place.join("certs").join(service).join(file);
    let own = |service: &str| vec![service.to_owned(), "localhost".to_owned()];
    for (service, server, client) in [
        ("auth", true, true),
        ("token-broker", true, true),
        ("job", true, true),
        ("audit", true, true),
        ("gateway", false, true),
        ("optimizer", false, true),
        ("reporting", false, true),
    ] {
        let (mut names, uris, is_server, is_client) = said_by(&of(service, "tls.crt"));
        names.sort_by_key(|name| name == "localhost");
        assert_eq!(names, own(service));
        assert_eq!(uris, [format!("spiffe://{TRUST_DOMAIN}/{service}")]);
        assert_eq!((is_server, is_client), (server, client), "{service}");
    }
    let public = said_by(&of("https", "tls.crt"));
    assert_eq!(public, (vec!["gateway.example".to_owned(), "localhost".to_owned()], vec![], true, false));
    let postgres = said_by(&of("postgres", "tls.crt"));
    let names = ["db.internal.example", "localhost", "postgres"].map(str::to_owned);
    assert_eq!(postgres, (names.into(), vec![], true, false));
    assert!(of("migrate", "ca.crt").exists() && !of("migrate", "tls.crt").exists());
    assert!(!of("migrate", "tls.key").exists());

    // Whoever trusts the one authority believes nothing of the other.
    let signed_by = |leaf: &Path, authority: &Path| {
        let [leaf, authority] = [leaf, authority].map(|file| CertificateDer::from_pem_file(file).unwrap());
        let (_, leaf) = x509_parser::parse_x509_certificate(&leaf).unwrap();
        let (_, authority) = x509_parser::parse_x509_certificate(&authority).unwrap();
        leaf.verify_signature(Some(authority.public_key())).is_ok()
    };
    assert!(signed_by(&of("https", "tls.crt"), &of("https", "ca.crt")));
    assert!(!signed_by(&of("https", "tls.crt"), &of("gateway", "ca.crt")));
    assert!(signed_by(&of("postgres", "tls.crt"), &of("gateway", "ca.crt")));
    assert!(!signed_by(&of("postgres", "tls.crt"), &of("https", "ca.crt")));
}

/// The certificate that a browser is shown at `address`, under `name`, if it believes `authorities`.
async fn shown_to_a_browser(
    address: &str,
    name: &'static str,
    authorities: &Path,
) -> Result<Vec<u8>, String> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authorities).unwrap()).unwrap();
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    let connector = TlsConnector::from(Arc::new(config));
    let stream = connector.connect(ServerName::try_from(name).unwrap(), stream).await;
    let stream = stream.map_err(|error| error.to_string())?;
    Ok(stream.get_ref().1.peer_certificates().unwrap()[0].to_vec())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_browsers_are_shown_is_renewed_and_what_is_not_renewed_is_warned_of() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let place = folder();
    let place = place.path();
    let public = ["--public-dns", "gateway.example"];
    assert_eq!(action(&certs(place, &public).await, "https"), "made");
    let config = configuration(place, Redis::shared().unwrap().url(), "postgres://nobody@127.0.0.1:1/none");
    let https = place.join("certs/https");
    let address = format!("127.0.0.1:{}", lasting_port().unwrap());
    let start = |service: &str, number, folder: &Path| {
        let mut variables = variables(place, service);
        variables.push(("GATEHOUSE_GATEWAY__TLS_ADDRESS", address.clone().into()));
        variables.push(("GATEHOUSE_GATEWAY__TLS_CERTIFICATE_FILE", folder.join("tls.crt")));
        variables.push(("GATEHOUSE_GATEWAY__TLS_KEY_FILE", folder.join("tls.key")));
        start(place, &config, service, number, &variables)
    };
    let gateway = start("gateway", 1, &https);
    let authority = https.join("ca.crt");
    let shown = async || shown_to_a_browser(&address, "gateway.example", &authority).await;
    eventually(PATIENCE, || async { shown().await.is_ok() }).await;
    let before = shown().await.unwrap();
    assert_eq!(action(&certs(place, &[&public[..], &["--renew"]].concat()).await, "https"), "renewed");
    eventually(PATIENCE, || async { shown().await.unwrap() != before }).await;
    let log = |name: &str| std::fs::read_to_string(place.join(format!("{name}.log"))).unwrap();
    assert!(!log("gateway-1").contains("ends soon"));
    drop(gateway);

    // Ten days before the end.
    let ours = Authority::open(&place.join("certs/ca/ca.crt"), &place.join("certs/ca/ca.key"));
    for (service, uris) in [("https", &[][..]), ("gateway", &["spiffe://dev.gatehouse.internal/gateway"])] {
        let leaf = Leaf { uris, ends_in_s: 10 * 86_400, ..Leaf::default() };
        let issued = ours.issue(place, service, &leaf);
        for (from, to) in [(issued.certificate, "tls.crt"), (issued.key, "tls.key")] {
            std::fs::copy(from, place.join("certs").join(service).join(to)).unwrap();
        }
    }
    let _gateway = start("gateway", 2, &https);
    eventually(PATIENCE, || async {
        let log = log("gateway-2");
        ["\"gateway\"", "\"gateway (HTTPS)\""].iter().all(|certificate| {
            log.lines().any(|line| line.contains(certificate) && line.contains("run `gatehouse certs`"))
        })
    })
    .await;
}

#[tokio::test]
async fn a_wrong_certificate_of_its_own_forbids_the_start() {
    let place = folder();
    let place = place.path();
    let config = configuration(place, "redis://127.0.0.1:1", "postgres://nobody@127.0.0.1:1/none");
    assert_eq!(action(&certs(place, &[]).await, "job"), "made");
    let start = async |files: [PathBuf; 3]| {
        let mut command = program();
        command.arg("job").arg("--config").arg(&config).env("GATEHOUSE_ENV", "dev");
        command.env("GATEHOUSE_CLIENT__SECRET_FILE", place.join("job.secret"));
        command.env("GATEHOUSE_PROBES__ADDRESS", "127.0.0.1:0");
        for (name, file) in ["CERT_FILE", "KEY_FILE", "CA_FILE"].iter().zip(files) {
            command.env(format!("GATEHOUSE_TLS__{name}"), file);
        }
        ended(&mut command).await.refusal()
    };
    let of = |service: &str, file: &str| place.join("certs").join(service).join(file);
    let ours = Authority::open(&of("ca", "ca.crt"), &of("ca", "ca.key"));
    let issue = |name: &str, uri: &str, ends_in_s| {
        let issued = ours.issue(place, name, &Leaf { uris: &[uri], ends_in_s, ..Leaf::default() });
        [issued.certificate, issued.key, issued.authorities]
    };
    let [certificate, key, authorities] = ["tls.crt", "tls.key", "ca.crt"].map(|file| of("job", file));
    std::fs::write(place.join("other.crt"), Authority::new().certificate()).unwrap();
    let none = PathBuf::new();
    let cases = [
        ([certificate.clone(), none.clone(), authorities.clone()], "key_file: is not set"),
        ([place.join("gone"), key.clone(), authorities.clone()], "tls.cert_file: is not the path of a file"),
        ([certificate.clone(), certificate.clone(), authorities.clone()], "holds no private key"),
        ([certificate.clone(), of("auth", "tls.key"), authorities.clone()], "is not the key of"),
        ([certificate.clone(), key.clone(), place.join("other.crt")], "vouches for it"),
        ([of("auth", "tls.crt"), of("auth", "tls.key"), authorities], "give it its own"),
        (issue("ended", "spiffe://dev.gatehouse.internal/job", -60), "it ended at"),
        (issue("prod", "spiffe://prod.gatehouse.internal/job", 60), "in the trust domain dev."),
        (issue("web", "https://example.com/job", 60), "is not of the form spiffe://"),
    ];
    for (files, expected) in cases {
        let refused = start(files).await;
        assert!(refused.contains(expected), "{expected}: {refused}");
    }
}
