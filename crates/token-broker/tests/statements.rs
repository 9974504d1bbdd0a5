//! The SQL itself: it prepares on both engines, and the tenant leads.
#![expect(clippy::unwrap_used, reason = "a test")]

use gatehouse_testkit::{TestDb, both_engines};

/// By id and client alone, because a platform's client has no tenant; the rest is maintenance over all tenants.
const ACROSS_TENANTS: [&str; 11] = [
    "FIND_GRANT",
    "LIST_STANDING_GRANTS",
    "LIST_UNSHREDDED",
    "LIST_UNFINISHED",
    "FREE_LEASES",
    "LIST_INTERRUPTED",
    "LIST_FORGETTABLE",
    "FORGET_GRANTS",
    "PURGE_ACCESS_TOKENS",
    "PURGE_AUTHORIZATIONS",
    "PURGE_PERSON_LOCKS",
];

both_engines! {
    migrations: gatehouse_token_broker::MIGRATIONS;

    /// Every statement prepares.
    async fn every_statement_prepares(db: TestDb) {
        let all = gatehouse_token_broker::all_sql();
        assert!(all.len() > 30, "only {} statements were found", all.len());
        db.prepare_all(&all).await.unwrap();
        db.prepare_all(&gatehouse_outbox::all_sql()).await.unwrap();
    }
}

#[test]
fn every_statement_names_its_tenant_first() {
    for sql in gatehouse_token_broker::all_sql() {
        let text = sql.postgres();
        assert!(!sql.has_two_texts(), "{} has two texts", sql.name());
        assert!(!text.contains("SELECT *"), "{}", sql.name());
        let leads = text.contains("WHERE tenant_id = $1") || text.contains("(tenant_id, ");
        assert_eq!(leads, !ACROSS_TENANTS.contains(&sql.name()), "{}: {text}", sql.name());
    }
}

#[test]
fn the_outbox_tables_are_those_of_the_outbox() {
    let migration = include_str!("../../../migrations/token_broker/0001_init.sql");
    assert!(migration.contains(gatehouse_outbox::MIGRATION.trim()));
}
