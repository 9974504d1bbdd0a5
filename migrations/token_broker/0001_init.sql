-- What the token broker knows. No refresh token stands in any column: `connections` points at none, `rotations.escrow`
-- and `access_tokens.sealed` are ciphertexts under a key that the secrets backend holds.

-- A person's connection to an upstream. `generation` is the fencing number: each rotation raises it, and only who holds
-- the newest may change what the connection points at.
CREATE TABLE connections (
    tenant_id UUID NOT NULL,
    connection_id UUID NOT NULL,
    person_id UUID NOT NULL,
    upstream TEXT NOT NULL,
    scopes TEXT NOT NULL,
    -- connecting, active, needs_reauthorization, disconnected
    state TEXT NOT NULL,
    generation BIGINT NOT NULL,
    rotations BIGINT NOT NULL,
    lease_holder UUID,
    lease_until BIGINT,
    failures BIGINT NOT NULL,
    retry_at BIGINT,
    created_at BIGINT NOT NULL,
    rotated_at BIGINT,
    last_used_at BIGINT,
    disconnected_at BIGINT,
    shredded_at BIGINT,
    PRIMARY KEY (tenant_id, connection_id)
);
-- One live connection for each person and upstream.
CREATE UNIQUE INDEX connections_live ON connections (tenant_id, person_id, upstream) WHERE state <> 'disconnected';
CREATE INDEX connections_unshredded ON connections (disconnected_at) WHERE state = 'disconnected' AND shredded_at IS NULL;
CREATE INDEX connections_unfinished ON connections (created_at) WHERE state = 'connecting';

-- One attempt to use a refresh token, written before the call.
CREATE TABLE rotations (
    tenant_id UUID NOT NULL,
    connection_id UUID NOT NULL,
    generation BIGINT NOT NULL,
    -- Idempotency token of what it puts into the secrets backend.
    rotation_id UUID NOT NULL,
    -- intent: the call may have happened. answered: its answer is in escrow. lost: given up, but an answer may still be
    -- laid into escrow. done, refused, failed, superseded: over.
    state TEXT NOT NULL,
    -- Version in the secrets backend of the token that was shown, and its SHA-256.
    token_version TEXT NOT NULL,
    token_hash BYTEA NOT NULL,
    scopes TEXT NOT NULL,
    deadline BIGINT NOT NULL,
    escrow BYTEA,
    failure TEXT,
    started_at BIGINT NOT NULL,
    finished_at BIGINT,
    PRIMARY KEY (tenant_id, connection_id, generation)
);
CREATE INDEX rotations_unfinished ON rotations (deadline) WHERE state IN ('intent', 'answered');

-- Access tokens, sealed, for at most an hour; one for each set of scopes.
CREATE TABLE access_tokens (
    tenant_id UUID NOT NULL,
    connection_id UUID NOT NULL,
    scopes TEXT NOT NULL,
    generation BIGINT NOT NULL,
    sealed BYTEA NOT NULL,
    token_type TEXT NOT NULL,
    granted TEXT NOT NULL,
    expires_at BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, connection_id, scopes)
);
CREATE INDEX access_tokens_expiry ON access_tokens (expires_at);

-- Authorizations on their way: consumed by deletion, so that each state works once.
CREATE TABLE authorizations (
    tenant_id UUID NOT NULL,
    state_digest BYTEA NOT NULL,
    person_id UUID NOT NULL,
    session_id UUID,
    authorization_id UUID NOT NULL,
    upstream TEXT NOT NULL,
    scopes TEXT NOT NULL,
    verifier BYTEA NOT NULL,
    expires_at BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, state_digest)
);
CREATE INDEX authorizations_expiry ON authorizations (expires_at);

-- A person's permission to one internal service to act while they are away.
CREATE TABLE offline_grants (
    tenant_id UUID NOT NULL,
    offline_grant_id UUID NOT NULL,
    person_id UUID NOT NULL,
    connection_id UUID NOT NULL,
    client_id TEXT NOT NULL,
    scopes TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    revoked_at BIGINT,
    PRIMARY KEY (tenant_id, offline_grant_id)
);
CREATE UNIQUE INDEX offline_grants_id ON offline_grants (offline_grant_id);
CREATE INDEX offline_grants_person ON offline_grants (tenant_id, person_id);

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
