"""Bulk jobs: upload a zip or lines of JSON, and enrol its items in the background."""
