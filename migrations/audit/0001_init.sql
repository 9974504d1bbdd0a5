-- The logs: a hash chain of entries for each retention class (audit_events), with the tree over it (audit_tiles) and
-- its signed checkpoints, and the plain rows that people search (audit_logs).

-- One row a log. Whoever appends or prunes updates it first and so holds its lock.
CREATE TABLE audit_heads (
    log TEXT NOT NULL PRIMARY KEY,
    -- Entries ever written, those pruned included; the next one gets this number.
    size BIGINT NOT NULL,
    -- The link that the next entry will carry.
    chain BYTEA NOT NULL,
    -- Grows with every transaction that holds the lock: a writer that lost it writes nothing.
    epoch BIGINT NOT NULL,
    -- The first entry kept, and the link that it carries.
    first_seq BIGINT NOT NULL,
    first_chain BYTEA NOT NULL,
    -- The signed statement that the entries before it were pruned; none before the first prune.
    pruned_note TEXT
);

-- The entries. Written once, removed only from the front.
CREATE TABLE audit_events (
    log TEXT NOT NULL,
    seq BIGINT NOT NULL,
    event_id UUID NOT NULL,
    recorded_at BIGINT NOT NULL,
    -- The envelope: exactly the bytes that are hashed.
    leaf BYTEA NOT NULL,
    -- Sealed with the subject's key, which is not in this database.
    payload BYTEA NOT NULL,
    PRIMARY KEY (log, seq)
);
-- An event is taken once, whichever log it asked for.
CREATE UNIQUE INDEX audit_events_by_event ON audit_events (event_id);

-- C2SP tlog-tiles: up to 256 hashes of 32 bytes each. Kept when entries are pruned, so that old checkpoints can still
-- be connected with new ones.
CREATE TABLE audit_tiles (
    log TEXT NOT NULL,
    level BIGINT NOT NULL,
    tile BIGINT NOT NULL,
    hashes BYTEA NOT NULL,
    PRIMARY KEY (log, level, tile)
);

-- One signed note for a size, ever: two would be two histories.
CREATE TABLE audit_checkpoints (
    log TEXT NOT NULL,
    size BIGINT NOT NULL,
    signed_at BIGINT NOT NULL,
    note TEXT NOT NULL,
    PRIMARY KEY (log, size)
);

-- The same events for searching. The tenant of the platform's own events is the nil UUID.
CREATE TABLE audit_logs (
    tenant_id UUID NOT NULL,
    occurred_at BIGINT NOT NULL,
    event_id UUID NOT NULL,
    log TEXT NOT NULL,
    seq BIGINT NOT NULL,
    recorded_at BIGINT NOT NULL,
    service TEXT NOT NULL,
    action TEXT NOT NULL,
    outcome TEXT NOT NULL,
    reason TEXT,
    -- Ids, never names; a person's is replaced by the pseudonym when they are erased.
    actor TEXT NOT NULL,
    delegate TEXT,
    subject_id UUID,
    target TEXT,
    request_id TEXT,
    trace_id TEXT,
    PRIMARY KEY (tenant_id, occurred_at, event_id)
);
CREATE UNIQUE INDEX audit_logs_by_place ON audit_logs (log, seq);
CREATE INDEX audit_logs_by_actor ON audit_logs (actor, tenant_id, occurred_at);
CREATE INDEX audit_logs_by_subject ON audit_logs (subject_id);
CREATE INDEX audit_logs_by_target ON audit_logs (target, tenant_id, occurred_at);
CREATE INDEX audit_logs_by_request ON audit_logs (request_id, tenant_id);
