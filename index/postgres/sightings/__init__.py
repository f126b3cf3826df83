"""Sightings in PostgreSQL: their rows, and the interface's methods."""
