"""Prepare face photos for training: detect, check, crop and select them, and write the data set."""
