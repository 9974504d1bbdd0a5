-- One row for a tenant's queue of a kind that is nearly full: whoever counts it before adding to it takes the row first, so
-- that of many requests at once each counts what those before it added. It holds nothing, and goes when nobody took it
-- for a while.
CREATE TABLE queue_locks (
    tenant_id UUID NOT NULL,
    kind TEXT NOT NULL,
    taken_at BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, kind)
);
CREATE INDEX queue_locks_taken ON queue_locks (taken_at);
