"""Merges of subjects, and moved faces."""

from index.postgres.store import scrub_schema

# Merges of subjects (index/postgres/curation/merge_records.py), and what an undo needs: the absorbed subjects, with the
# columns of their rows; the earlier subjects of faces, and of rejected faces, with negative ids; and the ids of the
# subjects that an undo has restored. A rejected face that contradicts a merge is suspended by it.
_TABLES = """
    CREATE TABLE merges (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        collection_id bigint NOT NULL REFERENCES collections ON DELETE CASCADE,
        token text NOT NULL UNIQUE,
        subject_id bigint NOT NULL,
        created_at double precision NOT NULL,
        undo_until double precision NOT NULL,
        undone_at double precision,
        restored bigint[] NOT NULL DEFAULT '{}'
    );
    CREATE INDEX merges_by_collection ON merges (collection_id, id);
    CREATE INDEX merges_by_subject ON merges (subject_id);
    CREATE INDEX merges_by_time ON merges (undo_until);
    CREATE TABLE absorbed_subjects (
        id bigint PRIMARY KEY,
        collection_id bigint NOT NULL REFERENCES collections ON DELETE CASCADE,
        merge_id bigint NOT NULL,
        lookup bytea NOT NULL,
        seal bytea NOT NULL,
        sealed bytea NOT NULL,
        created_at double precision NOT NULL,
        expires_at double precision,
        filler text
    ) WITH (fillfactor = 95);
    CREATE INDEX absorbed_subjects_by_lookup ON absorbed_subjects (collection_id, lookup);
    CREATE INDEX absorbed_subjects_by_merge ON absorbed_subjects (merge_id);
    CREATE TABLE merged_faces (
        merge_id bigint NOT NULL REFERENCES merges ON DELETE CASCADE,
        face_id bigint NOT NULL,
        subject_id bigint NOT NULL,
        PRIMARY KEY (merge_id, face_id)
    );
    CREATE INDEX merged_faces_by_face ON merged_faces (face_id);
    ALTER TABLE rejections ADD COLUMN suspended_by bigint;
    CREATE INDEX rejections_suspended ON rejections (suspended_by) WHERE suspended_by IS NOT NULL;
"""

STEP = _TABLES + scrub_schema.set_up("absorbed_subjects")
