-- The folder that payloads' keys lie in: it carries the same id in a file of its own. Another folder, or an empty one in its
-- place, would seal what comes with other keys and show everybody as erased.
CREATE TABLE subject_key_folder (
    -- Always 1.
    id BIGINT NOT NULL PRIMARY KEY,
    folder_id UUID NOT NULL
);
