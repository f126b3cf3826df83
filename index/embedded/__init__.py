"""A gallery inside the process: SQLite for the data, FAISS for the search. `gallery` is the entry point.

The ledger is the SQLite file and the only source of truth; segments and inverted files are rebuilt from it.
"""
