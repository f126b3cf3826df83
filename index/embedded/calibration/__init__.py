"""Calibrations of collections in the ledger."""
