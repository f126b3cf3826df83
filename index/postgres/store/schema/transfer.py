"""Imports of exported galleries."""

# How many rows of each part of an export of a gallery were loaded, so that none is loaded twice. `collection_id`: of
# the collection that the export created; NULL for receipts.
STEP = """
    CREATE TABLE imports (
        export text NOT NULL,
        part text NOT NULL,
        source text NOT NULL,
        exported_at double precision NOT NULL,
        collection_id bigint,
        rows bigint NOT NULL,
        PRIMARY KEY (export, part)
    );
"""
