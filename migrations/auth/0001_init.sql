-- Accounts, tenants, sessions, keys, revocations. One text for PostgreSQL and SQLite.
-- Times are BIGINT microseconds since the Unix epoch. No token, password or private key stands here in clear.

CREATE TABLE people (
    person_id UUID NOT NULL PRIMARY KEY,
    -- Normalised: trimmed and lower-cased.
    email TEXT NOT NULL UNIQUE,
    email_verified BOOLEAN NOT NULL,
    display_name TEXT NOT NULL,
    -- PHC string; names the key of its pepper.
    password_hash TEXT NOT NULL,
    password_changed_at BIGINT NOT NULL,
    platform_admin BOOLEAN NOT NULL,
    disabled_at BIGINT,
    last_signed_in_at BIGINT,
    created_at BIGINT NOT NULL
);

CREATE TABLE tenants (
    tenant_id UUID NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    -- Counted up with every change of its members: the row that such changes queue for.
    members_version BIGINT NOT NULL,
    created_at BIGINT NOT NULL
);

CREATE TABLE memberships (
    tenant_id UUID NOT NULL REFERENCES tenants (tenant_id),
    person_id UUID NOT NULL REFERENCES people (person_id),
    role TEXT NOT NULL,
    added_at BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, person_id)
);
CREATE INDEX memberships_of_person ON memberships (person_id);

-- A session is a refresh token family.
CREATE TABLE sessions (
    session_id UUID NOT NULL PRIMARY KEY,
    person_id UUID NOT NULL REFERENCES people (person_id),
    tenant_id UUID REFERENCES tenants (tenant_id),
    user_agent TEXT NOT NULL,
    -- When the person last proved who they are.
    authenticated_at BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    last_used_at BIGINT NOT NULL,
    ends_at BIGINT NOT NULL,
    ended_at BIGINT,
    end_reason TEXT,
    -- The one token that is alive: its place and its keyed digest.
    generation BIGINT NOT NULL,
    digest_kid TEXT NOT NULL,
    digest BYTEA NOT NULL,
    -- Its parent, and the salt that the successor was made with; NULL in generation 0.
    parent_digest_kid TEXT,
    parent_digest BYTEA,
    salt BYTEA,
    consumed_at BIGINT
);
CREATE INDEX sessions_of_person ON sessions (person_id);
CREATE INDEX sessions_by_end ON sessions (ends_at);

CREATE TABLE api_keys (
    tenant_id UUID NOT NULL REFERENCES tenants (tenant_id),
    api_key_id UUID NOT NULL,
    name TEXT NOT NULL,
    -- Space-separated.
    permissions TEXT NOT NULL,
    -- Person, or another key, that made it: as it stands in the audit log.
    created_by TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT,
    last_used_at BIGINT,
    revoked_at BIGINT,
    hint TEXT NOT NULL,
    -- The present text, and until previous_until the one before.
    made_at BIGINT NOT NULL,
    digest_kid TEXT NOT NULL,
    digest BYTEA NOT NULL,
    previous_digest_kid TEXT,
    previous_digest BYTEA,
    previous_until BIGINT,
    PRIMARY KEY (tenant_id, api_key_id)
);
CREATE UNIQUE INDEX api_keys_by_id ON api_keys (api_key_id);

CREATE TABLE signing_keys (
    sequence BIGINT NOT NULL PRIMARY KEY,
    kid TEXT NOT NULL UNIQUE,
    created_at BIGINT NOT NULL,
    signs_from BIGINT NOT NULL,
    -- The private half, sealed by the key ring's key of this name.
    sealed_kid TEXT NOT NULL,
    sealed BYTEA NOT NULL
);

-- Numbers in commit order: whoever adds one holds the head's row until it commits.
CREATE TABLE revocation_head (
    id BIGINT NOT NULL PRIMARY KEY,
    sequence BIGINT NOT NULL,
    -- The latest that any entry has: no token is dated later than that or its own time.
    not_before BIGINT NOT NULL
);
INSERT INTO revocation_head (id, sequence, not_before) VALUES (1, 0, 0);

CREATE TABLE revocations (
    sequence BIGINT NOT NULL PRIMARY KEY,
    kind TEXT NOT NULL,
    subject_id TEXT NOT NULL,
    not_before BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
);
CREATE INDEX revocations_of_subject ON revocations (subject_id);
CREATE INDEX revocations_by_end ON revocations (expires_at);

-- One row once the first tenant was made: two processes that both start on empty tables make one.
CREATE TABLE bootstrap (
    id BIGINT NOT NULL PRIMARY KEY,
    done_at BIGINT NOT NULL
);
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
