//! Every SQL text of every service, on both engines, and the rules that hold for all of them.

mod tenants;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use gatehouse_db::{Migrations, Sql};
use gatehouse_testkit::TestDb;
use tenants::Engine;

/// A service: the folder of its migrations, these, and its statements.
struct Service {
    folder: &'static str,
    migrations: Migrations,
    sql: Vec<Sql>,
    /// Whether it has an outbox.
    audited: bool,
}

fn services() -> [Service; 4] {
    [
        Service {
            folder: "auth",
            migrations: gatehouse_auth::MIGRATIONS,
            sql: gatehouse_auth::all_sql(),
            audited: true,
        },
        Service {
            folder: "token_broker",
            migrations: gatehouse_token_broker::MIGRATIONS,
            sql: gatehouse_token_broker::all_sql(),
            audited: true,
        },
        Service {
            folder: "job",
            migrations: gatehouse_job::MIGRATIONS,
            sql: gatehouse_job::all_sql(),
            audited: true,
        },
        Service {
            folder: "audit",
            migrations: gatehouse_audit::MIGRATIONS,
            sql: gatehouse_audit::all_sql(),
            audited: false,
        },
    ]
}

/// Every statement with the service that it is of.
fn statements() -> Vec<(&'static str, Sql)> {
    let outbox = gatehouse_outbox::all_sql().into_iter().map(|sql| ("outbox", sql));
    let of_services = services()
        .into_iter()
        .flat_map(|service| service.sql.into_iter().map(move |sql| (service.folder, sql)));
    outbox.chain(of_services).collect()
}

async fn prepare(service: &Service, db: TestDb) {
    db.prepare_all(&service.sql).await.unwrap_or_else(|error| panic!("{}: {error}", service.folder));
    if service.audited {
        db.prepare_all(&gatehouse_outbox::all_sql())
            .await
            .unwrap_or_else(|error| panic!("{}: {error}", service.folder));
    }
}

