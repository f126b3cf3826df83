"""Correcting who is who: merges, moved faces, likely duplicates, and clusters of unnamed faces."""
