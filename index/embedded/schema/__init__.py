"""Later steps of the ledger's schema as SQL, a module for each domain; index/embedded/store/migrations.py runs them."""
