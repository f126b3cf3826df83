"""Calibration of a collection's thresholds on site."""