#[tokio::test]
async fn every_statement_prepares_on_sqlite() {
    for service in services() {
        let db = TestDb::sqlite(&service.migrations).await;
        prepare(&service, db).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_statement_prepares_on_postgresql() {
    for service in services() {
        let db = TestDb::postgres(&service.migrations).await;
        prepare(&service, db).await;
    }
}

#[test]
fn names_are_given_once_in_a_service() {
    let all = statements();
    let names: BTreeSet<_> = all.iter().map(|(service, sql)| (*service, sql.name())).collect();
    assert_eq!(
        names.len(),
        all.len(),
        "a name stands twice: {:?}",
        all.iter().map(|(s, sql)| (s, sql.name()))
    );
    assert!(all.len() > 100, "only {} statements were found", all.len());
}

/// What the portable subset leaves out: columns by chance, and the server's clock and chance.
#[test]
fn nothing_depends_on_the_server() {
    let banned = [
        "select *",
        "returning *",
        ".*",
        "now()",
        "current_timestamp",
        "current_time",
        "current_date",
        "localtime",
        "clock_timestamp",
        "statement_timestamp",
        "transaction_timestamp",
        "datetime(",
        "strftime(",
        "julianday(",
        "unixepoch",
        "date('",
        "extract(",
        "interval '",
        "random(",
        "gen_random",
        "uuid_generate",
        "nextval(",
        "last_insert_rowid",
        "currval(",
        "autoincrement",
    ];
    for (service, sql) in statements() {
        for text in [sql.postgres(), sql.sqlite()] {
            let lower = text.to_lowercase();
            for word in banned {
                assert!(!lower.contains(word), "{service} {}: {word} in {text}", sql.name());
            }
            assert!(!text.contains('?'), "{service} {}: parameters are $1, $2, …: {text}", sql.name());
        }
    }
    for service in services() {
        for (name, text) in migration_files(service.folder) {
            let lower = text.to_lowercase();
            for word in
                ["now()", "current_timestamp", "default gen_random", "serial", "autoincrement", "timestamptz"]
            {
                assert!(!lower.contains(word), "{}/{name}: {word}", service.folder);
            }
        }
    }
}

/// Tables with rows of no tenant, and why.
const NO_TENANT_DATA: &[(&str, &str)] = &[
    ("people", "people are global; what they are in a tenant stands in memberships"),
    ("tenants", "the tenants themselves: tenant_id is the row's own name"),
    ("sessions", "a person's: they are asked for by person or by the token's own id"),
    ("signing_keys", "the installation's"),
    ("revocations", "the installation's news, which every verifier reads whole"),
    ("revocation_head", "a counter"),
    ("bootstrap", "whether the installation was begun"),
    ("worker_sessions", "workers are the installation's"),
    ("audit_outbox", "an envelope on its way; the tenant is inside"),
    ("audit_outbox_relay", "who relays"),
    ("audit_heads", "a log's, and a log is of all tenants"),
    ("audit_events", "a log's sealed entries; what tenants are shown stands in audit_logs"),
    ("audit_tiles", "hashes"),
    ("subject_key_folder", "the installation's"),
    ("audit_checkpoints", "signatures of logs"),
];

/// Statements on tenants' data that look across tenants, and why.
const ACROSS_TENANTS: &[(&str, &str, &str)] = &[
    ("auth", "LOOKUP_CREDENTIAL", "what is presented names no tenant yet"),
    ("auth", "PURGE_API_KEYS", "time ends keys of all tenants"),
    ("auth", "NEXT_END_OF_OVERLAP", "time ends old texts of all tenants' keys"),
    ("auth", "END_OVERLAPS", "time ends old texts of all tenants' keys"),
    ("auth", "LIST_TENANTS_OF_PERSON", "a person asks for their own memberships"),
    ("job", "CLAIM_ANY_TENANT", "a worker that may work for all tenants asks for the next job"),
    ("job", "HELD_BY", "a worker's own leases"),
    ("job", "FIND_ENDING", "a worker says again how it ended a lease: found only by exactly its own words"),
    ("job", "LIST_STALLED", "a sweep"),
    ("job", "LIST_TIMED_OUT", "a sweep"),
    ("job", "LIST_EXPIRED", "a sweep"),
    ("job", "COUNT_BY_STATE", "a metric without names"),
    ("job", "OLDEST_LOCK", "a sweep"),
    ("job", "PURGE_QUEUE_LOCKS", "time ends those of all tenants"),
    ("token_broker", "PURGE_ACCESS_TOKENS", "time ends those of all tenants"),
    ("token_broker", "PURGE_AUTHORIZATIONS", "time ends those of all tenants"),
    ("token_broker", "PURGE_PERSON_LOCKS", "time ends those of all tenants"),
    ("token_broker", "LIST_STANDING_GRANTS", "a sweep; what it finds is handled tenant by tenant"),
    ("token_broker", "LIST_UNSHREDDED", "a sweep; what it finds is handled tenant by tenant"),
    ("token_broker", "LIST_UNFINISHED", "a sweep; what it finds is handled tenant by tenant"),
    ("token_broker", "LIST_FORGETTABLE", "a sweep; what it finds is handled tenant by tenant"),
    ("token_broker", "FORGET_GRANTS", "time ends those of all tenants"),
    ("token_broker", "LIST_INTERRUPTED", "a sweep; what it finds is handled tenant by tenant"),
    (
        "token_broker",
        "FREE_LEASES",
        "the only process of an installation starts, so none of its leases is held",
    ),
    ("token_broker", "FIND_GRANT", "an internal service shows a grant's id, and the grant says whose it is"),
    ("audit", "NAMES_IN_ROWS", "names of logs, for verification; a log is of all tenants"),
    ("audit", "ROW_WITHOUT_ENTRY", "verification of a whole log"),
    ("audit", "ROWS_BETWEEN", "the proof of a log reads it whole"),
    ("audit", "PRUNE_ROWS", "time ends a log's entries, whose they are"),
    ("audit", "ERASE_ACTOR", "a person is erased wherever they acted"),
    ("audit", "ERASE_TARGET", "a person is erased wherever something was done to them"),
    ("audit", "ERASE_SUBJECT", "a person is erased wherever they are the subject"),
];

#[test]
fn tenant_data_is_reached_through_its_tenant() {
    let mut used = BTreeSet::new();
    let mut gaps = Vec::new();
    for service in services() {
        let tables = tables(service.folder);
        for table in &tables {
            let of_tenants = table.columns.contains("tenant_id");
            let excused = NO_TENANT_DATA.iter().any(|(name, _)| *name == table.name);
            assert!(of_tenants || excused, "the table {} has no tenant_id; say why above", table.name);
        }
        let of_tenants: BTreeSet<String> = tables
            .into_iter()
            .map(|table| table.name)
            .filter(|table| !NO_TENANT_DATA.iter().any(|(name, _)| name == table))
            .collect();
        for sql in &service.sql {
            let texts = [(sql.postgres(), Engine::Postgres), (sql.sqlite(), Engine::Sqlite)];
            let found: Vec<String> = texts
                .into_iter()
                .flat_map(|(text, engine)| {
                    let gaps = tenants::gaps(text, engine, &of_tenants);
                    gaps.into_iter().map(move |gap| format!("{gap}: {text}"))
                })
                .collect();
            if found.is_empty() {
                continue;
            }
            if ACROSS_TENANTS.iter().any(|(of, name, _)| (*of, *name) == (service.folder, sql.name())) {
                used.insert((service.folder, sql.name()));
            } else {
                gaps.extend(found.into_iter().map(|gap| format!("{} {}: {gap}", service.folder, sql.name())));
            }
        }
    }
    assert!(gaps.is_empty(), "these reach tenants' data without naming the tenant:\n{}", gaps.join("\n"));
    let stale: Vec<_> = ACROSS_TENANTS.iter().filter(|(of, name, _)| !used.contains(&(*of, *name))).collect();
    assert!(stale.is_empty(), "these exceptions are of no statement: {stale:?}");
}

struct Table {
    name: String,
    columns: String,
}

/// The tables that a service's migrations create.
fn tables(folder: &str) -> Vec<Table> {
    let all = migration_files(folder).into_iter().map(|(_, text)| text).collect::<String>();
    all.split("CREATE TABLE ")
        .skip(1)
        .map(|rest| {
            let (name, columns) = rest.split_once('(').unwrap();
            let columns = columns.split_once("\n);").unwrap().0;
            Table { name: name.trim().to_owned(), columns: columns.to_owned() }
        })
        .collect()
}

fn migration_files(folder: &str) -> Vec<(String, String)> {
    let place = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../migrations")).join(folder);
    let mut files: Vec<_> = fs::read_dir(place)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), fs::read_to_string(entry.path()).unwrap())
        })
        .collect();
    files.sort();
    files
}

/// Each place with two texts is one where the engines can drift apart.
#[test]
fn few_statements_have_two_texts() {
    let two: Vec<String> = statements()
        .iter()
        .filter(|(_, sql)| sql.has_two_texts())
        .map(|(service, sql)| format!("{service} {}", sql.name()))
        .collect();
    println!("{} statements have two texts: {}", two.len(), two.join(", "));
    assert!(two.len() <= 12, "{} statements have two texts: {}", two.len(), two.join(", "));
}

#[test]
fn every_migration_file_is_listed() {
    for service in services() {
        let files: Vec<String> = migration_files(service.folder)
            .into_iter()
            .map(|(name, _)| name.trim_end_matches(".sql").to_owned())
            .collect();
        let listed: Vec<String> = service.migrations.names().map(str::to_owned).collect();
        assert_eq!(files, listed, "{}", service.folder);
        assert!(!files.is_empty());
    }
    let folders = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../../migrations")).unwrap().count();
    assert_eq!(folders, services().len(), "a folder of migrations belongs to no service");
}
