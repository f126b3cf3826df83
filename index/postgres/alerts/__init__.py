"""Alerts in PostgreSQL: their rows, and the interfaces' methods."""
