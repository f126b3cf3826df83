"""A gallery that runs inside the process: SQLite stores the data, FAISS searches it. `gallery` is the entry point.

The ledger is the SQLite file and the only source of truth; segments and inverted files are rebuilt from it.
"""
