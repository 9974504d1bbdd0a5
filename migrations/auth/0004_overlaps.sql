-- Tokens of a key's present text are dated to this at least, those of the texts before it are dated before. Absent: the
-- text is the key's first, or was made before this column was.
ALTER TABLE api_keys ADD COLUMN tokens_from BIGINT;
-- Whose overlap ends next. What ended is taken off the row.
CREATE INDEX api_keys_in_overlap ON api_keys (previous_until) WHERE previous_until IS NOT NULL;
