"""Alerts about sightings: rules, the outbox and its delivery by webhooks, MQTT and an event stream."""
