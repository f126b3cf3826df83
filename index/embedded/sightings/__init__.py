"""Sightings in the embedded engine: their rows, and the interface's methods."""
