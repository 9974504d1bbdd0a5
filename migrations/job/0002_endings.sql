-- The last lease that its worker ended, and what was said at that end: so that a worker whose acknowledgement was lost
-- can say the same again. Absent: none since this column is.
ALTER TABLE jobs ADD COLUMN ended_epoch BIGINT;
ALTER TABLE jobs ADD COLUMN ended_digest BYTEA;
-- A worker names a job by its id alone.
CREATE INDEX jobs_by_id ON jobs (id) WHERE ended_epoch IS NOT NULL;
