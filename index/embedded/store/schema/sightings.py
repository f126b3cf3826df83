"""Sightings of people by cameras."""

# Sightings (index/embedded/sightings). `position` is the order of the commits. As those of feedback, their ids are
# random, and negative in `removals`, so that a ledger restored from a backup repeats their removals, too.
STEP = """
    CREATE TABLE sighting_settings (
        collection_id INTEGER PRIMARY KEY REFERENCES collections (id) ON DELETE CASCADE,
        unknown_s REAL NOT NULL,
        known_s REAL NOT NULL,
        pseudonyms INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE sightings (
        position INTEGER PRIMARY KEY AUTOINCREMENT,
        id INTEGER NOT NULL UNIQUE,
        token TEXT NOT NULL UNIQUE,
        collection_id INTEGER NOT NULL REFERENCES collections (id) ON DELETE CASCADE,
        subject_id INTEGER REFERENCES subjects (id) ON DELETE CASCADE,
        camera TEXT NOT NULL,
        started_at REAL NOT NULL,
        ended_at REAL NOT NULL,
        frames INTEGER NOT NULL,
        probability REAL,
        distance REAL,
        fpir REAL,
        threshold REAL,
        created_at REAL NOT NULL,
        expires_at REAL NOT NULL
    ) STRICT;
    CREATE TABLE sighting_crops (
        sighting_id INTEGER PRIMARY KEY REFERENCES sightings (id) ON DELETE CASCADE,
        data BLOB NOT NULL
    ) STRICT;
    CREATE TABLE sighting_faces (
        sighting_id INTEGER PRIMARY KEY REFERENCES sightings (id) ON DELETE CASCADE,
        collection_id INTEGER NOT NULL,
        pseudonym TEXT NOT NULL,
        vector BLOB NOT NULL
    ) STRICT;
    CREATE INDEX sighting_faces_by_collection ON sighting_faces (collection_id, pseudonym);
    CREATE INDEX sightings_by_collection ON sightings (collection_id, position);
    CREATE INDEX sightings_by_subject ON sightings (subject_id, position);
    CREATE INDEX sightings_by_expiry ON sightings (expires_at);
    CREATE TRIGGER removals_of_sightings AFTER INSERT ON removals WHEN new.face_id < 0 BEGIN
        DELETE FROM sightings WHERE id = -new.face_id;
    END;
    -- The earlier subjects of the sightings that a merge moved.
    CREATE TABLE merged_sightings (
        merge_id INTEGER NOT NULL REFERENCES merges (id) ON DELETE CASCADE,
        sighting_id INTEGER NOT NULL REFERENCES sightings (id) ON DELETE CASCADE,
        subject_id INTEGER NOT NULL,
        PRIMARY KEY (merge_id, sighting_id)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX merged_sightings_by_sighting ON merged_sightings (sighting_id);
    ALTER TABLE receipts ADD COLUMN sightings INTEGER NOT NULL DEFAULT 0;
    """
