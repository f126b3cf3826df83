"""Nearest-neighbour search over the vectors of a collection; a cache of the ledger.

A segment is an immutable, memory-mapped file of vectors. An inverted file (IVF) groups vectors into lists around
centroids, so that a search reads a few lists only.
"""
