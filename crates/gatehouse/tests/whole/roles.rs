//! `deploy/compose/roles.sql` on a real server: what each role may do, and that what was changed by hand is changed back.

use std::path::Path;

use gatehouse_testkit::Postgres;

use crate::processes::SERVICES;
use crate::support::{Ended, ended, folder, program};

const ROLES_SQL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/compose/roles.sql");

/// Every right, attribute, setting and membership of the five roles, and who owns what, one a line.
const PICTURE: &str = "
    SELECT line FROM (
        SELECT format('role %s %s%s%s%s%s%s%s limit %s until %s', rolname, rolsuper, rolinherit, rolcreaterole, rolcreatedb,
                      rolcanlogin, rolreplication, rolbypassrls, rolconnlimit, rolvaliduntil) AS line
        FROM pg_roles WHERE rolname LIKE 'gatehouse\\_%'
        UNION ALL
        SELECT format('setting %s %s %s', setrole::regrole, setdatabase, setconfig) FROM pg_db_role_setting
        UNION ALL
        SELECT format('member %s of %s', member::regrole, roleid::regrole) FROM pg_auth_members
        WHERE format('%s %s', member::regrole, roleid::regrole) LIKE '%gatehouse\\_%'
        UNION ALL
        SELECT format('%s %s of %s: %s to %s', kind, name, owner::regrole, privilege_type, grantee)
        FROM (
            SELECT 'database' AS kind, datname::text AS name, datdba AS owner, datacl AS acl FROM pg_database
            UNION ALL SELECT 'schema', nspname, nspowner, nspacl FROM pg_namespace
            UNION ALL SELECT 'table', oid::regclass::text, relowner, relacl FROM pg_class
                      WHERE relnamespace::regnamespace::text LIKE 'gatehouse\\_%'
            UNION ALL SELECT 'default', format('%s %s', defaclnamespace::regnamespace, defaclobjtype), defaclrole, defaclacl
                      FROM pg_default_acl
            UNION ALL SELECT 'function', oid::regprocedure::text, proowner, proacl FROM pg_proc WHERE proname ~ '^lo'
            UNION ALL SELECT 'large object', oid::text, lomowner, lomacl FROM pg_largeobject_metadata
        ) AS things LEFT JOIN LATERAL aclexplode(acl) ON true
    ) AS lines ORDER BY line";

struct Database<'a> {
    place: &'a Path,
    url: &'a str,
}

impl Database<'_> {
    fn password(&self, user: &str) -> String {
        std::fs::read_to_string(self.place.join(format!("secrets/postgres/{user}.password"))).unwrap()
    }

    /// The address for one of the roles; `user` as its password file is called.
    fn url_of(&self, user: &str, password: &str) -> String {
        let at = self.url.rsplit_once('@').unwrap().1.rsplit_once('/').unwrap().0;
        format!("postgres://gatehouse_{}:{password}@{at}/gatehouse", user.replace('-', "_"))
    }

    async fn psql(&self, url: &str, arguments: &[&str]) -> Ended {
        let mut command = tokio::process::Command::new("psql");
        command.args(["-X", "-q", "-t", "-A", "-v", "ON_ERROR_STOP=1", url]).args(arguments);
        ended(command.env("GATEHOUSE_SECRETS", self.place.join("secrets/postgres"))).await
    }

    async fn as_user(&self, user: &str, statement: &str) -> Ended {
        self.psql(&self.url_of(user, &self.password(user)), &["-c", statement]).await
    }

    /// As the superuser, in the database of Gatehouse.
    async fn by_hand(&self, statement: &str) -> String {
        let url = format!("{}/gatehouse", self.url.rsplit_once('/').unwrap().0);
        let said = self.psql(&url, &["-c", statement]).await;
        assert_eq!(said.code, Some(0), "{statement}: {said:?}");
        said.stdout
    }

    async fn roles(&self) {
        let said = self.psql(self.url, &["-f", ROLES_SQL]).await;
        assert_eq!(said.code, Some(0), "{said:?}");
    }

    async fn refused(&self, user: &str, statement: &str, words: &str) {
        let said = self.as_user(user, statement).await;
        assert!(said.code != Some(0) && said.stderr.contains(words), "{user}: {statement}: {said:?}");
    }
}

async fn made(place: &Path, database: &Database<'_>) {
    let mut secrets = program();
    secrets.env("GATEHOUSE_ENV", "dev").args(["admin", "secrets", "create", "--folder"]);
    assert_eq!(ended(secrets.arg(place.join("secrets"))).await.code, Some(0));
    database.roles().await;
    let mut migrate = program();
    migrate.env("GATEHOUSE_ENV", "dev").arg("migrate");
    for service in SERVICES {
        let section = service.replace('-', "_").to_uppercase();
        let url = database.url_of("migrate", &database.password("migrate"));
        migrate.env(format!("GATEHOUSE_DATABASES__{section}__URL"), url);
    }
    let migrated = ended(&mut migrate).await;
    assert_eq!(migrated.code, Some(0), "{migrated:?}");
}

