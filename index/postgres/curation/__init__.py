"""Merges of subjects and moves of faces, in PostgreSQL."""
