"""Calibrations of collections in PostgreSQL."""
