"""The ledger: its SQLite file, schema migrations, functions that read and write its rows, durable file operations.

A tombstone records an erasure outside the ledger, so that a restored backup repeats it.
"""
