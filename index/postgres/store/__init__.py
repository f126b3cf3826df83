"""Connections, schema and rows of the gallery in PostgreSQL.

In all `*_records` modules, a function runs one or a few statements on the connection `db`. Call functions that change
rows only in a transaction of `Database.write`. Times are seconds since 1970.
"""
