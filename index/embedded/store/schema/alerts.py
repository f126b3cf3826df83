"""Rules of alerts, alerts and their deliveries."""

# Alerts (index/embedded/alerts). `position` is the order of the commits. A delivery is "pending", "delivered" or
# "dead"; `attempts` have failed since `queued_at`.
STEP = """
    CREATE TABLE alert_rules (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        token TEXT NOT NULL UNIQUE,
        collection_id INTEGER NOT NULL REFERENCES collections (id) ON DELETE CASCADE,
        settings BLOB NOT NULL,
        created_at REAL NOT NULL
    ) STRICT;
    CREATE INDEX alert_rules_by_collection ON alert_rules (collection_id, id);
    CREATE TABLE alert_targets (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        token TEXT NOT NULL UNIQUE,
        rule_id INTEGER NOT NULL REFERENCES alert_rules (id) ON DELETE CASCADE
    ) STRICT;
    CREATE INDEX alert_targets_by_rule ON alert_targets (rule_id, id);
    CREATE TABLE alerts (
        position INTEGER PRIMARY KEY AUTOINCREMENT,
        token TEXT NOT NULL UNIQUE,
        rule_id INTEGER NOT NULL REFERENCES alert_rules (id) ON DELETE CASCADE,
        sighting_position INTEGER NOT NULL REFERENCES sightings (position) ON DELETE CASCADE,
        created_at REAL NOT NULL
    ) STRICT;
    CREATE INDEX alerts_by_rule ON alerts (rule_id, created_at);
    CREATE INDEX alerts_by_sighting ON alerts (sighting_position);
    CREATE TABLE alert_deliveries (
        target_id INTEGER NOT NULL REFERENCES alert_targets (id) ON DELETE CASCADE,
        alert_position INTEGER NOT NULL REFERENCES alerts (position) ON DELETE CASCADE,
        state TEXT NOT NULL DEFAULT 'pending',
        attempts INTEGER NOT NULL DEFAULT 0,
        queued_at REAL NOT NULL,
        next_at REAL NOT NULL,
        problem TEXT,
        PRIMARY KEY (target_id, alert_position)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX alert_deliveries_by_alert ON alert_deliveries (alert_position, state);
    CREATE INDEX alert_deliveries_by_state ON alert_deliveries (state, alert_position) WHERE state != 'delivered';
    CREATE INDEX alert_deliveries_pending ON alert_deliveries (target_id, alert_position) WHERE state = 'pending';
"""
