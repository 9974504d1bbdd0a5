//! The statements themselves.

use gatehouse_auth::store::revocations::{LIST_FIRST_REVOCATIONS, LIST_REVOCATIONS};
use gatehouse_auth::{MIGRATIONS, all_sql};
use gatehouse_db::{Row, Sql, Value, params, run_tx};
use gatehouse_testkit::{TestDb, both_engines};

const ADD_MANY: Sql = Sql::new(
    "ADD_MANY",
    "WITH RECURSIVE n (v) AS (SELECT CAST(1 AS BIGINT) UNION ALL SELECT v + 1 FROM n WHERE v < $1) INSERT INTO revocations (sequence, kind, subject_id, not_before, expires_at) SELECT v, 'membership', 'x', v, v FROM n",
);
/// PostgreSQL does it by itself, a minute later.
const ANALYZE: Sql = Sql::dialects("ANALYZE", "ANALYZE revocations", "SELECT 1");

/// How the engine finds what `sql` asks for.
async fn plan(db: &TestDb, sql: &Sql, params: Vec<Value>) -> String {
    let explain = |how: &str, text: &str| -> &'static str { format!("{how} {text}").leak() };
    let asked = Sql::dialects(
        "EXPLAIN",
        explain("EXPLAIN", sql.postgres()),
        explain("EXPLAIN QUERY PLAN", sql.sqlite()),
    );
    let rows = run_tx!(db.db(), "test.explain", |tx| { tx.fetch_all(&asked, params.clone()).await }).unwrap();
    let line = |row: &Row| row.get("detail").or_else(|_| row.get("QUERY PLAN"));
    rows.iter().map(line).collect::<Result<Vec<String>, _>>().unwrap().join("\n")
}

both_engines! {
    migrations: MIGRATIONS;

    async fn every_statement_prepares(db: TestDb) {
        db.prepare_all(&all_sql()).await.unwrap();
        db.prepare_all(&gatehouse_outbox::all_sql()).await.unwrap();
    }

    /// They are read five times a second, mostly where nothing lives and what has ended in the last hours is there.
    async fn readings_of_revocations_do_not_go_through_what_has_ended(db: TestDb) {
        const ENDED: i64 = 100_000;
        run_tx!(db.db(), "test.revoke_many", |tx| { tx.execute(&ADD_MANY, params![ENDED]).await }).unwrap();
        run_tx!(db.db(), "test.analyze", |tx| { tx.fetch_all(&ANALYZE, params![]).await }).unwrap();
        let first = plan(&db, &LIST_FIRST_REVOCATIONS, params![ENDED, 1_000]).await;
        assert!(first.contains("revocations_by_end"), "{first}");
        // Above an entry that lives there are few.
        let after = plan(&db, &LIST_REVOCATIONS, params![ENDED - 1, ENDED, 1_000]).await;
        assert!(!after.to_lowercase().contains("scan revocations"), "{after}");
    }
}

/// Tenant data is reached through its tenant: with each statement that may do without, why.
#[test]
fn tenant_data_is_reached_through_its_tenant() {
    const EXEMPT: &[(&str, &str)] = &[
        ("LOOKUP_CREDENTIAL", "what is presented names no tenant"),
        ("PURGE_API_KEYS", "time ends keys of all tenants"),
        ("NEXT_END_OF_OVERLAP", "time ends old texts of all tenants' keys"),
        ("END_OVERLAPS", "time ends old texts of all tenants' keys"),
        ("LIST_TENANTS_OF_PERSON", "a person asks for their own memberships"),
    ];
    for sql in all_sql() {
        let text = sql.postgres();
        let tenants = text.contains("api_keys") || text.contains("memberships");
        let led =
            text.contains("tenant_id = $1") || text.starts_with("INSERT") && text.contains("(tenant_id,");
        let exempt = EXEMPT.iter().any(|(name, _)| *name == sql.name());
        assert_eq!(tenants && !led, exempt, "{}: {text}", sql.name());
        assert!(!sql.has_two_texts(), "{} has two texts", sql.name());
        assert!(!text.contains("SELECT *"), "{}", sql.name());
    }
}

/// The outbox's tables are what its crate says.
#[test]
fn the_outbox_tables_are_those_of_its_crate() {
    let migration = include_str!("../../../../migrations/auth/0001_init.sql");
    assert!(migration.contains(gatehouse_outbox::MIGRATION.trim()));
}
