-- When the upstream gave the token: one that is young is not renewed for a caller's wish. Null: written before this column
-- was; such a token counts as old.
ALTER TABLE access_tokens ADD COLUMN issued_at BIGINT;
