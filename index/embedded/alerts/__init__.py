"""Alerts in the embedded engine: their rows, and the interfaces' methods."""
