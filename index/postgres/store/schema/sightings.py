"""Sightings of people by cameras."""

from index.postgres.store import scrub_schema

# `position` is the order of the commits: the row of the settings is locked before a sighting is inserted.
_TABLES = """
    CREATE TABLE sighting_settings (
        collection_id bigint PRIMARY KEY REFERENCES collections ON DELETE CASCADE,
        unknown_s double precision NOT NULL,
        known_s double precision NOT NULL,
        pseudonyms boolean NOT NULL
    );
    CREATE TABLE sightings (
        position bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        id bigint NOT NULL UNIQUE,
        token text NOT NULL UNIQUE,
        collection_id bigint NOT NULL REFERENCES collections ON DELETE CASCADE,
        subject_id bigint REFERENCES subjects ON DELETE CASCADE,
        camera text NOT NULL,
        started_at double precision NOT NULL,
        ended_at double precision NOT NULL,
        frames integer NOT NULL,
        probability double precision,
        distance double precision,
        fpir double precision,
        threshold double precision,
        created_at double precision NOT NULL,
        expires_at double precision NOT NULL,
        filler text
    ) WITH (fillfactor = 95);
    -- Best shots, and faces of unknown people. These rows are never updated: new versions of rows would lie where an
    -- erasure may leave some of their bytes. `number` is 0; scrubbing inserts others.
    CREATE TABLE sighting_crops (
        sighting_id bigint NOT NULL REFERENCES sightings (id) ON DELETE CASCADE,
        number bigint NOT NULL DEFAULT 0,
        seal bytea NOT NULL,
        crop bytea NOT NULL,
        filler text,
        PRIMARY KEY (sighting_id, number)
    ) WITH (fillfactor = 95);
    ALTER TABLE sighting_crops ALTER crop SET STORAGE EXTERNAL;
    CREATE TABLE sighting_faces (
        sighting_id bigint NOT NULL REFERENCES sightings (id) ON DELETE CASCADE,
        number bigint NOT NULL DEFAULT 0,
        collection_id bigint NOT NULL,
        pseudonym text NOT NULL,
        vector vector,
        filler text,
        PRIMARY KEY (sighting_id, number)
    ) WITH (fillfactor = 95);
    ALTER TABLE sighting_faces ALTER vector SET STORAGE PLAIN;
    CREATE INDEX sighting_faces_by_collection ON sighting_faces (collection_id, pseudonym);
    CREATE INDEX sightings_by_collection ON sightings (collection_id, position);
    CREATE INDEX sightings_by_subject ON sightings (subject_id, position);
    CREATE INDEX sightings_by_expiry ON sightings (expires_at);
    -- The earlier subjects of the sightings that a merge moved.
    CREATE TABLE merged_sightings (
        merge_id bigint NOT NULL REFERENCES merges ON DELETE CASCADE,
        sighting_id bigint NOT NULL REFERENCES sightings (id) ON DELETE CASCADE,
        subject_id bigint NOT NULL,
        PRIMARY KEY (merge_id, sighting_id)
    );
    CREATE INDEX merged_sightings_by_sighting ON merged_sightings (sighting_id);
    ALTER TABLE receipts ADD COLUMN sightings bigint NOT NULL DEFAULT 0;
"""

STEP = _TABLES + "".join(map(scrub_schema.set_up, ("sightings", "sighting_crops", "sighting_faces")))
