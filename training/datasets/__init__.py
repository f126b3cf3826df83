"""Data sets and their splits, batches, augmentations, and evaluation protocols."""
