-- Audit events on their way to the audit service. Rows live for a moment, but hold personal data while they do.
CREATE TABLE audit_outbox (
    event_id UUID NOT NULL PRIMARY KEY,
    -- Order of making: microseconds, made unique within a process.
    position BIGINT NOT NULL,
    -- gatehouse.audit.v1.NewEvent, encoded.
    event BYTEA NOT NULL,
    -- Why the audit service refused it; such a row stays for a person to look at, and no other waits for it.
    refused TEXT
);
CREATE INDEX audit_outbox_by_position ON audit_outbox (position);
-- Which replica relays; at most one row.
CREATE TABLE audit_outbox_relay (
    id BIGINT NOT NULL PRIMARY KEY,
    holder UUID NOT NULL,
    held_until BIGINT NOT NULL
);
