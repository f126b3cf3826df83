"""Merges of subjects and moves of faces, in the embedded engine."""
