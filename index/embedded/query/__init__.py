"""Search for callers: the nearest subjects, filtered by metadata and by feedback."""
