"""The steps of the database's schema by domain; index/postgres/store/migrations.py has their order."""
