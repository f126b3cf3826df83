"""Reads and loads whole collections; see `index.protocol.Transfer`."""
