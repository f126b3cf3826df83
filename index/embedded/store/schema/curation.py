"""Merges of subjects, and moved faces."""

# Faces whose subject changed, each with the number of its last change, for searchers that have the earlier subject.
# Merges of subjects (index/embedded/curation/merge_records.py), and what an undo needs. The row of an absorbed
# subject has the subject's columns while the merge can be undone; `into_id`, which a later merge may absorb in
# turn, stays: erasing that subject is also the removal of all that it absorbed, for a ledger that is restored from
# a backup of before the merge. A rejected face that contradicts a merge is suspended by it.
STEP = """
    CREATE TABLE reassignments (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        collection_id INTEGER NOT NULL,
        face_id INTEGER NOT NULL UNIQUE REFERENCES faces (id) ON DELETE CASCADE
    ) STRICT;
    CREATE INDEX reassignments_by_collection ON reassignments (collection_id, seq);
    CREATE TABLE merges (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        collection_id INTEGER NOT NULL REFERENCES collections (id) ON DELETE CASCADE,
        token TEXT NOT NULL UNIQUE,
        subject_id INTEGER NOT NULL,
        created_at REAL NOT NULL,
        undo_until REAL NOT NULL,
        undone_at REAL
    ) STRICT;
    CREATE INDEX merges_by_collection ON merges (collection_id, id);
    CREATE INDEX merges_by_subject ON merges (subject_id);
    CREATE INDEX merges_by_time ON merges (undo_until);
    CREATE TABLE absorbed_subjects (
        id INTEGER PRIMARY KEY,
        collection_id INTEGER NOT NULL REFERENCES collections (id) ON DELETE CASCADE,
        into_id INTEGER NOT NULL,
        merge_id INTEGER REFERENCES merges (id) ON DELETE SET NULL,
        key TEXT,
        name TEXT,
        metadata TEXT,
        created_at REAL,
        expires_at REAL,
        sealed BLOB
    ) STRICT;
    CREATE INDEX absorbed_subjects_by_collection ON absorbed_subjects (collection_id, key);
    CREATE INDEX absorbed_subjects_by_successor ON absorbed_subjects (into_id);
    CREATE INDEX absorbed_subjects_by_merge ON absorbed_subjects (merge_id) WHERE merge_id IS NOT NULL;
    -- The earlier subjects of faces, and of rejected faces, with negative ids; and the restored subjects of an undone
    -- merge.
    CREATE TABLE merged_faces (
        merge_id INTEGER NOT NULL REFERENCES merges (id) ON DELETE CASCADE,
        face_id INTEGER NOT NULL,
        subject_id INTEGER NOT NULL,
        PRIMARY KEY (merge_id, face_id)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX merged_faces_by_face ON merged_faces (face_id);
    CREATE TABLE restored_subjects (
        merge_id INTEGER NOT NULL REFERENCES merges (id) ON DELETE CASCADE,
        subject_id INTEGER NOT NULL,
        PRIMARY KEY (merge_id, subject_id)
    ) STRICT, WITHOUT ROWID;
    ALTER TABLE rejections ADD COLUMN suspended_by INTEGER;
    CREATE TRIGGER removals_of_merges AFTER INSERT ON removals WHEN new.subject_id != 0 BEGIN
        DELETE FROM absorbed_subjects WHERE id = new.subject_id;
        DELETE FROM merges WHERE subject_id = new.subject_id;
    END;
    """
