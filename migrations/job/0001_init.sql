-- Jobs, their events, and the sessions of the workers that hold them.
-- Times are microseconds since the Unix epoch. Ids are made by the service.

CREATE TABLE jobs (
    tenant_id UUID NOT NULL,
    id UUID NOT NULL,
    kind TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')),
    input TEXT NOT NULL,
    submitted_by TEXT NOT NULL,
    traceparent TEXT NOT NULL,
    -- Both NULL where the submitter gave no key.
    idempotency_key TEXT,
    request_digest BYTEA,
    created_at BIGINT NOT NULL,
    -- Not leased before: the pause before another attempt.
    available_at BIGINT NOT NULL,
    -- Place in the queue. See `domain::fair_turn`.
    turn BIGINT NOT NULL,
    started_at BIGINT,
    -- Of the running attempt.
    attempt_started_at BIGINT,
    finished_at BIGINT,
    expires_at BIGINT,
    attempt BIGINT NOT NULL,
    max_attempts BIGINT NOT NULL,
    -- Raised by every lease; each write of a worker names it.
    epoch BIGINT NOT NULL,
    -- Session of the worker that holds the lease; NULL unless running.
    holder UUID,
    cancel_requested BOOLEAN NOT NULL,
    last_sequence BIGINT NOT NULL,
    -- Highest write number of the running attempt.
    last_write BIGINT NOT NULL,
    progressed_at BIGINT,
    stalled BOOLEAN NOT NULL,
    checkpoint BYTEA,
    result TEXT,
    failure_reason TEXT,
    failure_message TEXT,
    PRIMARY KEY (tenant_id, id)
);

CREATE UNIQUE INDEX jobs_by_idempotency_key ON jobs (tenant_id, submitted_by, idempotency_key)
    WHERE idempotency_key IS NOT NULL;
CREATE INDEX jobs_in_queue ON jobs (kind, turn, id) WHERE state = 'queued';
CREATE INDEX jobs_in_queue_of_tenant ON jobs (tenant_id, kind, turn) WHERE state = 'queued';
CREATE INDEX jobs_by_holder ON jobs (holder) WHERE holder IS NOT NULL;
CREATE INDEX jobs_running ON jobs (kind, progressed_at) WHERE state = 'running';
CREATE INDEX jobs_by_expiry ON jobs (expires_at) WHERE expires_at IS NOT NULL;

-- A job's log. The key orders it; the lease's epoch guards it.
CREATE TABLE job_events (
    tenant_id UUID NOT NULL,
    job_id UUID NOT NULL,
    sequence BIGINT NOT NULL,
    type TEXT NOT NULL,
    occurred_at BIGINT NOT NULL,
    attempt BIGINT NOT NULL,
    data TEXT NOT NULL,
    PRIMARY KEY (tenant_id, job_id, sequence)
);

-- One row a connected worker: its heartbeat keeps all its leases.
CREATE TABLE worker_sessions (
    id UUID NOT NULL PRIMARY KEY,
    -- Who may take it up again: the `sub` of the worker's token.
    subject TEXT NOT NULL,
    name TEXT NOT NULL,
    -- Raised by every stream of the session; an older stream's heartbeats no longer count.
    stream BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
);

CREATE INDEX worker_sessions_by_expiry ON worker_sessions (expires_at);

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
