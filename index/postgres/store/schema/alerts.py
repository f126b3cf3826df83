"""Rules of alerts, alerts and their deliveries."""

# `position` is the order of the commits: an advisory lock is held until the end of a transaction that inserts alerts.
# A delivery is "pending", "delivered" or "dead"; `attempts` have failed since `queued_at`.
STEP = """
    CREATE TABLE alert_rules (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        token text NOT NULL UNIQUE,
        collection_id bigint NOT NULL REFERENCES collections ON DELETE CASCADE,
        settings text NOT NULL,
        created_at double precision NOT NULL
    );
    CREATE INDEX alert_rules_by_collection ON alert_rules (collection_id, id);
    CREATE TABLE alert_targets (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        token text NOT NULL UNIQUE,
        rule_id bigint NOT NULL REFERENCES alert_rules ON DELETE CASCADE
    );
    CREATE INDEX alert_targets_by_rule ON alert_targets (rule_id, id);
    CREATE TABLE alerts (
        position bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        token text NOT NULL UNIQUE,
        rule_id bigint NOT NULL REFERENCES alert_rules ON DELETE CASCADE,
        sighting_position bigint NOT NULL REFERENCES sightings ON DELETE CASCADE,
        created_at double precision NOT NULL
    );
    CREATE INDEX alerts_by_rule ON alerts (rule_id, created_at);
    CREATE INDEX alerts_by_sighting ON alerts (sighting_position);
    CREATE TABLE alert_deliveries (
        target_id bigint NOT NULL REFERENCES alert_targets ON DELETE CASCADE,
        alert_position bigint NOT NULL REFERENCES alerts ON DELETE CASCADE,
        state text NOT NULL DEFAULT 'pending',
        attempts integer NOT NULL DEFAULT 0,
        queued_at double precision NOT NULL,
        next_at double precision NOT NULL,
        problem text,
        PRIMARY KEY (target_id, alert_position)
    );
    CREATE INDEX alert_deliveries_by_alert ON alert_deliveries (alert_position, state);
    CREATE INDEX alert_deliveries_by_state ON alert_deliveries (state, alert_position) WHERE state != 'delivered';
    CREATE INDEX alert_deliveries_pending ON alert_deliveries (target_id, alert_position) WHERE state = 'pending';
"""
