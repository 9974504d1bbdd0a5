-- A person's live sessions are found without those that ended: of these there may be many until they are purged.
CREATE INDEX live_sessions_of_person ON sessions (person_id) WHERE ended_at IS NULL;
