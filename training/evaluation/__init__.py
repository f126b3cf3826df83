"""Measure exported models on test data, and write the results into their cards and docs/."""
