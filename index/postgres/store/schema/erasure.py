"""Functions that overwrite deleted rows in the pages of a table (index/postgres/store/scrubbing.py)."""

# `blank` sets the columns of content to values without; each byte of `filler` makes a row a byte longer. PostgreSQL
# writes the new version of a row into the row's page if it fits, else into another page.
STEP = """
    DROP FUNCTION IF EXISTS overwrite_free_space(regclass, bigint, text);
    CREATE FUNCTION page_of(place tid) RETURNS bigint LANGUAGE sql IMMUTABLE STRICT
        RETURN split_part(ltrim(place::text, '('), ',', 1)::bigint;
    -- Locks a row of the page that no other transaction has locked, and returns its place, or NULL without such a row.
    CREATE FUNCTION lock_row(relation regclass, page bigint) RETURNS tid LANGUAGE plpgsql AS $$
    DECLARE
        place tid;
    BEGIN
        EXECUTE format('SELECT ctid FROM %s WHERE ctid >= $1 AND ctid < $2 LIMIT 1 FOR UPDATE SKIP LOCKED', relation)
            INTO place USING format('(%s,0)', page)::tid, format('(%s,0)', page + 1)::tid;
        RETURN place;
    END $$;
    -- Fills the page with versions of a row: the first has a filler of `length` bytes, the next ones of 384. When one
    -- does not fit, adds the longest that does: less than 8 bytes are left then. Undo the transaction. Returns
    --   clean   the page was overwritten
    --   rest    what was left was too short for a version: try again with another `length`
    --   full    no version fits
    --   locked  other transactions have locked all rows
    CREATE FUNCTION overwrite_free_space(relation regclass, page bigint, blank text, length integer) RETURNS text
    LANGUAGE plpgsql AS $$
    DECLARE
        place tid := lock_row(relation, page);
        version tid;
        result text := 'full';
        is_last boolean := false;
    BEGIN
        IF place IS NULL THEN
            RETURN 'locked';
        END IF;
        WHILE length >= 0 LOOP
            BEGIN
                EXECUTE format('UPDATE %s SET filler = repeat(''0'', $1), %s WHERE ctid = $2', relation, blank)
                    || ' RETURNING ctid' INTO version USING length, place;
                IF page_of(version) != page THEN
                    RAISE SQLSTATE 'VS001';
                ELSIF is_last THEN
                    RETURN 'clean';
                END IF;
                place := version;
                length := 384;
                result := 'rest';
            EXCEPTION WHEN SQLSTATE 'VS001' THEN  -- undoes the version in the other page
                length := length - 8;
                is_last := true;
            END;
        END LOOP;
        RETURN result;
    END $$;
    -- Moves a row to another page. While the new version of a row still fits into this page, the next row is moved.
    CREATE FUNCTION move_row(relation regclass, page bigint) RETURNS void LANGUAGE plpgsql AS $$
    DECLARE
        version tid;
    BEGIN
        LOOP
            EXECUTE format('UPDATE %s SET filler = NULL WHERE ctid = $1 RETURNING ctid', relation) INTO version
                USING lock_row(relation, page);
            EXIT WHEN page_of(version) IS DISTINCT FROM page;
        END LOOP;
    END $$;
"""
