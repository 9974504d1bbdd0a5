//! SQL: constants and functions on `&mut Tx`, one file a table.
//!
//! `tenant_id` leads every statement on a tenant's data. The few that look across tenants (the queue, the sweeps)
//! are named in the test below.

pub(crate) mod events;
pub(crate) mod jobs;
pub(crate) mod queue_locks;
pub(crate) mod sessions;
pub(crate) mod sweeps;

use gatehouse_db::Sql;

/// Every statement of this service, for the test that prepares them on both engines.
#[must_use]
pub fn all_sql() -> Vec<Sql> {
    [jobs::ALL, events::ALL, queue_locks::ALL, sessions::ALL, sweeps::ALL].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_named_statements_look_across_tenants() {
        let across = [
            "CLAIM_ANY_TENANT",
            "HELD_BY",
            "FIND_ENDING",
            "LIST_STALLED",
            "LIST_TIMED_OUT",
            "LIST_EXPIRED",
            "COUNT_BY_STATE",
            "OLDEST_LOCK",
            "PURGE_QUEUE_LOCKS",
        ];
        for sql in all_sql() {
            let text = sql.postgres();
            let of_tenants = !text.contains("worker_sessions");
            let bound = text.contains("tenant_id = $1")
                || text.starts_with("INSERT INTO") && text.contains("(tenant_id,");
            assert!(
                !of_tenants || bound || across.contains(&sql.name()),
                "{} is not bound to a tenant",
                sql.name()
            );
        }
        assert_eq!(all_sql().iter().filter(|sql| sql.has_two_texts()).count(), 2);
    }
}
