"""The steps of the ledger's schema by domain; index/embedded/store/migrations.py has their order."""
