"""The gallery in PostgreSQL with pgvector: several replicas of the service share it.

The database is the only source of truth, of the time and of the order of changes.
"""
