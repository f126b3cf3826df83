"""Exports and imports as Parquet files, of any storage engine; see `index.protocol.Transfer`."""
