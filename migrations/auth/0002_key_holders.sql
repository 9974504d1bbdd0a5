-- Who was shown a key's text: its maker, then whoever rotated it. Absent: the maker.
ALTER TABLE api_keys ADD COLUMN held_by TEXT;
ALTER TABLE api_keys ADD COLUMN previous_held_by TEXT;
