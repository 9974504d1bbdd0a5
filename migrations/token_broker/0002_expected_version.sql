-- The version that was current when the attempt's holder looked, under its lease: only that one may be replaced by what
-- the attempt brings, however late it is settled. Empty: none was. Null: written before this column was.
ALTER TABLE rotations ADD COLUMN expected_version TEXT;
