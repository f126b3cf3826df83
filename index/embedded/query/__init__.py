"""Search as a caller sees it: the nearest subjects, filtered by metadata and by feedback."""
