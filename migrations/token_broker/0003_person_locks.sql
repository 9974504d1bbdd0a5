-- One row for a person in a tenant: whatever counts what they have before it adds to it takes the row first, so that of many
-- requests at once each counts what those before it added. It holds nothing, and goes when nobody took it for a while.
CREATE TABLE person_locks (
    tenant_id UUID NOT NULL,
    person_id UUID NOT NULL,
    taken_at BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, person_id)
);
CREATE INDEX person_locks_taken ON person_locks (taken_at);
