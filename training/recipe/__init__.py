"""Recipes: TOML files with all settings of a training run, and their validated schemas."""