#[tokio::test]
async fn a_service_reads_and_writes_its_own_rows_and_no_more() {
    let place = folder();
    let postgres = Postgres::start().unwrap();
    let database = Database { place: place.path(), url: postgres.url() };
    made(place.path(), &database).await;
    for service in SERVICES {
        let own = format!("gatehouse_{}", service.replace('-', "_"));
        for other in SERVICES {
            let read = format!("SELECT count(*) FROM gatehouse_{}._sqlx_migrations", other.replace('-', "_"));
            if other == service {
                assert_eq!(database.as_user(service, &read).await.code, Some(0), "{service}");
            } else {
                database.refused(service, &read, "permission denied for schema").await;
            }
        }
        for (statement, words) in [
            (format!("CREATE TABLE {own}.planted (x int)"), "permission denied"),
            ("CREATE TABLE public.planted (x int)".to_owned(), "permission denied"),
            ("CREATE TEMPORARY TABLE planted (x int)".to_owned(), "permission denied"),
            ("CREATE SCHEMA planted".to_owned(), "permission denied"),
            (format!("DROP TABLE {own}._sqlx_migrations"), "must be owner"),
            (format!("TRUNCATE {own}._sqlx_migrations"), "permission denied"),
            ("SELECT lo_from_bytea(0, 'planted')".to_owned(), "permission denied for function"),
            ("SELECT lo_creat(-1)".to_owned(), "permission denied for function"),
            (format!("ALTER ROLE {own} CONNECTION LIMIT -1"), "permission denied"),
            ("ALTER ROLE gatehouse_migrate PASSWORD 'x'".to_owned(), ""),
            ("SET ROLE gatehouse_migrate".to_owned(), "permission denied"),
        ] {
            database.refused(service, &statement, words).await;
        }
        let url = database.url_of(service, &database.password(service));
        let other = format!("{}/postgres", url.rsplit_once('/').unwrap().0);
        let said = database.psql(&other, &["-c", "SELECT 1"]).await;
        assert!(said.stderr.contains("permission denied for database"), "{service}: {said:?}");
    }
    // One stolen password leaves room for the others.
    let limits = "SELECT sum(rolconnlimit) < 190 AND min(rolconnlimit) > 0 FROM pg_roles WHERE rolname LIKE 'gatehouse\\_%'";
    assert_eq!(database.by_hand(limits).await, "t\n");
}

#[tokio::test]
async fn what_was_changed_by_hand_or_by_a_service_is_changed_back() {
    let place = folder();
    let postgres = Postgres::start().unwrap();
    let database = Database { place: place.path(), url: postgres.url() };
    made(place.path(), &database).await;
    let clean = database.by_hand(PICTURE).await;
    database.roles().await;
    assert_eq!(database.by_hand(PICTURE).await, clean, "a second run changes nothing");

    // What a service can do to itself.
    let itself = "ALTER ROLE gatehouse_job PASSWORD 'taken';
                  ALTER ROLE gatehouse_job IN DATABASE gatehouse SET search_path = public;
                  ALTER ROLE gatehouse_job SET statement_timeout = 1";
    let said = database.as_user("job", itself).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(database.as_user("job", "SELECT 1").await.code, Some(2), "locked out");
    // What somebody may have tried out.
    for statement in [
        "GRANT gatehouse_auth TO gatehouse_audit",
        "GRANT gatehouse_auth TO gatehouse_migrate WITH ADMIN OPTION",
        "GRANT pg_read_all_data TO gatehouse_token_broker",
        "ALTER ROLE gatehouse_job CREATEDB CREATEROLE REPLICATION BYPASSRLS CONNECTION LIMIT -1",
        "ALTER ROLE gatehouse_auth SUPERUSER",
        "ALTER ROLE gatehouse_audit VALID UNTIL '2001-01-01'",
        "GRANT USAGE, CREATE ON SCHEMA gatehouse_auth TO gatehouse_job",
        "GRANT SELECT ON gatehouse_auth._sqlx_migrations TO gatehouse_job",
        "GRANT TRUNCATE ON gatehouse_job._sqlx_migrations TO gatehouse_job",
        "GRANT SELECT ON gatehouse_auth._sqlx_migrations TO PUBLIC",
        "GRANT USAGE ON SCHEMA gatehouse_auth TO PUBLIC",
        "ALTER DEFAULT PRIVILEGES FOR ROLE gatehouse_migrate IN SCHEMA gatehouse_auth GRANT ALL ON TABLES TO gatehouse_job",
        "ALTER TABLE gatehouse_audit._sqlx_migrations OWNER TO gatehouse_audit",
        "ALTER SCHEMA gatehouse_audit OWNER TO gatehouse_audit",
        "GRANT CREATE, TEMPORARY ON DATABASE gatehouse TO gatehouse_job, gatehouse_migrate",
        "GRANT CONNECT ON DATABASE postgres TO gatehouse_job",
        "ALTER DATABASE gatehouse OWNER TO gatehouse_job",
        "GRANT CREATE ON SCHEMA public TO gatehouse_job",
        "GRANT EXECUTE ON FUNCTION lo_creat(int) TO gatehouse_job",
        "GRANT EXECUTE ON FUNCTION lo_from_bytea(oid, bytea) TO PUBLIC",
    ] {
        database.by_hand(statement).await;
    }
    assert_ne!(database.by_hand(PICTURE).await, clean);
    database.roles().await;
    let after = database.by_hand(PICTURE).await;
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>();
    let (left, lost) = (&lines(&after) - &lines(&clean), &lines(&clean) - &lines(&after));
    assert!(left.is_empty() && lost.is_empty(), "left: {left:#?}\nlost: {lost:#?}");
    assert_eq!(database.as_user("job", "SHOW statement_timeout").await.stdout, "0\n");
}
