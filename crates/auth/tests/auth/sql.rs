//! The statements themselves.

use gatehouse_auth::{MIGRATIONS, all_sql};
use gatehouse_testkit::{TestDb, both_engines};

both_engines! {
    migrations: MIGRATIONS;

    async fn every_statement_prepares(db: TestDb) {
        db.prepare_all(&all_sql()).await.unwrap();
        db.prepare_all(&gatehouse_outbox::all_sql()).await.unwrap();
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
